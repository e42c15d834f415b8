"""`import`: reads other programs' files, and shows what of that would be in config.toml, or writes it there."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from holdfast import paths
from holdfast.cli.main import complain
from holdfast.config.users import users_content
from holdfast.errors import Exit, HoldfastError, UsageError

if TYPE_CHECKING:
    from holdfast.importing.found import Found
    from holdfast.openssh.settings import Settings

Command = TypeVar("Command", bound=Callable[..., int])

# A host that no configuration names: RFC 2606 keeps .invalid free.
_NOBODY = "holdfast-import.invalid"
# Seconds that `ssh -G` may take: a `Match exec` runs a program.
_TIMEOUT = 20
# Bytes of a text that has command lines in it, and more.
_LONGEST = 16 * 1024 * 1024

_writing = click.option("--write", is_flag=True, help="add the tunnels to config.toml")


@click.group("import", short_help="take tunnels over from autossh, boring, ssh-channels-hub, ssh_config")
def import_tunnels() -> None:
    """Reads how tunnels are described elsewhere, and prints them as they would stand in config.toml.

    What can't be taken over is told, with the reason. With --write they are added to the file: what is in it
    stays as it is, a name that is taken gets a number, and a tunnel that is there already isn't added again.
    """


@import_tunnels.command(short_help="command lines of autossh and ssh, in any text")
@click.argument("file", default="-", metavar="[FILE]")
@_writing
def autossh(file: str, *, write: bool) -> int:
    """Reads command lines of autossh, and of ssh with forwards, from FILE or from standard input.

    FILE may be a shell script, a crontab, a systemd unit, shell aliases, or what ps prints.

    \b
      crontab -l | holdfast import autossh
      ps -ww -eo args | holdfast import autossh
    """
    from holdfast.importing.autossh import read

    if file == "-" and sys.stdin.isatty():
        raise UsageError("there is no text to read", "name a file, or: ps -ww -eo args | holdfast import autossh")
    return _finish(read(_text(file)), write=write, source="standard input" if file == "-" else file)


@import_tunnels.command(short_help="the configuration of boring")
@click.argument("file", required=False)
@_writing
def boring(file: str | None, *, write: bool) -> int:
    """Reads FILE, or else boring's own: $BORING_CONFIG, ~/.config/boring/.boring.toml or ~/.boring.toml."""
    from holdfast.importing.boring import read

    chosen = file or _first(_borings())
    return _finish(read(_text(chosen)), write=write, source=chosen)


@import_tunnels.command("ssh-channels-hub", short_help="the configuration of ssh-channels-hub")
@click.argument("file", required=False)
@_writing
def ssh_channels_hub(file: str | None, *, write: bool) -> int:
    """Reads FILE, or else ~/.config/ssh-channels-hub/config.toml."""
    from holdfast.importing.channels_hub import read

    chosen = file or str(_config_home() / "ssh-channels-hub" / "config.toml")
    return _finish(read(_text(chosen)), write=write, source=chosen)


@import_tunnels.command("ssh-config", short_help="the forward lines of ssh_config")
@click.argument("file", required=False)
@_writing
def ssh_config(file: str | None, *, write: bool) -> int:
    """Reads the LocalForward, RemoteForward and DynamicForward lines of FILE, or else of ~/.ssh/config.

    Each host that a Host line spells out is asked for by ssh -G, so that Include and Match count as ever.
    """
    from holdfast.importing.found import Found, Remark, collect
    from holdfast.importing.ssh_config import read
    from holdfast.openssh.hosts import host_names

    path = Path(file).absolute() if file else Path.home() / ".ssh" / "config"
    _text(str(path))
    options = ("-F", str(path)) if file else ()
    nobody = _settings(_NOBODY, options)  # first: what no host can be read with is said once
    hosts: dict[str, Settings] = {}
    refused: list[Remark] = []
    for host in (host for host in host_names(path) if not host.startswith("-")):
        try:
            hosts[host] = _settings(host, options)
        except HoldfastError as error:
            refused.append(Remark(host, f"not taken: {error.message}"))
    found = collect([Found(remarks=tuple(refused)), read(hosts, nobody, options)])
    return _finish(found, write=write, source=str(path))


def _finish(found: Found, *, write: bool, source: str) -> int:
    """Says what was found; the exit code. Raises HoldfastError."""
    from holdfast.config import reading
    from holdfast.config.file import change
    from holdfast.importing.adding import add
    from holdfast.importing.found import told

    path = paths.config_file()
    before = users_content()
    added = add(found.tunnels, reading.decode(before or b"", path), path)
    for line in told((*found.remarks, *added.remarks)):
        complain(line)
    if not added.names and not added.there:
        raise HoldfastError(f"no tunnel could be taken from {source}", "describe it by hand: holdfast config edit")
    if added.there:
        complain(f"already in {path}: {', '.join(added.there)}")
    if write and added.names:
        change(path, added.text, before)
        click.echo(f"added to {path}: {', '.join(added.names)}")
    else:
        click.echo(added.tables, nl=False)
    return Exit.OK


def _text(file: str) -> str:
    """What the file contains, however it is encoded; '-' is standard input. Raises HoldfastError."""
    try:
        if file == "-":
            content = sys.stdin.buffer.read(_LONGEST + 1)
        else:
            with Path(file).open("rb") as opened:
                content = opened.read(_LONGEST + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise HoldfastError(f"can't read {file}: {why}", "name the file: holdfast import --help") from None
    if len(content) > _LONGEST:
        raise HoldfastError(f"{file} is larger than {_LONGEST >> 20} MiB", "name the file that has the tunnels")
    return content.decode("utf-8-sig", errors="replace")


def _config_home() -> Path:
    """Where other programs' configurations are."""
    chosen = os.environ.get("XDG_CONFIG_HOME")
    return Path(chosen) if chosen else Path.home() / ".config"


def _borings() -> list[Path]:
    """Where boring may have its file. On Linux that is the second of them, since 0.9; elsewhere the last."""
    chosen = os.environ.get("BORING_CONFIG")
    if chosen:
        return [Path(chosen).expanduser()]
    return [_config_home() / "boring" / ".boring.toml", Path.home() / ".boring.toml"]


def _first(paths: Sequence[Path]) -> str:
    """The first of them that is there, or the first."""
    return str(next((path for path in paths if path.exists()), paths[0]))


def _settings(host: str, options: Sequence[str]) -> Settings:
    """What `ssh -G` says of the host. Raises HoldfastError."""
    from holdfast.openssh.command import show_settings
    from holdfast.openssh.settings import Settings

    words = show_settings(host, options)
    by_hand = shlex.join(["ssh", *options, "-G", host])
    try:
        shown = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise HoldfastError(f"ssh takes more than {_TIMEOUT} s to read its configuration", by_hand) from None
    except OSError as error:
        raise HoldfastError(f"can't run ssh: {error.strerror}", "holdfast doctor") from None
    if shown.returncode:
        why = shown.stderr.strip().splitlines() or ["it says nothing"]
        raise HoldfastError(f"ssh can't read its configuration: {why[0]}", by_hand)
    return Settings(shown.stdout)
