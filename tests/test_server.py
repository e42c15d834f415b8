"""The keeper's process: one a user, its socket, and what garbage does to it."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from holdfast.peer import is_stale
from tests.conftest import Run, Web, _keepers, get, tunnel
from tests.sshd import Sshd, free_port, wait_for


@pytest.fixture
def keeper(environment: Mapping[str, str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`holdfast keeper run`, in the foreground as a service manager runs it."""
    process = subprocess.Popen([sys.executable, "-m", "holdfast", "keeper", "run"], env=environment)
    path = home / "run" / "keeper.sock"
    wait_for(lambda: path.exists() and not is_stale(path), "the keeper to listen")  # it is there a moment sooner
    yield process
    process.terminate()
    process.wait(10)


def talk(home: Path, data: bytes) -> list[dict[str, object]]:
    """What the keeper answers to `data`, line by line, until it hangs up."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(15)
        client.connect(str(home / "run" / "keeper.sock"))
        client.sendall(data)
        return [json.loads(line) for line in client.makefile("rb")]


def test_socket_and_directories_are_the_users_alone(keeper: object, home: Path) -> None:
    for path, mode in (("run", 0o700), ("run/keeper.sock", 0o600), ("run/m", 0o700), ("state", 0o700)):
        assert stat.S_IMODE((home / path).stat().st_mode) == mode, path


@pytest.mark.parametrize(
    "data",
    [
        *(b"\n", b"garbage\n", b"\xff\x00\xfe\n", b"[]\n", b"null\n", b"{" * 5000 + b"\n", b"x" * 1_000_000),
        *(b'{"request":"up"}\n', b'{"request":[]}\n', b'{"request":"rm -rf"}\n'),
        *(b'{"request":"status","names":[1]}\n', b'{"request":"status","names":"x"}\n'),
        *(b'{"request":"status","names":[],"more":1}\n', b'{"request":"login_ended","number":1,"status":0}\n'),
    ],
    ids=lambda data: data[:30].decode(errors="replace").strip() or "empty",
)
def test_garbage_gets_an_error_and_harms_nobody(keeper: object, home: Path, data: bytes) -> None:
    try:
        _, *answers = talk(home, data)
    except ConnectionError:
        answers = []  # it hung up on a million bytes before all were sent
    assert all("error" in answer for answer in answers)
    _, answer = talk(home, b'{"request":"status","names":[],"look":false}\n')
    assert answer == {"done": []}


def test_clients_that_go_away_or_say_nothing_harm_nobody(keeper: object, home: Path) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    for client in silent:
        client.connect(str(home / "run" / "keeper.sock"))
    for client in silent[::2]:
        client.close()
    assert talk(home, b'{"request":"status","names":[],"look":false}\n')[1] == {"done": []}
    for client in silent[1::2]:
        client.close()


def test_a_second_keeper_says_that_one_is_running(keeper: object, environment: Mapping[str, str]) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "holdfast.keeper", "--stay"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert second.returncode == 1
    assert "the keeper is running already" in second.stderr


def test_fifty_commands_at_once_start_one_keeper(holdfast: Run, home: Path) -> None:
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")
    holdfast("keeper", "stop")
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        results = list(pool.map(lambda _: holdfast("status", "nowhere.invalid"), range(50)))
    assert {result.returncode for result in results} == {3}
    assert len(_keepers(home)) == 1


def test_keeper_stop_ends_the_keeper_and_no_tunnel(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    port = free_port()
    holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    stopped = holdfast("keeper", "stop")
    assert "tunnels stay up" in stopped.stdout
    assert _keepers(home) == []
    assert get(port) == b"hello"


def test_keeper_stop_without_a_keeper_is_no_error(holdfast: Run) -> None:
    assert holdfast("keeper", "stop").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_keeper_in_order(
    keeper: subprocess.Popen[bytes], home: Path, number: signal.Signals
) -> None:
    keeper.send_signal(number)
    assert keeper.wait(10) == 0
    assert not (home / "run" / "keeper.sock").exists()
    assert (home / "state" / "keeper.lock").read_bytes() == b""


def test_a_signal_ends_a_keeper_that_was_started_where_it_is_blocked(
    holdfast: Run, home: Path, environment: Mapping[str, str]
) -> None:
    source = (
        "import signal, holdfast.client\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "holdfast.client.connect()\n"
    )
    subprocess.run([sys.executable, "-c", source], env=environment, check=True, timeout=30)
    (pid,) = _keepers(home)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not _keepers(home), "the keeper to end")


def test_a_keeper_that_was_started_where_ends_of_children_are_ignored_hears_of_its_own(
    holdfast: Run, sshd: Sshd, web: Web, environment: Mapping[str, str]
) -> None:
    source = (
        "import signal, holdfast.client\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "holdfast.client.connect()\n"
    )
    subprocess.run([sys.executable, "-c", source], env=environment, check=True, timeout=30)
    shown = holdfast("up", "-F", str(sshd.config), "lab", f"0:{web.port}")
    assert shown.returncode == 0, shown.stderr


def test_a_stopped_keeper_gets_a_clear_message_not_a_hang(keeper: subprocess.Popen[bytes], holdfast: Run) -> None:
    keeper.send_signal(signal.SIGSTOP)
    try:
        result = holdfast("status", "lab")
    finally:
        keeper.send_signal(signal.SIGCONT)
    assert result.returncode == 1
    assert "the keeper doesn't answer" in result.stderr


def test_a_newer_command_replaces_an_older_keeper_and_the_tunnels_live_on(
    holdfast: Run, sshd: Sshd, web: Web, home: Path, tmp_path: Path
) -> None:
    port = free_port()
    before = tunnel(holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}", "--json"))
    (old,) = _keepers(home)
    # The same command, of a version to come.
    (tmp_path / "sitecustomize.py").write_text("import holdfast.version\nholdfast.version.__version__ = '99.0'\n")
    after = tunnel(holdfast("status", "--json", PYTHONPATH=str(tmp_path)))
    (new,) = _keepers(home)
    assert new != old
    assert (after["state"], after["master_pid"]) == ("up", before["master_pid"])
    assert get(port) == b"hello"


def test_an_older_command_gets_on_with_a_newer_keeper(holdfast: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import holdfast.version\nholdfast.version.__version__ = '99.0'\n")
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait", PYTHONPATH=str(tmp_path))
    (newer,) = _keepers(home)
    assert holdfast("status").returncode == 3
    assert _keepers(home) == [newer]


def test_a_keeper_of_another_protocol_is_refused_with_the_way_out(
    holdfast: Run, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import holdfast.version\nholdfast.version.__version__ = '99.0'\n"
        "import holdfast.control\nholdfast.control.PROTOCOL = 99\n"
    )
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait", PYTHONPATH=str(tmp_path))
    result = holdfast("status")
    assert result.returncode == 1
    assert "the keeper is holdfast 99.0" in result.stderr
    assert "holdfast keeper stop" in result.stderr
    assert holdfast("keeper", "stop").returncode == 0


def test_a_directory_of_somebody_else_is_not_used(holdfast: Run, home: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to give a directory away")
    (home / "theirs").mkdir(mode=0o700)
    os.chown(home / "theirs", 65534, 65534)
    result = holdfast("status", "lab", HOLDFAST_RUNTIME_DIR=str(home / "theirs"))
    assert result.returncode == 1
    assert "is not a directory of yours" in result.stderr


def test_a_socket_of_another_user_is_told_nothing_and_obeyed_in_nothing(holdfast: Run, home: Path) -> None:
    if os.getuid() != 0 or not Path("/usr/bin/python3").exists():
        pytest.skip("needs root, to be another user, and a Python that others may run")
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")
    holdfast("keeper", "stop")
    home.chmod(0o777)
    theirs, marker = home / "theirs.sock", home / "obeyed"
    order = {"login": {"number": 1, "argv": ["touch", str(marker)], "log": str(home / "log")}}
    greeting = {"holdfast": "0.1.0", "protocol": 1, "pid": 1, "notice": ""}
    code = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
        "s.listen(); os.chmod(sys.argv[1], 0o777); print(flush=True); c = s.accept()[0];"
        "c.sendall(sys.argv[2].encode()); c.recv(9); c.sendall(sys.argv[3].encode()); c.recv(99)"
    )
    lines = [json.dumps(record) + "\n" for record in (greeting, order)]
    other = subprocess.Popen(["/usr/bin/python3", "-c", code, str(theirs), *lines], stdout=subprocess.PIPE)
    assert other.stdout is not None
    try:
        other.stdout.readline()
        (home / "state" / "keeper.lock").write_text(str(theirs))
        assert holdfast("status").returncode == 3
        assert not marker.exists()
    finally:
        other.kill()
        other.wait(10)
        other.stdout.close()


def test_two_state_directories_do_not_share_a_runtime_directory(holdfast: Run, home: Path) -> None:
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")
    other = holdfast("up", "elsewhere.invalid", "--no-wait", HOLDFAST_STATE_DIR=str(home / "state2"))
    assert other.returncode == 1
    assert "another HOLDFAST_STATE_DIR" in other.stderr
    wait_for(lambda: len(_keepers(home)) == 1, "the second keeper to be gone")


def test_few_descriptors_are_told_and_survived(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    starving = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24));"
        "sys.argv = ['holdfast.keeper', '--stay']; runpy.run_module('holdfast.keeper', run_name='__main__')"
    )
    keeper = subprocess.Popen(
        [sys.executable, "-c", starving],
        env={**os.environ, "HOLDFAST_RUNTIME_DIR": str(home / "run"), "HOLDFAST_STATE_DIR": str(home / "state")},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for((home / "run" / "keeper.sock").exists, "the keeper")
        results = [
            holdfast(
                "up",
                "-F",
                str(sshd.config),
                "lab",
                f"0:{web.port}",
                "--name",
                f"t{n}",
                "-p",
                str(sshd.port),
                "--timeout",
                "3",
            )
            for n in range(6)
        ]
        assert results[0].returncode == 0
        assert all("holdfast: " in result.stderr for result in results if result.returncode)
        assert keeper.poll() is None
        holdfast("down", "--all")
    finally:
        keeper.terminate()
        keeper.wait(20)
