"""`jupyter` and `open`: notebook servers over there, found or started, and opened here."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import click

from holdfast import client, lock, paths
from holdfast.cli import browser, people, render
from holdfast.cli.asking import Far, ask, at_terminal, check_timeout, environment, far, run_there, ssh_options
from holdfast.cli.completing import complete_host, complete_tunnel
from holdfast.cli.main import complain
from holdfast.control import Down, ForwardStatus, Status, TunnelStatus, Up, default_name, encode_forward
from holdfast.errors import Exit, HoldfastError, UsageError
from holdfast.forward import Address, Forward, Kind, parse_address
from holdfast.jupyter import audit, kernels, launch, servers
from holdfast.jupyter.api import Api, Kernel
from holdfast.jupyter.launch import Started, Wish
from holdfast.jupyter.servers import Found, Notebook, Server

_NAMES = {"lab": "JupyterLab", "notebook": "Jupyter Notebook", "server": "Jupyter Server"}


class Reached(NamedTuple):
    """A server, behind a forward of a tunnel."""

    server: Server
    tunnel: TunnelStatus
    listen: Address
    api: Api

    @property
    def url(self) -> str:
        return f"{'https' if self.server.secure else 'http'}://{self.listen}"


@click.command(short_help="the notebook server on a host: found or started, and opened")
@click.argument("host", shell_complete=complete_host)
@click.option("--list", "listing", is_flag=True, help="list your servers over there")
@click.option("--json", "as_json", is_flag=True, help="with --list: as JSON, tokens and all")
@click.option("--port", type=click.IntRange(1, 65535), help="the server on that port over there")
@click.option("--dir", "directory", default="", metavar="PATH", help="the server in that directory over there")
@click.option("--start", is_flag=True, help="start one, unless one runs in that directory")
@click.option("--env", "env", default="", metavar="KIND:NAME", help="in conda:, venv:, pixi:, uv: or module:NAME")
@click.option("--command", "app", type=click.Choice(launch.APPS), help="what to start (the first that is there)")
@click.option("--tls", is_flag=True, help="have it listen on TCP, with a certificate of its own")
@click.option("--tcp", is_flag=True, help="have it listen on TCP, in the clear")
@click.option("--stop", is_flag=True, help="end the server over there")
@click.option("--force", is_flag=True, help="with --stop: although kernels are busy")
@click.option("--connect", is_flag=True, help="print what editors and consoles need to use its kernels")
@click.option("--no-browser", is_flag=True, help="only print the URL")
@click.option("--app", "as_app", is_flag=True, help="open it in a Chromium window of its own")
@click.option("--timeout", default=60.0, show_default=True, help="seconds to wait for the connection")
@ssh_options
def jupyter(
    host: str,
    listing: bool,
    as_json: bool,
    port: int | None,
    directory: str,
    start: bool,
    env: str,
    app: str | None,
    tls: bool,
    tcp: bool,
    stop: bool,
    force: bool,
    connect: bool,
    no_browser: bool,
    as_app: bool,
    timeout: float,
    **options: Any,
) -> int:
    """Finds your notebook server on HOST, brings a tunnel to it up, and opens it in the browser.

    With --start one is started if none runs in that directory: in its own process, which outlives the connection,
    on a Unix socket that nobody else over there can reach.
    """
    there = far(host, options)
    check_timeout(timeout)
    launch.check_directory(directory)
    _check_together(
        start=start,
        env=env,
        app=app,
        tls=tls,
        tcp=tcp,
        stop=stop,
        force=force,
        port=port,
        listing=listing or as_json,
    )
    if env:
        launch.check_environment(env)
    if listing or as_json:
        return _list(find(there, timeout), host, as_json=as_json)
    if stop:
        found = find(there, timeout)
        return _stop(there, _choose(found, host, port, directory), found, timeout, force=force)
    if start:
        wish = Wish(directory, env, app or "", "tls" if tls else "tcp" if tcp else "socket")
        server, found = _find_or_start(there, wish, timeout)
    else:
        found = find(there, timeout)
        if not servers.matching(found.servers, port, directory) and not port and _wants_one(found, host):
            server, found = _find_or_start(there, Wish(directory), timeout)
        else:
            server = _choose(found, host, port, directory)
    reached = reach(there, server, found, timeout)
    if connect:
        return _connect(there, reached, timeout)
    return _open(reached, timeout, no_browser=no_browser, as_app=as_app)


@click.command("open", short_help="open a tunnel's notebook in the browser again")
@click.argument("name", shell_complete=complete_tunnel)
@click.option("--no-browser", is_flag=True, help="only print the URL")
@click.option("--app", "as_app", is_flag=True, help="open it in a Chromium window of its own")
@click.option("--timeout", default=60.0, show_default=True, help="seconds to wait for the connection")
def open_again(name: str, no_browser: bool, as_app: bool, timeout: float) -> int:
    """Opens what the tunnel NAME leads to; a notebook with its token, which is asked for over there each time."""
    check_timeout(timeout)
    tunnel = _brought_up(name, timeout)
    there = Far(tunnel["name"], ())
    pages = [forward for forward in tunnel["forwards"] if forward["url"]]
    notebooks = [forward for forward in pages if forward["notebook"]]
    if not pages:
        raise HoldfastError(f"the tunnel '{name}' has nothing for a browser", f"holdfast status {name}")
    if not notebooks:
        return _show(str(pages[0]["url"]), no_browser=no_browser, as_app=as_app)
    found = find(there, timeout)
    live = [server for forward in notebooks if (server := _behind(forward, found))]
    if not live:
        client.ask(Status((tunnel["name"],), look=True), timeout=timeout)  # so that the keeper knows it, too
        raise HoldfastError(
            f"the notebook server does not run on {tunnel['host']} any more",
            f"holdfast jupyter {tunnel['host']} --start",
        )
    server = _choose(found._replace(servers=tuple(dict.fromkeys(live))), tunnel["host"], None, "")
    return _open(reach(there, server, found, timeout), timeout, no_browser=no_browser, as_app=as_app)


def _behind(forward: ForwardStatus, found: Found) -> Server | None:
    """The server that a notebook's forward leads to, or that has taken its place."""
    known = forward["notebook"]
    if known is None or forward["target"] is None:
        return None
    notebook = Notebook(known["pid"], known["directory"], known["base_url"], False, known["version"])
    place = parse_address(forward["target"])
    return servers.same(notebook, place, found.servers) or servers.successor(notebook, found.servers)


