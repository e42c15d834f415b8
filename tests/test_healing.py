"""It heals, whatever the network and the server do; and what a client, a person and the system see of that.

The outages run side by side, each in a network of its own, while clients go on calling; the tests look at what
was seen. So do the kills.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.network import Network, Plug, network, why_not
from tests.scene import GAP, Call, Callers, Outcome, Scene, scene, scene_of_its_own
from tests.sshd import free_port, wait_for

__all__ = ["network"]

# Seconds that a client may wait after the network is back. The benchmark has the exact figures.
HEALING = 6.0
# Seconds in which a silent cut must be seen, without anybody's asking.
NOTICING = 10.0
# Seconds that the port may take to be had back from the master, on a busy machine, once a loss is noticed.
TAKING_BACK = 1.0
# Descriptors for the program that keeps the connections which waited, once there were any.
KEPT = 1
# Outages at once.
SIDE_BY_SIDE = 5


class Trouble(NamedTuple):
    """Something that happens to a network for some seconds, and what is to be expected of it."""

    strike: Callable[[Scene], object]
    mend: Callable[[Scene], object] = lambda _: None
    seconds: float = 0.0
    # Whether TCP brings an established connection back.
    conversation_lives: bool = False
    # Whether the link is lost for long enough to be called stalled or waiting.
    is_seen: bool = True
    jump: bool = False
    # Seconds until it is healed, once it is over.
    healing: float = HEALING


def _stop_jump_host(struck: Scene) -> None:
    assert struck.network.jump is not None
    struck.network.jump.stop()


def _start_jump_host(struck: Scene) -> None:
    assert struck.network.jump is not None
    struck.network.jump.start()


def _cut(plug: Plug, seconds: float, *, lives: bool = False) -> Trouble:
    return Trouble(
        lambda struck: struck.network.cut(plug),
        lambda struck: struck.network.mend(),
        seconds,
        conversation_lives=lives,
    )


def _drop(seconds: float, *, lives: bool = False, **ways: bool) -> Trouble:
    return Trouble(
        lambda struck: struck.network.drop(**ways),
        lambda struck: struck.network.pass_again(),
        seconds,
        conversation_lives=lives,
    )


TROUBLES = {
    "cable cut for 30 s": _cut(Plug.ROUTER, 30),
    "interface off for 30 s": _cut(Plug.CLIENT, 30),
    "silence for 30 s": _drop(30),
    "silence to the server for 30 s": _drop(30, to_server=True),
    "silence to the client for 30 s": _drop(30, to_client=True),
    "server frozen for 15 s": Trouble(
        lambda struck: struck.network.freeze(),
        lambda struck: struck.network.thaw(),
        15,
        conversation_lives=True,
    ),
    # Who refuses is asked less and less often, and nothing here tells that it is back.
    "jump host dead for 8 s": Trouble(_stop_jump_host, _start_jump_host, 8, jump=True, healing=12),
    "cable cut for 3 s": _cut(Plug.ROUTER, 3, lives=True),
    # After a longer one TCP's next try comes later than the dead-man's switch.
    "silence for 5 s": _drop(5, lives=True),
    "address replaced": Trouble(lambda struck: struck.network.change_address()),
    "sessions killed": Trouble(lambda struck: struck.network.kill_sessions(), is_seen=False),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one outage. Times are on the monotonic clock; None for what never happened."""

    calls: tuple[Call, ...]
    struck_at: float
    noticed_at: float | None
    mended_at: float
    first_answer_at: float | None
    during: dict[str, Any] | None
    after: dict[str, Any]
    conversation_went_on: bool
    descriptors: tuple[int, int]
    logs: str
    keeper_log: str
    left_over: str = ""

    def calls_of_the_outage(self) -> list[Call]:
        """Those begun when it was known, and before it was over."""
        noticed = self.noticed_at if self.noticed_at is not None else self.mended_at
        return [call for call in self.calls if noticed + TAKING_BACK < call.began < self.mended_at]


def suffer(trouble: Trouble, keys: Path, environment: Mapping[str, str]) -> Seen:
    """Lets it happen, and looks."""
    seen: list[Seen] = []
    try:
        with scene_of_its_own(keys, environment, jump=trouble.jump) as struck:
            seen.append(_look_at(struck, trouble))
    except AssertionError as error:
        if not seen:
            raise
        return replace(seen[0], left_over=str(error))
    return seen[0]


