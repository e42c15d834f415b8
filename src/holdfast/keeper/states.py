"""The states of a link, as a table; a tunnel's state, derived; and the delays between tries. Pure.

A link's state changes only by an event that its row names; an event without a row is a bug, and the error names
both. What the table says to do is done in driving.py, after the change. A forward has no table: its state is
what was last found out about it. `tunnel_state` puts both together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum, StrEnum

from holdfast.openssh.diagnose import Remedy


class LinkState(StrEnum):
    """What is shown is the part before the comma: whoever waits for a stalled link has no use for the rest."""

    DOWN = "down"
    CONNECTING = "connecting"
    UP = "up"
    STALLED = "stalled, another master is being tried beside it"
    STALLED_WAITING = "stalled, until the next try"
    STALLED_LOGIN = "stalled, another master needs a login"
    STALLED_FAILED = "stalled, another master can't be had"
    WAITING = "waiting"
    NEEDS_LOGIN = "needs login"
    FAILED = "failed"
    IDLE = "idle"

    @property
    def shown(self) -> str:
        return self.value.partition(",")[0]

    @property
    def is_stalled(self) -> bool:
        return self.shown == "stalled"


class LinkEvent(Enum):
    WANTED = "a tunnel or a person asks for the link"
    RESTARTED = "a person asks for a new one"
    PROVEN = "a new master's first heartbeat came back"
    LATE = "a heartbeat of the serving master is late"
    ANSWERED = "a heartbeat of the serving master came back"
    LOST = "the serving master is gone"
    RETRYABLE = "the try failed, another may succeed"
    LOGIN_NEEDED = "the try failed, only a person can go on"
    HOPELESS = "the try failed, and others would"
    DUE = "the time of the next try has come"
    UNWANTED = "no tunnel needs the link any more"
    LAZILY_WANTED = "only lazy tunnels ask for the link"
    UNUSED = "nobody has used the link for a while"


class LinkAction(Enum):
    CONNECT = "try: adopt or start a master, prove it"
    ABANDON = "let the try finish, and end what it made"
    SERVE = "the proven master opens the forwards; one before it drains"
    RESUME = "the serving master opens the forwards again"
    HOLD = "the guard takes the local ports"
    SCHEDULE = "set the time of the next try"
    CANCEL = "give up the time of the next try"
    END = "end our masters"
    DRAIN = "the serving master ends with its last connection: somebody may just have come"
    CLOSE = "close the forwards and the guard"


_S, _E, _A = LinkState, LinkEvent, LinkAction
_START_OVER = (_S.CONNECTING, (_A.HOLD, _A.END, _A.CONNECT))
_TAKE_DOWN = (_S.DOWN, (_A.CLOSE, _A.END))

LINK: dict[LinkState, dict[LinkEvent, tuple[LinkState, tuple[LinkAction, ...]]]] = {
    _S.DOWN: {
        _E.WANTED: (_S.CONNECTING, (_A.HOLD, _A.CONNECT)),
        _E.LAZILY_WANTED: (_S.IDLE, (_A.HOLD,)),
        _E.UNWANTED: (_S.DOWN, ()),
    },
    _S.IDLE: {
        _E.WANTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.RESTARTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.LAZILY_WANTED: (_S.IDLE, ()),
        _E.UNWANTED: _TAKE_DOWN,
    },
    _S.CONNECTING: {
        _E.WANTED: (_S.CONNECTING, ()),
        _E.RESTARTED: _START_OVER,
        _E.PROVEN: (_S.UP, (_A.SERVE,)),
        _E.RETRYABLE: (_S.WAITING, (_A.SCHEDULE,)),
        _E.LOGIN_NEEDED: (_S.NEEDS_LOGIN, ()),
        _E.HOPELESS: (_S.FAILED, ()),
        _E.UNWANTED: _TAKE_DOWN,
    },
    _S.UP: {
        _E.WANTED: (_S.UP, ()),
        _E.RESTARTED: _START_OVER,
        _E.LATE: (_S.STALLED, (_A.HOLD, _A.CONNECT)),
        _E.ANSWERED: (_S.UP, ()),
        _E.LOST: (_S.WAITING, (_A.HOLD, _A.SCHEDULE)),
        _E.UNUSED: (_S.IDLE, (_A.HOLD, _A.DRAIN)),
        _E.UNWANTED: _TAKE_DOWN,
    },
    _S.STALLED: {
        _E.WANTED: (_S.STALLED, ()),
        _E.RESTARTED: _START_OVER,
        _E.LATE: (_S.STALLED, ()),
        _E.ANSWERED: (_S.UP, (_A.ABANDON, _A.RESUME)),
        _E.PROVEN: (_S.UP, (_A.SERVE,)),
        _E.RETRYABLE: (_S.STALLED_WAITING, (_A.SCHEDULE,)),
        _E.LOGIN_NEEDED: (_S.STALLED_LOGIN, ()),
        _E.HOPELESS: (_S.STALLED_FAILED, ()),
        _E.LOST: (_S.CONNECTING, ()),
        _E.UNWANTED: _TAKE_DOWN,
    },
    _S.STALLED_WAITING: {
        _E.WANTED: (_S.STALLED, (_A.CANCEL, _A.CONNECT)),
        _E.RESTARTED: (_S.CONNECTING, (_A.CANCEL, _A.HOLD, _A.END, _A.CONNECT)),
        _E.LATE: (_S.STALLED_WAITING, ()),
        _E.ANSWERED: (_S.UP, (_A.CANCEL, _A.RESUME)),
        _E.DUE: (_S.STALLED, (_A.CONNECT,)),
        # A reset, as a rule: the network is there.
        _E.LOST: (_S.WAITING, (_A.CANCEL, _A.SCHEDULE)),
        _E.UNWANTED: (_S.DOWN, (_A.CANCEL, _A.CLOSE, _A.END)),
    },
    _S.STALLED_LOGIN: {
        _E.WANTED: (_S.STALLED, (_A.CONNECT,)),
        _E.RESTARTED: _START_OVER,
        _E.LATE: (_S.STALLED_LOGIN, ()),
        _E.ANSWERED: (_S.UP, (_A.RESUME,)),
        _E.LOST: (_S.NEEDS_LOGIN, ()),
        _E.UNWANTED: _TAKE_DOWN,
    },
    _S.STALLED_FAILED: {
        _E.WANTED: (_S.STALLED, (_A.CONNECT,)),
        _E.RESTARTED: _START_OVER,
        _E.LATE: (_S.STALLED_FAILED, ()),
        _E.ANSWERED: (_S.UP, (_A.RESUME,)),
        _E.LOST: (_S.FAILED, ()),
        _E.UNWANTED: _TAKE_DOWN,
    },
    _S.WAITING: {
        _E.WANTED: (_S.CONNECTING, (_A.CANCEL, _A.CONNECT)),
        _E.RESTARTED: (_S.CONNECTING, (_A.CANCEL, _A.CONNECT)),
        _E.DUE: (_S.CONNECTING, (_A.CONNECT,)),
        _E.UNUSED: (_S.IDLE, (_A.CANCEL,)),
        _E.UNWANTED: (_S.DOWN, (_A.CANCEL, _A.CLOSE, _A.END)),
    },
    _S.NEEDS_LOGIN: {
        _E.WANTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.RESTARTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.UNWANTED: _TAKE_DOWN,
    },
    _S.FAILED: {
        _E.WANTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.RESTARTED: (_S.CONNECTING, (_A.CONNECT,)),
        _E.UNWANTED: _TAKE_DOWN,
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


def tunnel_state(link: LinkState, forwards: Iterable[ForwardState]) -> str:
    """What a person is told of a tunnel: its link's state, or over a link that is up its worst forward's."""
    if link is not LinkState.UP:
        return link.shown
    found = set(forwards)
    return next((state.value for state in _WORST_FIRST if state in found), ForwardState.UP.value)


def failure_event(remedy: Remedy) -> LinkEvent:
    """What a failed try means to the link."""
    match remedy:
        case Remedy.LOGIN:
            return LinkEvent.LOGIN_NEEDED
        case Remedy.NONE:
            return LinkEvent.HOPELESS
        case Remedy.RETRY | Remedy.RETRY_REFUSED | Remedy.RETRY_LATER | Remedy.RETRY_MUCH_LATER:
            return LinkEvent.RETRYABLE


# Seconds of silence for which an outage counts as young: a cable, a lift, a new network. Packets that vanish
# trouble no server, so a connect that nobody answers is then renewed long before TCP would repeat its SYN.
YOUNG = 45.0
RENEWAL = 2.0
# Seconds that a connect may take otherwise.
CONNECT_TIMEOUT = 15.0


def connect_patience(silence: float) -> float:
    """Seconds that one connect may stay without an answer, `silence` seconds after the last sign of life."""
    return RENEWAL if silence < YOUNG else CONNECT_TIMEOUT


# Seconds. A server that was reached and failed us is left in peace longer than a cable that is out, and one
# that hung up before its banner longer still: it is full (MaxStartups), or is punishing us (PerSourcePenalties).
FIRST_DELAY = 0.25
LONGEST_DELAY = 30.0
_AT_LEAST = {Remedy.RETRY_LATER: 10.0, Remedy.RETRY_MUCH_LATER: 30.0}


def retry_delay(remedy: Remedy, failures: int, chance: float, silence: float = math.inf) -> float:
    """Seconds until the next try after `failures` (1 or more) in a row; `chance` is random, from 0 up to 1.

    Full jitter: anything from nothing to the doubled delay, so that a thousand keepers spread themselves out.
    `silence` is the seconds since the last sign of life: while that is young, and nobody was reached whom a try
    could trouble, the delay stays short.
    """
    longest = RENEWAL if remedy is Remedy.RETRY and silence < YOUNG else LONGEST_DELAY
    ceiling = min(longest, FIRST_DELAY * 2.0 ** min(failures - 1, 10))
    least = _AT_LEAST.get(remedy, 0.0)
    # Those who were turned away together would come back together.
    return least + max(least, ceiling) * chance


# Seconds that an old master which is silent, beside a new one that answers, may stay so: TCP repeats what was lost
# at least every 120 s (TCP_RTO_MAX), and would have come through by then.
LONGEST_SILENCE = 130.0
# Seconds, beyond the dead-man's switch's own, after which it has surely gone off: a pace of heartbeats, and a bit.
_SWITCH_MARGIN = 7.0


def is_dead(silence: float, switch: float | None, *, address_is_gone: bool) -> bool:
    """Whether an old master, silent for `silence` seconds beside a new one that answers, can't come back.

    `switch` is the dead-man's switch's time in seconds, None without one; `address_is_gone`: its local address
    is none of this machine's any more, though the network is back.
    """
    if address_is_gone:
        return True
    return silence > (LONGEST_SILENCE if switch is None else switch + _SWITCH_MARGIN)
