"""`config` and `save`: the configuration file, looked at and changed."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from holdfast import paths
from holdfast.cli import configured
from holdfast.cli.asking import at_terminal, far, tunnels
from holdfast.cli.completing import complete_host, complete_tunnel
from holdfast.cli.main import complain
from holdfast.cli.tunnel_options import said, tunnel_options
from holdfast.config.file import change, replace
from holdfast.config.reading import ConfigError, Described, Start, check_group, decode, parse, usual
from holdfast.config.users import users_content
from holdfast.control import check_name, default_name
from holdfast.errors import Exit, HoldfastError, UsageError

if TYPE_CHECKING:
    from holdfast.cli.configured import Project

_BEGINNING = """\
# The tunnels of holdfast, as in:
#
# [tunnels.lab]
# forwards = ["8888"]
# start = "login"
"""


@click.group(short_help="the configuration file: path, check, edit, add; allow a project's")
def config() -> None:
    """Tunnels that are described once, in config.toml, are brought up by their names; those of a project, in its
    .holdfast.toml, by holdfast up alone."""


@config.command(short_help="print where the file is")
def path() -> None:
    """Prints the path of the configuration file, which need not be there yet."""
    click.echo(paths.config_file())


@config.command(short_help="tell of every mistake in the file")
@click.argument("file", required=False, type=click.Path(path_type=Path))
def check(file: Path | None) -> int:
    """Reads the configuration file, or FILE, and tells of every mistake: its line, what is wrong, and what would
    be right. Nothing is brought up."""
    chosen = paths.config_file() if file is None else file.absolute()
    found = parse(_text(chosen), chosen)
    names = ", ".join(tunnel.name for tunnel in found)
    click.echo(f"{chosen.name}: {_count(len(found))}, no mistakes{names and f': {names}'}")
    return Exit.OK


@config.command(short_help="edit the file; it is replaced only when it is right")
def edit() -> int:
    """Opens a copy of the configuration file in $VISUAL or $EDITOR, and puts it in place once it has no
    mistakes."""
    chosen = paths.config_file()
    content, before = _read()
    begun = before or _BEGINNING
    # Not in /tmp: whatever ends this command, what was written is still there.
    folder = Path(tempfile.mkdtemp(prefix="edited-", dir=paths.state_dir()))
    copy = folder / chosen.name
    replace(copy, begun)
    try:
        after = _edited(copy, chosen)
        if after != begun:
            change(chosen, after, content)
    except HoldfastError as error:
        raise HoldfastError(error.message, _kept(copy, begun) or error.hint, error.exit_code) from None
    shutil.rmtree(folder)
    if after == begun:
        click.echo(f"{chosen} is as it was")
        return Exit.OK
    click.echo(f"{chosen}: {_count(len(parse(after, chosen)))}; what runs is changed by holdfast apply")
    return Exit.OK


@config.command(short_help="add a tunnel to the file")
@click.argument("host", shell_complete=complete_host)
@click.argument("forwards", nargs=-1, metavar="[FORWARD]...")
@click.option("--name", default="", help="the tunnel's name (default: the host's)")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="a group that it is in")
@click.option("--start", type=click.Choice([one.value for one in Start]), help="when it is brought up (manual)")
@tunnel_options
def add(
    host: str, forwards: tuple[str, ...], name: str, groups: tuple[str, ...], start: str | None, **options: Any
) -> int:
    """Adds the tunnel that holdfast up with these arguments would bring up. One that is there isn't changed."""
    wanted = said(forwards, options)
    there = far(host, options)
    if start not in (None, Start.DEMAND) and wanted.upkeep.get("lazy"):
        raise UsageError(f"a lazy tunnel doesn't start by {start}", "leave out one of --lazy and --start")
    is_lazy = bool(wanted.upkeep.get("lazy"))
    tunnel = Described(
        name=check_name(name) if name else default_name(there.host),
        host=there.host,
        forwards=tuple(wanted.forwards),
        groups=tuple(map(check_group, groups)),
        start=Start(start) if start else Start.DEMAND if is_lazy else Start.MANUAL,
        options=there.options,
        upkeep={**wanted.upkeep, "lazy": int(is_lazy or start == Start.DEMAND)},
        expose=wanted.expose,
    )
    chosen = paths.config_file()
    content, before = _read()
    if any(other.name == tunnel.name for other in parse(before, chosen)):
        raise UsageError(
            f"there is a tunnel '{tunnel.name}' in {chosen} already",
            "give this one another --name, or: holdfast config edit",
        )
    code = _write(tunnel, content)
    complain(f"bring it up: holdfast up {tunnel.name}")
    return code


@config.command(short_help="agree to the project's file as it is now")
def allow() -> int:
    """Shows the .holdfast.toml of this folder, or of the nearest above it, and agrees to what is in it now."""
    from holdfast.config import trust

    found = _project()
    click.echo(configured.shown(found))
    trust.allow(found.file, found.digest)
    click.echo(f"{found.file.path} is allowed, as it is now")
    return Exit.OK


