"""What the screen shows, as values: rows, histories, columns and details, without a screen."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from holdfast.control import TunnelStatus
from holdfast.events import STATES
from holdfast.ui import details
from holdfast.ui.board import EVERY, KEPT, Board, Ends, Resting, Row, Trips, short_amount, sparkline
from holdfast.ui.columns import LOOKS, SYMBOLS, Look, columns, heading, line, trouble_line
from tests.records import NOW, changes, forward, outage, tunnel

GPU = Resting("gpu", "gpu.example", (Ends("local", "localhost:6006", "127.0.0.1:6006"),), ("work",), "/c.toml")


@dataclass
class Watched:
    """A board, and time that passes."""

    board: Board = field(default_factory=Board)
    at: float = 0.0

    def tell(self, *tunnels: TunnelStatus, seconds: float = 1.0) -> None:
        self.board.learn(changes(*tunnels))
        self.at += seconds
        self.board.tick(self.at)

    def row(self, name: str = "lab") -> Row:
        return next(row for row in self.board.rows(NOW) if row.name == name)


def text(row: Row, width: int) -> str:
    return "".join(piece.text for piece in line(row, columns(width)))


def test_a_row_tells_where_it_listens_what_goes_through_and_since_when() -> None:
    watched = Watched()
    two = (forward(connections=2), forward("localhost:5432", "db:5432", connections=1))
    watched.tell(tunnel("lab", *two, received_bytes=0, sent_bytes=0, age=7200))
    watched.tell(tunnel("lab", *two, received_bytes=2_500_000, sent_bytes=1200, age=7200, rtt_ms=20.0))
    row = watched.row()
    assert row.forwards == ("8888 → 8888", "5432 → db:5432")
    assert (row.received, row.sent, row.connections, row.since) == ("2.5M", "1.2k", "3", "2 h")
    assert (row.rtt, row.trips) == ("20.0 ms", (20.0,))
    watched.tell(tunnel("lab", rtt_ms=123.4))
    assert watched.row().rtt == "123 ms"


def test_remote_and_dynamic_forwards_and_exposed_ones_can_be_told_apart() -> None:
    watched = Watched()
    watched.tell(
        tunnel(
            "lab",
            forward("localhost:0", "127.0.0.1:80", kind="remote"),
            forward("localhost:1080", None, kind="dynamic"),
            forward("*:9000", "127.0.0.1:9000", exposed=True),
        )
    )
    assert watched.row().forwards == ("80 ← 0", "1080 → SOCKS", "(exposed) *:9000 → 9000")


def test_trouble_is_told_with_the_next_try_and_who_waits() -> None:
    watched = Watched()
    watched.tell(tunnel(state="waiting", reason="no route to lab", retry_in=9.5, held=3, rtt_ms=None))
    assert watched.row().troubles == ("no route to lab; next try in 9 s", "3 connections wait")
    watched.tell(tunnel())
    assert watched.row().troubles == ()


def test_rows_that_look_the_same_are_equal_and_others_are_not() -> None:
    one, other = Watched(), Watched()
    one.tell(tunnel(age=3600))
    other.tell(tunnel(age=3601))
    assert one.row() == other.row()
    other.tell(tunnel(age=9000))
    assert one.row() != other.row()


def test_tunnels_at_rest_come_last_and_go_from_there_when_they_are_up() -> None:
    watched = Watched()
    watched.board.rest([GPU])
    watched.tell(tunnel("lab"))
    assert [(row.name, row.state) for row in watched.board.rows(NOW)] == [("lab", "up"), ("gpu", "down")]
    assert watched.board.resting("gpu") == GPU
    watched.tell(tunnel("gpu"))
    assert [(row.name, row.state) for row in watched.board.rows(NOW)] == [("gpu", "up"), ("lab", "up")]
    assert watched.board.resting("gpu") is None
    watched.board.learn(changes(gone=("gpu", "lab")))
    assert [row.state for row in watched.board.rows(NOW)] == ["down"]


@pytest.mark.parametrize(
    ("needle", "found"),
    [
        ("", ["db", "lab", "gpu"]),
        ("LAB", ["lab"]),
        ("wait", ["db"]),
        ("5432", ["db"]),
        ("no route", ["db"]),
        ("example up", ["lab"]),
        ("work", ["gpu"]),
        ("nothing", []),
    ],
)
def test_a_filter_finds_all_of_its_words_anywhere_in_a_row(needle: str, found: list[str]) -> None:
    watched = Watched()
    watched.board.rest([GPU])
    waiting = tunnel("db", forward("localhost:5432", "db:5432"), state="waiting", reason="no route to db")
    watched.tell(tunnel("lab"), waiting)
    assert [row.name for row in watched.board.rows(NOW, needle)] == found


def test_a_filter_finds_a_tunnel_by_its_group_also_while_it_is_up() -> None:
    watched = Watched()
    watched.board.rest([GPU])
    watched.tell(tunnel("lab"), tunnel("gpu"))
    assert [(row.name, row.state) for row in watched.board.rows(NOW, "work up")] == [("gpu", "up")]


def test_what_a_keeper_tells_first_replaces_all_that_was_known() -> None:
    watched = Watched()
    watched.tell(tunnel("lab"), tunnel("db"))
    watched.board.start_over(changes(tunnel("db")))
    assert list(watched.board.tunnels) == ["db"]


def test_the_summary_counts_a_connection_that_tunnels_share_once() -> None:
    def over(pid: int, received: int) -> list[TunnelStatus]:
        shared = [tunnel(name, received_bytes=received, sent_bytes=0) for name in ("a", "b")]
        return [TunnelStatus({**one, "master_pid": pid}) for one in shared]

    watched = Watched()
    watched.tell(*over(7, 0))
    watched.tell(*over(7, 5000))
    whole = "2 up   5.0 kB/s in, 0 B/s out"
    assert watched.board.summary(len(whole)) == whole
    assert watched.board.summary(len(whole) - 1) == "2 up"
    assert Board().summary(80) == "no tunnel is up"


def test_taking_down_tells_what_breaks() -> None:
    board = Board()
    board.learn(changes(tunnel("a", forward(connections=1)), tunnel("b", forward(connections=2)), tunnel("c")))
    told = [board.what_breaks(name) for name in ("a", "b", "c", "other")]
    assert told == [" 1 connection breaks off.", " 2 connections break off.", "", ""]


def trips_of(*seen: tuple[float, float | None, str]) -> tuple[float | None, ...]:
    trips = Trips()
    for at, rtt, state in seen:
        trips.note([tunnel(state=state, rtt_ms=rtt)], at)
    return trips.of("lab")


def test_a_round_trip_in_the_history_is_the_longest_of_its_seconds() -> None:
    assert trips_of((0.0, 1.0, "up"), (1.0, 9.0, "up"), (2.0, 2.0, "up"), (EVERY, 3.0, "up")) == (9.0, 3.0)


def test_an_outage_that_was_short_is_seen_all_the_same() -> None:
    assert trips_of((0.0, 1.0, "up"), (1.0, None, "stalled"), (2.0, 2.0, "up"), (EVERY, 3.0, "up")) == (None, 3.0)


def test_a_tunnel_that_nobody_has_used_yet_has_no_history_of_failures() -> None:
    assert trips_of((0.0, None, "idle"), (EVERY, None, "connecting"), (2 * EVERY, 4.0, "up")) == (4.0,)
    assert trips_of((0.0, None, "needs login"), (EVERY, None, "failed")) == ()


def test_a_day_of_history_takes_no_more_room_than_ten_minutes() -> None:
    trips = Trips()
    for second in range(0, 86_400, 5):
        trips.note([tunnel(rtt_ms=second % 7)], second)
    assert len(trips.of("lab")) == KEPT
    trips.note([], 86_400)
    assert trips.of("lab") == ()


@pytest.mark.parametrize(
    ("trips", "bars"),
    [
        ((), "     "),
        ((20.0, 20.0, 20.0), "  ▅▅▅"),
        ((10.0, 80.0, None, 10.0), " ▂█×▂"),
        ((0.1, 0.2, 0.3), "  ▁▂▃"),
        ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 90.0), "▁▁▁▁█"),
        ((None, None), "   ××"),
    ],
)
def test_bars_begin_at_nothing_and_an_answer_that_did_not_come_is_a_cross(
    trips: tuple[float | None, ...], bars: str
) -> None:
    assert sparkline(trips, 5) == bars


@given(st.lists(st.none() | st.floats(0, 1e9)), st.integers(0, 60))
def test_bars_always_fill_their_width(trips: list[float | None], width: int) -> None:
    assert len(sparkline(trips, width)) == width or width == 0


@given(st.floats(0, 9e12))
def test_amounts_fit_into_their_column(rate: float) -> None:
    assert len(short_amount(rate)) <= 5


@given(st.integers(30, 300), st.integers(1, 40))
def test_a_line_is_as_wide_as_the_list_whatever_is_in_it(width: int, length: int) -> None:
    row = Row("n" * length, "needs login", "h" * length, ("8888 → 界" * length, "x" * length), (1.0,), "12.3 ms")
    for pieces in (heading(columns(width)), trouble_line("界" * length, width)):
        assert cell_len("".join(piece.text for piece in pieces)) == width
    assert cell_len(text(row, width)) == width + 1  # the gap behind the last column


def test_in_80_columns_a_line_has_all_that_counts() -> None:
    row = Row("lab", "needs login", "lab.example", ("8888 → 8888", "5432 → db:5432"), (1.0,),
              "123 ms", "1.2M", "999k", "12", "12 min")  # fmt: skip
    for part in ("lab", "? needs login", "8888 → 8888 +1", "123 ms", "1.2M", "999k", "12 min"):
        assert part in text(row, 80)
    assert "lab.example" in text(row, 160)


def test_every_state_has_a_sign_and_a_look_of_its_own_kind() -> None:
    assert set(SYMBOLS) == set(STATES)
    assert set(LOOKS) <= set(STATES)
    assert {LOOKS.get(state, Look.BAD) for state in ("failed", "refused", "port taken")} == {Look.BAD}


def test_what_is_at_rest_is_faint_as_a_whole() -> None:
    board = Board()
    board.rest([GPU])
    (row,) = board.rows(NOW)
    assert {piece.look for piece in line(row, columns(80))} == {Look.FAINT}


def facts_of(status: TunnelStatus) -> str:
    facts = details.of_tunnel(status, NOW, (10.0, None, 30.0), None, 40)
    return "\n".join(f"{fact.label:10} {fact.text}".rstrip() for fact in facts)


def test_details_tell_every_forward_the_hint_and_the_last_outage() -> None:
    two = (
        forward(url="http://localhost:8888", connections=1),
        forward("localhost:1", "db:1", state="no service", reason="nothing listens at db:1", hint="start it"),
    )
    last = outage(ended="2024-05-01T11:59:19+02:00", held=2)
    status = tunnel("lab", *two, state="no service", age=60, outages=2, drops=3, down_seconds=90, last_outage=last)
    assert (
        facts_of(status)
        == """\
