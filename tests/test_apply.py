"""What `holdfast apply` finds to change, and what it does about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.cli.apply import _handing_over
from holdfast.config.difference import Change, difference, first_additions, stopgap
from holdfast.config.reading import Described, parse
from holdfast.control import NotebookStatus, TunnelStatus
from holdfast.forward import parse as parse_forward
from tests.test_config import status_of

PATH = Path("/c/config.toml")
TEXT = """\
[tunnels.lab]
forwards = ["8888", "5432:db:5432"]
start = "login"
[tunnels.gpu]
forwards = ["9000"]
start = "demand"
idle = "30m"
[tunnels.hand]
forwards = ["7000"]
"""


def tunnels(text: str = TEXT) -> dict[str, Described]:
    return {tunnel.name: tunnel for tunnel in parse(text, PATH)}


def running(*names: str, config: str | None = str(PATH)) -> list[TunnelStatus]:
    return [status_of(tunnels()[name], config) for name in names]


def plan(text: str, runs: list[TunnelStatus]) -> list[str]:
    return [str(change) for change in difference(parse(text, PATH), runs, str(PATH)).changes]


def test_what_starts_at_login_is_brought_up_and_what_does_not_is_not() -> None:
    assert plan(TEXT, []) == ["+ lab: 8888, 5432:db:5432 on lab", "+ gpu: 9000 on gpu"]


def test_what_runs_as_described_is_no_change() -> None:
    assert plan(TEXT, running("lab", "gpu", "hand")) == []


def test_what_was_brought_up_by_hand_is_left_alone_whatever_its_name() -> None:
    runs = running("lab", config=None) + running("gpu", config="/other/.holdfast.toml")
    found = difference(parse(TEXT, PATH), runs, str(PATH))
    assert (found.changes, found.alone) == ([], ["lab", "gpu"])


def test_what_is_not_in_the_file_any_more_goes() -> None:
    assert plan("", running("lab")) == ["- lab"]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"8888", ', '"8888", "6006", ', "~ lab: + 6006"),
        ('"8888", ', "", "~ lab: - localhost:8888"),
        ('"8888"', '"8888:[::1]:8888"', "~ lab: + 8888:[::1]:8888, - localhost:8888"),
        ('start = "login"', 'start = "login"\ndynamic = ["1080"]', "~ lab: + -D 1080"),
        ('start = "login"', 'start = "login"\nremote = ["1080"]', "~ lab: + -R 1080"),
        ('start = "login"', 'start = "login"\nhold = 5\nhttp = true', "~ lab: hold = 5, http = true"),
        ('start = "login"', 'mode = "0660"\nhold_for = "5m"', "~ lab: hold_for = 5m, mode = 0660"),
        ('"30m"', '"1h"', "~ gpu: idle = 1h"),
        ('start = "demand"\nidle = "30m"', "", "~ gpu: lazy = false, idle = 0s"),
        ('start = "login"', 'host = "b"', "~ lab: goes to b, not lab: down, and up again"),
        ('start = "login"', 'ssh = ["-p", "2"]', "~ lab: goes to -p 2 lab, not lab: down, and up again"),
    ],
)
def test_a_change_of_the_file_is_one_line(old: str, new: str, line: str) -> None:
    assert plan(TEXT.replace(old, new, 1), running("lab", "gpu")) == [line]


def test_a_tunnel_that_says_no_forwards_keeps_those_it_has() -> None:
    assert plan("[tunnels.lab]", running("lab")) == []


def test_a_notebooks_forward_and_one_that_a_program_holds_are_let_be() -> None:
    runs = running("lab", "gpu")
    lab = runs[0]
    lab["forwards"][0]["notebook"] = NotebookStatus(directory="/w", base_url="/", version="7", pid=1)
    lab["forwards"][1]["kept"] = False
    assert plan(TEXT.replace('["8888", "5432:db:5432"]', '["7000"]'), runs) == ["~ lab: + 7000"]


def test_a_tunnel_that_only_a_program_holds_is_not_up_for_the_file() -> None:
    by_hand, ours = running("lab", config=None) + running("hand", config=None), running("lab", "gpu")
    for tunnel in (*by_hand, *ours):
        for forward in tunnel["forwards"]:
            forward["kept"] = False
    found = difference(parse(TEXT, PATH), by_hand, str(PATH))
    assert ([str(change) for change in found.changes], found.alone) == (plan(TEXT, []), [])
    assert plan(TEXT, ours) == plan(TEXT, [])
    assert plan("", ours) == []


def change_to(forwards: str) -> Change:
    text = TEXT.replace('["8888", "5432:db:5432"]', forwards)
    (change,) = difference(parse(text, PATH), running("lab", "gpu"), str(PATH)).changes
    return change


def test_where_all_forwards_are_others_those_that_can_stand_beside_the_old_ones_come_first() -> None:
    assert [str(one.listen) for one in first_additions(change_to('["6006", "8888:9"]'))] == ["localhost:6006"]
    assert stopgap(change_to('["6006", "8888:9"]')) is None
    assert first_additions(change_to('["8888:9", "5432"]')) == ()
    assert stopgap(change_to('["8888:9", "5432"]')) == parse_forward("0:9")


def test_where_a_forward_stays_nothing_has_to_come_first() -> None:
    assert first_additions(change_to('["8888", "6006"]')) == ()
    assert stopgap(change_to('["8888", "6006"]')) is None


def test_what_is_left_alone_is_told_with_how_it_becomes_the_files_if_that_describes_it() -> None:
    described = parse(TEXT, PATH)
    assert _handing_over(["other", "lab"], described) == "; holdfast up lab makes it the file's"
    assert _handing_over(["other"], described) == ""
