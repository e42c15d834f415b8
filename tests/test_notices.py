"""Notices, shown by a notification service of the tests' own on a private bus."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest

from holdfast.keeper import notices
from holdfast.keeper.notices import LONGEST_MESSAGE, Notices, why_not

pytest.importorskip("dbus_fast")

from dbus_fast import Variant
from dbus_fast.aio import MessageBus
from dbus_fast.annotations import DBusInt32, DBusSignature, DBusStr, DBusUInt32
from dbus_fast.service import ServiceInterface, dbus_method

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="needs dbus-daemon")

# No directory with services: whatever the machine has installed isn't started by a test.
BUS = """<busconfig>
  <type>session</type>
  <listen>unix:path={socket}</listen>
  <policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy>
</busconfig>
"""


class Bus:
    """A running dbus-daemon, and the environment of a session that has it."""

    def __init__(self, home: Path) -> None:
        socket, config = home / "bus", home / "bus.conf"
        config.write_text(BUS.format(socket=socket))
        self.process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--print-address", "--nofork"], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().decode().strip()
        self.environment = {"DBUS_SESSION_BUS_ADDRESS": self.address, "DISPLAY": ":0"}

    def end(self) -> None:
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def bus(home: Path) -> Iterator[Bus]:
    running = Bus(home)
    yield running
    running.end()


@dataclass
class Shown:
    """A notice as it arrived."""

    app: str
    replaces: int
    title: str
    body: str
    urgency: int
    stays: int


@dataclass
class Desktop:
    """What the notification service has been given, and how it behaves."""

    shown: list[Shown] = field(default_factory=list)
    capabilities: tuple[str, ...] = ("body", "body-markup")
    answers: asyncio.Event = field(default_factory=asyncio.Event)


class Service(ServiceInterface):
    """org.freedesktop.Notifications. It numbers notices from 7, so that no number is right by accident."""

    def __init__(self, desktop: Desktop) -> None:
        super().__init__("org.freedesktop.Notifications")
        self.desktop = desktop

    @dbus_method()
    def GetCapabilities(self) -> Annotated[list[str], DBusSignature("as")]:  # noqa: N802 - its name on the bus
        return list(self.desktop.capabilities)

    @dbus_method()
    async def Notify(  # noqa: N802 - its name on the bus
        self,
        app: DBusStr,
        replaces: DBusUInt32,
        icon: DBusStr,
        title: DBusStr,
        body: DBusStr,
        buttons: Annotated[list[str], DBusSignature("as")],
        hints: Annotated[dict[str, Variant], DBusSignature("a{sv}")],
        stays: DBusInt32,
    ) -> DBusUInt32:
        await self.desktop.answers.wait()
        self.desktop.shown.append(Shown(app, replaces, title, body, hints["urgency"].value, stays))
        return replaces or 6 + len(self.desktop.shown)


@contextlib.asynccontextmanager
async def running_desktop(bus: Bus) -> AsyncIterator[Desktop]:
    """A desktop that shows notices on `bus`."""
    desktop = Desktop()
    desktop.answers.set()
    connection = await MessageBus(bus_address=bus.address).connect()
    connection.export("/org/freedesktop/Notifications", Service(desktop))
    await connection.request_name("org.freedesktop.Notifications")
    try:
        yield desktop
    finally:
        connection.disconnect()
        with contextlib.suppress(Exception):
            await connection.wait_for_disconnect()  # type: ignore[no-untyped-call]


def fail_on_note(reason: str) -> None:
    pytest.fail(reason)


def open_sockets() -> list[str]:
    """The sockets that this process has open."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.append(str(path.readlink()))
    return [name for name in found if name.startswith("socket:")]


def test_a_notice_arrives_as_it_was_told(bus: Bus) -> None:
    async def show() -> list[Shown]:
        async with running_desktop(bus) as desktop:
            await Notices(fail_on_note).tell("lab is down", "the network is gone", bus.environment)
            return desktop.shown

    assert asyncio.run(show()) == [Shown("holdfast", 0, "lab is down", "the network is gone", urgency=1, stays=-1)]


def test_a_notice_takes_the_place_of_the_last_one_with_its_key_only(bus: Bus) -> None:
    async def show() -> list[tuple[str, int]]:
        async with running_desktop(bus) as desktop:
            told = Notices(fail_on_note)
            for title, key in [("a", "lab"), ("b", "big"), ("c", ""), ("d", "lab"), ("e", ""), ("f", "big")]:
                await told.tell(title, "", bus.environment, replaces=key)
            return [(shown.title, shown.replaces) for shown in desktop.shown]

    assert asyncio.run(show()) == [("a", 0), ("b", 0), ("c", 0), ("d", 7), ("e", 0), ("f", 8)]


