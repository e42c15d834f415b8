"""Where sockets and state live, and that nobody else gets at them."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from holdfast import paths
from holdfast.errors import HoldfastError, UsageError

AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOLDFAST_RUNTIME_DIR", "HOLDFAST_STATE_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_directory_is_made_with_its_parents_for_us_alone(home: Path) -> None:
    made = paths.private_dir(home / "a" / "b")
    assert made == home / "a" / "b"
    assert mode(made) == 0o700


def test_a_directory_is_for_us_alone_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        made = paths.private_dir(home / "a" / "b")
    finally:
        os.umask(before)
    assert mode(made) == 0o700


@pytest.mark.parametrize("wide", [0o755, 0o777, 0o701, 0o710, 0o770, 0o1777])
def test_a_directory_that_others_can_enter_is_narrowed(home: Path, wide: int) -> None:
    (home / "d").mkdir()
    (home / "d").chmod(wide)
    paths.private_dir(home / "d")
    assert mode(home / "d") == 0o700


def test_what_is_in_a_directory_stays_there(home: Path) -> None:
    paths.private_dir(home / "d")
    (home / "d" / "file").write_text("kept")
    paths.private_dir(home / "d")
    assert (home / "d" / "file").read_text() == "kept"


@AS_ROOT
def test_a_directory_of_somebody_else_is_refused_and_left_as_it_is(home: Path) -> None:
    (home / "d").mkdir()
    (home / "d").chmod(0o777)
    os.chown(home / "d", 12345, 12345)
    with pytest.raises(HoldfastError, match="not a directory of yours") as raised:
        paths.private_dir(home / "d")
    assert f"ls -ld {home}/d" in raised.value.hint
    assert mode(home / "d") == 0o777


def test_a_symlink_is_refused_and_what_it_points_to_left_as_it_is(home: Path) -> None:
    (home / "theirs").mkdir()
    (home / "theirs").chmod(0o755)
    (home / "link").symlink_to(home / "theirs")
    with pytest.raises(HoldfastError, match="not a directory of yours"):
        paths.private_dir(home / "link")
    assert mode(home / "theirs") == 0o755


def test_a_symlink_to_nowhere_is_refused_and_nothing_is_made_there(home: Path) -> None:
    (home / "link").symlink_to(home / "nowhere")
    with pytest.raises(HoldfastError, match="can't make the directory"):
        paths.private_dir(home / "link")
    assert not (home / "nowhere").exists()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_the_way_is_an_error_that_names_the_path(home: Path, where: str) -> None:
    (home / "file").write_text("")
    with pytest.raises(HoldfastError, match=str(home / where)) as raised:
        paths.private_dir(home / where)
    assert raised.value.hint


def test_a_path_is_refused_from_the_first_byte_that_a_socket_has_no_room_for(home: Path) -> None:
    room = 20
    fits = paths.LONGEST_CONTROL_PATH - room - len(str(home)) - 1
    paths.private_dir(home / ("d" * fits), room=room)
    with pytest.raises(HoldfastError, match="too long for a socket") as raised:
        paths.private_dir(home / ("d" * (fits + 1)), room=room)
    assert "HOLDFAST_RUNTIME_DIR=/tmp/holdfast-" in raised.value.hint
    assert not (home / ("d" * (fits + 1))).exists()


def test_the_length_of_a_path_is_counted_in_bytes(home: Path) -> None:
    fits = paths.LONGEST_CONTROL_PATH - len(str(home)) - 1
    with pytest.raises(HoldfastError, match="too long"):
        paths.private_dir(home / ("ü" * (fits // 2 + 1)), room=1)


def test_a_path_that_needs_no_socket_may_be_long(home: Path) -> None:
    assert paths.private_dir(home / ("d" * 200)).is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="the length is another elsewhere")
def test_a_master_in_the_longest_runtime_directory_has_a_path_that_ssh_takes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = home / ("d" * (90 - len("/m/0123456789ab") - len(str(home)) - 1))
    monkeypatch.setenv("HOLDFAST_RUNTIME_DIR", str(longest))
    assert len(str(paths.masters_dir() / "0123456789ab")) == 90


def test_the_runtime_directory_is_the_one_that_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    monkeypatch.setenv("HOLDFAST_RUNTIME_DIR", str(home / "run"))
    assert paths.runtime_dir() == home / "run"
    assert paths.masters_dir() == home / "run" / "m"
    assert mode(home / "run") == mode(home / "run" / "m") == 0o700


def test_a_named_runtime_directory_that_is_too_long_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_RUNTIME_DIR", str(home / ("d" * 90)))
    with pytest.raises(HoldfastError, match="too long"):
        paths.runtime_dir()


def test_the_runtime_directory_is_in_that_of_the_session(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    assert paths.runtime_dir() == home / "holdfast"


@pytest.mark.parametrize("kind", ["missing", "too wide", "too long", "a file", "a symlink"])
def test_a_session_directory_that_is_unfit_is_not_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    where = home / ("d" * 80 if kind == "too long" else "d")
    if kind in ("too wide", "too long"):
        where.mkdir(mode=0o755 if kind == "too wide" else 0o700)
    if kind == "a file":
        where.write_text("")
    if kind == "a symlink":
        (home / "target").mkdir(mode=0o700)
        where.symlink_to(home / "target")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(where))
    made: list[Path] = []

    def private_dir(path: Path, room: int = 0) -> Path:
        made.append(path)
        return path

    monkeypatch.setattr(paths, "private_dir", private_dir)  # or /tmp and /run would be written to
    paths.runtime_dir()
    assert made in ([Path(f"/run/user/{os.getuid()}/holdfast")], [Path(f"/tmp/holdfast-{os.getuid()}")])


def test_the_state_directory_is_the_one_that_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "xdg"))
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(home / "state"))
    assert paths.state_dir() == home / "state"
    assert not (home / "xdg").exists()


def test_the_state_directory_is_this_machines_part_of_the_users(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(home))
    made = paths.state_dir()
    assert made.parent == home / "holdfast"
    assert made.name
    assert mode(made) == 0o700


def test_without_any_variable_state_is_kept_in_the_home_directory(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert paths.state_dir().is_relative_to(home / ".local" / "state" / "holdfast")


def test_the_files_of_the_state_are_in_directories_for_us_alone(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(home / "state"))
    for path in (paths.state_file(), paths.lock_file(), paths.keeper_log(), paths.crash_log()):
        assert path.is_relative_to(home / "state")
        assert mode(path.parent) == 0o700
        assert not path.exists()


@pytest.mark.parametrize("name", ["HOLDFAST_RUNTIME_DIR", "HOLDFAST_STATE_DIR"])
def test_a_relative_directory_is_refused_since_it_would_differ_from_folder_to_folder(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "relative")
    with pytest.raises(UsageError) as raised:
        paths.runtime_dir() if "RUNTIME" in name else paths.state_dir()
    assert "'relative'" in raised.value.message


@pytest.mark.parametrize(("tunnel", "name"), [("lab", "lab.log"), ("a.b@c", "a.b@c.log")])
def test_a_tunnels_log_is_named_for_it(tunnel: str, name: str) -> None:
    assert paths.log_name(tunnel) == name
