from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.keeper import watch as watching
from holdfast.keeper.watch import (
    Bursts,
    Change,
    Clocks,
    Link,
    News,
    OwnAddress,
    Picture,
    Route,
    elapsed,
    local_addresses,
    read_netlink,
    read_routing_socket,
    watch,
)
from tests.sshd import wait_for

# --- the picture ------------------------------------------------------------------------

ETH, VPN, CONTAINER = 2, 3, 4
HERE, THERE = bytes([192, 0, 2, 2]), bytes([192, 0, 2, 3])


def picture() -> Picture:
    """Of a machine with one running interface, ETH, that has the address HERE."""
    return Picture({ETH}, {(ETH, HERE)})


def up(interface: int, *, carrier: bool = True) -> Link:
    return Link(interface, True, carrier)


def down(interface: int) -> Link:
    return Link(interface, False, False)


def route(
    interface: int = ETH, to: bytes = b"to", way: bytes = b"way", *, there: bool = True, new: bool = False
) -> Route:
    return Route(interface, to, way, there, new)


def changes(seen: Picture, *news: News) -> list[bool]:
    return [seen.learn(piece) for piece in news]


def test_an_address_that_is_known_already_is_no_change() -> None:
    assert changes(picture(), OwnAddress(ETH, HERE, True), OwnAddress(ETH, HERE, True)) == [False, False]


def test_an_address_replaced_is_two_changes() -> None:
    assert changes(picture(), OwnAddress(ETH, HERE, False), OwnAddress(ETH, THERE, True)) == [True, True]


def test_a_carrier_lost_and_found_is_two_changes_and_repeating_it_none() -> None:
    lost, found = up(ETH, carrier=False), up(ETH)
    assert changes(picture(), found, lost, lost, found, found) == [False, True, False, True, False]


def test_an_interface_without_address_or_route_means_nothing() -> None:
    assert changes(picture(), up(CONTAINER), down(CONTAINER)) == [False, False]


def test_an_address_of_an_interface_that_does_not_run_counts_once_it_runs() -> None:
    assert changes(picture(), OwnAddress(VPN, THERE, True), up(VPN)) == [False, True]


def test_a_route_counts_once() -> None:
    assert changes(picture(), route(), route()) == [True, False]


def test_a_route_of_an_interface_that_does_not_run_means_nothing() -> None:
    assert changes(picture(), route(VPN), route(VPN, there=False)) == [False, False]


def test_a_route_through_several_interfaces_counts() -> None:
    assert changes(picture(), route(0), route(0)) == [True, False]


def test_the_loss_of_a_route_counts_though_it_was_never_heard_of() -> None:
    assert changes(picture(), route(there=False)) == [True]


def test_a_route_replaced_and_replaced_back_counts_each_time() -> None:
    seen = picture()
    first, second = route(way=b"one", new=True), route(way=b"two", new=True)
    assert changes(seen, first, second, second, first) == [True, True, False, True]


def test_replacing_a_route_leaves_those_to_elsewhere_known() -> None:
    seen = picture()
    elsewhere = route(to=b"elsewhere")
    assert changes(seen, elsewhere, route(new=True), elsewhere) == [True, True, False]


@pytest.mark.parametrize("interface", [ETH, 0])
def test_a_route_that_went_silently_with_its_interface_counts_when_it_returns(interface: int) -> None:
    seen = picture()
    assert changes(seen, route(interface), down(ETH), up(ETH), route(interface)) == [True, True, True, True]


def test_a_route_that_went_silently_with_an_address_counts_when_it_returns() -> None:
    seen = picture()
    seen.learn(route())
    seen.learn(OwnAddress(ETH, HERE, False))
    assert seen.learn(route())


def test_a_route_outlives_a_lost_carrier() -> None:
    assert changes(picture(), route(), up(ETH, carrier=False), up(ETH), route()) == [True, True, True, False]


def test_the_routes_of_the_whole_internet_are_not_remembered() -> None:
    seen = picture()
    for number in range(watching._MOST_ROUTES + 1):
        seen.learn(route(to=b"%d" % number))
    assert seen.learn(route(to=b"0"))
    assert not seen.learn(route(to=b"%d" % watching._MOST_ROUTES))


