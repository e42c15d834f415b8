"""`jupyter` and `open`: notebook servers over there, found or started, and opened here."""

from __future__ import annotations

import json
from typing import Any, TypedDict
from urllib.parse import quote

import click

from holdfast import client
from holdfast.cli import browser, connecting, people, render, starting
from holdfast.cli.asking import Far, ask, at_terminal, check_timeout, far_or_described, ssh_options
from holdfast.cli.completing import complete_host, complete_tunnel
from holdfast.cli.main import complain
from holdfast.cli.reaching import Reached, find, reach, up_request
from holdfast.control import ForwardStatus, Status, TunnelStatus
from holdfast.errors import Exit, HoldfastError, UsageError
from holdfast.forward import parse_address
from holdfast.jupyter import launch, servers
from holdfast.jupyter.launch import Wish
from holdfast.jupyter.servers import Found, Notebook, Server


class ListedServer(TypedDict):
    """A notebook server as `jupyter --list --json` prints it, with its token."""

    url: str | None
    """Its address over there, without the token; null for a Unix socket."""
    base_url: str
    """The path under which it is, with a `/` at each end."""
    port: int | None
    """Its TCP port; null for a Unix socket."""
    socket: str | None
    """The path of its Unix socket; null for TCP."""
    address: str | None
    """The address on which it is reached from the host itself; null for a Unix socket."""
    secure: bool
    """It speaks TLS."""
    token: str
    """Its token; empty when it has none."""
    password: bool
    """It says that it has a password."""
    directory: str
    """Its root."""
    version: str | None
    """The version of Jupyter Server; null for Notebook 6 and older."""
    pid: int
    """Its process id."""
    hub: bool
    """A JupyterHub started it, and only that can log you in."""


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

    HOST may also be a tunnel of your configuration file.

    With --start one is started if none runs in that directory: in its own process, which outlives the connection,
    on a Unix socket that nobody else over there can reach.
    """
    there = far_or_described(host, options)
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
        return starting.stop(there, _choose(found, host, port, directory), found, timeout, force=force)
    if start:
        wish = Wish(directory, env, app or "", "tls" if tls else "tcp" if tcp else "socket")
        server, found = starting.find_or_start(there, wish, timeout)
    else:
        found = find(there, timeout)
        if not servers.matching(found.servers, port, directory) and not port and _wants_one(found, host):
            server, found = starting.find_or_start(there, Wish(directory), timeout)
        else:
            server = _choose(found, host, port, directory)
    reached = reach(there, server, found, timeout)
    if connect:
        return connecting.connect(there, reached, timeout)
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
        click.echo(json.dumps({"version": 1, "servers": [_listed(server) for server in found.servers]}))
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


def _listed(server: Server) -> ListedServer:
    return ListedServer(
        url=server.kept.url(server.place) if server.place.port else None,
        base_url=server.base_url,
        port=server.place.port or None,
        socket=server.place.path or None,
        address=server.place.host or None,
        secure=server.secure,
        token=server.token,
        password=server.password,
        directory=server.directory,
        version=server.version or None,
        pid=server.pid,
        hub=server.hub,
    )


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


def _brought_up(name: str, timeout: float) -> TunnelStatus:
    """The tunnel, brought up again if it was taken down. Raises HoldfastError."""
    try:
        (tunnel,) = client.ask(Status((name,)), timeout=timeout, notice=complain)
    except HoldfastError as error:
        if error.exit_code != Exit.NOT_UP:
            raise
        (tunnel,) = ask(up_request(Far(name, ()), []), name, timeout)
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
