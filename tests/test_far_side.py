"""The dead-man's switch, run by real sshds for every login shell, and by every shell that can."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from holdfast.openssh import far_side
from tests.sshd import Sshd, wait_for

LOGIN_SHELLS = ("bash", "zsh", "ksh93", "mksh", "dash", "fish", "tcsh", "busybox")
# Those whose `read` has a time-out. Busybox is one too, as `sh`.
LOOP_SHELLS = ("bash", "zsh", "ksh", "mksh")
TOOLS = ("cat", "date", "grep", "sleep", "ps", "printf")
# The session's login shell and PATH are the client's to choose; `exec` keeps sshd as the parent, as it really is.
CHOICE = (
    "AcceptEnv FAR_*",
    'ForceCommand PATH="${FAR_PATH:-$PATH}"; export PATH; exec $FAR_SHELL -c "$SSH_ORIGINAL_COMMAND"',
)


def path_of(shell: str) -> str:
    """Where the shell is, or the test is skipped: it isn't installed."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return f"{found} sh" if shell == "busybox" else found


@dataclass
class Session:
    """One command run over its own ssh connection, and what it printed."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def lines(self) -> list[bytes]:
        return self.output.read_bytes().splitlines()

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def end_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def wait_for_line(self, line: bytes, times: int = 1) -> None:
        wait_for(lambda: self.lines.count(line) >= times, f"{line!r}")


Open = Callable[..., Session]


@pytest.fixture
def open_session(home: Path, sshd: Sshd) -> Iterator[Open]:
    """Runs a command over there, by the login shell and with the PATH that are asked for."""
    sshd.stop()
    sshd.start(*CHOICE)
    sessions: list[Session] = []

    def open(command: str, shell: str = "/bin/sh", path: Path | None = None) -> Session:
        environment = f"SetEnv=FAR_SHELL={shell!r}".replace("'", '"')
        if path is not None:
            environment += f" FAR_PATH={path}"
        output = home / f"output{len(sessions)}"
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["ssh", "-F", str(sshd.config), "-o", environment, "lab", command],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.DEVNULL,
            )
        sessions.append(Session(process, output))
        return sessions[-1]

    yield open
    for session in sessions:
        session.process.kill()
        session.process.wait(10)
        session.end_input()


def only(home: Path, shell: str | None) -> Path:
    """A directory for PATH with the usual tools, dash as `sh`, and one other shell."""
    made = home / f"only-{shell}"
    made.mkdir()
    for tool in TOOLS:
        (made / tool).symlink_to(path_of(tool))
    (made / "sh").symlink_to(path_of("dash"))
    if shell is not None:
        (made / shell).symlink_to(path_of(shell))
    return made


def test_the_command_has_nothing_that_a_login_shell_could_take_for_its_own() -> None:
    command = far_side.switch(direct=True)
    assert not set(command) & set("\n\\!")
    assert command.count("'") == 4


def test_too_short_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="1 s for an answer"):
        far_side.switch(9, 1, direct=True)


@pytest.mark.parametrize("shell", LOGIN_SHELLS)
def test_every_login_shell_arms_it_and_echoes_lines(open_session: Open, shell: str) -> None:
    session = open_session(far_side.switch(direct=True), path_of(shell))
    session.write(b"holdfast 1")
    session.wait_for_line(b"holdfast 1")
    assert session.lines == [b"holdfast armed 13", b"holdfast 1"]


def test_lines_cost_the_far_side_no_process_and_no_line_in_the_log(
    open_session: Open, home: Path, sshd: Sshd
) -> None:
    for name in LOOP_SHELLS:
        session = open_session(far_side.switch(direct=True), path=only(home, name))
        session.write(b"holdfast 0")
        session.wait_for_line(b"holdfast 0")
        (shell,) = (pid for pid in sshd.descendants() if psutil.Process(pid).name() == name)
        before = faults_of_children(shell), sshd.log.read_text()
        for number in range(1, 51):
            session.write(b"holdfast %d" % number)
        session.wait_for_line(b"holdfast 50")
        assert (faults_of_children(shell), sshd.log.read_text()) == before


def faults_of_children(pid: int) -> int:
    """A count that grows with every child that the process has waited for."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[8])


