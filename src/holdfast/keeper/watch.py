"""Tells the keeper when the machine woke up or its network changed.

The clocks are looked at every two seconds, and whenever the system says anything of the network, as it does soon
after nearly every wake: a timer of the kernel's own would gain little. The network is never polled: rtnetlink on
Linux (rtnetlink(7)) and the routing socket on macOS (route(4)) tell of it. Both are parsed without I/O.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

import psutil

from holdfast.keeper import journal

# Seconds from one look at the clocks to the next.
LOOK = 2.0
# Seconds by which the clocks must have parted between two looks to be called a sleep.
_SHORTEST_SLEEP = 1.0
# Seconds without a change after which a burst of them is over, and between tells while one lasts.
_QUIET = 0.3
_PACE = 1.0
# How many routes are remembered: a router with the whole internet's must not fill our memory.
_MOST_ROUTES = 10_000
# Bytes that hold any one message.
_LONGEST_MESSAGE = 65536


class Change(Enum):
    WOKE = "the machine woke up"
    NETWORK = "the network changed"


class Clocks(NamedTuple):
    """Two clocks in seconds: `elapsed` goes on while the machine sleeps, `awake` stands still."""

    elapsed: Callable[[], float]
    awake: Callable[[], float]


def elapsed() -> float:
    """Seconds since some moment in the past, the machine's sleep included."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
    return time.time()


_REAL_CLOCKS = Clocks(elapsed, time.monotonic)


def local_addresses() -> frozenset[str]:
    """The addresses of this machine just now, IPv4 and IPv6, the latter without their scope.

    Raises OSError in a sandbox that doesn't let us know: that isn't a machine without addresses.
    """
    return frozenset(address for _, _, address in _addresses())


async def watch(tell: Callable[[Change], None], *, clocks: Clocks = _REAL_CLOCKS) -> None:
    """Calls `tell` at each change from the first time it is awaited until it is cancelled.

    Where the network can't be watched the keeper's log says so, and only the clocks are.
    """
    watcher = _Watcher(tell, clocks)
    watcher.start()
    try:
        while True:
            await asyncio.sleep(LOOK)
            watcher.look_at_clocks()
    finally:
        watcher.stop()


class Link(NamedTuple):
    """An interface. `running` is what can carry packets: it is up, has a carrier, and isn't still logging in."""

    interface: int
    up: bool
    running: bool


class OwnAddress(NamedTuple):
    """An address that an interface has or has lost, in network byte order."""

    interface: int
    address: bytes
    present: bool


class Route(NamedTuple):
    """A way to a destination, gained or lost. Several interfaces, or none, are interface 0."""

    interface: int
    destination: bytes
    way: bytes
    present: bool
    replaces: bool


News = Link | OwnAddress | Route


class Picture:
    """What can carry a connection: the addresses and routes of the interfaces that are running.

    A piece of news is a change only if it alters that. So lifetimes that a router renews, statistics of a radio
    and the ends of containers' cables (which have no address of their own) pass unnoticed, while a cable pulled,
    an address replaced or the route of a VPN never do.

    Routes aren't read at the start, which can take seconds on a router; nor does the system tell of each that
    goes: those of an interface that goes down, or loses an address, vanish in silence. So the loss of a route
    always counts, one counts when it is first heard of, and rather too many are forgotten than too few: that
    costs a needless tell, the opposite a missed one.
    """

    def __init__(self, running: set[int], addresses: set[tuple[int, bytes]]) -> None:
        self._running = running
        self._addresses = addresses
        self._routes: set[tuple[int, bytes, bytes]] = set()

    @classmethod
    def taken_now(cls) -> Picture:
        """What the system says. Raises OSError."""
        running = {_index(name) for name, link in psutil.net_if_stats().items() if link.isup}
        addresses = {
            (_index(name), socket.inet_pton(family, address))
            for name, family, address in _addresses()
            if not _is_link_local(socket.inet_pton(family, address))
        }
        return cls(running, addresses)

    def learn(self, news: News) -> bool:
        """Whether it changes anything that could matter to a connection."""
        match news:
            case Link():
                return self._learn_link(news)
            case OwnAddress():
                return self._learn_address(news)
            case Route():
                return self._learn_route(news)

    def _learn_link(self, link: Link) -> bool:
        interface = link.interface
        changed = link.running != (interface in self._running) and self._is_used(interface)
        if link.running:
            self._running.add(interface)
        else:
            self._running.discard(interface)
        if not link.up:
            self._forget_routes(interface)
        return changed

    def _learn_address(self, address: OwnAddress) -> bool:
        known = (address.interface, address.address)
        if address.present == (known in self._addresses):
            return False
        if address.present:
            self._addresses.add(known)
        else:
            self._addresses.remove(known)
            self._forget_routes(address.interface)
        return address.interface in self._running

    def _learn_route(self, route: Route) -> bool:
        known = (route.interface, route.destination, route.way)
        if not route.present:
            self._routes.discard(known)
        elif known in self._routes:
            return False
        else:
            if route.replaces:
                self._routes = {other for other in self._routes if other[1] != route.destination}
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            self._routes.add(known)
        return not route.interface or route.interface in self._running

    def _is_used(self, interface: int) -> bool:
        return any(interface == other[0] for facts in (self._addresses, self._routes) for other in facts)

    def _forget_routes(self, interface: int) -> None:
        self._routes = {route for route in self._routes if route[0] not in (interface, 0)}


