"""The screen: what it looks like, what its keys do, and that it follows real tunnels."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import pexpect
import pytest
from rich.color import Color
from textual import events
from textual.message import Message
from textual.pilot import Pilot
from textual.widgets import Input, Log, Static

from holdfast import client
from holdfast.cli import configured
from holdfast.config import trust
from holdfast.control import Changes, TunnelStatus
from holdfast.errors import Exit, HoldfastError
from holdfast.ui import feed, showing, terminal
from holdfast.ui.actions import Actions
from holdfast.ui.app import Clock, TunnelScreen
from holdfast.ui.background import Say
from holdfast.ui.board import EVERY, Ends, Resting
from holdfast.ui.details_pane import DetailsPane
from holdfast.ui.dialogs import Help, Question
from holdfast.ui.feed import AtRest, Feed, LogEnd, Silent, Told
from holdfast.ui.log_screen import Growing, LogScreen
from tests.conftest import Run, Web, _keepers, get
from tests.records import NOW, changes, forward, outage, tunnel
from tests.sshd import Sshd, free_port, wait_for

Compare = Callable[..., bool]
NOTEBOOK = forward(url="http://localhost:8888", connections=4)
GPU = Resting("gpu-box", "gpu.example", (Ends("local", "localhost:6006", "127.0.0.1:6006"),), ("work",), "/c.toml")
OLD = Resting("old", "old.example", (Ends("local", "localhost:9000", "127.0.0.1:9000"),))


def some_tunnels(received: int) -> list[TunnelStatus]:
    """One in each kind of state; through the first, so many bytes have come."""
    db = (forward("localhost:5432", "db.internal:5432", connections=2), forward("localhost:6379", "cache:6379"))
    last = outage(ended="2024-05-01T11:59:19+02:00", held=2)
    return [
        tunnel("db", *db, age=7200, rtt_ms=182.0, received_bytes=received, sent_bytes=received // 9, outages=2,
               down_seconds=31, last_outage=last),
        tunnel("lab", NOTEBOOK, age=90_000, rtt_ms=11.8),
        tunnel("mlflow", forward("localhost:5000", state="waiting"), state="waiting", held=3, reason="no route to "
               "mlflow.example: the network is unreachable", last_outage=outage(), outages=1,
               rtt_ms=None, retry_in=9.0, hint="is the VPN up"),
        tunnel("proxy", forward("localhost:1080", None, kind="dynamic", exposed=True), rtt_ms=30.5),
        tunnel("tokens", forward("localhost:7000", "127.0.0.1:7000", state="needs login"), state="needs login",
               rtt_ms=None, reason="the server asks for a one-time code"),
        tunnel("lazy", forward("localhost:7001", "127.0.0.1:7001", state="idle"), state="idle", rtt_ms=None),
    ]  # fmt: skip


class FakeFeed(Feed):
    """Tells what a test has it tell."""

    def __init__(self, *told: Told | Silent | AtRest) -> None:
        super().__init__()
        self.told = told
        self.say: Say = lambda _: None
        self.looked_at: list[str] = []

    def start(self, say: Say) -> None:
        self.say = say
        for message in self.told:
            say(message)

    def stop(self) -> None:
        pass

    def look_at(self, name: str) -> None:
        self.looked_at.append(name)
        lines = ["2024-05-01 11:59:00+02:00  stalled: nothing comes back", "2024-05-01 11:59:19+02:00  up"]
        if name:
            self.say(LogEnd(name, lines))


class FakeActions(Actions):
    """Notes what is asked for; `error` is raised instead of doing it."""

    def __init__(self) -> None:
        super().__init__({})
        self.asked: list[tuple[str, str]] = []
        self.error: Exception | None = None

    def _note(self, what: str, name: str) -> str:
        self.asked.append((what, name))
        if self.error is not None:
            raise self.error
        return f"{what} {name}"

    def bring_up(self, name: str, resting: Resting | None) -> str:
        return self._note("up" if resting is None else "up anew", name)

    def take_down(self, name: str) -> str:
        return self._note("down", name)

    def restart(self, name: str) -> str:
        return self._note("restart", name)

    def open_page(self, name: str) -> str:
        return self._note("open", name)

    def log_in(self, name: str) -> int:
        self._note("login", name)
        return Exit.OK


def told(*tunnels: TunnelStatus) -> Told:
    return Told(changes(*tunnels), is_first=True)


def screen(*messages: Told | Silent | AtRest, actions: FakeActions | None = None, **more: Any) -> TunnelScreen:
    """The screen, for which a second passes with each look, and none by itself."""
    seconds = count()
    clock = Clock(lambda: NOW, lambda: float(next(seconds)))
    return TunnelScreen(FakeFeed(*messages), actions or FakeActions(), clock=clock, tick=0, **more)


def full_screen(**more: Any) -> TunnelScreen:
    return screen(AtRest([GPU, OLD], ""), told(*some_tunnels(0)), **more)


def watched_for_a_while(app: TunnelScreen) -> None:
    """Half a minute of changes, the last of them a second ago."""
    for second in range(31):
        tunnels = some_tunnels(1_500_000 * second)
        for one, wave in zip(tunnels, (30.0, 2.0, 0.0, 9.0, 0.0, 0.0), strict=True):
            if one["rtt_ms"] is not None:
                one["rtt_ms"] += wave * (second // int(EVERY) % 4)
        if 10 <= second < 12:
            tunnels[0]["state"] = "stalled"
        app.board.learn(changes(*(tunnels if second < 30 else some_tunnels(45_000_000))))
        app.look()


def play(
    app: TunnelScreen, scenario: Callable[[Pilot[None]], Awaitable[None]], size: tuple[int, int] = (80, 24)
) -> None:
    async def run() -> None:
        async with app.run_test(size=size, notifications=True) as pilot:
            await pilot.pause()
            await scenario(pilot)

    asyncio.run(run())


async def until(pilot: Pilot[None], condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        await pilot.pause(0.02)


def notices(app: TunnelScreen) -> list[str]:
    return [one.message for one in app._notifications]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the terminal of whoever runs the tests wants."""
    for name in ("NO_COLOR", "COLORTERM", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


# What it looks like


async def settle(pilot: Pilot[None]) -> None:
    app = pilot.app
    assert isinstance(app, TunnelScreen)
    await pilot.pause()
    watched_for_a_while(app)
    await pilot.pause()


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("theme", ["textual-dark", "textual-light", "ansi-dark"])
def test_the_tunnels_look_as_they_did(snap_compare: Compare, theme: str, size: tuple[int, int]) -> None:
    assert snap_compare(full_screen(theme=theme), terminal_size=size, run_before=settle)


def test_without_colour_it_looks_as_it_did(snap_compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = full_screen(theme="ansi-dark", without_colour=True)
    assert snap_compare(app, press=["down", "enter"], run_before=settle)


@pytest.mark.parametrize(
    "press", [["enter"], ["d"], ["question_mark"], ["slash", "d", "b"]], ids=["details", "down", "help", "filter"]
)
def test_what_keys_show_looks_as_it_did(snap_compare: Compare, press: list[str]) -> None:
    async def before(pilot: Pilot[None]) -> None:
        await settle(pilot)
        await pilot.press(*press)
        app.query_one(Input).cursor_blink = False

    app = full_screen()
    app.animation_level = "none"
    assert snap_compare(app, run_before=before)


def test_without_tunnels_it_says_what_to_do(snap_compare: Compare) -> None:
    assert snap_compare(screen(AtRest([], ""), Silent("")))


def test_no_colour_at_all_is_printed_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = full_screen(theme="ansi-dark", without_colour=True)
    colours: set[Color | None] = set()

    async def scenario(pilot: Pilot[None]) -> None:
        for strips in (app.screen._compositor.render_strips(),):
            colours.update(
                colour
                for strip in strips
                for segment in strip.apply_filter(app._filters[-1], app.screen.background_colors[0])
                if segment.style
                for colour in (segment.style.color, segment.style.bgcolor)
            )

    play(app, scenario)
    assert all(colour is None or colour.is_default for colour in colours)


# What is told


def test_changes_are_shown_with_the_next_look_and_a_tunnel_that_went_goes() -> None:
    app = screen(told(tunnel("db"), tunnel("lab")))

    async def scenario(pilot: Pilot[None]) -> None:
        app.post_message(
            Told(Changes(tunnels=[tunnel("db", state="waiting", reason="no route")], gone=["lab"]), is_first=False)
        )
        await pilot.pause()
        app.look()
        assert [(row.name, row.state) for row in app.tunnels._rows] == [("db", "waiting")]
        assert "db waiting" in str(app.query_one("#summary", Static).content)

    play(app, scenario)


def test_only_the_lines_that_are_different_are_drawn_again() -> None:
    app = screen(told(tunnel("a"), tunnel("b"), tunnel("c")))
    drawn: list[int] = []

    async def scenario(pilot: Pilot[None]) -> None:
        app.look()
        await pilot.pause()
        render_line = app.tunnels.render_line
        app.tunnels.render_line = lambda y: (drawn.append(y), render_line(y))[1]  # type: ignore[method-assign, func-returns-value]
        app.look()
        await pilot.pause()
        assert drawn == []
        app.board.learn(changes(tunnel("b", rtt_ms=99.0)))
        app.look()
        await pilot.pause()
        assert set(drawn) == {2}

    play(app, scenario)


def test_a_keeper_that_went_is_told_of_and_the_tunnels_stay_to_be_seen_until_another_tells() -> None:
    app = screen(told(tunnel("lab")))

    def note() -> str:
        return str(app.query_one("#note", Static).content)

    async def scenario(pilot: Pilot[None]) -> None:
        app.post_message(Silent("the keeper went away"))
        await pilot.pause()
        assert note() == "the keeper went away: this is how it was, and is looked for again"
        assert app.tunnels.row is not None
        app.post_message(told(tunnel("other")))
        await pilot.pause()
        assert note() == ""
        assert [row.name for row in app.tunnels._rows] == ["other"]

    play(app, scenario)


def test_mistakes_in_the_configuration_are_told() -> None:
    app = screen(AtRest([], "config.toml:3: 'prot' is no key"), told(tunnel()))

    async def scenario(pilot: Pilot[None]) -> None:
        assert "config.toml:3: 'prot' is no key" in str(app.query_one("#note", Static).content)

    play(app, scenario)


# What keys and the mouse do


def test_keys_go_to_another_tunnel_and_the_selection_stays_with_it() -> None:
    app = full_screen()

    async def scenario(pilot: Pilot[None]) -> None:
        assert app.tunnels.selected == "db"
        await pilot.press("j", "down", "k")
        assert app.tunnels.selected == "lab"
        app.post_message(Told(changes(tunnel("aaa")), is_first=False))
        await pilot.pause()
        app.look()
        assert app.tunnels.selected == "lab"
        app.post_message(Told(changes(gone=("lab",)), is_first=False))
        await pilot.pause()
        app.look()
        assert app.tunnels.selected == "lazy"
        await pilot.press("end")
        assert app.tunnels.selected == "old"
        await pilot.press("g")
        assert app.tunnels.selected == "aaa"

    play(app, scenario)


def test_fifty_tunnels_can_be_scrolled_through_and_the_selected_one_is_always_seen() -> None:
    app = screen(told(*(tunnel(f"t{number:02}") for number in range(50))))

    async def scenario(pilot: Pilot[None]) -> None:
        for key, selected in (("pagedown", "t20"), ("end", "t49"), ("pageup", "t29"), ("home", "t00")):
            await pilot.press(key)
            await pilot.pause()
            assert app.tunnels.selected == selected
            top = app.tunnels.scroll_offset.y
            assert top <= int(selected[1:]) < top + app.tunnels.size.height - 1

    play(app, scenario)


def test_a_click_selects_and_a_second_one_opens_the_details() -> None:
    app = full_screen()

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.click("TunnelList", offset=(5, 3))
        assert app.tunnels.selected == "lazy"
        assert not app.query_one(DetailsPane).has_class("-open")
        await pilot.click("TunnelList", offset=(5, 2), times=2)
        assert app.tunnels.selected == "lab"
        assert app.query_one(DetailsPane).has_class("-open")
        await pilot.click("TunnelList", offset=(5, 0))
        await pilot.click("TunnelList", offset=(5, 18))
        assert app.tunnels.selected == "lab"

    play(app, scenario)


def test_details_are_open_by_themselves_where_there_is_room_and_enter_closes_them() -> None:
    app = full_screen()

    async def scenario(pilot: Pilot[None]) -> None:
        pane = app.query_one(DetailsPane)
        assert pane.has_class("-open")
        assert "http://localhost:8888" not in str(app.query_one("#told", Static).content)
        await pilot.press("j")
        assert "http://localhost:8888" in str(app.query_one("#told", Static).content)
        assert str(app.query_one("#log-end", Static).content).endswith("up")
        await pilot.press("enter")
        assert not pane.has_class("-open")

    play(app, scenario, (120, 40))


def test_a_filter_leaves_what_has_its_words_and_escape_shows_all_again() -> None:
    app = full_screen()

    def names() -> list[str]:
        return [row.name for row in app.tunnels._rows]

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("slash", "w", "a", "i", "t", "enter")
        assert names() == ["mlflow"]
        assert app.tunnels.selected == "mlflow"
        assert app.focused is app.tunnels
        await pilot.press("slash", *"/d")
        assert names() == []
        assert "no tunnel has '/d'" in str(app.query_one("#note", Static).content)
        await pilot.press("escape")
        assert len(names()) == 8
        await pilot.press("slash", "enter", "j")
        assert not app.query_one(Input).display

    play(app, scenario)


def test_what_is_typed_at_once_behind_the_slash_is_all_for_the_filter() -> None:
    app = full_screen(actions=(actions := FakeActions()))

    async def scenario(pilot: Pilot[None]) -> None:
        for key, character in (("slash", "/"), ("d", "d"), ("u", "u"), ("g", "g")):
            app.post_message(events.Key(key, character))
        await until(pilot, lambda: app.query_one(Input).value == "dug", "the words", 5)
        assert (actions.asked, len(app.screen_stack)) == ([], 1)

    play(app, scenario)


@pytest.mark.parametrize(
    ("key", "answer", "what"), [("d", "y", "down"), ("r", "enter", "restart"), ("d", "n", ""), ("r", "escape", "")]
)
def test_what_breaks_connections_is_done_after_a_yes_only(key: str, answer: str, what: str) -> None:
    app = full_screen(actions=(actions := FakeActions()))

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("j", key)
        assert isinstance(app.screen, Question)
        await pilot.press(answer)
        assert not isinstance(app.screen, Question)
        if what:
            await until(pilot, lambda: notices(app), "the word that it was done", 5)
        assert actions.asked == ([(what, "lab")] if what else [])

    play(app, scenario)


def test_the_question_can_be_answered_with_the_mouse() -> None:
    app = full_screen(actions=(actions := FakeActions()))

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("d")
        await pilot.click("#no")
        await pilot.press("d")
        await pilot.click("#yes")
        await until(pilot, lambda: actions.asked, "the tunnel to be taken down", 5)
        assert actions.asked == [("down", "db")]

    play(app, scenario)


def test_up_brings_up_what_is_there_and_what_is_only_described() -> None:
    app = full_screen(actions=(actions := FakeActions()))

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("u", "end", "k", "u")
        await until(pilot, lambda: len(actions.asked) == 2, "both", 5)
        assert sorted(actions.asked) == [("up", "db"), ("up anew", "gpu-box")]

    play(app, scenario)


@pytest.mark.parametrize("key", ["d", "r", "o"])
def test_what_is_down_is_only_told_how_to_come_up(key: str) -> None:
    app = full_screen(actions=(actions := FakeActions()))

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("end", key)
        await pilot.pause()
        assert notices(app) == ["old is down; u brings it up"]
        assert actions.asked == []

    play(app, scenario)


def test_keys_do_nothing_where_there_is_no_tunnel() -> None:
    app = screen(Silent(""), actions=(actions := FakeActions()))

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press(*"udrol", "enter", "j", "end", "pageup")
        assert (actions.asked, notices(app), len(app.screen_stack)) == ([], [], 1)

    play(app, scenario)


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            HoldfastError("port 8888 is [taken]", "end it: fuser 8888/tcp"),
            "port 8888 is [taken]\nend it: fuser 8888/tcp",
        ),
        (TimeoutError(), "db takes long\nit goes on; the list tells how"),
    ],
    ids=["error", "time-out"],
)
def test_what_went_wrong_is_shown_with_its_hint(error: Exception, shown: str) -> None:
    app = full_screen(actions=(actions := FakeActions()))
    actions.error = error

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("u")
        await until(pilot, lambda: notices(app), "the error", 5)
        (notice,) = app._notifications
        assert (notice.message, notice.severity, notice.markup) == (shown, "error", False)

    play(app, scenario)


