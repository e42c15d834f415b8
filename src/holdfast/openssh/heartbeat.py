"""A heartbeat through the far side and back, over a master.

Usually a line through `cat` in a session that stays open. Opening it does two more things: sshd before 10.1
sets TCP_NODELAY on a connection only when a session starts (without one, small replies wait 40 ms for delayed
ACKs), and an open channel keeps a server's UnusedConnectionTimeout away.

Where no session is allowed, and until a slow login shell has started, a remote forward on a port of the server's
choice is asked for and taken back: one round trip, whether it is granted or refused, and sshd logs neither.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol, Self

from holdfast.errors import MasterError
from holdfast.forward import Address, Forward, Kind
from holdfast.openssh.control_socket import ControlSocket, ForwardRefused

# Understood by every login shell, fish and tcsh included; leaves by itself when its input ends.
_ECHO = "exec cat"
_LINE = b"holdfast %d"
# Seconds between heartbeats: by lines, and by forwards, each of which leaves some 260 bytes in the master.
PACE = 5.0
PACE_OF_FORWARDS = 30.0
# Seconds after which a session that has not answered is taken for a forced command.
SLOWEST_SHELL = 60.0
# Bytes of one line over there that are looked at; login files may print what they like.
_LONGEST_LINE = 4096
_PROBE = Forward(Kind.REMOTE, Address("127.0.0.1", 0), Address("127.0.0.1", 9))


class HeartbeatEnded(MasterError):
    """The session on the far side is over. The link may be as well as ever."""


class Heartbeat(Protocol):
    """One way of asking the far side for a sign of life."""

    fast_path: bool

    @property
    def pace(self) -> float:
        """Seconds from one beat to the next."""

    async def beat(self, timeout: float) -> float:
        """The round trip in seconds.

        Raises MasterError when none was made within `timeout` seconds, HeartbeatEnded when none ever will be.
        """

    def close(self) -> None: ...


class ForwardHeartbeat:
    """Remote forwards asked for and taken back, for accounts that may open no session or run one command."""

    def __init__(self, control: ControlSocket, *, fast_path: bool) -> None:
        self._control = control
        self.fast_path = fast_path

    @property
    def pace(self) -> float:
        return PACE_OF_FORWARDS

    async def beat(self, timeout: float) -> float:
        clock = asyncio.get_running_loop().time
        sent = clock()
        try:
            await self._control.open_forward(_PROBE, _PROBE.listen, timeout)
        except ForwardRefused:
            return clock() - sent
        round_trip = clock() - sent
        await self._control.close_forward(_PROBE, _PROBE.listen, timeout)
        return round_trip

    def close(self) -> None:
        """The control socket is the link's, and stays."""


class SessionHeartbeat:
    """Lines through a session; until the first has come back, `forwards`.

    What noisy login files print is passed over. A shell that never answers is slow, or a forced command; its
    session stays open all the same.
    """

    fast_path = True

    def __init__(self, control: ControlSocket, forwards: ForwardHeartbeat, write: int, echo: _Echo) -> None:
        self._control = control
        self._forwards = forwards
        self._write = write
        self._echo = echo
        self._sent = 0
        self._started = asyncio.get_running_loop().time()
        self._send()

    @classmethod
    async def start(cls, path: Path, forwards: ForwardHeartbeat, timeout: float) -> Self:
        """Opens the session, over the master at `path`, and sends a first line.

        Raises ForwardRefused where the server allows none, MasterError.
        """
        control = await ControlSocket.connect(path)
        far_stdin, write = os.pipe()
        read, far_stdout = os.pipe()
        os.set_blocking(write, False)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            await control.start_session(_ECHO, (far_stdin, far_stdout, nowhere), timeout)
        except BaseException:
            control.close()
            os.close(write)
            os.close(read)
            raise
        finally:
            for descriptor in (far_stdin, far_stdout, nowhere):
                os.close(descriptor)
        _, echo = await asyncio.get_running_loop().connect_read_pipe(_Echo, os.fdopen(read, "rb", buffering=0))
        return cls(control, forwards, write, echo)

    @property
    def pace(self) -> float:
        is_starting = asyncio.get_running_loop().time() < self._started + SLOWEST_SHELL
        return PACE if self._echo.last or is_starting else PACE_OF_FORWARDS

    async def beat(self, timeout: float) -> float:
        if not self._echo.last:
            return await self._forwards.beat(timeout)
        clock = asyncio.get_running_loop().time
        sent = clock()
        number = self._send()
        try:
            async with asyncio.timeout(timeout):
                while self._echo.last < number:
                    if self._echo.ended:
                        raise HeartbeatEnded("the session on the far side ended")
                    await self._echo.changed.wait()
                    self._echo.changed.clear()
        except TimeoutError:
            raise MasterError(f"no heartbeat came back within {timeout:g} s") from None
        return clock() - sent

    def close(self) -> None:
        self._echo.close()
        os.close(self._write)
        self._control.close()

    def _send(self) -> int:
        self._sent += 1
        try:
            os.write(self._write, _LINE % self._sent + b"\n")
        except BrokenPipeError:
            raise HeartbeatEnded("the session on the far side ended") from None
        except BlockingIOError:
            raise MasterError("no heartbeat is taken any more") from None
        return self._sent


class _Echo(asyncio.Protocol):
    """The session's output: the number of our last line that came back."""

    def __init__(self) -> None:
        self.last = 0
        self.ended = False
        self.changed = asyncio.Event()
        self._transport: asyncio.ReadTransport | None = None
        self._partial = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.ReadTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data)[-_LONGEST_LINE:].split(b"\n")
        for line in lines:
            word, _, number = line.partition(b" ")
            if word == b"holdfast" and number.isdigit():
                self.last = max(self.last, int(number[:18]))
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.ended = True
        self.changed.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def start(control: ControlSocket, path: Path, timeout: float) -> tuple[Heartbeat, float]:
    """The heartbeat that works over the master at `path`, and its first round trip in seconds.

    `control` is a connection to the same master. Raises MasterError when nothing came back within `timeout`.
    """
    forwards = ForwardHeartbeat(control, fast_path=True)
    # Both at once: the second packet has the server's answer to the first acknowledged without delay (40 ms).
    opening = asyncio.ensure_future(SessionHeartbeat.start(path, forwards, timeout))
    try:
        round_trip = await forwards.beat(timeout)
    except BaseException:
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        raise
    try:
        return await opening, round_trip
    except ForwardRefused:
        return ForwardHeartbeat(control, fast_path=False), round_trip