# --- bursts -----------------------------------------------------------------------------


def tells(*changes: float) -> list[float]:
    """When it is told of `changes`, in seconds."""
    bursts, told, waiting = Bursts(), [], list(changes)
    while waiting or bursts.due is not None:
        if bursts.due is None or (waiting and waiting[0] < bursts.due):
            now = waiting.pop(0)
            bursts.changed(now)
        else:
            now = bursts.due
        if bursts.due is not None and bursts.due <= now:
            bursts.told(now)
            told.append(round(now, 3))
    return told


def test_one_change_is_told_of_once_and_at_once() -> None:
    assert tells(5) == [5]


def test_a_burst_is_told_of_at_once_and_when_quiet_has_returned() -> None:
    assert tells(5, 5.1, 5.2) == [5, 5.5]


def test_changes_that_are_far_apart_are_each_told_of_at_once() -> None:
    assert tells(5, 6.5, 8) == [5, 6.5, 8]


def test_a_storm_is_told_of_once_a_second_and_when_it_is_over() -> None:
    assert tells(*(number / 10 for number in range(34))) == [0, 1, 2, 3, 3.6]


@given(st.lists(st.floats(0, 30), max_size=200).map(sorted))
def test_every_change_is_told_of_within_a_second_but_not_much_oftener(times: list[float]) -> None:
    told = tells(*times)
    for changed in times:
        assert any(changed - 0.001 <= moment <= changed + 1.001 for moment in told)
    for before, after in zip(told, told[2:], strict=False):
        assert after - before >= 1 - 0.001


# --- rtnetlink's bytes ------------------------------------------------------------------


