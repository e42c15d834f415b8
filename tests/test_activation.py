"""What a service manager passes on to the keeper, and what it is told: by hand, and by systemd-socket-activate."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from holdfast import client, lock
from holdfast.errors import KeeperError
from holdfast.keeper import activation
from holdfast.keeper.activation import ServiceManager
from tests.conftest import Run, Web, _keepers, get, tunnel
from tests.sshd import Sshd, free_port, wait_for


@pytest.fixture
def listener(home: Path) -> Iterator[socket.socket]:
    """A socket that listens at `home`/service.sock."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(home / "service.sock"))
        made.listen()
        yield made


def passed(*sockets: socket.socket) -> ServiceManager:
    """A manager that passed these on, as descriptors of their own."""
    return ServiceManager(passed=tuple(os.dup(one.fileno()) for one in sockets))


def test_variables_are_taken_out_of_the_environment_whatever_they_say() -> None:
    for pid, count in (("1", "1"), (str(os.getpid()), "nonsense"), ("", ""), (str(os.getpid()), "0")):
        environment = {
            "NOTIFY_SOCKET": "/n",
            "LISTEN_PID": pid,
            "LISTEN_FDS": count,
            "LISTEN_FDNAMES": "x",
            "PATH": "/bin",
        }
        assert activation.taken_from(environment) == ServiceManager("/n", ())
        assert environment == {"PATH": "/bin"}


def test_no_child_inherits_what_was_passed_on(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.dup(listener.fileno())
    os.set_inheritable(descriptor, True)
    monkeypatch.setattr(activation, "FIRST", descriptor)
    manager = activation.taken_from({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    assert manager.passed == (descriptor,)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_the_listener_at_the_path_is_found_and_all_else_closed(home: Path, listener: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(home / "other.sock"))
        other.listen()
        manager = passed(other, listener, listener)
        found = manager.listener(home / "service.sock")
    assert found is not None
    with found:
        assert found.fileno() == manager.passed[1]
    for descriptor in (manager.passed[0], manager.passed[2]):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_what_does_not_listen_there_is_not_listened_on(home: Path) -> None:
    deaf, datagrams = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    network = socket.create_server(("127.0.0.1", 0))
    with deaf, datagrams, network, (home / "file").open("w") as file:
        deaf.bind(str(home / "deaf.sock"))
        datagrams.bind(str(home / "datagrams.sock"))
        for made, path in ((deaf, "deaf.sock"), (datagrams, "datagrams.sock"), (network, "service.sock")):
            assert passed(made).listener(home / path) is None, path
        assert ServiceManager(passed=(os.dup(file.fileno()),)).listener(home / "file") is None


def test_a_socket_that_waits_for_its_keeper_is_not_taken_for_a_keeper_that_hangs(
    home: Path, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(home))
    monkeypatch.setattr(client, "GREETING", 0.05)
    (home / "keeper.lock").write_text(str(home / "service.sock"))  # by a keeper that was killed
    assert client.find() is None
    held = lock.acquire(home / "keeper.lock", 1)
    assert held is not None
    with pytest.raises(KeeperError, match="doesn't answer"):
        client.find()
    os.close(held)


@pytest.mark.parametrize("abstract", [False, True])
def test_news_reach_the_manager_and_its_absence_is_no_error(home: Path, abstract: bool) -> None:
    if abstract and sys.platform != "linux":
        pytest.skip("Linux only")
    address = f"@{home}" if abstract else str(home / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears:
        ears.settimeout(5)
        ears.bind(address.replace("@", "\0"))
        ServiceManager(address).tell("READY=1", "STATUS=listens")
        assert ears.recv(100) == b"READY=1\nSTATUS=listens"
    ServiceManager(address).tell("READY=1")
    ServiceManager().tell("READY=1")


def test_the_keeper_takes_the_socket_that_systemd_made_tells_of_it_and_leaves_it(
    holdfast: Run, sshd: Sshd, web: Web, home: Path, environment: Mapping[str, str]
) -> None:
    activate = shutil.which("systemd-socket-activate")
    if not activate:
        pytest.skip("needs systemd-socket-activate")
    (home / "run").mkdir(mode=0o700)
    port, log = free_port(), (home / "activate.log").open("wb")
    words = [sys.executable, "-m", "holdfast", "keeper", "run", "--take-over"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ears, log:
        ears.settimeout(10)
        ears.bind(str(home / "notify"))

        passed_on = [f"-E{name}" for name in (*environment, "NOTIFY_SOCKET")]

        def activated() -> subprocess.Popen[bytes]:
            """As a socket unit: it becomes the keeper once somebody connects."""
            started = subprocess.Popen(
                [activate, f"--listen={home}/run/service.sock", *passed_on, *words],
                env={**environment, "NOTIFY_SOCKET": str(home / "notify")},
                stderr=log,
            )
            wait_for(lambda: (home / "run" / "service.sock").exists(), "systemd's socket")
            return started

        first = activated()
        assert _keepers(home) == []
        brought = tunnel(holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--json"))
        assert _keepers(home) == [first.pid]
        assert ears.recv(200) == f"READY=1\nSTATUS=listens at {home}/run/service.sock".encode()
        master = Path(f"/proc/{brought['master_pid']}")
        assert not [word for word in (master / "environ").read_text().split("\0") if word.startswith("LISTEN_")]
        first.send_signal(signal.SIGTERM)  # and to nobody else, as with KillMode=process
        assert first.wait(10) == 0
        assert ears.recv(200).startswith(b"STOPPING=1\n")
        assert (home / "run" / "service.sock").exists()
        assert get(port) == b"hello"
        # Nobody listens there any more: a command starts the keeper itself, which the service's then replaces.
        assert tunnel(holdfast("status", "--json"))["master_pid"] == brought["master_pid"]
        (own,) = _keepers(home)
        (home / "run" / "service.sock").unlink()
        second = activated()
        with socket.socket(socket.AF_UNIX) as anybody:
            anybody.connect(str(home / "run" / "service.sock"))
            assert ears.recv(200).startswith(b"READY=1\n")
        assert _keepers(home) == [second.pid] != [own]
        assert tunnel(holdfast("status", "--json"))["master_pid"] == brought["master_pid"]
        holdfast("down", "--all")
        holdfast("keeper", "stop")
        assert second.wait(10) == 0
