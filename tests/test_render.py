"""What people read of tunnels: exact small tables."""

from __future__ import annotations

import re
from textwrap import dedent

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli import render
from holdfast.control import ForwardStatus, TunnelStatus
from holdfast.events import Kind, changes
from tests.records import NOW, forward, outage, tunnel


def shown(*tunnels: TunnelStatus) -> str:
    return click.unstyle(render.table(tunnels, NOW)) + "\n"


def text(table: str) -> str:
    return dedent(table).lstrip("\n")


def test_one_tunnel_that_is_up() -> None:
    assert shown(tunnel()) == text("""
        NAME  STATE  FORWARD                           HOST         SINCE  RTT     DROPS
        lab   up     localhost:8888 -> 127.0.0.1:8888  lab.example  12 s   1.3 ms  0
        """)


def test_columns_are_as_wide_as_their_widest_cell_and_a_tunnels_forwards_stand_under_each_other() -> None:
    assert shown(
        tunnel(
            "a",
            forward("localhost:1", "db:2"),
            forward("localhost:1080", None, kind="dynamic"),
            forward("localhost:0", "127.0.0.1:80", kind="remote"),
            drops=12345678,
        ),
        tunnel("longer-name", forward("/run/x", "db:2"), age=7200, rtt_ms=None),
    ) == text("""
        NAME         STATE  FORWARD                      HOST                 SINCE  RTT     DROPS
        a            up     localhost:1 -> db:2          a.example            12 s   1.3 ms  12345678
                     up     localhost:1080 -> SOCKS
                     up     127.0.0.1:80 <- localhost:0
        longer-name  up     /run/x -> db:2               longer-name.example  2 h    -       0
        """)


def test_reason_next_try_and_hint_stand_under_what_is_not_up() -> None:
    waiting = tunnel(state="waiting", reason="no route to lab", hint="is the VPN up", retry_in=9.5, rtt_ms=None)
    assert shown(waiting, tunnel("db")) == text("""
        NAME  STATE    FORWARD                           HOST         SINCE  RTT     DROPS
        lab   waiting  localhost:8888 -> 127.0.0.1:8888  lab.example  12 s   -       0
              no route to lab; next try in 9 s
              hint: is the VPN up
        db    up       localhost:8888 -> 127.0.0.1:8888  db.example   12 s   1.3 ms  0
        """)


@pytest.mark.parametrize(("held", "said"), [(1, "1 connection waits"), (3, "3 connections wait")])
def test_connections_that_wait_are_counted_under_what_is_not_up(held: int, said: str) -> None:
    reason = "lab does not answer any more: nothing comes back from it"
    stalled = tunnel(state="stalled", reason=reason, hint="wait", held=held, rtt_ms=None)
    assert shown(stalled) == text(f"""
        NAME  STATE    FORWARD                           HOST         SINCE  RTT  DROPS
        lab   stalled  localhost:8888 -> 127.0.0.1:8888  lab.example  12 s   -    0
              lab does not answer any more: nothing comes back from it
              hint: wait
              {said}
        """)


def test_connections_that_wait_are_told_where_there_is_nothing_else_to_tell() -> None:
    lines = shown(tunnel(state="connecting", held=2, rtt_ms=None)).splitlines()
    assert lines[2:] == ["      2 connections wait"]


def test_the_reasons_of_forwards_stand_under_their_tunnel_and_each_only_once() -> None:
    refused = "nothing listens on port 80 of db"
    assert shown(
        tunnel(
            "lab",
            forward("localhost:1", "db:80", state="no service", reason=refused, hint="start it"),
            forward("localhost:2", "db:80", state="no service", reason=refused, hint="start it"),
            forward("localhost:3", "db:81", state="port taken", reason="port 3 is held by nginx (pid 7)"),
            state="port taken",
            reason=refused,
            hint="start it",
        )
    ) == text("""
        NAME  STATE       FORWARD               HOST         SINCE  RTT     DROPS
        lab   no service  localhost:1 -> db:80  lab.example  12 s   1.3 ms  0
              no service  localhost:2 -> db:80
              port taken  localhost:3 -> db:81
              nothing listens on port 80 of db
              hint: start it
              port 3 is held by nginx (pid 7)
        """)


def test_what_is_worth_knowing_of_a_tunnel_that_is_up_stands_under_it() -> None:
    lines = shown(tunnel(fast_path=False, adopted=True)).splitlines()
    assert lines[2].startswith("      lab.example lets no session be opened, so the fast path is not available")
    assert lines[3] == "      over the master that you started yourself"


