"""Somebody who does what a page of the documents says: each command is run, and prints what the page shows.

Their machine, `lab` (also `gpu`, and `hpc`, which wants codes) and `bastion` are network namespaces with real
sshds, so that every port is free on each, and no command needs a change. A page is one session of one user, from
its first block to its last. What it takes for granted before a block, or has happen meanwhile, is a Scene.
"""

from __future__ import annotations

import contextlib
import getpass
import io
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pexpect
import pytest

from tests.conftest import Web, say_nothing_of_others
from tests.conftest import tunnel as status_of
from tests.jupyters import NEWEST, all_ended
from tests.network import Namespace, Network, why_not
from tests.sshd import Sshd, wait_for

DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"
# What listens on the loopback of `lab`, which is also `gpu`. On `bastion` nothing does.
SERVICES = (8888, 6006, 5432, 8787)
HOSTS = ("lab", "gpu", "bastion", "hpc")
# Seconds that a command may take.
PATIENCE = 90

# What differs from run to run, and what stands for it. Ports are compared, but for those that were any free ones.
VARYING = (
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?[+-]\d\d:\d\d", "TIME"),
    (r"^\d\d:\d\d:\d\d(?=  )|(?<=^\[I )\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}(?= ServerApp\])", "TIME"),
    (r"(?<=others on lab just now: ).*\bbob\b.*", "bob"),  # and others, where the tests are not alone
    (r"(?<=^holdfast: ).*\bbob\b.*(?= can connect to that port on lab)", "bob"),
    (r"(?<=also yours on lab: )(?:\S+ \(sshd \(pid \d+\)\), )+", ""),  # who runs the tests has its sshds, too
    (r"^TIME +lab +(?:connecting|waiting)\b.*\n", ""),  # as often as it takes, or as was seen
    (r"^TIME +lab +\S+ -> \S+ is up\n", ""),  # where it isn't up already as it is told of
    (r"; \d+ connections? waited, \d+ of them let through", ""),
    (r"^(holdfast: nowhere is )\w+(: [^;,]+)(?:; (?:trying again|next try in \d+ s))?", r"\1\2"),
    (r"\b[0-9a-f]{48}\b", "TOKEN"),
    (r"(?<=Kernel started: )[0-9a-f-]{36}$", "KERNEL"),
    (r"/holdfast-\w{8}\b", "/holdfast-*"),
    (r"(?<=OpenSSH_)\S+(?: .*)? at \S+/ssh$", "VERSION at ssh"),
    (r"(?<![\d.])\d+\.\d+\.\d+(?![\d.])|(?<=OpenSSH_)[\w.]+", "VERSION"),
    (r'(?<=pid": )\d+|(?<=\(pid )\d+|(?<=kill -9 )\d+|(?<=VERSION) +\d+$', "PID"),
    (r"(?:(?<=localhost:)|(?<=127\.0\.0\.1:))[1-6]\d{4}\b", "PORT"),
    (r"\b[\d.]+ (?:ms|s)\b|\b\d+\.\d\dms$", "SECONDS"),
    (r'(?<="rtt_ms": )[\d.]+|(?<=seconds": )[\d.]+|(?<=_rtt_seconds\{tunnel="lab"\} )[\d.]+', "SECONDS"),
    (r"\b[\d.]+ [kM]?B/s", "RATE"),
    (r" +", " "),
)


class Step(NamedTuple):
    """A command, the lines that are shown of its output (none: they don't matter), and how it ends."""

    command: str
    shown: tuple[str, ...]
    code: int = 0


