"""What tunnels cost while nobody uses them: a hundred on ten hosts, and fifty links across a network."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from tests.network import Network, why_not
from tests.sshd import free_port, wait_for

from bench.recovery_rig import rig_apart
from bench.report import Goal, Section
from bench.rig import Holdfast

SECONDS = 20.0
LINKS, LINK_SECONDS = 50, 60.0
# One exchange is a packet there, one back that acknowledges it, and the acknowledgement of that one.
PACKETS_OF_AN_EXCHANGE = 3
MB = 1e6


def measure(many: Holdfast) -> list[Section]:
    keeper, masters = many.keeper(), many.masters()
    before, before_masters, began = busy([keeper]), busy(masters), time.perf_counter()
    time.sleep(SECONDS)
    passed = time.perf_counter() - began
    share = 100 * (busy([keeper]) - before) / passed
    share_masters = 100 * (busy(masters) - before_masters) / passed
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


def measure_links() -> list[Section]:
    """The cost of one keeper's links, each to a host of its own name; nothing but a remark without root."""
    section = Section(f"{LINKS} links, idle")
    if reason := why_not():
        section.remarks.append(f"Not in this run: {reason}.")
        return [section]
    with rig_apart("MaxStartups 200:30:400") as (network, rig):
        holdfast = Holdfast(rig, "a")
        target = network.server.call(lambda: rig.serve("pieces"))
        network.client.call(lambda: _bring_up_links(network, holdfast, target))
        _measure_links(section, network, holdfast)
    return [section]


def _bring_up_links(network: Network, holdfast: Holdfast, target: int) -> None:
    block = network.config.read_text()
    names = [f"lab{number}" for number in range(LINKS)]
    network.config.write_text("\n".join(block.replace("Host lab\n", f"Host {name}\n") for name in names))
    for name in names:
        holdfast.up(name, f"{free_port()}:{target}", "--no-wait")
    wait_for(lambda: holdfast.run("status", check=False).returncode == 0, f"{LINKS} links", 120)


def _measure_links(section: Section, network: Network, holdfast: Holdfast) -> None:
    keeper = holdfast.keeper()
    before, packets_before, began = busy([keeper]), _packets(network), time.perf_counter()
    time.sleep(LINK_SECONDS)
    passed = time.perf_counter() - began
    share = 100 * (busy([keeper]) - before) / passed
    packets = (_packets(network) - packets_before) / LINKS / passed * 5
    memory = keeper.memory_info().rss / MB
    section.goals = [
        Goal(
            f"the keeper's share of a CPU, {LINKS} links idle for {LINK_SECONDS:.0f} s", share, "", 1, False, "%"
        ),
        Goal(f"the keeper's memory (RSS), {LINKS} links", memory, "", 60, False, "MB"),
        Goal("packets there and back, a link in 5 s", packets, "", PACKETS_OF_AN_EXCHANGE, False, "packets"),
    ]
    section.remarks.append(
        f"{PACKETS_OF_AN_EXCHANGE} packets are one exchange: there, back, and its acknowledgement."
    )


def _packets(network: Network) -> int:
    """How many have gone through the client's cable, in both directions."""
    (link,) = json.loads(network.client.ip("-json", "-statistics", "link", "show", "router"))
    return int(link["stats64"]["rx"]["packets"]) + int(link["stats64"]["tx"]["packets"])


def busy(processes: Iterable[psutil.Process]) -> float:
    """Seconds of CPU that they have used."""
    return sum(_seconds(process) for process in processes)


def _seconds(process: psutil.Process) -> float:
    threads = list(Path(f"/proc/{process.pid}/task").glob("*/schedstat"))
    if threads:  # in nanoseconds, where cpu_times counts ticks of 10 ms
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
    spent = process.cpu_times()
    return spent.user + spent.system