def _look_at(struck: Scene, trouble: Trouble) -> Seen:
    conversation = struck.converse()
    before = struck.descriptors()
    start = len(struck.keeper_log())
    during = None
    with contextlib.closing(conversation), Callers(struck.network, struck.port) as callers:
        wait_for(lambda: callers.that(Outcome.ANSWERED), "the first call to be answered")
        struck_at = time.monotonic()
        trouble.strike(struck)
        noticed_at = _notice(struck, start, min(NOTICING + 2, trouble.seconds or 5))
        if trouble.seconds > 5:
            during = struck.status()
        _sit_out(struck_at + trouble.seconds)
        trouble.mend(struck)
        mended_at = time.monotonic()
        with contextlib.suppress(AssertionError):
            wait_for(lambda: callers.that(Outcome.ANSWERED, since=mended_at), "an answer", 30)
        after = struck.wait_for_state("up")
        went_on = conversation.goes_on()
    with contextlib.suppress(AssertionError):
        wait_for(lambda: struck.descriptors() <= before + KEPT, "the keeper to close what it opened", 30)
    return Seen(
        calls=tuple(callers.calls),
        struck_at=struck_at,
        noticed_at=noticed_at,
        mended_at=mended_at,
        first_answer_at=callers.first_answer(mended_at),
        during=during,
        after=after,
        conversation_went_on=went_on,
        descriptors=(before, struck.descriptors()),
        logs=struck.holdfast("logs", "lab"),
        keeper_log=struck.keeper_log(),
    )


def _notice(struck: Scene, start: int, seconds: float) -> float | None:
    """When the keeper's log said that the link was not up any more. Nobody asks the keeper."""
    with contextlib.suppress(AssertionError):
        struck.wait_for_note("lab: up -> ", seconds, start)
        return time.monotonic()
    return None


def _sit_out(until: float) -> None:
    """The outage is to last that long: there is nothing to wait for."""
    time.sleep(max(0.0, until - time.monotonic()))


@pytest.fixture(scope="module")
def shared_environment() -> Mapping[str, str]:
    """What the environments of all users have; skips where they can have no networks."""
    if reason := why_not():
        pytest.skip(reason)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "USER") if name in os.environ}
    return {**kept, "PYTHONWARNINGS": "error"}


@pytest.fixture(scope="module")
def outages(keys: Path, shared_environment: Mapping[str, str]) -> Mapping[str, Seen]:
    """What was seen of each of TROUBLES."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        running = {
            name: pool.submit(suffer, trouble, keys, shared_environment) for name, trouble in TROUBLES.items()
        }
        return {name: future.result() for name, future in running.items()}


@pytest.fixture(params=TROUBLES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trouble(name: str) -> Trouble:
    return TROUBLES[name]


@pytest.fixture
def seen(name: str, outages: Mapping[str, Seen]) -> Seen:
    print(outages[name].keeper_log)  # shown when the test fails
    return outages[name]


@pytest.mark.timeout(300)  # the first one waits for all the outages
def test_no_client_is_refused_but_perhaps_one_in_the_instant_of_a_hand_over(seen: Seen) -> None:
    refused = [call for call in seen.calls if call.outcome is Outcome.REFUSED]
    assert len([call for call in refused if call.began > seen.struck_at + GAP]) <= 1


def test_it_is_noticed_within_ten_seconds_without_anybodys_asking(seen: Seen, trouble: Trouble) -> None:
    if not trouble.is_seen and seen.noticed_at is None:
        return
    limit = min(NOTICING, trouble.seconds) if trouble.seconds > 5 else NOTICING
    if trouble.seconds > 5 or trouble.seconds == 0:
        assert seen.noticed_at is not None
    if seen.noticed_at is not None:
        assert seen.noticed_at - seen.struck_at < limit


def test_status_says_so_while_it_lasts_and_why(seen: Seen) -> None:
    if seen.during is None:
        pytest.skip("it is over too soon")
    assert seen.during["state"] in ("stalled", "waiting", "connecting")
    assert seen.during["reason"]
    assert seen.during["forwards"][0]["state"] == seen.during["state"]


def test_whoever_calls_during_the_outage_is_answered_after_it(seen: Seen, trouble: Trouble) -> None:
    waiting = seen.calls_of_the_outage()
    if trouble.seconds > 5:
        assert waiting
    assert [call for call in waiting if call.outcome is not Outcome.ANSWERED] == []


def test_it_is_healed_soon_after_the_network_is_back(seen: Seen, trouble: Trouble) -> None:
    assert seen.first_answer_at is not None
    assert seen.first_answer_at - seen.mended_at < trouble.healing
    assert seen.after["state"] == "up"


def test_whoever_calls_after_it_is_answered(seen: Seen) -> None:
    assert seen.first_answer_at is not None
    later = [call for call in seen.calls if call.began > seen.first_answer_at + 1]
    assert [call for call in later if call.outcome is not Outcome.ANSWERED] == []


def test_an_established_connection_lives_on_where_it_can(seen: Seen, trouble: Trouble) -> None:
    assert seen.conversation_went_on == trouble.conversation_lives


def test_the_keeper_has_no_more_files_open_than_before(seen: Seen) -> None:
    before, after = seen.descriptors
    assert after <= before + KEPT


def test_nothing_is_left_when_it_is_taken_down(seen: Seen) -> None:
    assert seen.left_over == ""


def test_the_log_tells_of_the_outage(seen: Seen) -> None:
    if seen.noticed_at is not None:
        assert "up again after" in seen.logs


# --- what only a person can mend, and what is worse than before --------------------------------


@pytest.fixture
def healed(network: Network) -> Iterator[Scene]:
    """A tunnel that is up, in the test's own network."""
    with scene(network) as made:
        yield made


