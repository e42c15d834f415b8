"""`wait`: what it waits for, when it gives up, and that it believes nobody without proof."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from holdfast.cli.waiting import hopeless, unmet
from tests.conftest import Run, Web
from tests.records import tunnel
from tests.sshd import Sshd, free_port

TUNNELS = {state: tunnel(state, state=state) for state in ("up", "no service", "stalled", "needs login", "failed")}


@pytest.mark.parametrize(
    ("names", "wanted", "left"),
    [
        (["up"], {"up"}, []),
        (["up", "stalled"], {"up"}, ["stalled"]),
        (["up", "no service"], {"up", "no service"}, []),
        (["up", "gone"], {"up"}, ["gone"]),
        (["up", "gone"], {"down"}, ["up"]),
        (["gone"], {"down"}, []),
    ],
)
def test_who_is_still_waited_for(names: list[str], wanted: set[str], left: list[str]) -> None:
    assert unmet(names, TUNNELS, wanted) == left


@pytest.mark.parametrize(
    ("wanted", "lost"),
    [
        ({"up"}, ["needs login", "failed"]),
        ({"up", "no service"}, ["needs login", "failed"]),
        ({"down"}, []),
        ({"stalled", "up"}, []),
    ],
)
def test_who_is_waited_for_in_vain(wanted: set[str], lost: list[str]) -> None:
    assert hopeless([*TUNNELS, "gone"], TUNNELS, wanted) == lost


def test_a_tunnel_that_is_brought_up_later_is_waited_for(
    holdfast: Run, sshd: Sshd, environment: Mapping[str, str]
) -> None:
    words = [sys.executable, "-m", "holdfast", "wait", "lab", "--state", "no-service", "--timeout", "30"]
    waiting = subprocess.Popen(words, env=environment)
    try:
        assert holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{free_port()}").returncode == 0
        assert waiting.wait(30) == 0
    finally:
        waiting.kill()
        waiting.wait()
    in_vain = holdfast("wait", "l*", "--timeout", "0.3")
    assert in_vain.returncode == 1
    assert "holdfast: lab is no service: nothing listens" in in_vain.stderr
    assert ", after 0.3 s" in in_vain.stderr


def test_a_link_that_has_just_frozen_is_not_up(holdfast: Run, sshd: Sshd, web: Web) -> None:
    assert holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}").returncode == 0
    assert holdfast("wait", "lab", "--timeout", "10").returncode == 0
    for pid in sshd.descendants():
        os.kill(pid, signal.SIGSTOP)
    assert sshd.process is not None
    os.kill(sshd.process.pid, signal.SIGSTOP)
    frozen = holdfast("wait", "lab", "--timeout", "3")
    assert frozen.returncode == 1
    assert "lab is stalled" in frozen.stderr
    os.kill(sshd.process.pid, signal.SIGCONT)
    for pid in sshd.descendants():
        os.kill(pid, signal.SIGCONT)


def test_a_tunnel_that_needs_a_login_ends_it_with_4(holdfast: Run, sshd: Sshd) -> None:
    sshd.authorized_keys.write_text("")
    assert holdfast("up", "-F", str(sshd.config), "lab", str(free_port()), "--no-wait").returncode == 0
    result = holdfast("wait", "lab", "--timeout", "30")
    assert result.returncode == 4
    assert "lab needs login: " in result.stderr


def test_a_tunnel_that_is_not_there_is_down_and_no_keeper_is_started(holdfast: Run, home: Path) -> None:
    began = time.monotonic()
    assert holdfast("wait", "lab", "--state", "down").returncode == 0
    assert time.monotonic() - began < 10
    result = holdfast("wait", "lab", "--timeout", "0.2")
    assert result.returncode == 1
    assert "there is no tunnel 'lab', after 0.2 s" in result.stderr
    assert not (home / "state" / "keeper.lock").exists()


def test_a_group_of_which_none_is_up_yet_is_waited_for(holdfast: Run, home: Path) -> None:
    config = home / "config.toml"
    config.write_text("[tunnels.lab]\ngroups = ['work']\n[tunnels.gpu]\ngroups = ['work']\n")
    result = holdfast("wait", "work", "--timeout", "0.2", HOLDFAST_CONFIG=str(config))
    assert result.returncode == 1
    assert "there is no tunnel 'lab', after 0.2 s" in result.stderr
    assert "there is no tunnel 'gpu', after 0.2 s" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lab", "--state", "upp"], "did you mean --state up"),
        (["lab", "--state", "xyz"], "one of up, "),
        (["lab", "--timeout", "0"], "the time-out is 0 seconds"),
        (["8888"], "can't be a tunnel's name"),
        ([], "missing argument"),
    ],
)
def test_what_cant_be_waited_for_is_refused(holdfast: Run, words: list[str], said: str) -> None:
    result = holdfast("wait", *words)
    assert result.returncode == 2
    assert said in result.stderr
