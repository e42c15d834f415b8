"""A forward follows its notebook server: over a real link, to a service that announces itself as Jupyter does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from holdfast.forward import Address
from holdfast.jupyter.servers import Notebook
from holdfast.keeper import notebooks
from holdfast.keeper.forwarding import OpenForward
from holdfast.keeper.notebooks import Follower
from holdfast.keeper.states import ForwardState, LinkState
from tests.conftest import Web, get, is_open, serving
from tests.lone_link import LoneLink, until
from tests.sshd import Sshd, free_port

DIRECTORY = "/home/ann/work"


@pytest.fixture(autouse=True)
def own_directories(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_RUNTIME_DIR", str(home / "run"))
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(home / "state"))


@pytest.fixture
def announce(home: Path) -> Callable[[int], None]:
    """Has the user's only notebook server over there be at this port, in this very process; at none for 0."""
    runtime = home / ".local/share/jupyter/runtime"
    runtime.mkdir(parents=True)
    file = runtime / f"jpserver-{os.getpid()}.json"

    def announce(port: int) -> None:
        record = {"base_url": "/", "hostname": "localhost", "port": port, "root_dir": DIRECTORY, "token": "t"}
        if port:
            file.write_text(json.dumps(record))
        else:
            file.unlink()

    return announce


@pytest.fixture
def other() -> Iterator[Web]:
    """Another service."""
    with serving() as server:
        yield server


