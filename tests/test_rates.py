"""What goes through a connection in a second, by its counters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.control import TunnelStatus
from holdfast.rates import WINDOW, Rate, Traffic, amount
from tests.records import tunnel


def counted(received: int | None, sent: int | None = 0, pid: int | None = 1) -> TunnelStatus:
    return TunnelStatus({**tunnel(received_bytes=received, sent_bytes=sent), "master_pid": pid})


def rate_of(*counts: tuple[float, TunnelStatus]) -> Rate | None:
    traffic = Traffic()
    for at, status in counts:
        traffic.note([status], at)
    return traffic.rate("lab")


def test_the_rate_is_what_came_and_went_by_the_time_that_it_took() -> None:
    assert rate_of((10.0, counted(1000, 50)), (12.0, counted(5000, 250))) == Rate(2000, 100)


def test_one_count_makes_no_rate_and_neither_does_a_connection_without_counters() -> None:
    assert rate_of((10.0, counted(1000))) is None
    assert rate_of((10.0, counted(None)), (11.0, counted(None))) is None


def test_two_looks_at_the_same_time_are_one() -> None:
    assert rate_of((10.0, counted(0)), (10.0, counted(100))) is None
    assert rate_of((9.0, counted(0)), (10.0, counted(50)), (10.0, counted(100))) == Rate(100, 0)


def test_what_happened_before_the_window_does_not_count() -> None:
    burst = [(0.0, counted(0)), (1.0, counted(9_000_000))]
    still = [(1.0 + second, counted(9_000_000)) for second in range(1, int(WINDOW) + 2)]
    assert rate_of(*burst, *still) == Rate(0, 0)


@pytest.mark.parametrize(
    "after", [counted(100, 0), counted(9000, 0, pid=2)], ids=["smaller", "larger, of another master"]
)
def test_a_connection_that_was_replaced_starts_anew(after: TunnelStatus) -> None:
    assert rate_of((0.0, counted(5000)), (1.0, counted(6000)), (2.0, after)) is None
    again = counted((after["received_bytes"] or 0) + 700, 0, after["master_pid"])
    assert rate_of((0.0, counted(5000)), (1.0, counted(6000)), (2.0, after), (3.0, again)) == Rate(700, 0)


def test_a_connection_without_counters_in_between_starts_anew() -> None:
    assert rate_of((0.0, counted(0)), (1.0, counted(None)), (2.0, counted(5000))) is None


@given(st.lists(st.tuples(st.integers(0, 1 << 60), st.integers(0, 1 << 60), st.integers(1, 3)), max_size=20))
def test_no_rate_is_ever_negative_and_what_is_kept_does_not_grow(counts: list[tuple[int, int, int]]) -> None:
    traffic = Traffic()
    for at, (received, sent, pid) in enumerate(counts):
        traffic.note([counted(received, sent, pid)], at)
        found = traffic.rate("lab")
        assert found is None or min(found) >= 0
        assert len(traffic._counted["lab"]) <= WINDOW + 2


def test_a_tunnel_that_went_is_forgotten() -> None:
    traffic = Traffic()
    traffic.note([counted(0)], 0.0)
    traffic.note([], 1.0)
    traffic.note([counted(100)], 2.0)
    assert traffic.rate("lab") is None


@pytest.mark.parametrize(
    ("rate", "told"),
    [(0, "0 B/s"), (999.4, "999 B/s"), (1234, "1.2 kB/s"), (56_789, "57 kB/s"), (2e9, "2.0 GB/s")],
)
def test_amounts_are_short(rate: float, told: str) -> None:
    assert amount(rate) == told
