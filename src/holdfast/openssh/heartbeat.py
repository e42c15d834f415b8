"""A heartbeat through the far side and back, over a master.

Usually a line through an echo in a session that stays open. Opening it does two more things: sshd before 10.1
sets TCP_NODELAY on a connection only when a session starts (without one, small replies wait 40 ms for delayed
ACKs), and an open channel keeps a server's UnusedConnectionTimeout away.

Where no session is allowed, and until a slow login shell has started, a remote forward on a port of the server's
choice is asked for and taken back: one round trip, whether it is granted or refused, and sshd logs neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from holdfast.errors import MasterError
from holdfast.forward import Address, Forward, Kind
from holdfast.openssh import far_side
from holdfast.openssh.control_socket import ControlSocket, ForwardRefused

_LINE = b"holdfast %d\n"
# What the dead-man's switch is told when it asks; comes back like any line, and counts for nothing here.
_HERE = b"holdfast here\n"
# Seconds between heartbeats: by lines, and by forwards, each of which leaves some 260 bytes in the master (4 MB a
# day). More than 6 would hide a silent cut for longer than 10 s, with the up to 3 s that an answer may take.
PACE = 5.0
PACE_OF_FORWARDS = 6.0
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

    @property
    def switch(self) -> float | None:
        """Seconds without a line from us after which the far side ends its sshd.

        None when it is not armed: not asked for, not possible there, or not known yet.
        """

    async def beat(self, timeout: float) -> float:
        """The round trip in seconds.

        Raises MasterError when none was made within `timeout` seconds, HeartbeatEnded when none ever will be.
        """

    def close(self) -> None: ...


class ForwardHeartbeat:
    """Remote forwards asked for and taken back, for accounts that may open no session or run one command.

    `control` is for nothing else: while the far side is silent, the master reads no other request from it.
    """

    switch = None

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
        self._control.close()


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
    async def start(cls, path: Path, forwards: ForwardHeartbeat, timeout: float, command: str) -> Self:
        """Opens the session, over the master at `path`, running `command`, and sends a first line.

        Raises ForwardRefused where the server allows none, MasterError.
        """
        control = await ControlSocket.connect(path)
        far_stdin, write = os.pipe()
        read, far_stdout = os.pipe()
        os.set_blocking(write, False)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            await control.start_session(command, (far_stdin, far_stdout, nowhere), timeout)
        except BaseException:
            control.close()
            os.close(write)
            os.close(read)
            raise
        finally:
            for descriptor in (far_stdin, far_stdout, nowhere):
                os.close(descriptor)
        _, echo = await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Echo(partial(_answer, write)), os.fdopen(read, "rb", buffering=0)
        )
        return cls(control, forwards, write, echo)

    @property
    def pace(self) -> float:
        is_starting = asyncio.get_running_loop().time() < self._started + SLOWEST_SHELL
        return PACE if self._echo.last or is_starting else PACE_OF_FORWARDS

    @property
    def switch(self) -> float | None:
        return self._echo.switch

    async def beat(self, timeout: float) -> float:
        if not self._echo.last:
            return await self._forwards.beat(timeout)
        self._forwards.close()
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
        self._forwards.close()

    def _send(self) -> int:
        self._sent += 1
        try:
            os.write(self._write, _LINE % self._sent)
        except BrokenPipeError:
            raise HeartbeatEnded("the session on the far side ended") from None
        except BlockingIOError:
            raise MasterError("no heartbeat is taken any more") from None
        return self._sent


def _answer(write: int) -> None:
    with contextlib.suppress(BrokenPipeError, BlockingIOError):
        os.write(write, _HERE)


class _Echo(asyncio.Protocol):
    """The session's output: the number of our last line that came back, and what the far side says of its switch.

    Its question is answered at once with `answer`: the next beat may be too late.
    """

    def __init__(self, answer: Callable[[], None]) -> None:
        self._answer = answer
        self.last = 0
        self.switch: float | None = None
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
            self._take(line)
        self.changed.set()

    def _take(self, line: bytes) -> None:
        if line == far_side.QUESTION:
            self._answer()
        elif seconds := _number(line, after=far_side.ARMED):
            self.switch = float(seconds)
        elif number := _number(line, after=b"holdfast "):
            self.last = max(self.last, number)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.ended = True
        self.changed.set()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _number(line: bytes, *, after: bytes) -> int:
    """The number that `line` is made of after these words; 0 when it isn't."""
    digits = line.removeprefix(after)
    return int(digits[:18]) if line != digits and digits.isdigit() else 0


async def start(
    path: Path, timeout: float, *, switch: bool = False, direct: bool = True
) -> tuple[Heartbeat, float]:
    """The heartbeat that works over the master at `path`, and its first round trip in seconds.

    With `switch`, the far side ends its end of the link when no line
    came for a while, if it can; `direct` says that the master's TCP connection ends there, with no jump host or
    ProxyCommand in between. Raises MasterError when nothing came back within `timeout`.
    """
    command = far_side.switch(direct=direct) if switch else far_side.ECHO
    forwards = await forwards_over(path, fast_path=True)
    # Both at once: the second packet has the server's answer to the first acknowledged without delay (40 ms).
    opening = asyncio.ensure_future(SessionHeartbeat.start(path, forwards, timeout, command))
    try:
        round_trip = await forwards.beat(timeout)
    except BaseException:
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
        forwards.close()
        raise
    try:
        return await opening, round_trip
    except ForwardRefused:
        forwards.fast_path = False
        return forwards, round_trip
    except BaseException:
        forwards.close()
        raise


async def forwards_over(path: Path, *, fast_path: bool) -> ForwardHeartbeat:
    """A heartbeat by forwards over the master at `path`. Raises OSError, MasterError."""
    return ForwardHeartbeat(await ControlSocket.connect(path), fast_path=fast_path)
