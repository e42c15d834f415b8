"""The protocol between the command line and the keeper: one JSON object a line, over the keeper's socket. No I/O.

The keeper greets with a `Greeting`. A client sends one request, an object
whose `request` names one of `REQUESTS`. The keeper answers with any number of `progress`, `login` and `output`
objects, then one `done` or `error`. The client answers each `login` with a `login_ended` request.

Two requests go on. An `up` with `lease` holds its forwards until the client hangs up, or says `release`, which has
a `done` of its own; `follow` never ends by itself. Both are sent `changes` as they happen.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple, NotRequired, TypedDict, TypeVar, get_type_hints

from holdfast.errors import Exit, HoldfastError, KeeperError, LoginNeeded, UsageError
from holdfast.forward import LONGEST_HOST, Forward, Kind, build, parse_address

PROTOCOL = 3
# Bytes of a request. The largest that makes sense is an `up` with some hundred forwards.
LONGEST_REQUEST = 256 * 1024
LONGEST_NAME = 100
# Seconds: a month.
LONGEST_IDLE = 31 * 86_400

# The variables of the user's session that ssh needs to log in; nothing else is sent or kept.
ENVIRONMENT = (
    "SSH_AUTH_SOCK",
    "SSH_ASKPASS",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "KRB5CCNAME",
    "DBUS_SESSION_BUS_ADDRESS",
    "GNUPGHOME",
    "PATH",
    "HOME",
)
# The options of ssh that `up` passes on, each with one value.
SSH_OPTIONS = ("-F", "-o", "-p", "-i", "-J", "-l")


Record = TypeVar("Record", bound=tuple[Any, ...])


class Upkeep(NamedTuple):
    """How a tunnel is kept."""

    hold: int = 512
    """How many connections may wait at each forward during an outage."""
    hold_for: int = 120
    """For how many seconds each of them may."""
    http: bool = False
    """It carries HTTP: a browser that waits is shown a page."""
    switch: bool = True
    """The far side may end its end of a connection from which nothing comes."""
    notify: bool = False
    """Loss and return are told on the desktop."""
    lazy: bool = False
    """The login happens when somebody connects."""
    idle: int = 0
    """Seconds without a connection after which a lazy one is `idle` again; 0 for never."""
    mode: int = 0o600
    """The permissions of its Unix sockets here, as a number: 384 is 0600."""


class Up(NamedTuple):
    """Bring a tunnel up, or add forwards to it. `forwards` may be empty: what it had, or the host's own.

    `terminal`: the client can run a login for a person. `host` may be the name of a known tunnel. `upkeep` has
    those fields of Upkeep that are to be different from before. `notebook` is what the only forward leads to, as
    jupyter.servers.Notebook; the keeper chooses its port here. Empty: `forwards` are as they say. `running` are
    the pids of all notebook servers there: one that isn't among them is gone, and another may take its place.
    `lease`: the forwards are wanted for as long as the client stays. `origin` is the configuration file that
    describes the tunnel, or empty.
    """

    host: str
    name: str
    options: tuple[str, ...]
    forwards: tuple[tuple[str, ...], ...]
    environment: dict[str, str]
    terminal: bool
    wait: bool
    expose: bool
    upkeep: dict[str, int] = {}  # noqa: RUF012 - a named tuple's default, never changed
    notebook: dict[str, str] = {}  # noqa: RUF012
    running: tuple[int, ...] = ()
    lease: bool = False
    origin: str = ""


class Run(NamedTuple):
    """Runs `program` in the far side's sh (openssh.script), over the link to `host`, for at most `seconds`.

    The link is made if need be, and stays for a while. What is printed comes in answers of `output`. With
    `keep_input` the program's input ends when the client hangs up.
    """

    host: str
    options: tuple[str, ...]
    environment: dict[str, str]
    terminal: bool
    program: str
    seconds: int
    keep_input: bool


class Down(NamedTuple):
    """Take tunnels down, or only those of their forwards that listen on one of `listens`.

    `forget`: they are not to be brought back by their names.
    """

    names: tuple[str, ...]
    listens: tuple[str, ...]
    everything: bool
    forget: bool = False


class Restart(NamedTuple):
    """Make a new connection for each of the tunnels."""

    names: tuple[str, ...]
    environment: dict[str, str]
    terminal: bool


class Status(NamedTuple):
    """What is true of the tunnels, proven by a round trip. No names: all that are wanted.

    `look`: also where their notebooks are now, when nothing speaks against where they were.
    """

    names: tuple[str, ...]
    look: bool = False


class Follow(NamedTuple):
    """Tell of tunnels as they change, those that there are first. No names: all.

    `interval` is in milliseconds: how often their counters are told, if those are different; 0 for never.
    """

    names: tuple[str, ...]
    interval: int


class Release(NamedTuple):
    """Ends the lease that this connection has; answered once its forwards are closed."""


class Stop(NamedTuple):
    """End the keeper. The masters and their connections stay."""


class LoginEnded(NamedTuple):
    """The ssh of the login order `number` has left the client's terminal, with this exit status."""

    number: int
    status: int


