"""A project's file is found, and used only as the user has agreed to it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from holdfast.config import trust
from holdfast.config.reading import Described, parse
from holdfast.errors import HoldfastError, UsageError


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder in a home directory, with a `.holdfast.toml`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(tmp_path / "state"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / trust.FILE).write_text("[tunnels.lab]\n")
    (folder / trust.FILE).chmod(0o644)
    return folder


def found_in(folder: Path) -> trust.ProjectFile:
    found = trust.find(folder)
    assert found is not None
    return found


def test_it_is_found_from_a_folder_below(project: Path) -> None:
    (project / "a" / "b").mkdir(parents=True)
    assert found_in(project / "a" / "b") == (project / trust.FILE, b"[tunnels.lab]\n")


def test_the_nearest_one_counts(project: Path) -> None:
    (project / "a").mkdir()
    (project / "a" / trust.FILE).write_text("")
    assert found_in(project / "a").path == project / "a" / trust.FILE


def test_above_the_home_directory_none_is_looked_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "home" / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(project / "home"))
    assert trust.find(project / "home" / "work") is None


def test_above_a_home_directory_that_is_a_link_none_is_looked_for(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "disk" / "ann" / "work").mkdir(parents=True)
    (project / "home").symlink_to(project / "disk" / "ann")
    monkeypatch.setenv("HOME", str(project / "home"))
    assert trust.find(project / "disk" / "ann" / "work") is None


def test_the_home_directory_itself_may_have_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project))
    assert found_in(project).path == project / trust.FILE


def test_a_file_that_others_can_write_to_is_refused(project: Path) -> None:
    (project / trust.FILE).chmod(0o666)
    with pytest.raises(UsageError, match="every user can write"):
        trust.find(project)


def test_a_file_of_another_user_is_refused(project: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(project / trust.FILE, 12345, -1)
    with pytest.raises(UsageError, match="belongs to another user"):
        trust.find(project)


def test_a_folder_of_another_user_ends_the_search(project: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    (project / "theirs" / "mine").mkdir(parents=True)
    os.chown(project / "theirs", 12345, -1)
    assert trust.find(project / "theirs" / "mine") is None


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused_and_not_waited_for(project: Path, make: object) -> None:
    (project / trust.FILE).unlink()
    assert callable(make)
    make(project / trust.FILE)
    with pytest.raises(UsageError):
        trust.find(project)


def test_an_enormous_file_is_refused(project: Path) -> None:
    (project / trust.FILE).write_bytes(b"#" * (trust.LONGEST_FILE + 1))
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        trust.find(project)


def test_what_was_agreed_to_is_this_content_at_this_place(project: Path) -> None:
    found = found_in(project)
    assert not trust.is_allowed(trust.digest(found, {}))
    trust.allow(found, trust.digest(found, {}))
    assert trust.is_allowed(trust.digest(found, {}))
    assert not trust.is_allowed(trust.digest(found._replace(content=found.content + b"\n"), {}))
    assert not trust.is_allowed(trust.digest(found._replace(path=project / "other"), {}))


def test_an_agreement_is_taken_back_whatever_the_content_was(project: Path) -> None:
    found, other = found_in(project), trust.ProjectFile(project / "other" / trust.FILE, b"")
    older = found._replace(content=b"# older")
    for one in (found, older, other):
        trust.allow(one, trust.digest(one, {}))
    assert trust.deny(found.path)
    assert [trust.is_allowed(trust.digest(one, {})) for one in (found, older, other)] == [False, False, True]
    assert not trust.deny(found.path)


def test_an_agreement_is_there_whole_or_not_at_all(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_in(project)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HoldfastError, match="No space left"):
        trust.allow(found, trust.digest(found, {}))
    assert not trust.is_allowed(trust.digest(found, {}))


def test_the_agreement_is_the_users_own_to_read(project: Path, tmp_path: Path) -> None:
    found = found_in(project)
    trust.allow(found, trust.digest(found, {}))
    (note,) = (tmp_path / "state" / "allowed").iterdir()
    assert note.stat().st_mode & 0o777 == 0o600


def test_an_ssh_configuration_that_the_project_names_is_a_part_of_it(project: Path) -> None:
    (project / "ssh_config").write_text("Host lab\n")
    found = found_in(project)
    tunnels = parse('[tunnels.lab]\nssh = ["-F", "ssh_config"]', project / trust.FILE)
    before = trust.digest(found, trust.configurations(tunnels))
    assert before == trust.digest(found, trust.configurations(tunnels))
    (project / "ssh_config").write_text("Host lab\n  ProxyCommand evil\n")
    assert trust.digest(found, trust.configurations(tunnels)) != before


def test_ssh_reads_a_copy_of_what_was_agreed_to(project: Path) -> None:
    (project / "ssh_config").write_text("Host lab\n")
    (tunnel,) = parse('[tunnels.lab]\nssh = ["-p", "22", "-F", "ssh_config"]', project / trust.FILE)
    agreed = trust.with_copies(tunnel, trust.configurations([tunnel]))
    (project / "ssh_config").write_text("Host lab\n  ProxyCommand evil\n")
    assert agreed.options[:3] == ("-p", "22", "-F")
    copy = Path(agreed.options[3])
    assert copy.read_text() == "Host lab\n"
    assert (copy.stat().st_mode & 0o777, copy.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert trust.with_copies(tunnel, trust.configurations([tunnel])).options[3] != agreed.options[3]


@pytest.mark.parametrize("path", ["/dev/zero", "/", "pipe", "everybodys", "nothing"])
def test_an_ssh_configuration_that_is_no_file_of_the_users_is_refused_and_not_waited_for(
    project: Path, path: str
) -> None:
    os.mkfifo(project / "pipe")
    (project / "everybodys").touch()
    (project / "everybodys").chmod(0o666)
    tunnels = parse(f'[tunnels.lab]\nssh = ["-F", "{path}"]', project / trust.FILE)
    with pytest.raises(UsageError):
        trust.configurations(tunnels)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("-o", "ProxyCommand=nc %h %p"),
        ("-o", "localcommand touch x"),
        ("-o", "KnownHostsCommand =x"),
        ("-o", "PKCS11Provider=/tmp/x.so"),
        ("-o", ' "ProxyCommand" x'),
        ("-o", 'Pro"xyCommand" sh -c "touch x"'),
        ("-o", 'Comp"ression"=yes'),
        ("-o", "UserKnownHostsFile=/home/ann/.bashrc"),
        ("-o", 'HostKeyAlias="x;touch x;#"'),
        ("-o", "HostName=x;touch x"),
        ("-J", "a;touch x"),
        ("-l", "$(touch x)"),
        ("-F", "/x/ssh_config"),
    ],
)
def test_an_option_that_can_do_something_here_is_told(option: str, value: str) -> None:
    tunnel = Described("lab", "lab", (), options=("-p", "22", option, value, "-o", "Compression=yes"))
    assert trust.options(tunnel) == [("-p 22", False), ("-o Compression=yes", False), (f"{option} {value}", True)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("-o", "ServerAliveInterval 9"),
        ("-o", "port = 22"),
        ("-J", "ann@a.example:22,[::1]:22"),
        ("-l", "ann.b-c"),
        ("-i", "/k"),
        ("-F", "none"),
    ],
)
def test_an_option_that_only_concerns_the_connection_is_harmless(option: str, value: str) -> None:
    assert trust.options(Described("lab", "lab", (), options=(option, value))) == [(f"{option} {value}", False)]