def message(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust(-(-len(value) // 4) * 4, b"\0")


def new_link(flags: int, family: int = 0, kind: int = 16) -> bytes:
    return message(kind, struct.pack("=BxHiII", family, 1, ETH, flags, 0) + attribute(3, b"eth0\0"))


def new_address(address: bytes, flags: int = 0, kind: int = 20) -> bytes:
    return message(
        kind, struct.pack("=BBBBI", 2, 24, flags, 0, ETH) + attribute(1, address) + attribute(3, b"eth0\0")
    )


def new_route(to: bytes, *, of: int = 1, flags: int = 0, gateway: bytes = THERE, more: bytes = b"") -> bytes:
    header = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 3, 0, of, flags)
    return message(
        24, header + attribute(1, to) + attribute(5, gateway) + attribute(4, struct.pack("=I", ETH)) + more, 0x100
    )


RUNNING, NO_CARRIER, SET_DOWN = 0x11043, 0x1003, 0x1002


@pytest.mark.parametrize(
    ("data", "link"),
    [
        (new_link(RUNNING), Link(ETH, True, True)),
        (new_link(NO_CARRIER), Link(ETH, True, False)),
        (new_link(SET_DOWN), Link(ETH, False, False)),
        (new_link(RUNNING, kind=17), Link(ETH, False, False)),
    ],
)
def test_a_link_runs_when_it_is_there_and_up_and_has_a_carrier(data: bytes, link: Link) -> None:
    assert list(read_netlink(data)) == [link]


def test_a_port_that_leaves_a_bridge_is_not_taken_for_gone() -> None:
    assert not list(read_netlink(new_link(RUNNING, family=socket.AF_BRIDGE, kind=17)))


TENTATIVE, OPTIMISTIC, FAILED = 0x40, 0x04, 0x08


@pytest.mark.parametrize(
    ("flags", "usable"), [(0, True), (TENTATIVE, False), (TENTATIVE | OPTIMISTIC, True), (FAILED, False)]
)
def test_an_address_counts_when_it_can_be_used(flags: int, usable: bool) -> None:
    assert list(read_netlink(new_address(HERE, flags))) == [OwnAddress(ETH, HERE, usable)]


def test_an_address_removed_is_not_present() -> None:
    assert list(read_netlink(new_address(HERE, kind=21))) == [OwnAddress(ETH, HERE, False)]


@pytest.mark.parametrize("address", ["fe80::1", "febf::1"])
def test_link_local_addresses_mean_nothing(address: str) -> None:
    assert not list(read_netlink(new_address(socket.inet_pton(socket.AF_INET6, address))))


def test_a_route_is_another_one_by_another_gateway_but_not_by_an_expiry() -> None:
    first, expiring, other = (
        new_route(HERE),
        new_route(HERE, more=attribute(12, b"\1" * 32)),
        new_route(HERE, gateway=HERE),
    )
    (one,), (two,), (three,) = map(list, map(read_netlink, (first, expiring, other)))
    assert one == two
    assert isinstance(one, Route)
    assert isinstance(three, Route)
    assert (one.destination, one.interface) == (three.destination, ETH)
    assert one.way != three.way
    assert one.replaces


@pytest.mark.parametrize(
    "data",
    [
        new_route(HERE, flags=0x200),
        *(new_route(HERE, of=kind) for kind in (2, 3, 4, 5)),
        new_route(bytes([224, 0, 0, 0])),
        new_route(socket.inet_pton(socket.AF_INET6, "ff00::")),
        new_route(socket.inet_pton(socket.AF_INET6, "fe80::")),
        message(28, bytes(12)),
    ],
    ids=[
        "clone",
        "local",
        "broadcast",
        "anycast",
        "of kind multicast",
        "multicast",
        "v6",
        "link-local",
        "neighbour",
    ],
)
def test_routes_that_say_nothing_of_where_one_can_go_mean_nothing(data: bytes) -> None:
    assert not list(read_netlink(data))


def test_several_messages_in_a_datagram_are_all_read() -> None:
    read = list(read_netlink(new_link(RUNNING) + message(3, b"\0\0\0") + b"\0" + new_address(HERE)))
    assert read == [Link(ETH, True, True), OwnAddress(ETH, HERE, True)]


def test_an_attribute_that_claims_to_have_no_length_ends_its_message() -> None:
    assert not list(read_netlink(message(20, bytes(8) + struct.pack("=HH", 0, 1) + HERE)))


_PIECES = [new_link(RUNNING), new_address(HERE), new_route(HERE), message(20, b"\1" * 9), attribute(1, HERE)]


@given(st.lists(st.sampled_from(_PIECES) | st.binary(max_size=24), max_size=8).map(b"".join), st.data())
def test_no_bytes_make_the_readers_raise(data: bytes, choice: st.DataObject) -> None:
    cut = choice.draw(st.integers(0, len(data)))
    for read in (read_netlink, read_routing_socket):
        for part in (data, data[:cut], data[cut:]):
            assert all(isinstance(news, News) for news in read(part))


# --- macOS's bytes ----------------------------------------------------------------------


def routed(kind: int, rest: bytes, version: int = 5) -> bytes:
    return struct.pack("<HBB", 4 + len(rest), version, kind) + rest


def inet(address: bytes) -> bytes:
    return struct.pack("BBH4s8x", 16, 2, 0, address)


def inet6(address: str) -> bytes:
    return struct.pack("BBHI16sI", 28, 30, 0, 0, socket.inet_pton(socket.AF_INET6, address), 0)


LINK_NAME = struct.pack("<BBHBBBB12s", 20, 18, ETH, 6, 3, 6, 0, b"en0")
NETMASK = bytes([7, 0, 0, 0, 255, 255, 255, 0])


def macos_address(kind: int, address: bytes) -> bytes:
    return routed(kind, struct.pack("<iiHxxi", 0x34, 0, ETH, 0) + NETMASK + LINK_NAME + address)


def macos_route(kind: int, to: bytes, flags: int = 0x803, error: int = 0) -> bytes:
    header = struct.pack("<Hxxiiiiiii", ETH, flags, 0x7, 99, 1, error, 0, 0)
    return routed(kind, header + bytes(56) + to + inet(THERE) + NETMASK)


def test_macos_tells_of_links() -> None:
    flags = [0x8863, 0x8823, 0x8822]
    data = b"".join(routed(0xE, struct.pack("<iiHxx", 0, each, ETH) + bytes(96)) for each in flags)
    assert list(read_routing_socket(data)) == [
        Link(ETH, True, True),
        Link(ETH, True, False),
        Link(ETH, False, False),
    ]


def test_macos_tells_of_addresses() -> None:
    data = macos_address(0xC, inet(HERE)) + macos_address(0xD, inet6("2001:db8::1"))
    six = socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    assert list(read_routing_socket(data)) == [OwnAddress(ETH, HERE, True), OwnAddress(ETH, six, False)]


def test_macos_tells_of_routes() -> None:
    data = b"".join(macos_route(kind, inet(HERE)) for kind in (1, 2, 3))
    added, deleted, changed = read_routing_socket(data)
    assert isinstance(added, Route)
    assert added == Route(ETH, inet(HERE) + NETMASK[:7], inet(THERE), True, False)
    assert deleted == added._replace(present=False)
    assert changed == added._replace(replaces=True)


@pytest.mark.parametrize(
    "data",
    [
        macos_address(0xC, inet6("fe80:4::1")),
        macos_route(1, inet(HERE), flags=0x405),
        macos_route(1, inet(HERE), flags=0x20005),
        macos_route(1, inet(bytes([224, 0, 0, 251]))),
        macos_route(1, inet(HERE), error=17),
        macos_route(4, inet(HERE)),
        routed(0xE, bytes(108), version=4),
    ],
    ids=[
        "link-local",
        "neighbour",
        "clone",
        "multicast",
        "a request that failed",
        "a question",
        "another version",
    ],
)
def test_macos_says_much_that_means_nothing(data: bytes) -> None:
    assert not list(read_routing_socket(data))


# --- clocks -----------------------------------------------------------------------------


def woken(clocks: Clocks, until: Callable[[], bool]) -> int:
    """How often `watch` says that the machine woke, until `until()`. This machine's network may change as well."""
    told: list[Change] = []

    async def run() -> None:
        task = asyncio.create_task(watch(told.append, clocks=clocks))
        deadline = time.monotonic() + 10
        while not until():
            assert time.monotonic() < deadline
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())
    return told.count(Change.WOKE)


@pytest.mark.parametrize(
    ("slept", "wakes"),
    [
        ([0, 0, 3600, 3600, 3600], 1),
        ([0, 30, 60, 60], 2),
        ([0, 0.4, 0.8, 1.2, 1.6], 0),
        ([0, -7200, -7200], 0),
        ([0, -7200, -7190], 1),
    ],
    ids=["one sleep", "two", "clocks that drift apart", "a clock set back", "a sleep after that"],
)
def test_a_wake_is_told_of_when_one_clock_gained_on_the_other(
    slept: list[float], wakes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LOOK", 0.001)
    looks, awake = iter(slept), itertools.count(1000.0, 0.001)
    now = [0.0]

    def read_elapsed() -> float:
        now[0] = next(awake)
        looked.append(1)
        return now[0] + next(looks, slept[-1])

    looked: list[int] = []
    assert woken(Clocks(read_elapsed, lambda: now[0]), lambda: len(looked) > len(slept)) == wakes


def test_the_elapsed_time_is_that_since_the_machine_started() -> None:
    if sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    assert abs(elapsed() - float(Path("/proc/uptime").read_text().split()[0])) < 1


def test_the_local_addresses_are_those_of_the_system_without_a_scope() -> None:
    found = local_addresses()
    assert "127.0.0.1" in found
    for address in found:
        assert "%" not in address
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


# --- the real thing ---------------------------------------------------------------------

needs_namespaces = pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need Linux, root and ip",
)

# Runs each line, then prints what was told since the last, once all that waited in its socket has been read.
CHILD = """
import asyncio, ctypes, os, sys, time
from holdfast.keeper import watch as watching

told = []
looks = ahead = 0

def read_elapsed():
    global looks
    looks += 1
    return watching.elapsed() + ahead

async def main():
    clocks = watching.Clocks(read_elapsed, time.monotonic)
    task = asyncio.create_task(watching.watch(lambda change: told.append(change.name), clocks=clocks))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while command := (await reader.readline()).decode():
        exec(command, globals())
        for _ in range(100):
            await asyncio.sleep(0)
        print(looks, *told, flush=True)
        told.clear()
    task.cancel()

asyncio.run(main())
"""


class Watching:
    """A process that watches, by default in a network namespace of its own."""

    def __init__(self, home: Path, prefix: list[str], before: str = "") -> None:
        environment = {"HOLDFAST_STATE_DIR": str(home / "state"), "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", "-c", before + CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.looks = 0
        self.told()

    def told(self, command: str = "pass") -> list[str]:
        """What it told since the last time. It runs `command` first."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        looks, *told = self.process.stdout.readline().split()
        self.looks = int(looks)
        return told

    def wait_until_told(self) -> list[str]:
        """What it told, which is one thing at least."""
        told: list[str] = []

        def has_told() -> bool:
            told.extend(self.told())
            return bool(told)

        wait_for(has_told, "a tell", 10)
        return told

    def wait_for_looks(self, count: int) -> list[str]:
        """What it told until it had looked at the clocks `count` times more."""
        told: list[str] = []
        until = self.looks + count

        def has_looked() -> bool:
            told.extend(self.told())
            return self.looks >= until

        wait_for(has_looked, "looks at the clocks", 10)
        return told

    def stop(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                assert self.process.wait(10) == 0
            finally:
                self.process.kill()


class Here:
    """Two namespaces joined by a cable: `eth` here with 192.0.2.2 and 2001:db8::2, its other end far away."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        self.name = name
        self.far = f"{name}far"

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self.name, *words], check=True, timeout=20)

    def ip_far(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self.far, *words], check=True, timeout=20)

    def batch(self, lines: list[str]) -> None:
        subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True, timeout=20
        )

    def runs(self, interface: str) -> bool:
        shown = subprocess.run(
            ["ip", "-n", self.name, "-o", "link", "show", interface], capture_output=True, text=True, check=True
        )
        return "state UP" in shown.stdout

    def make(self) -> None:
        for name in (self.name, self.far):
            subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
        self.ip("link", "set", "lo", "up")
        self.ip("link", "add", "eth", "type", "veth", "peer", "name", "eth", "netns", self.far)
        self.ip_far("link", "set", "eth", "up")
        self.ip("addr", "add", "192.0.2.2/24", "dev", "eth")
        self.ip("addr", "add", "2001:db8::2/64", "dev", "eth", "nodad")
        self.ip("link", "set", "eth", "up")
        wait_for(lambda: self.runs("eth"), "the carrier")

    def remove(self) -> None:
        for name in (self.name, self.far):
            subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)


