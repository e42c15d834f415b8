"""Runs a program on the far side over a master, in a session of its own: no second login."""

from __future__ import annotations

import asyncio
import codecs
import os
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.openssh import script
from holdfast.openssh.control_socket import ControlSocket, ForwardRefused

# Seconds that the far side may take to accept the session.
OPENING = 10.0
_CHUNK = 32 * 1024


async def run(path: Path, program: str, host: str, seconds: float) -> str:
    """What `program` printed on `host`, over the master at `path`, within so many `seconds`.

    Raises HoldfastError: no sessions there, something else ran, it took too long, the master is gone.
    """
    mark = secrets.token_hex(8)
    try:
        async with asyncio.timeout(seconds):
            wrapped = script.wrap(program, mark)
            printed = "".join([text async for text in stream(path, wrapped, host)])
    except TimeoutError:
        raise HoldfastError(f"{host} took longer than {seconds:g} s to answer", "try again") from None
    except OSError as error:
        raise HoldfastError(f"the connection to {host} is gone: {error}", "try again") from None
    return script.unwrap(printed, mark, host)


async def stream(path: Path, wrapped: str, host: str, *, keep_input: bool = False) -> AsyncGenerator[str, None]:
    """What the far side prints when it is given `wrapped` (see script.wrap), as it comes, until it ends.

    With `keep_input` the program's input ends only when this does. Raises HoldfastError, OSError.
    """
    control = await ControlSocket.connect(path)
    far_stdin, write = os.pipe()
    read, far_stdout = os.pipe()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    loop = asyncio.get_running_loop()
    writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(write, "wb", buffering=0))
    received = asyncio.StreamReader()
    reader, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(received), os.fdopen(read, "rb", buffering=0)
    )
    try:
        try:
            await control.start_session(script.COMMAND, (far_stdin, far_stdout, nowhere), OPENING)
        except ForwardRefused:
            raise HoldfastError(
                f"{host} lets no command be run", "ask its administrator about MaxSessions"
            ) from None
        finally:
            for descriptor in (far_stdin, far_stdout, nowhere):
                os.close(descriptor)
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
    finally:
        writer.close()
        reader.close()
        control.close()
