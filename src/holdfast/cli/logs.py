"""`logs`: what happened to the tunnels, and why."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from holdfast import paths
from holdfast.cli.asking import LONGEST_TIMEOUT, far_or_described, follow_there, run_there, ssh_options, tunnels
from holdfast.cli.choosing import named_or_new
from holdfast.cli.completing import complete_tunnel
from holdfast.control import check_name
from holdfast.errors import HoldfastError, UsageError

# Seconds between looks at a log that is followed.
_LOOK = 0.2


@click.command(short_help="what happened to the tunnels, and why")
@click.argument("names", nargs=-1, shell_complete=complete_tunnel)
@click.option("-f", "--follow", is_flag=True, help="go on showing what happens, until Ctrl-C")
@click.option("-n", "--lines", default=50, show_default=True, help="how many lines from the end")
@click.option("--remote", is_flag=True, help="the log, over there, of the notebook server that holdfast started")
@ssh_options
def logs(names: tuple[str, ...], follow: bool, lines: int, remote: bool, **options: Any) -> None:
    """Shows the log of the tunnels named, or of all, in the order of time.

    A name may also be a group of the configuration, or a pattern ('gpu*').
    With --remote, NAMES is one tunnel or host.
    """
    if remote:
        _show_remote(names, options, lines, follow=follow)
        return
    if names:
        names = named_or_new(names)
    for name in names:
        check_name(name)
    files = {name: paths.logs_dir() / paths.log_name(name) for name in names or _all_names()}
    missing = [name for name, path in files.items() if not path.exists()]
    if missing:
        raise HoldfastError(f"there is no log of a tunnel '{missing[0]}'", "see what there is: holdfast status")
    seen = {name: path.stat().st_size for name, path in files.items()}
    lines_of_all = (line for name, path in files.items() for line in _lines_of(name, path, seen[name]))
    told = sorted(lines_of_all, key=lambda line: line[0])
    for _, line in told[-lines:] if lines > 0 else []:
        click.echo(line)
    if follow:
        _follow(files, seen)


def _show_remote(names: tuple[str, ...], options: dict[str, Any], lines: int, *, follow: bool) -> None:
    """Raises HoldfastError."""
    from holdfast.jupyter import launch

    def show(text: str) -> None:
        click.echo(launch.without_tokens(text), nl=False)

    if len(names) != 1:
        raise UsageError("name one tunnel or host", "as in holdfast logs lab --remote")
    there = far_or_described(names[0], options)
    program = launch.log_program(_notebook_of(names[0]), max(0, lines), follow=follow)
    if follow:
        has_none = "none" in follow_there(there, program, show, LONGEST_TIMEOUT)
    else:
        printed = run_there(there, program, timeout=60)
        has_none = printed.startswith("@none")
        if not has_none:
            show(printed)
    if has_none:
        raise HoldfastError(
            f"no server that holdfast started has a log on {names[0]}",
            f"start one: holdfast jupyter {names[0]} --start",
        )


def _notebook_of(name: str) -> int | None:
    """The pid of the server that the tunnel leads to, if it is known."""
    pids = [
        forward["notebook"]["pid"]
        for tunnel in tunnels(timeout=30)
        for forward in tunnel["forwards"]
        if forward["notebook"] and name in (tunnel["name"], tunnel["host"])
    ]
    return pids[0] if pids else None


def _all_names() -> list[str]:
    return sorted(path.stem for path in paths.logs_dir().glob("*.log"))


def _lines_of(name: str, path: Path, size: int) -> Iterator[tuple[float, str]]:
    """The lines of the log that was put aside, and of the first `size` bytes of the present one, each with its
    moment, in seconds: summer time ends, and people travel, so that the hours written need not be in order.
    """
    moment = 0.0
    older = path.with_suffix(".log.1")
    text = (older.read_bytes() if older.exists() else b"") + path.read_bytes()[:size]
    for line in text.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(line.partition("  ")[0]).timestamp()
        yield moment, _named(line, name)


def _named(line: str, name: str) -> str:
    stamp, gap, text = line.partition("  ")
    return f"{stamp}  {name}  {text}" if gap else line


def _follow(files: dict[str, Path], seen: dict[str, int]) -> None:
    """Shows what is added to `files` behind the first `seen` bytes of each, for ever."""
    while True:
        for name, path in files.items():
            size = path.stat().st_size if path.exists() else 0
            start = seen[name] if size >= seen[name] else 0  # it was put aside, and a new one begun
            if size > start:
                with path.open("rb") as file:
                    file.seek(start)
                    text = file.read()
                whole = text[: text.rfind(b"\n") + 1]
                seen[name] = start + len(whole)
                for line in whole.decode(errors="replace").splitlines():
                    click.echo(_named(line, name))
        time.sleep(_LOOK)
