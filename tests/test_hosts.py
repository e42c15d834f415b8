"""The hosts that ssh_config spells out, for completion."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.openssh.hosts import host_names


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's ~/.ssh."""
    monkeypatch.setenv("HOME", str(tmp_path))
    made = tmp_path / ".ssh"
    made.mkdir()
    return made


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("Host lab\n  Port 22\n", ["lab"]),
        ("Host lab db\nHost other", ["db", "lab", "other"]),
        ("Host lab\nHost lab", ["lab"]),
        ("HOST=lab", ["lab"]),
        ("  host = lab", ["lab"]),
        ("\tHost\tlab\tdb", ["db", "lab"]),
        ('Host "lab" db', ["db", "lab"]),
        ("Host * lab ?x !not [a]", ["[a]", "lab"]),
        ("# Host lab\n#Host db", []),
        ("Host", []),
        ("Host\r\nHost lab\r\n", ["lab"]),
        ("HostName lab\nMatch host lab\nHostKeyAlias lab", []),
    ],
)
def test_the_hosts_of_a_configuration_are(ssh: Path, text: str, names: list[str]) -> None:
    (ssh / "config").write_text(text)
    assert host_names() == names


def test_a_configuration_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("Host lab")
    assert host_names(tmp_path / "mine") == ["lab"]


def test_included_files_count_absolute_or_beside_the_configuration_or_at_home(ssh: Path, tmp_path: Path) -> None:
    (ssh / "conf.d").mkdir()
    (ssh / "conf.d" / "a").write_text("Host a")
    (ssh / "conf.d" / "b").write_text("Host b")
    (ssh / "more").write_text("Host c\nInclude last")
    (ssh / "last").write_text("Host d")
    (tmp_path / "absolute").write_text("Host e")
    (tmp_path / "at home").write_text("Host f")
    (tmp_path / "athome").write_text("Host g")
    (ssh / "config").write_text(f"Include conf.d/* more missing {tmp_path}/absolute ~/athome\n")
    assert host_names() == ["a", "b", "c", "d", "e", "g"]


def test_a_file_that_includes_itself_ends(ssh: Path) -> None:
    (ssh / "config").write_text("Host lab\nInclude config\n")
    assert host_names() == ["lab"]


@pytest.mark.parametrize("kind", ["missing", "a directory", "no text", "a symlink to itself"])
def test_what_cannot_be_read_offers_nothing(ssh: Path, kind: str) -> None:
    config = ssh / "config"
    match kind:
        case "a directory":
            config.mkdir()
        case "no text":
            config.write_bytes(b"\xff\x00\xfe Host lab\nHostx \x00")
        case "a symlink to itself":
            config.symlink_to(config)
    assert host_names() == []


def test_a_comment_at_the_end_of_a_line_is_left_out(ssh: Path) -> None:
    (ssh / "config").write_text("Host lab # the big one\n")
    assert host_names() == ["lab"]


def test_a_name_in_quotes_is_one_name(ssh: Path) -> None:
    (ssh / "config").write_text('Host "my lab"\n')
    assert host_names() in (["my lab"], [])  # it can't be used with holdfast, so offering nothing is right too


def test_an_include_from_an_unknown_users_home_offers_nothing(ssh: Path) -> None:
    (ssh / "config").write_text("Host lab\nInclude ~nosuchuser/config\n")
    assert host_names() == ["lab"]


def test_files_that_all_include_each_other_are_each_read_a_few_times(
    ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config", "other"):
        (ssh / name).write_text(f"Host {name}\nInclude *\n")
    reads, read_text = [], Path.read_text

    def counted(path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        reads.append(path)
        assert len(reads) < 100, "a hundred reads of two files"
        return read_text(path, encoding, errors)

    monkeypatch.setattr(Path, "read_text", counted)
    assert host_names() == ["config", "other"]


@given(st.binary(max_size=80).map(lambda data: data.replace(b"~", b"")))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_of_any_bytes_never_raises(ssh: Path, data: bytes) -> None:
    (ssh / "config").write_bytes(b"Host lab\nInclude " + data)
    assert "lab" in host_names()