def find(there: Far, timeout: float, directory: str = "") -> Found:
    """Your servers over there, and what `directory` is called there. Raises HoldfastError."""
    program = servers.program_for(directory) if directory else servers.PROGRAM
    return servers.read(run_there(there, program, timeout))


def reach(there: Far, server: Server, found: Found, timeout: float, name: str = "") -> Reached:
    """Brings a forward to the server up, or finds the one that there is; of the tunnel `name`, or the host's own.

    Raises HoldfastError.
    """
    if server.hub:
        raise HoldfastError(
            f"the server in {server.directory} on {there.host} belongs to a JupyterHub: only that can log you in",
            f"open it at the hub's own address; a server beside it: holdfast jupyter {there.host} --start",
        )
    forward = Forward(Kind.LOCAL, Address("localhost"), server.place)
    running = tuple(one.pid for one in found.servers)
    (tunnel,) = ask(_up(there, [forward], name=name, notebook=server.kept, running=running), there.host, timeout)
    own = next((one for one in tunnel["forwards"] if one["target"] == str(server.place)), None)
    if own is None:
        raise HoldfastError("the notebook server has moved in this very moment", "try again")
    if own["state"] not in ("up", "no service", "connecting"):
        hint = f"holdfast jupyter {there.host} --stop, then --start --tls" if server.place.path else own["hint"]
        raise HoldfastError(own["reason"] or f"the tunnel to {server.place} is {own['state']}", hint or "")
    return _reached(server, tunnel, own)


def _reached(server: Server, tunnel: TunnelStatus, own: ForwardStatus) -> Reached:
    listen = parse_address(own["listen"])
    api = Api(listen.port, server.base_url, server.token, secure=server.secure, fingerprint=server.fingerprint)
    return Reached(server, tunnel, listen, api)


@contextlib.contextmanager
def reached_for_a_moment(there: Far, server: Server, found: Found, timeout: float) -> Iterator[Reached]:
    """The server behind a forward that there is, or behind one of a tunnel of its own that goes again."""
    known = client.ask(Status(()), timeout=timeout) if client.something_is_wanted() else []
    for tunnel in known:
        for own in tunnel["forwards"]:
            is_there = own["target"] == str(server.place) and own["kind"] == "local" and ":" in own["listen"]
            if is_there and own["state"] == "up" and there.host in (tunnel["host"], tunnel["name"]):
                yield _reached(server, tunnel, own)
                return
    reached = reach(there, server, found, timeout, name=f"moment-{secrets.token_hex(4)}")
    try:
        yield reached
    finally:
        client.ask(Down((reached.tunnel["name"],), (), False, forget=True), timeout=timeout)


def _open(reached: Reached, timeout: float, *, no_browser: bool, as_app: bool) -> int:
    reached.api.wait_for_answer(timeout)
    server = reached.server
    page = f"{reached.url}{reached.api.landing_page()}"
    if not server.token and reached.api.wants_login():
        complain(f"the server in {server.directory} asks for the password that you gave it")
    code = _show(f"{page}?token={quote(server.token)}" if server.token else page, no_browser, as_app)
    people.tell_of(reached.tunnel)
    return code


