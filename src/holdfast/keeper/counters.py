"""What the system has counted: connections at a port, and the bytes of a master's own connection.

Nothing of ours is in the path of a byte, so nothing of ours could count. Linux tells everybody of connections in
/proc/net, and of the bytes of each (TCP_INFO) by sock_diag(7). Elsewhere nothing is counted.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import NamedTuple

import psutil

from holdfast.forward import Address

# linux/tcp_states.h
_ESTABLISHED, _TIME_WAIT, _LISTEN = 1, 6, 10
# Seconds for which the kernel remembers a connection that has ended (TCP_TIMEWAIT_LEN).
MEMORY = 60.0
# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST_DUMP, _NLMSG_ERROR, _NLMSG_DONE = 0x301, 2, 3
_INET_DIAG_INFO = 2
_MESSAGE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
# Of a struct inet_diag_msg: where its inode is, and its size. Of a struct tcp_info: tcpi_bytes_acked and
# tcpi_bytes_received, since Linux 4.1.
_INODE_AT, _DIAG_SIZE = 68, 72
_BYTES, _BYTES_AT = struct.Struct("=QQ"), 120


class Traffic(NamedTuple):
    """Bytes of a TCP connection, since it was made."""

    sent: int
    received: int


class Connection(NamedTuple):
    """A TCP connection here. `is_open`: it hasn't ended; `ended` is for how many seconds it has, if so."""

    local: Address
    remote: Address
    is_open: bool
    ended: float


def tcp_connections(ports: Collection[int]) -> list[Connection]:
    """All with one of these ports at either end, those that have just ended too.

    Empty where the system doesn't tell.
    """
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            found += list(_connections_in(Path(table).read_text(), {f"{port:04X}" for port in ports}))
    return found


def _connections_in(table: str, ports: set[str]) -> Iterator[Connection]:
    """What /proc/net/tcp (proc(5)) says. Its timer of an ended connection runs for what is left of MEMORY."""
    hertz = 100  # USER_HZ, in which the kernel tells times
    for line in table.splitlines()[1:]:
        _, local, remote, state, _, timer, *_ = line.split()
        number = int(state, 16)
        if number == _LISTEN or not {local[-4:], remote[-4:]} & ports:
            continue
        is_over = number == _TIME_WAIT
        left = int(timer.partition(":")[2], 16) / hertz if is_over else 0.0
        ended = max(0.0, MEMORY - left) if is_over else 0.0
        yield Connection(_address(local), _address(remote), number == _ESTABLISHED, ended)


def _address(text: str) -> Address:
    digits, _, port = text.partition(":")
    words = [bytes.fromhex(digits[start : start + 8])[::-1] for start in range(0, len(digits), 8)]
    raw = b"".join(words if sys.byteorder == "little" else [word[::-1] for word in words])
    if len(raw) == 4:
        return Address(socket.inet_ntoa(raw), int(port, 16))
    address = IPv6Address(raw)
    return Address(str(address.ipv4_mapped or address), int(port, 16))


def unix_connections() -> Counter[str]:
    """How many connections each Unix socket's path has taken that are still open."""
    taken: Counter[str] = Counter()
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[5] == "03":  # SS_CONNECTED
                taken[fields[7]] += 1
    return taken


def connections_of(
    listens: Collection[Address], found: Collection[Connection], unix: Counter[str], beside: str
) -> int:
    """How many of them were taken at one of `listens`. `beside` is what may follow a Unix socket's path there."""
    count = 0
    for listen in listens:
        if listen.path:
            count += unix[listen.path] + unix[listen.path + beside]
        else:
            count += sum(end.is_open and _is_at(end.local, listen) for end in found)
    return count


def last_use(listens: Collection[Address], found: Collection[Connection]) -> float | None:
    """Seconds since the last connection to one of `listens` ended, 0 for one that lasts; None for none."""
    ends = [
        end.ended
        for end in found
        if any(_is_at(end.local, listen) or _is_at(end.remote, listen) for listen in listens if not listen.path)
    ]
    return min(ends, default=None)


def _is_at(end: Address, listen: Address) -> bool:
    return end.port == listen.port and listen.host in (end.host, "*", "0.0.0.0", "::")  # noqa: S104 - compared


def own_connection(pid: int, *, is_direct: bool) -> int | None:
    """The inode of the TCP connection that leads from the master `pid` to its server, its jump host or its proxy.

    ssh opens it before any other; where a ProxyCommand does, it is the first of a process that ssh started.
    """
    try:
        process = psutil.Process(pid)
        for each in [process] if is_direct else process.children(recursive=True):
            ends = [end for end in each.net_connections("tcp") if end.status != psutil.CONN_LISTEN]
            if ends:
                return os.stat(f"/proc/{each.pid}/fd/{min(end.fd for end in ends)}").st_ino  # noqa: PTH116 - a link
    except (psutil.Error, OSError):
        pass
    return None


def traffic() -> dict[int, Traffic]:
    """The traffic of each open TCP connection here, by its inode; empty where the system doesn't tell."""
    if sys.platform != "linux":
        return {}
    counted: dict[int, Traffic] = {}
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asked,
    ):
        asked.settimeout(1.0)
        for family in (socket.AF_INET, socket.AF_INET6):
            asked.send(_request(family))
            for message in _answers(asked):
                counted |= _counted(message)
    return counted


def _request(family: int) -> bytes:
    """A struct inet_diag_req_v2 that asks for the TCP_INFO of all connections that are open."""
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0, 1 << _ESTABLISHED)
    body += bytes(48)  # a struct inet_diag_sockid of nobody
    return _MESSAGE.pack(_MESSAGE.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body


def _answers(asked: socket.socket) -> Iterator[bytes]:
    while True:
        data = memoryview(asked.recv(1 << 18))
        while data:
            length, kind, *_ = _MESSAGE.unpack_from(data)
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                return
            yield bytes(data[_MESSAGE.size : length])
            data = data[_aligned(length) :]


def _counted(message: bytes) -> dict[int, Traffic]:
    (inode,) = struct.unpack_from("=I", message, _INODE_AT)
    at = _DIAG_SIZE
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _INET_DIAG_INFO and length >= _ATTRIBUTE.size + _BYTES_AT + _BYTES.size:
            return {inode: Traffic(*_BYTES.unpack_from(message, at + _ATTRIBUTE.size + _BYTES_AT))}
        at += max(_ATTRIBUTE.size, _aligned(length))
    return {}


def _aligned(length: int) -> int:
    return (length + 3) & ~3