class Followed:
    """A lone link whose only forward leads to a notebook server, and what follows that."""

    def __init__(self, lone: LoneLink) -> None:
        self.lone = lone
        self.told: list[str] = []
        self.own.notebook = Notebook(os.getpid(), DIRECTORY, "/", False, "2.21.1")
        self.follower = Follower(
            lambda: [lone.link],
            self._decide,
            lambda _, text: self.told.append(text),
        )

    @staticmethod
    def _decide(decide: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_soon(decide)

    @property
    def own(self) -> OpenForward:
        return self.lone.link.forwards[0]

    async def look(self) -> None:
        task = self.follower.look(self.lone.link)
        assert task is not None
        await asyncio.wait([task])

    async def serve(self) -> None:
        """As the keeper does when a master has been proven."""
        await self.lone.serve(None)
        self.lone.link.state = LinkState.UP


@contextlib.asynccontextmanager
async def followed(sshd: Sshd, port: int, target: int) -> AsyncIterator[Followed]:
    async with LoneLink(sshd.config, f"127.0.0.1:{port}:127.0.0.1:{target}") as lone:
        made = Followed(lone)
        following = asyncio.create_task(made.follower.run())
        try:
            await made.serve()
            yield made
        finally:
            following.cancel()
            await asyncio.wait([following])


async def answer(port: int) -> bytes:
    return await asyncio.to_thread(get, port)


@pytest.mark.parametrize(("gone_for", "seconds"), [(0, 2), (19, 2), (60, 6), (150, 15), (10_000, 15)])
def test_the_longer_a_server_is_gone_the_rarer_it_is_looked_for(gone_for: float, seconds: float) -> None:
    assert notebooks.pause(gone_for) == seconds


def test_the_same_port_leads_to_the_server_where_it_has_moved_to(
    sshd: Sshd, web: Web, other: Web, announce: Callable[[int], None]
) -> None:
    port = free_port()

    async def run() -> None:
        async with followed(sshd, port, web.port) as made:
            announce(other.port)
            await made.look()
            moved = Address("127.0.0.1", other.port)
            await until(lambda: made.own.forward.target == moved and made.own.is_open, "the port to be open again")
            assert await answer(port) == b"hello"
            assert made.told == [f"the notebook server in {DIRECTORY} is at 127.0.0.1:{other.port} now"]

    asyncio.run(run())


def test_a_look_that_finds_the_server_where_it_was_changes_nothing(
    sshd: Sshd, web: Web, announce: Callable[[int], None]
) -> None:
    port = free_port()

    async def run() -> None:
        async with followed(sshd, port, web.port) as made:
            announce(web.port)
            master = made.own.master
            await made.look()
            assert (made.told, made.own.withheld, made.own.master) == ([], None, master)
            assert await answer(port) == b"hello"

    asyncio.run(run())


def test_who_calls_a_server_that_is_gone_waits_until_it_is_back_and_nobody_has_to_ask(
    sshd: Sshd, web: Web, other: Web, announce: Callable[[int], None]
) -> None:
    port, dead = free_port(), free_port()

    async def run() -> None:
        async with followed(sshd, port, dead) as made:
            # The first connection is refused over there, which is how it is noticed.
            with pytest.raises(OSError):  # noqa: PT011 - reset or empty, as it comes
                await answer(port)
            await until(lambda: DIRECTORY in made.own.reason and made.lone.is_held, "the port to be held")
            assert made.own.state is ForwardState.NO_SERVICE
            asked = asyncio.create_task(answer(port))
            await until(lambda: made.lone.guard.waiting, "the client to be held")
            announce(other.port)
            assert await asyncio.wait_for(asked, 10) == b"hello"

    asyncio.run(run())


def test_no_master_listens_for_a_tcp_port_until_it_is_known_whose_it_is(
    sshd: Sshd, web: Web, announce: Callable[[int], None]
) -> None:
    port = free_port()

    async def run() -> None:
        async with followed(sshd, port, web.port) as made:
            made.follower.withhold(made.lone.link)
            made.lone.ports.open_wanted()
            await until(lambda: made.lone.is_held, "the guard to listen")
            asked = asyncio.create_task(answer(port))
            await until(lambda: made.lone.guard.waiting, "the client to be held")
            assert not asked.done()
            announce(web.port)
            await made.look()
            assert await asyncio.wait_for(asked, 10) == b"hello"

    asyncio.run(run())


def test_where_no_program_can_be_run_the_port_leads_to_where_it_led(sshd: Sshd, web: Web) -> None:
    port = free_port()
    sshd.stop()
    sshd.start("MaxSessions 0")

    async def run() -> None:
        async with followed(sshd, port, web.port) as made:
            made.follower.withhold(made.lone.link)
            await made.look()
            await until(lambda: made.lone.is_served, "the master to listen")
            assert await answer(port) == b"hello"

    asyncio.run(run())


def test_a_notebook_on_a_unix_socket_is_not_kept_waiting(
    sshd: Sshd, web: Web, announce: Callable[[int], None]
) -> None:
    async def run() -> None:
        async with followed(sshd, free_port(), web.port) as made:
            before = made.own.forward
            made.own.forward = before._replace(target=Address(path="/tmp/holdfast-x/s"))
            made.follower.withhold(made.lone.link)
            made.own.forward = before
            assert made.own.withheld is None

    asyncio.run(run())


def test_a_server_that_went_while_nobody_called_costs_nothing_and_its_port_is_let_go_with_the_tunnel(
    sshd: Sshd, announce: Callable[[int], None]
) -> None:
    port = free_port()

    async def run() -> None:
        async with followed(sshd, port, free_port()) as made:
            await made.look()
            await until(lambda: made.lone.is_held, "the guard to listen")
            assert is_open(port)
        assert not is_open(port)

    asyncio.run(run())


def test_while_it_cannot_be_found_out_whose_a_port_is_nobody_is_let_through(
    sshd: Sshd, web: Web, home: Path, announce: Callable[[int], None]
) -> None:
    port = free_port()
    announce(web.port)
    # More than is listened to: their processes don't live, but they are the user's own.
    noise = [home / f".local/share/jupyter/runtime/jpserver-{4_100_000 + number}.json" for number in range(300)]
    for file in noise:
        file.write_text("x" * 16_000)

    async def run() -> None:
        async with followed(sshd, port, web.port) as made:
            made.follower.withhold(made.lone.link)
            await made.look()
            await until(lambda: "could not be found out" in made.own.reason, "the failure to be told")
            asked = asyncio.create_task(answer(port))
            await until(lambda: made.lone.guard.waiting, "the client to be held")
            for file in noise:
                file.unlink()
            assert await asyncio.wait_for(asked, 20) == b"hello"

    asyncio.run(run())
