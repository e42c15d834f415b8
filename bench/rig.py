"""What every measurement stands on: an sshd on loopback, servers behind it, and the certain end of all of it."""

from __future__ import annotations

import compileall
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tests.sshd import Sshd, free_port, make_key, wait_for

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
# The console script, as a user runs it.
HOLDFAST = Path(PYTHON).with_name("holdfast")
# Other names for the same sshd: to a client that multiplexes, ten different hosts.
ALIASES = tuple(f"lab{number}" for number in range(10))

# Seconds that a whole run may wait for other programs to pause.
PATIENCE = 40.0


@dataclass
class Rig:
    """One sshd, one directory, one environment."""

    home: Path
    sshd: Sshd
    environment: dict[str, str]
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def far_home(self) -> Path:
        """The home directory over there. Empty: what somebody's login files cost is not our subject."""
        return self.home / "far"

    @property
    def ssh(self) -> list[str]:
        """The ssh that knows the host `lab`."""
        return ["ssh", "-F", str(self.sshd.config)]

    def start(self, argv: Sequence[str], **more: str) -> subprocess.Popen[bytes]:
        """A process that ends, with all its children, when the rig does."""
        process = subprocess.Popen(
            argv,
            env={**self.environment, **more},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=(self.home / "noise.log").open("ab"),
            start_new_session=True,
        )
        self.stack.callback(end, process.pid)
        return process

    def run(
        self, argv: Sequence[str], *, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself; what it leaves in the background inherits none of our pipes."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            process = subprocess.Popen(
                argv,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
            # wait(timeout) looks only every 50 ms, which is what some of these commands take in all.
            watchdog = threading.Timer(60, process.kill)
            watchdog.start()
            try:
                code = process.wait()
            finally:
                watchdog.cancel()
            out.seek(0)
            err.seek(0)
            result = subprocess.CompletedProcess(argv, code, out.read(), err.read())
        if check and result.returncode:
            raise RuntimeError(f"{' '.join(argv)}: exit code {result.returncode}: {result.stderr.strip()}")
        return result

    def serve(self, kind: str) -> int:
        """The port of a server from bench/servers.py."""
        port = free_port()
        self.start([PYTHON, "-m", "bench.servers", kind, str(port)])
        wait_for(lambda: listens(port), f"the server '{kind}'")
        return port


@dataclass
class Holdfast:
    """A keeper of its own: its sockets, its state, its tunnels."""

    rig: Rig
    name: str

    @property
    def directories(self) -> dict[str, str]:
        return {
            "HOLDFAST_RUNTIME_DIR": str(self.rig.home / f"{self.name}r"),
            "HOLDFAST_STATE_DIR": str(self.rig.home / f"{self.name}s"),
        }

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.rig.run([str(HOLDFAST), *words], check=check, environment=self.directories)

    def up(self, host: str, *words: str) -> None:
        self.run("up", host, *words, "-F", str(self.rig.sshd.config))

    def forward(self, target: int, host: str = "lab", *words: str) -> int:
        """The local port of a new forward to `target` over there."""
        port = free_port()
        self.up(host, f"{port}:{target}", *words)
        return port

    def keeper(self) -> psutil.Process:
        for process in psutil.process_iter(["cmdline"]):
            if "holdfast.keeper" not in (process.info["cmdline"] or []):
                continue
            with contextlib.suppress(psutil.Error):
                if process.environ().get("HOLDFAST_STATE_DIR") == self.directories["HOLDFAST_STATE_DIR"]:
                    return process
        raise RuntimeError("there is no keeper")

    def masters(self) -> list[psutil.Process]:
        sockets = self.directories["HOLDFAST_RUNTIME_DIR"] + "/m/"
        found = psutil.process_iter(["cmdline", "name"])
        return [
            process
            for process in found
            if process.info["name"] == "ssh" and any(sockets in word for word in process.info["cmdline"] or [])
        ]

    def end(self) -> None:
        with contextlib.suppress(RuntimeError):
            keeper = self.keeper()
            self.run("down", "--all", check=False)
            end(keeper.pid)


@contextlib.contextmanager
def rig() -> Iterator[Rig]:
    """A rig that leaves no process and no file behind."""
    home = Path(tempfile.mkdtemp(prefix="hb"))
    made = Rig(home, _sshd(home), _environment())
    try:
        made.far_home.mkdir()
        made.sshd.start("MaxStartups 200:30:400", "MaxSessions 100", f"SetEnv HOME={made.far_home}")
        _compile(made)
        with made.stack:
            yield made
    finally:
        _stop(made.sshd)
        _end_left_over(home)
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def holdfast(rig: Rig, name: str) -> Iterator[Holdfast]:
    made = Holdfast(rig, name)
    try:
        yield made
    finally:
        made.end()


def end(pid: int) -> None:
    """Ends the process and its children: asks first, then makes sure."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.terminate()
        for member in psutil.wait_procs(family, 3)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, 3)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def quiet() -> None:
    """Waits until other programs leave the CPUs alone, for as long as `PATIENCE` lasts in all."""
    while _Waited.seconds < PATIENCE:
        began = time.monotonic()
        busy = psutil.cpu_percent(0.1)
        if busy < 20:
            return
        _Waited.seconds += time.monotonic() - began


def was_disturbed() -> bool:
    """Whether other programs kept the CPUs busy for longer than we could wait."""
    return _Waited.seconds >= PATIENCE


class _Waited:
    seconds = 0.0


def seconds_of(call: Callable[[], object]) -> float:
    """How long `call()` takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _sshd(home: Path) -> Sshd:
    for name in ("host", "user"):
        make_key(home / name)
    server = Sshd(home, home)
    block = server.config.read_text()
    blocks = [block, *(block.replace("Host lab\n", f"Host {alias}\n") for alias in ALIASES)]
    server.config.write_text("\n".join(blocks))
    return server


def _environment() -> dict[str, str]:
    """Without PYTHONDONTWRITEBYTECODE above all, which would have every command compile its imports again."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "USER") if name in os.environ}


def _compile(rig: Rig) -> None:
    for folder in ("src/holdfast", "bench", "tests"):
        compileall.compile_dir(ROOT / folder, quiet=2)
    rig.run([str(HOLDFAST), "--version"])


def _end_left_over(home: Path) -> None:
    """Whoever still has the rig's directory on its command line or in its environment."""
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            words = [*(process.info["cmdline"] or []), *process.environ().values()]
            if process.pid != os.getpid() and any(word.find(f"{home}/") >= 0 for word in words):
                if "sshd" not in process.name():
                    print(f"bench: ended what was left running: {process.info['cmdline']}", file=sys.stderr)
                end(process.pid)


def _stop(sshd: Sshd) -> None:
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):  # a connection that was just ending
        sshd.stop()
    if sshd.process is not None:
        end(sshd.process.pid)