def _show(url: str, no_browser: bool, as_app: bool) -> int:
    click.echo(url)
    if not no_browser and browser.is_there() and not browser.open_page(url, as_app=as_app):
        complain("no browser has taken it", "open the URL above yourself")
    return Exit.OK


def _list(found: Found, host: str, *, as_json: bool) -> int:
    if as_json:
        records = [
            {
                "url": server.kept.url(server.place) if server.place.port else None,
                "base_url": server.base_url,
                "port": server.place.port or None,
                "socket": server.place.path or None,
                "address": server.place.host or None,
                "secure": server.secure,
                "token": server.token,
                "password": server.password,
                "directory": server.directory,
                "version": server.version or None,
                "pid": server.pid,
                "hub": server.hub,
            }
            for server in found.servers
        ]
        click.echo(json.dumps({"version": 1, "servers": records}))
    elif found.servers:
        click.echo(render.servers_table(found.servers), color=render.colour_allowed())
    else:
        complain(f"no notebook server of yours runs on {host}", f"holdfast jupyter {host} --start")
    if found.strange:
        complain(
            f"{found.strange} more can't be used: what listens at their address is not known to be yours",
            f"holdfast doctor {host}",
        )
    return Exit.OK


def _choose(found: Found, host: str, port: int | None, directory: str) -> Server:
    """The one server that is meant, by asking if need be. Raises HoldfastError."""
    chosen = servers.matching(found.servers, port, directory)
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        where = f" on port {port}" if port else f" in {directory}" if directory else ""
        others = f"; {len(found.servers)} elsewhere" if found.servers else ""
        hint = f"holdfast jupyter {host} --list" if found.servers else f"holdfast jupyter {host} --start"
        raise HoldfastError(f"no notebook server of yours runs on {host}{where}{others}", hint)
    if not at_terminal():
        which = ", ".join(server.option for server in chosen)
        raise UsageError(f"{len(chosen)} notebook servers of yours run on {host}", f"say which: {which}")
    for number, server in enumerate(chosen, 1):
        click.echo(f"{number}  {server.directory}  ({server.place})", err=True)
    number = click.prompt("which one", type=click.IntRange(1, len(chosen)), err=True)
    return chosen[number - 1]


def _wants_one(found: Found, host: str) -> bool:
    """Whether the user, asked, has a server started where none runs."""
    return (
        not found.servers
        and at_terminal()
        and click.confirm(f"no notebook server of yours runs on {host}: start one?", default=True, err=True)
    )


def _find_or_start(there: Far, wish: Wish, timeout: float) -> tuple[Server, Found]:
    """The server that runs in the wished directory, or a new one; and all that run there.

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
                f"what it says: holdfast logs {there.host} --remote",
            )
        _check_login(there, server, found, timeout)
        _tell_of(started, there.host)
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


def _tell_of(started: Started, host: str) -> None:
    where = {"socket": "a Unix socket that only you can reach", "tls": "TCP with TLS", "tcp": "TCP in the clear"}
    complain(
        f"started {_NAMES[started.app]} {started.version} from {started.environment}, on {where[started.kind]}; "
        f"to end it: holdfast jupyter {host} --stop"
    )
    if started.kind == "tcp":
        complain(f"it listens on plain TCP: {audit.TCP_RISK}", f"holdfast doctor {host} tells more")
    if started.fingerprint:
        complain(f"your browser will not know its certificate; its SHA-256 is {started.fingerprint}")
    if started.warning:
        complain(started.warning, f"ask for permission to stay: ssh {host} loginctl enable-linger")


def _stop(there: Far, server: Server, found: Found, timeout: float, *, force: bool) -> int:
    with reached_for_a_moment(there, server, found, timeout) as reached:
        running: list[Kernel] = []
        if not force:
            reached.api.wait_for_answer(timeout)
            running = _check_idle(reached.api, there.host)
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
    of_kernels = tuple(_beside(kernel).name for kernel in running)
    for tunnel in client.ask(Status(()), timeout=timeout) if client.something_is_wanted() else []:
        own = [
            one["listen"] for one in tunnel["forwards"] if one["notebook"] and one["notebook"]["pid"] == server.pid
        ]
        if own and there.host in (tunnel["host"], tunnel["name"]):
            client.ask(Down((tunnel["name"],), tuple(own), False), timeout=timeout)
        if of_kernels and tunnel["name"].endswith(of_kernels):
            client.ask(Down((tunnel["name"],), (), False, forget=True), timeout=timeout)
    for kernel in running:
        _beside(kernel).with_suffix(".json").unlink(missing_ok=True)


def _beside(kernel: Kernel) -> Path:
    """Where what belongs to a kernel is on this machine, but for its ending."""
    return paths.private_dir(paths.runtime_dir() / "kernels") / kernel.id[:8]


def _check_idle(api: Api, host: str) -> list[Kernel]:
    """The server's kernels. Raises HoldfastError where ending it would end work, or might."""
    try:
        running = api.kernels()
    except HoldfastError as error:
        raise HoldfastError(
            error.message, f"end it all the same: holdfast jupyter {host} --stop --force"
        ) from None
    busy = [kernel for kernel in running if kernel.state == "busy"]
    if busy:
        names = ", ".join(kernel.name for kernel in busy)
        what = (
            "1 kernel is busy, and would lose its"
            if len(busy) == 1
            else f"{len(busy)} kernels are busy, and lose their"
        )
        raise HoldfastError(
            f"{what} work: {names}",
            f"end it all the same: holdfast jupyter {host} --stop --force",
        )
    return running