def test_a_key_that_takes_its_time_stops_nothing_not_even_quitting() -> None:
    app = full_screen(actions=(actions := FakeActions()))
    go_on = threading.Event()
    actions.take_down = lambda name: str(go_on.wait(30))  # type: ignore[method-assign]

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("d", "y", "j")
        assert app.tunnels.selected == "lab"

    began = time.monotonic()
    play(app, scenario)
    assert time.monotonic() - began < 10
    go_on.set()


def test_a_bug_in_a_thread_ends_the_screen_and_is_shown() -> None:
    app = full_screen(actions=(actions := FakeActions()))
    actions.error = ZeroDivisionError("a bug")

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("u")
        await until(pilot, lambda: not app.is_running, "the screen to end", 5)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        play(app, scenario)
    assert app.return_code == 1


def test_a_login_that_needs_a_person_is_offered_and_runs_in_the_terminal() -> None:
    app = full_screen(actions=(actions := FakeActions()))
    app.suspend = nullcontext  # type: ignore[method-assign, assignment]

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("end", "k", "k", "u")
        assert app.tunnels.selected == "tokens"
        assert isinstance(app.screen, Question)
        assert "one-time code" in str(app.screen.query_one(Static).content)
        await pilot.press("y")
        await pilot.pause()
        assert actions.asked == [("login", "tokens")]

    play(app, scenario)


