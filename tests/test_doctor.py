from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import Run
from tests.sshd import free_port


def fake_ssh(home: Path, says: str) -> str:
    """A PATH on which `ssh -V` says that: a version that can't be installed here."""
    (home / "bin").mkdir()
    ssh = home / "bin" / "ssh"
    ssh.write_text(f"#!/bin/sh\necho '{says}' >&2\n")
    ssh.chmod(0o755)
    return f"{home}/bin:{os.environ['PATH']}"


def test_all_is_well_here(holdfast: Run) -> None:
    result = holdfast("doctor")
    assert result.returncode == 0
    assert "wrong" not in result.stdout
    assert "OpenSSH_" in result.stdout


def test_a_missing_ssh_is_told(holdfast: Run, home: Path) -> None:
    result = holdfast("doctor", PATH=str(home))
    assert result.returncode == 1
    assert "ssh is not installed" in result.stdout
    assert "apt-get install openssh-client" in result.stdout


def test_an_ssh_that_is_too_old_is_told_with_the_oldest_that_was_tested(holdfast: Run, home: Path) -> None:
    result = holdfast("doctor", PATH=fake_ssh(home, "OpenSSH_7.4p1, OpenSSL 1.0.2k"))
    assert result.returncode == 1
    assert "OpenSSH_7.4p1 is older than 8.0" in result.stdout


def test_something_that_is_not_openssh_is_told(holdfast: Run, home: Path) -> None:
    result = holdfast("doctor", PATH=fake_ssh(home, "Dropbear v2022.83"))
    assert result.returncode == 1
    assert "is not OpenSSH" in result.stdout


def test_without_ssh_up_says_what_to_install(holdfast: Run, home: Path) -> None:
    result = holdfast("up", "lab", PATH=str(home))
    assert result.returncode == 1
    assert "ssh is not installed" in result.stderr


def test_the_keeper_and_its_version_are_told(holdfast: Run, home: Path) -> None:
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")
    assert "the keeper runs" in holdfast("doctor").stdout
    (home / "new").mkdir()
    (home / "new" / "sitecustomize.py").write_text(
        "import holdfast.version\nholdfast.version.__version__ = '99.0'\n"
    )
    result = holdfast("doctor", PYTHONPATH=str(home / "new"))
    assert result.returncode == 1
    assert "this is 99.0" in result.stdout


def test_a_path_too_long_for_sockets_is_told(holdfast: Run, home: Path) -> None:
    result = holdfast("doctor", HOLDFAST_RUNTIME_DIR=str(home / ("x" * 90)))
    assert result.returncode == 1
    assert "too long for a socket" in result.stdout
