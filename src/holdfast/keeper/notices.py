"""Notices on the user's desktop: over the session's D-Bus, and through osascript on macOS.

The desktop is the one where the tunnel was asked for: the keeper may have been started elsewhere, so its own
environment is never looked at. The words may come from a server, so they are taken for text, never for markup.
"""

from __future__ import annotations

import asyncio
import contextlib
import html
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbus_fast.aio import MessageBus

# Seconds that a notice may take, the ones before it included, until it is given up.
SHOWING = 5.0
# The most characters of a title and of a message.
LONGEST_TITLE = 100
LONGEST_MESSAGE = 500

# What `environment` must have for a desktop that speaks D-Bus.
_ADDRESS = "DBUS_SESSION_BUS_ADDRESS"
# "normal", of low, normal and critical: a critical one stays until it is clicked away.
_URGENCY = 1
# The desktop decides how long a notice stays.
_AS_USUAL = -1
# The script's own text never changes: title and message are its arguments.
_SCRIPT = "on run words\ndisplay notification (item 2 of words) with title (item 1 of words)\nend run"


class Notices:
    """Shows notices, one after the other. `note` is told why a desktop shows none, once for each desktop."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._noted_of: set[str] = set()
        # The desktop's number of the notice last shown for a bus and a key.
        self._numbers: dict[tuple[str, str], int] = {}
        # A return must find the number of the loss that it replaces.
        self._turn = asyncio.Lock()

    async def tell(self, title: str, message: str, environment: Mapping[str, str], *, replaces: str = "") -> None:
        """Shows a notice on the desktop that `environment` belongs to. Never raises; takes SHOWING at most.

        It takes the place of the notice that was last shown there with the same key `replaces`, if there is one.
        """
        reason = why_not(environment)
        if not reason:
            try:
                async with asyncio.timeout(SHOWING), self._turn:
                    await self._show(title, message, environment, replaces)
            except TimeoutError:
                reason = f"the desktop didn't take a notice within {SHOWING:g} s"
            except Exception as error:  # whatever it is, no tunnel may suffer from it
                reason = f"the desktop doesn't take notices: {str(error) or type(error).__name__}"
        if reason:
            self._note_once(environment.get(_ADDRESS, ""), reason)

    def _note_once(self, desktop: str, reason: str) -> None:
        if desktop not in self._noted_of:
            self._noted_of.add(desktop)
            self._note(reason)

    async def _show(self, title: str, message: str, environment: Mapping[str, str], replaces: str) -> None:
        title, message = _printable(title, LONGEST_TITLE), _printable(message, LONGEST_MESSAGE)
        if sys.platform == "darwin":
            await _show_on_macos(title, message)
            return
        address = environment[_ADDRESS]
        number = await _show_on_bus(address, title, message, self._numbers.get((address, replaces), 0))
        if replaces:
            self._numbers[address, replaces] = number


def why_not(environment: Mapping[str, str]) -> str:
    """Why no notice can be shown on the desktop of `environment`, and what to do; empty when nothing is known.

    Looks at what is here only: whether the desktop answers is found out by the first notice.
    """
    if sys.platform == "darwin":
        return "" if shutil.which("osascript") else "osascript, which shows notices, isn't in the PATH"
    if importlib.util.find_spec("dbus_fast") is None:
        return "desktop notices need a library that isn't installed: pip install 'holdfast[notify]'"
    address = environment.get(_ADDRESS, "")
    if not address:
        return f"no desktop session to show notices in: {_ADDRESS} isn't set; bring the tunnel up from the desktop"
    path = _path_of(address)
    if path is not None and not _is_socket(path):
        return (
            f"no desktop session to show notices in: its bus {path} is gone; bring the tunnel up from the desktop"
        )
    return ""


def _path_of(address: str) -> Path | None:
    """The socket of a bus; None when the address has another form or more than one choice."""
    transport, _, path = address.partition(",")[0].partition("=")
    return Path(path) if transport == "unix:path" and not {";", "%"} & set(address) else None


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:  # too long, or in a directory that is closed to us
        return False


def _printable(text: str, longest: int) -> str:
    """`text` without control characters, changes of direction and what UTF-8 can't say, cut at `longest`."""
    kept = "".join(character if character.isprintable() or character == "\n" else " " for character in text)
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


async def _show_on_bus(address: str, title: str, message: str, replaces: int) -> int:
    """Shows a notice in place of the one with the number `replaces`, if not 0. Returns its own number.

    A connection for each: notices are rare, and the session may have ended and begun since the last.
    """
    from dbus_fast import Variant
    from dbus_fast.aio import MessageBus

    bus = MessageBus(bus_address=address)
    await bus.connect()
    try:
        (capabilities,) = await _ask(bus, "GetCapabilities")
        body = html.escape(message, quote=False) if "body-markup" in capabilities else message
        hints = {"urgency": Variant("y", _URGENCY)}
        notice = ["holdfast", replaces, "", title, body, [], hints, _AS_USUAL]
        (number,) = await _ask(bus, "Notify", "susssasa{sv}i", notice)
        return int(number)
    finally:
        bus.disconnect()
        with contextlib.suppress(Exception):  # it may have been lost before
            await bus.wait_for_disconnect()  # type: ignore[no-untyped-call]


async def _ask(bus: MessageBus, member: str, signature: str = "", body: list[Any] | None = None) -> list[Any]:
    """What the desktop's notification service answers. Raises ConnectionError when it refuses, or isn't there."""
    from dbus_fast import ErrorType, Message, MessageType

    reply = await bus.call(
        Message(
            destination="org.freedesktop.Notifications",
            path="/org/freedesktop/Notifications",
            interface="org.freedesktop.Notifications",
            member=member,
            signature=signature,
            body=body or [],
        )
    )
    if reply.error_name == ErrorType.SERVICE_UNKNOWN.value:
        raise ConnectionError("it has no program that shows them")
    if reply.message_type is MessageType.ERROR:
        raise ConnectionError(": ".join(map(str, [reply.error_name, *reply.body])))
    return list(reply.body)


async def _show_on_macos(title: str, message: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "osascript",
        *("-e", _SCRIPT, "--", title, message),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise OSError(errors.decode(errors="replace").strip())
