"""Starting a notebook server: the programs for it, run here by plain shells in homes with awkward paths.

Two servers are real. Where only the way to one is tested, its Python is a stand-in that tells how it was run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from holdfast.errors import HoldfastError, UsageError
from holdfast.forward import Address
from holdfast.jupyter import audit, launch, servers
from holdfast.jupyter.launch import Started, Wish
from holdfast.openssh import script
from tests.sshd import wait_for
from tests.test_far_side import path_of

MARK = "0123456789abcdef"
VENV = f"venv:{sys.prefix}"
SHELLS = ("dash", "bash", "busybox", "mksh")
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin"

# It tells in the home how it was run, and ends as a start that has failed.
STAND_IN = """#!/bin/sh
printf '%s\\n' "$0" "$@" > "$HOME/seen"
pwd > "$HOME/cwd"
env > "$HOME/environment"
echo "it was the stand-in" > "$2/failed"
"""
# It announces itself as a server does, and stays.
STAY = """#!/bin/sh
echo '{"app":"lab","version":"4","environment":"/e","kind":"tcp","kernels":"sockets"}' > "$2/facts"
echo '{"port": 1}' > "$2/jpserver-$$.json"
printf %s "$2" > "$2/runtime-dir"
echo '[I] token=0123456789abcdef'
exec sleep 1000
"""
# It never announces itself.
HANG = "#!/bin/sh\nexec sleep 1000\n"


class Chosen(NamedTuple):
    """How a stand-in was run."""

    python: str
    words: list[str]
    directory: str
    environment: dict[str, str]


class Far:
    """A home in which servers are started. `end` leaves nothing of them."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "it's a  home"
        self.home.mkdir()
        (self.home / "some work").mkdir()
        self.environment = {"PATH": PATH, "HOME": str(self.home), "SHELL": "/bin/sh", "LANG": "C.UTF-8"}

    def run(self, program: str, shell: str = "sh", **environment: str) -> str:
        done = subprocess.run(
            path_of(shell).split(),
            input=script.wrap(program, MARK).encode(),
            stdout=subprocess.PIPE,
            env={**self.environment, **environment},
            timeout=60,
            check=False,
        )
        return script.unwrap(done.stdout.decode(), MARK, "lab")

    def start(self, wish: Wish, shell: str = "sh", **environment: str) -> Started:
        return launch.read_started(self.run(launch.start_program(wish), shell, **environment), "lab", wish)

    def fail(self, wish: Wish, shell: str = "sh", **environment: str) -> HoldfastError:
        """The error of a start, which leaves nothing behind."""
        with pytest.raises(HoldfastError) as told:
            self.start(wish, shell, **environment)
        assert not self.directories()
        return told.value

    def choose(self, wish: Wish, shell: str = "sh", **environment: str) -> Chosen:
        """How the stand-in was run by a start."""
        error = self.fail(wish, shell, **environment)
        assert "it was the stand-in" in error.message, error.message
        python, *words = (self.home / "seen").read_text().splitlines()
        lines = [line.partition("=") for line in (self.home / "environment").read_text().splitlines()]
        return Chosen(
            python,
            words,
            (self.home / "cwd").read_text().rstrip("\n"),
            {name: value for name, _, value in lines},
        )

    def put(self, prefix: str | Path, *scripts: str, python: str = STAND_IN) -> Path:
        """An environment under the home: its Python is a stand-in, and these scripts of Jupyter's are in it."""
        made = self.home / prefix
        write(made / "bin/python", python)
        (made / "pyvenv.cfg").touch()
        for name in scripts:
            write(made / "bin" / name, f"#!/bin/sh\n'''exec' \"{made}/bin/python\" \"$0\" \"$@\"\n' '''\n")
        return made

    def directories(self) -> list[Path]:
        """Those of the starts in this home that are there."""
        found = []
        for one in Path("/tmp").glob("holdfast-????????"):
            with contextlib.suppress(OSError):
                if (one / "directory").read_text().startswith(str(self.home.resolve())):
                    found.append(one)
        return found

    def processes(self) -> list[psutil.Process]:
        """Those that run in this home: all that is started does."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cwd().startswith(str(self.home)) and not has_ended(process):
                    found.append(process)
        return found

    def end(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for directory in self.directories():
            shutil.rmtree(directory)
        wait_for(lambda: not self.processes(), "what was started to end")


def has_ended(process: psutil.Process) -> bool:
    """Whether it has, even if nobody has waited for it yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@contextlib.contextmanager
def a_home() -> Iterator[Far]:
    with tempfile.TemporaryDirectory(prefix="hf", ignore_cleanup_errors=True) as directory:
        far = Far(Path(directory))
        try:
            yield far
        finally:
            far.end()


@pytest.fixture
def far() -> Iterator[Far]:
    with a_home() as made:
        yield made


class Running(NamedTuple):
    """A server that was started for real; `ours` is its directory."""

    far: Far
    started: Started
    ours: Path

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.started.pid)


