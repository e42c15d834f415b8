"""A network of its own for one test: a client, a router and a server in network namespaces, and what can go wrong.

Real sshd, real cables (veth pairs); nothing of it is seen outside, and nothing of it remains. Linux and root only.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self, TypeVar

import psutil
import pytest

from tests.conftest import Web, get
from tests.sshd import Sshd, wait_for

T = TypeVar("T")

_NAME = re.compile(r"hfnet-(?P<pid>\d+)-\d+-\w+")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count(1)


class Plug(Enum):
    """The end of the client's cable that goes down."""

    ROUTER = "the client loses its carrier, and keeps its interface's addresses and routes"
    CLIENT = "the client's own interface is switched off, and its routes go"


class NotPossible(Exception):
    """This machine can't do what was asked for; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace, by its name under /run/netns."""

    name: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command line to run it in here."""
        return ("ip", "netns", "exec", self.name)

    def add(self) -> None:
        _ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def remove(self) -> None:
        """Ends every process in here; then the namespace goes, with the ends of its cables."""
        self.end_processes()
        _ip("netns", "delete", self.name)

    def ip(self, *words: str) -> str:
        """What `ip` says about, or does to, the network in here."""
        return _ip("-netns", self.name, *words)

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function()`, called in here.

        The sockets that it makes stay in here, whoever uses them later, and so do the processes that it starts.
        """
        with ThreadPoolExecutor(1, initializer=self._enter) as thread:
            return thread.submit(function).result()

    def pids(self) -> list[int]:
        """The processes in here. Threads in `call` are not among them."""
        return [int(word) for word in _ip("netns", "pids", self.name).split()]

    def end_processes(self) -> None:
        """Kills every process in here, and waits until they are gone."""

        def none_left() -> bool:
            found = self.pids()
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not found

        wait_for(none_left, f"the processes in {self.name} to end", 10)

    def _enter(self) -> None:
        """Moves this thread, and no other, into the namespace."""
        with Path(f"/run/netns/{self.name}").open("rb") as handle:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {self.name}")


