"""Forward, and its grammar: what a person may write for one, and what ssh(1) takes after -L, -R and -D.

A bare port reaches 127.0.0.1 over there, never the name `localhost`: on a shared host another user may sit
on [::1] with the same port. It listens here on both loopback addresses, so that `localhost` in a browser is
ours whichever address it tries.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from holdfast.errors import UsageError

# sockaddr_un.sun_path holds 108 bytes on Linux and 104 on macOS, the closing NUL included.
LONGEST_SOCKET_PATH = 103
LONGEST_HOST = 255
LONGEST_SPEC = 1024

# Ports of services that don't speak HTTP: no URL is offered for them.
NOT_HTTP = frozenset(
    {21, 22, 23, 25, 110, 143, 389, 465, 587, 636, 993, 995, 1433, 1521, 2049, 3306, 3389, 5432, 5433}
    | {5672, 5900, 5901, 6379, 9042, 11211, 27017}
)
# The same by the names of their Unix sockets.
NOT_HTTP_SOCKETS = (".s.PGSQL.", "mysql", "mongodb", "redis")
HTTPS = frozenset({443, 8443})

EXAMPLES = "8888, 9999:8888, 5432:db:5432, 8888:/run/user/1000/jupyter.sock or [::1]:8888:localhost:8888"


_ANY = ("*", "0.0.0.0", "::")  # noqa: S104 - compared, not bound


class Kind(StrEnum):
    LOCAL = "local"
    REMOTE = "remote"
    DYNAMIC = "dynamic"


class Address(NamedTuple):
    """A TCP endpoint (`host`, `port`) or, with `path`, a Unix socket.

    As a listening end, the host `localhost` stands for both loopback addresses, `*` for every address,
    and port 0 for any free port.
    """

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name other than `localhost` counts as not."""
        if self.path or self.host == "localhost":
            return True
        import ipaddress  # 2 ms that `status` needn't pay

        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Forward(NamedTuple):
    """One -L, -R or -D: a listening end and a target. `target` is None for SOCKS: -D, and -R with a port alone."""

    kind: Kind
    listen: Address
    target: Address | None

    def __str__(self) -> str:
        """As it is shown to people: `localhost:8888 -> 127.0.0.1:8888`."""
        return f"{self.listen} -> {self.target or 'SOCKS'}"

    @property
    def listeners(self) -> tuple[Address, ...]:
        """Each single address that a master has to listen on. Only `localhost` on this side is more than one."""
        if self.kind is not Kind.REMOTE and self.listen.host == "localhost":
            return (self.listen._replace(host="127.0.0.1"), self.listen._replace(host="::1"))
        return (self.listen,)

    @property
    def url(self) -> str | None:
        """What to open in a browser, for a local forward that may carry HTTP."""
        if self.kind is not Kind.LOCAL or self.listen.path or not self.listen.port:
            return None
        service = self.target.port if self.target else 0
        if service in NOT_HTTP or (self.target and any(name in self.target.path for name in NOT_HTTP_SOCKETS)):
            return None
        host = "localhost" if self.listen.host in _ANY else self.listen.host
        scheme = "https" if service in HTTPS else "http"
        return f"{scheme}://{self.listen._replace(host=host)}"


def parse(text: str, kind: Kind = Kind.LOCAL) -> Forward:
    """The forward that `text` describes, in holdfast's short forms or in those of ssh's -L, -R and -D.

    Raises UsageError, naming the part that is wrong.
    """
    if not text:
        raise UsageError("the forward is empty", f"write it as {EXAMPLES}")
    if not text.isprintable():
        raise UsageError(
            f"the forward {text[:40]!r} has characters that can't be printed", f"write it as {EXAMPLES}"
        )
    if len(text) > LONGEST_SPEC:
        raise UsageError(f"the forward '{text[:40]}…' is {len(text)} characters long", "check your quotes")
    ends = _ends(_fields(text, kind), text)
    if ends is None:
        raise UsageError(f"'{text}' is not a forward", f"write it as {EXAMPLES}")
    listen, target = ends
    if target is None and kind is Kind.LOCAL and listen.host == "localhost":
        target = Address("127.0.0.1", listen.port)
    return build(kind, listen, target, text)


def build(kind: Kind, listen: Address, target: Address | None, text: str) -> Forward:
    """The forward with these ends; `text` is for the messages. Raises UsageError where they don't fit."""
    if kind is Kind.LOCAL and target is None:
        names_host = listen.port and listen.host != "*"
        meant = f"did you mean {listen.port}:{listen}" if names_host else f"write it as {EXAMPLES}"
        raise UsageError(f"the forward '{text}' has no target", meant)
    if kind is not Kind.REMOTE and not listen.path and not _is_literal(listen.host):
        raise UsageError(
            f"'{listen.host}' in the forward '{text}' is not an address to listen on",
            "write an IP address, localhost, or * for every address",
        )
    if kind is Kind.DYNAMIC and target is not None:
        raise UsageError(f"a dynamic forward has no target: '{text}'", "write it as -D 1080 or -D 127.0.0.1:1080")
    if kind is Kind.DYNAMIC and listen.path:
        raise UsageError(f"a dynamic forward needs a port, not a path: '{text}'", "write it as -D 1080")
    if target is not None and not target.path and target.port == 0:
        raise UsageError(f"port 0 can't be a target: '{text}'", "only the listening port may be 0, as in 0:8888")
    return Forward(kind, listen, target)


