"""`status`: of which tunnels, its few words for a prompt, and its exit codes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from holdfast import client
from tests.conftest import Run, _keepers
from tests.sshd import free_port


def test_a_prompt_without_tunnels_is_empty_and_starts_no_keeper(holdfast: Run, home: Path) -> None:
    result = holdfast("status", "--short")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not (home / "state" / "keeper.lock").exists()


def test_a_prompt_tells_what_the_keeper_knows_and_when_there_is_none(
    holdfast: Run, kill_keeper: Callable[[], None]
) -> None:
    assert holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait").returncode == 0
    told = holdfast("status", "--short", "nowhere*")
    assert told.returncode == 3
    assert told.stdout in ("nowhere.invalid connecting\n", "nowhere.invalid waiting\n")
    kill_keeper()
    unwatched = holdfast("status", "--short")
    assert (unwatched.returncode, unwatched.stdout) == (3, "tunnels unwatched\n")


def test_a_prompt_does_not_wait_for_a_keeper_that_is_stopped(holdfast: Run, home: Path) -> None:
    assert holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait").returncode == 0
    (keeper,) = _keepers(home)
    os.kill(keeper, signal.SIGSTOP)
    try:
        began = time.monotonic()
        told = holdfast("status", "--short")
        assert time.monotonic() - began < client.GREETING
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert (told.returncode, told.stdout) == (1, "")
    assert "the keeper doesn't answer" in told.stderr


def test_status_takes_patterns_and_says_which_names_nobody_knows(holdfast: Run) -> None:
    assert holdfast("up", "nowhere.invalid", str(free_port()), "--no-wait").returncode == 0
    assert "nowhere.invalid" in holdfast("status", "no*").stdout
    wrong = holdfast("status", "nowhere.invali")
    assert wrong.returncode == 1
    assert "did you mean nowhere.invalid" in wrong.stderr


def test_ways_of_showing_it_that_exclude_each_other_are_refused(holdfast: Run) -> None:
    result = holdfast("status", "--short", "--json")
    assert result.returncode == 2
    assert "don't go together" in result.stderr
