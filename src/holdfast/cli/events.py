"""`events`: what happens to the tunnels, as it happens."""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Sequence

import click

from holdfast.cli import render
from holdfast.cli.completing import complete_tunnel
from holdfast.cli.following import Watch, chooser
from holdfast.cli.main import drop_output
from holdfast.errors import Exit
from holdfast.events import Event

# Seconds between looks at whether anybody still reads.
_LOOK = 0.5


@click.command(short_help="what happens to the tunnels, as it happens")
@click.argument("names", nargs=-1, shell_complete=complete_tunnel)
@click.option("--json", "as_json", is_flag=True, help="print each as JSON, one object a line")
def events(names: tuple[str, ...], as_json: bool) -> int:
    """Prints a line for each thing that happens to the tunnels named, or to any, until Ctrl-C.

    The first lines say how they are now. When the keeper ends it waits for the next one, which the next command
    starts, and tells what is different then.
    """
    is_chosen = chooser(names)
    try:
        with Watch() as watch:
            while _somebody_reads():
                found = watch.wait(_LOOK)
                _show([event for event in found if is_chosen(event.tunnel)], as_json=as_json)
    except BrokenPipeError:
        drop_output()
    return Exit.OK


def _show(found: Sequence[Event], *, as_json: bool) -> None:
    for line in (json.dumps(event.as_json()) for event in found) if as_json else render.event_lines(found):
        click.echo(line)  # which flushes


def _somebody_reads() -> bool:
    """Whether stdout leads anywhere: a pipe whose reader has gone says so before anything is written."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not any(found & (select.POLLERR | select.POLLHUP) for _, found in poll.poll(0))
