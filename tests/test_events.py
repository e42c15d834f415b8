"""What is different between two looks at a tunnel, and how machines and people are told of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.control import ForwardStatus, TunnelStatus
from holdfast.events import FIELDS, STATES, VERSION, Event, EventRecord, Kind, Known, changes
from holdfast.keeper.states import ForwardState, LinkState
from tests import records
from tests.conftest import Run
from tests.records import NOW, forward, outage, tunnel
from tests.sshd import Sshd, free_port, wait_for

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "json.md"
BEGAN, ENDED = "2024-05-01T11:59:00+02:00", "2024-05-01T11:59:19+02:00"


def kinds(before: TunnelStatus | None, now: TunnelStatus | None) -> list[Kind]:
    return [event.kind for event in changes(before, now, NOW)]


def only(before: TunnelStatus | None, now: TunnelStatus | None, kind: Kind) -> Event:
    (found,) = (event for event in changes(before, now, NOW) if event.kind is kind)
    return found


def test_nothing_happened_to_a_tunnel_that_is_as_it_was() -> None:
    assert changes(tunnel(), tunnel(), NOW) == []
    assert changes(None, None, NOW) == []


def test_counters_and_times_are_no_events() -> None:
    now = tunnel("lab", forward(connections=7, leases=2), rtt_ms=9.0, age=99, drops=4, held=3, sent_bytes=1 << 40)
    assert kinds(tunnel(), now) == []


def test_a_new_tunnel_is_told_with_its_state_and_forwards() -> None:
    new = tunnel("lab", forward(state="waiting"), state="waiting", reason="no route", hint="wait")
    assert changes(None, new, NOW) == [
        Event(
            NOW,
            Kind.ADDED,
            "lab",
            "lab.example",
            state="waiting",
            reason="no route",
            hint="wait",
            forwards=(forward(state="waiting"),),
        )
    ]


def test_a_tunnel_that_went_is_told_with_its_last_state() -> None:
    assert changes(tunnel(state="stalled"), None, NOW) == [
        Event(NOW, Kind.REMOVED, "lab", "lab.example", before="stalled")
    ]


def test_another_state_is_told_with_the_one_before_and_why() -> None:
    now = tunnel("lab", forward(), state="waiting", reason="no route", hint="is the VPN up")
    assert changes(tunnel(), now, NOW) == [
        Event(
            NOW,
            Kind.STATE,
            "lab",
            "lab.example",
            state="waiting",
            before="up",
            reason="no route",
            hint="is the VPN up",
        )
    ]


def test_another_reason_for_the_same_state_is_told_as_that() -> None:
    before, now = tunnel(state="waiting", reason="no route"), tunnel(state="waiting", reason="no name")
    event = only(before, now, Kind.REASON)
    assert (event.state, event.reason, event.before) == ("waiting", "no name", None)


def test_an_outage_is_told_when_it_begins_and_when_it_ends() -> None:
    up, down = tunnel(), tunnel("lab", forward(), state="stalled", outages=1, last_outage=outage(BEGAN))
    back = tunnel(outages=1, last_outage=outage(BEGAN, ENDED, held=2))
    assert only(up, down, Kind.OUTAGE_BEGAN).reason == "nothing comes back"
    assert Kind.OUTAGE_ENDED not in kinds(up, down)
    ended = only(down, back, Kind.OUTAGE_ENDED)
    assert (ended.seconds, ended.mended_by, ended.held, ended.let_through) == (19.3, "a new connection", 2, 2)
    assert Kind.OUTAGE_BEGAN not in kinds(down, back)
    assert kinds(back, back) == []


def test_an_outage_that_was_over_before_anybody_looked_is_told_as_a_whole() -> None:
    back = tunnel(outages=1, last_outage=outage(BEGAN, ENDED))
    assert kinds(tunnel(), back) == [Kind.OUTAGE_BEGAN, Kind.OUTAGE_ENDED]
    again = tunnel(outages=2, last_outage=outage(BEGAN, ENDED))  # both in one second
    assert kinds(back, again) == [Kind.OUTAGE_BEGAN, Kind.OUTAGE_ENDED]


def test_an_outage_that_is_only_longer_is_no_event() -> None:
    before, now = (tunnel(outages=1, last_outage=outage(BEGAN, seconds=seconds)) for seconds in (1.0, 2.0))
    assert kinds(before, now) == []


def test_a_keeper_that_knows_no_outage_any_more_ends_none() -> None:
    assert kinds(tunnel(outages=1, last_outage=outage(BEGAN)), tunnel(outages=1)) == []


def test_forwards_that_come_and_go_are_told() -> None:
    one, other = forward(), forward("localhost:1", "db:2")
    assert only(tunnel("lab", one), tunnel("lab", one, other), Kind.FORWARD_ADDED).forward == other
    assert only(tunnel("lab", one, other), tunnel("lab", one), Kind.FORWARD_REMOVED).forward == other
    assert kinds(tunnel("lab", one), tunnel("lab", other)) == [Kind.FORWARD_REMOVED, Kind.FORWARD_ADDED]
    assert kinds(tunnel("lab", one, other), tunnel("lab", other, one)) == []


def test_a_forward_that_leads_elsewhere_has_moved() -> None:
    event = only(tunnel(), tunnel("lab", forward(target="127.0.0.1:9")), Kind.FORWARD_MOVED)
    assert event.forward == forward(target="127.0.0.1:9")
    assert (event.listen_before, event.target_before) == ("localhost:8888", "127.0.0.1:8888")


def test_a_remote_forward_that_the_server_gave_another_port_has_moved() -> None:
    def given(port: int) -> ForwardStatus:
        return forward(f"localhost:{port}", "127.0.0.1:80", "remote", asked="localhost:0")

    assert kinds(tunnel("lab", given(4001)), tunnel("lab", given(4002))) == [Kind.FORWARD_MOVED]


def test_forwards_whose_ports_are_not_given_yet_are_told_apart_by_their_targets() -> None:
    one, other = forward("localhost:0", "db:1", "remote"), forward("localhost:0", "db:2", "remote")
    assert kinds(tunnel("lab", one, other), tunnel("lab", other, one)) == []


def test_a_forwards_own_state_is_told_with_the_one_before() -> None:
    two = forward("localhost:1", "db:2")
    dead = forward("localhost:1", "db:2", state="no service", reason="nobody listens")
    event = only(tunnel("lab", forward(), two), tunnel("lab", forward(), dead, state="up"), Kind.FORWARD_STATE)
    assert (event.forward, event.before) == (dead, "up")


def test_what_another_keeper_doesnt_know_is_gone_and_what_it_knows_alike_is_no_event() -> None:
    known = Known()
    known.learn(records.changes(tunnel("lab"), tunnel("db")), NOW)
    found = known.start_over(records.changes(tunnel("lab")), NOW)
    assert [(event.kind, event.tunnel) for event in found] == [(Kind.REMOVED, "db")]
    assert list(known.tunnels) == ["lab"]


def test_what_is_told_later_adds_to_what_is_known() -> None:
    known = Known()
    assert [event.tunnel for event in known.learn(records.changes(tunnel("lab")), NOW)] == ["lab"]
    assert [event.tunnel for event in known.learn(records.changes(tunnel("db")), NOW)] == ["db"]
    found = known.learn(records.changes(tunnel("db", state="stalled"), gone=("lab", "never")), NOW)
    assert [(event.kind, event.tunnel) for event in found][:2] == [(Kind.REMOVED, "lab"), (Kind.STATE, "db")]


FORWARDS = st.builds(
    forward,
    listen=st.sampled_from(["localhost:1", "localhost:2"]),
    target=st.sampled_from(["db:1", "db:2", None]),
    state=st.sampled_from(STATES),
    asked=st.sampled_from(["localhost:0", None]),
)
TUNNELS = st.builds(
    lambda forwards, state, last: tunnel("lab", *forwards, state=state, last_outage=last),
    st.lists(FORWARDS, max_size=4),
    st.sampled_from(STATES),
    st.sampled_from([None, outage(BEGAN), outage(BEGAN, ENDED), outage(ENDED)]),
)


@given(TUNNELS, TUNNELS)
def test_forwards_can_be_told_from_events_alone(before: TunnelStatus, now: TunnelStatus) -> None:
    count = len(before["forwards"])
    for event in changes(before, now, NOW):
        count += {Kind.FORWARD_ADDED: 1, Kind.FORWARD_REMOVED: -1}.get(event.kind, 0)
        assert json.dumps(event.as_json())
        assert mistyped(event.as_json()) == []
    assert count == len(now["forwards"])
    assert changes(now, now, NOW) == []


def mistyped(record: EventRecord) -> list[str]:
    """The fields whose values aren't what EventRecord says."""
    hints = get_type_hints(EventRecord)
    return [name for name, value in record.items() if not fits(value, hints[name])]


