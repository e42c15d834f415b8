"""Copies of the sockets that masters listen on, so that a port goes from a master to its guard without a gap.

Linux lets a process copy a descriptor of one that it might debug: of its own children always, of its user's others
where ptrace isn't restricted (Yama). While a copy is open the port has a listener, though the master close it or
be killed, and whoever has connected and wasn't accepted yet is not lost.
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys

import psutil

from holdfast.forward import Address

# pidfd_getfd(2), the same number on every architecture. Python has no function for it.
_PIDFD_GETFD = 438


def copy_of(pid: int, listen: Address) -> socket.socket | None:
    """A copy of the socket with which `pid` listens on the TCP address; None where that can't be had."""
    if sys.platform != "linux":
        return None
    try:
        ends = psutil.Process(pid).net_connections("tcp")
        found = [
            end.fd for end in ends if end.status == psutil.CONN_LISTEN and end.laddr == (listen.host, listen.port)
        ]
        if len(found) != 1:
            return None
        process = os.pidfd_open(pid)
    except (psutil.Error, OSError):
        return None
    try:
        copied = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, found[0], 0)
    finally:
        os.close(process)
    return _if_it_listens(socket.socket(fileno=copied), listen) if copied >= 0 else None


def _if_it_listens(copy: socket.socket, listen: Address) -> socket.socket | None:
    """`copy`, unless the process has let the listener go meanwhile and its number is another socket's."""
    try:
        if copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and copy.getsockname()[:2] == (
            listen.host,
            listen.port,
        ):
            return copy
    except OSError:
        pass
    copy.close()
    return None
