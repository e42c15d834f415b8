"""`demo`: the main job, shown with nothing but this machine."""

from __future__ import annotations

import click


@click.command(short_help="see it work, with nothing but this machine")
def demo() -> int:
    """Shows the main job: an SSH server and a notebook on loopback, the tunnel up, its status, the tunnel down."""
    from holdfast import demo as show

    return show.main()