def test_another_host_key_stops_it_loudly(healed: Scene, keys: Path) -> None:
    healed.network.restart_sshd(host_key=keys / "other_host")
    status = healed.wait_for_state("failed", 60)
    assert "key" in status["reason"]
    assert status["hint"]
    shown = healed.network.holdfast("status", "lab")
    assert shown.returncode == 3
    assert "failed" in shown.stdout
    with healed.network.connect(healed.port):  # its port is still held, so nobody else gets it
        pass


def test_a_server_that_allows_no_sessions_any_more_still_forwards(healed: Scene) -> None:
    healed.network.restart_sshd("MaxSessions 0")
    status = healed.wait_for_state("up", 30)
    assert status["switch_seconds"] is None
    healed.wait_for_answer()


def test_a_server_that_forbids_forwards_any_more_is_told_from_a_dead_link(healed: Scene) -> None:
    healed.network.restart_sshd("AllowTcpForwarding no")
    status = healed.wait_for_state("refused", 30)
    assert "forbids" in status["reason"]
    healed.network.restart_sshd()
    healed.wait_for_state("up", 30)
    healed.wait_for_answer()


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """The state directory, on a disk of its own of 256 KiB."""
    if reason := why_not():
        pytest.skip(reason)
    state = home / "state"
    state.mkdir(0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(state)], check=True, capture_output=True
    )
    yield state
    subprocess.run(["umount", "--lazy", str(state)], check=True, capture_output=True)


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    return filler


def test_a_full_disk_keeps_nothing_from_healing(small_disk: Path, network: Network) -> None:
    with scene(network) as struck:
        filler = fill(small_disk)
        network.cut()
        wait_for(lambda: struck.status()["state"] == "stalled", "the cut to be seen")
        with Callers(network, struck.port) as callers:
            network.mend()
            struck.wait_for_state("up")
            wait_for(lambda: callers.that(Outcome.ANSWERED), "an answer")
        assert callers.that(Outcome.REFUSED, Outcome.BROKEN) == []
        network.kill_sessions()
        struck.wait_for_state("up")
        struck.wait_for_answer()
        filler.unlink()


# --- a port over there ------------------------------------------------------------------------


def listens(at: Network, port: int) -> bool:
    """Whether something listens on that port of the server."""
    return bool(at.server.call(lambda: _listeners(port)))


def _listeners(port: int) -> list[str]:
    asked = subprocess.run(["ss", "-Hltn", f"sport = :{port}"], capture_output=True, text=True, check=True)
    return asked.stdout.splitlines()


def test_a_port_over_there_is_free_15_s_after_a_silent_cut_and_back_after_it(network: Network) -> None:
    far = free_port()
    with scene(network, "-R", f"{far}:localhost:9") as struck:
        wait_for(lambda: listens(network, far), "the port over there")
        network.drop()
        wait_for(lambda: not listens(network, far), "the port over there to be free", 15 + 1)
        network.pass_again()
        wait_for(lambda: listens(network, far), "the port over there to be back", 15)
        struck.wait_for_state("up")


def freeze_sessions(at: Network) -> list[int]:
    """Stops whoever serves the connections that are there; sshd takes new ones."""
    frozen = at.sshd.descendants()
    send(signal.SIGSTOP, frozen)
    return frozen


