"""Tells when the client of a held connection has gone away, without reading a byte of what it sent.

A client that only ended its sending (shutdown, as `nc -N` does) still waits for an answer. Over a Unix socket the
kernel tells the two apart; over TCP both arrive as the same FIN. But a loopback client's socket is this machine's
own: it is in /proc/net/tcp, and belongs to no process any more once it was closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import select
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path


class HangUps:
    """Watches many connections; calls back once for each whose client has ended its sending, or left."""

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._poll = _Poll()
        asyncio.get_running_loop().add_reader(self._poll.fileno(), self._look)

    def watch(self, connection: socket.socket, callback: Callable[[], None]) -> None:
        self._callbacks[connection.fileno()] = callback
        self._poll.add(connection.fileno())

    def forget(self, connection: socket.socket) -> None:
        """Before the connection is closed or given away."""
        if self._callbacks.pop(connection.fileno(), None) is not None:
            self._poll.remove(connection.fileno())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._poll.fileno())
        self._poll.close()

    def _look(self) -> None:
        for descriptor in self._poll.ended():
            callback = self._callbacks.get(descriptor)
            if callback is not None:
                callback()


if sys.platform == "linux":

    class _Poll:
        def __init__(self) -> None:
            self._epoll = select.epoll()
            self.fileno = self._epoll.fileno
            self.close = self._epoll.close

        def add(self, descriptor: int) -> None:
            # Edge-triggered, without EPOLLIN: only the end of the other side's sending wakes us, and once.
            self._epoll.register(descriptor, select.EPOLLRDHUP | select.EPOLLET)

        def remove(self, descriptor: int) -> None:
            self._epoll.unregister(descriptor)

        def ended(self) -> list[int]:
            return [descriptor for descriptor, _ in self._epoll.poll(0)]

else:

    class _Poll:
        """macOS and the BSDs. A low-water mark that no buffer reaches leaves only the end of file (kqueue(2))."""

        def __init__(self) -> None:
            self._kqueue = select.kqueue()
            self.fileno = self._kqueue.fileno
            self.close = self._kqueue.close

        def add(self, descriptor: int) -> None:
            flags = select.KQ_EV_ADD | select.KQ_EV_CLEAR
            self._change(descriptor, flags, select.KQ_NOTE_LOWAT, 1 << 30)

        def remove(self, descriptor: int) -> None:
            self._change(descriptor, select.KQ_EV_DELETE, 0, 0)

        def ended(self) -> list[int]:
            return [event.ident for event in self._kqueue.control(None, 64, 0) if event.flags & select.KQ_EV_EOF]

        def _change(self, descriptor: int, flags: int, notes: int, data: int) -> None:
            event = select.kevent(descriptor, select.KQ_FILTER_READ, flags, notes, data)
            self._kqueue.control([event], 0, 0)


# TCP connections that a process has open, as (local, remote) in the words of /proc/net/tcp.
Owned = frozenset[tuple[str, str]]


def owned_connections() -> Owned:
    """The TCP connections of this machine that belong to a process; none where the system doesn't tell.

    A socket that was closed has no inode any more (proc(5)).
    """
    rows: list[str] = []
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            rows += Path("/proc/net", table).read_text().splitlines()[1:]
    fields = (row.split(maxsplit=10) for row in rows)
    return frozenset((field[1], field[2]) for field in fields if field[9] != "0")


def client_is_gone(connection: socket.socket, owned: Owned) -> bool:
    """Whether the client of `connection`, which has ended its sending, is there no more to hear an answer.

    `owned` was found out after that. A client on another machine, or on a system that doesn't tell, counts as
    gone: browsers give up far more often than anybody half-closes.
    """
    if _has_hung_up(connection):  # over TCP, a reset
        return True
    if connection.family == socket.AF_UNIX:
        return False
    try:
        ours, theirs = connection.getsockname(), connection.getpeername()
    except OSError:
        return True
    return (_in_hex(theirs), _in_hex(ours)) not in owned


def _has_hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, 0)
    return any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll(0))


def _in_hex(address: tuple[str, int]) -> str:
    """An address as /proc/net/tcp writes it: 32-bit words in the machine's own order, then the port."""
    packed = ipaddress.ip_address(address[0].partition("%")[0]).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{address[1]:04X}"
