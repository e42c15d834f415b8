"""Work beside the screen. Threads are daemons: nobody has to wait for a keeper, or a disk, in order to quit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from textual.message import Message

from holdfast.errors import HoldfastError

# Takes a message to the screen, from any thread.
Say = Callable[[Message], object]


class Crashed(Message):
    """Something beside the screen has ended in a way that nobody thought of: a bug."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Done(Message):
    """What was asked for has been done."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class Failed(Message):
    """What was asked for could not be done, for the tunnel `name`."""

    def __init__(self, name: str, error: HoldfastError) -> None:
        super().__init__()
        self.name = name
        self.error = error


def do(name: str, action: Callable[[], str], say: Say) -> None:
    """Begins `action`, for the tunnel `name`, in a thread; what became of it is said."""

    def work() -> None:
        try:
            say(Done(action()))
        except HoldfastError as error:
            say(Failed(name, error))
        except TimeoutError:
            say(Failed(name, HoldfastError(f"{name} takes long", "it goes on; the list tells how")))

    start(work, say)


def start(work: Callable[[], None], say: Say) -> None:
    """Begins `work` in a thread. What it raises is said, and not written over the screen."""

    def run() -> None:
        try:
            work()
        except Exception as error:
            say(Crashed(error))

    threading.Thread(target=run, daemon=True).start()
