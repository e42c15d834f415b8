"""Programs run over a real master, in sessions of their own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from holdfast.errors import HoldfastError
from holdfast.openssh import script, session
from holdfast.openssh.control_socket import ControlSocket
from tests.sshd import Sshd, wait_for

MARK = "0123456789abcdef"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(sshd: Sshd, home: Path) -> Iterator[Start]:
    """Restarts sshd with some options, and starts a master with its control socket at home/ctl."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        sshd.stop()
        sshd.start(*options)
        log = ["-E", str(home / "log")]
        process = subprocess.Popen(["ssh", "-F", str(sshd.config), *log, "-MN", "-S", str(home / "ctl"), "lab"])
        processes.append(process)
        wait_for((home / "ctl").exists, "the control socket")
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(10)


@pytest.fixture
def master(start: Start) -> subprocess.Popen[bytes]:
    return start()


@pytest.fixture
def hold(home: Path) -> Iterator[Path]:
    """A file that what runs over there waits for to be gone (see until_freed): so nothing is left running."""
    made = home / "hold"
    made.touch()
    yield made
    made.unlink(missing_ok=True)


def until_freed(hold: Path) -> str:
    return f"while [ -e {hold} ]; do sleep 0.02; done"


def run(home: Path, program: str, seconds: float = 15) -> str:
    return asyncio.run(session.run(home / "ctl", program, "lab", seconds))


@contextlib.asynccontextmanager
async def streaming(home: Path, program: str, *, keep_input: bool = False) -> AsyncIterator[AsyncIterator[str]]:
    """What comes when the program is run; the stream is closed in the end."""
    wrapped = script.wrap(program, MARK, until_hung_up=keep_input)
    async with contextlib.aclosing(session.stream(home / "ctl", wrapped, "lab", keep_input=keep_input)) as made:
        yield made


async def until_it_says(stream: AsyncIterator[str], text: str) -> str:
    """Everything up to where `text` has come."""
    seen = ""
    async with asyncio.timeout(10):
        while text not in seen:
            seen += await anext(stream)
    return seen


def called(sshd: Sshd, name: str) -> list[int]:
    """The pids of the sessions' processes that are called so."""
    found = []
    for pid in sshd.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).name() == name:
                found.append(pid)
    return found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_what_a_program_prints_arrives_whole(master: object, home: Path) -> None:
    assert run(home, "echo one; echo; printf ' two'") == "one\n\n two"


def test_what_it_says_on_its_error_output_is_left_out(master: object, home: Path) -> None:
    assert run(home, "echo wrong >&2; echo right") == "right\n"


def test_a_long_program_and_a_long_answer_both_get_through(master: object, home: Path) -> None:
    filler = "# it's nothing but a comment\n" * (script.LONGEST_PROGRAM // 30)
    printed = run(home, f"{filler}head -c 4000000 /dev/zero | tr '\\0' x")
    assert printed == "x" * 4_000_000


def test_many_programs_at_once_over_one_master_are_kept_apart(master: object, home: Path) -> None:
    async def ask(number: int) -> str:
        return await session.run(home / "ctl", f"echo {number}", "lab", 15)

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(number) for number in range(8)))

    assert asyncio.run(ask_all()) == [f"{number}\n" for number in range(8)]


def test_a_session_leaves_no_process_and_no_descriptor(master: object, home: Path, sshd: Sshd) -> None:
    run(home, "true")
    before = descriptors()
    for _ in range(5):
        run(home, "echo here")
    assert descriptors() == before
    wait_for(lambda: not called(sshd, "sh"), "the shells to leave")


@pytest.mark.parametrize(
    ("octal", "text"),
    [("\\377\\376", "��"), ("caf\\351", "caf�"), ("caf\\303\\251", "café"), ("\\303", "�")],
)
def test_bytes_that_are_no_text_are_marked_and_the_rest_is_kept(
    master: object, home: Path, octal: str, text: str
) -> None:
    assert run(home, f"printf '{octal}'; echo after") == f"{text}after\n"


def test_a_character_that_comes_in_two_parts_is_one(master: object, home: Path, hold: Path) -> None:
    async def use() -> None:
        async with streaming(home, f"printf 'caf\\303'; {until_freed(hold)}; printf '\\251\\n'") as stream:
            seen = await until_it_says(stream, "caf")
            hold.unlink()
            seen += "".join([text async for text in stream])
            assert script.unwrap(seen, MARK, "lab") == "café\n"

    asyncio.run(use())


