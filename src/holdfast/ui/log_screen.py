"""One tunnel's log, over the whole screen, as it grows."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Log, Static

from holdfast.ui import background

# Lines that are kept on the screen, bytes of a log that are read at first, seconds between looks.
MOST_LINES = 5000
MOST_BYTES = 256 * 1024
LOOK = 0.5


class Growing:
    """A file that is read as it grows. When it is put aside and another one begun, that is gone on with."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at: int | None = None
        self._file = 0
        self._rest = b""

    def more(self) -> list[str]:
        """The whole lines that came since the last time; at first, the last ones. None where there is no file."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                number = self._path.stat().st_ino
                if self._at is None:
                    self._at = max(0, size - MOST_BYTES)
                elif number != self._file or size < self._at:
                    self._at, self._rest = 0, b""
                self._file = number
                file.seek(self._at)
                text = file.read(MOST_BYTES)
        except OSError:
            return []
        self._at += len(text)
        *lines, self._rest = (self._rest + text).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class More(Message):
    """Lines that came."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines


class LogScreen(Screen[None]):
    """The end is followed for as long as it is in view."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,l", "dismiss(None)", "Back", key_display="Esc"),
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
        Binding("g,home", "first", "First", key_display="Home"),
        Binding("G,end", "last", "Last", key_display="End"),
    ]
    DEFAULT_CSS = """
    LogScreen > Static { height: 1; text-style: bold; padding: 0 1; }
    LogScreen > Log { height: 1fr; scrollbar-size-vertical: 1; }
    """

    def __init__(self, name: str, path: Path) -> None:
        super().__init__()
        self._name_of_tunnel = name
        self._growing = Growing(path)
        self._ended = threading.Event()

    def compose(self) -> ComposeResult:
        yield Static(f"log of {self._name_of_tunnel}", markup=False)
        yield Log(max_lines=MOST_LINES)
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        log = self.query_one(Log)
        log.focus()
        log.anchor()  # also while the terminal gets another size
        background.start(self._read, self._tell)

    def on_unmount(self) -> None:
        self._ended.set()

    def _tell(self, message: Message) -> None:
        """Takes a message from any thread; none once the screen has gone."""
        with contextlib.suppress(RuntimeError):
            self.post_message(message)

    def _read(self) -> None:
        """In a thread: the disk may be slow."""
        while not self._ended.is_set():
            lines = self._growing.more()
            if lines:
                self._tell(More(lines))
            self._ended.wait(LOOK)

    def on_more(self, message: More) -> None:
        log = self.query_one(Log)
        log.write_lines(message.lines, scroll_end=log.is_vertical_scroll_end)

    def action_scroll(self, lines: int) -> None:
        self.query_one(Log).scroll_relative(y=lines, animate=False)

    def action_first(self) -> None:
        self.query_one(Log).scroll_home(animate=False)

    def action_last(self) -> None:
        self.query_one(Log).scroll_end(animate=False)
