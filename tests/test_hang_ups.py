"""Telling a client that has left from one that has only ended its sending, on every kind of connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.keeper.hang_ups import HangUps, client_is_gone, owned_connections
from tests.lone_link import until
from tests.sshd import wait_for

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["127.0.0.1", "::1", "unix"])
def pair(request: pytest.FixtureRequest, home: Path) -> Iterator[Pair]:
    """A client's end of a connection, and the end that was accepted."""
    with contextlib.ExitStack() as stack:
        if request.param == "unix":
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(home / "sock"))
        else:
            family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
            listener = stack.enter_context(socket.socket(family))
            listener.bind((request.param, 0))
        listener.listen()
        client = stack.enter_context(socket.socket(listener.family))
        client.connect(listener.getsockname())
        accepted = stack.enter_context(listener.accept()[0])
        yield client, accepted


def close(client: socket.socket) -> None:
    client.close()


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@pytest.mark.parametrize("leave", [close, reset])
def test_a_client_that_closes_is_gone(pair: Pair, leave: Callable[[socket.socket], None]) -> None:
    client, accepted = pair
    client.sendall(b"unread")
    leave(client)
    wait_for(lambda: client_is_gone(accepted, owned_connections()), "the end to be seen")


def test_a_client_that_ends_its_sending_is_there_until_it_closes(pair: Pair) -> None:
    client, accepted = pair
    half_close(client)
    assert not client_is_gone(accepted, owned_connections())
    accepted.sendall(b"answer")
    assert client.recv(6) == b"answer"
    client.close()
    wait_for(lambda: client_is_gone(accepted, owned_connections()), "the end to be seen")


@pytest.mark.parametrize("end", [close, half_close, reset])
def test_the_end_of_sending_calls_back_once_whatever_was_sent_before(
    pair: Pair, end: Callable[[socket.socket], None]
) -> None:
    client, accepted = pair

    async def watch() -> list[str]:
        calls: list[str] = []
        hang_ups = HangUps()
        hang_ups.watch(accepted, lambda: calls.append("ended"))
        client.sendall(b"data")
        await asyncio.sleep(0)
        assert calls == []
        end(client)
        await until(lambda: calls, "the call")
        for _ in range(20):  # a level-triggered watch would call each time round
            await asyncio.sleep(0)
        hang_ups.forget(accepted)
        hang_ups.close()
        return calls

    assert asyncio.run(watch()) == ["ended"]


def test_what_is_forgotten_calls_nobody_and_may_be_forgotten_twice(pair: Pair) -> None:
    client, accepted = pair

    async def watch() -> list[str]:
        calls: list[str] = []
        hang_ups = HangUps()
        hang_ups.watch(accepted, lambda: calls.append("ended"))
        hang_ups.forget(accepted)
        hang_ups.forget(accepted)
        client.close()
        for _ in range(20):
            await asyncio.sleep(0)
        hang_ups.close()
        return calls

    assert asyncio.run(watch()) == []


def test_what_was_sent_before_the_end_is_still_there_to_be_read(pair: Pair) -> None:
    client, accepted = pair
    client.sendall(b"data")
    half_close(client)
    assert not client_is_gone(accepted, owned_connections())
    assert accepted.recv(100) == b"data"
