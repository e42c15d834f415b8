"""The command line as a whole: exit codes, where output goes, what loading it costs, and bugs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from holdfast.cli.main import COMMANDS
from tests.conftest import Run
from tests.sshd import free_port


def test_every_subcommand_explains_itself(holdfast: Run) -> None:
    shown = holdfast("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in shown
        assert holdfast(name, "--help").returncode == 0


def test_no_words_at_all_show_the_help(holdfast: Run) -> None:
    assert "holdfast up lab" in holdfast().stdout + holdfast().stderr


def test_version_is_printed(holdfast: Run) -> None:
    assert holdfast("--version").stdout.startswith("holdfast 0.")


def test_status_loads_neither_asyncio_nor_subprocess_nor_psutil(
    environment: Mapping[str, str], holdfast: Run
) -> None:
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")
    costly = {"asyncio", "subprocess", "psutil", "rich", "textual", "holdfast.keeper"}
    code = (
        "import sys; from holdfast.cli.main import main; main(['status', '--json']);"
        f"print(sorted({costly} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_bug_ends_with_70_and_keeps_its_traceback(holdfast: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import holdfast.client\ndef something_is_wanted(): raise RuntimeError('ouch')\n"
        "holdfast.client.something_is_wanted = something_is_wanted\n"
    )
    result = holdfast("status", PYTHONPATH=str(tmp_path))
    assert result.returncode == 70
    assert "this is a bug in holdfast: RuntimeError: ouch" in result.stderr
    assert "Traceback" not in result.stderr
    assert "RuntimeError: ouch" in (home / "state" / "crash.log").read_text()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_bug(environment: Mapping[str, str], holdfast: Run, closed: str) -> None:
    def ends_with(words: str) -> int:
        command = f"exec {sys.executable} -m holdfast {words} {closed}"
        return subprocess.run(["sh", "-c", command], env=environment, timeout=30, check=False).returncode

    assert ends_with(f"up nowhere.invalid {free_port()} --no-wait") == 0
    assert ends_with("status") == 3
    assert ends_with("ui") == 2
    assert holdfast("status", "--short").stdout.startswith("nowhere.invalid ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_is_no_bug(environment: Mapping[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "holdfast", "metrics"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert ended.stderr.startswith("holdfast: can't write what was asked for: No space left on device\n")
    assert ended.returncode == 1


def test_a_reader_that_has_seen_enough_is_no_error_message(environment: Mapping[str, str], holdfast: Run) -> None:
    command = f"{sys.executable} -m holdfast completion bash | head -n 1"
    result = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=20, check=True
    )
    assert result.stderr == ""


def test_windows_is_told_what_is_missing(environment: Mapping[str, str]) -> None:
    code = "import sys; from holdfast.cli.main import main; sys.platform = 'win32'; sys.exit(main(['status']))"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert result.returncode == 1
    assert "ControlMaster" in result.stderr
    assert "WSL" in result.stderr


def test_a_folder_named_holdfast_where_the_user_is_is_not_imported(
    environment: Mapping[str, str], holdfast: Run, tmp_path: Path
) -> None:
    (tmp_path / "holdfast").mkdir()
    (tmp_path / "holdfast" / "__init__.py").write_text("raise SystemExit('imported from the current folder')")
    script = Path(sys.executable).with_name("holdfast")
    result = subprocess.run(
        [str(script), "up", "nowhere.invalid", str(free_port()), "--no-wait"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "words", [("status", "nosuch"), ("down", "nosuch"), ("restart", "nosuch"), ("logs", "nosuch")]
)
def test_an_unknown_tunnel_is_named_in_the_error(holdfast: Run, words: tuple[str, ...]) -> None:
    result = holdfast(*words)
    assert result.returncode == 1
    assert "'nosuch'" in result.stderr


def test_a_misspelt_tunnel_is_guessed(holdfast: Run) -> None:
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")
    assert "did you mean nowhere.invalid" in holdfast("status", "nowhere.inavlid").stderr


def test_status_of_a_tunnel_that_is_down_says_so(holdfast: Run) -> None:
    holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait")
    holdfast("down", "nowhere.invalid")
    result = holdfast("status", "nowhere.invalid")
    assert result.returncode == 3
    assert "is down" in result.stderr
    assert holdfast("down", "nowhere.invalid").returncode == 0


def test_status_starts_no_keeper_when_nothing_is_wanted(holdfast: Run, home: Path) -> None:
    assert holdfast("status").returncode == 0
    assert not (home / "run").exists()


def test_a_misspelt_command_is_guessed(holdfast: Run) -> None:
    result = holdfast("statsu")
    assert result.returncode == 2
    assert "did you mean holdfast status" in result.stderr
