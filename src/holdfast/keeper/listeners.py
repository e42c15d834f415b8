"""Copies of the sockets that masters listen on, so that a port goes from a master to its guard without a gap.

Linux lets a process copy a descriptor of one that it might debug: of its own children always, of its user's others
where ptrace isn't restricted (Yama). While a copy is open the port has a listener, though the master close it or
be killed, and whoever has connected and wasn't accepted yet is not lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import sys

from holdfast.forward import Address

# pidfd_getfd(2), the same number on every architecture. Python has no function for it.
_PIDFD_GETFD = 438
# Sockets that are looked at: each takes some microseconds, in which nothing else is done.
MOST = 500


def copy_of(pid: int, listen: Address) -> socket.socket | None:
    """A copy of the socket with which `pid` listens on the TCP address; None where that can't be had.

    Whatever the process has is copied until it is found: what has which number may change at any time.
    """
    if sys.platform != "linux":
        return None
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        for number in _sockets_of(pid):
            copied = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, number, 0)
            if copied < 0 and ctypes.get_errno() == errno.EPERM:
                return None
            found = _if_it_listens(copied, listen) if copied >= 0 else None
            if found is not None:
                return found
    finally:
        os.close(process)
    return None


def _sockets_of(pid: int) -> list[int]:
    """The numbers of the descriptors of `pid` that are sockets just now, the newest as a rule first."""
    folder = f"/proc/{pid}/fd"
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}").startswith("socket:"):  # noqa: PTH115 - hundreds of them
                    found.append(int(name))
    return sorted(found, reverse=True)[:MOST]


def _if_it_listens(descriptor: int, listen: Address) -> socket.socket | None:
    """The socket `descriptor`, if it listens there; else it is closed."""
    try:
        copy = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        return None
    with contextlib.suppress(OSError):
        is_listening = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if is_listening and copy.getsockname()[:2] == (listen.host, listen.port):
            return copy
    copy.close()
    return None
