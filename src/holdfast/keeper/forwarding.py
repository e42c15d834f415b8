"""Opens, closes and tries forwards over a master, and finds out why one can't be had."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.errors import HoldfastError, MasterError, UsageError
from holdfast.forward import Address, Forward, Kind
from holdfast.keeper import processes
from holdfast.keeper.states import ForwardState
from holdfast.openssh.control_socket import ControlSocket, ForwardRefused
from holdfast.openssh.diagnose import Refusal, refusal
from holdfast.openssh.master import Master
from holdfast.peer import is_stale

# Seconds that opening a forward may take: a round trip for a remote one.
OPENING = 10.0
# Seconds that closing one may take.
CLOSING = 5.0
# Seconds that a target may take to accept a probe.
PROBE = 5.0


# sshd doesn't say which it is (PROTOCOL.mux, and "remote port forwarding failed" in the log for all of them).
_REMOTE_HINT = (
    "its sshd may forbid it (AllowTcpForwarding, PermitListen), or something has the port over there, "
    "perhaps a dead connection of yours; it is tried again"
)


@dataclass(slots=True, eq=False)
class OpenForward:
    """A forward of a tunnel, and what was last found out about it. `asked` is what the person wrote."""

    asked: Forward
    forward: Forward
    state: ForwardState = ForwardState.CLOSED
    reason: str = ""
    hint: str = ""
    # The listeners that the master has opened for us.
    listening: list[Address] = field(default_factory=list)
    # The port that the server chose for a remote forward with port 0.
    chosen_port: int = 0

    def found(self, state: ForwardState, reason: str = "", hint: str = "") -> None:
        self.state, self.reason, self.hint = state, reason, hint

    def lost(self) -> None:
        """The master that listened is gone."""
        self.found(ForwardState.CLOSED)
        self.listening.clear()

    @property
    def is_open(self) -> bool:
        """Whether a master listens for it: ours, or one that the user had told to already."""
        return self.state is not ForwardState.CLOSED and (bool(self.listening) or self.state is ForwardState.UP)

    @property
    def shown(self) -> Forward:
        """The forward with the port that it really listens on."""
        if self.chosen_port:
            return self.forward._replace(listen=self.forward.listen._replace(port=self.chosen_port))
        return self.forward


async def open_forward(master: Master, forward: OpenForward, host: str) -> None:
    """Has the master listen. Why it can't is in `forward` afterwards; where it can, `probe` finds out the rest.

    `host` is for the messages. Raises MasterError when the master doesn't answer.
    """
    for listen in forward.forward.listeners:
        if listen in forward.listening:
            continue
        if listen.path and forward.forward.kind is not Kind.REMOTE:
            remove_stale_socket(Path(listen.path))
        try:
            if not master.ours and await _is_taken_by_others(master, forward.forward, listen):
                raise ForwardRefused("taken")  # asked all the same, it would say so in the user's own terminal
            chosen = await master.control.open_forward(forward.forward, listen, OPENING)
        except ForwardRefused:
            if forward.forward.kind is Kind.REMOTE:
                forward.found(ForwardState.REFUSED, f"{host} refuses to listen on {listen}", _REMOTE_HINT)
                return
            if await _explain_local_refusal(forward, listen, master):
                continue
            await close_forward(master, forward)
            return
        forward.listening.append(listen)
        forward.chosen_port = chosen or 0


async def close_forward(master: Master, forward: OpenForward) -> None:
    """Takes back what `open_forward` opened. Established connections stay."""
    for listen in forward.listening:
        try:
            await master.control.close_forward(forward.forward, listen, CLOSING)
        except ForwardRefused:
            continue
        except MasterError:
            break  # it doesn't answer: the others would only wait as long
    forget_listeners(forward)


def forget_listeners(forward: OpenForward) -> None:
    """Notes that no master listens for `forward` any more, and removes the sockets that ssh leaves behind."""
    for listen in forward.listening:
        if listen.path and forward.forward.kind is not Kind.REMOTE:
            remove_stale_socket(Path(listen.path))
    forward.listening.clear()


async def probe(
    master: Master, forward: OpenForward, host: str, round_trip: Callable[[], Awaitable[object]]
) -> None:
    """Finds out whether the target takes connections, by one connection that is closed at once.

    `round_trip` returns once the far side has answered something sent now.
    """
    target = forward.forward.target
    if forward.forward.kind is not Kind.LOCAL or target is None:
        forward.found(ForwardState.UP)
        return
    start = master.log_size()
    try:
        if target.path:
            served = await _stays_open(forward.listening[0], round_trip)
        else:
            served = await _accepts(master, target)
    except TimeoutError:
        forward.found(
            ForwardState.NO_SERVICE,
            f"{target} does not accept connections from {host}",
            "the tunnel stays up, and works as soon as it does",
        )
        return
    if served:
        forward.found(ForwardState.UP)
        return
    match refusal(master.read_log(start)):
        case Refusal.FORBIDDEN:
            forward.found(
                ForwardState.REFUSED,
                f"the sshd of {host} forbids forwarding to {target}",
                "ask its administrator about AllowTcpForwarding and PermitOpen, or your key's options",
            )
        case Refusal.UNREACHABLE:
            forward.found(
                ForwardState.NO_SERVICE,
                f"{host} can't reach {target}",
                f"try it there: ssh {host} getent hosts {target.host}",
            )
        case Refusal.NO_SERVICE | Refusal.UNKNOWN:
            forward.found(
                ForwardState.NO_SERVICE,
                f"nothing listens at {target} on {host} yet",
                await _other_loopback(master, forward.forward, host)
                or "start it there: the tunnel stays up, and works as soon as it listens",
            )


async def _other_loopback(master: Master, forward: Forward, host: str) -> str:
    """A hint, if the target is only 127.0.0.1 and the service is on ::1."""
    assert forward.target is not None
    if forward.target.host != "127.0.0.1":
        return ""
    other = forward.target._replace(host="::1")
    with contextlib.suppress(TimeoutError):
        if await _accepts(master, other):
            return f"something listens at {other} there: holdfast up {host} {forward.listen.port}:{other}"
    return ""


async def _accepts(master: Master, target: Address) -> bool:
    """Whether the TCP `target` takes a connection. Raises TimeoutError, MasterError."""
    control = await ControlSocket.connect(master.socket)
    ours, theirs = socket.socketpair()
    try:
        async with asyncio.timeout(PROBE):
            await control.start_stdio_forward(target, (theirs.fileno(), theirs.fileno()), PROBE + 1)
    except ForwardRefused:
        return False
    finally:
        ours.close()
        theirs.close()
        control.close()
    return True


async def _stays_open(listen: Address, round_trip: Callable[[], Awaitable[object]]) -> bool:
    """Whether a connection through our own listener is still there after a round trip.

    For Unix sockets over there: masters before 9.4 make TCP of a stdio forward to one. sshd connects to a Unix
    socket at once, so its refusal travels ahead of the answer to whatever was sent after the connection.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_UNIX if listen.path else socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        async with asyncio.timeout(PROBE):
            await loop.sock_connect(client, listen.path or (listen.host, listen.port))
            await round_trip()
        try:
            return client.recv(1) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


