"""What `status --watch` draws, and that it draws it in its place."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pexpect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.cli.watching import cut, frame, split_interval
from holdfast.control import TunnelStatus
from holdfast.errors import UsageError
from holdfast.rates import Traffic
from tests.conftest import Run, _keepers
from tests.records import NOW, forward, tunnel
from tests.sshd import free_port


def counted(received: int | None, sent: int | None = 0, name: str = "lab") -> TunnelStatus:
    return tunnel(name, received_bytes=received, sent_bytes=sent)


def traffic(*told: tuple[float, int | None, int | None]) -> Traffic:
    """That of one tunnel whose counters stood so at these times."""
    found = Traffic()
    for at, received, sent in told:
        found.note([counted(received, sent)], at)
    return found


def drawn(*tunnels: TunnelStatus, columns: int = 80, lines: int = 23, of: Traffic | None = None) -> list[str]:
    shown = frame(tunnels, of or Traffic(), NOW, columns, lines)
    return [click.unstyle(line) for line in shown]


def test_a_frame_has_the_time_the_states_and_what_goes_through() -> None:
    lab = tunnel("lab", forward(connections=2), forward("localhost:1", "db:2", connections=None), rtt_ms=0.51)
    assert drawn(
        lab, tunnel("db", state="stalled", reason="no word", rtt_ms=None), of=traffic((0, 0, 0), (1, 1234, 7))
    ) == [
        "12:00:00  1 up, db stalled",
        "NAME  STATE    FORWARD       RTT     CONNS  IN        OUT",
        "lab   up       8888 -> 8888  0.5 ms  2      1.2 kB/s  7 B/s",
        "      up       1 -> db:2             -",
        "db    stalled  8888 -> 8888  -       0      -         -",
        "      no word",
    ]


def test_no_tunnels_are_said() -> None:
    assert drawn() == ["12:00:00  no tunnels"]


@given(st.integers(1, 120), st.integers(1, 30), st.integers(0, 12))
def test_a_frame_is_never_larger_than_its_screen(columns: int, lines: int, count: int) -> None:
    tunnels = [tunnel(f"tunnel-{number}", state="waiting", reason="a long reason " * 9) for number in range(count)]
    shown = drawn(*tunnels, columns=columns, lines=lines)
    assert len(shown) <= lines
    assert all(len(line) <= columns for line in shown)


@pytest.mark.parametrize("lines", [0, 1])
def test_where_there_is_room_for_one_line_it_is_the_first(lines: int) -> None:
    assert drawn(tunnel("lab"), tunnel("db", state="stalled"), lines=lines) == ["12:00:00  1 up, db stalled"]


def test_wide_characters_take_two_columns_in_cells_in_remarks_and_where_a_line_is_cut() -> None:
    wide = tunnel("lab", forward("/run/数据.sock"), state="waiting", reason="没有到主机的路由" * 3, rtt_ms=None)
    assert drawn(wide, tunnel("db"), columns=44) == [
        "12:00:00  1 up, lab waiting",
        "NAME  STATE  FORWARD                 RTT    ",
        "lab   up     /run/数据.sock -> 8888  -      ",
        "      没有到主机的路由没有到主机的路由没有",
        "      到主机的路由",
        "db    up     8888 -> 8888            1.3 ms ",
    ]
    assert cut("a数b", 2) == "a"
    assert cut("a数b", 3) == "a数"


def test_what_finds_no_room_is_counted() -> None:
    assert drawn(*(tunnel(f"t{number}") for number in range(10)), lines=5)[-1] == "8 more lines"
    assert len(drawn(*(tunnel(f"t{number}") for number in range(3)), lines=5)) == 5


@given(
    st.lists(st.one_of(st.text("ab ", min_size=1), st.sampled_from(["\x1b[2m", "\x1b[33m", "\x1b[0m"]))),
    st.integers(0, 20),
)
def test_a_line_that_is_cut_keeps_its_beginning_and_ends_its_colour(parts: list[str], columns: int) -> None:
    line = "".join(parts)
    shown = cut(line, columns)
    assert click.unstyle(shown) == click.unstyle(line)[:columns]
    if len(click.unstyle(line)) > columns and "\x1b[" in shown:
        assert shown.rindex("\x1b[") == shown.rindex("\x1b[0m")


def test_the_seconds_may_be_left_out_before_a_name() -> None:
    assert split_interval("2.5") == (2.5, ())
    assert split_interval("lab") == (1.0, ("lab",))
    for wrong in ("0", "-1", "1e9", "nan", "inf"):
        with pytest.raises(UsageError, match="can't be the seconds"):
            split_interval(wrong)


def test_without_a_terminal_there_is_a_hint_instead(holdfast: Run) -> None:
    result = holdfast("status", "--watch")
    assert result.returncode == 2
    assert "holdfast: hint: for programs there is holdfast events --json" in result.stderr
    assert holdfast("status", "--watch", "--json").returncode == 2


def test_a_keeper_that_is_stopped_is_told_of_until_it_goes_on(
    holdfast: Run, environment: Mapping[str, str], home: Path
) -> None:
    assert holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait").returncode == 0
    (keeper,) = _keepers(home)
    words = ["-m", "holdfast", "status", "--watch", "0.5"]
    variables = {**environment, "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "", "LINES": ""}
    child = pexpect.spawn(sys.executable, words, env=variables, dimensions=(24, 90), timeout=30, encoding="utf-8")
    try:
        child.expect(r"nowhere\.invalid +\w+ +\d+ -> \d+")
        os.kill(keeper, signal.SIGSTOP)
        child.expect_exact("; the keeper doesn't answer, so this is how they were")
        os.kill(keeper, signal.SIGCONT)
        child.expect(r":\d\d  nowhere\.invalid \w+\x1b\[K")
    finally:
        os.kill(keeper, signal.SIGCONT)
        child.close(force=True)


def test_a_terminal_is_drawn_on_again_and_again_without_colour_until_ctrl_c(
    holdfast: Run, environment: Mapping[str, str]
) -> None:
    assert holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait").returncode == 0
    words = ["-m", "holdfast", "status", "--watch", "0.1", "nowhere*"]
    variables = {**environment, "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "", "LINES": ""}
    child = pexpect.spawn(sys.executable, words, env=variables, dimensions=(24, 80), timeout=20, encoding="utf-8")
    try:
        child.expect(r"NAME +STATE +FORWARD")
        child.expect(r"nowhere\.invalid +\w+ +\d+ -> \d+")
        seen = child.before or ""
        child.expect(r"\x1b\[\d+A\r\d\d:\d\d:\d\d ")  # back to its first line
        child.setwinsize(10, 40)
        child.expect(r"\x1b\[2J\x1b\[H\d\d:\d\d:\d\d ")
        child.sendintr()
        child.expect(pexpect.EOF)
        assert "\x1b[3" not in seen + (child.before or "")
        child.wait()
        assert child.exitstatus == 130
    finally:
        child.close(force=True)