Request = Up | Run | Down | Restart | Status | Follow | Release | Stop | LoginEnded
REQUESTS: dict[str, type[Request]] = {
    "up": Up,
    "run": Run,
    "down": Down,
    "restart": Restart,
    "status": Status,
    "follow": Follow,
    "release": Release,
    "stop": Stop,
    "login_ended": LoginEnded,
}


class NotebookStatus(TypedDict):
    """The notebook server that a forward leads to, as it was last seen."""

    directory: str
    """Its root, over there."""
    base_url: str
    """The path under which it is, with a `/` at each end."""
    version: str
    """The version of Jupyter Server; empty for Notebook 6 and older."""
    pid: int
    """Its process id, over there."""


class ForwardStatus(TypedDict):
    """One forward as `status --json` prints it."""

    kind: str
    """`local`, `remote` or `dynamic`."""
    listen: str
    """`host:port`, `[host]:port` or a path; for `remote` on the far side. `localhost` is both 127.0.0.1 and
    ::1."""
    asked: str
    """`listen` as it was asked for: with port 0 for any."""
    target: str | None
    """Where it leads; null for SOCKS."""
    url: str | None
    """What to open in a browser; null where that makes no sense."""
    state: str
    """As for the tunnel, which shows the worst of its forwards."""
    reason: str | None
    """Why this forward isn't up."""
    hint: str | None
    """What to try."""
    notebook: NotebookStatus | None
    """The notebook server that it leads to; null when holdfast doesn't know it as one."""
    exposed: bool
    """Other machines can reach it."""
    leases: int
    """How many programs hold it."""
    kept: bool
    """It stays without them."""
    connections: int | None
    """How many connections go through it just now; null when the system doesn't tell."""


class UpkeepStatus(TypedDict):
    """How a tunnel is kept: the fields of Upkeep, which says what they mean."""

    hold: int
    hold_for: int
    http: bool
    switch: bool
    notify: bool
    lazy: bool
    idle: int
    mode: int


class OutageStatus(TypedDict):
    """The last time that a tunnel's link was not up."""

    began: str
    """ISO 8601 with offset, to the second."""
    ended: str | None
    """The same; null while it lasts."""
    seconds: float
    """How long it took, or has taken."""
    reason: str
    """Why, as it was known at first, in words for a person."""
    mended_by: str | None
    """What brought the connection back, in words for a person; null while it lasts."""
    held: int
    """How many connections waited."""
    let_through: int
    """How many of them were served after it."""


class TunnelStatus(TypedDict):
    """One tunnel as `status --json` prints it."""

    name: str
    """Its name, by which `status`, `down`, `restart` and `logs` know it."""
    host: str
    """What was given to ssh."""
    state: str
    """One of the [states](states.md)."""
    reason: str | None
    """Why it isn't up, in words for a person; or what is worth knowing although it is."""
    hint: str | None
    """What to try."""
    since: str
    """When this state began; ISO 8601 with offset, to the second."""
    retry_at: str | None
    """When the next try is due; only in `waiting` and `stalled`; ISO 8601 with offset, to the millisecond."""
    rtt_ms: float | None
    """The last round trip to the far side, in milliseconds; null when the link isn't up."""
    drops: int
    """How many connections were lost, or replaced because they did not answer."""
    outages: int
    """How many times it was not up, after it had been."""
    down_seconds: int
    """For how many seconds in all, the present outage not counted."""
    last_outage: OutageStatus | None
    """The last outage, which may not be over yet; null when this keeper saw none."""
    held: int
    """How many connections wait just now for it to come back."""
    switch_seconds: float | None
    """After how many seconds of silence the far side ends its end; null when it won't, or there is no
    connection."""
    fast_path: bool | None
    """False: the server allows no session, so small replies may take 40 ms; null when the link isn't up."""
    adopted: bool
    """The connection is a master that you started yourself."""
    master_pid: int | None
    """The process id of the ssh that serves it, or did until it stalled."""
    sent_bytes: int | None
    """What was sent over the connection that serves it, by all that use that connection; starts anew with each
    connection; null when there is none, or the system doesn't tell."""
    received_bytes: int | None
    """The same, received."""
    options: list[str]
    """ssh's options for it, as words."""
    upkeep: UpkeepStatus
    """How it is kept."""
    config: str | None
    """The configuration file that describes it."""
    forwards: list[ForwardStatus]
    """At least one forward."""


