"""Unix accounts for the time of a test, on a host that they share; and what the owner of one can do to another."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import holdfast
from tests.sshd import wait_for

needs_accounts = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("useradd") is None, reason="only root can make accounts, with useradd"
)


class Account(NamedTuple):
    """An account. Programs run as its owner, with nothing of the environment of whoever runs the tests."""

    name: str
    home: Path

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.name).pw_uid

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "USER": self.name, "PATH": os.defpath, "LANG": "C.UTF-8"}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        with self.start(*words, stdin=subprocess.DEVNULL) as process:
            output, errors = process.communicate(timeout=30)
        return subprocess.CompletedProcess(words, process.returncode, output, errors)

    def start(
        self, *words: str, environment: Mapping[str, str] | None = None, stdin: int = subprocess.PIPE, **more: Any
    ) -> subprocess.Popen[str]:
        found = pwd.getpwnam(self.name)
        return subprocess.Popen(
            words,
            user=found.pw_uid,
            group=found.pw_gid,
            extra_groups=[],
            umask=0o022,
            env={**self.environment(), **(environment or {})},
            cwd="/",
            stdin=stdin,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        )

    @contextlib.contextmanager
    def logged_in(self) -> Iterator[None]:
        """Has a program of theirs run meanwhile."""
        process = self.start("sleep", "600")
        try:
            yield
        finally:
            process.kill()
            process.communicate()

    def processes(self) -> list[psutil.Process]:
        """What they run; what serves their ssh connections isn't theirs."""
        found = []
        for process in psutil.process_iter(["uids", "name", "status"]):
            info = process.info
            is_theirs = info["uids"] is not None and info["uids"].real == self.uid
            if is_theirs and info["name"] != "sshd" and info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def files_in_tmp(self) -> set[Path]:
        def is_theirs(path: Path) -> bool:
            with contextlib.suppress(FileNotFoundError):
                return path.lstat().st_uid == self.uid
            return False

        return set(filter(is_theirs, Path(tempfile.gettempdir()).iterdir()))


@contextlib.contextmanager
def account(name: str, home: Path) -> Iterator[Account]:
    """A new account that can log in with a key; afterwards nothing of it is left."""
    made = Account(name, home)
    subprocess.run(["useradd", "-m", "-s", "/bin/bash", "-d", str(home), name], check=True, capture_output=True)
    try:
        home.chmod(0o755)
        # Without PAM, sshd says that an account without a password is locked.
        subprocess.run(["usermod", "-p", "*", name], check=True, capture_output=True)
        yield made
    finally:

        def all_are_gone() -> bool:
            left = made.processes()
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return not left

        try:
            wait_for(all_are_gone, f"the processes of {name} to be gone", 10)
        finally:
            for path in made.files_in_tmp():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            subprocess.run(["userdel", "--force", name], check=True, capture_output=True)
            shutil.rmtree(home, ignore_errors=True)


def make_environment(place: Path) -> Path:
    """A virtual environment with what the tests' own has, for anybody's use; its Python, which is the system's."""
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(place)], check=True)
    (installed,) = (place / "lib").glob("python3*/site-packages")
    of_tests = next(path for path in sys.path if path.endswith("site-packages"))
    source = Path(holdfast.__file__).parent.parent
    (installed / "of_tests.pth").write_text(f"{of_tests}\n{source}\n")
    (place / "share").symlink_to(Path(sys.prefix) / "share")
    return place / "bin" / "python"


class Attack:
    """A program of an attacker's. It prints 'ready', then what it finds, until its input ends."""

    def __init__(self, attacker: Account, python: Path, program: str, *arguments: str) -> None:
        self.found = ""
        self._process = attacker.start(str(python), "-c", program, *arguments)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", line + self._process.communicate()[1]

    def __enter__(self) -> Attack:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> str:
        """What it has found in all."""
        if self._process.returncode is None:
            self.found, errors = self._process.communicate(timeout=30)
            assert self._process.returncode == 0, errors
        return self.found


