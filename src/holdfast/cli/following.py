"""All tunnels as the keeper tells of them, through its end and the beginning of the next one.

No keeper is started for that but at first, where tunnels are wanted: `holdfast keeper stop` is not undone by those
who look on. The next command starts one, and what is different then becomes events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from holdfast import client
from holdfast.cli import choosing
from holdfast.cli.asking import now
from holdfast.control import Changes, TunnelStatus
from holdfast.errors import KeeperError
from holdfast.events import Event, Known

# Seconds between looks for a keeper while there is none.
_LOOK = 0.3


def chooser(words: Sequence[str]) -> Callable[[str], bool]:
    """Tells whether a tunnel, by its name, is one of those that `words` name; without words each is.

    Groups and patterns hold for tunnels of later, too. Raises HoldfastError for a name that nothing has.
    """
    if not words:
        return lambda _: True
    patterns = [word for word in words if choosing.is_pattern(word)]
    names = choosing.expected([word for word in words if word not in patterns])
    return lambda name: name in names or any(choosing.matching(word, [name], {}) for word in patterns)


class Watch:
    """`tunnels` are as they were last told of; `has_keeper`, whether somebody tells.

    `interval` is in seconds: how often counters are told, 0 for never. To be closed. Raises KeeperError for a
    keeper that can't be started or understood.
    """

    def __init__(self, interval: float = 0.0) -> None:
        self._interval = interval
        self._known = Known()
        self._is_new = True
        self._following = client.Following((), interval) if client.something_is_wanted() else None
        self._heard_at = time.monotonic()

    @property
    def tunnels(self) -> dict[str, TunnelStatus]:
        return self._known.tunnels

    @property
    def has_keeper(self) -> bool:
        return self._following is not None

    def answers(self, patience: float) -> bool:
        """Whether the keeper told something within the last `patience` seconds, or answers now. Not to be asked
        where there is none."""
        if time.monotonic() - self._heard_at > patience:
            try:
                client.is_there()
            except KeeperError:
                return False
            self._heard_at = time.monotonic()
        return True

    def wait(self, seconds: float) -> list[Event]:
        """What happened, as soon as anything has.

        Nothing: `seconds` have passed, or a keeper was found that tells nothing new.
        """
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            following = self._following or self._find()
            if following is None:
                time.sleep(min(_LOOK, left))
                continue
            try:
                told = following.receive(left)
            except TimeoutError:
                break
            except KeeperError:
                self.close()
                continue
            was_new = self._is_new
            found = self._learn(told)
            if found or was_new:
                return found
        return []

    def _find(self) -> client.Following | None:
        found = client.find_running()
        if found is not None:
            found.close()
            self._following = client.Following((), self._interval)
            self._heard_at = time.monotonic()
        return self._following

    def _learn(self, told: Changes) -> list[Event]:
        self._heard_at = time.monotonic()
        if self._is_new:
            self._is_new = False
            return self._known.start_over(told, now())
        return self._known.learn(told, now())

    def close(self) -> None:
        if self._following is not None:
            self._following.__exit__()
            self._following = None
            self._is_new = True

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