def test_a_login_is_not_offered_over_something_else() -> None:
    app = full_screen()

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("end", "k", "u", "question_mark")
        app.post_message(Told(changes(tunnel("gpu-box", state="needs login")), is_first=False))
        await pilot.pause()
        assert isinstance(app.screen, Help)

    play(app, scenario)


def test_where_there_is_no_terminal_to_make_room_in_the_command_for_the_login_is_told() -> None:
    app = full_screen()

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("end", "k", "k", "u", "y")
        await pilot.pause()
        assert notices(app) == ["this terminal can't be shared\nin another one: holdfast up tokens"]

    play(app, scenario)


def test_a_tunnel_that_turns_out_to_need_a_person_is_offered_once_and_only_to_who_brought_it_up() -> None:
    app = full_screen()
    asks = tunnel("gpu-box", state="needs login", reason="the server asks for a code")

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("end", "k", "u")
        for state in (tunnel("gpu-box", state="connecting"), tunnel("other", state="needs login"), asks):
            app.post_message(Told(changes(state), is_first=False))
            await pilot.pause()
        assert isinstance(app.screen, Question)
        await pilot.press("n")
        app.post_message(Told(changes(asks), is_first=False))
        await pilot.pause()
        assert not isinstance(app.screen, Question)

    play(app, scenario)


