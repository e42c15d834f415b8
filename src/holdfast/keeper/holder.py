"""Lets a kill -9 of the keeper cost no connection that it has let through.

Such a connection lives for as long as the control connection over which it was handed to the master is open. A
tiny process of its own (holding.py) keeps those open.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys

from holdfast.keeper import holding

# Seconds that the program may take to answer, its start included.
ANSWERING = 2.0


class Holder:
    """Gives connections to the program that holds them, which is started when there is something for it to do."""

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        # The last one is in use. The others were hung up on, and may still hold something.
        self._processes: list[subprocess.Popen[bytes]] = []
        # An answer has no number: it belongs to the one request under way.
        self._turn = asyncio.Lock()

    async def keep(self, connection: socket.socket) -> bool:
        """Whether the program now has `connection`, until its other end hangs up; the caller then closes its own.

        It must not shut it down, which would end it for both. When False, the caller goes on holding it: the
        program can't be started, has no room, or didn't answer within ANSWERING.
        """
        try:
            async with asyncio.timeout(ANSWERING), self._turn:
                return await self._give(connection)
        except OSError:  # a TimeoutError is one
            return False

    def close(self) -> None:
        """Hangs up. The program lives on for as long as it holds anything."""
        self._hang_up()
        for process in self._processes:
            if process.poll() is None:
                process.returncode = 0  # it outlives us: no warning that nobody waits for it
        self._processes.clear()

    async def _give(self, connection: socket.socket) -> bool:
        program = self._program()
        try:
            socket.send_fds(program, [b"\0"], [connection.fileno()])
            answer = await asyncio.get_running_loop().sock_recv(program, 1)
            if not answer:
                raise ConnectionResetError("the program that holds connections has ended")
            return answer == holding.KEPT
        except BaseException:
            self._hang_up()  # an answer that still came would be taken for that to the next request
            raise

    def _program(self) -> socket.socket:
        """The connection to a program that lives."""
        if self._connection is None or self._processes[-1].poll() is not None:
            self._hang_up()
            self._connection = self._start()
        return self._connection

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            try:
                process = subprocess.Popen(
                    # Without site-packages, the user's environment and its own directory in the path.
                    [sys.executable, "-I", "-S", holding.__file__],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        self._processes = [earlier for earlier in self._processes if earlier.poll() is None]
        self._processes.append(process)
        return ours

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