def _is_literal(host: str) -> bool:
    """Whether `host` can be listened on without asking a name server."""
    import ipaddress

    if host in ("localhost", "*"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def parse_address(text: str) -> Address:
    """The address written as `str(Address)` does: host:port, [host]:port or /path.

    Raises UsageError.
    """
    if not text.isprintable():
        raise UsageError(
            f"the address {text[:40]!r} has characters that can't be printed", "write host:port or /path"
        )
    if text.startswith("/"):
        return _socket(text, text)
    host, colon, port = text.rpartition(":")
    if not colon:
        raise UsageError(f"'{text}' is not an address", "write it as host:port or /path")
    return Address(_bind(host, text), _port(port, text))


def _fields(text: str, kind: Kind) -> list[str]:
    """The parts between colons. Brackets and backslashes protect a colon."""
    whole = text.replace("\\:", "\0")  # the text is printable, so this stands for nothing else
    fields: list[str] = re.findall(r"(?:^|(?<=:))(\[[^\]]*\]|[^:]*)(?=:|$)", whole)
    if ":".join(fields) != whole:
        raise UsageError(f"the brackets in '{text}' don't match", f"write it as {EXAMPLES}")
    if kind is not Kind.DYNAMIC and len(fields) > 4:
        raise UsageError(
            f"'{text}' has too many colons", "put an IPv6 address in brackets, as in [::1]:8888:localhost:8888"
        )
    return [field.replace("\0", ":") for field in fields]


def _ends(fields: list[str], text: str) -> tuple[Address, Address | None] | None:
    """The listening end and the target that the fields stand for, or None when they stand for neither."""
    is_path = [field.startswith("/") for field in fields]
    match fields, is_path:
        case [port], [False]:
            return Address("localhost", _port(port, text)), None
        case [path], [True]:
            return _socket(path, text), None
        case [path, target], [True, True]:
            return _socket(path, text), _socket(target, text)
        case [path, port], [True, False]:
            return _socket(path, text), Address("127.0.0.1", _port(port, text))
        case [path, host, port], [True, False, False]:
            return _socket(path, text), Address(_host(host, text), _port(port, text))
        case [port, path], [False, True]:
            return Address("localhost", _port(port, text)), _socket(path, text)
        case [bind, port, path], [False, False, True]:
            return Address(_bind(bind, text), _port(port, text)), _socket(path, text)
        case [bind, port, host, target], [False, False, False, False]:
            return Address(_bind(bind, text), _port(port, text)), Address(_host(host, text), _port(target, text))
        case [port, host, target], [False, False, False] if _is_port(port):
            return Address("localhost", _port(port, text)), Address(_host(host, text), _port(target, text))
        case [port, target], [False, False] if _is_port(port):
            return Address("localhost", _port(port, text)), Address("127.0.0.1", _port(target, text))
        case [bind, port], [False, False] if fields[0].startswith("[") or not _is_port(bind):
            return Address(_bind(bind, text), _port(port, text)), None
    return None


def _is_port(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+", text, re.ASCII) is not None


def _port(text: str, spec: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or int(text) > 65535:
        what = f"'{text}'" if text else "an empty port"
        raise UsageError(f"{what} in the forward '{spec}' is not a port", "a port is a number from 1 to 65535")
    return int(text)


def _socket(path: str, spec: str) -> Address:
    size = len(path.encode())
    if size > LONGEST_SOCKET_PATH:
        raise UsageError(
            f"the socket path '{path}' is {size} bytes long",
            f"the longest that works everywhere is {LONGEST_SOCKET_PATH}: use a shorter one",
        )
    if path.endswith("/"):
        raise UsageError(f"'{path}' in the forward '{spec}' is a directory", "name the socket file itself")
    return Address(path=path)


def _bind(text: str, spec: str) -> str:
    """A listening host. ssh takes an empty one as every address; here it must be said: `*`."""
    if text in ("", "[]"):
        raise UsageError(
            f"the listening address of '{spec}' is empty", "leave it out, or write * for every address"
        )
    return text if text == "*" else _host(text, spec)


def _host(text: str, spec: str) -> str:
    name = text.removeprefix("[").removesuffix("]")
    if text.startswith("[") or ":" in name:
        import ipaddress

        address, percent, scope = name.partition("%")
        try:
            if percent and not re.fullmatch(r"[\w.-]+", scope, re.ASCII):
                raise ValueError
            return f"{ipaddress.IPv6Address(address)}{percent}{scope}"
        except ValueError:
            raise UsageError(
                f"'{text}' in the forward '{spec}' is not an IPv6 address", "as in [::1]:8888"
            ) from None
    if not text or len(text) > LONGEST_HOST or not re.fullmatch(r"[\w.%-]+", text) or text.startswith("-"):
        what = f"'{text}'" if text else "an empty name"
        raise UsageError(f"{what} in the forward '{spec}' is not a host", f"write it as {EXAMPLES}")
    return text
