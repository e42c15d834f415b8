"""OpenSSH's multiplexing protocol (PROTOCOL.mux, version 4), the client's side, sans I/O.

A client sends requests built by the methods of `Client`, and gives what arrives to `receive_data`, which
returns replies. Descriptors travel beside the bytes: a request that needs some says how many, and the driver
must send the packet and the descriptors back to back, one NUL byte and one SCM_RIGHTS message for each,
because a master that waits for a descriptor does nothing else (mm_receive_fd polls inside its event loop).

Not spoken: MUX_C_PROXY, whose refused channel followed by a hang-up kills the whole master, in every version
tried up to 10.5.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from holdfast.errors import MasterError
from holdfast.forward import Address, Forward, Kind

VERSION = 4
# CHANNEL_MUX_MAX_PACKET in channels.c. A master drops a client that sends more; we drop such a master.
LONGEST_PACKET = 256 * 1024
# PORT_STREAMLOCAL: "the host string is the path of a Unix socket".
STREAMLOCAL = 0xFFFFFFFE
NO_ESCAPE_CHARACTER = 0xFFFFFFFF


class Type(IntEnum):
    """Message types. PROTOCOL.mux gives each in the section of its request."""

    HELLO = 0x00000001
    NEW_SESSION = 0x10000002
    ALIVE_CHECK = 0x10000004
    TERMINATE = 0x10000005
    OPEN_FWD = 0x10000006
    CLOSE_FWD = 0x10000007
    NEW_STDIO_FWD = 0x10000008
    STOP_LISTENING = 0x10000009
    OK = 0x80000001
    PERMISSION_DENIED = 0x80000002
    FAILURE = 0x80000003
    EXIT_MESSAGE = 0x80000004
    ALIVE = 0x80000005
    SESSION_OPENED = 0x80000006
    REMOTE_PORT = 0x80000007
    TTY_ALLOC_FAIL = 0x80000008


# MUX_FWD_LOCAL, _REMOTE, _DYNAMIC. Any other number ends the master: format_forward calls fatal().
FORWARD_TYPE = {Kind.LOCAL: 1, Kind.REMOTE: 2, Kind.DYNAMIC: 3}


class ProtocolError(MasterError):
    """What came from the control socket is not the multiplexing protocol."""


class Hello(NamedTuple):
    version: int
    extensions: dict[str, bytes]


class Ok(NamedTuple):
    request: int


class Refused(NamedTuple):
    """MUX_S_FAILURE or MUX_S_PERMISSION_DENIED; `reason` is OpenSSH's own short text."""

    request: int
    reason: str


class Alive(NamedTuple):
    request: int
    pid: int


class SessionOpened(NamedTuple):
    """The session or the stdio forward runs; `session` is the master's number for it."""

    request: int
    session: int


class RemotePort(NamedTuple):
    """The port that the server chose for a remote forward asked for with port 0."""

    request: int
    port: int


class SessionExited(NamedTuple):
    session: int
    status: int


class TtyRefused(NamedTuple):
    session: int


Reply = Hello | Ok | Refused | Alive | SessionOpened | RemotePort | SessionExited | TtyRefused


class Request(NamedTuple):
    """A packet to send; `number` is what its reply will carry; `descriptors` follow it, that many."""

    number: int
    packet: bytes
    descriptors: int = 0


