"""What the system knows of ports and processes, asked of the real one."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from holdfast.errors import HoldfastError
from holdfast.forward import Address, parse
from holdfast.keeper import processes
from holdfast.keeper.processes import (
    Holder,
    carries_nothing,
    end_left_over_masters,
    end_master,
    free_port,
    holder,
    own_addresses,
    why_not,
)
from holdfast.openssh.command import READY, master
from tests.sshd import Sshd, wait_for

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


def test_a_master_that_does_not_answer_is_ended_by_its_socket_and_no_other_is(
    home: Path, running: dict[str, subprocess.Popen[bytes]]
) -> None:
    (home / "m").mkdir()
    (home / "m" / "a").touch()
    (home / "m" / "c").touch()
    end_master(home / "m" / "a")
    assert running["left over"].wait(10) < 0
    assert [kind for kind, process in running.items() if process.poll() is not None] == ["left over"]
    assert [path.name for path in (home / "m").iterdir()] == ["c"]


def test_a_master_that_is_gone_is_no_longer_to_be_ended(home: Path) -> None:
    (home / "m").mkdir()
    end_master(home / "m" / "a")


# --- what goes over a real master ---


class Carrier(NamedTuple):
    """A master that has logged in, and a local forward of its that leads to `web`."""

    pid: int
    control: Path
    port: int
    listener: socket.socket

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection through it: here, and at its target."""
        near = socket.create_connection(("127.0.0.1", self.port))
        far, _ = self.listener.accept()
        return near, far


@pytest.fixture
def carrier(sshd: Sshd) -> Iterator[Carrier]:
    control, port = sshd.home / "ctl", free_port([Address("127.0.0.1")])
    argv = master("lab", ("-F", str(sshd.config)), control, sshd.home / "log", in_terminal=False, defaults={})
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process,
    ):
        try:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == READY
            tell(control, "forward", "-L", f"127.0.0.1:{port}:127.0.0.1:{listener.getsockname()[1]}")
            listener.settimeout(10)
            yield Carrier(process.pid, control, port, listener)
        finally:
            process.kill()


def tell(control: Path, *words: str) -> None:
    """Has the master at `control` do what `ssh -O` would."""
    argv = ["ssh", "-F", "none", "-S", str(control), "-O", *words, "lab"]
    subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def test_the_address_of_a_master_is_the_one_it_connected_from(carrier: Carrier) -> None:
    near, far = carrier.connect()
    with near, far:
        assert own_addresses(carrier.pid)[0] == "127.0.0.1"


def test_a_process_that_is_gone_has_no_address_and_carries_nothing() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert own_addresses(ended.pid) == ("", "")
    assert carries_nothing(ended.pid, Path("/nowhere"), is_direct=True)


def test_a_process_without_a_connection_has_no_address() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        assert own_addresses(process.pid) == ("", "")


def test_a_master_carries_nothing_until_a_connection_comes_and_again_when_that_has_ended(
    carrier: Carrier,
) -> None:
    def is_idle() -> bool:
        return carries_nothing(carrier.pid, carrier.control, is_direct=True)

    assert is_idle()
    near, far = carrier.connect()
    with near, far:
        assert not is_idle()
    wait_for(is_idle, "the master to see the end of its connection")


def test_a_connection_that_only_one_side_has_ended_is_still_carried(carrier: Carrier) -> None:
    near, far = carrier.connect()
    with near, far:
        near.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""
        assert not carries_nothing(carrier.pid, carrier.control, is_direct=True)


def test_a_masters_own_connection_counts_where_it_should_have_none(carrier: Carrier) -> None:
    """Behind a ProxyCommand a master has no TCP connection of its own: one that it has, it carries."""
    assert not carries_nothing(carrier.pid, carrier.control, is_direct=False)


def test_a_connection_to_a_unix_socket_that_a_master_forwards_is_carried(carrier: Carrier) -> None:
    listen = carrier.control.with_name("local.sock")
    tell(carrier.control, "forward", "-L", f"{listen}:127.0.0.1:{carrier.listener.getsockname()[1]}")
    assert carries_nothing(carrier.pid, carrier.control, is_direct=True)
    with socket.socket(socket.AF_UNIX) as near:
        near.connect(str(listen))
        far, _ = carrier.listener.accept()
        with far:
            assert not carries_nothing(carrier.pid, carrier.control, is_direct=True)


def test_a_session_of_the_users_over_a_master_is_carried_as_well_as_what_is_ours(carrier: Carrier) -> None:
    """Two connections to the control socket are the keeper's: its requests', and the heartbeat's session."""
    with socket.socket(socket.AF_UNIX) as requests, socket.socket(socket.AF_UNIX) as heartbeat:
        for ours in (requests, heartbeat):
            ours.connect(str(carrier.control))
            assert ours.recv(1)  # the master's greeting
        assert carries_nothing(carrier.pid, carrier.control, is_direct=True)
        argv = ["ssh", "-F", "none", "-S", str(carrier.control), "lab", "echo there; cat"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
            assert session.stdout is not None
            assert session.stdout.readline() == b"there\n"
            assert not carries_nothing(carrier.pid, carrier.control, is_direct=True)