def test_silence_ends_the_sshd_in_time_and_with_one_question(open_session: Open, home: Path, sshd: Sshd) -> None:
    sessions = [open_session(far_side.switch(1, 2, direct=False), path=only(home, name)) for name in LOOP_SHELLS]
    for session in sessions:
        session.write(b"holdfast 1")
    for session in sessions:
        session.wait_for_line(b"holdfast 1")
    last_line = time.monotonic()
    for session in sessions:
        assert session.process.wait(10) == 255
        assert session.lines == [b"holdfast armed 3", b"holdfast 1", b"holdfast asks"]
    assert 2.5 < time.monotonic() - last_line < 5
    wait_for(lambda: not sshd.descendants(), "sshd's children to be gone")


def test_any_line_answers_the_question(open_session: Open, home: Path) -> None:
    sessions = [open_session(far_side.switch(1, 3, direct=False), path=only(home, name)) for name in LOOP_SHELLS]
    for questions in (1, 2, 3):
        for session in sessions:
            session.wait_for_line(far_side.QUESTION, questions)
            session.write(b"here")
    for session in sessions:
        session.wait_for_line(b"here", 3)
        assert session.process.poll() is None


@pytest.mark.parametrize("is_asked", [False, True], ids=["before the question", "after the question"])
def test_the_end_of_the_input_ends_the_session_and_nothing_else(
    open_session: Open, home: Path, is_asked: bool
) -> None:
    sessions = [open_session(far_side.switch(1, 4, direct=False), path=only(home, name)) for name in LOOP_SHELLS]
    for session in sessions:
        session.wait_for_line(far_side.QUESTION if is_asked else b"holdfast armed 5")
        session.end_input()
    for session in sessions:
        assert session.process.wait(2) == 0


def test_a_machine_that_acknowledges_is_never_cut_off(open_session: Open, home: Path) -> None:
    sessions = [open_session(far_side.switch(1, 2, direct=True), path=only(home, name)) for name in LOOP_SHELLS]
    for session in sessions:
        session.wait_for_line(far_side.QUESTION, 2)
        session.write(b"holdfast 1")
        session.wait_for_line(b"holdfast 1")


def test_a_client_that_is_stopped_with_a_full_queue_is_not_cut_off(open_session: Open, sshd: Sshd) -> None:
    session = open_session(f"cat /dev/zero >&2 & {far_side.switch(1, 2, direct=True)}")
    session.wait_for_line(b"holdfast armed 3")
    assert sshd.process is not None
    (serving,) = psutil.Process(sshd.process.pid).children()
    session.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(psutil.TimeoutExpired):
            serving.wait(5)
    finally:
        session.process.send_signal(signal.SIGCONT)
    session.write(b"holdfast 1")
    session.wait_for_line(b"holdfast 1")


def test_without_a_shell_that_can_lines_are_echoed_all_the_same(open_session: Open, home: Path) -> None:
    session = open_session(far_side.switch(direct=True), path=only(home, None))
    session.write(b"holdfast 1")
    session.wait_for_line(b"holdfast 1")
    assert session.lines == [b"holdfast 1"]


def test_it_is_not_armed_where_the_parent_is_not_sshd(open_session: Open) -> None:
    session = open_session(f"({far_side.switch(direct=True)}); true")
    session.write(b"holdfast 1")
    session.wait_for_line(b"holdfast 1")
    assert session.lines == [b"holdfast 1"]


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_login_files_may_print_and_are_not_run_once_more(open_session: Open, home: Path, name: str) -> None:
    for file in (".bashrc", ".zshenv"):
        (home / file).write_text("echo noise\n")
    tools = only(home, name)
    sessions = [
        open_session(command, path_of(name), tools) for command in (far_side.ECHO, far_side.switch(direct=True))
    ]
    for session in sessions:
        session.write(b"holdfast 1")
        session.wait_for_line(b"holdfast 1")
    plain, armed = [session.lines for session in sessions]
    assert b"holdfast armed 13" in armed
    assert plain.count(b"noise") == armed.count(b"noise") > 0
