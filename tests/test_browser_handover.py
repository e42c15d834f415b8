"""A page is handed over to the user's browser: its address, which has a token in it, to nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sshd import wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a browser is given a file")

TOKEN = "0123456789abcdef"
PAGE = f"http://localhost:8888/lab?token={TOKEN}"
# Notes its arguments, one a line.
RECORDING = """#!/bin/sh
printf '%s\\n' "$@" > {told}.new
mv {told}.new {told}
"""
# What asks, and prints the status and where it is sent.
ASKING = (
    "import http.client, sys, urllib.parse; parts = urllib.parse.urlsplit(sys.argv[1]); "
    "asked = http.client.HTTPConnection(parts.netloc, timeout=10); asked.request('GET', parts.path); "
    "answer = asked.getresponse(); print(answer.status, answer.headers['Location'])"
)


OPENING = (
    "import sys; from holdfast.cli import browser; browser.PATIENCE = float(sys.argv[1]); "
    "sys.exit(not browser.open_page(sys.stdin.read()))"
)
# Seconds for a browser that asks: each question of a test is a Python of its own, on a machine that may be busy.
AMPLE = 60.0


class Handover:
    """`open_page` in a process of its own, whose browser is a script that notes its arguments and then `does`."""

    def __init__(self, home: Path, does: str = "", *, patience: float = AMPLE) -> None:
        self._told = home / "told"
        script = home / "browser"
        script.write_text(RECORDING.format(told=self._told) + does)
        script.chmod(0o755)
        self._process = subprocess.Popen(
            [sys.executable, "-c", OPENING, str(patience)],
            env={**os.environ, "BROWSER": str(script)},
            stdin=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        with self._process.stdin as page:
            page.write(PAGE)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def words(self) -> list[str]:
        """The browser's command line."""
        wait_for(self._told.exists, "the browser to be started")
        return self._told.read_text().splitlines()

    @property
    def address(self) -> str:
        (address,) = self.words
        return address

    @property
    def is_taken(self) -> bool:
        """Whether a browser has taken the page; waits until that is known."""
        return self._process.wait(15) == 0


@pytest.fixture
def handover(home: Path) -> Iterator[Handover]:
    made = Handover(home)
    yield made
    made.close()


def ask(address: str, *, user: int | None = None) -> str:
    """What is answered to another process, of another user when one is named: the status and Location, or ''."""
    done = subprocess.run(
        [sys.executable if user is None else "/usr/bin/python3", "-c", ASKING, address],
        capture_output=True,
        text=True,
        check=False,
        user=user,
        group=user,
        cwd="/",
        timeout=20,
    )
    assert done.returncode == 0 or "RemoteDisconnected" in done.stderr or "ConnectionReset" in done.stderr
    return done.stdout.strip()


def test_the_browsers_command_line_has_no_token_and_its_first_question_leads_to_the_page(
    handover: Handover,
) -> None:
    (address,) = handover.words
    assert address.startswith("http://127.0.0.1:")
    assert TOKEN not in address
    assert ask(address) == f"302 {PAGE}"
    assert handover.is_taken


def test_the_address_is_good_for_one_question_only(handover: Handover) -> None:
    assert ask(handover.address) == f"302 {PAGE}"
    assert handover.is_taken
    with pytest.raises(urllib.error.URLError, match="refused"):
        urllib.request.urlopen(handover.address, timeout=5)


def test_who_does_not_know_the_address_gets_nothing_and_the_browser_gets_it_all_the_same(
    handover: Handover,
) -> None:
    origin = handover.address.rpartition("/")[0]
    for path in ("/", "/favicon.ico", f"/{'x' * 32}"):
        assert ask(f"{origin}{path}") == "404 None"
    assert ask(handover.address) == f"302 {PAGE}"
    assert handover.is_taken


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_who_reads_the_command_line_gets_nothing(handover: Handover) -> None:
    assert ask(handover.address, user=65534) == ""
    assert ask(handover.address) == f"302 {PAGE}"
    assert handover.is_taken


def test_a_browser_that_stays_until_it_has_the_page_is_sent_there(home: Path) -> None:
    answer = home / "answer"
    made = Handover(home, f'{sys.executable} -c "{ASKING}" "$1" > {answer}\n')
    try:
        wait_for(
            lambda: answer.exists() and answer.read_text() == f"302 {PAGE}\n", "the browser to be answered", 30
        )
        assert made.is_taken
    finally:
        made.close()


def test_that_nobody_has_asked_in_time_is_told(home: Path) -> None:
    made = Handover(home, patience=1.0)
    try:
        assert made.words
        assert not made.is_taken
    finally:
        made.close()