class Network:
    """client -- router -- server, as a context manager; with `jump=True` ssh goes through a third host.

    `ssh -F network.config lab` gets from the client into the server, where sshd runs with `options`. Each fault
    is a method, and lasts until the one that ends it. Entering raises NotPossible where there are no namespaces.
    """

    CLIENT, ROUTER, SERVER, JUMP = "10.71.1.2", "10.71.1.1", "10.71.2.2", "10.71.3.2"
    CLIENTS = "10.71.1.0/24"

    def __init__(
        self, home: Path, keys: Path, environment: Mapping[str, str], *options: str, jump: bool = False
    ) -> None:
        mark = f"hfnet-{os.getpid()}-{next(_numbers)}"
        self.client, self.router, self.server, self._jump = (
            Namespace(f"{mark}-{role}") for role in ("client", "router", "server", "jump")
        )
        self.environment = environment
        self.address = self.CLIENT
        self.sshd = Sshd(home, keys, *options, address=self.SERVER, prefix=self.server.prefix)
        self.jump = _sshd_of_the_jump_host(home, keys, self._jump) if jump else None
        self._addresses = (f"10.71.1.{last}" for last in range(3, 255))
        self._frozen: list[int] = []
        self._rules: list[tuple[str, ...]] = []
        self._ending = contextlib.ExitStack()
        self.configure()

    @property
    def config(self) -> Path:
        """The client's ssh_config."""
        return self.sshd.config

    def configure(self, *lines: str) -> None:
        """Writes the client's configuration anew: the host `lab`, with `lines` added to its block."""
        if self.jump is None:
            self.sshd.configure(*lines)
            return
        self.sshd.configure(f"ProxyJump {self.jump.alias}", *lines)
        with self.config.open("a") as config:
            config.write(self.jump.config.read_text())

    def __enter__(self) -> Self:
        if reason := why_not():
            raise NotPossible(reason)
        sweep()
        with self._ending as ending:
            self._build(ending)
            self._ending = ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def run(self, *argv: str, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """A command on the client, to its end. `more` is added to its environment, `timeout` is in seconds."""
        return subprocess.run(
            [*self.client.prefix, *argv],
            env={**self.environment, **more},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def holdfast(self, *words: str, timeout: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
        """The real command, as the client's user runs it. Its keeper and its masters stay on the client."""
        return self.run(sys.executable, "-m", "holdfast", *words, timeout=timeout, **more)

    def popen(self, *argv: str, **more: str) -> subprocess.Popen[str]:
        """A command on the client, which goes on; it is ended with the network, if not before."""
        process = subprocess.Popen(
            [*self.client.prefix, *argv],
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._ending.callback(_end, process)
        return process

    def connect(self, port: int, *, host: str = "127.0.0.1", timeout: float = 10) -> socket.socket:
        """A TCP connection made on the client: to a forward, unless `host` says otherwise. Raises OSError."""
        return self.client.call(lambda: socket.create_connection((host, port), timeout))

    def get(self, port: int, path: str = "/", host: str = "127.0.0.1") -> bytes:
        """What an HTTP server answers to GET on the client."""
        return self.client.call(lambda: get(port, path, host))

    def serve_web(self) -> Web:
        """A web service on the server's own loopback, until the network ends."""
        web = self.server.call(Web)
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for step in (web.server_close, thread.join, web.shutdown):
            self._ending.callback(step)
        return web

    def cut(self, plug: Plug = Plug.ROUTER) -> None:
        """The client's cable is pulled: the client notices at once."""
        end = self.router if plug is Plug.ROUTER else self.client
        end.ip("link", "set", _CABLES[plug], "down")

    def mend(self) -> None:
        """Both ends of the client's cable are in again, and the client has its route."""
        for plug, end in ((Plug.ROUTER, self.router), (Plug.CLIENT, self.client)):
            end.ip("link", "set", _CABLES[plug], "up")
        self._route_the_client()

    def drop(self, *, to_server: bool = False, to_client: bool = False) -> None:
        """The router drops all of the client's packets silently; only those of one direction when one is named."""
        both = to_server == to_client
        if to_server or both:
            self._add_rule("from", self.CLIENTS, "blackhole")
        if to_client or both:
            self._add_rule("to", self.CLIENTS, "blackhole")

    def pass_again(self) -> None:
        """Ends `drop`."""
        while self._rules:
            self.router.ip("rule", "delete", *self._rules.pop())

    def change_address(self) -> str:
        """The client gets another address in its network, which is returned; the old one is gone."""
        old, self.address = self.address, next(self._addresses)
        self.client.ip("address", "delete", f"{old}/24", "dev", "router")
        self.client.ip("address", "add", f"{self.address}/24", "dev", "router")
        self._route_the_client()
        return self.address

    def freeze(self) -> None:
        """Every process of the server's sshd stops, with what they run. Its kernel still answers for them."""
        assert self.sshd.process is not None
        self._stop([self.sshd.process.pid])  # first, so that it starts no others meanwhile
        while started := set(self.sshd.descendants()) - set(self._frozen):
            self._stop(sorted(started))
        wait_for(lambda: all(_is_stopped(pid) for pid in self._frozen), "the server to freeze")

    def thaw(self) -> None:
        """Ends `freeze`."""
        while self._frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._frozen.pop(), signal.SIGCONT)

    def kill_sessions(self) -> None:
        """The server's end of every connection is killed; sshd goes on listening."""
        self.sshd.drop_connections()

    def restart_sshd(self, *options: str, host_key: Path | None = None) -> None:
        """sshd ends with all of its connections, and starts with `options`; `host_key` replaces the key it had."""
        self._frozen.clear()
        self.sshd.stop()
        self.sshd.host_key = host_key or self.sshd.host_key
        self.sshd.start(*options)

    def delay(self, seconds: float) -> None:
        """Makes a round trip between client and server take `seconds` more. Raises NotPossible without netem."""
        for cable in ("client", "server"):
            shaping = ("qdisc", "replace", "dev", cable, "root", "netem", "delay", f"{seconds * 500_000:.0f}us")
            done = _run(["tc", "-netns", self.router.name, *shaping])
            if done.returncode:
                raise NotPossible(f"no delays here, the kernel may lack netem: {done.stderr.strip()}")

    def _build(self, ending: contextlib.ExitStack) -> None:
        self._add(ending, self.client, self.router)
        self._lay_cable(self.client, "client", self.CLIENT)
        self._add(ending, self.server)
        self._lay_cable(self.server, "server", self.SERVER)
        if self.jump is not None:
            self._add(ending, self._jump)
            self._lay_cable(self._jump, "jump", self.JUMP)
        self.router.call(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        for sshd in filter(None, (self.jump, self.sshd)):
            ending.callback(sshd.stop)
            sshd.start()

    def _add(self, ending: contextlib.ExitStack, *namespaces: Namespace) -> None:
        for namespace in namespaces:
            namespace.add()
            ending.callback(namespace.remove)

    def _lay_cable(self, host: Namespace, role: str, address: str) -> None:
        """From `host` to the router, whose address ends in 1. Each end is named for what is at the other."""
        gateway = f"{address.rpartition('.')[0]}.1"
        host.ip("link", "add", "router", "type", "veth", "peer", "name", role, "netns", self.router.name)
        for end, cable, own in ((host, "router", address), (self.router, role, gateway)):
            end.ip("address", "add", f"{own}/24", "dev", cable)
            end.ip("link", "set", cable, "up")
        host.ip("route", "add", "default", "via", gateway)

    def _route_the_client(self) -> None:
        self.client.ip("route", "replace", "default", "via", self.ROUTER)

    def _add_rule(self, *rule: str) -> None:
        self.router.ip("rule", "add", *rule)
        self._rules.append(rule)

    def _stop(self, pids: Sequence[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            self._frozen.append(pid)


_CABLES = {Plug.ROUTER: "client", Plug.CLIENT: "router"}


@functools.cache
def why_not() -> str | None:
    """Why there can be no network of namespaces here; None where there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.getuid():
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "`ip` of iproute2 is not installed"
    probe = Namespace(f"hfnet-{os.getpid()}-0-probe")
    tried = _run(["ip", "netns", "add", probe.name])
    if tried.returncode:
        return f"`ip netns` does not work: {tried.stderr.strip()}"
    probe.remove()
    return None


def sweep() -> None:
    """Removes what is left of networks whose test run was killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.partition(" ")[0]
        found = _NAME.fullmatch(name)
        if found and not psutil.pid_exists(int(found["pid"])):
            with contextlib.suppress(subprocess.CalledProcessError):  # another run was sweeping, too
                Namespace(name).remove()


@pytest.fixture
def network(home: Path, keys: Path, environment: Mapping[str, str]) -> Iterator[Network]:
    """A `Network` without a jump host, for modules that import this; skipped where there can be none."""
    with network_or_skip(home, keys, environment) as made:
        yield made


@contextlib.contextmanager
def network_or_skip(
    home: Path, keys: Path, environment: Mapping[str, str], *options: str, jump: bool = False
) -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    with Network(home, keys, environment, *options, jump=jump) as made:
        yield made


def _sshd_of_the_jump_host(home: Path, keys: Path, namespace: Namespace) -> Sshd:
    own = home / "jump"
    own.mkdir()
    return Sshd(own, keys, address=Network.JUMP, prefix=namespace.prefix, alias="jump")


def _is_stopped(pid: int) -> bool:
    """Whether the process does nothing any more. The signal alone may still be on its way."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _end(process: subprocess.Popen[str]) -> None:
    with process:
        process.kill()


def _ip(*words: str) -> str:
    """What `ip` printed. Raises subprocess.CalledProcessError, with what it complained about as a note."""
    done = _run(["ip", *words])
    try:
        done.check_returncode()
    except subprocess.CalledProcessError as error:
        error.add_note(done.stderr.strip())
        raise
    return done.stdout


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, timeout=30)
