"""Heartbeats through real masters and real accounts of every kind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from holdfast.errors import MasterError
from holdfast.openssh import heartbeat
from holdfast.openssh.control_socket import ControlSocket
from holdfast.openssh.heartbeat import ForwardHeartbeat, Heartbeat, HeartbeatEnded, SessionHeartbeat
from tests.sshd import Sshd, wait_for

Use = Callable[[Callable[[Heartbeat], Awaitable[None]]], None]


@pytest.fixture
def start(sshd: Sshd, home: Path) -> Iterator[Callable[..., Use]]:
    """Restarts sshd with some options and gives a function that runs another with a heartbeat through it."""
    processes: list[subprocess.Popen[bytes]] = []

    def prepare(*options: str) -> Use:
        sshd.stop()
        sshd.start(*options)
        process = subprocess.Popen(["ssh", "-F", str(sshd.config), "-MN", "-S", str(home / "ctl"), "lab"])
        processes.append(process)
        wait_for((home / "ctl").exists, "the control socket")

        async def run(use: Callable[[Heartbeat], Awaitable[None]]) -> None:
            control = await ControlSocket.connect(home / "ctl")
            found, round_trip = await heartbeat.start(control, home / "ctl", 5)
            assert 0 < round_trip < 5
            try:
                await use(found)
            finally:
                found.close()
                control.close()

        return lambda use: asyncio.run(run(use))

    yield prepare
    for process in processes:
        process.kill()
        process.wait(10)


def cats(sshd: Sshd) -> list[int]:
    return [pid for pid in sshd.descendants() if psutil.Process(pid).name() == "cat"]


async def until_the_session_answers(found: Heartbeat) -> None:
    assert isinstance(found, SessionHeartbeat)
    while not found._echo.last:
        await asyncio.sleep(0.01)


def test_a_session_is_used_where_there_is_one_and_leaves_no_process(start: Callable[..., Use], sshd: Sshd) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        assert found.fast_path
        assert found.pace == heartbeat.PACE
        for _ in range(100):
            await found.beat(5)
        assert len(cats(sshd)) == 1

    start()(use)
    wait_for(lambda: not cats(sshd), "cat to leave")


@pytest.mark.parametrize("option", ["MaxSessions 0", "ForceCommand /bin/false", "ForceCommand sleep 60"])
def test_an_account_without_a_shell_is_proven_by_forwards(
    start: Callable[..., Use], option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(found: Heartbeat) -> None:
        assert isinstance(found, ForwardHeartbeat) == (option == "MaxSessions 0")
        assert found.fast_path != (option == "MaxSessions 0")
        monkeypatch.setattr(heartbeat, "SLOWEST_SHELL", 0)
        assert found.pace == heartbeat.PACE_OF_FORWARDS
        for _ in range(20):
            await found.beat(5)

    start(option)(use)


@pytest.mark.parametrize("option", ["AllowTcpForwarding no", "DisableForwarding yes"])
def test_a_refusal_to_forward_is_a_sign_of_life_too(start: Callable[..., Use], option: str) -> None:
    async def use(found: Heartbeat) -> None:
        await found.beat(5)

    start("MaxSessions 0", option)(use)


def test_forward_heartbeats_leave_no_listener_and_no_line_in_the_servers_log(
    start: Callable[..., Use], sshd: Sshd
) -> None:
    async def use(found: Heartbeat) -> None:
        before = sshd.log.read_text()
        for _ in range(50):
            await found.beat(5)
        assert sshd.log.read_text() == before
        serving = [psutil.Process(pid) for pid in sshd.descendants()]
        assert not [end for process in serving for end in process.net_connections() if end.status == "LISTEN"]

    start("MaxSessions 0", "LogLevel INFO")(use)


def test_output_of_login_files_is_passed_over(start: Callable[..., Use]) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        await found.beat(5)

    start("ForceCommand head -c 300000 /dev/zero; printf '\\nholdfast x\\nno newline: '; echo; exec cat")(use)


def test_a_session_that_is_killed_over_there_is_told_as_ended(start: Callable[..., Use], sshd: Sshd) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        for pid in cats(sshd):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(HeartbeatEnded):
            await found.beat(5)

    start()(use)


def test_a_frozen_server_is_late_and_answers_again_when_it_thaws(start: Callable[..., Use], sshd: Sshd) -> None:
    async def use(found: Heartbeat) -> None:
        await until_the_session_answers(found)
        frozen = sshd.descendants()
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(MasterError, match=r"no heartbeat came back within 0\.2 s"):
                await found.beat(0.2)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        await found.beat(5)

    start()(use)
