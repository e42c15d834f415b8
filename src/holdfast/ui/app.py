"""The screen as a whole: what is told goes to the board, and from there, once a second, to what is seen.

Nothing here waits: what could take time is done in threads, and comes back as a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from datetime import datetime
from typing import ClassVar, NamedTuple

from textual import on
from textual.app import App, ComposeResult, SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.screen import Screen
from textual.widgets import Footer, Input, Static

from holdfast import paths
from holdfast.errors import Exit, HoldfastError
from holdfast.ui import background, details
from holdfast.ui.actions import Actions, failed_login
from holdfast.ui.background import Crashed, Done, Failed
from holdfast.ui.board import RESTING, Board
from holdfast.ui.details_pane import DetailsPane
from holdfast.ui.dialogs import Help, Question
from holdfast.ui.feed import AtRest, Feed, LogEnd, Silent, Told
from holdfast.ui.log_screen import LogScreen
from holdfast.ui.tunnel_list import TunnelList

# What t leads through. The last takes the terminal's own colours, of which 16 are enough.
THEMES = ("textual-dark", "textual-light", "ansi-dark")
# Lines from which on the details are open by themselves.
HIGH = 34
# Seconds that a message is shown for, and one with a hint.
BRIEFLY, LONGER = 4.0, 10.0
# While a tunnel that was brought up is in one of these, it isn't known what becomes of it.
_UNDER_WAY = ("connecting", "waiting", "stalled", RESTING)

_NAME = "holdfast   "
_EMPTY = """No tunnels yet.

Bring one up, here or in another terminal:

    holdfast up lab

or describe those that you use every day:

    holdfast config edit

They appear here by themselves. ? shows the keys, q quits."""


class Clock(NamedTuple):
    """The time of day, and seconds that only go forward."""

    now: Callable[[], datetime] = lambda: datetime.now().astimezone()
    seconds: Callable[[], float] = time.monotonic


class Words(Input):
    """Those that a tunnel must have in order to be shown."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Keep it", key_display="⏎"),
        Binding("escape", "app.leave", "Show all", key_display="Esc"),
    ]