@contextlib.contextmanager
def a_server(wish: Wish) -> Iterator[Running]:
    with a_home() as far:
        started = far.start(wish)
        (ours,) = far.directories()
        yield Running(far, started, ours)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One for all that only look at it."""
    with a_server(Wish("some work", VENV)) as made:
        yield made


def mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)


class OverSocket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def ask(running: Running, path: str, token: str = "") -> tuple[int, bytes]:
    """The status and body that the server answers to GET on its socket."""
    connection = OverSocket(running.ours / "s")
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Authorization": f"token {token}"} if token else {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_a_start_tells_what_was_started(running: Running) -> None:
    assert running.started == Started(
        pid=int((running.ours / "pid").read_text()),
        app="lab",
        version=version("jupyterlab"),
        environment=sys.prefix,
        kind="socket",
        kernels="encrypted",
        fingerprint="",
        warning="",
    )


def test_the_server_answers_on_its_socket_and_asks_for_the_token(running: Running) -> None:
    token = (running.ours / "token").read_text()
    assert len(token) == 48
    assert json.loads(ask(running, "/api")[1])["version"] == version("jupyter_server")
    assert ask(running, "/api/contents")[0] == 403
    status, body = ask(running, "/api/contents", token)
    assert (status, json.loads(body)["type"]) == (200, "directory")


def test_the_servers_root_is_the_directory_that_was_wished_for(running: Running) -> None:
    (running.far.home / "some work/here.txt").touch()
    _, body = ask(running, "/api/contents", (running.ours / "token").read_text())
    assert "here.txt" in [one["name"] for one in json.loads(body)["content"]]
    assert running.process.cwd() == str(running.far.home / "some work")


def test_nobody_else_can_look_into_anything_of_it(running: Running) -> None:
    assert mode(running.ours) == "drwx------"
    assert mode(running.ours / "s") == "srw-------"
    files = [path for path in running.ours.iterdir() if path.name != "s"]
    runtime = Path((running.ours / "runtime-dir").read_text())
    assert runtime == running.far.home / ".local/share/jupyter/runtime"
    files += [
        runtime / f"jpserver-{running.started.pid}.json",
        runtime / f"jpserver-{running.started.pid}-open.html",
    ]
    assert {"token", "log", "run", "jupyter"} <= {path.name for path in files}
    assert {path.name: mode(path)[4:] for path in files} == {path.name: "------" for path in files}


def test_the_token_is_in_no_command_line_no_environment_and_not_in_the_log(running: Running) -> None:
    token = (running.ours / "token").read_text()
    assert token not in " ".join(running.process.cmdline())
    assert token not in str(running.process.environ())
    assert token not in (running.ours / "log").read_text()


def test_the_server_outlives_whoever_started_it_and_has_a_session_of_its_own(running: Running) -> None:
    assert running.process.is_running()
    assert os.getsid(running.started.pid) == running.started.pid
    opened = {Path(f"/proc/{running.started.pid}/fd/{number}").readlink() for number in (0, 1, 2)}
    assert opened == {Path("/dev/null"), running.ours / "log"}


def test_the_server_is_found_by_the_program_that_looks_for_them(running: Running) -> None:
    found = servers.read(running.far.run(servers.PROGRAM))
    (server,) = [one for one in found.servers if one.pid == running.started.pid]
    assert server.place == Address(path=str(running.ours / "s"))
    assert server.directory == str(running.far.home / "some work")
    assert server.token == (running.ours / "token").read_text()
    assert (server.secure, server.password, server.hub) == (False, False, False)


def test_nothing_of_what_was_started_is_a_risk(running: Running) -> None:
    seen = audit.read(running.far.run(audit.PROGRAM))
    mine = [(one, path) for one, path in seen.modes if path.startswith((str(running.far.home), str(running.ours)))]
    assert str(running.ours) in [path for _, path in mine]
    own = seen._replace(
        people=("alice",),
        listeners=(),
        kernels=(),
        modes=tuple(mine),
        found=seen.found._replace(
            servers=tuple(one for one in seen.found.servers if one.pid == running.started.pid), strange=0
        ),
    )
    assert not [one for one in audit.findings(own, "lab") if one.risk]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_log_of_a_server_is_shown_from_its_end(running: Running, shell: str) -> None:
    log = (running.ours / "log").read_text()
    whole = running.far.run(launch.log_program(running.started.pid, 1000, follow=False), shell)
    assert "Jupyter Server" in whole
    assert log.startswith(whole)
    last = running.far.run(launch.log_program(running.started.pid, 2, follow=False), shell)
    assert last.count("\n") == 2
    assert running.far.run(launch.log_program(1, 10, follow=False), shell) == "@none\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_log_is_followed_until_its_reader_hangs_up(running: Running, shell: str) -> None:
    program = launch.log_program(running.started.pid, 2, follow=True)
    with (running.ours / "log").open("a") as log, followed(running.far, program, shell) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        read_up_to(process.stdout.readline, f"{MARK} begin\n")
        print(f"written for {shell}", file=log, flush=True)
        read_up_to(process.stdout.readline, f"written for {shell}\n")
        (tail,) = [one for one in psutil.Process(process.pid).children() if one.name() == "tail"]
        process.stdin.close()
        process.wait(10)
        wait_for(lambda: has_ended(tail), "tail to end")


@contextlib.contextmanager
def followed(far: Far, program: str, shell: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        path_of(shell).split(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=far.environment, text=True
    ) as process:
        try:
            assert process.stdin is not None
            process.stdin.write(script.wrap(program, MARK, until_hung_up=True))
            process.stdin.flush()
            yield process
        finally:
            process.kill()


def read_up_to(readline: Callable[[], str], wanted: str) -> None:
    while (line := readline()) != wanted:
        assert line, f"{wanted!r} never came"


@pytest.mark.parametrize("shell", SHELLS)
def test_without_a_pid_the_log_is_that_of_the_last_start(running: Running, shell: str) -> None:
    with old_directory("testlast", os.getpid()) as directory:
        (directory / "log").write_text("the last\n")
        os.utime(directory / "log", (2**31, 2**31))  # later than any that others have on this machine
        assert running.far.run(launch.log_program(None, 1000, follow=False), shell) == "the last\n"


@pytest.fixture(scope="module")
def over_tls() -> Iterator[Running]:
    """A real server behind TLS. The last test with it ends it."""
    with a_server(Wish("~", VENV, "server", "tls")) as made:
        yield made


def test_over_tls_the_certificate_is_the_one_that_was_told_of(over_tls: Running) -> None:
    assert (over_tls.started.kind, over_tls.started.app) == ("tls", "server")
    certificate = ssl.PEM_cert_to_DER_cert((over_tls.ours / "cert.pem").read_text())
    assert over_tls.started.fingerprint == hashlib.sha256(certificate).hexdigest()
    (server,) = [
        one for one in servers.read(over_tls.far.run(servers.PROGRAM)).servers if one.pid == over_tls.started.pid
    ]
    assert (server.secure, server.fingerprint) == (True, over_tls.started.fingerprint)
    assert ssl.get_server_certificate((server.place.host, server.place.port), timeout=20) in (
        (over_tls.ours / "cert.pem").read_text()
    )
    assert mode(over_tls.ours / "key.pem") == "-rw-------"


def test_a_server_that_is_ended_leaves_nothing(over_tls: Running) -> None:
    runtime = Path((over_tls.ours / "runtime-dir").read_text())
    assert list(runtime.glob("jpserver-*"))
    printed = over_tls.far.run(launch.end_program(over_tls.started.pid, signal=True))
    assert printed == "@ended\n"
    assert launch.has_ended(printed)
    assert not psutil.pid_exists(over_tls.started.pid)
    assert not over_tls.ours.exists()
    assert not list(runtime.glob("jpserver-*"))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a server."""
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("is_told", [True, False], ids=["told to", "by itself"])
@pytest.mark.parametrize("shell", SHELLS)
def test_the_end_of_a_server_is_waited_for(
    far: Far, sleeper: subprocess.Popen[bytes], shell: str, is_told: bool
) -> None:
    program = launch.end_program(sleeper.pid, signal=is_told)
    with old_directory("testends", sleeper.pid) as directory:
        with followed(far, program, shell) as waiting:
            assert waiting.stdout is not None
            read_up_to(waiting.stdout.readline, f"{MARK} begin\n")
            if not is_told:
                sleeper.kill()
            sleeper.wait(10)
            read_up_to(waiting.stdout.readline, f"@{MARK} ended\n")
            read_up_to(waiting.stdout.readline, f"{MARK} end\n")
        assert not directory.exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_one_that_does_not_end_is_told_and_its_directory_is_kept(far: Far, shell: str) -> None:
    program = launch.end_program(os.getpid(), signal=False)
    assert "+ 10))" in program
    with old_directory("testkept", os.getpid()) as directory:
        printed = far.run(program.replace("+ 10))", "+ 1))"), shell)
        assert printed == "@runs\n"
        assert not launch.has_ended(printed)
        assert directory.exists()


