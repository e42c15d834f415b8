"""Tells the screen what is new: what the keeper says, what could be brought up, the end of a log. From threads.

What is told is a message; the screen is never touched from here.
"""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path

from textual.message import Message

from holdfast import client, paths
from holdfast.control import Changes
from holdfast.errors import HoldfastError, KeeperError
from holdfast.ui import background
from holdfast.ui.background import Say
from holdfast.ui.board import Ends, Resting

# Seconds between looks for a keeper, at files, and of the keeper's counters.
LOOK = 1.0
# Bytes of a log that are read from its end, and lines of it that the pane has.
TAIL = 4096
TAIL_LINES = 20


class Told(Message):
    """What a keeper told; `is_first` of all that it has, else of what is different."""

    def __init__(self, changes: Changes, *, is_first: bool) -> None:
        super().__init__()
        self.changes = changes
        self.is_first = is_first


class Silent(Message):
    """Nobody tells any more. `why` is empty where no keeper is needed."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why


class AtRest(Message):
    """What could be brought up, and what was wrong with the configuration, if anything."""

    def __init__(self, tunnels: list[Resting], mistake: str) -> None:
        super().__init__()
        self.tunnels = tunnels
        self.mistake = mistake


class LogEnd(Message):
    """The last lines of the log of the tunnel `name`."""

    def __init__(self, name: str, lines: list[str]) -> None:
        super().__init__()
        self.name = name
        self.lines = lines


class Feed:
    """From `start` to `stop` it tells `say`, which may be called from any thread. `look_at` names the tunnel whose
    log is wanted."""

    def __init__(self) -> None:
        self._say: Say = lambda _: None
        self._stopped = threading.Event()
        self._following: client.Following | None = None
        self._name = ""
        self._wanted = threading.Event()

    def start(self, say: Say) -> None:
        self._say = say
        for work in (self._follow, self._read_files):
            background.start(work, say)

    def stop(self) -> None:
        self._stopped.set()
        self._wanted.set()
        if self._following is not None:
            self._following.close()

    def look_at(self, name: str) -> None:
        self._name = name
        self._wanted.set()

    def _follow(self) -> None:
        """A keeper is started where tunnels are wanted, and else waited for."""
        while not self._stopped.is_set():
            try:
                if not client.something_is_wanted() and not client.is_there():
                    self._say(Silent(""))
                else:
                    self._hand_on()
            except TimeoutError:
                self._say(Silent("the keeper doesn't answer"))
            except HoldfastError as error:
                self._say(Silent("; ".join(filter(None, (error.message, error.hint)))))
            self._stopped.wait(LOOK)

    def _hand_on(self) -> None:
        """Until the keeper goes away. Raises HoldfastError for one that never tells, or answers no more."""
        is_first = True
        with client.Following((), LOOK) as following:
            self._following = following
            while True:
                try:
                    changes = following.receive(client.SILENCE)
                except TimeoutError:
                    client.is_there()
                    continue
                except KeeperError:
                    if is_first:
                        raise
                    break
                if self._stopped.is_set():
                    return
                self._say(Told(changes, is_first=is_first))
                is_first = False
        self._say(Silent("the keeper went away" if client.something_is_wanted() else ""))

    def _read_files(self) -> None:
        from holdfast.config import trust

        seen: tuple[object, ...] = ()
        tail: tuple[object, ...] = ()
        while not self._stopped.is_set():
            name = self._name
            with contextlib.suppress(HoldfastError):
                now = (_project_file(), *_signs(paths.config_file(), trust.agreements(), paths.state_file()))
                if now != seen:
                    seen = now
                    self._say(AtRest(*at_rest()))
                log = paths.logs_dir() / paths.log_name(name)
                sign = (name, *_signs(log))
                if name and sign != tail:
                    tail = sign
                    self._say(LogEnd(name, last_lines(log)))
            self._wanted.wait(LOOK)
            self._wanted.clear()


def at_rest() -> tuple[list[Resting], str]:
    """The tunnels of the configuration, then those that are remembered; and what is wrong with the former."""
    from holdfast.cli import configured

    mistake = ""
    described = []
    try:
        described = configured.trusted()
    except HoldfastError as error:
        mistake = f"{error.message.splitlines()[0]}; holdfast config check"
    of_config = [
        Resting(
            one.name,
            one.host,
            tuple(
                Ends(forward.kind.value, str(forward.listen), str(forward.target or ""))
                for forward in one.forwards
            ),
            one.groups,
            one.origin,
        )
        for one in described
    ]
    names = {one.name for one in of_config}
    return [*of_config, *(one for one in remembered() if one.name not in names)], mistake


def _project_file() -> object:
    """The project's file and what is in it, if there is one that may be read."""
    from holdfast.cli import configured

    with contextlib.suppress(HoldfastError):
        return configured.project_file()
    return None


def remembered() -> list[Resting]:
    """The tunnels that were taken down, as the keeper has saved them; none where that can't be read."""
    try:
        tunnels = json.loads(paths.state_file().read_text())["tunnels"]
        return [
            Resting(
                str(tunnel["name"]),
                str(tunnel["host"]),
                tuple(Ends(*map(str, forward[1])) for forward in tunnel["forwards"]),
            )
            for tunnel in tunnels
            if not tunnel["wanted"]
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError, HoldfastError):
        return []


def last_lines(log: Path) -> list[str]:
    """The last lines of a log; none where there is no log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    lines = text.splitlines()
    return (lines[1:] if size > TAIL else lines)[-TAIL_LINES:]


def _signs(*files: Path) -> tuple[object, ...]:
    """Something that is different once one of the files is."""
    signs: list[object] = []
    for file in files:
        try:
            found = file.stat()
        except OSError:
            signs.append(None)
        else:
            signs += (found.st_mtime_ns, found.st_size, found.st_ino)
    return tuple(signs)
