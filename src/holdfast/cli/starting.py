"""Starts and ends notebook servers over there, and says what a user has to know of that."""

from __future__ import annotations

import os
from collections.abc import Sequence

import click

from holdfast import client, lock, paths
from holdfast.cli.asking import Far, run_there, tunnels
from holdfast.cli.connecting import beside
from holdfast.cli.main import complain
from holdfast.cli.reaching import find, reached_for_a_moment
from holdfast.control import Down, default_name
from holdfast.errors import Exit, HoldfastError
from holdfast.jupyter import audit, launch
from holdfast.jupyter.api import Api, Kernel
from holdfast.jupyter.launch import Started, Wish
from holdfast.jupyter.servers import Found, Server

_NAMES = {"lab": "JupyterLab", "notebook": "Jupyter Notebook", "server": "Jupyter Server"}


def find_or_start(there: Far, wish: Wish, timeout: float) -> tuple[Server, Found]:
    """The server that runs in the wished directory, or a new one; and all that run there. Raises HoldfastError.

    One at a time: of two commands at once, one starts it and the other finds it.
    """
    lock_file = paths.state_dir() / f"jupyter-start-{default_name(there.host)}.lock"
    held = lock.acquire(lock_file, timeout + launch.STARTING)
    if held is None:
        raise HoldfastError(f"another holdfast command is starting a server on {there.host}", "try again")
    try:
        found = find(there, timeout, wish.directory or "~")
        running = [server for server in found.servers if server.directory == found.directory]
        if running:
            complain(f"a notebook server runs in {running[0].directory} on {there.host} already")
            return running[0], found
        complain(f"starting a notebook server on {there.host}")
        printed = run_there(there, launch.start_program(wish), timeout, launch.STARTING)
        started = launch.read_started(printed, there.host, wish)
        found = find(there, timeout)
        server = next((one for one in found.servers if one.pid == started.pid), None)
        if server is None:
            raise HoldfastError(
                f"the server was started on {there.host}, and can't be found again",
                f"what it says: holdfast logs {there.called} --remote",
            )
        _check_login(there, server, found, timeout)
        _tell_of(started, there)
        return server, found
    finally:
        os.close(held)


def _check_login(there: Far, server: Server, found: Found, timeout: float) -> None:
    """Ends a server on TCP that has just started, and that everybody could use. Raises HoldfastError."""
    if server.token or server.place.path:
        return
    with reached_for_a_moment(there, server, found, timeout) as reached:
        reached.api.wait_for_answer(timeout)
        if reached.api.wants_login():
            return
    run_there(there, launch.end_program(server.pid, signal=True), timeout)
    raise HoldfastError(
        f"your Jupyter configuration on {there.host} turns its login off: every user there could act as you "
        "through its TCP port, so the server was ended again",
        f"leave --tcp and --tls out, or see there: ssh {there.host} grep -r token .jupyter",
    )


def _tell_of(started: Started, there: Far) -> None:
    where = {"socket": "a Unix socket that only you can reach", "tls": "TCP with TLS", "tcp": "TCP in the clear"}
    complain(
        f"started {_NAMES[started.app]} {started.version} from {started.environment}, on {where[started.kind]}; "
        f"to end it: holdfast jupyter {there.called} --stop"
    )
    if started.kind == "tcp":
        complain(f"it listens on plain TCP: {audit.TCP_RISK}", f"holdfast doctor {there.called} tells more")
    if started.fingerprint:
        complain(f"your browser will not know its certificate; its SHA-256 is {started.fingerprint}")
    if started.warning:
        complain(started.warning, f"ask for permission to stay: ssh {there.host} loginctl enable-linger")


def stop(there: Far, server: Server, found: Found, timeout: float, *, force: bool) -> int:
    """Has the server end, and tidies up; not while kernels are busy, unless `force`d. Raises HoldfastError."""
    with reached_for_a_moment(there, server, found, timeout) as reached:
        running: list[Kernel] = []
        if not force:
            reached.api.wait_for_answer(timeout)
            running = _check_idle(reached.api, there.called)
        has_agreed = bool(server.token) and reached.api.shut_down()
        printed = run_there(there, launch.end_program(server.pid, signal=not has_agreed), timeout)
    if not launch.has_ended(printed):
        raise HoldfastError(
            f"the server in {server.directory} on {there.host} does not end",
            f"ssh {there.host} kill {server.pid}",
        )
    _take_down(there, server, running, timeout)
    click.echo(f"the notebook server in {server.directory} on {there.host} has ended")
    return Exit.OK


def _take_down(there: Far, server: Server, running: Sequence[Kernel], timeout: float) -> None:
    """Takes away what led to a server that has ended, and to its kernels."""
    of_kernels = tuple(beside(kernel).name for kernel in running)
    for tunnel in tunnels(timeout):
        own = [
            one["listen"] for one in tunnel["forwards"] if one["notebook"] and one["notebook"]["pid"] == server.pid
        ]
        if own and there.host in (tunnel["host"], tunnel["name"]):
            client.ask(Down((tunnel["name"],), tuple(own), False), timeout=timeout)
        if of_kernels and tunnel["name"].endswith(of_kernels):
            client.ask(Down((tunnel["name"],), (), False, forget=True), timeout=timeout)
    for kernel in running:
        beside(kernel).with_suffix(".json").unlink(missing_ok=True)


def _check_idle(api: Api, host: str) -> list[Kernel]:
    """The server's kernels. Raises HoldfastError where ending it would end work, or might."""
    all_the_same = f"end it all the same: holdfast jupyter {host} --stop --force"
    try:
        running = api.kernels()
    except HoldfastError as error:
        raise HoldfastError(error.message, all_the_same) from None
    busy = [kernel for kernel in running if kernel.state == "busy"]
    if busy:
        names = ", ".join(kernel.name for kernel in busy)
        them = (
            "1 kernel is busy, and would lose its"
            if len(busy) == 1
            else f"{len(busy)} kernels are busy, and lose their"
        )
        raise HoldfastError(f"{them} work: {names}", all_the_same)
    return running