class Client:
    """One connection to a master, without the socket."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._last_request = 0
        self._greeted = False

    def hello(self) -> bytes:
        """The first packet to send. The master sends its own without waiting for it."""
        return _packet(_u32(Type.HELLO), _u32(VERSION))

    def alive_check(self) -> Request:
        """Answered by `Alive` with the master's pid. Says nothing of the far side."""
        return self._request(Type.ALIVE_CHECK)

    def terminate(self) -> Request:
        """Ends the master. It may answer `Ok` or just close the connection."""
        return self._request(Type.TERMINATE)

    def stop_listening(self) -> Request:
        """The master removes its socket and takes no more clients; what runs, goes on."""
        return self._request(Type.STOP_LISTENING)

    def open_forward(self, forward: Forward, listen: Address) -> Request:
        """Answered by `Ok`, `RemotePort` or `Refused`. `listen` is one of the forward's `listeners`."""
        return self._request(Type.OPEN_FWD, *_forward_fields(forward, listen))

    def close_forward(self, forward: Forward, listen: Address) -> Request:
        """Every field as it was when opened, port 0 included. Established connections stay."""
        return self._request(Type.CLOSE_FWD, *_forward_fields(forward, listen))

    def new_session(self, command: str) -> Request:
        """Runs `command` over there, without a terminal; needs stdin, stdout and stderr."""
        flags = _u32(0) * 4  # tty, X11, agent, subsystem: none of them
        return self._request(
            Type.NEW_SESSION,
            _string(""),
            flags,
            _u32(NO_ESCAPE_CHARACTER),
            _string(""),
            _string(command),
            descriptors=3,
        )

    def stdio_forward(self, target: Address) -> Request:
        """Connects the descriptors (in, out) to `target` as seen from over there.

        A Unix socket needs a master of 9.4 or later: an older one silently makes TCP of the path.
        """
        host, port = _endpoint(target)
        return self._request(Type.NEW_STDIO_FWD, _string(""), host, port, descriptors=2)

    def receive_data(self, data: bytes) -> list[Reply]:
        """The replies that `data` completes, in their order.

        Raises ProtocolError; the connection is of no use after that.
        """
        self._buffer += data
        replies: list[Reply] = []
        while len(self._buffer) >= 4:
            (size,) = struct.unpack_from(">I", self._buffer)
            if size > LONGEST_PACKET:
                raise ProtocolError(f"the control socket announced a packet of {size} bytes")
            if len(self._buffer) < 4 + size:
                break
            body = bytes(self._buffer[4 : 4 + size])
            del self._buffer[: 4 + size]
            reply = _parse(_Reader(body))
            if isinstance(reply, Hello) == self._greeted:
                raise ProtocolError("the control socket greeted twice or not at all")
            self._greeted = True
            replies.append(reply)
        return replies

    def _request(self, kind: Type, *fields: bytes, descriptors: int = 0) -> Request:
        self._last_request += 1
        packet = _packet(_u32(kind), _u32(self._last_request), *fields)
        return Request(self._last_request, packet, descriptors)


def _forward_fields(forward: Forward, listen: Address) -> tuple[bytes, ...]:
    # A dynamic forward must name a connect host, whatever it is: ssh itself says "socks".
    target = forward.target or Address("socks", 0)
    return (_u32(FORWARD_TYPE[forward.kind]), *_endpoint(listen), *_endpoint(target))


def _endpoint(address: Address) -> tuple[bytes, bytes]:
    if address.path:
        return _string(address.path), _u32(STREAMLOCAL)
    return _string(address.host), _u32(address.port)


def _packet(*fields: bytes) -> bytes:
    body = b"".join(fields)
    if len(body) > LONGEST_PACKET:
        raise ProtocolError(f"a request of {len(body)} bytes is longer than a master accepts")
    return _u32(len(body)) + body


def _u32(value: int) -> bytes:
    return struct.pack(">I", value)


def _string(text: str) -> bytes:
    data = text.encode()
    if b"\0" in data:
        raise ProtocolError("a NUL can't be sent to a master")  # sshbuf_get_cstring hangs up on one
    return _u32(len(data)) + data


class _Reader:
    """Takes fields off a packet's body."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._body)

    def u32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def string(self) -> bytes:
        return self._take(self.u32())

    def text(self) -> str:
        return self.string().decode(errors="replace")

    def _take(self, size: int) -> bytes:
        if size > len(self._body) - self._at:
            raise ProtocolError("a packet from the control socket ends too early")
        self._at += size
        return self._body[self._at - size : self._at]


def _parse(body: _Reader) -> Reply:
    kind = body.u32()
    reply: Reply
    match kind:
        case Type.HELLO:
            return _parse_hello(body)
        case Type.OK:
            reply = Ok(body.u32())
        case Type.FAILURE | Type.PERMISSION_DENIED:
            reply = Refused(body.u32(), body.text())
        case Type.ALIVE:
            reply = Alive(body.u32(), body.u32())
        case Type.SESSION_OPENED:
            reply = SessionOpened(body.u32(), body.u32())
        case Type.REMOTE_PORT:
            reply = RemotePort(body.u32(), body.u32())
        case Type.EXIT_MESSAGE:
            reply = SessionExited(body.u32(), body.u32())
        case Type.TTY_ALLOC_FAIL:
            reply = TtyRefused(body.u32())
        case _:
            raise ProtocolError(f"the control socket sent a message of unknown type {kind:#010x}")
    if not body.at_end:
        raise ProtocolError(f"a message of type {kind:#010x} from the control socket is too long")
    return reply


def _parse_hello(body: _Reader) -> Hello:
    version = body.u32()
    if version != VERSION:
        raise ProtocolError(f"the master speaks version {version} of the multiplexing protocol, not {VERSION}")
    extensions: dict[str, bytes] = {}
    while not body.at_end:
        name = body.text()
        extensions[name] = body.string()
    return Hello(version, extensions)
