"""The table of a link's states, a tunnel's state, and the delays between tries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.keeper.states import (
    LINK,
    ForwardState,
    LinkAction,
    LinkEvent,
    LinkState,
    StateError,
    failure_event,
    next_link_state,
    retry_delay,
    tunnel_state,
)
from holdfast.openssh.diagnose import Remedy

MOVES = [(state, event, *move) for state, row in LINK.items() for event, move in row.items()]


def test_every_state_has_a_row() -> None:
    assert set(LINK) == set(LinkState)


def test_every_state_can_be_reached_from_down() -> None:
    reached, frontier = {LinkState.DOWN}, [LinkState.DOWN]
    while frontier:
        found = {state for state, _ in LINK[frontier.pop()].values()} - reached
        reached |= found
        frontier += found
    assert reached == set(LinkState)


def test_every_event_means_something_somewhere() -> None:
    assert {event for _, event, _, _ in MOVES} == set(LinkEvent)


@pytest.mark.parametrize("state", LinkState)
def test_a_link_that_nobody_wants_is_down_at_once(state: LinkState) -> None:
    assert next_link_state(state, LinkEvent.UNWANTED)[0] is LinkState.DOWN


@pytest.mark.parametrize("state", LinkState)
def test_a_link_that_is_wanted_is_never_down(state: LinkState) -> None:
    assert next_link_state(state, LinkEvent.WANTED)[0] is not LinkState.DOWN


@pytest.mark.parametrize("state", set(LinkState) - {LinkState.DOWN})
def test_a_restart_makes_a_new_connection_from_any_state_but_down(state: LinkState) -> None:
    after, actions = next_link_state(state, LinkEvent.RESTARTED)
    assert after is LinkState.CONNECTING
    assert actions[-1] is LinkAction.CONNECT


@pytest.mark.parametrize(("state", "event", "after", "actions"), MOVES)
def test_whatever_enters_connecting_connects(
    state: LinkState, event: LinkEvent, after: LinkState, actions: tuple[LinkAction, ...]
) -> None:
    enters = after is LinkState.CONNECTING and (state is not after or event is LinkEvent.RESTARTED)
    assert (LinkAction.CONNECT in actions) is enters


@pytest.mark.parametrize(("state", "event", "after", "actions"), MOVES)
def test_whatever_enters_waiting_sets_a_time_and_what_leaves_it_early_cancels_that(
    state: LinkState, event: LinkEvent, after: LinkState, actions: tuple[LinkAction, ...]
) -> None:
    assert (LinkAction.SCHEDULE in actions) is (after is LinkState.WAITING)
    assert (LinkAction.CANCEL in actions) is (state is LinkState.WAITING and event is not LinkEvent.DUE)


@pytest.mark.parametrize("state", [LinkState.CONNECTING, LinkState.UP, LinkState.STALLED])
@pytest.mark.parametrize("event", [LinkEvent.RESTARTED, LinkEvent.UNWANTED])
def test_a_master_is_released_first_when_it_is_left(state: LinkState, event: LinkEvent) -> None:
    assert next_link_state(state, event)[1][0] is LinkAction.RELEASE


@pytest.mark.parametrize(
    ("events", "state"),
    [
        ([LinkEvent.WANTED], LinkState.CONNECTING),
        ([LinkEvent.WANTED, LinkEvent.PROVEN], LinkState.UP),
        ([LinkEvent.WANTED, LinkEvent.PROVEN, LinkEvent.LATE], LinkState.STALLED),
        ([LinkEvent.WANTED, LinkEvent.PROVEN, LinkEvent.LATE, LinkEvent.ANSWERED], LinkState.UP),
        ([LinkEvent.WANTED, LinkEvent.PROVEN, LinkEvent.LATE, LinkEvent.LOST], LinkState.WAITING),
        ([LinkEvent.WANTED, LinkEvent.PROVEN, LinkEvent.LOST], LinkState.WAITING),
        ([LinkEvent.WANTED, LinkEvent.PROVEN, LinkEvent.LOST, LinkEvent.DUE], LinkState.CONNECTING),
        ([LinkEvent.WANTED, LinkEvent.RETRYABLE, LinkEvent.WANTED], LinkState.CONNECTING),
        ([LinkEvent.WANTED, LinkEvent.LOGIN_NEEDED, LinkEvent.WANTED], LinkState.CONNECTING),
        ([LinkEvent.WANTED, LinkEvent.HOPELESS, LinkEvent.WANTED], LinkState.CONNECTING),
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
        (Remedy.RETRY_LATER, LinkState.WAITING),
        (Remedy.RETRY_MUCH_LATER, LinkState.WAITING),
        (Remedy.LOGIN, LinkState.NEEDS_LOGIN),
        (Remedy.NONE, LinkState.FAILED),
    ],
)
def test_a_failed_try_leads_to(remedy: Remedy, state: LinkState) -> None:
    assert next_link_state(LinkState.CONNECTING, failure_event(remedy))[0] is state


def test_every_remedy_is_an_event_that_a_try_can_end_with() -> None:
    assert {failure_event(remedy) for remedy in Remedy} <= set(LINK[LinkState.CONNECTING])


F = ForwardState


@pytest.mark.parametrize("link", set(LinkState) - {LinkState.UP})
@pytest.mark.parametrize("forward", ForwardState)
def test_a_tunnel_over_a_link_that_is_not_up_shows_the_link(link: LinkState, forward: ForwardState) -> None:
    assert tunnel_state(link, [forward]) is link


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
    assert tunnel_state(LinkState.UP, forwards) is state
    assert tunnel_state(LinkState.UP, reversed(forwards)) is state


@given(st.lists(st.sampled_from(ForwardState), min_size=1))
def test_a_tunnel_shows_a_state_that_one_of_its_forwards_is_in(forwards: list[ForwardState]) -> None:
    assert tunnel_state(LinkState.UP, forwards) in forwards


AT_LEAST = {Remedy.RETRY: 0, Remedy.RETRY_LATER: 10, Remedy.RETRY_MUCH_LATER: 30}
REMEDIES = st.sampled_from(list(AT_LEAST))
FAILURES = st.one_of(st.integers(1, 20), st.integers(1))
CHANCES = st.floats(0, 1, exclude_max=True)


@given(REMEDIES, FAILURES, CHANCES)
def test_a_delay_lies_between_its_minimum_and_half_a_minute_more(
    remedy: Remedy, failures: int, chance: float
) -> None:
    assert AT_LEAST[remedy] <= retry_delay(remedy, failures, chance) <= AT_LEAST[remedy] + 30


@given(CHANCES)
def test_the_first_new_try_after_a_lost_network_comes_within_half_a_second(chance: float) -> None:
    assert retry_delay(Remedy.RETRY, 1, chance) <= 0.5


@given(REMEDIES, FAILURES)
def test_chance_alone_decides_from_the_minimum_on(remedy: Remedy, failures: int) -> None:
    assert retry_delay(remedy, failures, 0.0) == AT_LEAST[remedy]


@given(REMEDIES, FAILURES, CHANCES)
def test_one_more_failure_never_shortens_the_delay(remedy: Remedy, failures: int, chance: float) -> None:
    assert retry_delay(remedy, failures, chance) <= retry_delay(remedy, failures + 1, chance)


def test_the_longest_delay_doubles_up_to_half_a_minute() -> None:
    delays = [retry_delay(Remedy.RETRY, failures, 1.0) for failures in range(1, 9)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]
