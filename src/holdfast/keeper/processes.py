"""What the system knows of ports and processes: who holds a port, which is free, which masters are left over."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from holdfast.errors import HoldfastError
from holdfast.forward import Address
from holdfast.openssh.master import kill_with_children


class Holder(NamedTuple):
    """Who listens on an address. `pid` is None for a process of another user, which the system hides."""

    name: str
    pid: int | None

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})" if self.pid else self.name


def why_not(address: Address) -> int:
    """The errno that listening on the TCP `address` would give just now, or 0."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    host = "" if address.host == "*" else address.host
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind((host, address.port))
            probe.listen(1)
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0


def free_port(listeners: Collection[Address]) -> int:
    """A port that is free just now on each of `listeners`, whose own port doesn't count.

    Raises HoldfastError when there is none.
    """
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if all(is_free(end._replace(port=port)) for end in listeners):
            return port
    raise HoldfastError(f"no port is free on {', '.join(end.host for end in listeners)}", "name one: 9999:8888")


def is_free(address: Address) -> bool:
    """Whether the TCP `address` can be listened on, or is ::1 on a machine without IPv6."""
    return why_not(address) in ((0, *NO_SUCH_ADDRESS) if address.host == "::1" else (0,))


# What a machine without IPv6 answers for ::1.
NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def holder(address: Address) -> Holder:
    """Who listens on the TCP `address`, or on all addresses with its port."""
    everywhere = {"0.0.0.0", "::", "*"}  # noqa: S104 - compared, not bound
    for host, port, pid in _listening():
        if port == address.port and (host == address.host or {host, address.host} & everywhere):
            return _named(pid)
    return Holder("another program", None)


def _listening() -> Iterator[tuple[str, int, int | None]]:
    """The address, port and pid of every listener that the system shows us."""
    try:
        for end in psutil.net_connections("tcp"):
            if end.status == psutil.CONN_LISTEN and end.laddr:
                yield end.laddr[0], end.laddr[1], end.pid
    except psutil.AccessDenied:  # macOS shows only one's own, one process at a time
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                yield from _listening_of(process)


def _listening_of(process: psutil.Process) -> Iterator[tuple[str, int, int | None]]:
    for end in process.net_connections("tcp"):
        if end.status == psutil.CONN_LISTEN and end.laddr:
            yield end.laddr[0], end.laddr[1], process.pid


def _named(pid: int | None) -> Holder:
    if pid is None:
        return Holder("another user's program", None)
    try:
        return Holder(psutil.Process(pid).name(), pid)
    except psutil.Error:
        return Holder("another program", pid)


def own_addresses(pid: int) -> tuple[str, str]:
    """This machine's end of the TCP connection of the master `pid`, and the other one: '' for what isn't known.

    ssh opens it before any other.
    """
    with contextlib.suppress(psutil.Error, OSError):
        own = min(_connections(pid), key=lambda end: end.fd, default=None)
        if own is not None:
            return _host_of(own.laddr), _host_of(own.raddr)
    return "", ""


def _host_of(end: Any) -> str:
    return end[0].partition("%")[0].removeprefix("::ffff:") if end else ""


def carries_nothing(pid: int, control: Path, is_direct: bool) -> bool:
    """Whether no connection goes over the master `pid`, besides its own (if `is_direct`) and ours to `control`."""
    try:
        if len(_connections(pid)) > is_direct:
            return False
        paths = [str(end.laddr) for end in psutil.Process(pid).net_connections("unix")]
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        return False
    # Of each path one is the listener; at `control`, which ssh bound beside its place and then renamed, the
    # heartbeat's session and the requests' connection are ours.
    ours = f"{control}."
    return all(paths.count(path) <= (3 if path.startswith(ours) else 1) for path in set(paths) - {""})


def _connections(pid: int) -> list[Any]:
    """The TCP connections of a process, without its listeners."""
    ends = psutil.Process(pid).net_connections("tcp")
    return [end for end in ends if end.status != psutil.CONN_LISTEN]


def end_left_over_masters(directory: Path, known: Collection[str]) -> None:
    """Ends the masters whose socket lies in `directory` and isn't one of `known`, and removes what they left.

    They are there when a keeper was killed in the middle of a login.
    """
    for socket_path, pid in _masters_in(directory):
        if socket_path not in known:
            kill_with_children(pid)
    for path in directory.iterdir():
        if str(path.with_suffix("")) not in known:
            path.unlink(missing_ok=True)


def end_master(socket_path: Path) -> None:
    """Ends the master of ours whose socket this is, though it doesn't answer."""
    for path, pid in _masters_in(socket_path.parent):
        if path == str(socket_path):
            kill_with_children(pid)
    socket_path.unlink(missing_ok=True)


def _masters_in(directory: Path) -> Iterator[tuple[str, int]]:
    """The socket and the pid of each master that we started with a socket in `directory`."""
    for process in psutil.process_iter(["cmdline", "uids"]):
        words = process.info["cmdline"] or []
        if not words or Path(words[0]).name != "ssh" or process.info["uids"].real != os.getuid():
            continue
        for word in words:
            if word.startswith(f"{directory}/") and not word.endswith(".log"):
                yield word, process.pid