@pytest.fixture
def here(home: Path) -> Iterator[Here]:
    made = Here(home, f"{home.name}w{os.getpid()}")
    try:
        made.make()
        yield made
    finally:
        made.remove()


@pytest.fixture
def watched(here: Here) -> Iterator[Watching]:
    """Watches in `here`, which has come to rest."""
    watching = Watching(here.home, ["ip", "netns", "exec", here.name])
    try:
        yield watching
    finally:
        watching.stop()


@needs_namespaces
def test_a_cable_pulled_and_plugged_in_again_is_told_of_each_time(here: Here, watched: Watching) -> None:
    here.ip_far("link", "set", "eth", "down")
    assert set(watched.wait_until_told()) == {"NETWORK"}
    here.ip_far("link", "set", "eth", "up")
    wait_for(lambda: here.runs("eth"), "the carrier")
    assert set(watched.wait_until_told()) == {"NETWORK"}


@needs_namespaces
@pytest.mark.parametrize(("old", "new"), [("192.0.2.2/24", "192.0.2.9/24"), ("2001:db8::2/64", "2001:db8::9/64")])
def test_an_address_replaced_is_told_of(here: Here, watched: Watching, old: str, new: str) -> None:
    here.ip("addr", "del", old, "dev", "eth")
    assert set(watched.wait_until_told()) == {"NETWORK"}
    here.ip("addr", "add", new, "dev", "eth")
    assert set(watched.wait_until_told()) == {"NETWORK"}


