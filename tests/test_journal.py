"""What survives a restart, whatever happens to the file; and the logs."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
from collections.abc import Iterator
from datetime import datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast import paths
from holdfast.control import Upkeep
from holdfast.errors import HoldfastError
from holdfast.forward import Kind, parse
from holdfast.keeper import journal
from holdfast.keeper.journal import Saved, SavedForward, SavedMaster, SavedTunnel


def pair(asked: str, forward: str, kind: Kind = Kind.LOCAL) -> SavedForward:
    return SavedForward(parse(asked, kind), parse(forward, kind))


FORWARDS = (
    pair("0:8888", "40001:8888"),
    pair("8888:/run/ü b.sock", "8888:/run/ü b.sock"),
    pair("0", "40002", Kind.REMOTE),
    pair("1080", "1080", Kind.DYNAMIC),
    pair("[::1]:8888:[::1]:80", "[::1]:8888:[::1]:80"),
)
TUNNEL = SavedTunnel(
    "lab",
    "ann@lab",
    ("-p", "2222"),
    {"PATH": "/bin", "X": "ü"},
    wanted=True,
    drops=3,
    outages=2,
    down_seconds=71,
    upkeep=Upkeep(hold=3, http=True, switch=False)._asdict(),
    forwards=FORWARDS,
)
BARE = SavedTunnel("bare", "bare", (), {}, wanted=False, up_since="2026-01-01T00:00:00+00:00")
MASTER = SavedMaster("ann@lab", ("-p", "2222"), "/run/m/0", "")
OLD_MASTER = SavedMaster("ann@lab", ("-p", "2222"), "/run/m/1", "/run/ctl", attended=True, draining=True)
SAVED = Saved((TUNNEL, BARE), (MASTER, OLD_MASTER))


@pytest.fixture(autouse=True)
def state(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the state, alone in it."""
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(home / "state"))
    return paths.state_dir()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_where_nothing_was_saved_nothing_is_wanted_and_nothing_is_said() -> None:
    assert journal.load() == (Saved(), "")


@pytest.mark.parametrize("saved", [Saved(), SAVED])
def test_what_was_saved_is_loaded(saved: Saved) -> None:
    journal.save(saved)
    assert journal.load() == (saved, "")


def test_the_last_save_counts_and_leaves_nothing_else_behind(state: Path) -> None:
    journal.save(SAVED)
    journal.save(Saved((BARE,)))
    assert journal.load() == (Saved((BARE,)), "")
    assert names(state) == ["state.json"]


def test_what_a_keeper_left_that_was_killed_while_it_wrote_is_removed(state: Path) -> None:
    journal.save(SAVED)
    (state / f"{journal.TEMPORARY}x7").write_text("{")
    assert journal.load() == (SAVED, "")
    assert names(state) == ["state.json"]


def test_the_file_is_for_us_alone_whatever_the_umask(state: Path) -> None:
    before = os.umask(0)
    try:
        journal.save(SAVED)
        journal.save(SAVED)
    finally:
        os.umask(before)
    assert stat.S_IMODE((state / "state.json").stat().st_mode) == 0o600


def test_a_failed_save_leaves_the_old_content_and_no_other_file(state: Path) -> None:
    journal.save(SAVED)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(HoldfastError, match=r"can't write .*state\.json: File too large") as raised:
            journal.save(SAVED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "df -h" in raised.value.hint
    assert journal.load() == (SAVED, "")
    assert names(state) == ["state.json"]


@pytest.fixture
def small_disk(state: Path) -> Iterator[Path]:
    """The state directory, on a disk of 64 KiB."""
    argv = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "none", str(state)]
    if subprocess.run(argv, check=False, capture_output=True).returncode != 0:
        pytest.skip("can't mount a small disk")
    yield state
    subprocess.run(["umount", str(state)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        file.writelines(repeat(b"x" * 4096))


def test_a_full_disk_costs_the_new_state_and_not_the_old(small_disk: Path) -> None:
    journal.save(SAVED)
    fill(small_disk)
    with pytest.raises(HoldfastError, match="No space left on device"):
        journal.save(Saved((TUNNEL,) * 50))
    assert journal.load() == (SAVED, "")
    assert names(small_disk) == ["filler", "state.json"]


def test_a_full_disk_costs_a_line_of_the_log_and_nothing_else(small_disk: Path) -> None:
    paths.logs_dir()
    fill(small_disk)
    journal.record("lab", "up")


def test_a_logs_directory_that_cannot_be_made_costs_a_line_and_nothing_else(state: Path) -> None:
    (state / "logs").write_text("in the way")
    journal.record("lab", "up")


# --- a broken file ---


def raw() -> dict[str, Any]:
    """What SAVED is in the file."""
    journal.save(SAVED)
    record = json.loads(paths.state_file().read_text())
    assert isinstance(record, dict)
    return record


def changed(**changes: object) -> str:
    return json.dumps({**raw(), **changes})


def with_tunnel(**changes: object) -> str:
    return changed(tunnels=[{**raw()["tunnels"][0], **changes}])


def assert_kept_aside(content: bytes) -> None:
    """Loading `content` gives nothing, a message, and the content in a file that the message names."""
    state = paths.state_dir()
    for old in state.iterdir():
        old.unlink()
    (state / "state.json").write_bytes(content)
    saved, message = journal.load()
    assert saved == Saved()
    (aside,) = names(state)
    assert aside.startswith("state.json.broken-")
    assert aside in message
    assert message.startswith(f"{state}/state.json could not be read (")
    assert (state / aside).read_bytes() == content
    assert journal.load() == (Saved(), "")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"7", b'"text"', b"{}", b"\xff\xfe\xff", b"\x00" * 100, b"{} {}", b"NaN"],
)
def test_a_file_that_is_no_state_is_kept_aside(content: bytes) -> None:
    assert_kept_aside(content)


