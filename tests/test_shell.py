"""Aliases and completion, tried in the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.sshd import free_port

BIN = Path(sys.executable).parent


def shell(name: str, script: str, environment: Mapping[str, str]) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    result = subprocess.run(
        [name, "-c", script],
        env={**environment, "PATH": f"{BIN}:{environment['PATH']}"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.stderr == ""
    return result.stdout


def test_aliases_are_three_and_bash_takes_them(holdfast: Run, environment: Mapping[str, str]) -> None:
    printed = holdfast("alias", "lab", "--shell", "bash").stdout
    assert printed.splitlines()[0] == "alias lab-up='holdfast up lab'"
    taken = shell("bash", f"{printed}\nalias", environment)
    for verb in ("up", "status", "down"):
        assert f"lab-{verb}='holdfast {verb} lab'" in taken


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_aliases_are_taken_by_other_shells(holdfast: Run, environment: Mapping[str, str], name: str) -> None:
    printed = holdfast("alias", "lab", "--shell", name).stdout
    assert "holdfast up lab" in shell(name, f"{printed}\nalias", environment)


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_completion_is_printed_for_each_shell(holdfast: Run, name: str) -> None:
    assert "_HOLDFAST_COMPLETE" in holdfast("completion", name).stdout


def test_tab_offers_commands_tunnels_and_hosts(holdfast: Run, home: Path) -> None:
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")
    (home / ".ssh").mkdir()
    (home / ".ssh" / "config").write_text("Host lab gate*\n")

    def offered(*words: str) -> set[str]:
        # What bash asks for when Tab is pressed after these words.
        result = holdfast(
            _HOLDFAST_COMPLETE="bash_complete",
            COMP_WORDS=" ".join(["holdfast", *words]),
            COMP_CWORD=str(len(words)),
            HOME=str(home),
        )
        return {line.partition(",")[2] for line in result.stdout.splitlines()}

    assert {"up", "down", "status"} <= offered("")
    assert offered("down", "no") == {"nowhere.invalid"}
    assert offered("up", "") == {"nowhere.invalid", "lab"}