@needs_namespaces
def test_a_vpn_is_told_of_when_it_has_come_up_with_its_route(here: Here, watched: Watching) -> None:
    here.ip("link", "add", "vpn", "type", "veth", "peer", "name", "vpn", "netns", here.far)
    here.ip_far("link", "set", "vpn", "up")
    here.ip("link", "set", "vpn", "up")
    wait_for(lambda: here.runs("vpn"), "the carrier")
    assert watched.told() == []
    here.ip("route", "add", "198.51.100.0/24", "dev", "vpn")
    assert watched.wait_until_told() == ["NETWORK"]
    here.ip("route", "del", "198.51.100.0/24", "dev", "vpn")
    assert watched.wait_until_told() == ["NETWORK"]


@needs_namespaces
def test_a_default_route_replaced_is_told_of(here: Here, watched: Watching) -> None:
    for gateway in ("192.0.2.3", "192.0.2.4", "192.0.2.3"):
        here.ip("route", "replace", "default", "via", gateway)
        assert watched.wait_until_told() == ["NETWORK"]


@needs_namespaces
def test_an_interface_set_down_and_up_is_told_of_and_its_route_that_comes_later_as_well(
    here: Here, watched: Watching
) -> None:
    here.ip("route", "add", "default", "via", "192.0.2.3")
    watched.wait_until_told()
    here.ip("link", "set", "eth", "down")
    watched.wait_until_told()
    here.ip("link", "set", "eth", "up")
    wait_for(lambda: here.runs("eth"), "the carrier")
    watched.wait_until_told()
    watched.wait_for_looks(1)
    here.ip("route", "add", "default", "via", "192.0.2.3")
    assert set(watched.wait_until_told()) == {"NETWORK"}