@config.command(short_help="take the agreement to the project's file back")
def deny() -> int:
    """Forgets that you agreed to this project's .holdfast.toml. What runs goes on."""
    from holdfast.config import trust

    file = configured.project_file()
    if file is None:
        raise _no_project()
    was_allowed = trust.deny(file.path)
    click.echo(f"{file.path} is {'not allowed any more' if was_allowed else 'not allowed, and was not'}")
    return Exit.OK


@click.command(short_help="write a running tunnel into the configuration file")
@click.argument("name", shell_complete=complete_tunnel)
def save(name: str) -> int:
    """Writes the tunnel NAME, as it runs, into the configuration file: a new table, or changes in the one that it
    has. Comments, and all else in the file, stay."""
    from holdfast.config.writing import described

    check_name(name)
    running = next((tunnel for tunnel in tunnels(timeout=30) if tunnel["name"] == name), None)
    if running is None:
        raise HoldfastError(f"the tunnel '{name[:60]}' isn't up", f"holdfast up {name[:60]}", Exit.NOT_UP)
    content, before = _read()
    tunnel = described(running)
    if not tunnel.forwards:
        raise HoldfastError(
            f"'{name}' has no forward that stays: a program's and a notebook's aren't written down",
            "holdfast config add HOST FORWARD",
        )
    known = next((other for other in parse(before, paths.config_file()) if other.name == name), None)
    if known is not None:
        start = known.start if tunnel.start is Start.MANUAL and known.start is not Start.DEMAND else tunnel.start
        tunnel = tunnel._replace(groups=known.groups, start=start)
    return _write(tunnel, content)


def _write(tunnel: Described, content: bytes | None) -> int:
    """Changes the file, whose content is that, to what describes `tunnel`. Raises HoldfastError."""
    from holdfast.config.writing import table_of, table_text, with_tunnel

    chosen = paths.config_file()
    before = decode(content or b"", chosen)
    after = with_tunnel(before, tunnel, chosen)
    if after == before:
        click.echo(f"{chosen} says that already")
        return Exit.OK
    change(chosen, after, content)
    written = next(other for other in parse(after, chosen) if other.name == tunnel.name)
    table = table_of(written, *usual(after, chosen))
    click.echo(f"wrote to {chosen}:\n\n{table_text(tunnel.name, table)}", nl=False)
    return Exit.OK


def _read() -> tuple[bytes | None, str]:
    """What is in the file, None when there is none; and its text. Raises UsageError."""
    content = users_content()
    return content, decode(content or b"", paths.config_file())


def _edited(copy: Path, chosen: Path) -> str:
    """What the user makes of `copy`, once it has no mistakes. Raises HoldfastError."""
    while True:
        _run_editor(copy)
        try:
            content = copy.read_bytes()
        except OSError as error:
            raise HoldfastError(f"the editor left no file: {error.strerror}", "the file is as it was") from None
        try:
            text = decode(content, chosen)
            parse(text, chosen)
        except ConfigError as error:
            complain(error.message)
            if at_terminal() and _wants_to_go_on():
                continue
            raise HoldfastError(
                f"{chosen} is as it was: what you wrote has mistakes", exit_code=Exit.USAGE
            ) from None
        return text


def _wants_to_go_on() -> bool:
    try:
        return click.confirm("Edit it again?", default=True, err=True)
    except click.Abort:  # what was written is kept
        return False


def _kept(copy: Path, begun: str) -> str:
    """The hint that says where what the user wrote is kept; '' when they wrote nothing, and nothing is kept."""
    if copy.is_file() and copy.read_bytes() != begun.encode():
        return f"what you wrote is kept: {copy}"
    shutil.rmtree(copy.parent)
    return ""


def _run_editor(copy: Path) -> None:
    """Raises HoldfastError."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the editor's
    try:
        words = [*shlex.split(editor), str(copy)]
        status = subprocess.run(words, check=False).returncode
    except (OSError, ValueError) as error:
        raise HoldfastError(f"can't run the editor '{editor}': {error}", "name one: EDITOR=nano") from None
    finally:
        signal.signal(signal.SIGINT, before)
    if status:
        raise HoldfastError(f"the editor '{editor}' ended with {status}", "the file is as it was")


def _project() -> Project:
    found = configured.project()
    if found is None:
        raise _no_project()
    return found


def _no_project() -> UsageError:
    return UsageError("there is no .holdfast.toml in this folder or above it", "cd to the project")


def _text(chosen: Path) -> str:
    """Raises UsageError."""
    from holdfast.config import trust

    try:
        return decode(trust.read(chosen), chosen)
    except FileNotFoundError:
        raise UsageError(f"there is no {chosen}", "begin one: holdfast config add HOST") from None
    except OSError as error:
        raise UsageError(f"can't read {chosen}: {error.strerror}", f"ls -l {chosen}") from None


def _count(number: int) -> str:
    return "1 tunnel" if number == 1 else f"{number} tunnels"
