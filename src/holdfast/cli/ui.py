"""`ui`: the screen. What draws it is imported here and nowhere else, since it is an extra."""

from __future__ import annotations

import os
import sys

import click

from holdfast.errors import HoldfastError, UsageError

_THEMES = ("auto", "dark", "light", "terminal")


@click.command(short_help="a screen with all tunnels, and keys for what to do about them")
@click.option(
    "--theme",
    type=click.Choice(_THEMES),
    default="auto",
    show_default=True,
    metavar="THEME",
    help="auto, dark, light, or terminal: the terminal's own colours",
)
def ui(theme: str) -> int:
    """Shows every tunnel: state, round trip, traffic, connections, and what is wrong, as it changes.

    ? shows the keys. Quitting it leaves the tunnels up.
    """
    if (
        not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
        or os.environ.get("TERM") == "dumb"
    ):
        raise UsageError("ui needs a terminal to draw on", "for programs there is holdfast status --json")
    if not os.environ.get("NO_COLOR"):  # empty is as good as none; Textual sees that differently
        os.environ.pop("NO_COLOR", None)
    try:
        from holdfast.ui import showing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        raise HoldfastError(
            "the screen needs Textual, which isn't installed",
            "pip install 'holdfast[ui]'; holdfast status --watch does without",
        ) from None
    return showing.show(theme)