def test_output_comes_as_it_is_printed(master: object, home: Path, hold: Path) -> None:
    async def use() -> None:
        async with streaming(home, f"echo one; {until_freed(hold)}; echo two") as stream:
            assert "two" not in await until_it_says(stream, "one\n")
            hold.unlink()
            await until_it_says(stream, f"two\n\n{MARK} end\n")

    asyncio.run(use())


def test_no_session_at_all_is_told_with_what_to_ask_for(start: Start, home: Path) -> None:
    start("MaxSessions 0")
    with pytest.raises(script.NotRun, match=r"^lab lets no command be run$") as told:
        run(home, "echo hello")
    assert "MaxSessions" in told.value.hint


def test_with_one_session_the_second_is_refused_and_the_first_goes_on(start: Start, home: Path) -> None:
    start("MaxSessions 1")

    async def use() -> None:
        async with streaming(home, "echo first; cat", keep_input=True) as stream:
            await until_it_says(stream, "first\n")
            before = descriptors()
            with pytest.raises(script.NotRun, match="lab lets no command be run"):
                await session.run(home / "ctl", "echo second", "lab", 15)
            await until(lambda: descriptors() == before)

    asyncio.run(use())
    wait_for(lambda: answers(home), "the place of the first to be free")


def answers(home: Path) -> bool:
    try:
        return run(home, "echo third") == "third\n"
    except HoldfastError:
        return False


def test_a_refusal_leaves_the_master_as_it_was(start: Start, home: Path) -> None:
    master = start("MaxSessions 0")

    async def ask() -> int:
        control = await ControlSocket.connect(home / "ctl")
        try:
            return await control.alive()
        finally:
            control.close()

    with pytest.raises(HoldfastError):
        run(home, "echo hello")
    assert asyncio.run(ask()) == master.pid


@pytest.mark.parametrize("command", ["/bin/false", "echo You may only use git here", "cat"])
def test_a_forced_command_is_told_as_one(start: Start, home: Path, command: str) -> None:
    start(f"ForceCommand {command}")
    with pytest.raises(script.NotRun, match=r"^lab does not run what it is asked to: a forced command"):
        run(home, "echo hello")


def test_a_far_side_that_is_too_slow_is_given_up_in_time(master: object, home: Path, hold: Path) -> None:
    run(home, "true")
    before, began = descriptors(), time.monotonic()
    with pytest.raises(HoldfastError, match=r"^lab took longer than 0\.5 s to answer$"):
        run(home, f"echo here; {until_freed(hold)}", 0.5)
    assert time.monotonic() - began < 3
    assert descriptors() == before


def test_a_forced_command_that_never_ends_is_given_up_in_time(start: Start, home: Path, hold: Path) -> None:
    start(f"ForceCommand {until_freed(hold)}")
    with pytest.raises(HoldfastError, match="took longer than 1 s"):
        run(home, "echo here", 1)


def test_a_master_that_is_killed_meanwhile_is_told_at_once(
    master: subprocess.Popen[bytes], home: Path, hold: Path
) -> None:
    async def use() -> None:
        running = asyncio.create_task(
            session.run(home / "ctl", f"touch {home}/runs; {until_freed(hold)}", "lab", 60)
        )
        await until((home / "runs").exists)
        master.kill()
        async with asyncio.timeout(5):
            with pytest.raises(HoldfastError, match=r"^the connection to lab is gone: "):
                await running

    asyncio.run(use())


def test_a_connection_that_ends_before_anything_has_come_is_not_told_as_a_forced_command(
    master: subprocess.Popen[bytes], home: Path, hold: Path
) -> None:
    async def use() -> None:
        running = asyncio.create_task(session.run(home / "ctl", "echo hello", "lab", 60))
        await until((home / "runs").exists)
        master.kill()
        async with asyncio.timeout(5):
            with pytest.raises(HoldfastError, match=r"^the connection to lab is gone: ") as told:
                await running
        assert not isinstance(told.value, script.NotRun)

    (home / ".bashrc").write_text(f"touch {home}/runs; {until_freed(hold)}\n")  # it takes its time
    asyncio.run(use())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def test_no_master_and_a_dead_one_are_told_as_a_lost_connection(
    master: subprocess.Popen[bytes], home: Path
) -> None:
    master.kill()
    master.wait(10)
    with pytest.raises(HoldfastError, match=r"^the connection to lab is gone: "):
        run(home, "echo hello")
    (home / "ctl").unlink(missing_ok=True)
    with pytest.raises(HoldfastError, match=r"^the connection to lab is gone: "):
        run(home, "echo hello")


