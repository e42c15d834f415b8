"""What people read of tunnels: exact small tables."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from textwrap import dedent

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli import render
from holdfast.control import ForwardStatus, TunnelStatus

NOW = datetime(2024, 5, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))


def forward(
    listen: str = "localhost:8888",
    target: str | None = "127.0.0.1:8888",
    kind: str = "local",
    state: str = "up",
    reason: str | None = None,
    hint: str | None = None,
    url: str | None = None,
) -> ForwardStatus:
    return ForwardStatus(
        kind=kind, listen=listen, target=target, url=url, state=state, reason=reason, hint=hint, notebook=None
    )


def tunnel(
    name: str = "lab",
    *forwards: ForwardStatus,
    state: str = "up",
    reason: str | None = None,
    hint: str | None = None,
    age: float = 12,
    retry_in: float | None = None,
    rtt_ms: float | None = 1.26,
    drops: int = 0,
    held: int = 0,
    fast_path: bool | None = True,
    adopted: bool = False,
) -> TunnelStatus:
    return TunnelStatus(
        name=name,
        host=f"{name}.example",
        state=state,
        reason=reason,
        hint=hint,
        since=(NOW - timedelta(seconds=age)).isoformat(),
        retry_at=None if retry_in is None else (NOW + timedelta(seconds=retry_in)).isoformat(),
        rtt_ms=rtt_ms,
        drops=drops,
        outages=0,
        down_seconds=0,
        last_outage=None,
        held=held,
        switch_seconds=None,
        fast_path=fast_path,
        adopted=adopted,
        master_pid=None,
        forwards=list(forwards) or [forward(state=state)],
    )


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
    [("up", 32), ("connecting", 36), ("waiting", 33), ("needs login", 35), ("failed", 31), ("unheard of", 31)],
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