class Block(NamedTuple):
    """A terminal that a page shows, the heading above it, and the comment before it."""

    heading: str
    mark: str
    text: str

    @property
    def names(self) -> set[str]:
        """What it can be called: by its heading, or by any of its lines."""
        return {self.heading, *self.text.splitlines()}

    @property
    def is_run(self) -> bool:
        """A comment that says otherwise has to say why: `<!-- not run: WHY -->`."""
        return re.fullmatch(r"not run: \w.+", self.mark) is None

    @property
    def steps(self) -> list[Step]:
        """What it has its reader do; nothing where it isn't run.

        `<!-- ends with 4 -->` is of its last command, `<!-- end with 1, 0, 4 -->` of each.
        """
        if not self.is_run:
            return []
        found = re.fullmatch(r"ends? with (\d+(?:, \d+)*)", self.mark)
        assert found or not self.mark, f"<!-- {self.mark} -->"
        codes = [int(code) for code in found[1].split(", ")] if found else [0]
        commands = list(_commands(self.text))
        if len(codes) == 1:
            codes = [0] * (len(commands) - 1) + codes
        return [step._replace(code=code) for step, code in zip(commands, codes, strict=True)]


def blocks(page: str) -> Iterator[Block]:
    """The terminals of a page."""
    for found in re.finditer(
        r"(?:^<!-- ([^\n]+?) -->\n\n)?^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    ):
        above = re.sub(r"^```.*?^```$", "", page[: found.start()], flags=re.MULTILINE | re.DOTALL)
        heading = re.findall(r"^#+ (.+)$", above, re.MULTILINE)[-1:]
        yield Block(heading[0] if heading else "", found[1] or "", found[2])


def _commands(block: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield Step(command, tuple(shown))


def differs(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether a page's reader would be surprised. `...` stands for any lines, at the end of one for its rest."""

    def pattern(line: str) -> str:
        if line == "...":
            return r"(?:.*\n)*"
        rest = ".*" if line.endswith("...") else ""
        return f"{re.escape(line.removesuffix('...'))}{rest}\n"

    return re.fullmatch("".join(map(pattern, shown)), "".join(f"{line}\n" for line in printed)) is None


def shape(text: str) -> list[str]:
    """The lines of `text` without what differs from run to run."""
    for pattern, stand_in in VARYING:
        text = re.sub(pattern, stand_in, text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.splitlines()]


def as_shown(printed: str, names: Mapping[str, str]) -> str:
    """What was printed, with the names that the pages have instead of the real ones."""
    for real, shown in names.items():
        printed = printed.replace(real, shown)
    return printed


def is_surprising(step: Step, printed: str) -> bool:
    """Whether a command has printed other things than its page shows, if that shows any."""
    return bool(step.shown) and differs(shape("\n".join(step.shown)), shape(printed))


def compare(step: Step, printed: str, code: int) -> None:
    """Fails the test when a command ended, or printed, otherwise than its page says."""
    assert code == step.code, f"$ {step.command}\n{printed}"
    if is_surprising(step, printed):
        shown = "\n".join(step.shown)
        raise AssertionError(f"$ {step.command}\nshown:\n{shown}\nprinted:\n{printed}")


def last_frame(output: str) -> str:
    """What a terminal shows in the end of `output`, which may be drawn again and again in its place."""
    *_, frame = re.split(r"\x1b\[\d+A\r", output)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", frame)


def nothing(_: Reader) -> None:
    """What happens where nothing has to."""


class Scene(NamedTuple):
    """What a page takes for granted: what is done `before` a block, and `meanwhile`.

    Where there is a `meanwhile`, the block's last command goes on until Ctrl-C.
    """

    before: Callable[[Reader], object] = nothing
    meanwhile: Callable[[Reader], object] | None = None


class Reader:
    """Somebody who does what a page says, with a home that is theirs on every machine.

    What `running` has entered ends with the reader.
    """

    def __init__(self, network: Network, home: Path, running: contextlib.ExitStack) -> None:
        self.network = network
        self.home = home
        self.running = running
        self.variables: dict[str, str] = {}
        self._folder = home
        self._services: dict[int, contextlib.ExitStack] = {}
        self._names = {
            str(home / "run" / "kernels"): "/run/user/1000/holdfast/kernels",
            str(home): "/home/ann",
            str(NEWEST): "/home/ann/work/.venv",
            f"{getpass.getuser()}@{network.SERVER}": "ann@hpc.example.org",
        }

    def read(self, page: str, scenes: Mapping[str, Scene]) -> None:
        """Does what the page says, from its first block to its last; `scenes` are by the blocks' names."""
        for block in blocks(page):
            (scene,) = [scenes[name] for name in block.names if name in scenes] or [Scene()]
            scene.before(self)
            steps = block.steps
            lasting = steps.pop() if scene.meanwhile else None
            for step in steps:
                self.do(step)
            if scene.meanwhile and lasting:
                self.watch(lasting, scene.meanwhile)

    def do(self, step: Step) -> None:
        """Runs the command, and compares. A page that shows a file with `cat` has had its reader write it."""
        if (file := re.fullmatch(r"cat (?:(~/)|)([\w./-]+)", step.command)) and not file[2].startswith("/"):
            path = (self.home if file[1] else self._folder) / file[2]
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join([*step.shown, ""]))
        done = self.network.run("bash", "-c", self._script(step), timeout=PATIENCE, **self.variables)
        self._folder = Path((self.home / ".folder").read_text().strip())
        self._compare(step, done.stdout, done.returncode)

    def watch(self, step: Step, meanwhile: Callable[[Reader], object]) -> None:
        """Runs a command in a terminal until that shows what the page does; then comes Ctrl-C."""
        argv = [*self.network.client.prefix, "bash", "-c", f"exec {step.command}"]
        running = pexpect.spawn(
            argv[0],
            argv[1:],
            env={**self.network.environment, "NO_COLOR": "1", "TERM": "xterm", **self.variables},
            cwd=str(self._folder),
            dimensions=(40, 120),
            encoding="utf-8",
            timeout=PATIENCE,
        )
        said = io.StringIO()

        def has_begun() -> bool:
            with contextlib.suppress(pexpect.TIMEOUT, pexpect.EOF):
                said.write(running.read_nonblocking(65536, 0.1))
            return bool(said.getvalue() or not step.shown)

        def shows_it() -> bool:
            return has_begun() and not self._differs(step, last_frame(said.getvalue()))

        try:
            wait_for(has_begun, "a first word", PATIENCE / 2)
            meanwhile(self)
            with contextlib.suppress(AssertionError):
                wait_for(shows_it, "what is shown", PATIENCE / 2)
            running.sendintr()
            running.expect(pexpect.EOF)
        finally:
            running.close(force=True)
        self._compare(step, last_frame(said.getvalue()), step.code)
        assert running.exitstatus in (0, 130)

    def say(self, command: str) -> str:
        """Runs what the page doesn't show, and what must work; its output."""
        done = self.network.run("bash", "-c", f"cd; exec 2>&1; {command}", timeout=PATIENCE, **self.variables)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        return done.stdout

    def write(self, path: str, text: str, *, mode: int = 0o644) -> Path:
        """Writes a file in the reader's home."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def serve(self, port: int) -> None:
        """A web service listens there on the loopback of `lab`."""
        service = self.running.enter_context(contextlib.ExitStack())
        service.enter_context(_service(self.network.server, port))
        self._services[port] = service

    def stop_serving(self, port: int) -> None:
        """Nothing listens there any more."""
        self._services.pop(port).close()

    def lose(self, tunnel: str) -> None:
        """The connection to `lab` is lost; returns once the tunnel, which goes over it, has another one."""
        before = self._drops(tunnel)
        self.network.kill_sessions()
        wait_for(lambda: self._drops(tunnel) > before, "the loss to be noticed", PATIENCE)
        self.say(f"holdfast wait {tunnel} --timeout {PATIENCE}")

    def _drops(self, tunnel: str) -> int:
        return int(status_of(self.network.holdfast("status", tunnel, "--json"))["drops"])

    def is_shown_as(self, real: str, name: str) -> None:
        """What is printed of `real` is `name` on the pages."""
        self._names[real] = name

    def be_new(self) -> None:
        """Has the reader be where everybody begins: no tunnel, none remembered, no configuration."""
        self.network.holdfast("down", "--all")
        self.network.holdfast("keeper", "stop")
        for folder in ("state", ".config/holdfast"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
        say_nothing_of_others(self.home, *HOSTS)
        self._folder = self.home

    def _script(self, step: Step) -> str:
        """What bash is told, so that the next command begins in the folder where this one ends."""
        told = shlex.quote(str(self.home / ".folder"))
        return f"cd {shlex.quote(str(self._folder))}; trap 'pwd > {told}' EXIT; exec 2>&1; {step.command}"

    def _differs(self, step: Step, printed: str) -> bool:
        return is_surprising(step, as_shown(printed, self._names))

    def _compare(self, step: Step, printed: str, code: int) -> None:
        compare(step, as_shown(printed, self._names), code)


@pytest.fixture
def reader(home: Path, keys: Path, environment: Mapping[str, str]) -> Iterator[Reader]:
    if reason := why_not():
        pytest.skip(reason)
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    own = {"HOME": str(home), "PATH": f"{home}/bin:{environment['PATH']}"}
    network = Network(home, keys, {**environment, **own}, jump=True)
    with contextlib.ExitStack() as running:
        running.enter_context(_knows_db(network.server))
        running.enter_context(network)
        running.enter_context(all_ended(home))
        _furnish(home, _ssh_config(network, _host_with_codes(running, network, home, keys)))
        made = Reader(network, home, running.enter_context(contextlib.ExitStack()))
        for port in SERVICES:
            made.serve(port)
        yield made
        network.holdfast("down", "--all")
        network.holdfast("keeper", "stop")


@contextlib.contextmanager
def _knows_db(host: Namespace) -> Iterator[None]:
    """On that host the name `db` is known."""
    with etc_of(host) as own:
        (own / "hosts").write_text("127.0.0.1 localhost db\n")
        yield


@contextlib.contextmanager
def etc_of(host: Namespace) -> Iterator[Path]:
    """A directory; what is in it stands in for what has that name in /etc, for all that is started there later."""
    own = Path("/etc/netns") / host.name
    own.mkdir(parents=True)
    try:
        yield own
    finally:
        shutil.rmtree(own)
        with contextlib.suppress(OSError):
            own.parent.rmdir()  # others use it, too


@contextlib.contextmanager
def _service(host: Namespace, port: int) -> Iterator[None]:
    """A web service at that port of the host's loopback."""
    server = host.call(lambda: Web(port))
    thread = threading.Thread(target=server.serve_forever, args=[0.05])
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _host_with_codes(running: contextlib.ExitStack, network: Network, home: Path, keys: Path) -> Sshd:
    """An sshd beside that of `lab` that wants a code after the key, and takes none."""
    own = home / "hpc"
    own.mkdir()
    methods = "AuthenticationMethods publickey,keyboard-interactive"
    hpc = Sshd(own, keys, methods, address=network.SERVER, prefix=network.server.prefix, alias="hpc")
    running.callback(hpc.stop)
    return hpc.start()


def _ssh_config(network: Network, hpc: Sshd) -> str:
    bastion, lab = network.jump, network.sshd
    assert bastion is not None
    bastion.alias = "bastion"
    blocks = []
    for server, alias, lines in (
        (lab, "lab", ()),
        (lab, "gpu", ("ProxyJump bastion",)),
        (bastion, "bastion", ()),
        (hpc, "hpc", ()),
    ):
        server.alias = alias
        server.configure(*lines)
        blocks.append(server.config.read_text())
    return "".join(blocks)


def _furnish(home: Path, ssh_config: str) -> None:
    """Gives the user's home what users have: ssh that knows the hosts, holdfast, and over there a Jupyter."""
    say_nothing_of_others(home, *HOSTS)
    (home / "work").mkdir()
    (home / ".profile").write_text(f"PATH={NEWEST}/bin:$PATH\n")
    (home / "config").write_text(ssh_config)
    programs = home / "bin"
    programs.mkdir()
    for name, runs in (
        ("ssh", f"{shutil.which('ssh')} -F {home}/config"),
        ("holdfast", f"{sys.executable} -m holdfast"),
    ):
        (programs / name).write_text(f'#!/bin/sh\nexec {runs} "$@"\n')
        (programs / name).chmod(0o755)