def test_a_return_replaces_its_loss_though_the_loss_is_still_being_shown(bus: Bus) -> None:
    async def show() -> list[tuple[str, int]]:
        async with running_desktop(bus) as desktop, asyncio.TaskGroup() as tasks:
            told = Notices(fail_on_note)
            desktop.answers.clear()
            both = [
                tasks.create_task(told.tell(title, "", bus.environment, replaces="lab"))
                for title in ("loss", "return")
            ]
            await asyncio.sleep(0)
            desktop.answers.set()
            await asyncio.wait(both)
            return [(shown.title, shown.replaces) for shown in desktop.shown]

    assert asyncio.run(show()) == [("loss", 0), ("return", 7)]


HOSTILE = "<a href='http://evil'>lab</a> & co\x1b[2J\0\u202etxt\udc80\nnext line"
AS_TEXT = "<a href='http://evil'>lab</a> & co [2J  txt \nnext line"


@pytest.mark.parametrize(
    ("capabilities", "body"),
    [
        (("body", "body-markup"), AS_TEXT.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")),
        (("body",), AS_TEXT),
    ],
    ids=["a desktop that knows markup", "a desktop that doesn't"],
)
def test_what_a_server_says_is_shown_as_text(bus: Bus, capabilities: tuple[str, ...], body: str) -> None:
    async def show() -> Shown:
        async with running_desktop(bus) as desktop:
            desktop.capabilities = capabilities
            await Notices(fail_on_note).tell(HOSTILE, HOSTILE, bus.environment)
            return desktop.shown[0]

    shown = asyncio.run(show())
    assert shown.body == body
    assert shown.title == AS_TEXT  # a title is never markup


def test_a_long_message_is_cut(bus: Bus) -> None:
    async def show() -> str:
        async with running_desktop(bus) as desktop:
            await Notices(fail_on_note).tell("lab", "&" * 10_000, bus.environment)
            return desktop.shown[0].body

    assert asyncio.run(show()) == "&amp;" * (LONGEST_MESSAGE - 1) + "…"


def test_a_desktop_that_hangs_is_given_up_without_blocking_and_noted_once(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "SHOWING", 0.2)
    noted: list[str] = []

    async def show() -> tuple[int, list[Shown]]:
        async with running_desktop(bus) as desktop:
            told = Notices(noted.append)
            desktop.answers.clear()
            waiting = asyncio.create_task(told.tell("lost", "", bus.environment, replaces="lab"))
            turns = 0
            while not waiting.done():
                turns += 1
                await asyncio.sleep(0.01)
            await told.tell("lost again", "", bus.environment, replaces="lab")
            desktop.answers.set()
            desktop.shown.clear()
            await told.tell("back", "", bus.environment, replaces="lab")
            return turns, desktop.shown

    turns, shown = asyncio.run(show())
    assert turns > 5
    assert noted == ["the desktop didn't take a notice within 0.2 s"]
    assert shown[-1].title == "back"


def test_a_bus_that_hangs_is_given_up(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "SHOWING", 0.2)
    noted: list[str] = []
    bus.process.send_signal(signal.SIGSTOP)
    asyncio.run(Notices(noted.append).tell("lab is down", "", bus.environment))
    assert noted == ["the desktop didn't take a notice within 0.2 s"]


def test_a_bus_without_a_notification_service_is_noted_in_words(bus: Bus) -> None:
    noted: list[str] = []
    asyncio.run(Notices(noted.append).tell("lab is down", "", bus.environment))
    assert noted == ["the desktop doesn't take notices: it has no program that shows them"]


@pytest.mark.parametrize(
    "address",
    ["nonsense", "tcp:", "unix:path=/a;", "unix:abstract=holdfast/nobody", "a:b=\0", "unix:path=/" + 300 * "a"],
)
def test_no_address_makes_it_raise(address: str) -> None:
    noted: list[str] = []
    asyncio.run(Notices(noted.append).tell("lab is down", "", {"DBUS_SESSION_BUS_ADDRESS": address}))
    assert len(noted) == 1


def test_a_session_without_a_bus_is_noted_once_with_what_to_do_and_others_still_get_theirs(bus: Bus) -> None:
    noted: list[str] = []

    async def show() -> list[Shown]:
        async with running_desktop(bus) as desktop:
            told = Notices(noted.append)
            for environment in ({}, {}, bus.environment, {"DISPLAY": ":0"}):
                await told.tell("lab is down", "", environment)
            return desktop.shown

    assert len(asyncio.run(show())) == 1
    (reason,) = noted
    assert "DBUS_SESSION_BUS_ADDRESS isn't set" in reason
    assert reason.endswith("bring the tunnel up from the desktop")


def test_the_keepers_own_session_is_not_the_users(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", bus.address)
    noted: list[str] = []

    async def show() -> list[Shown]:
        async with running_desktop(bus) as desktop:
            await Notices(noted.append).tell("lab is down", "", {})
            return desktop.shown

    assert asyncio.run(show()) == []
    assert len(noted) == 1


def test_numbers_of_one_session_are_not_used_in_another(bus: Bus, home: Path) -> None:
    (home / "other").mkdir()
    other = Bus(home / "other")

    async def show() -> tuple[int, int]:
        async with running_desktop(bus) as first, running_desktop(other) as second:
            told = Notices(fail_on_note)
            for session in (bus, other, bus):
                await told.tell("lab is down", "", session.environment, replaces="lab")
            return first.shown[-1].replaces, second.shown[-1].replaces

    try:
        assert asyncio.run(show()) == (7, 0)
    finally:
        other.end()


def test_nothing_is_left_open_whatever_happens(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    async def show() -> tuple[list[str], list[str]]:
        told = Notices(lambda reason: None)
        async with running_desktop(bus) as desktop:
            before = open_sockets()
            for _ in range(5):
                await told.tell("lab is down", "", bus.environment)
            monkeypatch.setattr(notices, "SHOWING", 0.05)
            desktop.answers.clear()
            await told.tell("it hangs", "", bus.environment)
            asyncio.get_running_loop().call_later(0.01, bus.process.kill)
            monkeypatch.setattr(notices, "SHOWING", 5)
            await told.tell("the session ends", "", bus.environment)
            await told.tell("it has ended", "", bus.environment)
            return before, open_sockets()

    before, after = asyncio.run(show())
    assert set(after) <= set(before)


def test_without_the_library_it_says_what_to_install(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dbus_fast", None)
    noted: list[str] = []
    told = Notices(noted.append)
    for _ in range(2):
        asyncio.run(told.tell("lab is down", "", bus.environment))
    assert noted == [why_not(bus.environment)]
    assert noted[0].endswith("pip install 'holdfast[notify]'")


def test_the_library_is_imported_by_the_first_notice_only(bus: Bus) -> None:
    code = (
        "import asyncio, os, sys; from holdfast.keeper import notices\n"
        "told = notices.Notices(lambda reason: None)\n"
        "print(notices.why_not(os.environ), 'dbus_fast' in sys.modules)\n"
        "asyncio.run(told.tell('lab is down', '', os.environ)); print('dbus_fast' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **bus.environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert (printed.stdout, printed.stderr) == (" False\nTrue\n", "")


def test_why_not_tells_a_session_that_is_there_from_one_that_has_ended(bus: Bus, home: Path) -> None:
    assert why_not(bus.environment) == ""
    (home / "bus").unlink()
    assert f"its bus {home}/bus is gone" in why_not(bus.environment)


# osascript can't run here: a stand-in shows what it would be given.
def test_on_macos_the_words_are_arguments_of_a_script_that_never_changes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    said = home / "said"
    program = home / "osascript"
    program.write_text(f'#!/bin/sh\nfor word; do printf "%s|" "$word"; done >{said}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    asyncio.run(Notices(fail_on_note).tell("-e lab", 'down" & (do shell script "id")', {}))
    script, title, message = said.read_text().removeprefix("-e|").removesuffix("|").replace("|--|", "|").split("|")
    assert (title, message) == ("-e lab", 'down" & (do shell script "id")')
    assert "lab" not in script


def test_on_macos_a_script_that_fails_or_hangs_is_noted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(notices, "SHOWING", 0.2)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    program = home / "osascript"
    noted: list[str] = []
    for does in ("echo no desktop >&2; exit 1", f"exec tail -f {home}/osascript"):
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
        asyncio.run(Notices(noted.append).tell("lab is down", "", {}))
    assert noted == [
        "the desktop doesn't take notices: no desktop",
        "the desktop didn't take a notice within 0.2 s",
    ]