# Listens on an address ($1, $2), prints all that arrives as Python writes it, and answers like a Jupyter Server.
LISTEN = r"""
import selectors, socket, sys
host, port = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
listener = socket.create_server((host, int(port)), family=family)
choice = selectors.DefaultSelector()
choice.register(listener, selectors.EVENT_READ)
choice.register(sys.stdin, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in choice.select():
        if key.fileobj is sys.stdin:
            sys.exit()
        if key.fileobj is listener:
            choice.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        try:
            data = key.fileobj.recv(65536)
            if data:
                print(data, flush=True)
                key.fileobj.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{\"version\":\"2.21\"}")
                continue
        except OSError:
            pass
        choice.unregister(key.fileobj)
        key.fileobj.close()
"""

# Reads the command line and the environment of every process over and over, and prints all that was ever there.
WATCH = r"""
import os, select, sys
print("ready", flush=True)
seen = set()
while not select.select([sys.stdin], [], [], 0.003)[0]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            try:
                with open(f"/proc/{pid}/{name}", "rb") as file:
                    seen.add(file.read().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                pass
print("\n".join(seen))
"""

# Listens to whatever a user ($1) publishes on ZeroMQ sockets: connects to all that they listen on. Prints 'ready'
# once each connection is known to work, or not to.
SUBSCRIBE = r"""
import json, sys
import zmq
from zmq.utils.monitor import recv_monitor_message
places = set()
for line in open("/proc/net/tcp"):
    fields = line.split()
    if fields[3] == "0A" and fields[7] == sys.argv[1]:
        places.add(int(fields[1].partition(":")[2], 16))
context = zmq.Context()
poller = zmq.Poller()
poller.register(sys.stdin.fileno(), zmq.POLLIN)
settled = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
settled |= zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
subscribers, monitors = [], []
for port in places:
    subscriber = context.socket(zmq.SUB)
    subscriber.linger = 0
    subscriber.handshake_ivl = 1000
    subscriber.subscribe(b"")
    monitors.append(subscriber.get_monitor_socket(settled))
    subscriber.connect(f"tcp://127.0.0.1:{port}")
    subscribers.append(subscriber)
    poller.register(subscriber, zmq.POLLIN)
for monitor in monitors:
    recv_monitor_message(monitor)
print("ready", flush=True)
print(json.dumps({"listened to": len(places)}), flush=True)
while True:
    for place, _ in poller.poll():
        if place == sys.stdin.fileno():
            context.destroy(linger=0)
            sys.exit()
        print(place.recv_multipart(), flush=True)
"""

# Listens on a TCP port ($1) at so many ($2) loopback addresses, from the $3th on: a list of all who listen on that
# port grows by 150 bytes for each.
DROWN = r"""
import socket, sys
import resource
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
port, count, first = map(int, sys.argv[1:])
listeners = []
for number in range(first, first + count):
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((f"127.1.{number // 256}.{number % 256}", port))
    listener.listen(1)
    listeners.append(listener)
print("ready", flush=True)
sys.stdin.read()
"""

# Listens on Unix sockets with these names ($1...), of no files. The kernel's list shows them as they are, with
# whatever lines they consist of.
FORGE = r"""
import socket, sys
listeners = []
for name in sys.argv[1:]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + name)
    listener.listen()
    listeners.append(listener)
print("ready", flush=True)
sys.stdin.read()
"""


def inode_of(port: int) -> int:
    """The inode of what listens on 127.0.0.1 there, as every user can read it."""
    for line in Path("/proc/net/tcp").read_text().splitlines():
        fields = line.split()
        if fields[1] == f"0100007F:{port:04X}" and fields[3] == "0A":
            return int(fields[9])
    raise LookupError(port)


def records(account_home: Path) -> Path:
    """Where Jupyter keeps the files about what runs."""
    return account_home / ".local" / "share" / "jupyter" / "runtime"


def record_of(account_home: Path, pid: int) -> dict[str, Any]:
    """The file in which a server announces itself."""
    return dict(json.loads((records(account_home) / f"jpserver-{pid}.json").read_text()))
