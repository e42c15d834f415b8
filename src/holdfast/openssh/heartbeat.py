"""A heartbeat through the far side and back, over a master.

Usually a line through `cat` in a session that stays open. Opening it does two more things: sshd before 10.1
sets TCP_NODELAY on a connection only when a session starts (without one, small replies wait 40 ms for delayed
ACKs), and an open channel keeps a server's UnusedConnectionTimeout away.

Where no session is allowed, a remote forward on a port of the server's choice is asked for and taken back:
one round trip, whether it is granted or refused, and sshd logs neither.
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
# Seconds that a login shell may take to start before another proof is tried (conda in ~/.bashrc takes two).
_SHELL_START = 4.0
_PROBE = Forward(Kind.REMOTE, Address("127.0.0.1", 0), Address("127.0.0.1", 9))


class HeartbeatEnded(MasterError):
    """The session on the far side is over. The link may be as well as ever."""


class Heartbeat(Protocol):
    """One way of asking the far side for a sign of life."""

    fast_path: bool

    async def beat(self, timeout: float) -> float:
        """The round trip in seconds.

        Raises MasterError when none was made within `timeout` seconds, HeartbeatEnded when none ever will be.
        """

    def close(self) -> None: ...


class SessionHeartbeat:
    """Lines through a session. Output of noisy login files is passed over: only our own lines count."""

    fast_path = True

    def __init__(
        self, control: ControlSocket, write: int, reader: asyncio.StreamReader, read: asyncio.ReadTransport
    ):
        self._control = control
        self._write = write
        self._reader = reader
        self._read = read
        self._count = 0

    @classmethod
    async def start(cls, path: Path, timeout: float) -> Self:
        """Opens the session. Raises ForwardRefused where the server allows none, MasterError."""
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
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", buffering=0)
        )
        return cls(control, write, reader, transport)

    async def beat(self, timeout: float) -> float:
        self._count += 1
        line = b"holdfast %d\n" % self._count
        clock = asyncio.get_running_loop().time
        sent = clock()
        try:
            os.write(self._write, line)
            async with asyncio.timeout(timeout):
                while (received := await self._reader.readline()) != line:
                    if not received:
                        raise HeartbeatEnded("the session on the far side ended")
        except TimeoutError:
            raise MasterError(f"no heartbeat came back within {timeout:g} s") from None
        except BrokenPipeError:
            raise HeartbeatEnded("the session on the far side ended") from None
        except BlockingIOError:
            raise MasterError("no heartbeat is taken any more") from None
        except ValueError:
            raise HeartbeatEnded("the session on the far side talks without end") from None
        return clock() - sent

    def close(self) -> None:
        self._read.close()
        os.close(self._write)
        self._control.close()


class ForwardHeartbeat:
    """Remote forwards asked for and taken back, for accounts that may open no session or run one command."""

    def __init__(self, control: ControlSocket, *, fast_path: bool) -> None:
        self._control = control
        self.fast_path = fast_path

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


async def start(control: ControlSocket, path: Path, timeout: float) -> tuple[Heartbeat, float]:
    """The heartbeat that works over the master at `path`, and its first round trip in seconds.

    `control` is a connection to the same master. Raises MasterError when nothing came back within `timeout`.
    """
    session: SessionHeartbeat | None = None
    had_session = True
    try:
        session = await SessionHeartbeat.start(path, timeout)
        return session, await session.beat(min(timeout, _SHELL_START))
    except ForwardRefused:
        had_session = False
    except MasterError:
        if session is None:
            raise
        session.close()  # a forced command, or a shell too slow: sshd has set TCP_NODELAY for it all the same
    forwards = ForwardHeartbeat(control, fast_path=had_session)
    return forwards, await forwards.beat(timeout)
