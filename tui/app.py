"""The application: one stream from the grid into the state, and the screens on it.

Everything that waits for the grid runs in a worker; the keys never do.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import ClassVar, Final

from textual.app import App
from textual.binding import Binding, BindingType

from gridkeeper.client import ClientError, GridClient
from gridkeeper.client.answers import Act
from gridkeeper.clock import SystemClock
from gridkeeper.config import ClientConfig
from gridkeeper.ports.clock import Clock
from tui.feed import Feed, OpenFeed
from tui.palette import DARK, LIGHT, THEMES
from tui.screens.base import GridModal, GridScreen
from tui.screens.dialogues import ActScreen, HelpScreen
from tui.screens.pages import DescribeScreen, ExplainScreen, InfoScreen, LogScreen, YamlScreen
from tui.screens.tables import ROOTS, NodeScreen, TableScreen
from tui.viewmodel import acts, commands
from tui.viewmodel.acts import Verb
from tui.viewmodel.commands import BadCommand, Goto, Help, Info, OpenObject, Place, Quit
from tui.viewmodel.state import DEVICE, JOB, NODE, WATCHED, Now, State
from tui.viewmodel.table import Ref
from tui.viewmodel.text import Spans, Tone, span

REFRESH_S: Final = 0.2
RETRY_MS: Final = 2_000
POLL_MS: Final = 2_000
POLL_SHARE: Final = 10
"""A poll that took long is repeated only after ten times as long."""

BATCH: Final = 250
"""Changes folded before the keys get their turn."""

NOTICE_MS: Final = 8_000


class GridApp(App[None]):
    """``open_feed`` is called inside the running loop, and again whenever the feed failed."""

    CSS_PATH = "app.tcss"
    TITLE = "gridkeeper"
    ENABLE_COMMAND_PALETTE = False
    DEFAULT_MODE = "fleet"
    MODES: ClassVar[dict[str, type[TableScreen]]] = ROOTS  # type: ignore[assignment]
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"tab('{name}')", title, show=False) for n, (name, title) in enumerate(commands.TABS, 1)),
        Binding("question_mark", "help", "help", show=False),
        Binding("i", "info", "info", show=False),
        Binding("t", "theme", "dark and light", show=False),
        Binding("q", "quit", "quit", show=False),
        Binding("ctrl+c", "quit", "quit", show=False),
    ]

    def __init__(
        self, open_feed: OpenFeed, *, clock: Clock | None = None, readonly: bool = False, start: str = ""
    ) -> None:
        super().__init__()
        self.clock: Clock = clock or SystemClock()
        self.readonly = readonly
        self.state = State()
        self.feed: Feed | None = None
        self.notice: Spans = ()
        self._notice_until_ms = 0
        self._open_feed = open_feed
        self._start = start
        self._poke = asyncio.Event()
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = DARK

    def now(self) -> Now:
        return Now(self.clock.mono_ms(), self.clock.wall_ms())

    async def on_mount(self) -> None:
        self.set_interval(REFRESH_S, self.refresh_views)
        self.run_worker(self._follow(), group="follow")
        self.run_worker(self._poll(), group="poll")
        if self._start:
            try:
                await self.run_command(commands.parse(self._start))
            except BadCommand as error:
                self.say(str(error), Tone.WARN)

    # -- from the grid --------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """The stream, for ever: what ends it is shown, and it begins anew."""
        while True:
            try:
                async with self._open_feed() as feed:
                    self.feed = feed
                    self.state.restart()
                    count = 0
                    async with aclosing(feed.watch(WATCHED)) as changes:
                        async for change in changes:
                            self.state.apply(change, self.clock.mono_ms())
                            count += 1
                            if count % BATCH == 0:
                                await self.clock.sleep(0)
                    self.state.failed("the stream from the grid ended; it is opened again")
            except (ClientError, OSError, ValueError) as error:
                self.state.failed(str(error) or type(error).__name__)
            finally:
                self.feed = None
            await self.clock.sleep(RETRY_MS)

    async def _poll(self) -> None:
        """Readings that the watch does not carry, for the screen that is looked at."""
        while True:
            began = self.clock.mono_ms()
            screen = self.top()
            for kind, selector in screen.polls() if screen is not None else ():
                if self.feed is None:
                    break
                try:
                    self.state.refreshed((await self.feed.list(kind, selector)).objects)
                except ClientError:
                    break  # the state of the connection says so already; the readings age and are shown as unknown
            self._poke.clear()
            wait_ms = max(POLL_MS, POLL_SHARE * (self.clock.mono_ms() - began))
            try:
                await asyncio.wait_for(self._poke.wait(), wait_ms / 1000)
            except TimeoutError:
                continue

    def wake_poller(self) -> None:
        """Another screen is looked at: do not wait for the next round."""
        self._poke.set()

    # -- to the eye -----------------------------------------------------------------------------------------------

    def top(self) -> GridScreen | None:
        """The screen that is looked at, below any dialogue."""
        return next((s for s in reversed(self.screen_stack) if isinstance(s, GridScreen)), None)

    def refresh_views(self) -> None:
        if self.notice and self.clock.mono_ms() > self._notice_until_ms:
            self.notice = ()
        screen = self.top()
        if screen is not None:
            screen.refresh_view()
        over = self.screen_stack[-1] if self.screen_stack else None
        if isinstance(over, GridModal) and over.is_mounted:
            over.refresh_view()

    def say(self, text: str, tone: Tone = Tone.PLAIN) -> None:
        """In the status line, for a while."""
        self.notice = (span(text, tone),) if text else ()
        self._notice_until_ms = self.clock.mono_ms() + NOTICE_MS
        self.call_later(self.refresh_views)

    # -- going places ---------------------------------------------------------------------------------------------

    async def goto(self, place: Place, filter_text: str = "") -> None:
        """The screen of a number key, at its root."""
        await self.switch_mode(place.screen)
        while len(self.screen_stack) > 1:
            await self.pop_screen()
        screen = self.screen
        if isinstance(screen, TableScreen):
            screen.section = place.section
            self.say(screen.filter_changed(filter_text), Tone.WARN)
            screen.refresh_view()

    def back(self) -> None:
        if len(self.screen_stack) > 1:
            self.pop_screen()

    async def run_command(self, parsed: commands.Parsed) -> None:
        match parsed:
            case Quit():
                self.exit()
            case Help():
                self.action_help()
            case Info():
                self.action_info()
            case Goto(place, text):
                await self.goto(place, text)
            case OpenObject(ref):
                self.open_object(ref)

    def _tab(self) -> str:
        screen = self.top()
        return screen.tab if screen is not None else ""

    def open_object(self, ref: Ref) -> None:
        """Enter: a node shows its devices, everything else its page."""
        if ref.kind == NODE:
            self.push_screen(NodeScreen(ref.name))
        else:
            self.push_screen(DescribeScreen(ref, self._tab()))

    def open_page(self, ref: Ref, what: str) -> None:
        pages = {"describe": DescribeScreen, "explain": ExplainScreen, "yaml": YamlScreen}
        page = pages[what](ref, self._tab())
        if type(self.screen) in pages.values():
            self.switch_screen(page)
        else:
            self.push_screen(page)

    def open_logs(self, ref: Ref) -> None:
        job = ref.name if ref.kind == JOB else ""
        if ref.kind == DEVICE and (device := self.state.get(DEVICE, ref.name)) is not None:
            job = device.device.job
        if job:
            self.push_screen(LogScreen(Ref(JOB, job), self._tab()))
        else:
            self.say("no job here", Tone.DIM)

    def open_act(self, ref: Ref) -> None:
        if self.readonly:
            self.say("read-only: start without --readonly to act", Tone.WARN)
        elif not acts.verbs(ref):
            self.say("there is nothing to do to this kind of object", Tone.DIM)
        else:
            self.push_screen(ActScreen(ref))

    # -- acting ---------------------------------------------------------------------------------------------------

    def act(self, verb: Verb, ref: Ref, reason: str) -> None:
        """Carry out a confirmed act in a worker."""
        if not self.readonly:
            self.say(f"{verb.name} {ref.name}: asking…", Tone.DIM)
            self.run_worker(self._act(verb, ref, reason), group="act")

    async def _act(self, verb: Verb, ref: Ref, reason: str) -> None:
        try:
            if self.feed is None:
                self.say(f"{verb.name} {ref.name}: not connected, nothing was done", Tone.BAD)
                return
            done = await carry_out(self.feed, verb, ref.name, reason)
            self.say(done.sentence or f"{verb.name} {ref.name}: done", Tone.GOOD)
        except ClientError as error:
            self.say(f"{verb.name} {ref.name}: {error}", Tone.BAD)
        self.refresh_views()

    # -- keys -----------------------------------------------------------------------------------------------------

    async def action_tab(self, name: str) -> None:
        if not isinstance(self.screen, GridModal):
            await self.goto(Place(name))

    def action_help(self) -> None:
        if not isinstance(self.screen, GridModal):
            self.push_screen(HelpScreen())

    def action_info(self) -> None:
        if not isinstance(self.screen, GridModal):
            self.push_screen(InfoScreen(self._tab()))

    def action_theme(self) -> None:
        self.theme = LIGHT if self.theme == DARK else DARK
        self.refresh_css()


async def carry_out(feed: Feed, verb: Verb, name: str, reason: str) -> Act:
    """Call what ``verb`` stands for. Raises ``ClientError``."""
    if verb is acts.CORDON:
        return await feed.cordon(name, reason)
    if verb is acts.UNCORDON:
        return await feed.uncordon(name, reason)
    if verb is acts.DRAIN_VERB:
        return await feed.drain(name, reason)
    if verb is acts.CANCEL:
        return await feed.cancel_drain(name, reason)
    if verb is acts.ACKNOWLEDGE:
        return await feed.ack_incident(name, reason)
    if verb is acts.MIGRATE:
        return await feed.migrate_job(name, reason=reason)
    if verb is acts.STOP:
        return await feed.stop_job(name, reason)
    raise ValueError(f"verb: {verb.name!r} is not one that the grid knows")


def run_tui(config: ClientConfig, *, readonly: bool = False, start: str = "") -> int:
    """Run until the user quits. ``start``: a command as after ``:`` (``jobs``, ``incident/<id>``). Returns the exit
    code: 0, 1 after a crash, 2 for a ``start`` that is no command."""
    if start:
        try:
            commands.parse(start)
        except BadCommand as error:
            print(error, file=sys.stderr)
            return 2
    app = GridApp(lambda: GridClient(config), readonly=readonly, start=start)
    app.run()
    return app.return_code or 0
