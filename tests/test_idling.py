"""Lazy tunnels: the port is there from the start, and the login happens at the first connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Run, Web, get, is_open, tunnel
from tests.sshd import Sshd, free_port, wait_for
from tests.test_up import masters


def lazy(holdfast: Run, sshd: Sshd, web: Web, *words: str) -> int:
    """The port of a lazy tunnel to `web`."""
    port = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--lazy", *words)
    assert up.returncode == 0, up.stderr
    return port


def state(holdfast: Run) -> str:
    return str(tunnel(holdfast("status", "--json"))["state"])


def test_the_first_connection_waits_for_the_login_and_is_served(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    port = lazy(holdfast, sshd, web)
    assert state(holdfast) == "idle"
    assert masters(home) == []
    assert get(port) == get(port, host="::1") == b"hello"
    assert state(holdfast) == "up"
    (master,) = masters(home)
    assert holdfast("up", "lab").returncode == 0
    assert masters(home) == [master]


def test_a_tunnel_that_nobody_uses_goes_idle_and_comes_back(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    port = lazy(holdfast, sshd, web, "--idle", "2s")
    assert get(port) == b"hello"
    wait_for(lambda: not masters(home), "the master to end")
    found = tunnel(holdfast("status", "--json"))
    assert (found["state"], found["drops"], found["outages"]) == ("idle", 0, 0)
    assert get(port) == b"hello"


def test_the_login_heeds_what_ssh_config_says_by_then(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    port = lazy(holdfast, sshd, web)
    sshd.configure(f"ControlPath {home}/cm")
    assert get(port) == b"hello"
    assert (home / "cm").is_symlink()


def test_a_connection_that_lasts_or_has_just_ended_is_a_use(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    port = lazy(holdfast, sshd, web, "--idle", "2s")
    with socket.create_connection(("127.0.0.1", port)) as client:
        wait_for(lambda: masters(home), "the master")
        (master,) = masters(home)
        began = time.monotonic()
        wait_for(lambda: time.monotonic() > began + 3, "the idle time to pass")
        assert masters(home) == [master]
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(100)
    for _ in range(30):  # none of them lasts until somebody looks
        get(port)
        time.sleep(0.1)
    assert masters(home) == [master]
    wait_for(lambda: not masters(home), "the master to end")


def test_a_login_that_needs_a_person_asks_nobody_and_says_so(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    asked = home / "asked"
    askpass = home / "askpass"
    askpass.write_text(f"#!/bin/sh\ntouch {asked}\n")
    askpass.chmod(0o700)
    session = {"SSH_ASKPASS": str(askpass), "DISPLAY": ":9"}
    port = free_port()
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--lazy", "--idle", "2s", **session)
    assert up.returncode == 0
    assert get(port) == b"hello"
    wait_for(lambda: not masters(home), "the master to end")
    sshd.authorized_keys.write_text("")
    with socket.create_connection(("127.0.0.1", port)):
        wait_for(lambda: state(holdfast) == "needs login", "the login to fail")
    assert not asked.exists()
    assert is_open(port)
    assert "holdfast up lab" in holdfast("status").stdout


def test_who_has_waited_in_vain_and_left_has_the_tunnel_rest_again(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = lazy(holdfast, sshd, web)
    sshd.stop()
    with socket.create_connection(("127.0.0.1", port)):
        wait_for(lambda: state(holdfast) in ("waiting", "connecting"), "the try")
    wait_for(lambda: state(holdfast) == "idle", "it to rest")
    sshd.start()
    assert get(port) == b"hello"


def test_a_lazy_tunnel_that_is_lost_rests_until_somebody_comes(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = lazy(holdfast, sshd, web)
    assert get(port) == b"hello"
    sshd.drop_connections()
    wait_for(lambda: state(holdfast) == "idle", "it to rest")
    assert get(port) == b"hello"


def test_a_lazy_tunnel_survives_the_keeper(
    holdfast: Run, sshd: Sshd, web: Web, home: Path, kill_keeper: Callable[[], None]
) -> None:
    port = lazy(holdfast, sshd, web)
    kill_keeper()
    assert state(holdfast) == "idle"
    assert get(port) == b"hello"
    (master,) = masters(home)
    kill_keeper()
    assert get(port) == b"hello"
    assert state(holdfast) == "up"
    assert masters(home) == [master]


def test_a_tunnel_beside_it_that_is_not_lazy_keeps_the_connection(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    lazy(holdfast, sshd, web, "--idle", "1s")
    up = holdfast("up", "-F", str(sshd.config), "lab", "--name", "other", f"{free_port()}:{web.port}")
    assert up.returncode == 0
    (master,) = masters(home)
    began = time.monotonic()
    wait_for(lambda: time.monotonic() > began + 2, "the idle time to pass")
    assert masters(home) == [master]
    holdfast("down", "other")
    wait_for(lambda: not masters(home), "the master to end")


def test_a_remote_forward_cannot_be_lazy(holdfast: Run, sshd: Sshd) -> None:
    up = holdfast("up", "-F", str(sshd.config), "lab", "-R", "0:127.0.0.1:1", "--lazy")
    assert up.returncode == 2
    assert "needs a connection, so the tunnel 'lab' can't be lazy" in up.stderr
    assert holdfast("status").stderr.startswith("holdfast: no tunnels")


def test_a_unix_socket_has_the_mode_that_was_asked_for_whoever_listens(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    path = home / "web.sock"
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{path}:{web.port}", "--lazy", "--mode", "0660")
    assert up.returncode == 0, up.stderr
    assert path.stat().st_mode & 0o777 == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(100)
    wait_for(lambda: state(holdfast) == "up", "the tunnel")
    assert path.stat().st_mode & 0o777 == 0o660
    assert holdfast("up", "lab", "--mode", "0600").returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    holdfast("down", "lab")
    assert not path.exists()
