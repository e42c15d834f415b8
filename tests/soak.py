"""Random faults for as long as you like, several tunnels, clients that never stop calling: `make soak`.

The faults follow from a seed, which is printed. After each: nobody was refused (but one in a thousand, in the
instant of a hand-over), everything healed in time, nothing piles up. `python -m tests.soak --seconds 60 --seed 7`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.network import Network, Plug
from tests.scene import CROWD, GAP, Call, Callers, Outcome, Scene, scene
from tests.sshd import free_port, make_key, wait_for

# Besides `lab`, each with a connection of its own.
OTHERS = ("second", "third")
# Seconds from the network's being back until every tunnel answers and says that it is up.
HEALING = 10.0
# Masters that a link may have, once it has been well for SETTLING seconds.
MASTERS, SETTLING = 2, 60.0
# Descriptors that the keeper may have besides those it began with: a master that drains has a few.
DESCRIPTORS = 12
# The longest that a fault lasts, and the longest peace between two of them, in seconds.
LONGEST_FAULT, LONGEST_PEACE = 20.0, 6.0


class Fault(NamedTuple):
    """`mend` ends what `strike` began."""

    strike: Callable[[Scene], object]
    mend: Callable[[Scene], object] = lambda _: None
    lasts: bool = True
    ends_masters: bool = False


def _kill_a_master(struck: Scene) -> None:
    os.kill(struck.masters()[-1], signal.SIGKILL)


def _replace_keeper(struck: Scene) -> None:
    """While nothing else is the matter: without a keeper nobody holds the ports of a master that is gone."""
    for pid in struck.keepers():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not struck.keepers(), "the keeper to be gone", 5)
    struck.status()


def _dropping(**ways: bool) -> Fault:
    return Fault(lambda struck: struck.network.drop(**ways), lambda struck: struck.network.pass_again())


def _cutting(plug: Plug) -> Fault:
    return Fault(lambda struck: struck.network.cut(plug), lambda struck: struck.network.mend())


FAULTS = {
    "the cable is cut": _cutting(Plug.ROUTER),
    "the interface is off": _cutting(Plug.CLIENT),
    "silence": _dropping(),
    "silence to the server": _dropping(to_server=True),
    "silence to the client": _dropping(to_client=True),
    "the server is frozen": Fault(lambda struck: struck.network.freeze(), lambda struck: struck.network.thaw()),
    "another address": Fault(lambda struck: struck.network.change_address(), lasts=False),
    "sessions killed": Fault(lambda struck: struck.network.kill_sessions(), lasts=False, ends_masters=True),
    "sshd restarted": Fault(lambda struck: struck.network.restart_sshd(), lasts=False, ends_masters=True),
    "a master killed": Fault(_kill_a_master, lasts=False, ends_masters=True),
    "the keeper killed and started again": Fault(_replace_keeper, lasts=False),
}


@dataclass(slots=True)
class Soak:
    """One run over one network. Raises AssertionError, with the seed and what had happened as notes."""

    struck: Scene
    ports: Sequence[int]
    seed: int
    tell: Callable[[str], object]
    happened: list[str] = field(default_factory=list)
    faults: int = 0
    slowest: float = 0.0
    # The calls that may have been refused.
    excused: list[Call] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        chance = random.Random(self.seed)
        until = time.monotonic() + seconds
        self.tell(f"seed {self.seed}, {seconds:.0f} s")
        descriptors = self.struck.descriptors()
        try:
            with Callers(self.struck.network, *self.ports) as callers:
                while time.monotonic() < until:
                    self._suffer_one(chance, callers)
                    self._check_calls(callers)
                    self._check_descriptors(descriptors)
            self._check_masters()
        except BaseException as error:
            error.add_note(f"seed {self.seed}; " + "; ".join(self.happened[-5:]))
            error.add_note(self.struck.keeper_log()[-6000:])
            raise
        self.tell(
            f"{self.faults} faults, {self.slowest:.2f} s to heal at the most; {len(callers.calls)} calls, "
            f"{len(self.excused)} refused in the moment of a master's end, "
            f"{callers.detours} at one of localhost's two addresses only"
        )

    def _suffer_one(self, chance: random.Random, callers: Callers) -> None:
        name = chance.choice(list(FAULTS))
        fault = FAULTS[name]
        lasting = chance.uniform(0.2, LONGEST_FAULT) if fault.lasts else 0.0
        peace = chance.uniform(0.0, LONGEST_PEACE)
        self.happened.append(f"{name} for {lasting:.1f} s" if lasting else name)
        struck_at = time.monotonic()
        fault.strike(self.struck)
        struck_by = time.monotonic() + GAP
        time.sleep(lasting)
        fault.mend(self.struck)
        took = self._heal(callers)
        if fault.ends_masters:
            self.excused += callers.that(Outcome.REFUSED, since=struck_at, before=struck_by)
        self.faults += 1
        self.slowest = max(self.slowest, took)
        self.tell(f"{self.happened[-1]}: {took:.2f} s to heal")
        time.sleep(peace)

    def _heal(self, callers: Callers) -> float:
        """Seconds until a call begun from now on has been answered by each tunnel, and each says that it is up."""
        mended = time.monotonic()

        def answered() -> bool:
            return {call.port for call in callers.that(Outcome.ANSWERED, since=mended)} == set(self.ports)

        wait_for(answered, "every tunnel to answer", HEALING)
        took = time.monotonic() - mended
        wait_for(self._all_up, "every tunnel to be up", HEALING)
        return took

    def _all_up(self) -> bool:
        return self.struck.network.holdfast("status").returncode == 0

    def _check_calls(self, callers: Callers) -> None:
        refused = [call for call in callers.that(Outcome.REFUSED) if call not in self.excused]
        assert len(refused) <= 1 + len(callers.calls) / 1000, (
            f"{len(refused)} of {len(callers.calls)} calls were refused: {refused[:3]}"
        )

    def _check_descriptors(self, before: int) -> None:
        most = before + DESCRIPTORS * len(self.ports)
        wait_for(lambda: self.struck.descriptors() <= most, f"the keeper to have {most} files open or fewer", 30)

    def _check_masters(self) -> None:
        most = MASTERS * len(self.ports)
        wait_for(lambda: len(self.struck.masters()) <= most, f"{most} masters or fewer", SETTLING)


@contextlib.contextmanager
def several_tunnels(network: Network) -> Iterator[tuple[Scene, list[int]]]:
    """A scene with a tunnel to each of OTHERS as well, and the ports of the web service."""
    config = network.config.read_text()
    network.config.write_text(config.replace("Host lab\n", f"Host lab {' '.join(OTHERS)}\n", 1))
    web = network.serve_web()
    web.socket.listen(CROWD)
    with scene(network) as struck:
        ports = [struck.port]
        for name in OTHERS:
            port = free_port()
            up = network.holdfast("up", "-F", str(network.config), name, f"{port}:{web.port}")
            assert up.returncode == 0, up.stderr
            ports.append(port)
        yield struck, ports


def soak(network: Network, seconds: float, seed: int, tell: Callable[[str], object] = print) -> Soak:
    """Runs it on a network, which must be new. Raises AssertionError."""
    with several_tunnels(network) as (struck, ports):
        made = Soak(struck, ports, seed, tell)
        made.run(seconds)
    return made


def main() -> None:
    words = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    words.add_argument("--seconds", type=float, default=600)
    words.add_argument("--seed", type=int, default=random.randrange(10**6))
    chosen = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="hf") as home, tempfile.TemporaryDirectory(prefix="hfk") as keys:
        for name in ("host", "user"):
            make_key(Path(keys) / name)
        with Network(Path(home), Path(keys), _environment(Path(home))) as network:
            soak(network, chosen.seconds, chosen.seed)


def _environment(home: Path) -> Mapping[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "USER") if name in os.environ}
    own = {"HOLDFAST_RUNTIME_DIR": str(home / "run"), "HOLDFAST_STATE_DIR": str(home / "state")}
    return {**kept, **own, "PYTHONWARNINGS": "error"}


if __name__ == "__main__":
    main()