def send(what: signal.Signals, pids: Sequence[int]) -> None:
    """Sends a signal to those of them that are still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)


def test_a_port_that_a_dead_connection_still_has_over_there_is_tried_again(network: Network) -> None:
    far = free_port()
    with scene(network, "-R", f"{far}:localhost:9") as struck:
        frozen = freeze_sessions(network)
        status = struck.wait_for_state("refused", 30)
        assert "may still have it" in status["hint"]
        send(signal.SIGKILL, frozen)
        struck.wait_for_state("up", 15)
        assert listens(network, far)


# --- kill -9, in every state ------------------------------------------------------------------


def _into_up(struck: Scene) -> None:
    struck.wait_for_state("up")


def _into_stalled(struck: Scene) -> None:
    struck.network.drop()
    struck.wait_for_note("-> stalled, another")


def _into_stalled_waiting(struck: Scene) -> None:
    struck.network.cut()
    struck.wait_for_note("-> stalled, until the next try")


def _into_connecting(struck: Scene) -> None:
    struck.network.freeze()
    start = len(struck.keeper_log())
    send(signal.SIGKILL, struck.network.sshd.descendants())
    struck.wait_for_note("-> connecting", after=start)
    wait_for(struck.masters, "the login to begin")


def _into_waiting(struck: Scene) -> None:
    struck.network.sshd.stop()
    struck.wait_for_note("connecting -> waiting")


def _into_draining(struck: Scene) -> None:
    freeze_sessions(struck.network)
    struck.wait_for_note("stalled, another master is being tried beside it -> up", 30)


def _start_sshd(struck: Scene) -> None:
    struck.network.sshd.start()


def _thaw_all(struck: Scene) -> None:
    send(signal.SIGCONT, struck.network.sshd.descendants())


INTO_AND_OUT_OF: dict[str, tuple[Callable[[Scene], None], Callable[[Scene], object]]] = {
    "up": (_into_up, lambda _: None),
    "stalled": (_into_stalled, lambda struck: struck.network.pass_again()),
    "stalled, waiting": (_into_stalled_waiting, lambda struck: struck.network.mend()),
    "connecting": (_into_connecting, lambda struck: struck.network.thaw()),
    "waiting": (_into_waiting, _start_sshd),
    "draining": (_into_draining, _thaw_all),
}


WHO = ("keeper", "masters")


def get_over_a_kill(state: str, who: str, keys: Path, environment: Mapping[str, str]) -> None:
    """Kills them in that state. Raises AssertionError where a tunnel doesn't come through that."""
    into, out_of = INTO_AND_OUT_OF[state]
    with scene_of_its_own(keys, environment) as healed:
        with contextlib.closing(healed.converse()):  # what an old master has to drain
            into(healed)
            killed = healed.keepers() if who == "keeper" else healed.masters()
            send(signal.SIGKILL, killed)
            wait_for(lambda: not any(map(psutil.pid_exists, killed)), "them to be gone", 5)
            healed.status()  # the next command starts a keeper
            out_of(healed)
            healed.wait_for_state("up", 45)
            healed.wait_for_answer()
        wait_for(lambda: len(healed.masters()) == 1, "one master to be left", 30)


@pytest.fixture(scope="module")
def kills(keys: Path, shared_environment: Mapping[str, str]) -> Mapping[tuple[str, str], Future[None]]:
    """What became of each kill, all of them being over."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        running = {
            (state, who): pool.submit(get_over_a_kill, state, who, keys, shared_environment)
            for state in INTO_AND_OUT_OF
            for who in WHO
        }
        wait(running.values())
        return running


@pytest.mark.timeout(300)  # the first one waits for all the kills
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("state", INTO_AND_OUT_OF)
def test_a_kill_9_in_any_state_is_got_over(
    kills: Mapping[tuple[str, str], Future[None]], state: str, who: str
) -> None:
    kills[state, who].result()


def test_a_keeper_that_was_stopped_for_ten_seconds_costs_nothing(healed: Scene) -> None:
    before = healed.status()
    with contextlib.closing(healed.converse()) as conversation:
        (keeper,) = healed.keepers()
        os.kill(keeper, signal.SIGSTOP)
        _sit_out(time.monotonic() + 10)
        os.kill(keeper, signal.SIGCONT)
        after = healed.wait_for_state("up")
        assert conversation.goes_on()
    assert (after["master_pid"], after["drops"]) == (before["master_pid"], before["drops"])


# --- sleep ------------------------------------------------------------------------------------

# A keeper whose clock of elapsed time is ahead by the seconds in a file.
_SLEEPER = """
import functools, pathlib, sys, time
from holdfast.keeper import links, watch
slept = pathlib.Path(sys.argv.pop(1))
clocks = watch.Clocks(lambda: watch.elapsed() + float(slept.read_text()), time.monotonic)
links.watch = functools.partial(links.watch, clocks=clocks)
from holdfast.keeper.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_after_a_wake_the_far_side_is_asked_at_once(network: Network, home: Path) -> None:
    slept = home / "slept"
    slept.write_text("0")
    network.popen(sys.executable, "-c", _SLEEPER, str(slept), "--stay")
    wait_for((home / "run" / "keeper.sock").exists, "the keeper")
    with scene(network) as struck:
        struck.status()  # asks the far side: by itself, the keeper does so 5 s later
        network.drop()
        slept.write_text("3600")
        struck.wait_for_note("lab: up -> stalled", 4)
        network.pass_again()
        struck.wait_for_state("up")
        assert "after the machine woke up" in struck.holdfast("logs", "lab")
