"""The pane with all that is known of the selected tunnel, and the end of its log: beside that, or below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from holdfast.ui.details import Fact

# Characters of a label, and those beside the bars of the round trips.
_LABEL = 11
_BESIDE_BARS = _LABEL + 32


class DetailsPane(Horizontal):
    """Texts are changed only where they are different: that alone costs something."""

    DEFAULT_CSS = """
    DetailsPane {
        height: 11; border-top: solid $primary; padding: 0 1;
        #facts { width: 1fr; scrollbar-size-vertical: 1; }
        #log { width: 1fr; padding-left: 1; overflow: hidden; align-vertical: bottom; display: none; }
        #log-end { height: auto; }
        #log-below { height: auto; }
    }
    """

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="facts"):
            yield Static(id="told", markup=False)
            yield Static(id="log-below", markup=False)
        with Vertical(id="log"):
            yield Static(id="log-end", markup=False)

    @property
    def room_for_bars(self) -> int:
        """How many round trips there is room for in a line."""
        return max(8, self.query_one("#facts").size.width - _BESIDE_BARS)

    def show(self, name: str, facts: Sequence[Fact], log: Sequence[str]) -> None:
        """Shows the facts about the tunnel `name`, and the last lines of its log."""
        self._say("#told", _written(name, facts, self.query_one("#facts").size.width - _LABEL - 1))
        self._say("#log-end", "\n".join(log))
        self._say("#log-below", "\n".join(["", *log]) if log else "")

    def _say(self, where: str, text: str | Content) -> None:
        widget = self.query_one(where, Static)
        if widget.content != text:
            widget.update(text, layout=_shape(widget.content) != _shape(text))


def _shape(text: object) -> list[int]:
    """The lengths of its lines: while they are the same, it takes the same room."""
    return [len(line) for line in str(text).split("\n")]


def _written(name: str, facts: Sequence[Fact], width: int) -> Content:
    """The facts below the tunnel's name, labels in a column of their own, beside texts folded at `width`."""
    parts: list[tuple[str, str] | str] = [(name, "bold")]
    for fact in facts:
        for number, text in enumerate(textwrap.wrap(fact.text, max(20, width))):
            parts += [(f"\n{'' if number else fact.label:{_LABEL}}", "dim"), text]
    return Content.assemble(*parts)
