"""Work beside the screen. Threads are daemons: nobody has to wait for a keeper, or a disk, in order to quit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from textual.message import Message

# Takes a message to the screen, from any thread.
Say = Callable[[Message], object]


class Crashed(Message):
    """Something beside the screen has ended in a way that nobody thought of: a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def start(work: Callable[[], None], say: Say) -> None:
    """Begins `work` in a thread. What it raises is said, and not written over the screen."""

    def run() -> None:
        try:
            work()
        except Exception as error:
            say(Crashed(error))

    threading.Thread(target=run, daemon=True).start()