@needs_namespaces
@pytest.mark.parametrize(
    "lines",
    [
        [f"addr change 2001:db8::2/64 dev eth nodad valid_lft {left} preferred_lft {left}" for left in (500, 600)],
        [f"addr change 192.0.2.2/24 dev eth valid_lft {left} preferred_lft {left}" for left in (500, 600)],
        [
            "neigh add 192.0.2.77 lladdr 02:00:00:00:00:01 dev eth",
            "neigh add 2001:db8::77 lladdr 02:00:00:00:00:01 dev eth",
            "neigh del 192.0.2.77 dev eth",
        ],
        [
            "link set eth alias cable",
            "link set eth txqueuelen 77",
            "link set eth mtu 1400",
            "link set eth promisc on",
        ],
        ["addr add fe80::77/64 dev eth nodad", "addr del fe80::77/64 dev eth"],
        ["route add multicast 224.0.0.0/4 dev eth", "route add ff05::/16 dev eth", "route add fe81::/64 dev eth"],
        [
            "link add bridge type bridge",
            "link set bridge up",
            "link add container type veth peer name inside",
            "link set container master bridge",
            "link set inside up",
            "link set container up",
            "link set container nomaster",
            "link del container",
        ],
    ],
    ids=[
        "lifetimes of IPv6",
        "lifetimes of IPv4",
        "neighbours",
        "settings",
        "link-local",
        "multicast",
        "containers",
    ],
)
def test_what_changes_no_way_to_anywhere_is_not_told_of(here: Here, watched: Watching, lines: list[str]) -> None:
    here.batch(lines)
    assert watched.told() == []
    here.ip("addr", "add", "192.0.2.9/24", "dev", "eth")
    assert watched.wait_until_told() == ["NETWORK"]


@needs_namespaces
def test_an_ipv6_address_is_told_of_when_it_can_be_used(here: Here, watched: Watching) -> None:
    here.ip("addr", "add", "2001:db8:1::2/64", "dev", "eth")
    watched.wait_until_told()
    wait_for(lambda: not tentative(here), "the end of the check for duplicates", 10)
    assert set(watched.wait_until_told()) == {"NETWORK"}


def tentative(here: Here) -> bool:
    shown = subprocess.run(["ip", "-n", here.name, "addr", "show", "tentative"], capture_output=True, check=True)
    return b"2001:db8:1::2" in shown.stdout


@needs_namespaces
def test_more_news_than_the_system_could_keep_for_us_counts_as_a_change(here: Here, watched: Watching) -> None:
    overrun(here, watched)
    assert watched.wait_until_told() == ["NETWORK"]
    here.ip("addr", "change", "192.0.2.2/24", "dev", "eth", "valid_lft", "500", "preferred_lft", "500")
    assert watched.told() == []
    here.ip("addr", "del", "192.0.2.2/24", "dev", "eth")
    assert set(watched.wait_until_told()) == {"NETWORK"}


