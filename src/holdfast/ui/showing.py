"""Shows the screen in this terminal, with colours that suit it."""

from __future__ import annotations

import os

from rich.console import Console

from holdfast.errors import Exit
from holdfast.ui import terminal
from holdfast.ui.actions import Actions
from holdfast.ui.app import TunnelScreen
from holdfast.ui.feed import Feed


def show(theme: str) -> Exit:
    """Until the person quits. `theme` is auto, dark, light or terminal."""
    actions = Actions(os.environ)  # Textual takes NO_COLOR away
    without_colour = bool(os.environ.get("NO_COLOR"))
    screen = TunnelScreen(Feed(), actions, theme=chosen(theme), without_colour=without_colour)
    screen.run()
    return Exit.BUG if screen.return_code else Exit.OK  # what was wrong has been shown


def chosen(theme: str) -> str:
    """The name of Textual's theme."""
    has_none = bool(os.environ.get("NO_COLOR"))
    if theme in ("dark", "light") and not has_none:
        return f"textual-{theme}"
    is_dark = terminal.is_dark() is not False
    if theme == "terminal" or has_none or Console().color_system in (None, "standard"):
        return "ansi-dark" if is_dark else "ansi-light"
    return "textual-dark" if is_dark else "textual-light"
