"""What programs pay: for the import, for a tunnel, for many at once; and who comes first to a lazy one."""

from __future__ import annotations

import json
import urllib.request

from bench.commands import Times, quietly, section
from bench.report import Goal, Section, at_most
from bench.rig import PYTHON, Holdfast, Rig

ROUNDS = 9
LEASES = 200

# Prints, as JSON, the seconds that each of some tunnels took to open and to close, over a connection that lives.
_TUNNELS = """
import json, sys, time, holdfast
where = {"options": ("-F", sys.argv[1])}
opened, closed = [], []
with holdfast.tunnel("lab", f"0:{sys.argv[2]}", **where):
    for number in range(int(sys.argv[3])):
        began = time.perf_counter()
        with holdfast.tunnel("lab", f"0:{sys.argv[2]}", name=f"t{number}", **where):
            opened.append(time.perf_counter() - began)
            began = time.perf_counter()
        closed.append(time.perf_counter() - began)
print(json.dumps([opened, closed]))
"""
# Opens and closes that many leases, fifty at a time; prints the seconds that all of them took.
_LEASES = """
import sys, time, holdfast
from concurrent.futures import ThreadPoolExecutor
def use(number):
    with holdfast.tunnel("lab", f"0:{sys.argv[2]}", name=f"t{number % 20}", options=("-F", sys.argv[1])):
        pass
began = time.perf_counter()
with ThreadPoolExecutor(50) as pool:
    list(pool.map(use, range(int(sys.argv[3]))))
print(time.perf_counter() - began)
"""


def measure(rig: Rig, holdfast: Holdfast, target: int) -> list[Section]:
    return [_imports(rig), _tunnels(rig, holdfast, target), _lazy(rig, holdfast, target)]


def _imports(rig: Rig) -> Section:
    programs = {
        "python -c pass": "pass",
        "python -c 'import holdfast'": "import holdfast",
        "the same, and holdfast.tunnel": "import holdfast; holdfast.tunnel",
    }
    times: Times = {name: [] for name in programs}
    for _ in range(3 * ROUNDS):
        for name, source in programs.items():
            times[name].append(quietly(lambda: rig.run([PYTHON, "-c", source])))  # noqa: B023 - run at once
    bare, plain, whole = times.values()
    made = section("Importing it, ms", times)
    for what, those in (("import holdfast, over bare Python", plain), ("the same with holdfast.tunnel", whole)):
        more = [1000 * (ours - theirs) for ours, theirs in zip(those, bare, strict=True)]
        made.goals.append(at_most(what, more, 40, "ms"))
    return made


def _tunnels(rig: Rig, holdfast: Holdfast, target: int) -> Section:
    given = [str(rig.sshd.config), str(target)]
    said = rig.run([PYTHON, "-c", _TUNNELS, *given, str(3 * ROUNDS)], environment=holdfast.directories)
    opened, closed = json.loads(said.stdout)
    keeper = holdfast.keeper()
    before = keeper.num_fds()
    seconds = float(rig.run([PYTHON, "-c", _LEASES, *given, str(LEASES)], environment=holdfast.directories).stdout)
    left = json.loads(holdfast.run("status", "--json").stdout)["tunnels"]
    made = section(
        "with holdfast.tunnel(...), over a connection that is there, ms", {"open": opened, "close": closed}
    )
    made.goals = [
        at_most("opening a tunnel", [1000 * value for value in opened], 20, "ms"),
        Goal(f"tunnels left by {LEASES} leases, 50 at a time", len(left), "", 0, False, ""),
        Goal("descriptors that the keeper has more, after them", keeper.num_fds() - before, "", 0, False, ""),
    ]
    made.remarks.append(f"{LEASES} leases opened and closed, 50 at a time, took {seconds:.1f} s.")
    return made


def _lazy(rig: Rig, holdfast: Holdfast, target: int) -> Section:
    login, visit = "ssh lab true", "GET through an idle lazy tunnel"
    times: Times = {login: [], visit: []}
    for _ in range(ROUNDS):
        port = holdfast.forward(target, "lab", "--lazy")
        times[visit].append(quietly(lambda: _get(port)))  # noqa: B023 - run at once
        holdfast.run("down", "lab")
        times[login].append(quietly(lambda: rig.run([*rig.ssh, "lab", "true"])))
    made = section("The first connection to a lazy tunnel, ms", times)
    more = [1000 * (ours - theirs) for ours, theirs in zip(times[visit], times[login], strict=True)]
    made.goals = [at_most("the first answer, more than a login takes", more, 50, "ms")]
    return made


def _get(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=20) as response:
        response.read()
