"""What the system knows of ports and processes, asked of the real one."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from holdfast.errors import HoldfastError
from holdfast.forward import Address, parse
from holdfast.keeper import processes
from holdfast.keeper.processes import Holder, end_left_over_masters, free_port, holder, why_not

LOOPBACKS = ["127.0.0.1", "::1"]


def listen(host: str, port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ssh does
    made.bind((host, port))
    made.listen()
    return made


@pytest.fixture(params=LOOPBACKS)
def taken(request: pytest.FixtureRequest) -> Iterator[Address]:
    """An address that this test's own process listens on."""
    with listen(request.param) as listener:
        yield Address(request.param, listener.getsockname()[1])


def test_a_free_port_is_free_on_both_loopback_addresses() -> None:
    port = free_port(parse("0:8888").listeners)
    with listen("127.0.0.1", port), listen("::1", port):
        pass


@pytest.mark.parametrize("host", [*LOOPBACKS, "*", "0.0.0.0", "::"])
def test_a_free_port_is_free_on_the_address_that_asks(host: str) -> None:
    port = free_port([Address(host)])
    assert port > 0
    assert why_not(Address(host, port)) == 0


def test_where_no_port_can_be_free_the_search_ends() -> None:
    with pytest.raises(HoldfastError, match=r"no port is free on 192\.0\.2\.1"):
        free_port([Address("192.0.2.1")])


def test_a_free_port_is_another_than_one_taken_on_ipv6_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[int] = []

    def taken_once(address: Address) -> int:
        if address.host == "::1" and not refused:
            refused.append(address.port)
            return errno.EADDRINUSE
        return 0

    monkeypatch.setattr(processes, "why_not", taken_once)
    assert free_port(parse("0:8888").listeners) not in refused
    assert refused


def test_nothing_speaks_against_a_free_address() -> None:
    for host in LOOPBACKS:
        assert why_not(Address(host, free_port([Address(host)]))) == 0


def test_asking_twice_changes_nothing() -> None:
    address = Address("127.0.0.1", free_port([Address("127.0.0.1")]))
    assert [why_not(address), why_not(address)] == [0, 0]


def test_a_port_that_is_taken_is_taken(taken: Address) -> None:
    assert why_not(taken) == errno.EADDRINUSE


def test_a_port_taken_on_one_loopback_address_is_free_on_the_other() -> None:
    port = free_port(parse("0:8888").listeners)
    with listen("::1", port):
        assert why_not(Address("127.0.0.1", port)) == 0


def test_all_ipv6_addresses_are_free_where_all_ipv4_ones_are_taken() -> None:
    with listen("0.0.0.0", free_port([Address("0.0.0.0"), Address("::")])) as listener:
        assert why_not(Address("::", listener.getsockname()[1])) == 0


def test_a_port_whose_last_connection_was_just_closed_is_free() -> None:
    with listen("127.0.0.1") as listener:
        name = listener.getsockname()
        with socket.create_connection(name) as connection:
            accepted, _ = listener.accept()
            accepted.close()
            connection.recv(1)
    assert why_not(Address(*name)) == 0


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_is_not_this_machines_is_no_such_address(host: str) -> None:
    assert why_not(Address(host, 8888)) in processes.NO_SUCH_ADDRESS


@pytest.mark.parametrize("host", ["nosuch.invalid", "a..b", "a" * 64, "fe80::1%nosuch"])
def test_a_name_that_nobody_has_is_some_error(host: str) -> None:
    assert why_not(Address(host, 8888)) != 0


def test_a_privileged_port_is_forbidden_to_others_than_root() -> None:
    limit = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    if os.getuid() != 0 or not limit.exists() or int(limit.read_text()) < 2:
        pytest.skip("needs root to become somebody else, and privileged ports")
    os.seteuid(65534)
    try:
        found = why_not(Address("127.0.0.1", 1))
    finally:
        os.seteuid(0)
    assert found == errno.EACCES


def test_the_holder_of_a_port_is_named_with_its_pid(taken: Address) -> None:
    mine = psutil.Process().name()
    assert holder(taken) == Holder(mine, os.getpid())
    assert str(holder(taken)) == f"{mine} (pid {os.getpid()})"


@pytest.mark.parametrize(("everywhere", "asked"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("0.0.0.0", "*")])
def test_who_listens_everywhere_holds_each_address(everywhere: str, asked: str) -> None:
    with listen(everywhere) as listener:
        assert holder(Address(asked, listener.getsockname()[1])).pid == os.getpid()


@pytest.mark.parametrize("asked", ["*", "0.0.0.0"])
def test_who_listens_on_one_address_stands_in_the_way_of_all(asked: str) -> None:
    with listen("127.0.0.1") as listener:
        address = Address(asked, listener.getsockname()[1])
        assert why_not(address) == errno.EADDRINUSE
        assert holder(address).pid == os.getpid()


def test_a_port_that_nobody_holds_is_another_programs() -> None:
    address = Address("127.0.0.1", free_port([Address("127.0.0.1")]))
    assert holder(address) == Holder("another program", None)


def test_a_holder_that_the_system_hides_is_another_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_listening", lambda: iter([("127.0.0.1", 8888, None)]))
    assert str(holder(Address("127.0.0.1", 8888))) == "another user's program"


def test_a_holder_that_has_just_ended_is_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    monkeypatch.setattr(processes, "_listening", lambda: iter([("127.0.0.1", 8888, ended.pid)]))
    assert holder(Address("127.0.0.1", 8888)).name == "another program"


def start(name: str, *words: str) -> subprocess.Popen[bytes]:
    """A process that waits, and whose command line is `name - words...`."""
    argv = [name, "-", *words]  # cat reads - first, so it never gets to the words
    return subprocess.Popen(argv, executable=shutil.which("cat"), stdin=subprocess.PIPE)


@pytest.fixture
def running(home: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes that are left over masters in `home`/m, and some that aren't."""
    below = home / "m"
    started = {
        "left over": start("ssh", f"{below}/a", f"{home}/lab.log"),
        "left over, elsewhere in PATH": start("/usr/bin/ssh", f"{below}/b"),
        "known": start("ssh", f"{below}/c"),
        "in another directory": start("ssh", f"{home}/mm/d"),
        "with a log there": start("ssh", f"{below}/e.log"),
        "another program": start("sshd", f"{below}/f"),
        "an argument that mentions it": start("ssh", f"at={below}/g"),
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def test_only_masters_of_ours_that_are_not_known_are_ended(
    home: Path, running: dict[str, subprocess.Popen[bytes]]
) -> None:
    (home / "m").mkdir()
    for name in ("a", "a.log", "c", "c.log"):
        (home / "m" / name).touch()
    end_left_over_masters(home / "m", [f"{home}/m/c"])
    assert sorted(path.name for path in (home / "m").iterdir()) == ["c", "c.log"]
    ended = ["left over", "left over, elsewhere in PATH"]
    for kind in ended:
        assert running[kind].wait(10) < 0
    assert [kind for kind, process in running.items() if process.poll() is not None] == ended