async def _is_taken_by_others(master: Master, forward: Forward, listen: Address) -> bool:
    if forward.kind is Kind.REMOTE or listen.path or processes.why_not(listen) != errno.EADDRINUSE:
        return False
    return (await asyncio.to_thread(processes.holder, listen)).pid != master.pid


async def _explain_local_refusal(forward: OpenForward, listen: Address, master: Master) -> bool:
    """Says in `forward` why the master can't listen there. True when the forward can do without this listener."""
    if listen.path:
        forward.found(
            ForwardState.PORT_TAKEN,
            f"can't listen on {listen.path}",
            f"see what is there: ls -l {listen.path}",
        )
        return False
    trouble = processes.why_not(listen)
    if (
        trouble in processes.NO_SUCH_ADDRESS
        and forward.forward.listen.host == "localhost"
        and listen.host == "::1"
    ):
        return True  # a machine without IPv6
    if trouble == errno.EADDRINUSE:
        who = await asyncio.to_thread(processes.holder, listen)
        if who.pid == master.pid and not master.ours:
            forward.found(ForwardState.UP, "forwarded by the master that you started yourself, and left alone")
            return True
        taken, other = port_taken(forward.forward, listen, who)
        forward.found(ForwardState.PORT_TAKEN, taken, other)
    else:
        forward.found(ForwardState.PORT_TAKEN, *_bind_trouble(forward.forward, listen, trouble))
    return False


def port_taken(forward: Forward, listen: Address, who: processes.Holder) -> tuple[str, str]:
    """The reason and the hint for a local port that `who` has."""
    hint = f"end that, or use another port: {_elsewhere(forward)}"
    return f"port {listen.port} on {listen.host} is taken by {who}", hint


def _bind_trouble(forward: Forward, listen: Address, trouble: int) -> tuple[str, str]:
    if trouble == errno.EACCES:
        return f"only root may listen on port {listen.port}", f"use one above 1023: {_elsewhere(forward)}"
    if trouble in processes.NO_SUCH_ADDRESS:
        return f"{listen.host} is not an address of this machine", "see them: ip address"
    return f"the master can't listen on {listen}", "it is tried again; holdfast logs tells more"


def _elsewhere(forward: Forward) -> str:
    port = forward.listen.port + (1 if forward.listen.port > 1023 else 8000)
    target = f"{forward.target}".removeprefix("127.0.0.1:") if forward.target else ""
    return f"-D {port}" if forward.kind is Kind.DYNAMIC else f"{port}:{target}"


def check_listener(forward: Forward) -> None:
    """That the listening end can be ours, as far as can be told before anything is started.

    Raises UsageError for what is wrong with it, HoldfastError when another program has it.
    """
    if forward.kind is Kind.REMOTE:
        return
    if forward.listen.path:
        _check_socket_path(Path(forward.listen.path))
        return
    for listen in forward.listeners:
        trouble = processes.why_not(listen) if listen.port else 0
        if trouble in processes.NO_SUCH_ADDRESS and forward.listen.host == "localhost":
            continue
        if trouble == errno.EADDRINUSE:
            who = processes.holder(listen)
            if who.name != "ssh":  # it may be the very master that is about to be adopted
                raise HoldfastError(*port_taken(forward, listen, who))
        elif trouble:
            raise HoldfastError(*_bind_trouble(forward, listen, trouble))


def _check_socket_path(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path} is a directory", "name a socket file in it")
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent} for the socket", f"mkdir -p {path.parent}")
    if path.exists() and not path.is_socket():
        raise UsageError(f"{path} exists and is not a socket", "name another path")
    if path.is_socket() and not is_stale(path):
        raise HoldfastError(f"another program listens on {path}", "name another path")


def remove_stale_socket(path: Path) -> None:
    """Removes a socket that nobody listens on any more; anything else is left alone."""
    with contextlib.suppress(OSError):
        if is_stale(path):
            path.unlink(missing_ok=True)
