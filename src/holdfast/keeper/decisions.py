"""The decisions: one queue, one consumer.

Requests and the events of attempts wait in the same queue; the consumer decides, in code that awaits nothing, and
saves what must survive before anybody is answered. What takes time runs in tasks and comes back as an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

from holdfast import paths
from holdfast.errors import HoldfastError, KeeperError
from holdfast.keeper import journal

Result = TypeVar("Result")
# What takes a decision back.
Undo = Callable[[], object]


class Decisions:
    """`follow_up` is called after each decision, before anything else happens, and may await nothing either;
    `save` saves what both have changed."""

    def __init__(self, follow_up: Callable[[], None], save: Callable[[], Awaitable[None]]) -> None:
        # What the next client has to tell its user: nobody waited for the decision that it is about.
        self.notice = ""
        self._follow_up = follow_up
        self._save = save
        self._queue: asyncio.Queue[tuple[Callable[[], Any], asyncio.Future[Any] | None]] = asyncio.Queue()
        self._watchers: set[asyncio.Event] = set()
        # What takes the current decision back when it can't be saved.
        self._undo: Undo | None = None

    async def ask(self, decide: Callable[[], Result]) -> Result:
        """The result of `decide`, run by the consumer and saved. Raises the HoldfastError of either."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((decide, answer))
        return await answer

    def ask_later(self, decide: Callable[[], object]) -> None:
        """Has the consumer run `decide`; nobody waits for it."""
        self._queue.put_nowait((decide, None))

    def undo_by(self, undo: Undo) -> None:
        """Has `undo` take the current decision back when it can't be saved: whoever asked is told so."""
        self._undo = undo

    async def wait_until(self, condition: Callable[[], bool], changed: Callable[[], None]) -> None:
        """Returns once `condition()` is true; calls `changed` after each change until then."""
        with self.watching() as watcher:
            while not condition():
                changed()
                await watcher.wait()
                watcher.clear()

    @contextlib.contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        """An event that is set after each decision."""
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    async def consume(self) -> None:
        """Makes the decisions, one after the other, until cancelled."""
        while True:
            decide, answer = await self._queue.get()
            try:
                result = await self._carry_out(decide)
            except HoldfastError as error:
                if answer is None:
                    journal.note(error.message)
                elif not answer.done():
                    answer.set_exception(error)
            else:
                if answer is not None and not answer.done():
                    answer.set_result(result)
            for watcher in self._watchers:
                watcher.set()

    async def _carry_out(self, decide: Callable[[], Result]) -> Result:
        """Runs a decision and saves what it changed; takes it back when it can't be saved."""
        self._undo = None
        try:
            result = decide()
            self._follow_up()
            await self._save_or_note()
        except HoldfastError:
            self._take_back()
            raise
        except Exception as error:
            journal.note(traceback.format_exc())
            raise KeeperError(
                f"this is a bug in the keeper: {error!r}", f"please report it: {paths.keeper_log()}"
            ) from None
        return result

    def _take_back(self) -> None:
        if self._undo is not None:
            try:
                self._undo()
            except Exception:  # a bug, which is not to end the keeper
                journal.note(traceback.format_exc())

    async def _save_or_note(self) -> None:
        """Saves. Where that fails: an error for whoever asked for what can be taken back, else a note."""
        try:
            await self._save()
        except HoldfastError as error:
            if self._undo is not None:
                raise
            self.notice = error.message
            journal.note(error.message)