def fits(value: object, hint: Any) -> bool:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    return any(isinstance(value, dict if is_typeddict(kind) else get_origin(kind) or kind) for kind in kinds)


def every_kind() -> Iterator[Event]:
    """An event of each kind."""
    up, down = tunnel(), tunnel(state="stalled", outages=1, last_outage=outage(BEGAN))
    for before, now in (
        (None, up),
        (up, None),
        (up, down),
        (down, tunnel(outages=1, last_outage=outage(BEGAN, ENDED))),
        (tunnel(reason="a"), tunnel(reason="b")),
        (up, tunnel("lab", forward(), forward("localhost:1"))),
        (tunnel("lab", forward(), forward("localhost:1")), up),
        (up, tunnel("lab", forward(target="db:1"))),
    ):
        yield from changes(before, now, NOW)


def test_a_record_has_the_fields_of_its_kind_and_no_others() -> None:
    found = {event.kind: event.as_json() for event in every_kind()}
    assert set(found) == set(Kind)
    for kind, record in found.items():
        assert tuple(record) == ("version", "at", "event", "tunnel", "host", *FIELDS[kind])
        assert (record["version"], record["event"]) == (VERSION, kind.value)
        assert mistyped(record) == []
    assert {name for record in found.values() for name in record} == set(get_type_hints(EventRecord))