def test_what_other_machines_can_reach_is_marked_in_its_row_and_said_below() -> None:
    assert shown(
        tunnel(
            "lab",
            forward("0.0.0.0:8888", "127.0.0.1:8888", exposed=True),
            forward("0.0.0.0:80", "db:80", "remote", exposed=True),
        )
    ) == text("""
        NAME  STATE  FORWARD                                   HOST         SINCE  RTT     DROPS
        lab   up     0.0.0.0:8888 -> 127.0.0.1:8888 (exposed)  lab.example  12 s   1.3 ms  0
              up     db:80 <- 0.0.0.0:80 (exposed)
              other machines can reach 0.0.0.0:8888
              other machines can reach 0.0.0.0:80 on lab.example
        """)


def test_an_idle_tunnel_says_when_it_logs_in() -> None:
    assert shown(tunnel(state="idle", rtt_ms=None)).splitlines()[2:] == [
        "      the login happens when somebody connects"
    ]


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([forward(leases=1, kept=False)], ["held by 1 program, and ends with it"]),
        ([forward(leases=2, kept=False)], ["held by 2 programs, and ends with them"]),
        ([forward(leases=2)], ["held by 2 programs"]),
        ([forward(leases=1), forward("localhost:1", leases=1)], ["held by 1 program"]),
        ([forward(), forward("localhost:1", "db:2", leases=2)], ["localhost:1 -> db:2 is held by 2 programs"]),
        ([forward(connections=1)], ["1 connection goes through it"]),
        ([forward(connections=1), forward("localhost:1", connections=2)], ["3 connections go through it"]),
        ([forward(connections=None)], []),
    ],
)
def test_who_uses_a_tunnel_stands_under_it(ends: list[ForwardStatus], said: list[str]) -> None:
    assert [line.strip() for line in shown(tunnel("lab", *ends)).splitlines()[1 + len(ends) :]] == said


@pytest.mark.parametrize(
    ("states", "said"),
    [
        ({}, ""),
        ({"lab": "up"}, "1 up"),
        ({"lab": "up", "db": "stalled", "nb": "up"}, "2 up, db stalled"),
        ({"lab": "waiting", "db": "waiting", "nb": "needs login"}, "2 waiting, nb needs login"),
        ({"lab": "idle"}, "lab idle"),
    ],
)
def test_a_prompt_has_the_tunnels_in_a_few_words(states: dict[str, str], said: str) -> None:
    assert render.short([tunnel(name, state=state) for name, state in states.items()]) == said


def told(before: TunnelStatus | None, now: TunnelStatus | None) -> list[str]:
    """The lines on what happened between the two, without their time and tunnel."""
    return [line.partition("  lab  ")[2] for line in render.event_lines(changes(before, now, NOW))]


def test_an_event_is_told_with_its_time_and_tunnel() -> None:
    (line,) = render.event_lines(changes(None, tunnel(), NOW))
    assert line == "2024-05-01 12:00:00+02:00  lab  up; localhost:8888 -> 127.0.0.1:8888"


def test_each_event_is_told_in_words() -> None:
    up, away = tunnel(), tunnel(state="waiting", reason="no route")
    more = tunnel("lab", forward(), forward("localhost:1", "db:2"))
    moved = tunnel("lab", forward(target="127.0.0.1:9"))
    dead = tunnel("lab", forward(), forward("localhost:1", "db:2", state="no service", reason="nobody listens"))
    assert told(None, away) == ["waiting: no route"]
    assert told(up, None) == ["down; it was up"]
    assert told(up, away) == ["waiting: no route"]
    assert told(away, tunnel(state="waiting", reason="no name")) == ["waiting: no name"]
    assert told(tunnel(reason="slow"), up) == []
    assert told(up, more) == ["localhost:1 -> db:2 was added"]
    assert told(more, up) == ["localhost:1 -> db:2 was closed"]
    assert told(up, moved) == ["localhost:8888 -> 127.0.0.1:9 was localhost:8888 -> 127.0.0.1:8888"]
    assert told(more, dead) == ["localhost:1 -> db:2 is no service: nobody listens"]


def test_the_end_of_an_outage_is_one_line_with_who_waited() -> None:
    down = tunnel(state="stalled", outages=1, last_outage=outage())
    ended = outage(ended="2024-05-01T11:59:19+02:00", held=2)
    assert told(down, tunnel(outages=1, last_outage=ended)) == [
        "up again after 19.3 s, by a new connection; 2 connections waited, 2 of them let through"
    ]


