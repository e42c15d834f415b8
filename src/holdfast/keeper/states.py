"""The states of a link, as a table; a tunnel's state, derived; and the delays between tries. Pure.

A link's state changes only by an event that its row names; an event without a row is a bug, and the error names
both. What the table says to do is done by the keeper, after the change. A forward has no table: its state is
what was last found out about it. `tunnel_state` puts both together.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, StrEnum

from holdfast.openssh.diagnose import Remedy


class LinkState(StrEnum):
    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"
    STALLED = "stalled"
    WAITING = "waiting"
    NEEDS_LOGIN = "needs login"
    FAILED = "failed"


class LinkEvent(Enum):
    WANTED = "a tunnel or a person asks for the link"
    RESTARTED = "a person asks for a new one"
    PROVEN = "a master's first heartbeat came back"
    LATE = "a heartbeat is late"
    ANSWERED = "a heartbeat came back"
    LOST = "the master is gone"
    RETRYABLE = "the try failed, another may succeed"
    LOGIN_NEEDED = "the try failed, only a person can go on"
    HOPELESS = "the try failed, and others would"
    DUE = "the time of the next try has come"
    UNWANTED = "no tunnel needs the link any more"


class LinkAction(Enum):
    CONNECT = "adopt or start a master, prove it, open the forwards"
    SCHEDULE = "set the time of the next try"
    CANCEL = "give up the try, or its time"
    RELEASE = "close our forwards, end our master"


_S, _E, _A = LinkState, LinkEvent, LinkAction

LINK: dict[LinkState, dict[LinkEvent, tuple[LinkState, tuple[LinkAction, ...]]]] = {
    _S.DOWN: {
        _E.WANTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.UNWANTED: (_S.DOWN, ()),
    },
    _S.CONNECTING: {
        _E.WANTED: (_S.CONNECTING, ()),
        _E.RESTARTED: (_S.CONNECTING, (_A.RELEASE, _A.CONNECT)),
        _E.PROVEN: (_S.UP, ()),
        _E.RETRYABLE: (_S.WAITING, (_A.SCHEDULE,)),
        _E.LOGIN_NEEDED: (_S.NEEDS_LOGIN, ()),
        _E.HOPELESS: (_S.FAILED, ()),
        _E.UNWANTED: (_S.DOWN, (_A.RELEASE,)),
    },
    _S.UP: {
        _E.WANTED: (_S.UP, ()),
        _E.RESTARTED: (_S.CONNECTING, (_A.RELEASE, _A.CONNECT)),
        _E.LATE: (_S.STALLED, ()),
        _E.ANSWERED: (_S.UP, ()),
        _E.LOST: (_S.WAITING, (_A.SCHEDULE,)),
        _E.UNWANTED: (_S.DOWN, (_A.RELEASE,)),
    },
    _S.STALLED: {
        _E.WANTED: (_S.STALLED, ()),
        _E.RESTARTED: (_S.CONNECTING, (_A.RELEASE, _A.CONNECT)),
        _E.LATE: (_S.STALLED, ()),
        _E.ANSWERED: (_S.UP, ()),
        _E.LOST: (_S.WAITING, (_A.SCHEDULE,)),
        _E.UNWANTED: (_S.DOWN, (_A.RELEASE,)),
    },
    _S.WAITING: {
        _E.WANTED: (_S.CONNECTING, (_A.CANCEL, _A.CONNECT)),
        _E.RESTARTED: (_S.CONNECTING, (_A.CANCEL, _A.CONNECT)),
        _E.DUE: (_S.CONNECTING, (_A.CONNECT,)),
        _E.UNWANTED: (_S.DOWN, (_A.CANCEL,)),
    },
    _S.NEEDS_LOGIN: {
        _E.WANTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.RESTARTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.UNWANTED: (_S.DOWN, ()),
    },
    _S.FAILED: {
        _E.WANTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.RESTARTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.UNWANTED: (_S.DOWN, ()),
    },
}


class ForwardState(StrEnum):
    """What was last found out about a forward over a link that is up."""

    CLOSED = "connecting"
    UP = "up"
    NO_SERVICE = "no service"
    PORT_TAKEN = "port taken"
    REFUSED = "refused"


class StateError(Exception):
    """An event came that the state's row doesn't name: a bug."""


def next_link_state(state: LinkState, event: LinkEvent) -> tuple[LinkState, tuple[LinkAction, ...]]:
    """The link's next state, and what is to be done, in that order."""
    try:
        return LINK[state][event]
    except KeyError:
        raise StateError(f"a link that is {state.value!r} can't take {event.name} ({event.value})") from None


# What a tunnel over a link that is up shows: the first of these that one of its forwards is in. A forward that is
# just being added changes nothing for those that work.
_WORST_FIRST = (
    ForwardState.PORT_TAKEN,
    ForwardState.REFUSED,
    ForwardState.NO_SERVICE,
    ForwardState.UP,
    ForwardState.CLOSED,
)


def tunnel_state(link: LinkState, forwards: Iterable[ForwardState]) -> LinkState | ForwardState:
    """What a person is told of a tunnel: its link's state, or over a link that is up its worst forward's."""
    if link is not LinkState.UP:
        return link
    found = set(forwards)
    return next((state for state in _WORST_FIRST if state in found), ForwardState.UP)


def failure_event(remedy: Remedy) -> LinkEvent:
    """What a failed try means to the link."""
    match remedy:
        case Remedy.LOGIN:
            return LinkEvent.LOGIN_NEEDED
        case Remedy.NONE:
            return LinkEvent.HOPELESS
        case Remedy.RETRY | Remedy.RETRY_LATER | Remedy.RETRY_MUCH_LATER:
            return LinkEvent.RETRYABLE


# Seconds. A server that was reached and failed us is left in peace longer than a cable that is out, and one
# that hung up before its banner longer still: it is full (MaxStartups), or is punishing us (PerSourcePenalties).
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
_AT_LEAST = {Remedy.RETRY: 0.0, Remedy.RETRY_LATER: 10.0, Remedy.RETRY_MUCH_LATER: 30.0}


def retry_delay(remedy: Remedy, failures: int, chance: float) -> float:
    """Seconds until the next try after `failures` (1 or more) in a row; `chance` is random, from 0 up to 1.

    Full jitter: anything from nothing to the doubled delay, so that a thousand keepers spread themselves out.
    """
    ceiling = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 10))
    return _AT_LEAST.get(remedy, 0.0) + ceiling * chance