def test_a_master_that_is_stopped_is_told_as_one_that_does_not_answer(
    master: subprocess.Popen[bytes], home: Path
) -> None:
    master.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(HoldfastError, match=r"took longer than 1 s|no answer"):
            run(home, "echo hello", 1)
    finally:
        master.send_signal(signal.SIGCONT)


def test_an_answer_without_end_is_refused_and_what_prints_it_ends(master: object, home: Path, sshd: Sshd) -> None:
    with pytest.raises(HoldfastError, match=f"^lab printed more than {script.LONGEST_OUTPUT} bytes$"):
        run(home, "cat /dev/zero", 60)
    wait_for(lambda: not called(sshd, "cat"), "cat to end")


def test_with_its_input_kept_a_program_may_print_without_end(master: object, home: Path, sshd: Sshd) -> None:
    async def use() -> None:
        total = 0
        async with streaming(home, "cat /dev/zero", keep_input=True) as stream:
            while total <= script.LONGEST_OUTPUT:
                total += len(await anext(stream))

    asyncio.run(use())
    wait_for(lambda: not called(sshd, "cat"), "cat to end")


def test_a_run_that_is_called_off_leaves_no_descriptor_and_no_process(
    master: object, home: Path, sshd: Sshd
) -> None:
    run(home, "true")
    before = descriptors()

    async def use() -> None:
        running = asyncio.create_task(session.run(home / "ctl", f"touch {home}/runs; cat /dev/zero", "lab", 60))
        await until((home / "runs").exists)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(use())
    assert descriptors() == before
    wait_for(lambda: not called(sshd, "cat") + called(sshd, "sh"), "all of it to end")


def test_a_stream_whose_master_dies_between_two_of_its_lines_says_so(
    master: subprocess.Popen[bytes], home: Path, hold: Path
) -> None:
    async def use() -> None:
        async with streaming(home, f"echo one; {until_freed(hold)}", keep_input=True) as stream:
            await until_it_says(stream, "one\n")
            master.kill()
            async with asyncio.timeout(5):
                with pytest.raises(HoldfastError, match=r"^the connection to lab is gone: "):
                    await until_it_says(stream, "never")

    asyncio.run(use())


def test_a_connection_that_the_far_side_ends_is_told_as_a_lost_one(
    master: subprocess.Popen[bytes], home: Path, hold: Path, sshd: Sshd
) -> None:
    async def use() -> None:
        running = asyncio.create_task(
            session.run(home / "ctl", f"touch {home}/runs; {until_freed(hold)}", "lab", 60)
        )
        await until((home / "runs").exists)
        sshd.drop_connections()
        async with asyncio.timeout(5):
            with pytest.raises(HoldfastError, match=r"^the connection to lab is gone: |broke off") as told:
                await running
        assert not isinstance(told.value, script.NotRun)

    asyncio.run(use())


def test_a_far_side_whose_shell_alone_is_killed_has_broken_off_and_the_connection_is_kept(
    master: subprocess.Popen[bytes], home: Path
) -> None:
    with pytest.raises(HoldfastError, match=r"^what was run on lab broke off$"):
        run(home, "kill -9 $$")
    assert run(home, "echo again") == "again\n"


def test_a_program_with_its_input_kept_ends_when_the_stream_is_closed_and_only_then(
    master: object, home: Path, sshd: Sshd
) -> None:
    program = "sleep 1000 &\necho runs\ncat > /dev/null\nkill $!"

    async def use() -> None:
        async with streaming(home, program, keep_input=True) as stream:
            await until_it_says(stream, "runs\n")
            assert await session.run(home / "ctl", "echo another", "lab", 15) == "another\n"
            assert len(called(sshd, "sleep")) == len(called(sshd, "cat")) == 1

    asyncio.run(use())
    wait_for(lambda: not called(sshd, "sleep") + called(sshd, "cat") + called(sshd, "sh"), "all of it to end")
