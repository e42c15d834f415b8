"""Runs a program on the far side over a master, in a session of its own: no second login."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path

from holdfast.errors import HoldfastError, MasterError
from holdfast.openssh import script
from holdfast.openssh.control_socket import ControlSocket, ForwardRefused

# Seconds that the far side may take to accept the session.
OPENING = 10.0
_CHUNK = 32 * 1024


async def run(path: Path, program: str, host: str, seconds: float) -> str:
    """What `program` printed on `host`, over the master at `path`, within so many `seconds`.

    Raises HoldfastError: it took too long, the master is gone, NotRun.
    """
    mark = secrets.token_hex(8)
    output = stream(path, script.wrap(program, mark), host)
    try:
        async with asyncio.timeout(seconds), contextlib.aclosing(output):
            printed = "".join([text async for text in output])
    except TimeoutError:
        raise HoldfastError(f"{host} took longer than {seconds:g} s to answer", "try again") from None
    return script.unwrap(printed, mark, host)


async def stream(path: Path, wrapped: str, host: str, *, keep_input: bool = False) -> AsyncGenerator[str, None]:
    """What the far side prints when it is given `wrapped` (see script.wrap), as it comes, until it ends.

    With `keep_input` the program's input ends only when this does. Raises HoldfastError, NotRun.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            received, writer = await _start(path, host, stack)
        except OSError as error:
            raise HoldfastError(f"the connection to {host} is gone: {error.strerror}", "try again") from None
        writer.write(wrapped.encode())
        if not keep_input:
            writer.write_eof()
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        total = 0
        while chunk := await received.read(_CHUNK):
            total += len(chunk)
            if total > script.LONGEST_OUTPUT and not keep_input:
                raise HoldfastError(f"{host} printed more than {script.LONGEST_OUTPUT} bytes", "this is no answer")
            yield decoder.decode(chunk)
        try:
            (await ControlSocket.connect(path)).close()
        except (OSError, MasterError) as error:
            raise HoldfastError(f"the connection to {host} is gone: {error}", "try again") from None


async def _start(
    path: Path, host: str, stack: contextlib.AsyncExitStack
) -> tuple[asyncio.StreamReader, asyncio.WriteTransport]:
    """A shell over there: its output, and its input. `stack` ends both. Raises OSError, MasterError, NotRun."""
    control = await ControlSocket.connect(path)
    stack.callback(control.close)
    with contextlib.ExitStack() as theirs:
        far_stdin, write = os.pipe()
        theirs.callback(os.close, far_stdin)
        writing = stack.enter_context(os.fdopen(write, "wb", buffering=0))
        read, far_stdout = os.pipe()
        theirs.callback(os.close, far_stdout)
        reading = stack.enter_context(os.fdopen(read, "rb", buffering=0))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        theirs.callback(os.close, nowhere)
        loop = asyncio.get_running_loop()
        writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, writing)
        stack.callback(writer.close)
        received = asyncio.StreamReader()
        reader, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(received), reading)
        stack.callback(reader.close)
        try:
            await control.start_session(script.COMMAND, (far_stdin, far_stdout, nowhere), OPENING)
        except ForwardRefused:
            raise script.NotRun(
                f"{host} lets no command be run", "ask its administrator about MaxSessions"
            ) from None
    return received, writer