state      ! no service, for 60 s
           nothing listens at db:1
           hint: start it
host       lab.example
forwards   http://localhost:8888 -> 127.0.0.1:8888 on lab.example  (up)  1 connection
           localhost:1 -> db:1 on lab.example
round trip 1.3 ms  ▃×█  10.0 to 30.0 ms
outages    2 times, 90 s in all, and 3 times lost its connection
           the last began 60 s ago, took 19.3 s: nothing comes back
           mended by a new connection; 2 waited, 2 let through"""
    )


def test_details_of_a_tunnel_that_never_failed_say_so_and_name_its_file() -> None:
    told = facts_of(TunnelStatus({**tunnel(), "config": "/home/ann/config.toml"}))
    assert told.endswith("outages    none\nconfig     /home/ann/config.toml")


def test_details_of_what_is_at_rest_tell_how_to_bring_it_up() -> None:
    told = [fact.text for fact in details.of_resting(GPU)]
    assert told == [
        "- down: it is in the configuration",
        "u brings it up",
        "gpu.example",
        "localhost:6006 -> 127.0.0.1:6006",
        "work",
        "/c.toml",
    ]
    taken_down = details.of_resting(GPU._replace(origin="", groups=()))
    assert taken_down[0].text == "- down: it was taken down, and is remembered"