def test_help_names_every_key_and_leaves_the_tunnels_alone() -> None:
    app = full_screen(actions=(actions := FakeActions()))

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        assert isinstance(app.screen, Help)
        await pilot.press("u", "d", "slash")
        assert isinstance(app.screen, Help)
        shown = "\n".join(str(one.content) for one in app.screen.query(Static))
        for binding in app.BINDINGS:
            assert not getattr(binding, "show", False) or str(binding.key_display or binding.key) in shown  # type: ignore[union-attr]
        await pilot.press("escape")
        assert not isinstance(app.screen, Help)
        assert actions.asked == []

    play(app, scenario)


def test_t_goes_through_dark_light_and_the_terminals_own_colours() -> None:
    app = full_screen(theme="textual-dark")
    seen = []

    async def scenario(pilot: Pilot[None]) -> None:
        for _ in range(3):
            await pilot.press("t")
            seen.append((app.theme, app.native_ansi_color))

    play(app, scenario)
    assert seen == [("textual-light", False), ("ansi-dark", True), ("textual-dark", False)]


def test_the_log_is_followed_over_the_whole_screen(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(home / "state"))
    log = home / "state" / "logs" / "db.log"
    log.parent.mkdir(mode=0o700, parents=True)
    log.write_text("one\n")
    app = full_screen(actions=(actions := FakeActions()))

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("l")
        await until(pilot, lambda: list(app.screen.query_one(Log).lines)[:1] == ["one"], "the log", 5)
        with log.open("a") as file:
            file.write("two\nhal")
        await until(pilot, lambda: "two" in app.screen.query_one(Log).lines, "its next line", 5)
        assert "hal" not in app.screen.query_one(Log).lines
        await pilot.press("u", "d", "G", "k", "g")
        assert isinstance(app.screen, LogScreen)
        await pilot.press("escape")
        assert not isinstance(app.screen, LogScreen)
        assert actions.asked == []

    play(app, scenario)