def test_a_value_of_another_type_than_the_record_says_would_be_noticed() -> None:
    (event,) = changes(None, tunnel(), NOW)
    assert mistyped(event._replace(state=None, reason="why").as_json()) == ["state"]


def test_what_a_kind_has_no_field_for_is_none() -> None:
    own = {"at", "kind", "tunnel", "host"}
    for event in every_kind():
        given = {name for name, value in event._asdict().items() if value is not None} - own
        assert given <= set(FIELDS[event.kind])


def test_the_time_of_a_record_has_milliseconds_and_its_offset() -> None:
    (event,) = changes(None, tunnel(), NOW + timedelta(microseconds=1234))
    assert event.as_json()["at"] == "2024-05-01T12:00:00.001+02:00"


def test_the_states_are_those_that_the_keeper_shows() -> None:
    assert set(STATES) == {state.shown for state in LinkState} | {state.value for state in ForwardState}


def test_the_example_in_the_document_is_an_event_of_today() -> None:
    lines = re.findall(r'^\{"version".*\}$', DOCUMENT.read_text(), re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        record = json.loads(line)
        assert tuple(record) == ("version", "at", "event", "tunnel", "host", *FIELDS[Kind(record["event"])])


class Listener:
    """A running `holdfast events --json`, and what it has printed."""

    def __init__(self, environment: Mapping[str, str], *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "holdfast", "events", "--json", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.text = b""

    def kinds(self) -> list[str]:
        return [record["event"] for record in self.records()]

    def records(self) -> list[dict[str, Any]]:
        assert self.process.stdout is not None
        self.text += self.process.stdout.read() or b""
        return [json.loads(line) for line in self.text.split(b"\n")[:-1]]


@pytest.fixture
def listening(environment: Mapping[str, str], holdfast: Run) -> Iterator[Callable[..., Listener]]:
    started: list[Listener] = []

    def listen(*words: str) -> Listener:
        started.append(Listener(environment, *words))
        return started[-1]

    yield listen
    for listener in started:
        listener.process.kill()
        listener.process.wait()
        if listener.process.stdout is not None:
            listener.process.stdout.close()


def test_events_go_on_over_the_keepers_end_until_ctrl_c(
    holdfast: Run, sshd: Sshd, listening: Callable[..., Listener], kill_keeper: Callable[[], None]
) -> None:
    listener = listening()  # before there is any keeper
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{free_port()}").returncode == 0
    wait_for(lambda: "no service" in [record.get("state") for record in listener.records()], "the tunnel's state")
    assert listener.kinds()[0] == "added"
    sshd.drop_connections()
    wait_for(lambda: "outage_ended" in listener.kinds(), "the outage to end")
    assert "outage_began" in listener.kinds()
    kill_keeper()
    assert holdfast("down", "lab").returncode == 0
    wait_for(lambda: "removed" in listener.kinds(), "the tunnel to go, by the next keeper's word")
    assert listener.kinds().count("added") == 1
    listener.process.send_signal(signal.SIGINT)
    assert listener.process.wait(10) == 130


def test_events_end_well_when_nobody_reads_them_any_more(listening: Callable[..., Listener]) -> None:
    listener = listening()  # and nothing happens
    assert listener.process.stdout is not None
    listener.process.stdout.close()
    assert listener.process.wait(10) == 0


def test_events_of_a_tunnel_that_nobody_knows_are_refused(holdfast: Run) -> None:
    result = holdfast("events", "nope")
    assert result.returncode == 1
    assert "there is no tunnel 'nope'" in result.stderr
