"""`holdfast demo`, run as a user runs it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from tests.sshd import wait_for

DEADLINE = 60


class Demo:
    """A demo that runs; what it has said so far, and where it lives."""

    def __init__(self, env: Mapping[str, str], said: Path) -> None:
        self._said = said
        with said.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "holdfast", "demo"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def home(self) -> Path:
        """Its temporary directory."""
        found = re.search(r"lives in (\S+);", self.said)
        assert found, self.said
        return Path(found[1])

    def wait_until_it_says(self, text: str) -> None:
        wait_for(
            lambda: text in self.said or self.process.poll() is not None, f"the demo to say {text!r}", DEADLINE
        )
        assert text in self.said

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        return self.process.wait(DEADLINE)

    def step(self, number: int) -> list[str]:
        """The lines of that step, its title first."""
        steps = re.split(r"\n\n(?=\d\. )", self.said.partition("\n\nNothing is left")[0])
        return [line.strip() for line in steps[number].splitlines()]

    def processes(self) -> list[psutil.Process]:
        """Those that belong to it: its directory is in their command line or environment."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            words = [*process.cmdline(), process.environ().get("HOLDFAST_RUNTIME_DIR", "")]
            return any(str(self.home) in word for word in words)
        return False


@pytest.fixture
def env(environment: Mapping[str, str]) -> dict[str, str]:
    return {**environment, "NO_COLOR": "1"}


Start = Callable[[], Demo]


@pytest.fixture
def start(env: Mapping[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a demo; whatever a failed test left of it is killed."""
    started: list[Demo] = []

    def start() -> Demo:
        started.append(Demo(env, tmp_path / "said"))
        return started[0]

    yield start
    for demo in started:
        demo.process.kill()
        demo.process.wait()
        if "lives in" in demo.said:
            for process in demo.processes():
                process.kill()


def assert_nothing_is_left(demo: Demo) -> None:
    assert not demo.home.exists()
    assert demo.processes() == []
    assert "was left" not in demo.said


@contextlib.contextmanager
def listening(port: int) -> Iterator[None]:
    """Somebody listens on `port`: ourselves, or whoever has it already."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port))
            taken.listen()
        yield


def test_each_step_does_what_it_says_and_nothing_is_left(start: Start, home: Path) -> None:
    demo = start()
    assert demo.ended() == 0, demo.said
    version = importlib.metadata.version("jupyter_server")
    found = re.search(r"holdfast up lab (\d+):(\d+)", demo.said)
    assert found, demo.said
    port, target = found.groups()
    row = re.compile(rf"lab +up +localhost:{port} -> 127\.0\.0\.1:{target} +lab .* ms +0")
    api = f'GET http://localhost:{port}/api -> {{"version": "{version}"}}'

    assert demo.step(2)[-2] == f"http://localhost:{port} -> 127.0.0.1:{target} on lab"
    assert demo.step(3)[1:-1] == [
        api,
        f"GET http://localhost:{port}/api/status -> 403 Forbidden  (without its token)",
        f"GET http://localhost:{port}/api/status -> 200 OK  (with its token)",
    ]
    assert row.fullmatch(demo.step(4)[3])
    assert demo.step(5)[2:-1] == [f"{api}  (same connection)", f"{api}  (a new one)"]
    assert row.fullmatch(demo.step(6)[3])
    assert f"{api}  (still the same one)" in demo.step(6)
    assert demo.step(7)[1:-1] == [
        "$ holdfast down lab",
        "lab is down",
        f"connecting to localhost:{port}: connection refused",
    ]
    assert "\x1b" not in demo.said
    assert list(home.iterdir()) == []  # the user's own sockets and state would be here
    assert_nothing_is_left(demo)


def test_another_port_is_used_when_8888_is_taken(start: Start) -> None:
    with listening(8888):
        demo = start()
        assert demo.ended() == 0, demo.said
    assert demo.step(2)[1] == "8888 is taken on this machine; any other port will do"
    assert "localhost:8888/api" not in demo.said


@pytest.mark.parametrize(
    "moment", ["lives in", "$ holdfast up", "$ holdfast status", "$ kill -9", "$ holdfast down"]
)
def test_ctrl_c_takes_everything_away(start: Start, moment: str) -> None:
    demo = start()
    demo.wait_until_it_says(moment)
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.ended() == 130, demo.said
    assert demo.said.rstrip().endswith("holdfast: stopping, and taking everything away")
    assert_nothing_is_left(demo)


def test_a_second_ctrl_c_does_not_leave_things_half_way(start: Start) -> None:
    demo = start()
    demo.wait_until_it_says("$ holdfast status")
    os.killpg(demo.process.pid, signal.SIGINT)
    demo.wait_until_it_says("stopping")
    while demo.home.exists():
        os.killpg(demo.process.pid, signal.SIGINT)
    demo.ended()
    assert_nothing_is_left(demo)


def test_being_told_to_end_takes_everything_away(start: Start) -> None:
    demo = start()
    demo.wait_until_it_says("$ holdfast status")
    demo.process.terminate()
    assert demo.ended() == 130, demo.said
    assert_nothing_is_left(demo)


def test_a_step_that_fails_is_told_and_takes_everything_away(
    start: Start, env: dict[str, str], tmp_path: Path
) -> None:
    env["PATH"] = str(tmp_path)  # no ssh there
    demo = start()
    assert demo.ended() == 1, demo.said
    assert "holdfast: ssh is not installed" in demo.said
    assert "holdfast: holdfast up ended with" in demo.said
    assert_nothing_is_left(demo)


@pytest.mark.parametrize("module", ["asyncssh", "jupyter_server"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    env: Mapping[str, str], tmp_path: Path, module: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "demo"],
        env={**env, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"holdfast: the demo needs {module}",
        "holdfast: hint: pip install 'holdfast[demo]'",
    ]
