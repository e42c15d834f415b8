"""Talks to a master over its control socket, for an asyncio program.

Two rules keep one request from hurting every tunnel: a connection object for each session or stdio forward
(while one is being opened the master doesn't read that connection), and a deadline on every answer (a master
that is stopped or out of descriptors lets clients connect and never says hello).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from holdfast.errors import MasterError
from holdfast.forward import Address, Forward
from holdfast.openssh import mux
from holdfast.peer import peer_uid

# Seconds that a master on this machine may take to answer what needs no round trip to the far side.
LOCAL_ANSWER = 3.0
# The most that is read from a master's socket at once.
_CHUNK = 64 * 1024


class ForwardRefused(MasterError):
    """The master answered that it can't open or close a forward; the reason is in its log only."""


class ControlSocket(asyncio.Protocol):
    """One greeted connection to a master. `closed` is set when the master has hung up or died.

    Kept open, it is the death watch: the end of file comes the moment the master dies.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._client = mux.Client()
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, asyncio.Future[mux.Reply]] = {}
        self._trouble = "the master hung up"
        self.closed = asyncio.Event()
        # Called at that very moment.
        self.when_closed: Callable[[], None] | None = None
        # The greeting waits under number 0: requests count from 1.
        self._answers[0] = asyncio.get_running_loop().create_future()

    @classmethod
    async def connect(cls, path: Path) -> Self:
        """Connects to the master at `path` and exchanges greetings.

        Raises FileNotFoundError where nothing is, ConnectionRefusedError on a stale socket, MasterError when
        the socket is another user's, or its master doesn't answer in time.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(LOCAL_ANSWER):
                await loop.sock_connect(connection, str(path))
                owner = peer_uid(connection)
                if owner != os.getuid():
                    raise MasterError(f"the control socket {path} belongs to the user with uid {owner}")
                _, control = await loop.create_unix_connection(lambda: cls(connection), sock=connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError):
                raise MasterError(f"the master at {path} doesn't answer") from None
            raise
        try:
            control._send(control._client.hello())
            await control._answer(0, LOCAL_ANSWER)
        except BaseException:
            control.close()
            raise
        return control

    @property
    def connection(self) -> socket.socket:
        """The connection itself, for another process to hold open. It must not be read, written or shut down."""
        return self._socket

    def close(self) -> None:
        """Hangs up. What this connection opened as a session or stdio forward ends with it."""
        if self._transport is not None:
            self._transport.abort()

    async def alive(self) -> int:
        """The master's pid, as it says itself."""
        reply = await self._ask(self._client.alive_check(), LOCAL_ANSWER)
        if not isinstance(reply, mux.Alive):
            raise mux.ProtocolError(f"the master answered an alive check with {reply}")
        return reply.pid

    async def terminate(self) -> None:
        """Asks the master to end, and waits until it has hung up."""
        if self.closed.is_set():
            return
        self._send(self._client.terminate().packet)
        async with asyncio.timeout(LOCAL_ANSWER):
            await self.closed.wait()

    async def open_forward(
        self, forward: Forward, listen: Address, timeout: float, meanwhile: Callable[[], object] | None = None
    ) -> int | None:
        """Opens `forward` on `listen`; the port that the server chose, for a remote one asked with port 0.

        `timeout` is in seconds; remote forwards take a round trip. `meanwhile` is called when the request has
        gone out, before the master can have done it. Raises ForwardRefused, MasterError.
        """
        reply = await self._ask(self._client.open_forward(forward, listen), timeout, meanwhile)
        match reply:
            case mux.Ok():
                return None
            case mux.RemotePort(port=port):
                return port
            case mux.Refused(reason=reason):
                raise ForwardRefused(reason)
        raise mux.ProtocolError(f"the master answered a forward with {reply}")

    async def close_forward(
        self, forward: Forward, listen: Address, timeout: float, meanwhile: Callable[[], object] | None = None
    ) -> None:
        """Closes what `open_forward` opened, given the same values. Its connections stay."""
        reply = await self._ask(self._client.close_forward(forward, listen), timeout, meanwhile)
        if isinstance(reply, mux.Refused):
            raise ForwardRefused(reply.reason)

    async def start_session(self, command: str, descriptors: Sequence[int], timeout: float) -> None:
        """Runs `command` over there with `descriptors` as its stdin, stdout and stderr.

        Returns once the far side has accepted the session, which from then on is this connection's.
        Raises ForwardRefused when the server allows no session.
        """
        await self._open(self._client.new_session(command), descriptors, timeout)

    async def start_stdio_forward(self, target: Address, descriptors: Sequence[int], timeout: float) -> None:
        """Connects `descriptors` (in, out) to `target` over there.

        Raises ForwardRefused when the far side refuses, which proves that it answered.
        """
        await self._open(self._client.stdio_forward(target), descriptors, timeout)

    async def _open(self, request: mux.Request, descriptors: Sequence[int], timeout: float) -> None:
        if len(descriptors) != request.descriptors:
            raise ValueError(f"{request.descriptors} descriptors are needed, not {len(descriptors)}")
        self._send_at_once(request.packet, descriptors)
        self._expect(request)
        reply = await self._answer(request.number, timeout)
        if isinstance(reply, mux.Refused):
            raise ForwardRefused(reply.reason)

    def _send_at_once(self, packet: bytes, descriptors: Sequence[int]) -> None:
        """Packet and descriptors back to back, blocking: until it has them all the master does nothing else.

        A few hundred bytes into an empty socket buffer; the time-out is for a master that was stopped.
        """
        if self.closed.is_set():
            raise MasterError(self._trouble)
        self._socket.settimeout(1.0)
        try:
            self._socket.sendall(packet)
            for descriptor in descriptors:
                socket.send_fds(self._socket, [b"\0"], [descriptor])
        except OSError as error:
            raise MasterError(f"the master doesn't take requests: {error}") from None
        finally:
            self._socket.setblocking(False)

    async def _ask(
        self, request: mux.Request, timeout: float, meanwhile: Callable[[], object] | None = None
    ) -> mux.Reply:
        self._send(request.packet)
        if meanwhile is not None:
            meanwhile()
        self._expect(request)
        return await self._answer(request.number, timeout)

    def _send(self, packet: bytes) -> None:
        if self._transport is None or self.closed.is_set():
            raise MasterError(self._trouble)
        self._transport.write(packet)

    def _expect(self, request: mux.Request) -> None:
        self._answers[request.number] = asyncio.get_running_loop().create_future()

    async def _answer(self, number: int, timeout: float) -> mux.Reply:
        try:
            async with asyncio.timeout(timeout):
                return await self._answers[number]
        except TimeoutError:
            raise MasterError(f"the master gave no answer within {timeout:g} s") from None
        finally:
            del self._answers[number]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for reply in self._client.receive_data(data):
                self._deliver(reply)
        except mux.ProtocolError as error:
            self._trouble = error.message
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._trouble = f"the master hung up: {exc}"
        self.closed.set()
        if self.when_closed is not None:
            self.when_closed()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(MasterError(self._trouble))

    def _deliver(self, reply: mux.Reply) -> None:
        match reply:
            case mux.SessionExited() | mux.TtyRefused():
                return  # the end of file on the session's descriptors tells the same
            case mux.Hello():
                number = 0
            case _:
                number = reply.request
        answer = self._answers.get(number)
        if answer is not None and not answer.done():
            answer.set_result(reply)