def test_people_are_spared_what_follows_from_the_state_and_machines_are_not() -> None:
    before, now = tunnel(), tunnel(state="stalled", reason="r", outages=1, last_outage=outage())
    assert [event.kind for event in changes(before, now, NOW)] == [
        Kind.STATE,
        Kind.OUTAGE_BEGAN,
        Kind.FORWARD_STATE,
    ]
    assert told(before, now) == ["stalled: r"]


def test_remarks_are_folded_where_there_is_a_width() -> None:
    waiting = tunnel(state="waiting", reason="word " * 20, hint="hint " * 20)
    lines = render.listing(("NAME",), [(waiting, [("lab",)])], lambda one: render.remarks(one, NOW), 40)
    assert len(lines) > 6
    assert all(len(click.unstyle(line)) <= 40 for line in lines)
    assert "\x1b[2m" in lines[-1]


def test_a_table_of_no_tunnels_is_its_headings() -> None:
    assert shown() == "NAME  STATE  FORWARD  HOST  SINCE  RTT  DROPS\n"


@given(st.lists(st.tuples(st.text("abc.-", min_size=1), st.sampled_from(["up", "no service", "failed"]))))
def test_columns_line_up_whatever_is_in_them(found: list[tuple[str, str]]) -> None:
    rows = shown(*(tunnel(name, state=state) for name, state in found)).splitlines()
    start = rows[0].index("FORWARD")
    assert [row[start - 2 : start + 10] for row in rows[1:]] == ["  localhost:"] * len(found)


@pytest.mark.parametrize(
    ("retry_in", "said"),
    [
        (None, "lab is waiting: no route"),
        (30, "lab is waiting: no route; next try in 30 s"),
        (1, "lab is waiting: no route; next try in 1 s"),
        (0.9, "lab is waiting: no route; trying again"),
        (-5, "lab is waiting: no route; trying again"),
    ],
)
def test_what_is_waited_for_says_when_the_next_try_is(retry_in: float | None, said: str) -> None:
    assert render.waiting_line(tunnel(state="waiting", reason="no route", retry_in=retry_in), NOW) == said


def test_what_is_waited_for_without_a_reason_is_its_state() -> None:
    assert render.waiting_line(tunnel(state="connecting"), NOW) == "lab is connecting"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3, "0 s"),
        (0, "0 s"),
        (0.9, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (48 * 3600 - 1, "47 h"),
        (48 * 3600, "2 d"),
        (400 * 86400, "400 d"),
    ],
)
def test_an_age_is_told_in_the_unit_that_says_most(seconds: float, said: str) -> None:
    assert render.age(seconds) == said


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (forward(url="http://localhost:8888"), "http://localhost:8888 -> 127.0.0.1:8888 on lab"),
        (forward("localhost:5432", "db:5432"), "localhost:5432 -> db:5432 on lab"),
        (forward("/run/x", "db:80"), "/run/x -> db:80 on lab"),
        (forward("localhost:1080", None, "dynamic"), "socks5://localhost:1080 -> anywhere that lab reaches"),
        (forward("localhost:80", "db:80", "remote"), "localhost:80 on lab -> db:80 here"),
        (forward("localhost:80", None, "remote"), "localhost:80 on lab -> SOCKS here"),
    ],
)
def test_a_forward_is_told_as(end: ForwardStatus, said: str) -> None:
    assert render.forward_line(end, "lab") == said


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("up", 32),
        ("connecting", 36),
        ("idle", 34),
        ("waiting", 33),
        ("needs login", 35),
        ("failed", 31),
        ("unheard of", 31),
    ],
)
def test_a_state_has_its_colour(state: str, code: int) -> None:
    assert re.search(rf"\x1b\[{code}m{state} *\x1b\[0m", render.table([tunnel(state=state)], NOW))


@pytest.mark.parametrize(("value", "allowed"), [("1", False), ("0", False), ("", None), (None, None)])
def test_no_color_forbids_colour_when_it_is_not_empty(
    monkeypatch: pytest.MonkeyPatch, value: str | None, allowed: bool | None
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    if value is not None:
        monkeypatch.setenv("NO_COLOR", value)
    assert render.colour_allowed() is allowed


def test_with_no_color_no_code_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    failed = tunnel(state="failed", reason="r", hint="h", fast_path=False, adopted=True)
    table = render.table([failed], NOW)
    assert "\x1b" in table
    click.echo(table, color=render.colour_allowed())
    assert "\x1b" not in capsys.readouterr().out
