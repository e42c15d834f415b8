from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import Run, Web
from tests.sshd import Sshd, free_port, wait_for


def test_the_log_tells_what_happened_in_order(holdfast: Run, sshd: Sshd, web: Web) -> None:
    holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    holdfast("down", "lab")
    told = [line.partition("  lab  ")[2] for line in holdfast("logs", "lab").stdout.splitlines()]
    assert told == ["connecting", "up", "taken down"]


def test_a_loss_is_told_with_its_reason(holdfast: Run, sshd: Sshd, web: Web) -> None:
    holdfast("up", "-F", str(sshd.config), "lab", f"{free_port()}:{web.port}")
    sshd.drop_connections()
    wait_for(lambda: "waiting: " in holdfast("logs", "lab").stdout, "the loss to be logged")
    assert "lab" in holdfast("logs", "lab").stdout.partition("waiting: ")[2]


def test_the_last_lines_of_all_tunnels_are_shown_in_the_order_of_time(holdfast: Run, home: Path) -> None:
    logs = home / "state" / "logs"
    logs.mkdir(parents=True)
    (logs / "b.log").write_text("2026-01-01 00:00:01+00:00  one\n2026-01-01 00:00:03+00:00  three\n")
    (logs / "a.log").write_text("2026-01-01 00:00:02+00:00  two\n")
    (logs / "a.log.1").write_text("2026-01-01 00:00:00+00:00  none\n")
    shown = holdfast("logs", "-n", "3").stdout.splitlines()
    assert [line.split("  ")[1:] for line in shown] == [["b", "one"], ["a", "two"], ["b", "three"]]


def test_the_order_of_time_is_kept_where_summer_time_ends(holdfast: Run, home: Path) -> None:
    logs = home / "state" / "logs"
    logs.mkdir(parents=True)
    (logs / "a.log").write_text("2026-10-25 02:59:00+02:00  one\nof two lines\n2026-10-25 02:01:00+01:00  three\n")
    (logs / "b.log").write_text("2026-10-25 02:00:00+01:00  two\n")
    shown = holdfast("logs").stdout.splitlines()
    assert [line.rpartition("  ")[2] for line in shown] == ["one", "of two lines", "two", "three"]


def test_following_shows_new_lines_as_they_come_also_after_the_log_was_put_aside(
    environment: Mapping[str, str], holdfast: Run, home: Path
) -> None:
    log = home / "state" / "logs" / "lab.log"
    log.parent.mkdir(parents=True)
    log.write_text("2026-01-01 00:00:01+00:00  old\n")
    follower = subprocess.Popen(
        [sys.executable, "-m", "holdfast", "logs", "lab", "-f"],
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout is not None
    try:
        assert follower.stdout.readline().endswith("old\n")
        with log.open("a") as file:
            file.write("2026-01-01 00:00:02+00:00  new\n")
        assert follower.stdout.readline().endswith("new\n")
        log.rename(log.with_suffix(".log.1"))
        log.write_text("x  newest\n")
        assert follower.stdout.readline().endswith("newest\n")
    finally:
        follower.terminate()
        follower.wait(10)
        follower.stdout.close()
