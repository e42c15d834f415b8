"""What becomes of connections that wait for a master: real ones, and a real sshd where a master is needed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from holdfast.forward import Address, Kind, parse
from holdfast.keeper.guard import BACKLOG, Guard, Hold, Lobby, Tally
from tests.lone_link import LoneLink, until
from tests.sshd import Sshd, free_port


@pytest.fixture(autouse=True)
def own_directories(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_RUNTIME_DIR", str(home / "run"))
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(home / "state"))


class Service:
    """Reads until the end of each connection, then answers with what it read, and closes."""

    def __init__(self, listener: socket.socket) -> None:
        self.seen: list[bytes] = []
        self.listener = listener
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            if not self._threads:
                connection.close()
                return
            answering = threading.Thread(target=self._answer, args=(connection,))
            self._threads.append(answering)
            answering.start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            data = b""
            while piece := connection.recv(65536):
                data += piece
            self.seen.append(data)
            connection.sendall(b"got " + data)

    def stop(self) -> None:
        threads, self._threads = self._threads, []
        with socket.socket(self.listener.family) as last:
            last.connect(self.listener.getsockname())
        for thread in threads:
            thread.join(10)
        self.listener.close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service(socket.create_server(("127.0.0.1", 0), backlog=1024))
    yield made
    made.stop()


@pytest.fixture
def unix_service(home: Path) -> Iterator[Service]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(home / "target"))
    listener.listen(1024)
    made = Service(listener)
    yield made
    made.stop()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def ask(client: socket.socket, data: bytes) -> None:
    """Sends everything and ends the sending, as `nc -N` does."""
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)


async def read_all(client: socket.socket) -> bytes:
    def read() -> bytes:
        client.settimeout(20)
        data = b""
        while piece := client.recv(65536):
            data += piece
        return data

    return await asyncio.to_thread(read)


def test_what_a_client_sent_and_half_closed_while_waiting_goes_through_in_full(
    sshd: Sshd, service: Service
) -> None:
    port, data = free_port(), bytes(range(256)) * 1000

    async def run() -> bytes:
        async with LoneLink(sshd.config, f"127.0.0.1:{port}:127.0.0.1:{service.port}") as lone:
            with connect(port) as client:
                sending = asyncio.to_thread(ask, client, data)
                await until(lambda: lone.guard.waiting == 1, "the client to be held")
                _, answer, _ = await asyncio.gather(sending, read_all(client), lone.serve())
                return answer

    assert asyncio.run(run()) == b"got " + data


def test_five_hundred_are_let_through_at_once(sshd: Sshd, service: Service) -> None:
    port = free_port()

    async def run() -> Sequence[bytes]:
        async with LoneLink(sshd.config, f"127.0.0.1:{port}:127.0.0.1:{service.port}") as lone:
            with contextlib.ExitStack() as stack:
                clients = []
                for number in range(500):
                    clients.append(stack.enter_context(connect(port)))
                    clients[-1].sendall(b"%d" % number)
                    await asyncio.sleep(0)
                await until(lambda: lone.guard.waiting == 500, "all to be held")
                await lone.serve()
                for client in clients:
                    client.shutdown(socket.SHUT_WR)
                answers = [await read_all(client) for client in clients]
                assert lone.link.forwards[0].tally == Tally(held=500, let_through=500)
                return answers

    assert asyncio.run(run()) == [b"got %d" % number for number in range(500)]


def test_each_of_those_who_came_either_waits_or_has_been_let_through(sshd: Sshd, service: Service) -> None:
    port = free_port()

    async def run() -> None:
        async with LoneLink(sshd.config, f"127.0.0.1:{port}:127.0.0.1:{service.port}") as lone:
            with contextlib.ExitStack() as stack:
                for _ in range(20):
                    stack.enter_context(connect(port))
                await until(lambda: lone.guard.waiting == 20, "all to be held")
                serving = asyncio.create_task(lone.serve())
                tally = lone.link.forwards[0].tally
                while tally.let_through < 20:
                    assert lone.guard.waiting + tally.let_through >= 20
                    await asyncio.sleep(0)
                await serving
                await until(lambda: lone.guard.waiting == 0, "nobody to wait")

    asyncio.run(run())


def test_who_has_left_never_reaches_the_service(sshd: Sshd, service: Service) -> None:
    port = free_port()

    async def run() -> Tally:
        async with LoneLink(sshd.config, f"127.0.0.1:{port}:127.0.0.1:{service.port}") as lone:
            with connect(port) as gone, connect(port) as stays:
                gone.sendall(b"gone")
                ask(stays, b"stays")
                await until(lambda: lone.guard.waiting == 2, "both to be held")
                gone.close()
                await until(lambda: lone.guard.waiting == 1, "one to be dropped")
                await lone.serve()
                assert await read_all(stays) == b"got stays"
            return lone.link.forwards[0].tally

    assert asyncio.run(run()) == Tally(held=2, let_through=1, left=1)
    assert b"gone" not in b"".join(service.seen)  # the keeper's own probe says nothing


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_held_connection_to_a_unix_socket_over_there_is_joined_and_half_closed(
    sshd: Sshd, home: Path, unix_service: Service, kind: str
) -> None:
    port = free_port()
    end = f"{home}/here" if kind == "unix" else f"127.0.0.1:{port}"

    async def run() -> bytes:
        async with LoneLink(sshd.config, f"{end}:{home}/target") as lone:
            with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as client:
                client.connect(f"{home}/here" if kind == "unix" else ("127.0.0.1", port))
                ask(client, b"data")
                await until(lambda: lone.guard.waiting == 1, "the client to be held")
                await lone.serve()
                return await read_all(client)

    assert asyncio.run(run()) == b"got data"


def test_a_held_socks_connection_is_joined_and_half_closed(sshd: Sshd, service: Service) -> None:
    port = free_port()
    greeting = b"\5\1\0"
    request = b"\5\1\0\1\x7f\0\0\1" + service.port.to_bytes(2, "big")

    async def run() -> bytes:
        async with LoneLink(sshd.config, f"127.0.0.1:{port}", kind=Kind.DYNAMIC) as lone:
            with connect(port) as client:
                client.sendall(greeting)
                await until(lambda: lone.guard.waiting == 1, "the client to be held")
                await lone.serve()
                assert await asyncio.to_thread(client.recv, 2) == b"\5\0"
                client.sendall(request)
                assert (await asyncio.to_thread(client.recv, 10))[:2] == b"\5\0"
                ask(client, b"data")
                return await read_all(client)

    assert asyncio.run(run()) == b"got data"


@contextlib.asynccontextmanager
async def guarding(hold: Hold, tally: Tally) -> AsyncIterator[tuple[Guard, int]]:
    """A guard that holds the port, with no master to come."""
    port = free_port()
    lobby = Lobby()
    guard = Guard(parse(f"127.0.0.1:{port}:127.0.0.1:9"), hold, lobby, tally)
    assert guard.take(Address("127.0.0.1", port), from_master=False)
    try:
        yield guard, port
    finally:
        guard.close()
        await lobby.close()


def test_more_than_the_limit_wait_in_the_kernels_queue_and_come_in_when_there_is_room() -> None:
    async def run() -> None:
        tally = Tally()
        async with guarding(Hold(most=2), tally) as (guard, port):
            with contextlib.ExitStack() as stack:
                clients = [stack.enter_context(connect(port)) for _ in range(5)]
                await until(lambda: guard.waiting == 2, "the limit to be reached")
                clients[0].close()
                await until(lambda: tally.held == 3, "the next one")
                assert guard.waiting == 2

    assert BACKLOG > 3
    asyncio.run(run())


def test_a_connection_that_waited_its_time_is_hung_up_on() -> None:
    async def run() -> bytes:
        async with guarding(Hold(seconds=0.05), Tally()) as (guard, port):
            with connect(port) as client:
                await until(lambda: guard.waiting == 1, "the client to be held")
                return await read_all(client)

    assert asyncio.run(run()) == b""


def test_a_socket_of_another_program_is_never_replaced(home: Path) -> None:
    path = home / "sock"

    async def run() -> bool:
        lobby = Lobby()
        guard = Guard(parse(f"{path}:127.0.0.1:9"), Hold(), lobby, Tally())
        taken = guard.take(Address(path=str(path)), from_master=False)
        guard.close()
        await lobby.close()
        return taken

    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert not asyncio.run(run())
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            other.accept()[0].close()
    path.unlink()
    path.write_text("mine")
    assert not asyncio.run(run())
    assert path.read_text() == "mine"


def test_a_port_of_another_program_is_not_had_and_not_waited_for() -> None:
    async def run() -> bool:
        lobby = Lobby()
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            guard = Guard(parse(f"127.0.0.1:{port}:127.0.0.1:9"), Hold(), lobby, Tally())
            taken = guard.take(Address("127.0.0.1", port), from_master=False)
        await lobby.close()
        return taken

    assert not asyncio.run(run())


def test_a_navigation_is_shown_the_page_and_anything_else_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.keeper.guard.BROWSER_WAITS", 0.05)
    page = b"HTTP/1.1 503 Service Unavailable\r\n\r\nwait"

    async def run() -> None:
        port, lobby = free_port(), Lobby()
        guard = Guard(parse(f"127.0.0.1:{port}:127.0.0.1:9"), Hold(), lobby, Tally(), lambda: page)
        guard.take(Address("127.0.0.1", port), from_master=False)
        with connect(port) as browser, connect(port) as script:
            script.sendall(b"GET /api HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n")
            browser.sendall(
                b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html\r\nSec-Fetch-Dest: document\r\n\r\n"
            )
            assert await read_all(browser) == page
            assert guard.waiting == 1
            script.setblocking(False)
            with pytest.raises(BlockingIOError):
                script.recv(1)
        guard.close()
        await lobby.close()

    asyncio.run(run())