def a_dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait(10)
    return process.pid


@contextlib.contextmanager
def old_directory(name: str, pid: int | None) -> Iterator[Path]:
    made = Path("/tmp") / f"holdfast-{name}"
    made.mkdir(mode=0o700)
    try:
        if pid is not None:
            (made / "pid").write_text(f"{pid}\n")
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def make_old(directory: Path) -> None:
    """Nothing was made in it for some minutes."""
    then = time.time() - 300
    os.utime(directory, (then, then))


@pytest.mark.parametrize("shell", SHELLS)
def test_a_start_removes_what_dead_ones_left_and_nothing_else(far: Far, shell: str) -> None:
    with (
        old_directory("testdead", a_dead_pid()) as dead,
        old_directory("testlive", os.getpid()) as live,
        old_directory("testnone", None) as none,
        old_directory("testtoolong", a_dead_pid()) as long,
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        (Path(elsewhere) / "pid").write_text(f"{a_dead_pid()}\n")
        link = Path("/tmp/holdfast-testlink")
        link.symlink_to(elsewhere)
        try:
            far.fail(Wish(environment="venv:/nothing"), shell)
            assert dead.exists()  # its own start may still be telling why it failed
            make_old(dead)
            make_old(live)
            far.fail(Wish(environment="venv:/nothing"), shell)
            assert not dead.exists()
            assert live.exists()
            assert none.exists()
            assert long.exists()
            assert (Path(elsewhere) / "pid").exists()
        finally:
            link.unlink()


@pytest.mark.parametrize("shell", SHELLS)
def test_what_is_no_start_of_ones_own_is_passed_over_by_every_program(far: Far, shell: str) -> None:
    """Each has a pid file for a process that has ended, or that is asked for; none is a file of one's own."""
    pid = a_dead_pid()
    with (
        old_directory("testfifo", None) as fifo,
        old_directory("testlnkd", None) as linked,
        old_directory("testdir_", None) as directory,
        old_directory("testword", None) as words,
        old_directory("testlogs", pid) as logs,
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        (Path(elsewhere) / "pid").write_text(f"{pid}\n")
        os.mkfifo(fifo / "pid")
        (linked / "pid").symlink_to(Path(elsewhere) / "pid")
        (directory / "pid").mkdir()
        (words / "pid").write_text(f"{pid} x\n")
        os.mkfifo(logs / "log")
        assert far.run(launch.log_program(pid, 9, follow=False), shell) == "@none\n"
        assert launch.has_ended(far.run(launch.end_program(pid, signal=False), shell))
        far.fail(Wish(environment="venv:/nothing"), shell)
        assert [one.exists() for one in (fifo, linked, directory, words)] == [True] * 4
        assert not logs.exists()


def test_a_start_whose_lock_is_held_is_kept_although_its_process_is_not_seen(far: Far) -> None:
    path_of("flock")
    with old_directory("testlock", a_dead_pid()) as directory:
        make_old(directory)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            far.fail(Wish(environment="venv:/nothing"))
            assert directory.exists()
        finally:
            os.close(descriptor)
        far.fail(Wish(environment="venv:/nothing"))
        assert not directory.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_a_start_lets_another_users_directories_be(far: Far) -> None:
    with old_directory("testelse", a_dead_pid()) as directory:
        os.chown(directory, 12345, 12345)
        far.fail(Wish(environment="venv:/nothing"))
        far.run(launch.end_program(int((directory / "pid").read_text()), signal=False))
        assert directory.exists()


# Starts that fail.


def test_a_directory_that_is_not_there_is_told_before_anything_is_made(far: Far) -> None:
    error = far.fail(Wish("no such", VENV))
    assert error.message == f"no notebook server was started on lab: there is no directory {far.home}/no such"
    assert "--dir" in error.hint


@pytest.mark.parametrize(
    "environment",
    ["venv:nothing here", "conda:nothing", "conda:~/nothing", "pixi:/nothing", "uv:some work", "conda:*"],
)
def test_an_environment_that_is_not_there_is_told(far: Far, environment: str) -> None:
    error = far.fail(Wish("some work", environment))
    assert f"there is no environment '{environment}'" in error.message


def test_an_environment_without_python_is_told(far: Far) -> None:
    (far.home / "empty").mkdir()
    assert f"there is no Python in {far.home}/empty" in far.fail(Wish("", "venv:empty")).message


def test_no_jupyter_anywhere_is_told(far: Far) -> None:
    error = far.fail(Wish())
    assert "there is no jupyter in your PATH" in error.message
    assert "pip install" in error.hint


def test_an_app_that_is_not_installed_is_told_with_the_environment(far: Far) -> None:
    error = far.fail(Wish("", VENV, "notebook"))
    said = f"there is no notebook in the environment {sys.prefix}"
    assert error.message == f"no notebook server was started on lab: {said}"
    assert error.hint == "install it there, as in: ssh lab python3 -m pip install --user jupyterlab"


def test_a_server_that_dies_at_once_is_told_with_its_last_words(far: Far) -> None:
    config = far.home / "config"
    words = "\n".join([*(f"line {number}" for number in range(30)), "@boom in /x?token=0123456789abcdef"])
    write(config / "jupyter_server_config.py", f"import os\nprint({words!r}, flush=True)\nos._exit(3)\n")
    error = far.fail(Wish("", VENV, "server"), JUPYTER_CONFIG_DIR=str(config))
    first, *log = error.message.splitlines()
    assert first == "no notebook server was started on lab: the server ended while it started"
    assert log[-3:] == ["  line 28", "  line 29", "   @boom in /x?token=..."]
    assert len(log) <= 12
    assert error.hint == "try it there: ssh lab, then jupyter lab --no-browser"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_server_that_never_announces_itself_is_ended(far: Far, shell: str) -> None:
    far.put("slow", python=HANG)
    wish = Wish("", "venv:slow")
    program = launch.start_program(wish)
    assert "+ 80))" in program
    with pytest.raises(HoldfastError, match="the server did not start within 80 s"):
        launch.read_started(far.run(program.replace("+ 80))", "+ 1))"), shell), "lab", wish)
    assert not far.directories()
    wait_for(lambda: not far.processes(), "it to end")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_server_that_ends_without_a_word_is_noticed_at_once(far: Far, shell: str) -> None:
    far.put("env", python="#!/bin/sh\necho some words\nexit 3\n")
    began = time.monotonic()
    error = far.fail(Wish("", "venv:env"), shell)
    assert time.monotonic() - began < 10
    assert error.message.splitlines()[1:] == ["  some words"]
    assert error.message.splitlines()[0].endswith("the server ended while it started")


@pytest.mark.parametrize(
    ("shell", "room"),
    [("dash", 0), ("dash", 100), ("dash", 3000), ("bash", 3000), ("mksh", 100), ("busybox", 3000)],
)
def test_a_full_disk_is_told_and_nothing_is_left_on_it(far: Far, shell: str, room: int) -> None:
    """What doesn't fit into a file of so many bytes doesn't fit on the disk."""
    far.put("env")
    program = script.wrap(launch.start_program(Wish("", "venv:env")), MARK)
    with subprocess.Popen(
        ["python3", "-c", FULL, str(room), *path_of(shell).split()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=far.environment,
    ) as process:
        printed = process.communicate(program.encode(), timeout=60)[0].decode()
    with pytest.raises(HoldfastError, match=r"can't write to /tmp/holdfast-\w{8}: is the disk full\?") as told:
        launch.read_started(script.unwrap(printed, MARK, "lab"), "lab", Wish())
    assert told.value.hint == "see how much is left: ssh lab df -h /tmp"
    assert not far.directories()


# Becomes the rest of its words, which can write files of so many bytes only.
FULL = (
    "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); os.execvp(sys.argv[2], sys.argv[2:])"
)


def test_without_openssl_there_is_no_tls_and_that_is_told(far: Far) -> None:
    far.put("env")
    tools = far.home / "tools"
    tools.mkdir()
    for directory in PATH.split(":"):
        for tool in Path(directory).iterdir():
            if tool.name != "openssl" and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    error = far.fail(Wish("", "venv:env", kind="tls"), PATH=str(tools))
    assert "openssl could not make a certificate: " in error.message
    assert "not found" in error.message
    assert far.choose(Wish("", "venv:env"), PATH=str(tools)).python == f"{far.home}/env/bin/python"


def test_a_start_that_was_broken_off_is_no_success() -> None:
    with pytest.raises(HoldfastError, match="it said nothing"):
        launch.read_started("", "lab", Wish())


# Which directory and which environment it is.


@pytest.mark.parametrize(
    ("wished", "directory"),
    [
        ("", ""),
        ("~", ""),
        ("~/some work", "/some work"),
        ("some work", "/some work"),
        ("some work/", "/some work"),
        ("some work/../some work", "/some work"),
        ("link", "/some work"),
        ("-", None),
        ("~other", None),
        ("$HOME", None),
    ],
)
def test_a_directory_is_what_a_person_means_by_it(far: Far, wished: str, directory: str | None) -> None:
    (far.home / "link").symlink_to(far.home / "some work")
    far.put("env")
    wish = Wish(wished, f"venv:{far.home}/env")
    if directory is None:
        assert "there is no directory" in far.fail(wish).message
    else:
        assert far.choose(wish).directory == f"{far.home}{directory}"


def test_an_absolute_directory_is_itself(far: Far) -> None:
    far.put("env")
    chosen = far.choose(Wish(f"{far.home}/some work", f"venv:{far.home}/env"))
    assert chosen.directory == f"{far.home}/some work"


@pytest.mark.parametrize(
    ("prefix", "environment", "variable"),
    [
        ("miniconda3/envs/lab", "conda:lab", "CONDA_PREFIX"),
        ("miniforge3/envs/my lab", "conda:my lab", "CONDA_PREFIX"),
        (".conda/envs/lab", "conda:lab", "CONDA_PREFIX"),
        ("micromamba/envs/lab", "conda:lab", "CONDA_PREFIX"),
        ("miniconda3", "conda:base", "CONDA_PREFIX"),
        ("some/where", "conda:~/some/where", "CONDA_PREFIX"),
        ("some/where", "conda:{home}/some/where", "CONDA_PREFIX"),
        ("some work/.pixi/envs/default", "pixi:.", "CONDA_PREFIX"),
        ("project/.pixi/envs/default", "pixi:~/project", "CONDA_PREFIX"),
        ("project/.pixi/envs/other", "pixi:~/project/.pixi/envs/other", "CONDA_PREFIX"),
        ("project/.venv", "uv:~/project", "VIRTUAL_ENV"),
        ("some work/.venv", "uv:.", "VIRTUAL_ENV"),
        ("it's mine", "venv:~/it's mine", "VIRTUAL_ENV"),
        ("some work/env", "venv:env", "VIRTUAL_ENV"),
        ("env", "venv:../env", "VIRTUAL_ENV"),
    ],
)
def test_an_environment_of_every_kind_is_found_and_activated(
    far: Far, prefix: str, environment: str, variable: str
) -> None:
    made = far.put(prefix, "jupyter-lab")
    chosen = far.choose(Wish("some work", environment.format(home=far.home), "lab", "tcp"))
    assert Path(chosen.python).resolve() == made / "bin/python"
    ours = chosen.words[1]
    assert chosen.words == [f"{ours}/jupyter", ours, "tcp", "lab"]
    assert Path(chosen.environment[variable]).resolve() == made
    assert Path(chosen.environment["PATH"].partition(":")[0]).resolve() == made / "bin"


def test_an_environment_listed_by_conda_itself_is_found_by_its_name(far: Far) -> None:
    made = far.put("far away/special")
    write(far.home / ".conda/environments.txt", f"/gone/special\n{made}\n")
    assert far.choose(Wish("", "conda:special")).python == f"{made}/bin/python"


@pytest.mark.parametrize("environment", ["venv:~/back\\new", "conda:back\\new", "venv:{home}/back\\new"])
def test_a_backslash_in_a_name_is_only_a_character(far: Far, environment: str) -> None:
    made = far.put("back\\new")
    (far.home / "miniconda3/envs").mkdir(parents=True)
    (far.home / "miniconda3/envs/back\\new").symlink_to(made)
    assert Path(far.choose(Wish("", environment.format(home=far.home))).python).resolve() == made / "bin/python"


def test_condas_hooks_are_run_and_one_that_fails_does_no_harm(far: Far) -> None:
    made = far.put("miniconda3/envs/lab")
    write(made / "etc/conda/activate.d/a.sh", "export FROM_HOOK=1\n")
    write(made / "etc/conda/activate.d/b.sh", "exit 7\n")
    assert far.choose(Wish("", "conda:lab")).environment["FROM_HOOK"] == "1"


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_starts_it_and_finds_the_environment(far: Far, shell: str) -> None:
    """One as the `sh` over there, the whole way: also as the one that a login shell finds."""
    made = far.put("miniconda3/envs/lab", "jupyter-lab")
    (far.home / "first").mkdir()
    (far.home / "first/sh").symlink_to(path_of(shell).split()[0])
    write(far.home / ".profile", 'PATH="$HOME/first:$PATH"\n')
    for wish in (Wish("some work", "conda:lab"), Wish("some work")):
        chosen = far.choose(wish, shell)
        assert chosen.python == f"{made}/bin/python"
        assert chosen.environment["PATH"].split(":")[1] == f"{far.home}/first"


LOGIN_FILES = {
    "bash": (".bash_profile", 'export PATH="$HOME/my tools/bin:$PATH"'),
    "zsh": (".zshrc", 'export PATH="$HOME/my tools/bin:$PATH"'),
    "fish": (".config/fish/config.fish", 'set -gx PATH "$HOME/my tools/bin" $PATH'),
    "tcsh": (".tcshrc", 'setenv PATH "$HOME/my tools/bin:$PATH"'),
    "ksh": (".profile", 'export PATH="$HOME/my tools/bin:$PATH"'),
    "mksh": (".profile", 'export PATH="$HOME/my tools/bin:$PATH"'),
    "dash": (".profile", 'export PATH="$HOME/my tools/bin:$PATH"'),
}


@pytest.mark.parametrize("shell", LOGIN_FILES)
def test_jupyter_is_found_in_the_path_that_login_files_make(far: Far, shell: str) -> None:
    made = far.put("my tools", "jupyter-lab")
    name, line = LOGIN_FILES[shell]
    write(far.home / name, f"echo Welcome\n{line}\n")
    chosen = far.choose(Wish(), SHELL=path_of(shell))
    assert chosen.python == f"{made}/bin/python"
    # The stand-in is the way to a server which is to have what its user has in a terminal.
    assert f"{made}/bin" in chosen.environment["PATH"].split(":")


def test_the_login_file_of_a_csh_counts_as_it_does_in_a_terminal(far: Far) -> None:
    made = far.put("my tools", "jupyter-lab")
    write(far.home / ".login", f"echo Welcome\n{LOGIN_FILES['tcsh'][1]}\n")
    chosen = far.choose(Wish(), SHELL=path_of("tcsh"))
    assert chosen.python == f"{made}/bin/python"


# A login file that runs something else in the place of an interactive shell: another shell, a screen.
REPLACED = {
    "bash": (".bash_profile", "case $- in *i*) exec true;; esac\n"),
    "zsh": (".zprofile", "[[ -o interactive ]] && exec true\n"),
    "fish": (".config/fish/config.fish", "status is-interactive; and exec true\n"),
    "ksh": (".profile", "case $- in *i*) exec true;; esac\n"),
    "mksh": (".profile", "case $- in *i*) exec true;; esac\n"),
}


@pytest.mark.parametrize("shell", REPLACED)
def test_a_login_file_that_replaces_an_interactive_shell_is_no_trouble(far: Far, shell: str) -> None:
    made = far.put("my tools", "jupyter-lab")
    name, line = REPLACED[shell]
    write(far.home / name, f'{LOGIN_FILES[shell][1]}\necho one >> "$HOME/times"\n{line}')
    chosen = far.choose(Wish(), SHELL=path_of(shell))
    assert chosen.python == f"{made}/bin/python"
    assert (far.home / "times").read_text() == "one\none\n"


@pytest.mark.parametrize(
    ("shell", "file", "line"),
    [
        ("bash", ".bash_profile", "exit 0"),
        ("bash", ".bash_profile", "exec true"),
        ("zsh", ".zprofile", "exit 0"),
        ("dash", ".profile", "exit 0"),
    ],
)
def test_a_login_file_that_always_ends_the_shell_is_told_with_what_it_said(
    far: Far, shell: str, file: str, line: str
) -> None:
    far.put("my tools", "jupyter-lab")
    write(far.home / file, f"echo Go away\n{line}\n")
    began = time.monotonic()
    first, *said = far.fail(Wish(), SHELL=path_of(shell)).message.splitlines()
    assert first.endswith("your login files there end the shell, or run something else in its place")
    assert set(said) == {"  Go away"}
    assert time.monotonic() - began < 10


MODULES = {
    "bash": (".bash_profile", 'module() { echo "$@" > "$HOME/loaded"; export PATH="$HOME/module/bin:$PATH"; }'),
    "zsh": (".zshrc", 'module() { echo "$@" > "$HOME/loaded"; export PATH="$HOME/module/bin:$PATH"; }'),
    "fish": (
        ".config/fish/config.fish",
        'function module; echo $argv > "$HOME/loaded"; set -gx PATH "$HOME/module/bin" $PATH; end',
    ),
    "tcsh": (
        ".tcshrc",
        """alias module 'echo \\!* > "$HOME/loaded"; setenv PATH "$HOME/module/bin:$PATH"'""",
    ),
}


@pytest.mark.parametrize("shell", MODULES)
@pytest.mark.parametrize("name", ["jupyter/4.2", "GCC/13.2.0 JupyterLab@4.2+x"])
def test_a_module_is_loaded_by_the_login_shell_that_has_it(far: Far, shell: str, name: str) -> None:
    made = far.put("module", "jupyter-lab")
    file, line = MODULES[shell]
    write(far.home / file, f"{line}\n")
    assert far.choose(Wish("", f"module:{name}"), SHELL=path_of(shell)).python == f"{made}/bin/python"
    assert (far.home / "loaded").read_text() == f"load {name}\n"


def test_a_module_that_is_not_there_is_told_with_what_the_shell_said(far: Far) -> None:
    write(
        far.home / ".bash_profile", "module() { echo \"Unable to locate a modulefile for '$2'\" >&2; return 1; }\n"
    )
    error = far.fail(Wish("", "module:nothing"), SHELL="/bin/bash")
    assert "there is no jupyter in your PATH" in error.message
    assert "Unable to locate a modulefile for 'nothing'" in error.message
    assert "job control" not in error.message


@pytest.mark.parametrize(
    ("text", "python"),
    [
        ("#!{plain}/bin/python\n", "{plain}/bin/python"),
        ("#! {plain}/bin/python -E\n", "{plain}/bin/python"),
        ("#!/bin/sh\n'''exec' \"{prefix}/bin/python\" \"$0\" \"$@\"\n' '''\n", "{prefix}/bin/python"),
        ("#!/bin/sh\n'''exec' {plain}/bin/python \"$0\" \"$@\"\n' '''\n", "{plain}/bin/python"),
        ("#!/usr/bin/env python3\n", "{tools}/bin/python3"),
        ('#!/bin/bash\nexec something "$@"\n', "{tools}/bin/python3"),
        ("#!/gone/bin/python\n", "{tools}/bin/python3"),
    ],
)
@pytest.mark.parametrize("name", ["jupyter-lab", "jupyter"])
def test_the_python_of_a_script_is_the_one_that_runs_it(far: Far, name: str, text: str, python: str) -> None:
    prefix = far.put("another prefix")
    plain = far.put(far.home.parent / "plain")
    tools = far.home / "my tools"
    write(tools / "bin/python3", STAND_IN)
    places = {"prefix": prefix, "plain": plain, "tools": tools}
    write(tools / "bin" / name, text.format(**places))
    write(far.home / ".profile", LOGIN_FILES["dash"][1])
    assert far.choose(Wish()).python == python.format(**places)


@pytest.mark.parametrize("prefix", [".pixi/envs/default", ".venv", "venv"], ids=["pixi", "dot venv", "venv"])
def test_an_environment_in_the_directory_itself_comes_before_the_path(far: Far, prefix: str) -> None:
    far.put("my tools", "jupyter-lab")
    write(far.home / ".profile", LOGIN_FILES["dash"][1])
    made = far.put(Path("some work") / prefix, "jupyter-lab")
    assert far.choose(Wish("some work")).python == f"{made}/bin/python"
    (made / "bin/jupyter-lab").unlink()
    assert far.choose(Wish("some work")).python == f"{far.home}/my tools/bin/python"


@pytest.mark.parametrize(
    "prefix", ["miniconda3/envs/only", "venvs/only", ".virtualenvs/only", "venv", "anaconda3/envs/the only"]
)
def test_the_only_environment_with_jupyter_is_taken(far: Far, prefix: str) -> None:
    made = far.put(prefix, "jupyter-notebook")
    far.put("miniconda3/envs/without")
    assert far.choose(Wish("some work")).python == f"{made}/bin/python"


def test_of_many_environments_none_is_taken_and_all_are_named(far: Far) -> None:
    for prefix in ("miniconda3/envs/one", ".conda/envs/two", "venvs/three"):
        far.put(prefix, "jupyter-lab")
    far.put("miniconda3/envs/without")
    error = far.fail(Wish("some work"))
    assert "there is no jupyter in your PATH" in error.message
    home = str(far.home).replace("'", "'\"'\"'")
    assert error.hint == (
        f"environments with jupyter over there: conda:one, conda:two, 'venv:{home}/venvs/three'; "
        "as in holdfast jupyter lab --start --env conda:one"
    )


@pytest.mark.parametrize("environment", ["venv:a'b\"c$(touch x)`id`\\", "conda:*", "conda:a b/../c", "uv:$HOME"])
def test_no_environments_name_is_run_or_expanded(far: Far, environment: str) -> None:
    far.put("miniconda3/envs/lab", "jupyter-lab")
    assert f"there is no environment '{environment}'" in far.fail(Wish("some work", environment)).message
    assert not (far.home / "some work/x").exists()


# What the machine does to processes of those who have logged out.


@pytest.mark.parametrize(
    ("linger", "kills", "has_scope", "warns"),
    [
        ("yes", "yes", True, False),
        ("no", "yes", False, True),
        ("no", "no", False, False),
        ("", "", False, False),
    ],
)
def test_a_server_is_kept_from_the_end_of_a_login_where_that_can_be(
    far: Far, linger: str, kills: str, has_scope: bool, warns: bool
) -> None:
    far.put("env", python=STAY)
    tools = far.home / "tools"
    write(tools / "loginctl", f'#!/bin/sh\ncase $1 in show-user) echo "{linger}";; *) echo "{kills}";; esac\n')
    write(
        tools / "systemd-run",
        '#!/bin/sh\nfor word; do case $word in --*) echo "$word" >> "$HOME/scope"; shift;; *) break;; esac; done\n'
        'exec "$@"\n',
    )
    wish = Wish("", "venv:env")
    printed = far.run(launch.start_program(wish), PATH=f"{tools}:{PATH}")
    started = launch.read_started(printed, "lab", wish)
    first = printed.splitlines()[0]
    assert first == f"@started {started.pid} {linger or 'unknown'} {kills or 'unknown'}"
    assert bool(started.warning) == warns
    assert psutil.Process(started.pid).name() == "sleep"
    assert os.getsid(started.pid) == started.pid
    (ours,) = far.directories()
    assert (far.home / "scope").exists() == has_scope
    if has_scope:
        assert f"--unit=holdfast-jupyter-{ours.name[-8:]}" in (far.home / "scope").read_text().splitlines()


def test_of_two_servers_the_one_that_is_meant_is_ended(far: Far) -> None:
    far.put("env", python=STAY)
    first, second = far.start(Wish("", "venv:env")), far.start(Wish("", "venv:env"))
    assert len(far.directories()) == 2
    assert far.run(launch.end_program(first.pid, signal=True)) == "@ended\n"
    (left,) = far.directories()
    assert (left / "pid").read_text().strip() == str(second.pid)
    assert not has_ended(psutil.Process(second.pid))


# What is read.

FACTS = {"app": "lab", "version": "4.2.0", "environment": "/e", "kind": "tls", "kernels": "sockets"}


@pytest.mark.parametrize(
    ("said", "warns"),
    [
        ("no yes", True),
        ("unknown yes", True),
        ("yes yes", False),
        ("no no", False),
        ("unknown unknown", False),
    ],
)
def test_what_a_host_does_to_processes_is_a_warning_where_it_may_hit_the_server(said: str, warns: bool) -> None:
    printed = f"@started 77 {said}\n@facts\n{json.dumps(FACTS)}\n@fingerprint\nsha256 Fingerprint=AB:0C\n"
    started = launch.read_started(printed, "lab", Wish())
    assert started[:7] == (77, "lab", "4.2.0", "/e", "tls", "sockets", "ab0c")
    assert ("KillUserProcesses" in started.warning) == warns


@pytest.mark.parametrize(
    ("failed", "environments", "wish", "hint"),
    [
        (
            "there is no directory /x",
            "",
            Wish("x"),
            "name one that is over there: {start} --dir work, or --dir '~/work'",
        ),
        (
            "no jupyter",
            "conda:a\nconda:b",
            Wish(),
            "environments with jupyter over there: conda:a, conda:b; as in",
        ),
        ("no jupyter", "venv:/a b", Wish(), "{start} --env 'venv:/a b'"),
        ("there is no environment 'conda:x'", "conda:a", Wish(environment="conda:x"), "{start} --env conda:a"),
        ("there is no environment 'conda:x'", "", Wish(environment="conda:x"), "see what is there: ssh lab conda"),
        (
            "there is no jupyter in your PATH",
            "",
            Wish(),
            "install it there, as in: ssh lab python3 -m pip install",
        ),
        ("there is no jupyterlab in the environment /e", "", Wish(), "install it there"),
        (
            "there is no jupyterlab in the environment /e",
            "conda:a",
            Wish(environment="conda:a"),
            "install it there",
        ),
        ("the server ended while it started", "", Wish(), "try it there: ssh lab, then jupyter lab --no-browser"),
        ("can't make a directory in /tmp", "", Wish(), "try it there"),
    ],
)
def test_a_failed_start_comes_with_what_to_try(failed: str, environments: str, wish: Wish, hint: str) -> None:
    printed = f"@failed\n{failed}\n@environments\n{environments}\n@log\n"
    with pytest.raises(HoldfastError) as told:
        launch.read_started(printed, "lab", wish)
    assert told.value.message == f"no notebook server was started on lab: {failed}"
    assert told.value.hint.startswith(hint.format(start="holdfast jupyter lab --start"))


@pytest.mark.parametrize(
    ("printed", "has_ended"),
    [
        ("@ended\n", True),
        ("@runs\n", False),
        ("", False),
        (" @ended\n", False),
        ("@ended", True),
        ("ended\n", False),
    ],
)
def test_only_what_has_said_so_has_ended(printed: str, has_ended: bool) -> None:
    assert launch.has_ended(printed) == has_ended


def test_a_log_is_shown_without_tokens_empty_lines_and_what_bash_always_says() -> None:
    log = "bash: cannot set terminal process group (7): x\nbash: no job control in this shell\n\nhttp://x/?token=abcdef"
    with pytest.raises(HoldfastError) as told:
        launch.read_started(f"@failed\nx\n@log\n{log}\n", "lab", Wish())
    assert told.value.message == "no notebook server was started on lab: x\n  http://x/?token=..."


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("http://x/lab?token=0123456789&a=b c", "http://x/lab?token=...&a=b c"),
        ("token=abcd 'token=efgh' token=", "token=... 'token=...' token="),
        ("no secret", "no secret"),
        ("http://x/?token=...", "http://x/?token=..."),
    ],
)
def test_a_log_is_shown_without_its_tokens(log: str, shown: str) -> None:
    assert launch.without_tokens(log) == shown


@pytest.mark.parametrize(
    "text",
    ["conda:lab", "conda:my lab", "venv:~/x y", "pixi:/p", "uv:.", "module:jupyter/4.2", "module:a b@1+2-3_4"],
)
def test_an_environment_that_can_be_one_is_taken_as_it_is(text: str) -> None:
    assert launch.check_environment(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "lab", "conda", "conda:", ":lab", "poetry:lab", "venv:a\nb", "conda:\x1b[0m"]
    + [f"module:{name}" for name in ("a;id", "a  b", " a", "a ", "$x", "`id`", "a|b", "é", "a\tb", "-f>x")],
)
def test_what_can_be_no_environment_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        launch.check_environment(text)


@pytest.mark.parametrize("text", ["", "work", "~/my work", "/a/b", "it's"])
def test_a_directory_that_can_be_one_is_taken_as_it_is(text: str) -> None:
    assert launch.check_directory(text) == text


@pytest.mark.parametrize("text", ["a\nb", "\x1b[0m", "-x", "x" * 1025])
def test_what_can_be_no_directory_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        launch.check_directory(text)


@pytest.mark.parametrize("kind", ["socket", "tls", "tcp"])
def test_the_program_is_not_longer_than_one_may_be(kind: str) -> None:
    program = launch.start_program(Wish("x" * 1024, "conda:" + "x" * 1024, "notebook", kind))
    assert len(script.wrap(program, MARK).encode()) < script.LONGEST_PROGRAM
    unfilled = {"@RUN@", "@STARTER@", "@SECONDS@", "@LAST_WORDS@"}
    assert not [name for name in unfilled if name in program]