@needs_namespaces
def test_what_waited_when_more_was_lost_is_not_believed(here: Here, watched: Watching) -> None:
    watched.told("watching._QUIET = watching._PACE = 0")
    overrun(
        here, watched, first="addr add 192.0.2.9/24 dev eth noprefixroute", last="addr del 192.0.2.9/24 dev eth"
    )
    assert watched.wait_until_told() == ["NETWORK"]
    assert watched.told() == []
    here.ip("addr", "add", "192.0.2.9/24", "dev", "eth", "noprefixroute")
    assert watched.wait_until_told() == ["NETWORK"]


def overrun(here: Here, watched: Watching, *, first: str = "", last: str = "") -> None:
    """More news, none of which means anything, than its socket can hold; between `first` and `last`, if given."""
    noise = ["addr add fe80::77/64 dev eth nodad", "addr del fe80::77/64 dev eth"] * 300
    os.kill(watched.process.pid, signal.SIGSTOP)
    here.batch([line for line in (first, *noise, last) if line])
    os.kill(watched.process.pid, signal.SIGCONT)


@needs_namespaces
def test_being_stopped_for_a_while_is_no_wake(watched: Watching) -> None:
    watched.told("watching.LOOK = 0.01")
    watched.wait_for_looks(2)
    os.kill(watched.process.pid, signal.SIGSTOP)
    resume_at = time.monotonic() + 2.5
    wait_for(lambda: time.monotonic() > resume_at, "the stop to be longer than any sleep that counts")
    os.kill(watched.process.pid, signal.SIGCONT)
    assert watched.wait_for_looks(2) == []


# Real clocks part when a process enters a time namespace that has slept an hour more.
ENTER_TIME_NAMESPACE = "assert ctypes.CDLL(None, use_errno=True).setns(os.open('/proc/{}/ns/time', 0), 0) == 0"


@needs_namespaces
def test_a_wake_is_seen_on_the_real_clocks(watched: Watching) -> None:
    sleeper = subprocess.Popen(
        ["unshare", "--time", "--fork", "--kill-child", "--boottime", "3600", "--", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: psutil.Process(sleeper.pid).children(), "a process in the time namespace")
        (inside,) = psutil.Process(sleeper.pid).children()
        watched.told(ENTER_TIME_NAMESPACE.format(inside.pid))
        assert watched.wait_until_told() == ["WOKE"]
        assert watched.wait_for_looks(1) == []
    finally:
        with sleeper:
            sleeper.kill()


@needs_namespaces
def test_a_wake_is_noticed_at_once_when_the_network_moves(here: Here, watched: Watching) -> None:
    watched.told("watching.LOOK = 3600")
    watched.wait_for_looks(1)
    watched.told("ahead = 3600")
    here.ip("link", "set", "eth", "alias", "cable")
    assert watched.wait_until_told() == ["WOKE"]


# As a sandbox does it: a filter that lets no netlink socket be made. socket(2) is 41 on x86-64 and 198 on ARM.
SANDBOX = """
import ctypes, platform, struct
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 16), (0x06, 0, 0, 0x0005000D),
         (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
assert libc.prctl(22, 2, program, 0, 0) == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_in_a_sandbox_without_netlink_the_clocks_are_watched_and_the_log_says_so_once(home: Path) -> None:
    sandboxed = Watching(home, [], SANDBOX)
    try:
        sandboxed.told("watching.LOOK = 0.01")
        assert sandboxed.wait_for_looks(3) == []
        (line,) = (home / "state" / "keeper.log").read_text().splitlines()
        assert line.endswith("changes of the network go unnoticed: Permission denied")
        sandboxed.told("ahead = 3600")
        assert sandboxed.wait_until_told() == ["WOKE"]
    finally:
        sandboxed.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_watch_that_ends_leaves_no_descriptor_open() -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    woken(Clocks(elapsed, time.monotonic), iter([False, False, True]).__next__)
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
