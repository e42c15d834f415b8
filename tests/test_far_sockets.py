"""Unix sockets over there, where remote forwards listen."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.conftest import Run, Web, get, tunnel
from tests.sshd import Sshd, wait_for


def far(holdfast: Run, sshd: Sshd, web: Web, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return holdfast("up", "-F", str(sshd.config), "lab", "-R", f"{path}:127.0.0.1:{web.port}", *words)


def says_hello(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        try:
            client.connect(str(path))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"HTTP" in client.recv(100)
        except OSError:
            return False


def test_a_stale_socket_over_there_is_replaced(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    path = home / "far.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    far(holdfast, sshd, web, path)
    wait_for(lambda: says_hello(path), "the socket to be had")
    holdfast("down", "lab")
    assert not path.exists()


def test_a_socket_that_somebody_listens_on_is_left_alone(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    path = home / "far.sock"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        before = path.stat().st_ino
        up = far(holdfast, sshd, web, path)
        assert up.returncode == 1
        assert "lab refuses to listen on" in up.stderr
        holdfast("down", "lab")
        assert path.stat().st_ino == before


def test_what_is_no_socket_is_left_alone(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    path = home / "far.sock"
    path.write_text("mine")
    assert far(holdfast, sshd, web, path).returncode == 1
    assert path.read_text() == "mine"


def test_a_socket_over_there_has_the_mode_that_was_asked_for(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    path = home / "far it's.sock"
    assert far(holdfast, sshd, web, path, "--mode", "0666").returncode == 0
    wait_for(lambda: path.stat().st_mode & 0o777 == 0o666, "the mode")


def test_a_socket_over_there_is_back_after_a_loss(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    path = home / "far.sock"
    far(holdfast, sshd, web, path)
    sshd.drop_connections()
    wait_for(lambda: says_hello(path), "the socket to be back")


def test_the_servers_choice_of_a_port_is_kept(
    holdfast: Run, sshd: Sshd, web: Web, kill_keeper: Callable[[], None]
) -> None:
    up = tunnel(holdfast("up", "-F", str(sshd.config), "lab", "-R", f"0:127.0.0.1:{web.port}", "--json"))
    (before,) = up["forwards"]
    assert before["asked"] == "localhost:0"
    port = int(before["listen"].rpartition(":")[2])

    def is_back() -> bool:
        try:
            return get(port) == b"hello"
        except OSError:
            return False

    sshd.drop_connections()
    wait_for(is_back, "the same port over there")
    kill_keeper()
    (after,) = tunnel(holdfast("status", "--json"))["forwards"]
    assert after == before
    sshd.drop_connections()
    wait_for(is_back, "the same port over there, asked for by another keeper")


def test_another_port_is_had_where_the_servers_choice_is_taken(holdfast: Run, sshd: Sshd, web: Web) -> None:
    up = tunnel(holdfast("up", "-F", str(sshd.config), "lab", "-R", f"0:127.0.0.1:{web.port}", "--json"))
    port = int(up["forwards"][0]["listen"].rpartition(":")[2])
    holdfast("down", "lab")
    with socket.create_server(("127.0.0.1", port)):
        again = tunnel(holdfast("up", "lab", "--json"))
    (forward,) = again["forwards"]
    assert forward["state"] == "up"
    assert forward["listen"] != f"localhost:{port}"
