"""`python -m bench.servers KIND PORT`: what is reached through the tunnels. One kind a process.

pieces  HTTP, a small JSON reply, TCP_NODELAY set, its headers and its body in a write each, as http.server
        sends them.
whole   the same reply in one write: what Tornado does with a small page.
bulk    eight bytes say how many bytes to send; with the highest bit set, how many to take before answering.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable

BODY = b'{"version": "2.21.1"}'
HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: bench\r\n"
    b"Content-Type: application/json\r\n"
    b"Date: Mon, 23 Nov 2026 07:00:00 GMT\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)
UPLOAD = 1 << 63
CHUNK = 1 << 20

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def replies(*pieces: bytes) -> Handler:
    """Answers each request with `pieces`, a write each, until the client has had enough."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                for piece in pieces:
                    writer.write(piece)  # asyncio sends at once, and sets TCP_NODELAY
                if b"Connection: close" in request:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return answer


async def serve(handler: Handler, port: int) -> None:
    server = await asyncio.start_server(handler, "127.0.0.1", port)
    await server.serve_forever()


def bulk(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    buffer = memoryview(bytearray(CHUNK))
    while True:
        connection, _ = listener.accept()
        with connection:
            order = connection.recv(8, socket.MSG_WAITALL)
            if len(order) == 8:
                number = int.from_bytes(order)
                if number & UPLOAD:
                    take(connection, number - UPLOAD, buffer)
                    connection.sendall(b"!")
                else:
                    give(connection, number, buffer)


def give(connection: socket.socket, size: int, buffer: memoryview) -> None:
    for start in range(0, size, CHUNK):
        connection.sendall(buffer[: min(CHUNK, size - start)])


def take(connection: socket.socket, size: int, buffer: memoryview) -> None:
    while size > 0:
        received = connection.recv_into(buffer)
        if not received:
            raise ConnectionResetError(f"{size} bytes are missing")
        size -= received


def main(kind: str, port: int) -> None:
    match kind:
        case "pieces":
            asyncio.run(serve(replies(HEAD, BODY), port))
        case "whole":
            asyncio.run(serve(replies(HEAD + BODY), port))
        case "bulk":
            bulk(port)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
