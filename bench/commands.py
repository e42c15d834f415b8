"""How long the commands take, as whole processes."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

from tests.sshd import free_port, wait_for

from bench.report import Section, at_most, median, ratio, spread
from bench.rig import ALIASES, PYTHON, Holdfast, Rig, end, quiet, seconds_of

ROUNDS = 9
STATUS_ROUNDS = 15
EACH = 10
SLOW_ROUNDS = 3
SLOW_LOGIN = "holdfast up, login files over there taking 500 ms"

Times = dict[str, list[float]]


def fill(many: Holdfast, target: int, hosts: int = len(ALIASES)) -> None:
    """Ten tunnels on each of so many hosts, a forward each."""
    for alias in ALIASES[:hosts]:
        for number in range(EACH):
            many.up(alias, f"{free_port()}:{target}", "--name", f"{alias}-{number}", "--no-wait")
    wait_for(lambda: many.run("status", check=False).returncode == 0, "all tunnels", 30)


def measure(rig: Rig, one: Holdfast, many: Holdfast, target: int) -> list[Section]:
    """`one` has nothing up yet, `many` a hundred tunnels."""
    return [_ups(rig, one, target), _statuses(rig, one, many, target)]


def _ups(rig: Rig, holdfast: Holdfast, target: int) -> Section:
    holdfast.forward(target)
    holdfast.run("down", "lab")  # the keeper runs, and what it imports is compiled
    first, further, plain, slow = "holdfast up", "holdfast up, a further forward", "ssh -fNTM", SLOW_LOGIN
    times: Times = {name: [] for name in (first, further, plain, slow)}
    for _ in range(ROUNDS):
        times[first].append(quietly(lambda: holdfast.forward(target)))
        times[further].append(quietly(lambda: holdfast.forward(target)))
        holdfast.run("down", "lab")
        times[plain].append(_plain_master(rig))
    login_file = rig.far_home / ".bashrc"
    login_file.write_text("sleep 0.5\n")
    for _ in range(SLOW_ROUNDS):
        times[slow].append(quietly(lambda: holdfast.forward(target)))
        holdfast.run("down", "lab")
    login_file.unlink()
    made = section("Bringing a tunnel up, ms", times)
    more = [1000 * (ours - theirs) for ours, theirs in zip(times[first], times[plain], strict=True)]
    made.goals = [
        at_most("holdfast up, more than ssh -fNTM takes", more, 150, "ms"),
        at_most("holdfast up of a further forward", [1000 * value for value in times[further]], 100, "ms"),
    ]
    return made


def quietly(call: Callable[[], object]) -> float:
    """The seconds that `call()` takes, once other programs leave the CPUs alone."""
    quiet()
    return seconds_of(call)


def _plain_master(rig: Rig) -> float:
    path = rig.home / "plain"
    took = quietly(lambda: rig.run([*rig.ssh, "-fNTM", "-S", str(path), "lab"]))
    said = rig.run([*rig.ssh, "-S", str(path), "-O", "check", "lab"]).stderr
    found = re.search(r"pid=(\d+)", said)
    assert found, said
    end(int(found[1]))
    wait_for(lambda: not path.exists(), "the master's socket to be gone")
    return took


def _statuses(rig: Rig, one: Holdfast, many: Holdfast, target: int) -> Section:
    one.forward(target)
    names = ("python -c pass", "holdfast status, 1 tunnel", "holdfast status, 100 tunnels")
    commands: dict[str, Callable[[], object]] = {
        names[0]: lambda: rig.run([PYTHON, "-c", "pass"]),
        names[1]: lambda: one.run("status"),
        names[2]: lambda: many.run("status"),
    }
    times: Times = {name: [] for name in names}
    for command in commands.values():
        command()
    for _ in range(STATUS_ROUNDS):
        for name, command in commands.items():
            times[name].append(quietly(command))
    made = section("Asking for the status, ms", times)
    bare, single, hundred = (times[name] for name in names)
    made.goals = [
        ratio("holdfast status, 1 tunnel / python -c pass", single, bare, 6, at_least=False),
        ratio("holdfast status, 100 tunnels / 1 tunnel", hundred, single, 2, at_least=False),
    ]
    return made


def section(title: str, times: Times) -> Section:
    """A row for each of the commands whose seconds these are."""
    rows = [[name, median(scaled), spread(scaled)] for name, scaled in _milliseconds(times).items()]
    return Section(title, header=["command", "median", "min - max"], rows=rows)


def _milliseconds(times: Times) -> Times:
    assert all(statistics.median(values) > 0 for values in times.values())
    return {name: [1000 * value for value in values] for name, values in times.items()}