def _connect(there: Far, reached: Reached, timeout: float) -> int:
    reached.api.wait_for_answer(timeout)
    server = reached.server
    url = f"{reached.url}{server.base_url}?token={quote(server.token)}"
    click.echo(f"VS Code  Select Kernel > Existing Jupyter Server: {url}")
    click.echo(f"PyCharm  Jupyter Connection > Configured Server: {url}")
    running = sorted(reached.api.kernels(), key=lambda kernel: kernel.last_activity)
    if not running:
        complain("no kernel runs there yet, to which a console could be connected", "open a notebook first")
        return Exit.OK
    path = _connected_kernel(there, running[-1], reached.tunnel["name"], timeout)
    click.echo(f"console  jupyter console --existing {shlex.quote(str(path))}")
    return Exit.OK


def _connected_kernel(there: Far, kernel: Kernel, name: str, timeout: float) -> Path:
    """The connection file, here, of a kernel whose five ports a tunnel of their own leads to."""
    record = kernels.read(run_there(there, kernels.program(kernel.id), timeout), there.host)
    path = _beside(kernel)
    forwards = kernels.forwards(record, path)
    (tunnel,) = ask(_up(there, forwards, name=f"{name}-{path.name}"), there.host, timeout)
    listens = {own["target"]: parse_address(own["listen"]) for own in tunnel["forwards"]}
    file = path.with_suffix(".json")
    file.touch(mode=0o600)
    file.write_text(kernels.connection_file(record, path, [listens[str(own.target)] for own in forwards]))
    if not (kernels.is_encrypted(record) or kernels.is_on_sockets(record)):
        complain("what this kernel says can be read by every user of this machine, and of the other one")
    complain(f"to end its tunnel: holdfast down {tunnel['name']}")
    return file


def _up(
    there: Far,
    forwards: Sequence[Forward],
    *,
    name: str = "",
    notebook: Notebook | None = None,
    running: tuple[int, ...] = (),
) -> Up:
    return Up(
        host=there.host,
        name=name,
        options=there.options,
        forwards=tuple(map(encode_forward, forwards)),
        environment=environment(),
        terminal=at_terminal(),
        wait=True,
        expose=False,
        notebook=notebook.encode() if notebook else {},
        running=running,
    )


def _brought_up(name: str, timeout: float) -> TunnelStatus:
    """The tunnel, brought up again if it was taken down. Raises HoldfastError."""
    try:
        (tunnel,) = client.ask(Status((name,)), timeout=timeout, notice=complain)
    except HoldfastError as error:
        if error.exit_code != Exit.NOT_UP:
            raise
        (tunnel,) = ask(_up(Far(name, ()), []), name, timeout)
    return tunnel


def _check_together(**given: Any) -> None:
    """Raises UsageError for options that make no sense without another, or with it."""
    if given["stop"] and given["start"]:
        raise UsageError("--start and --stop are two commands", "stop it first, then start it")
    if given["tls"] and given["tcp"]:
        raise UsageError("--tls and --tcp exclude each other", "leave both out for a Unix socket")
    for option, name in (("--env", "env"), ("--command", "app"), ("--tls", "tls"), ("--tcp", "tcp")):
        if given[name] and not given["start"]:
            raise UsageError(f"{option} is about a server that is started", f"add --start, or leave {option} out")
    if given["port"] and given["start"]:
        raise UsageError("--port is about a server that runs already", "leave it out: the server finds a free one")
    if given["listing"] and (given["start"] or given["stop"]):
        raise UsageError("--list only lists", "leave it out")
    if given["force"] and not given["stop"]:
        raise UsageError("--force is about a server that is stopped", "add --stop, or leave --force out")
