"""`demo`: the main job, shown with nothing but this machine."""

from __future__ import annotations

import click


@click.command(short_help="see it work, with nothing but this machine")
def demo() -> int:
    """Shows the main job, with an SSH server and a notebook on loopback in place of another machine.

    It has a keeper of its own, in a temporary directory: your tunnels are not touched, and nothing is left.
    """
    from holdfast.demo import main

    return main()
