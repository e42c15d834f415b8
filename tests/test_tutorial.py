"""The tutorial and the how-tos, done as they stand: each command is run, and prints what the page shows.

This machine, `lab` (`gpu`, `hpc`) and `bastion` are network namespaces with real sshds, so that every port is free
on each, and no command needs a change. A page is one session of one user, from its first block to its last.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import shutil
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Web, say_nothing_of_others
from tests.jupyters import NEWEST, all_ended
from tests.network import Namespace, Network, why_not
from tests.sshd import Sshd

DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"
PAGES = (
    "index.md",
    "tutorial.md",
    "database.md",
    "tensorboard.md",
    "jump-host.md",
    "one-time-codes.md",
    "coming-from.md",
)
# Blocks of the how-tos that show a moment which nobody has by doing them in order, by their page and their heading
# (or first line); and the tests that bring it about.
ELSEWHERE = {
    ("config.md", "The configuration file"): "its hosts are made up: test_choosing.py, test_cli_config.py",
    ("config.md", "Mistakes"): "the file with the mistakes isn't shown: test_config.py",
    ("config.md", "Changing it"): "an editor has the terminal: test_cli_config.py, test_apply.py",
    ("config.md", "A project's file"): "the file isn't shown: test_trust.py, test_choosing.py",
    ("service.md", "Start at login"): "it would change the systemd of who runs the tests: test_service.py",
    ("service.md", "What survives"): "the same: test_service.py",
    ("machines.md", "Waiting for a tunnel"): "test_waiting.py",
    ("machines.md", "What happens, as it happens"): "it goes on until Ctrl-C: test_events.py",
    ("machines.md", "A prompt"): "of tunnels that aren't shown: test_status.py",
    ("machines.md", "A screen that redraws itself"): "it goes on until Ctrl-C: test_watching.py",
    ("machines.md", "Prometheus"): "it goes on until Ctrl-C: test_metrics.py",
    ("notebooks.md", "Notebooks"): "of a server that runs already: test_jupyter.py",
    ("notebooks.md", "Several servers"): "the same: test_jupyter.py",
    ("notebooks.md", "Starting one"): "of environments that are made up: test_jupyter.py, test_launch.py",
    ("notebooks.md", "Safe on a shared host"): "of several accounts: test_shared_host.py, test_audit.py",
    (
        "notebooks.md",
        "When the server restarts, moves or goes",
    ): "in an outage: test_jupyter.py, test_notebooks.py",
    ("notebooks.md", "Stopping"): "of a busy kernel: test_jupyter.py",
    ("notebooks.md", "Editors and consoles"): "of a running kernel: test_kernels.py, test_jupyter.py",
    ("coming-from.md", "$ crontab -l | holdfast import autossh"): "of this machine's crontab: test_importing.py",
    ("coming-from.md", "boring"): "boring's file isn't shown: test_importing.py",
    ("coming-from.md", "ssh-channels-hub"): "its file isn't shown: test_importing.py",
    ("coming-from.md", "LocalForward lines"): "ssh looks for its file in the account's home: test_importing.py",
    ("coming-from.md", "ssh -fNT and ControlMaster"): "the start-up file isn't shown as one: test_importing.py",
}
# What listens on the loopback of `lab`, which is also `gpu`. On `bastion` nothing does.
SERVICES = (8888, 6006, 5432, 8787)
# Seconds that a command may take.
PATIENCE = 90

# What differs from run to run, and what stands for it. Ports are compared, but for those that were any free ones.
VARYING = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d", "TIME"),
    (r"; \d+ connections? waited, \d+ of them let through", ""),
    (r"\b[0-9a-f]{48}\b", "TOKEN"),
    (r"/holdfast-\w{8}\b", "/holdfast-*"),
    (r"(?<![\d.])\d+\.\d+\.\d+(?![\d.])|(?<=OpenSSH_)[\w.]+", "VERSION"),
    (r'(?<=master_pid": )\d+', "PID"),
    (r"(?<=localhost:)[1-6]\d{4}\b", "PORT"),
    (r"\b[\d.]+ (?:ms|s)\b", "SECONDS"),
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
        return {self.heading, self.text.splitlines()[0]}

    @property
    def is_run(self) -> bool:
        """A comment that says otherwise has to say why: `<!-- not run: WHY -->`."""
        return re.fullmatch(r"not run: \w.+", self.mark) is None

    @property
    def code(self) -> int:
        """How its last command ends: `<!-- ends with 4 -->`."""
        code = re.fullmatch(r"ends with (\d+)", self.mark)
        assert code or not self.mark, f"<!-- {self.mark} -->"
        return int(code[1]) if code else 0


def blocks(page: str) -> Iterator[Block]:
    """The terminals of a page."""
    for found in re.finditer(r"(?:^<!-- (.+?) -->\n\n)?^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        above = re.sub(r"^```.*?^```$", "", page[: found.start()], flags=re.MULTILINE | re.DOTALL)
        heading = re.findall(r"^#+ (.+)$", above, re.MULTILINE)[-1:]
        yield Block(heading[0] if heading else "", found[1] or "", found[2])


def steps(page: str, elsewhere: Collection[str] = ()) -> Iterator[Step]:
    """What a page has its reader do, but for the blocks that `elsewhere` names."""
    for block in blocks(page):
        if block.is_run and block.names.isdisjoint(elsewhere):
            *first, last = _commands(block.text)
            yield from first
            yield last._replace(code=block.code)


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
        text = re.sub(pattern, stand_in, text)
    return [line.rstrip() for line in text.splitlines()]


class Reader:
    """Somebody who does what a page says, with a home that is theirs on every machine."""

    def __init__(self, network: Network, home: Path) -> None:
        self.network = network
        self.home = home
        self._names = {
            str(home): "/home/ann",
            str(NEWEST): "/home/ann/work/.venv",
            f"{getpass.getuser()}@{network.SERVER}": "ann@hpc.example.org",
        }

    def do(self, step: Step) -> None:
        """Runs the command, and compares. A page that shows a file with `cat` has had its reader write it."""
        if (file := re.fullmatch(r"cat ([\w.]+)", step.command)) and not (self.home / file[1]).exists():
            (self.home / file[1]).write_text("\n".join([*step.shown, ""]))
        done = self.network.run("bash", "-c", f"cd; exec 2>&1; {step.command}", timeout=PATIENCE)
        printed = done.stdout
        for real, shown in self._names.items():
            printed = printed.replace(real, shown)
        assert done.returncode == step.code, f"$ {step.command}\n{printed}"
        if step.shown:
            shown = "\n".join(step.shown)
            assert not differs(shape(shown), shape(printed)), (
                f"$ {step.command}\nshown:\n{shown}\nprinted:\n{printed}"
            )


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
        running.enter_context(_services(network.server))
        _furnish(home, _ssh_config(network, _host_with_codes(running, network, home, keys)))
        yield Reader(network, home)
        network.holdfast("down", "--all")
        network.holdfast("keeper", "stop")


@contextlib.contextmanager
def _knows_db(host: Namespace) -> Iterator[None]:
    """On that host the name `db` is known: `ip netns exec` puts what is in this directory into its /etc."""
    own = Path("/etc/netns") / host.name
    own.mkdir(parents=True)
    try:
        (own / "hosts").write_text("127.0.0.1 localhost db\n")
        yield
    finally:
        shutil.rmtree(own)
        with contextlib.suppress(OSError):
            own.parent.rmdir()  # others use it, too


@contextlib.contextmanager
def _services(host: Namespace) -> Iterator[None]:
    """A web service at each of SERVICES on that host's loopback."""
    servers = host.call(lambda: [Web(port) for port in SERVICES])
    threads = [threading.Thread(target=server.serve_forever, args=[0.05]) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for server, thread in zip(servers, threads, strict=True):
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
    say_nothing_of_others(home, "lab", "gpu", "bastion", "hpc")
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


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_has_its_reader_do_goes_as_it_shows(page: str, reader: Reader) -> None:
    elsewhere = {heading for name, heading in ELSEWHERE if name == page}
    for step in steps((DOCUMENTS / page).read_text(), elsewhere):
        reader.do(step)


def test_each_block_of_the_how_tos_is_run_here_or_elsewhere() -> None:
    how_tos = {*PAGES, *(name for name, _ in ELSEWHERE)}
    shown = [(name, block) for name in how_tos for block in blocks((DOCUMENTS / name).read_text())]
    for name, block in shown:
        told = {(name, one) for one in block.names} & set(ELSEWHERE)
        assert told or name in PAGES, (name, block)
    assert set(ELSEWHERE) <= {(name, one) for name, block in shown for one in block.names}, (
        "there is no such block"
    )
    for reason in ELSEWHERE.values():
        (*_, tests) = reason.rpartition(": ")
        assert all((Path(__file__).parent / test).exists() for test in tests.split(", ")), reason


def test_no_how_to_is_left_out() -> None:
    (how_to,) = re.findall(r"  - How to:\n((?:      - .+\n)+)", (DOCUMENTS.parent / "mkdocs.yml").read_text())
    with_blocks = {
        name for name in re.findall(r": (\S+\.md)", how_to) if list(blocks((DOCUMENTS / name).read_text()))
    }
    assert with_blocks <= {*PAGES, *(name for name, _ in ELSEWHERE)}


def test_what_is_not_run_says_why_and_nothing_else_is_left_out() -> None:
    left_out = "<!-- not run: because -->\n\n```console\n$ no\n```\n"
    page = f"{left_out}\n<!-- ends with 3 -->\n\n```console\n$ a\nb\nc\n$ d\n```\n"
    assert list(steps(page)) == [Step("a", ("b", "c")), Step("d", (), 3)]
    with pytest.raises(AssertionError):
        list(steps(page.replace("not run: because", "not run:")))


@pytest.mark.parametrize(
    ("shown", "printed", "is_surprising"),
    [
        ("lab  up  1 s", "lab up 22.5 s", False),
        ("lab  up", "lab down", True),
        ("http://localhost:8888", "http://localhost:8889", True),
        ("http://localhost:38215", "http://localhost:10003", False),
        ("one", "one\ntwo", True),
        ("one\ntwo", "one", True),
        ("ok ...", "ok this", False),
        ("ok ...", "ok this\nok that", True),
        ("ok ...", "wrong this", True),
        ("one\n...\nfour", "one\ntwo\nthree\nfour", False),
        ("...\nfour", "one\nfive", True),
    ],
)
def test_another_output_than_the_one_shown_is_noticed(shown: str, printed: str, is_surprising: bool) -> None:
    assert differs(shape(shown), shape(printed)) is is_surprising
