"""The table of a link's states, a tunnel's state, the delays between tries, and when to give a master up."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.keeper.states import (
    CONNECT_TIMEOUT,
    LINK,
    LONGEST_SILENCE,
    RENEWAL,
    YOUNG,
    ForwardState,
    LinkAction,
    LinkEvent,
    LinkState,
    StateError,
    connect_patience,
    failure_event,
    is_dead,
    next_link_state,
    retry_delay,
    tunnel_state,
)
from holdfast.openssh.diagnose import Remedy
from holdfast.openssh.settings import Settings, preferences

MOVES = [(state, event, *move) for state, row in LINK.items() for event, move in row.items()]
S, E, A = LinkState, LinkEvent, LinkAction


class Has(NamedTuple):
    """What a link has: a master that serves, one that is tried, the time of a next try; and who has its ports."""

    serving: bool = False
    trying: bool = False
    timer: bool = False
    ports: str = "guard"


HAS = {
    S.DOWN: Has(ports="nobody"),
    S.CONNECTING: Has(trying=True),
    S.UP: Has(serving=True, ports="master"),
    S.STALLED: Has(serving=True, trying=True),
    S.STALLED_WAITING: Has(serving=True, timer=True),
    S.STALLED_LOGIN: Has(serving=True),
    S.STALLED_FAILED: Has(serving=True),
    S.WAITING: Has(timer=True),
    S.NEEDS_LOGIN: Has(),
    S.FAILED: Has(),
    S.IDLE: Has(),
}
# What doesn't follow from what a link has: only one at rest is asked for lazily, and one that works, or that waits
# for its next try, may be found to be of no use to anybody just now.
LAZY = {S.DOWN: {E.LAZILY_WANTED}, S.IDLE: {E.LAZILY_WANTED}, S.UP: {E.UNUSED}, S.WAITING: {E.UNUSED}}
OF_THE_TRY = {E.PROVEN, E.RETRYABLE, E.LOGIN_NEEDED, E.HOPELESS}


def happened(has: Has, event: LinkEvent) -> Has:
    """What a link still has when `event` has just happened to it, before anything is done."""
    match event:
        case E.RETRYABLE | E.LOGIN_NEEDED | E.HOPELESS:
            return has._replace(trying=False)
        case E.LOST:
            return has._replace(serving=False)
        case E.DUE:
            return has._replace(timer=False)
        case _:
            return has


def done(has: Has, action: LinkAction) -> Has:
    """What a link has once the keeper has done `action`, which must make sense."""
    match action:
        case A.CONNECT:
            assert not has.trying
            return has._replace(trying=True)
        case A.ABANDON:
            assert has.trying
            return has._replace(trying=False)
        case A.SERVE:
            assert has.trying
            return has._replace(serving=True, trying=False, ports="master")
        case A.RESUME:
            assert has.serving
            return has._replace(ports="master")
        case A.HOLD:
            return has._replace(ports="guard")
        case A.SCHEDULE:
            assert not has.timer
            return has._replace(timer=True)
        case A.CANCEL:
            assert has.timer
            return has._replace(timer=False)
        case A.DRAIN:
            assert has.serving
            return has._replace(serving=False)
        case A.END:
            return has._replace(serving=False, trying=False)
        case A.CLOSE:
            return has._replace(ports="nobody")


def possible(has: Has) -> set[LinkEvent]:
    """The events that can happen to a link that has this."""
    events = {E.WANTED, E.UNWANTED}
    if has.ports != "nobody":
        events.add(E.RESTARTED)
    if has.trying:
        events |= OF_THE_TRY
    if has.serving:
        events |= {E.LATE, E.ANSWERED, E.LOST}
    if has.timer:
        events.add(E.DUE)
    return events


def test_every_state_has_a_row() -> None:
    assert set(LINK) == set(LinkState)


@pytest.mark.parametrize("state", LinkState)
def test_a_state_names_the_events_that_can_happen_in_it_and_no_other(state: LinkState) -> None:
    # A master that is up has nothing beside it, so nothing that could be found to have failed.
    assert set(LINK[state]) == possible(HAS[state]) | LAZY.get(state, set())


@pytest.mark.parametrize(("state", "event", "after", "actions"), MOVES)
def test_what_is_done_leaves_a_link_with_what_its_new_state_is_to_have(
    state: LinkState, event: LinkEvent, after: LinkState, actions: tuple[LinkAction, ...]
) -> None:
    assert reduce(done, actions, happened(HAS[state], event)) == HAS[after]


@pytest.mark.parametrize(("state", "event", "after", "actions"), MOVES)
def test_the_ports_change_hands_before_anything_else_is_ended_or_begun(
    state: LinkState, event: LinkEvent, after: LinkState, actions: tuple[LinkAction, ...]
) -> None:
    for first in {A.HOLD, A.CLOSE} & set(actions):
        later = {A.END, A.CONNECT, A.SCHEDULE} & set(actions)
        assert all(actions.index(first) < actions.index(action) for action in later)


@pytest.mark.parametrize(("state", "event", "after", "actions"), MOVES)
def test_nobody_but_a_person_ends_a_master(
    state: LinkState, event: LinkEvent, after: LinkState, actions: tuple[LinkAction, ...]
) -> None:
    if A.END in actions:
        assert event in (E.RESTARTED, E.UNWANTED)


def test_every_state_can_be_reached_from_down() -> None:
    reached, frontier = {LinkState.DOWN}, [LinkState.DOWN]
    while frontier:
        found = {state for state, _ in LINK[frontier.pop()].values()} - reached
        reached |= found
        frontier += found
    assert reached == set(LinkState)


@pytest.mark.parametrize("state", LinkState)
def test_a_link_that_nobody_wants_is_down_at_once(state: LinkState) -> None:
    assert next_link_state(state, LinkEvent.UNWANTED)[0] is LinkState.DOWN


@pytest.mark.parametrize("state", LinkState)
def test_a_link_that_is_wanted_is_never_down(state: LinkState) -> None:
    assert next_link_state(state, LinkEvent.WANTED)[0] is not LinkState.DOWN


@pytest.mark.parametrize("state", set(LinkState) - {LinkState.UP})
def test_asking_for_a_link_that_is_not_up_has_it_tried_at_once(state: LinkState) -> None:
    assert HAS[next_link_state(state, LinkEvent.WANTED)[0]].trying


@pytest.mark.parametrize("state", set(LinkState) - {LinkState.DOWN})
def test_a_restart_makes_a_new_connection_from_any_state_but_down(state: LinkState) -> None:
    after, actions = next_link_state(state, LinkEvent.RESTARTED)
    assert after is LinkState.CONNECTING
    assert actions[-1] is LinkAction.CONNECT


@pytest.mark.parametrize("state", [state for state in LinkState if state.is_stalled])
def test_a_stalled_link_is_up_as_soon_as_its_master_answers(state: LinkState) -> None:
    after, actions = next_link_state(state, LinkEvent.ANSWERED)
    assert after is LinkState.UP
    assert LinkAction.RESUME in actions


def test_stalled_is_what_any_stalled_link_shows_and_no_other() -> None:
    assert {state for state in LinkState if state.is_stalled} == {
        S.STALLED,
        S.STALLED_WAITING,
        S.STALLED_LOGIN,
        S.STALLED_FAILED,
    }
    assert {state.shown for state in LinkState if state.is_stalled} == {"stalled"}
    assert {state.shown for state in LinkState if not state.is_stalled} == {
        "down",
        "connecting",
        "up",
        "waiting",
        "needs login",
        "failed",
        "idle",
    }


UP = [E.WANTED, E.PROVEN]
STALLED = [*UP, E.LATE]


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([E.WANTED], S.CONNECTING),
        (UP, S.UP),
        ([*UP, E.LOST], S.WAITING),
        ([*UP, E.LOST, E.DUE], S.CONNECTING),
        ([E.WANTED, E.RETRYABLE, E.WANTED], S.CONNECTING),
        ([E.WANTED, E.LOGIN_NEEDED], S.NEEDS_LOGIN),
        ([E.WANTED, E.LOGIN_NEEDED, E.WANTED], S.CONNECTING),
        ([E.WANTED, E.HOPELESS], S.FAILED),
        ([E.WANTED, E.HOPELESS, E.WANTED], S.CONNECTING),
        (STALLED, S.STALLED),
        ([*STALLED, E.ANSWERED], S.UP),
        ([*STALLED, E.PROVEN], S.UP),
        ([*STALLED, E.LOST], S.CONNECTING),
        ([*STALLED, E.LOST, E.PROVEN], S.UP),
        ([*STALLED, E.RETRYABLE], S.STALLED_WAITING),
        ([*STALLED, E.RETRYABLE, E.DUE], S.STALLED),
        ([*STALLED, E.RETRYABLE, E.WANTED], S.STALLED),
        ([*STALLED, E.RETRYABLE, E.LOST], S.WAITING),
        ([*STALLED, E.RETRYABLE, E.ANSWERED], S.UP),
        ([*STALLED, E.LOGIN_NEEDED], S.STALLED_LOGIN),
        ([*STALLED, E.LOGIN_NEEDED, E.WANTED], S.STALLED),
        ([*STALLED, E.LOGIN_NEEDED, E.LOST], S.NEEDS_LOGIN),
        ([*STALLED, E.LOGIN_NEEDED, E.ANSWERED], S.UP),
        ([*STALLED, E.HOPELESS, E.LOST], S.FAILED),
        ([*STALLED, E.HOPELESS, E.ANSWERED], S.UP),
    ],
)
def test_from_down_the_events_lead_to(events: list[LinkEvent], state: LinkState) -> None:
    now = LinkState.DOWN
    for event in events:
        now, _ = next_link_state(now, event)
    assert now is state


@pytest.mark.parametrize("state", LinkState)
@pytest.mark.parametrize("event", LinkEvent)
def test_a_move_is_in_the_table_or_an_error_that_names_state_and_event(state: LinkState, event: LinkEvent) -> None:
    if event in LINK[state]:
        assert next_link_state(state, event) == LINK[state][event]
        return
    with pytest.raises(StateError) as raised:
        next_link_state(state, event)
    assert repr(state.value) in str(raised.value)
    assert event.name in str(raised.value)


@pytest.mark.parametrize(
    ("remedy", "state"),
    [
        (Remedy.RETRY, LinkState.WAITING),
        (Remedy.RETRY_REFUSED, LinkState.WAITING),
        (Remedy.RETRY_LATER, LinkState.WAITING),
        (Remedy.RETRY_MUCH_LATER, LinkState.WAITING),
        (Remedy.LOGIN, LinkState.NEEDS_LOGIN),
        (Remedy.NONE, LinkState.FAILED),
    ],
)
def test_a_failed_try_leads_to(remedy: Remedy, state: LinkState) -> None:
    assert next_link_state(LinkState.CONNECTING, failure_event(remedy))[0] is state


@pytest.mark.parametrize("state", [LinkState.CONNECTING, LinkState.STALLED])
def test_every_remedy_is_an_event_that_a_try_can_end_with(state: LinkState) -> None:
    assert {failure_event(remedy) for remedy in Remedy} <= set(LINK[state])


F = ForwardState


@pytest.mark.parametrize("link", set(LinkState) - {LinkState.UP})
@pytest.mark.parametrize("forward", ForwardState)
def test_a_tunnel_over_a_link_that_is_not_up_shows_the_link(link: LinkState, forward: ForwardState) -> None:
    assert tunnel_state(link, [forward]) == link.shown


@pytest.mark.parametrize(
    ("forwards", "state"),
    [
        ([], F.UP),
        ([F.UP], F.UP),
        ([F.CLOSED], F.CLOSED),
        ([F.CLOSED, F.UP], F.UP),
        ([F.UP, F.NO_SERVICE], F.NO_SERVICE),
        ([F.NO_SERVICE, F.CLOSED], F.NO_SERVICE),
        ([F.NO_SERVICE, F.REFUSED], F.REFUSED),
        ([F.REFUSED, F.PORT_TAKEN], F.PORT_TAKEN),
        ([F.CLOSED, F.UP, F.NO_SERVICE, F.REFUSED, F.PORT_TAKEN], F.PORT_TAKEN),
    ],
)
def test_a_tunnel_over_a_link_that_is_up_shows_its_worst_forward(
    forwards: list[ForwardState], state: ForwardState
) -> None:
    assert tunnel_state(LinkState.UP, forwards) == state
    assert tunnel_state(LinkState.UP, reversed(forwards)) == state


@given(st.sampled_from(LinkState), st.lists(st.sampled_from(ForwardState)))
def test_what_a_tunnel_shows_is_a_plain_word(link: LinkState, forwards: list[ForwardState]) -> None:
    shown = tunnel_state(link, forwards)
    assert type(shown) is str
    assert "," not in shown


@given(st.lists(st.sampled_from(ForwardState), min_size=1))
def test_a_tunnel_shows_a_state_that_one_of_its_forwards_is_in(forwards: list[ForwardState]) -> None:
    assert tunnel_state(LinkState.UP, forwards) in forwards


AT_LEAST = {
    Remedy.RETRY: 0,
    Remedy.RETRY_REFUSED: 0,
    Remedy.RETRY_LATER: 10,
    Remedy.RETRY_MUCH_LATER: 30,
}
REMEDIES = st.sampled_from(list(AT_LEAST))
FAILURES = st.one_of(st.integers(1, 20), st.integers(1))
CHANCES = st.floats(0, 1, exclude_max=True)


SILENCES = st.floats(0, 1e6)


@given(REMEDIES, FAILURES, CHANCES, SILENCES)
def test_a_delay_lies_between_its_minimum_and_half_a_minute_more(
    remedy: Remedy, failures: int, chance: float, silence: float
) -> None:
    assert AT_LEAST[remedy] <= retry_delay(remedy, failures, chance, silence) <= AT_LEAST[remedy] + 30


@given(CHANCES)
def test_the_first_new_try_after_a_lost_network_comes_within_a_quarter_of_a_second(chance: float) -> None:
    assert retry_delay(Remedy.RETRY, 1, chance) <= 0.25


@given(REMEDIES, FAILURES, SILENCES)
def test_chance_alone_decides_from_the_minimum_on(remedy: Remedy, failures: int, silence: float) -> None:
    assert retry_delay(remedy, failures, 0.0, silence) == AT_LEAST[remedy]


@given(REMEDIES, FAILURES, CHANCES, SILENCES)
def test_one_more_failure_never_shortens_the_delay(
    remedy: Remedy, failures: int, chance: float, silence: float
) -> None:
    fewer, more = (retry_delay(remedy, count, chance, silence) for count in (failures, failures + 1))
    assert fewer <= more


@pytest.mark.parametrize("remedy", [Remedy.RETRY, Remedy.RETRY_REFUSED])
def test_the_longest_delay_doubles_up_to_half_a_minute(remedy: Remedy) -> None:
    delays = [retry_delay(remedy, failures, 1.0) for failures in range(1, 10)]
    assert delays == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]


def test_while_nobody_was_reached_and_the_outage_is_young_the_longest_delay_stays_short() -> None:
    delays = [retry_delay(Remedy.RETRY, failures, 1.0, YOUNG - 0.001) for failures in range(1, 7)]
    assert delays == [0.25, 0.5, 1, 2, 2, 2]
    assert retry_delay(Remedy.RETRY, 20, 1.0, YOUNG) == 30


@pytest.mark.parametrize(("remedy", "longest"), [(Remedy.RETRY_LATER, 20), (Remedy.RETRY_MUCH_LATER, 60)])
def test_those_who_were_turned_away_together_come_back_spread_out_as_far_as_they_had_to_wait(
    remedy: Remedy, longest: float
) -> None:
    assert retry_delay(remedy, 1, 1.0) == longest


@given(st.sampled_from(sorted(AT_LEAST.keys() - {Remedy.RETRY}, key=str)), FAILURES, CHANCES, SILENCES)
def test_a_machine_that_was_reached_is_spared_however_young_the_outage_is(
    remedy: Remedy, failures: int, chance: float, silence: float
) -> None:
    assert retry_delay(remedy, failures, chance, silence) == retry_delay(remedy, failures, chance)


SWITCHES = st.none() | st.floats(3, 3600)


@pytest.mark.parametrize(
    ("silence", "patience"),
    [(0, RENEWAL), (YOUNG - 0.001, RENEWAL), (YOUNG, CONNECT_TIMEOUT), (YOUNG + 1, CONNECT_TIMEOUT)],
)
def test_a_connect_without_an_answer_is_renewed_while_the_outage_is_young(silence: float, patience: float) -> None:
    assert connect_patience(silence) == patience


@given(SILENCES)
def test_ssh_itself_is_never_given_more_time_for_a_connect_than_we_have_patience(silence: float) -> None:
    ours = preferences(Settings(""), Settings(""), has_aes=False)
    assert 0 < connect_patience(silence) <= float(ours["ConnectTimeout"]) == CONNECT_TIMEOUT


@pytest.mark.parametrize(
    ("silence", "switch", "dead"),
    [
        (0, 13, False),
        (20, 13, False),
        (20.001, 13, True),
        (67, 60, False),
        (67.001, 60, True),
        (20.001, None, False),
        (LONGEST_SILENCE, None, False),
        (LONGEST_SILENCE + 0.001, None, True),
    ],
)
def test_an_old_master_is_dead_when_its_switch_must_have_gone_off_or_tcp_would_have_come_through(
    silence: float, switch: float | None, dead: bool
) -> None:
    assert is_dead(silence, switch, address_is_gone=False) is dead


@given(SILENCES, SWITCHES)
def test_an_old_master_whose_address_is_gone_is_dead_at_once(silence: float, switch: float | None) -> None:
    assert is_dead(silence, switch, address_is_gone=True)


@given(SILENCES, SILENCES, SWITCHES)
def test_more_silence_brings_nobody_back(silence: float, more: float, switch: float | None) -> None:
    if is_dead(silence, switch, address_is_gone=False):
        assert is_dead(silence + more, switch, address_is_gone=False)


@given(st.floats(3, 3600))
def test_no_old_master_is_dead_before_its_switch_and_a_heartbeats_pace_are_over(switch: float) -> None:
    assert not is_dead(switch + 5, switch, address_is_gone=False)
