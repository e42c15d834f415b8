"""What a hundred tunnels cost while nobody uses them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from bench.report import Goal, Section
from bench.rig import Holdfast

SECONDS = 20.0
MB = 1e6


def measure(many: Holdfast) -> list[Section]:
    keeper, masters = many.keeper(), many.masters()
    before, before_masters, began = _busy([keeper]), _busy(masters), time.perf_counter()
    time.sleep(SECONDS)
    passed = time.perf_counter() - began
    share = 100 * (_busy([keeper]) - before) / passed
    share_masters = 100 * (_busy(masters) - before_masters) / passed
    memory = keeper.memory_full_info()
    section = Section("A hundred tunnels on ten hosts, idle")
    section.goals = [
        Goal("the keeper's memory (RSS), 100 tunnels", memory.rss / MB, "", 40, False, "MB"),
        Goal("the keeper's share of a CPU, idle, 100 tunnels", share, "", 0.5, False, "%"),
    ]
    proportional = sum(master.memory_full_info().pss for master in masters)
    section.header = ["process", "RSS, MB", "its own (USS), MB", f"CPU over {SECONDS:.0f} s, %"]
    own = sum(master.memory_full_info().uss for master in masters)
    section.rows = [
        ["keeper", f"{memory.rss / MB:.1f}", f"{memory.uss / MB:.1f}", f"{share:.2f}"],
        [
            f"{len(masters)} ssh masters",
            f"{proportional / MB:.1f} (PSS)",
            f"{own / MB:.1f}",
            f"{share_masters:.2f}",
        ],
    ]
    return [section]


def _busy(processes: Iterable[psutil.Process]) -> float:
    """Seconds of CPU that they have used."""
    return sum(_seconds(process) for process in processes)


def _seconds(process: psutil.Process) -> float:
    threads = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if threads:  # in nanoseconds, where cpu_times counts ticks of 10 ms
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    spent = process.cpu_times()
    return spent.user + spent.system