def test_the_end_of_a_log_stays_in_view_when_the_terminal_gets_smaller_unless_somebody_reads_further_up(
    own_files: Path,
) -> None:
    log = own_files / "state" / "logs" / "db.log"
    log.parent.mkdir(mode=0o700)
    log.write_text("".join(f"{number}\n" for number in range(99)))
    app = full_screen()

    async def scenario(pilot: Pilot[None]) -> None:
        await pilot.press("l")
        shown = app.screen.query_one(Log)
        await until(pilot, lambda: len(shown.lines) > 98, "the log")
        await pilot.resize_terminal(80, 10)
        await until(pilot, lambda: shown.is_vertical_scroll_end, "its end")
        with log.open("a") as file:
            file.write("more\n" * 9)
        await until(pilot, lambda: "more" in shown.lines and shown.is_vertical_scroll_end, "its new end")
        await pilot.press("k", "k")
        await pilot.resize_terminal(80, 9)
        await pilot.pause()
        assert not shown.is_vertical_scroll_end
        await pilot.press("G")
        await pilot.resize_terminal(80, 8)
        await until(pilot, lambda: shown.is_vertical_scroll_end, "its end again")

    play(app, scenario)


def test_a_log_that_is_put_aside_is_gone_on_with_in_the_new_one(tmp_path: Path) -> None:
    log = tmp_path / "lab.log"
    growing = Growing(log)
    assert growing.more() == []
    log.write_text("one\ntw")
    assert growing.more() == ["one"]
    with log.open("a") as file:
        file.write("o\n")
    assert (growing.more(), growing.more()) == (["two"], [])
    log.rename(tmp_path / "lab.log.1")
    log.write_text("three, and longer\n")
    assert growing.more() == ["three, and longer"]


