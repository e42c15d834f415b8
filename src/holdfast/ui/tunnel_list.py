"""The list: a heading that stays, and a line for each tunnel, with more below it where there is trouble.

Draws lines by itself, and only those that are different: a table would measure all of its cells again each second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from holdfast.ui.board import Row
from holdfast.ui.columns import Look, Piece, columns, heading, line, trouble_line


class TunnelList(ScrollView, can_focus=True):
    """`selected` is the name of the tunnel that keys are about, or empty when there is none."""

    class Selected(Message):
        """Another tunnel is selected."""

    class Entered(Message):
        """The selected one was chosen once more."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "one up", show=False),
        Binding("down,j", "move(1)", "one down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "a page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "a page down", show=False),
        Binding("home,g", "move(-100000)", "the first", show=False),
        Binding("end,G", "move(100000)", "the last", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {"cursor", *(str(look) for look in Look)}
    DEFAULT_CSS = """
    TunnelList {
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        .strong { text-style: bold; }
        .faint { text-style: dim; }
        .good { color: $text-success; }
        .busy { color: $text-primary; }
        .warning { color: $text-warning; }
        .login { color: $text-warning; text-style: bold; }
        .bad { color: $text-error; text-style: bold; }
        .cursor { text-style: reverse; }
    }
    """

    selected: reactive[str] = reactive("", repaint=False)

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[Row] = []
        # For each line below the heading: the number of its row, and of the trouble that it tells, or -1.
        self._lines: list[tuple[int, int]] = []
        self._starts: list[int] = []
        self._styles: dict[tuple[Look, bool], Style] = {}
        # Until a person has chosen one, the first is selected, whatever comes before it.
        self._is_chosen = False

    def show(self, rows: Sequence[Row]) -> None:
        """Shows these rows from now on. The selected one stays, or else the one in its place is."""
        before, self._rows = self._rows, list(rows)
        shape = [(number, part) for number, row in enumerate(rows) for part in range(-1, len(row.troubles))]
        if shape != self._lines:
            self._lines = shape
            self._starts = [place for place, (_, part) in enumerate(shape) if part < 0]
            self.virtual_size = Size(self.scrollable_content_region.width, len(shape) + 1)
            self.refresh()
        else:
            for number, (old, new) in enumerate(zip(before, rows, strict=True)):
                if old != new:
                    self._refresh_row(number)
        names = [row.name for row in rows]
        if not self._is_chosen or self.selected not in names:
            was = next((place for place, row in enumerate(before) if row.name == self.selected), 0)
            self.selected = names[min(was, len(names) - 1) if self._is_chosen else 0] if names else ""

    @property
    def row(self) -> Row | None:
        """The selected row."""
        place = self._place
        return None if place is None else self._rows[place]

    @property
    def _place(self) -> int | None:
        return next((place for place, row in enumerate(self._rows) if row.name == self.selected), None)

    def watch_selected(self, before: str, now: str) -> None:
        for number, row in enumerate(self._rows):
            if row.name in (before, now):
                self._refresh_row(number)
        self._bring_into_view()
        self.post_message(self.Selected())

    def action_move(self, steps: int) -> None:
        place = self._place
        if place is not None:
            self._is_chosen = True
            self.selected = self._rows[max(0, min(place + steps, len(self._rows) - 1))].name

    def action_page(self, direction: int) -> None:
        self.action_move(direction * max(1, self.size.height - 2))

    def on_resize(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._lines) + 1)
        self._bring_into_view()

    def on_click(self, event: events.Click) -> None:
        place = event.y - 1 + self.scroll_offset.y
        if event.y < 1 or place >= len(self._lines):
            return
        self._is_chosen = True
        self.selected = self._rows[self._lines[place][0]].name
        if event.chain == 2:
            self.post_message(self.Entered())

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles.clear()
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        if y == 0:
            return self._strip(heading(columns(width)), width, is_selected=False)
        place = y - 1 + self.scroll_offset.y
        if place >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        number, part = self._lines[place]
        row = self._rows[number]
        pieces = line(row, columns(width)) if part < 0 else trouble_line(row.troubles[part], width)
        return self._strip(pieces, width, is_selected=row.name == self.selected)

    def _strip(self, pieces: Sequence[Piece], width: int, *, is_selected: bool) -> Strip:
        segments = [Segment(piece.text, self._style(piece.look, is_selected)) for piece in pieces]
        return Strip(segments).adjust_cell_length(width, self._style(Look.PLAIN, is_selected))

    def _style(self, look: Look, is_selected: bool) -> Style:
        """Kept, since it takes longer to find than a line takes to draw."""
        style = self._styles.get((look, is_selected))
        if style is None:
            style = self.get_component_rich_style(str(look), partial=True)
            if is_selected:  # one bar, without patches of colour
                style = style.without_color + self.get_component_rich_style("cursor", partial=True)
            style = self.rich_style + style
            self._styles[look, is_selected] = style
        return style

    def _refresh_row(self, number: int) -> None:
        top = self._starts[number] + 1 - self.scroll_offset.y
        last = top + len(self._rows[number].troubles)
        visible = Region(0, max(1, top), self.scrollable_content_region.width, last + 1 - max(1, top))
        if visible.height > 0 and top < self.size.height:
            self.refresh(visible)

    def _bring_into_view(self) -> None:
        """Scrolls as little as is needed for the selected row to be seen, below the heading."""
        place = self._place
        if place is None or self.size.height < 2:
            return
        first = self._starts[place]
        last = first + len(self._rows[place].troubles)
        top = self.scroll_offset.y
        room = self.size.height - 1
        if first < top or last >= top + room:
            self.scroll_to(y=first if first < top else min(first, last - room + 1), animate=False)