def test_a_file_cut_short_anywhere_is_kept_aside() -> None:
    whole = json.dumps(raw()).encode()
    for size in range(0, len(whole), 29):
        assert_kept_aside(whole[:size])


# What the version of the file was 1 for, word for word.
VERSION_1 = """
{
 "version": 1,
 "tunnels": [
  {
   "name": "lab",
   "host": "ann@lab",
   "options": ["-p", "2222"],
   "environment": {"PATH": "/bin"},
   "wanted": true,
   "drops": 3,
   "up_since": "2026-01-01T00:00:00+00:00",
   "forwards": [[["local", "localhost:0", "127.0.0.1:8888"], ["local", "localhost:40001", "127.0.0.1:8888"]]]
  }
 ],
 "masters": [{"host": "ann@lab", "options": ["-p", "2222"], "socket": "/run/m/0", "control_path": "/run/ctl"}]
}
"""


def test_a_file_of_version_1_is_read_and_lacks_only_what_that_version_did_not_know() -> None:
    paths.state_file().write_text(VERSION_1)
    tunnel = SavedTunnel(
        "lab",
        "ann@lab",
        ("-p", "2222"),
        {"PATH": "/bin"},
        wanted=True,
        drops=3,
        up_since="2026-01-01T00:00:00+00:00",
        forwards=(pair("0:8888", "40001:8888"),),
    )
    master = SavedMaster("ann@lab", ("-p", "2222"), "/run/m/0", "/run/ctl")
    assert journal.load() == (Saved((tunnel,), (master,)), "")


def test_a_file_of_version_1_is_saved_as_one_of_this_version() -> None:
    paths.state_file().write_text(VERSION_1)
    saved, _ = journal.load()
    journal.save(saved)
    assert json.loads(paths.state_file().read_text())["version"] == journal.VERSION
    assert journal.load() == (saved, "")


@pytest.mark.parametrize("change", [{"outages": None}, {"drops": "three"}, {"more": 1}])
def test_a_file_of_version_1_is_checked_as_any_other(change: dict[str, object]) -> None:
    record = json.loads(VERSION_1)
    record["tunnels"][0].update(change)
    assert_kept_aside(json.dumps(record).encode())


@pytest.mark.parametrize("field", ["outages", "down_seconds", "upkeep"])
def test_a_file_of_version_2_without_a_field_of_its_tunnels_is_kept_aside(field: str) -> None:
    record = raw()
    del record["tunnels"][0][field]
    assert_kept_aside(json.dumps(record).encode())


@pytest.mark.parametrize("field", ["attended", "draining"])
def test_a_file_of_version_2_without_a_field_of_its_masters_is_kept_aside(field: str) -> None:
    record = raw()
    del record["masters"][0][field]
    assert_kept_aside(json.dumps(record).encode())