class TunnelScreen(App[None]):
    """`theme` is one of Textual's; `tick` the seconds between looks, 0 for none but those that are asked for.

    `without_colour`: Textual has found NO_COLOR set. Only with the terminal's own colours does it then print none.
    """

    TITLE = "holdfast"
    ENABLE_COMMAND_PALETTE = False
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (120, "-wide")]  # noqa: RUF012 - Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-low"), (HIGH, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("u", "bring_up", "Up"),
        Binding("d", "take_down", "Down"),
        Binding("r", "restart", "Restart"),
        Binding("o", "open_page", "Open"),
        Binding("l", "show_log", "Log"),
        # With priority: it is done before the keys that follow are handed out.
        Binding("slash", "filter", "Filter", key_display="/", priority=True),
        Binding("enter", "toggle_details", "Details", key_display="⏎"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("t", "next_theme", show=False),
        Binding("escape", "leave", show=False),
    ]
    CSS = """
    #summary {
        height: 1; padding: 0 1; text-style: bold; background: $panel; text-wrap: nowrap; text-overflow: ellipsis;
    }
    #note { height: auto; padding: 0 1; color: $text-warning; display: none; }
    TunnelList { height: 1fr; padding: 0 1; }
    DetailsPane { display: none; }
    #empty { height: 1fr; padding: 1 2; display: none; }
    #filter { height: 1; border: none; padding: 0 1; display: none; }
    #note.-said, DetailsPane.-open, .-empty #empty { display: block; }
    .-empty TunnelList, .-empty DetailsPane { display: none; }
    .-high DetailsPane { height: 40%; }
    .-wide DetailsPane #log { display: block; }
    .-wide DetailsPane #log-below { display: none; }
    """

    def __init__(
        self,
        feed: Feed,
        actions: Actions,
        *,
        theme: str = THEMES[0],
        clock: Clock | None = None,
        tick: float = 1.0,
        without_colour: bool = False,
    ) -> None:
        super().__init__(ansi_color=True if without_colour else None)
        self.board = Board()
        self._feed = feed
        self._actions = actions
        self._clock = clock or Clock()
        self._tick = tick
        self._needle = ""
        self._is_told = False
        # Why nobody tells, and what is wrong with the configuration; or nothing.
        self._why_silent = ""
        self._mistake = ""
        self._log_end: list[str] = []
        # Those that were brought up from here: when a person has to log in for one of them, that is offered.
        self._brought_up: set[str] = set()
        self._wants_details: bool | None = None
        self.theme = theme

    def compose(self) -> ComposeResult:
        yield Static(id="summary", markup=False)
        yield Static(id="note", markup=False)
        yield TunnelList()
        yield Static(_EMPTY, id="empty", markup=False)
        yield DetailsPane()
        yield Words(placeholder="words that a tunnel has to have; Enter keeps them, Esc shows all", id="filter")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        # Else the terminal would stay as it is here: raw, and with the mouse told of.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit)
        self.tunnels.focus()
        self._feed.start(self._tell)
        if self._tick:
            self.set_interval(self._tick, self.look)

    def on_unmount(self) -> None:
        self._feed.stop()

    def _tell(self, message: Message) -> None:
        """Takes a message from any thread; none once the screen has gone."""
        with contextlib.suppress(RuntimeError):
            self.post_message(message)

    @property
    def _main(self) -> Screen[object]:
        """The screen that the others lie over."""
        return self.screen_stack[0]

    @property
    def _is_there(self) -> bool:
        """Whether there is anything to show on: the clock may tick while the screen is being taken down."""
        return bool(self.screen_stack and self._main.query(TunnelList))

    @property
    def tunnels(self) -> TunnelList:
        return self._main.query_one(TunnelList)

    # What is told

    def on_told(self, message: Told) -> None:
        self._is_told, self._why_silent = True, ""
        if message.is_first:
            self.board.start_over(message.changes)
            self.look()
        else:
            self.board.learn(message.changes)
        self._offer_login()

    def on_silent(self, message: Silent) -> None:
        self._is_told, self._why_silent = True, message.why
        if not message.why:
            self.board.tunnels.clear()
        self._show()

    def on_at_rest(self, message: AtRest) -> None:
        self.board.rest(message.tunnels)
        self._mistake = message.mistake
        self._show()

    def on_log_end(self, message: LogEnd) -> None:
        if self._is_there and message.name == self.tunnels.selected:
            self._log_end = message.lines
            self._show_details()

    def on_crashed(self, message: Crashed) -> None:
        raise message.error

    def on_done(self, message: Done) -> None:
        self._notice(message.text)

    def on_failed(self, message: Failed) -> None:
        if message.error.exit_code == Exit.NEEDS_LOGIN:
            self._ask_for_login(message.name)
        else:
            self._complain(message.error)

    def _complain(self, error: HoldfastError) -> None:
        text = f"{error.message}\n{error.hint}" if error.hint else error.message
        self.notify(text, severity="error", timeout=LONGER, markup=False)

    # What is seen

    def look(self) -> None:
        """Takes what is known into the past, and shows what is different."""
        self.board.tick(self._clock.seconds())
        self._show()

    def _show(self) -> None:
        if not self._is_there:
            return
        rows = self.board.rows(self._clock.now(), self._needle)
        self._main.set_class(self._is_told and not rows and not self._needle, "-empty")
        self.tunnels.show(rows)
        found = f"   {len(rows)} with '{self._needle}'" if self._needle else ""
        room = self.size.width - len(f"  {_NAME}{found}")
        summary = self.board.summary(room) if self._is_told else "asking the keeper"
        self._say("#summary", f"{_NAME}{summary}{found}")
        self._say("#note", self._note(has_rows=bool(rows)))
        self._show_details()

    def _note(self, *, has_rows: bool) -> str:
        notes = [self._mistake] if self._mistake else []
        if self._why_silent:
            notes.append(f"{self._why_silent}: this is how it was, and is looked for again")
        if self._needle and not has_rows:
            notes.append(f"no tunnel has '{self._needle}'; Esc shows all")
        return "\n".join(notes)

    def _say(self, where: str, text: str) -> None:
        widget = self._main.query_one(where, Static)
        if widget.content != text:
            widget.update(text, layout=where == "#note")
            widget.set_class(bool(text), "-said")

    def _show_details(self) -> None:
        if not self._is_there:
            return
        pane = self._main.query_one(DetailsPane)
        is_open = self.size.height >= HIGH if self._wants_details is None else self._wants_details
        if is_open != pane.has_class("-open"):
            pane.set_class(is_open, "-open")
            self.call_after_refresh(self._show_details)  # only then is it known how wide it is
        elif is_open:
            name = self.tunnels.selected
            pane.show(name, self._facts(name, pane.room_for_bars), self._log_end)

    def _facts(self, name: str, room: int) -> list[details.Fact]:
        tunnel, resting = self.board.tunnels.get(name), self.board.resting(name)
        if tunnel is not None:
            rate, trips = self.board.rate(name), self.board.trips(name)
            return details.of_tunnel(tunnel, self._clock.now(), trips, rate, room)
        return details.of_resting(resting) if resting else []

    def _notice(self, text: str) -> None:
        self.notify(text, timeout=BRIEFLY, markup=False)

    @on(TunnelList.Selected)
    def _look_at_another(self) -> None:
        self._log_end = []
        self._feed.look_at(self.tunnels.selected)
        self._show_details()

    def on_resize(self) -> None:
        self.call_after_refresh(self._show_details)

    # What keys do

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """What is said of the selected tunnel is meant where it can be seen only."""
        is_ours = any(isinstance(one, Binding) and one.action == action for one in self.BINDINGS)
        if action == "filter" and isinstance(self.focused, Input):
            return False
        return not is_ours or action in ("quit", "next_theme") or len(self.screen_stack) == 1

    @on(TunnelList.Entered)
    def action_toggle_details(self) -> None:
        self._wants_details = not self._main.query_one(DetailsPane).has_class("-open")
        self._show_details()

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_next_theme(self) -> None:
        place = THEMES.index(self.theme) if self.theme in THEMES else -1
        self.theme = THEMES[(place + 1) % len(THEMES)]

    def action_filter(self) -> None:
        words = self._main.query_one(Input)
        words.display = True
        self._main.set_focus(words)

    def action_leave(self) -> None:
        """Shows all tunnels again, and has the keys be about them."""
        words = self._main.query_one(Input)
        words.value = ""
        words.display = False
        self._main.set_focus(self.tunnels)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._needle = event.value.strip()
        self._show()

    def on_input_submitted(self) -> None:
        if self._needle:
            self._main.set_focus(self.tunnels)
        else:
            self.action_leave()

    def action_bring_up(self) -> None:
        row = self.tunnels.row
        if row is None:
            return
        name, resting = row.name, self.board.resting(row.name)
        if row.state == "needs login":
            self._ask_for_login(name)
            return
        self._brought_up.add(name)
        self._do(name, lambda: self._actions.bring_up(name, resting))

    def action_take_down(self) -> None:
        if name := self._one_there():
            text = f"Take {name} down?{self.board.what_breaks(name)} u brings it up again."
            self._ask(text, "Take it down", lambda: self._do(name, lambda: self._actions.take_down(name)))

    def action_restart(self) -> None:
        if name := self._one_there():
            text = f"Give {name} a new connection? All that goes over the present one breaks off."
            self._ask(text, "Restart it", lambda: self._do(name, lambda: self._actions.restart(name)))

    def action_open_page(self) -> None:
        if name := self._one_there():
            self._notice(f"opening {name}")
            self._do(name, lambda: self._actions.open_page(name))

    def action_show_log(self) -> None:
        name = self.tunnels.selected
        if name:
            self.push_screen(LogScreen(name, paths.logs_dir() / paths.log_name(name)))

    def _one_there(self) -> str:
        """The selected tunnel, or '' after a word on why nothing can be done with it."""
        row = self.tunnels.row
        if row is not None and row.state == RESTING:
            self._notice(f"{row.name} is down; u brings it up")
            return ""
        return "" if row is None else row.name

    def _ask(self, text: str, what: str, act: Callable[[], None]) -> None:
        self.push_screen(Question(text, what), lambda is_yes: act() if is_yes else None)

    def _do(self, name: str, action: Callable[[], str]) -> None:
        background.do(name, action, self._tell)

    # Logins that need a person

    def _offer_login(self) -> None:
        """Offers it for what was brought up from here."""
        for name in list(self._brought_up):
            tunnel = self.board.tunnels.get(name)
            if tunnel is None or tunnel["state"] in _UNDER_WAY:
                continue
            self._brought_up.discard(name)
            if tunnel["state"] == "needs login" and len(self.screen_stack) == 1:
                self._ask_for_login(name)

    def _ask_for_login(self, name: str) -> None:
        tunnel = self.board.tunnels.get(name)
        why = f"\n{tunnel['reason']}" if tunnel and tunnel["reason"] else ""
        text = f"{name} needs a person to log in.{why}\nThe screen makes room for that, and comes back."
        self._ask(text, "Log in", lambda: self._log_in(name))

    def _log_in(self, name: str) -> None:
        try:
            with self.suspend():
                code = self._actions.log_in(name)
                if failed_login(code):
                    with contextlib.suppress(EOFError, KeyboardInterrupt):
                        input("Enter goes back to the screen ")
        except SuspendNotSupported:
            self._complain(HoldfastError("this terminal can't be shared", f"in another one: holdfast up {name}"))