class Bursts:
    """When to tell of changes, which seldom come alone.

    At once of the first, once more when quiet has returned, and about once a second while it doesn't. Times are
    seconds on any one clock; `due` is when to tell, None when there is nothing to tell.
    """

    def __init__(self) -> None:
        self.due: float | None = None
        self._told_at = -math.inf
        self._told_of_quiet = False

    def changed(self, now: float) -> None:
        next_turn = self._told_at + _PACE
        self.due = next_turn if self._told_of_quiet else min(now + _QUIET, next_turn)

    def told(self, now: float) -> None:
        self._told_of_quiet = now < self._told_at + _PACE
        self._told_at = now
        self.due = None


class Sleeps:
    """Whether the machine slept: one clock has then gained on the other; not so if we were merely stopped."""

    def __init__(self, clocks: Clocks) -> None:
        self._clocks = clocks
        self._slept = self._seconds_slept()

    def woke(self) -> bool:
        """Whether it slept since the last look."""
        before, self._slept = self._slept, self._seconds_slept()
        return self._slept - before > _SHORTEST_SLEEP

    def _seconds_slept(self) -> float:
        return self._clocks.elapsed() - self._clocks.awake()


class _Watcher:
    """The socket that the system tells us on, and the time of the next tell."""

    def __init__(self, tell: Callable[[Change], None], clocks: Clocks) -> None:
        self._tell = tell
        self._sleeps = Sleeps(clocks)
        self._bursts = Bursts()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._picture = Picture(set(), set())

    def start(self) -> None:
        try:
            self._socket = _subscribe()
            self._picture = Picture.taken_now()  # what changes meanwhile waits in the socket
        except OSError as error:
            self._give_up(error)
        else:
            self._loop.add_reader(self._socket, self._receive, self._socket)

    def stop(self) -> None:
        self._close()
        if self._timer is not None:
            self._timer.cancel()

    def look_at_clocks(self) -> None:
        if self._sleeps.woke():
            self._tell(Change.WOKE)

    def _receive(self, connection: socket.socket) -> None:
        self.look_at_clocks()
        try:
            data = connection.recv(_LONGEST_MESSAGE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._recover(error)
            return
        changes = [self._picture.learn(news) for news in _read(data)]
        if any(changes):
            self._network_changed()

    def _recover(self, error: OSError) -> None:
        """After an overrun, by a new socket: what still waits in the old one is older than what was lost."""
        if error.errno != errno.ENOBUFS:
            self._give_up(error)
            return
        self._close()
        self.start()
        self._network_changed()

    def _give_up(self, error: OSError) -> None:
        self._close()
        journal.note(f"changes of the network go unnoticed: {error.strerror or error}")

    def _close(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _network_changed(self) -> None:
        self._bursts.changed(self._loop.time())
        self._tell_when_due()

    def _tell_when_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._bursts.due is None:
            return
        now = self._loop.time()
        if self._bursts.due > now:
            self._timer = self._loop.call_at(self._bursts.due, self._tell_when_due)
            return
        self._bursts.told(now)
        self._tell(Change.NETWORK)


def _subscribe() -> socket.socket:
    """A socket on which the system tells of links, addresses and routes. Raises OSError."""
    if sys.platform == "linux":
        connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    else:
        connection = socket.socket(_AF_ROUTE, socket.SOCK_RAW, 0)
    try:
        connection.setblocking(False)
        if sys.platform == "linux":
            connection.bind((0, _GROUPS))
    except OSError:
        connection.close()
        raise
    return connection


def _read(data: bytes) -> Iterator[News]:
    return read_netlink(data) if sys.platform == "linux" else read_routing_socket(data)


def _addresses() -> Iterator[tuple[str, socket.AddressFamily, str]]:
    """The name of the interface, the family and the address without its scope, of each."""
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6):
                yield name, socket.AddressFamily(address.family), address.address.partition("%")[0]


def _index(name: str) -> int:
    """The number of the interface, or -1 (no interface's) when it has just gone. eth0:1 is an address of eth0."""
    with contextlib.suppress(OSError):
        return socket.if_nametoindex(name.partition(":")[0])
    return -1


def _is_link_local(address: bytes) -> bool:
    """Whether it is of fe80::/10: each end of each cable has one, and next to no ssh uses it."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _is_multicast(address: bytes) -> bool:
    return address[:1] == b"\xff" if len(address) == 16 else address[:1] >= b"\xe0"


# The same on Linux and macOS. A radio has a carrier, but doesn't run, while it still logs in.
_IFF_UP, _IFF_RUNNING = 0x1, 0x40

# linux/netlink.h and linux/rtnetlink.h.
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE = 16, 17, 20, 21, 24, 25
_NLM_F_REPLACE = 0x100
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
# IFA_F_DADFAILED, IFA_F_TENTATIVE and what lets a tentative address be used all the same, IFA_F_OPTIMISTIC.
_FAILED, _TENTATIVE, _OPTIMISTIC = 0x08, 0x40, 0x04
_RTM_F_CLONED = 0x200
# RTN_LOCAL, BROADCAST, ANYCAST, MULTICAST: they come and go with an address.
_KINDS_OF_ADDRESSES = (2, 3, 4, 5)
_RTA_DST, _RTA_OIF = 1, 4
# RTA_DST, SRC, PRIORITY, TABLE; and OIF, GATEWAY, PREFSRC, MULTIPATH, VIA, NH_ID.
_OF_DESTINATION, _OF_WAY = (1, 2, 6, 15), (4, 5, 7, 9, 18, 30)


def read_netlink(data: bytes) -> Iterator[News]:
    """What a datagram from rtnetlink tells of links, addresses and routes. What makes no sense is passed over."""
    while len(data) >= 16:
        length, kind, flags = struct.unpack_from("=IHH", data)
        if not 16 <= length <= len(data):
            return
        body = data[16:length]
        news: News | None = None
        if kind in (_NEWLINK, _DELLINK) and len(body) >= 16:
            news = _read_link(body, present=kind == _NEWLINK)
        elif kind in (_NEWADDR, _DELADDR) and len(body) >= 8:
            news = _read_address(body, present=kind == _NEWADDR)
        elif kind in (_NEWROUTE, _DELROUTE) and len(body) >= 12:
            news = _read_route(body, present=kind == _NEWROUTE, replaces=bool(flags & _NLM_F_REPLACE))
        if news is not None:
            yield news
        data = data[_aligned(length) :]


def _read_link(body: bytes, *, present: bool) -> Link | None:
    family, interface, flags = struct.unpack_from("=BxxxiI", body)
    if family != socket.AF_UNSPEC:  # a bridge tells of its ports: one that leaves it is there still
        return None
    up = present and bool(flags & _IFF_UP)
    return Link(interface, up, up and bool(flags & _IFF_RUNNING))


def _read_address(body: bytes, *, present: bool) -> OwnAddress | None:
    _, _, flags, _, interface = struct.unpack_from("=BBBBI", body)
    attributes = _attributes(body[8:])
    address = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if not address or _is_link_local(address):
        return None
    usable = not flags & _FAILED and (not flags & _TENTATIVE or bool(flags & _OPTIMISTIC))
    return OwnAddress(interface, address, present and usable)


def _read_route(body: bytes, *, present: bool, replaces: bool) -> Route | None:
    kind, flags = struct.unpack_from("=BI", body, 7)
    attributes = _attributes(body[12:])
    to = attributes.get(_RTA_DST, b"")
    if kind in _KINDS_OF_ADDRESSES or flags & _RTM_F_CLONED or _is_link_local(to) or _is_multicast(to):
        return None
    interface = int.from_bytes(attributes.get(_RTA_OIF, b""), sys.byteorder)
    destination = body[:5] + _joined(attributes, _OF_DESTINATION)
    way = bytes([kind]) + _joined(attributes, _OF_WAY)
    return Route(interface, destination, way, present, replaces)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[_aligned(length) :]
    return found


def _joined(attributes: dict[int, bytes], kinds: tuple[int, ...]) -> bytes:
    return b"".join(bytes([kind]) + attributes[kind] for kind in kinds if kind in attributes)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


# net/route.h, net/if.h and sys/socket.h of macOS. Python's socket may lack AF_ROUTE.
_AF_ROUTE = 17
_AF_INET, _AF_INET6 = 2, 30
_RTM_VERSION = 5
_RTM_ADD, _RTM_DELETE, _RTM_CHANGE, _RTM_NEWADDR, _RTM_DELADDR, _RTM_IFINFO = 1, 2, 3, 0xC, 0xD, 0xE
# The sizes of if_msghdr, ifa_msghdr and rt_msghdr as far as their parts matter, and to where addresses begin.
_IF_HEADER, _IFA_HEADER, _RT_HEADER = 14, 20, 92
# RTF_LLINFO, WASCLONED, LOCAL, BROADCAST, MULTICAST: neighbours and clones, which are routes there.
_MEANINGLESS_ROUTES = 0x400 | 0x20000 | 0x200000 | 0x400000 | 0x800000
_DST, _GATEWAY, _NETMASK, _IFA = 0, 1, 2, 5  # positions of the RTA_ bits


def read_routing_socket(data: bytes) -> Iterator[News]:
    """What macOS tells on a routing socket of links, addresses and routes. What makes no sense is passed over."""
    while len(data) >= 4:
        length, version, kind = struct.unpack_from("<HBB", data)
        if not 4 <= length <= len(data):
            return
        message, data = data[:length], data[length:]
        news: News | None = None
        if version != _RTM_VERSION:
            continue
        if kind == _RTM_IFINFO and length >= _IF_HEADER:
            news = _link_of_macos(message)
        elif kind in (_RTM_NEWADDR, _RTM_DELADDR) and length >= _IFA_HEADER:
            news = _address_of_macos(message, present=kind == _RTM_NEWADDR)
        elif kind in (_RTM_ADD, _RTM_DELETE, _RTM_CHANGE) and length >= _RT_HEADER:
            news = _route_of_macos(message, kind)
        if news is not None:
            yield news


def _link_of_macos(message: bytes) -> Link:
    flags, interface = struct.unpack_from("<iH", message, 8)
    up = bool(flags & _IFF_UP)
    return Link(interface, up, up and bool(flags & _IFF_RUNNING))


def _address_of_macos(message: bytes, *, present: bool) -> OwnAddress | None:
    present_parts, _, interface = struct.unpack_from("<iiH", message, 4)
    address = _packed(_socket_addresses(message[_IFA_HEADER:], present_parts).get(_IFA, b""))
    if not address or _is_link_local(address):
        return None
    return OwnAddress(interface, address, present)


def _route_of_macos(message: bytes, kind: int) -> Route | None:
    interface, flags, present_parts, _, _, error = struct.unpack_from("<Hxxiiiii", message, 4)
    parts = _socket_addresses(message[_RT_HEADER:], present_parts)
    to = _packed(parts.get(_DST, b""))
    if error or flags & _MEANINGLESS_ROUTES or not to or _is_link_local(to) or _is_multicast(to):
        return None
    destination = parts[_DST] + parts.get(_NETMASK, b"")
    return Route(interface, destination, parts.get(_GATEWAY, b""), kind != _RTM_DELETE, kind == _RTM_CHANGE)


def _socket_addresses(data: bytes, present_parts: int) -> dict[int, bytes]:
    """The sockaddrs after a header, by position: each begins with its length, and is padded to four bytes."""
    found = {}
    for position in range(8):
        if present_parts & 1 << position and data:
            found[position] = data[: data[0]]
            data = data[_aligned(data[0]) or 4 :]
    return found


def _packed(socket_address: bytes) -> bytes:
    """The address in a sockaddr_in or sockaddr_in6, whose closing zeros may be missing; b'' in any other."""
    family = socket_address[1] if len(socket_address) > 1 else 0
    if family == _AF_INET:
        return socket_address[4:8].ljust(4, b"\0")
    if family == _AF_INET6:
        return socket_address[8:24].ljust(16, b"\0")
    return b""