class Changes(TypedDict):
    """What is different since the last time: tunnels as they are now, and the names of those that went."""

    tunnels: list[TunnelStatus]
    gone: list[str]


class LoginOrder(TypedDict):
    """Asks the client to run `argv` in its terminal, and to show what ssh writes to `log`."""

    number: int
    argv: list[str]
    log: str


class ErrorRecord(TypedDict):
    message: str
    hint: str
    exit_code: int


class Greeting(TypedDict):
    """The keeper's first line. `notice` is something that the user has to be told once, or empty."""

    holdfast: str
    protocol: int
    pid: int
    notice: str


class Answer(TypedDict):
    """One line from the keeper: exactly one of these."""

    progress: NotRequired[TunnelStatus]
    login: NotRequired[LoginOrder]
    output: NotRequired[str]
    changes: NotRequired[Changes]
    done: NotRequired[list[TunnelStatus]]
    error: NotRequired[ErrorRecord]


def encode_request(request: Request) -> bytes:
    name = next(name for name, kind in REQUESTS.items() if kind is type(request))
    return encode({"request": name, **request._asdict()})


def decode_request(line: bytes) -> Request:
    """The request in `line`. Raises KeeperError for anything that isn't exactly one."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise KeeperError("the request is not JSON") from None
    name = record.pop("request", None) if isinstance(record, dict) else None
    if not isinstance(name, str) or name not in REQUESTS:
        raise KeeperError(
            f"there is no such request: {line[:60]!r}", "update holdfast, or its keeper: holdfast keeper stop"
        )
    return fill(REQUESTS[name], record)


def fill(kind: type[Record], fields: dict[str, Any], **given: Any) -> Record:
    """The named tuple `kind` with these `fields`, as they come out of JSON, and with those `given`.

    Raises KeeperError unless they are all there, no others, each of its type.
    """
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name not in given}
    if fields.keys() != hints.keys():
        raise KeeperError(f"its fields must be exactly these: {', '.join(hints) or 'none'}")
    return kind(**given, **{name: _checked(fields[name], hint, name) for name, hint in hints.items()})


def encode(record: object) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def encode_error(error: HoldfastError) -> bytes:
    record = ErrorRecord(message=error.message, hint=error.hint, exit_code=error.exit_code)
    return encode(Answer(error=record))


def error_from(record: ErrorRecord) -> HoldfastError:
    """The error that the keeper tells of."""
    code = Exit(record["exit_code"])
    kinds = {Exit.USAGE: UsageError, Exit.NEEDS_LOGIN: LoginNeeded}
    return kinds.get(code, HoldfastError)(record["message"], record["hint"], code)


def encode_forward(forward: Forward) -> tuple[str, ...]:
    return (forward.kind.value, str(forward.listen), str(forward.target) if forward.target else "")


def decode_forward(fields: tuple[str, ...]) -> Forward:
    """Raises UsageError."""
    if len(fields) != 3 or fields[0] not in list(Kind):
        raise UsageError(f"{fields!r} is not a forward")
    kind, listen, target = fields
    ends = parse_address(listen), parse_address(target) if target else None
    return build(Kind(kind), *ends, " ".join(fields))


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@%-]*", re.ASCII)


def check_host(text: str) -> str:
    """`text` as a destination that ssh takes: host, user@host or ssh://user@host:port.

    Raises UsageError. As strict as ssh 9.6 (valid_hostname and valid_ruser in ssh.c), for older ones as well:
    the name reaches shells through %h in ProxyCommand.
    """
    if not text.isprintable():
        raise UsageError(f"the host {text[:40]!r} has characters that can't be printed", "check your quotes")
    if len(text) > LONGEST_HOST:
        raise UsageError(f"the host '{text[:40]}…' is {len(text)} characters long", "check your quotes")
    problem = _problem_of(text)
    if problem:
        raise UsageError(
            f"the host '{text}' {problem}", "name it as you would for ssh: lab, ann@lab or ssh://ann@lab:2222"
        )
    return text


def _problem_of(text: str) -> str:
    """What ssh would not take about a destination, or ''."""
    user, at, host = text.removeprefix("ssh://").rpartition("@")
    if text.startswith("ssh://"):
        host, colon, port = host.partition(":")
        if colon and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            return "has no port after its colon; an IPv6 address goes without ssh://"
    if not text:
        return "is empty"
    if text.startswith("-") or host.startswith("-") or user.startswith("-"):
        return "begins with '-'"
    if not host or (at and not user):
        return "lacks a part beside '@'"
    found = re.search(r"[\s'`\"$\\;&<>|(){},*?!#/]", host) or re.search(r"[\s'`\";&<>|(){}]|\\$", user)
    if found:
        return f"has a {_named(found[0])} in it"
    if "%" in host and not re.fullmatch(r"\[?[0-9a-fA-F:]+:[0-9a-fA-F:.]*%[\w.-]+\]?", host):
        return "has a percent sign in it"
    return ""


def check_name(text: str) -> str:
    """`text` as the name of a tunnel. Raises UsageError.

    No colon and not a number: `holdfast down lab 8888` must tell names from forwards.
    """
    if not _NAME.fullmatch(text) or text.isdigit() or len(text) > LONGEST_NAME:
        raise UsageError(
            f"{text[:60]!r} can't be a tunnel's name",
            "letters, digits and . _ - @ % are allowed, and not only digits, as in --name lab2",
        )
    return text


def default_name(host: str) -> str:
    """The name of a tunnel to `host` when none is given: the host's, without its user and an ssh:// one's port."""
    name = host.rpartition("@")[2]
    if host.startswith("ssh://"):
        name = name.removeprefix("ssh://").partition(":")[0]
    name = re.sub(r"[^A-Za-z0-9._@%-]+", "-", name).strip("-.")[:LONGEST_NAME]
    return f"host-{name}"[:LONGEST_NAME] if not _NAME.fullmatch(name) or name.isdigit() else name


def check_options(options: tuple[str, ...]) -> tuple[str, ...]:
    """`options` as pairs of one of SSH_OPTIONS and its value. Raises UsageError."""
    for option, value in zip(options[::2], options[1::2], strict=False):
        if option not in SSH_OPTIONS:
            raise UsageError(f"'{option}' is not an option that is passed on to ssh")
        if not value or not value.isprintable() or len(value) > 4096:
            raise UsageError(f"{value[:60]!r} can't be the value of {option}", f"see man ssh for {option}")
        if option == "-p" and not (value.isascii() and value.isdigit() and 0 < int(value) < 65536):
            raise UsageError(f"'{value[:60]}' is not a port", "a port is a number from 1 to 65535")
        if option in ("-l", "-J") and value.startswith("-"):
            raise UsageError(f"'{value[:60]}' can't be the value of {option}", f"see man ssh for {option}")
    if len(options) % 2:
        raise UsageError(f"'{options[-1]}' has no value")
    return options


def check_upkeep(upkeep: dict[str, int]) -> Upkeep:
    """The Upkeep with these fields, the others as they are by default. Raises UsageError."""
    unknown = upkeep.keys() - set(Upkeep._fields)
    if unknown:
        raise UsageError(f"a tunnel's upkeep has no {min(unknown)[:60]!r}")
    defaults = Upkeep()._asdict()
    kept = Upkeep(**{name: type(default)(upkeep.get(name, default)) for name, default in defaults.items()})
    for option, value, least, most in (
        ("--hold", kept.hold, 1, 10_000),
        ("--hold-for", kept.hold_for, 1, 86_400),
        ("--idle", kept.idle, 0, LONGEST_IDLE),
    ):
        if not least <= value <= most:
            raise UsageError(f"{value} can't be the value of {option}", f"a number from {least} to {most}")
    if kept.mode & ~0o777 or not kept.mode & 0o600 == 0o600:
        raise UsageError(f"{kept.mode:o} can't be a socket's mode", "as for chmod, yours to read and write: 0660")
    if kept.idle and not kept.lazy:
        raise UsageError("only a lazy tunnel can go idle", "add --lazy, or leave --idle out")
    return kept


def _named(character: str) -> str:
    names = {"'": "quote", '"': "quote", "`": "quote", " ": "space", "/": "slash", "\\": "backslash"}
    return names.get(character, f"'{character}'")


def _checked(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint` wants it, lists turned into tuples. Raises KeeperError."""
    if hint in (str, bool, int):
        good = type(value) is hint
    elif hint == dict[str, str]:
        good = isinstance(value, dict) and all(isinstance(word, str) for word in value.values())
    elif hint == dict[str, int]:
        good = isinstance(value, dict) and all(isinstance(number, int) for number in value.values())
    else:
        inner = hint.__args__[0]
        good = isinstance(value, list)
        value = tuple(_checked(item, inner, name) for item in value) if good else value
    if not good:
        raise KeeperError(f"the request's {name} is not what it should be")
    return value
