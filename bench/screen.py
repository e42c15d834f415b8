"""What `holdfast ui` costs while nobody touches it, beside `status --watch`: fifty tunnels on five hosts."""

from __future__ import annotations

import time

import pexpect
import psutil

from bench.idle import MB, busy
from bench.report import Goal, Section
from bench.rig import HOLDFAST, Holdfast

# Seconds that it has to draw everything, and over which it is looked at.
SETTLING, SECONDS = 5.0, 60.0
SIZES = ((24, 80), (40, 120))
# More of a CPU than this is too much, in percent.
BOUND = 3.0


def measure(holdfast: Holdfast) -> list[Section]:
    """`holdfast` has fifty tunnels."""
    section = Section("Fifty tunnels on a screen, idle")
    section.header = ["shown by", "terminal", f"CPU over {SECONDS:.0f} s, %", "the keeper's, %", "RSS, MB"]
    for lines, columns in SIZES:
        size = f"{columns}x{lines}"
        for words in (("ui",), ("status", "--watch")):
            share, keepers, memory = _watch(holdfast, words, (lines, columns))
            name = " ".join(("holdfast", *words))
            section.rows.append([name, size, f"{share:.2f}", f"{keepers:.2f}", f"{memory:.1f}"])
            if words == ("ui",):
                section.goals.append(Goal(f"{name}'s share of a CPU, {size}", share, "", BOUND, False, "%"))
    return [section]


def _watch(holdfast: Holdfast, words: tuple[str, ...], size: tuple[int, int]) -> tuple[float, float, float]:
    """The shares of a CPU, in percent, of the command and of the keeper while it runs; its memory in MB."""
    terminal = pexpect.spawn(
        str(HOLDFAST),
        list(words),
        env={**holdfast.rig.environment, **holdfast.directories, "TERM": "xterm-256color"},
        dimensions=size,
        timeout=None,
    )
    screen, keeper = psutil.Process(terminal.pid), holdfast.keeper()
    try:
        _read(terminal, SETTLING)
        before, keepers_before, began = busy([screen]), busy([keeper]), time.perf_counter()
        _read(terminal, SECONDS)
        passed = time.perf_counter() - began
        shares = [100 * spent / passed for spent in (busy([screen]) - before, busy([keeper]) - keepers_before)]
        return shares[0], shares[1], screen.memory_info().rss / MB
    finally:
        terminal.sendintr()
        terminal.close(force=True)


def _read(terminal: pexpect.spawn[str], seconds: float) -> None:
    """Takes what it draws, as a terminal does: else it would wait for that."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            terminal.read_nonblocking(65536, left)
        except pexpect.TIMEOUT:
            return