@pytest.mark.parametrize("version", [0, 5, "1", None])
def test_a_file_of_another_version_is_kept_aside(version: object) -> None:
    assert_kept_aside(changed(version=version).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"tunnels": None},
        {"tunnels": 7},
        {"tunnels": ["lab"]},
        {"tunnels": [{}]},
        {"masters": None},
        {"masters": ["/run/m/0"]},
        {"masters": [{"host": "lab"}]},
    ],
)
def test_a_file_with_lists_of_something_else_is_kept_aside(change: dict[str, object]) -> None:
    assert_kept_aside(changed(**change).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"options": None},
        {"options": 7},
        {"forwards": None},
        {"forwards": [["local", "localhost:1", "db:2"]]},
        {"forwards": [[["local", "localhost:1", "db:2"]]]},
        {"forwards": [[["local", "localhost:99999", "db:2"]] * 2]},
        {"forwards": [[["sideways", "localhost:1", "db:2"]] * 2]},
        {"forwards": [[["local", 1, "db:2"]] * 2]},
    ],
)
def test_a_file_with_a_wrong_tunnel_is_kept_aside(change: dict[str, object]) -> None:
    assert_kept_aside(with_tunnel(**change).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"name": 7},
        {"name": "../../x"},
        {"host": None},
        {"host": "-oProxyCommand=id"},
        {"options": "-p"},
        {"options": [7, 7]},
        {"environment": None},
        {"environment": {"PATH": 7}},
        {"wanted": "no"},
        {"drops": "three"},
        {"outages": None},
        {"outages": 1.5},
        {"down_seconds": "long"},
        {"upkeep": None},
        {"upkeep": ["hold"]},
        {"upkeep": {"hold": "many"}},
        {"upkeep": {"hold": -1}},
        {"upkeep": {"nope": 1}},
        {"up_since": None},
        {"up_since": "garbage"},
        {"up_since": "2026-01-01T00:00:00"},
    ],
    ids=str,
)
def test_a_file_with_a_field_of_another_type_is_kept_aside(change: dict[str, object]) -> None:
    assert_kept_aside(with_tunnel(**change).encode())


def test_a_file_of_many_brackets_is_kept_aside() -> None:
    assert_kept_aside(b"[" * 100_000)


def test_two_broken_files_are_both_kept(state: Path) -> None:
    for content in ("one", "two"):
        (state / "state.json").write_text(content)
        journal.load()
    assert sorted(path.read_text() for path in state.iterdir()) == ["one", "two"]


def test_a_directory_in_the_place_of_the_file_is_kept_aside(state: Path) -> None:
    (state / "state.json").mkdir()
    saved, message = journal.load()
    assert saved == Saved()
    assert "could not be read" in message
    journal.save(SAVED)
    assert journal.load() == (SAVED, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_with_any_part_replaced_by_any_json_never_raises(data: st.DataObject) -> None:
    record: Any = raw()
    part: Any = record
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = data.draw(st.sampled_from(keys))
        inner = part[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        part = inner
    part[key] = data.draw(JSON)
    paths.state_file().write_text(json.dumps(record))
    saved, message = journal.load()
    assert isinstance(saved, Saved)
    assert message == "" or saved == Saved()


@given(st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_file_of_any_bytes_is_kept_aside(content: bytes) -> None:
    assert_kept_aside(content)


# --- logs ---


def test_a_line_of_the_log_has_its_time_with_offset(state: Path) -> None:
    journal.record("lab", "up")
    journal.record("lab", "waiting: no route")
    first, second = (state / "logs" / "lab.log").read_text().splitlines()
    stamp, _, text = first.partition("  ")
    assert text == "up"
    assert datetime.fromisoformat(stamp).tzinfo is not None
    assert second.endswith("  waiting: no route")


def test_a_log_is_bounded_and_one_older_one_is_kept(state: Path) -> None:
    for turn in range(3):
        (state / "logs").mkdir(exist_ok=True)
        (state / "logs" / "lab.example.com.log").write_text(f"{turn}" * (journal.LONGEST_LOG + 1))
        journal.record("lab.example.com", "up")
        assert names(state / "logs") == ["lab.example.com.log", "lab.example.com.log.1"]
        assert len((state / "logs" / "lab.example.com.log").read_text().splitlines()) == 1
        assert (state / "logs" / "lab.example.com.log.1").read_text()[0] == str(turn)


def test_a_log_of_the_longest_size_is_not_yet_put_aside(state: Path) -> None:
    journal.record("lab", "up")
    (state / "logs" / "lab.log").write_text("x" * journal.LONGEST_LOG)
    journal.record("lab", "up")
    assert names(state / "logs") == ["lab.log"]


def test_the_logs_of_two_tunnels_are_two(state: Path) -> None:
    journal.record("lab", "up")
    journal.record("lab.example", "up")
    assert names(state / "logs") == ["lab.example.log", "lab.log"]
