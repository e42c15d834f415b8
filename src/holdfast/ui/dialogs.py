"""What the screen asks, and tells when asked: over the list, in the middle."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from holdfast.ui.columns import SYMBOLS

KEYS = (
    ("↑ ↓  j k", "another tunnel; Home, End, PgUp, PgDn"),
    ("Enter ⏎", "its details, or none"),
    ("u", "bring it up, or try again at once"),
    ("d", "take it down"),
    ("r", "give it a new connection"),
    ("o", "open it in the browser"),
    ("l", "its log, as it grows"),
    ("/", "only tunnels with these words; Esc: all"),
    ("Tab", "to the details, to scroll them"),
    ("t", "dark, light, the terminal's own colours"),
    ("q", "quit; the tunnels stay up"),
)

# Characters of the longest state, and the gap behind it.
_STATE = 13


class Question(ModalScreen[bool]):
    """Answers whether the person agrees. `what` is the button that does it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
        Binding("left,h", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
    ]
    DEFAULT_CSS = """
    Question { align: center middle; }
    Question > Vertical {
        width: 64; max-width: 95%; height: auto; padding: 1 2; border: round $primary; background: $surface;
    }
    Question Horizontal { height: auto; margin-top: 1; align-horizontal: right; }
    Question Button { margin-left: 2; }
    """

    def __init__(self, text: str, what: str) -> None:
        super().__init__()
        self._text = text
        self._what = what

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(self._text, markup=False)
            with Horizontal():
                yield Button(f"{self._what} (y)", variant="primary", id="yes", compact=True)
                yield Button("No (n)", id="no", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, is_yes: bool) -> None:
        self.dismiss(is_yes)


class Help(ModalScreen[None]):
    """The keys, and what the signs beside the states mean."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "dismiss(None)", "close")]
    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > VerticalScroll {
        width: 66; max-width: 95%; height: auto; max-height: 95%; padding: 0 2; border: round $primary;
        border-title-style: bold; background: $surface; scrollbar-size-vertical: 1;
    }
    """

    def compose(self) -> ComposeResult:
        lines = [f"{keys:10}{what}" for keys, what in KEYS]
        states = [f"{sign} {state:{_STATE}}" for state, sign in SYMBOLS.items()]
        signs = "\n".join("".join(states[place : place + 4]) for place in range(0, len(states), 4))
        with VerticalScroll() as box:
            box.border_title = "Keys"
            yield Static(Content("\n".join(lines)))
            yield Static(Content(f"\n{signs}\n\n× among the bars of round trips: it did not come back"))
            yield Static(Content("The mouse selects, scrolls, and presses what is at the bottom"))

    def on_click(self) -> None:
        self.dismiss(None)