# What could be brought up, and the end of a log


@pytest.fixture
def own_files(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's files, in a folder without a project."""
    for name, value in (("RUNTIME_DIR", "run"), ("STATE_DIR", "state"), ("CONFIG", "config.toml")):
        monkeypatch.setenv(f"HOLDFAST_{name}", str(home / value))
    monkeypatch.chdir(home)
    (home / "state").mkdir(mode=0o700)
    return home


def test_what_is_described_or_was_taken_down_is_at_rest_each_once(own_files: Path) -> None:
    (own_files / "config.toml").write_text('[tunnels.gpu]\nforwards = ["6006"]\ngroups = ["work"]\n')
    forwards = '[[["local", "localhost:0", "db:1"], ["local", "localhost:41", "db:1"], null, true, 0]]'
    saved = ", ".join(
        f'{{"name": "{name}", "host": "{name}.example", "wanted": {wanted}, "forwards": {forwards}}}'
        for name, wanted in (("gpu", "false"), ("old", "false"), ("lab", "true"))
    )
    (own_files / "state" / "state.json").write_text(f'{{"tunnels": [{saved}]}}')
    found, mistake = feed.at_rest()
    assert found == [
        Resting(
            "gpu",
            "gpu",
            (Ends("local", "localhost:6006", "127.0.0.1:6006"),),
            ("work",),
            str(own_files / "config.toml"),
        ),
        Resting("old", "old.example", (Ends("local", "localhost:41", "db:1"),)),
    ]
    assert mistake == ""


def test_a_project_is_at_rest_from_when_the_user_agrees_to_it_until_it_goes(own_files: Path) -> None:
    told: list[list[str]] = []

    def say(message: Message) -> None:
        if isinstance(message, AtRest):
            told.append([one.name for one in message.tunnels])

    project = own_files / ".holdfast.toml"
    following = Feed()
    following.start(say)
    try:
        wait_for(lambda: told, "the first look")
        assert told == [[]]
        project.write_text('[tunnels.lab]\nforwards = ["6006"]\n')
        found = configured.project()
        assert found is not None
        trust.allow(found.file, found.digest)
        wait_for(lambda: told[-1] == ["lab"], "what was agreed to")
        project.unlink()
        wait_for(lambda: told[-1] == [], "its end to be noticed")
    finally:
        following.stop()


@pytest.mark.parametrize(
    "saved", ["", "{", "[]", '{"tunnels": [{"name": 1}]}', '{"tunnels": [{"wanted": false}]}']
)
def test_what_cannot_be_read_is_not_at_rest_and_a_mistake_is_told(own_files: Path, saved: str) -> None:
    (own_files / "config.toml").write_text("[tunnels.gpu]\nprot = 1\n")
    (own_files / "state" / "state.json").write_text(saved)
    found, mistake = feed.at_rest()
    assert found == []
    assert mistake.startswith("config.toml:2:")
    assert mistake.endswith("; holdfast config check")


def test_the_end_of_a_long_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "lab.log"
    assert feed.last_lines(log) == []
    log.write_text("".join(f"{number:04} {'x' * 100}\n" for number in range(1000)))
    lines = feed.last_lines(log)
    assert len(lines) == feed.TAIL_LINES
    assert lines[-1].startswith("0999 ")
    log.write_text("only\n")
    assert feed.last_lines(log) == ["only"]


# The terminal


@pytest.mark.parametrize(
    ("answer", "is_dark"),
    [
        (b"\x1b]11;rgb:0000/0000/0000\x1b\\\x1b[?62c", True),
        (b"\x1b]11;rgb:ffff/ffff/eeee\x07\x1b[?62c", False),
        (b"\x1b]11;rgb:ff/ff/ff\x07", False),
        (b"\x1b[?6c", None),
        (b"", None),
    ],
)
def test_the_terminals_background_is_dark_or_light_or_unknown(answer: bytes, is_dark: bool | None) -> None:
    assert terminal.darkness(answer) is is_dark


def test_a_terminal_is_asked_and_left_as_it_was() -> None:
    outer, inner = pty.openpty()
    before = termios.tcgetattr(inner)
    heard = []

    def answer() -> None:
        heard.append(os.read(outer, 1024))
        os.write(outer, b"\x1b]11;rgb:f0f0/f0f0/f0f0\x1b\\\x1b[?1;2c")

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        assert terminal.darkness(terminal._ask(inner, inner)) is False
        assert b"\x1b]11;?" in heard[0]
        assert termios.tcgetattr(inner) == before
    finally:
        answering.join()
        os.close(outer)
        os.close(inner)


@pytest.mark.parametrize(
    ("theme", "environment", "is_dark", "chosen"),
    [
        ("auto", {"COLORTERM": "truecolor"}, True, "textual-dark"),
        ("auto", {"COLORTERM": "truecolor"}, False, "textual-light"),
        ("auto", {"COLORTERM": "truecolor"}, None, "textual-dark"),
        ("auto", {"TERM": "linux"}, None, "ansi-dark"),
        ("auto", {"NO_COLOR": "1"}, False, "ansi-light"),
        ("light", {}, True, "textual-light"),
        ("light", {"NO_COLOR": "1"}, True, "ansi-dark"),
        ("terminal", {"COLORTERM": "truecolor"}, True, "ansi-dark"),
    ],
)
def test_colours_suit_the_terminal(
    monkeypatch: pytest.MonkeyPatch, theme: str, environment: dict[str, str], is_dark: bool | None, chosen: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(terminal, "is_dark", lambda: is_dark)
    monkeypatch.setattr(showing, "Console", lambda: _Colours(environment.get("TERM", "")))
    assert showing.chosen(theme) == chosen


class _Colours:
    def __init__(self, term: str) -> None:
        self.color_system = "standard" if term else "truecolor"


def test_without_a_terminal_the_command_says_what_to_use(holdfast: Run) -> None:
    result = holdfast("ui")
    assert result.returncode == Exit.USAGE
    assert result.stderr == (
        "holdfast: ui needs a terminal to draw on\nholdfast: hint: for programs there is holdfast status --json\n"
    )


def test_a_screen_that_is_terminated_leaves_the_terminal_as_it_was(
    environment: Mapping[str, str], holdfast: Run
) -> None:
    variables = {**environment, "TERM": "xterm-256color"}
    child = pexpect.spawn(sys.executable, ["-m", "holdfast", "ui"], env=variables, dimensions=(24, 80), timeout=30)
    try:
        before = termios.tcgetattr(child.child_fd)
        child.expect_exact("No tunnels yet.")
        child.kill(signal.SIGTERM)
        child.expect_exact("\x1b[?1049l")
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0
        assert termios.tcgetattr(child.child_fd) == before
    finally:
        child.close(force=True)


def test_without_the_extra_one_line_and_a_hint_are_all(environment: Mapping[str, str]) -> None:
    program = (
        "import sys; sys.modules['textual'] = None; sys.argv[1:] = ['ui']; "
        "from holdfast.cli.main import run; run()"
    )
    outer, inner = pty.openpty()
    try:
        process = subprocess.run(
            [sys.executable, "-c", program], env={**environment, "TERM": "xterm"}, stdin=inner, stdout=inner,
            stderr=inner, timeout=30, check=False,
        )  # fmt: skip
        said = os.read(outer, 4096).decode().replace("\r\n", "\n")
    finally:
        os.close(outer)
        os.close(inner)
    assert process.returncode == Exit.FAILED
    assert said == (
        "holdfast: the screen needs Textual, which isn't installed\n"
        "holdfast: hint: pip install 'holdfast[ui]'; holdfast status --watch does without\n"
    )


# With a real keeper


@pytest.fixture
def described(own_files: Path, holdfast: Run, sshd: Sshd, web: Web, environment: Mapping[str, str]) -> int:
    """The port of a tunnel that the user's configuration describes, and nothing has brought up yet."""
    port = free_port()
    (own_files / "config.toml").write_text(
        f'[tunnels.lab]\nforwards = ["{port}:{web.port}"]\nssh = ["-F", "{sshd.config}"]\n'
    )
    return port


def test_a_real_tunnel_comes_up_breaks_heals_and_goes_down_on_the_screen(described: int, sshd: Sshd) -> None:
    app = TunnelScreen(Feed(), Actions(os.environ), tick=0.1)

    def state() -> str:
        return app.tunnels.row.state if app.tunnels.row else ""

    async def scenario(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: state() == "down", "the tunnel that is described")
        await pilot.press("u")
        await until(pilot, lambda: state() == "up", "the tunnel to come up")
        assert await asyncio.to_thread(get, described) == b"hello"
        sshd.stop()
        await until(pilot, lambda: state() in ("waiting", "connecting", "stalled"), "the loss to be seen")
        await until(pilot, lambda: app.tunnels.row and app.tunnels.row.troubles, "the reason")
        sshd.start()
        await until(pilot, lambda: state() == "up", "the tunnel to heal", 45)
        assert None in app.board.trips("lab")
        await pilot.press("d", "y")
        await until(pilot, lambda: state() == "down", "the tunnel to go down")

    play(app, scenario)


def test_a_keeper_that_was_killed_is_told_of_and_another_one_found(
    described: int, kill_keeper: Callable[[], None]
) -> None:
    app = TunnelScreen(Feed(), Actions(os.environ), tick=0.1)

    async def scenario(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.tunnels.row, "the tunnel that is described")
        await pilot.press("u")
        await until(
            pilot, lambda: app.board.tunnels.get("lab", tunnel(state="-"))["state"] == "up", "it to come up"
        )
        await asyncio.to_thread(kill_keeper)
        await until(pilot, lambda: "went away" in str(app.query_one("#note", Static).content), "the word of it")
        await until(pilot, lambda: not str(app.query_one("#note", Static).content), "another keeper")
        await until(pilot, lambda: app.board.tunnels["lab"]["state"] == "up", "the tunnel as it was")
        assert await asyncio.to_thread(get, described) == b"hello"

    play(app, scenario)


def test_a_keeper_that_is_stopped_is_told_of_until_it_goes_on(
    described: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SILENCE", 0.5)
    monkeypatch.setattr(client, "GREETING", 0.5)
    app = TunnelScreen(Feed(), Actions(os.environ), tick=0.1)

    def note() -> str:
        return str(app.query_one("#note", Static).content)

    async def scenario(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.tunnels.row, "the tunnel that is described")
        await pilot.press("u")
        await until(pilot, lambda: "lab" in app.board.tunnels, "it to come up")
        (keeper,) = _keepers(home)
        os.kill(keeper, signal.SIGSTOP)
        try:
            await until(pilot, lambda: "the keeper doesn't answer" in note(), "the word of it")
        finally:
            os.kill(keeper, signal.SIGCONT)
        await until(pilot, lambda: not note(), "the keeper to be heard again")

    play(app, scenario)


def test_a_tick_that_comes_while_the_screen_is_taken_down_is_for_nothing() -> None:
    app = full_screen()

    async def scenario(pilot: Pilot[None]) -> None:
        await app.tunnels.remove()
        app.look()
        app.on_log_end(LogEnd("lab", ["up"]))

    play(app, scenario)
    app.look()
