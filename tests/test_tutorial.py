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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Web, say_nothing_of_others
from tests.jupyters import NEWEST, all_ended
from tests.network import Namespace, Network, why_not
from tests.sshd import Sshd

DOCUMENTS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ("index.md", "tutorial.md", "database.md", "tensorboard.md", "jump-host.md", "one-time-codes.md")
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
    (r"(?<![\d.])\d+\.\d+\.\d+(?![\d.])", "VERSION"),
    (r'(?<="master_pid": )\d+', "PID"),
    (r"(?<=localhost:)[1-6]\d{4}\b", "PORT"),
    (r"\b[\d.]+ (?:ms|s)\b", "SECONDS"),
    (r" +", " "),
)


class Step(NamedTuple):
    """A command, the lines that are shown of its output (none: they don't matter), and how it ends."""

    command: str
    shown: tuple[str, ...]
    code: int = 0


def steps(text: str) -> Iterator[Step]:
    """What a page has its reader do, without the blocks that say `not run`.

    A comment stands before its block: `<!-- not run: WHY -->`, or `<!-- ends with 4 -->` for its last command.
    """
    for block in re.finditer(r"(?:^<!-- (.+?) -->\n\n)?^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        mark, found = block[1] or "", list(_commands(block[2]))
        if re.fullmatch(r"not run: \w.+", mark):
            continue
        code = re.fullmatch(r"ends with (\d+)", mark)
        assert code or not mark, f"<!-- {mark} -->"
        yield from found[:-1]
        yield found[-1]._replace(code=int(code[1]) if code else 0)


def _commands(block: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield Step(command, tuple(shown))


def differs(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether a page's reader would be surprised. A line that ends in `...` may go on, the last one for long."""
    if shown and shown[-1].endswith("..."):
        printed = printed[: len(shown)]
    pairs = list(zip(shown, printed, strict=False))
    return len(shown) != len(printed) or not all(
        printed.startswith(shown.removesuffix("...")) if shown.endswith("...") else shown == printed
        for shown, printed in pairs
    )


def shape(text: str) -> list[str]:
    """The lines of `text` without what differs from run to run."""
    for pattern, stand_in in VARYING:
        text = re.sub(pattern, stand_in, text)
    return [line.rstrip() for line in text.splitlines()]


class Reader:
    """Somebody who does what a page says, with a home that is theirs on every machine."""

    def __init__(self, network: Network, home: Path) -> None:
        self.network = network
        self._names = {
            str(home): "/home/ann",
            str(NEWEST): "/home/ann/work/.venv",
            f"{getpass.getuser()}@{network.SERVER}": "ann@hpc.example.org",
        }

    def do(self, step: Step) -> None:
        done = self.network.run("bash", "-c", f"exec 2>&1; {step.command}", timeout=PATIENCE)
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
    for step in steps((DOCUMENTS / page).read_text()):
        reader.do(step)


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
        ("ok ...", "ok this\nok that", False),
        ("ok ...", "wrong this", True),
    ],
)
def test_another_output_than_the_one_shown_is_noticed(shown: str, printed: str, is_surprising: bool) -> None:
    assert differs(shape(shown), shape(printed)) is is_surprising
