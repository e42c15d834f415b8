"""What the kernel has counted: connections at a port, and the bytes of a master's own connection.

Nothing of ours is in the path of a byte, so nothing of ours could count. Linux tells everybody of all connections,
with the bytes of each (TCP_INFO), by sock_diag(7). /proc/net/tcp has most of that, and takes ten times as long.
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

# linux/tcp_states.h; as bits: all connections that last, no listeners
_ESTABLISHED, _TIME_WAIT, _LISTEN = 1, 6, 10
_LASTING = 0xFFF & ~(1 << _LISTEN | 1 << _TIME_WAIT)
# Seconds for which the kernel remembers a connection that has ended (TCP_TIMEWAIT_LEN).
MEMORY = 60.0
# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_NLM_F_REQUEST_DUMP, _NLMSG_ERROR, _NLMSG_DONE = 0x301, 2, 3
_INET_DIAG_INFO = 2
_MESSAGE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")
# struct inet_diag_msg: family, state, timer, retransmissions; ports and addresses, in network order; interface,
# cookie; expires in milliseconds, queues, uid, inode.
_CONNECTION = struct.Struct("=BBxx2s2s16s16s12xI8x4xI")
# Of a struct tcp_info: tcpi_bytes_acked and tcpi_bytes_received, since Linux 4.1.
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
    inode: int
    traffic: Traffic | None


def tcp_connections(*, ended: bool = False) -> list[Connection] | None:
    """All on this machine. None where the system doesn't tell.

    `ended`: those that have just ended too, of which there may be tens of thousands.
    """
    if sys.platform != "linux":
        return None
    found = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as asked:
            asked.settimeout(1.0)
            for family in (socket.AF_INET, socket.AF_INET6):
                asked.send(_request(family, _LASTING | ended << _TIME_WAIT))
                found += [_connection(message) for message in _answers(asked)]
    except OSError:
        return None
    return found


def _request(family: int, states: int) -> bytes:
    """A struct inet_diag_req_v2 that asks for all connections in these states, with their TCP_INFO."""
    body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), 0, states)
    body += bytes(48)  # a struct inet_diag_sockid of nobody
    return _MESSAGE.pack(_MESSAGE.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + body


def _answers(asked: socket.socket) -> Iterator[bytes]:
    """Raises OSError where the kernel can't tell."""
    while True:
        data = memoryview(asked.recv(1 << 18))
        while data:
            length, kind, *_ = _MESSAGE.unpack_from(data)
            if kind == _NLMSG_ERROR:
                raise OSError("the kernel does not answer sock_diag")
            if kind == _NLMSG_DONE:
                return
            yield bytes(data[_MESSAGE.size : length])
            data = data[_aligned(length) :]


def _connection(message: bytes) -> Connection:
    family, state, *ports_and_addresses, expires, inode = _CONNECTION.unpack_from(message)
    local_port, remote_port, local, remote = ports_and_addresses
    is_over = state == _TIME_WAIT  # its timer runs for what is left of MEMORY
    return Connection(
        _address(family, local, local_port),
        _address(family, remote, remote_port),
        state == _ESTABLISHED,
        max(0.0, MEMORY - expires / 1000) if is_over else 0.0,
        inode,
        _traffic(message),
    )


def _address(family: int, raw: bytes, port: bytes) -> Address:
    number = int.from_bytes(port, "big")
    if family == socket.AF_INET:
        return Address(socket.inet_ntoa(raw[:4]), number)
    address = IPv6Address(raw)
    return Address(str(address.ipv4_mapped or address), number)


def _traffic(message: bytes) -> Traffic | None:
    at = _CONNECTION.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        if kind == _INET_DIAG_INFO and length >= _ATTRIBUTE.size + _BYTES_AT + _BYTES.size:
            return Traffic(*_BYTES.unpack_from(message, at + _ATTRIBUTE.size + _BYTES_AT))
        at += max(_ATTRIBUTE.size, _aligned(length))
    return None


def _aligned(length: int) -> int:
    return (length + 3) & ~3


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
