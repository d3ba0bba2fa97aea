"""Pages of text about one object: description, evidence, YAML, log; and about the connection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget

from gridkeeper.client import ClientError
from gridkeeper.v1.api_pb2 import Kind, Object
from tui.feed import Feed
from tui.screens.base import GridScreen
from tui.viewmodel import acts, describe, explain
from tui.viewmodel.state import DEVICE, JOB, NODE, Now, State
from tui.viewmodel.table import Ref
from tui.viewmodel.text import Span, Spans, Tone, span
from tui.widgets.lines import Lines

AGAIN_MS = 2_000
"""How often a page that is fetched is fetched again while it is looked at."""


class PageScreen(GridScreen):
    """Lines that are derived from the state or fetched by a worker, so that a slow grid never stops the keys."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("r", "again", "ask again", show=False)]
    what = ""
    indent = 0
    live = False

    def __init__(self, ref: Ref, tab: str) -> None:
        super().__init__()
        self._ref = ref
        self.tab = tab
        self._fetched: list[Spans] | None = None
        self._error = ""

    def body(self) -> Iterable[Widget]:
        yield Lines(id="page", indent=self.indent)

    @property
    def ref(self) -> Ref | None:
        return self._ref

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(Lines).focus()
        self.action_again()

    def trail(self) -> Spans:
        return (Span(f"{self.what} " if self.what else "", Tone.DIM), span(describe.title_of(self._ref), Tone.STRONG))

    def hint_pairs(self) -> tuple[tuple[str, str], ...]:
        act = (("x", "act"),) if not self.grid.readonly and acts.verbs(self.ref) else ()
        return (("esc", "back"), ("e", "explain"), ("d", "describe"), ("y", "yaml"), *act, ("r", "ask again"))

    def action_again(self) -> None:
        self.run_worker(self._ask(), group="ask", exclusive=True)

    async def _ask(self) -> None:
        while True:
            feed = self.grid.feed
            if feed is None:
                self._error = "not connected; it will be asked when the grid answers"
            else:
                try:
                    self._fetched, self._error = await self.fetch(feed), ""
                except ClientError as error:
                    self._error = str(error)
            self.refresh_view()
            if not self.live and not self._error:
                return
            await self.grid.clock.sleep(AGAIN_MS)

    async def fetch(self, feed: Feed) -> list[Spans]:
        return []

    def lines(self, state: State, now: Now) -> Sequence[Spans]:
        return self._fetched if self._fetched is not None else [(Span("asking…", Tone.DIM),)]

    def refresh_body(self, state: State, now: Now) -> None:
        lines = list(self.lines(state, now)) if self._fetched is not None or not self._error else []
        if self._error:
            lines = [(span(self._error, Tone.WARN),), (Span("r asks again", Tone.DIM),), (), *lines]
        self.query_one(Lines).show(lines)


class DescribeScreen(PageScreen):
    """An object in full, live; a device with its readings and their course."""

    indent = describe.LABEL

    def __init__(self, ref: Ref, tab: str) -> None:
        super().__init__(ref, tab)
        self._detail: Object | None = None
        self.live = ref.kind in (DEVICE, NODE, JOB)

    async def fetch(self, feed: Feed) -> list[Spans]:
        if self.live or self.grid.state.get(self._ref.kind, self._ref.name) is None:
            self._detail = await feed.get(Kind.ValueType(self._ref.kind), self._ref.name)
        return []

    def lines(self, state: State, now: Now) -> Sequence[Spans]:
        held = state.get(self._ref.kind, self._ref.name)
        detail = self._detail
        if held is not None and detail is not None and held.revision > detail.revision:
            detail = None  # the watch is ahead of the last answer
        return describe.lines(state, self._ref, now, detail)

    def refresh_body(self, state: State, now: Now) -> None:
        lines = list(self.lines(state, now))
        if self._error and self.live:
            lines = [(span(f"no fresh readings: {self._error}", Tone.WARN),), (), *lines]
        elif self._error and self._detail is None:
            lines = [(span(self._error, Tone.WARN),)]
        self.query_one(Lines).show(lines)


class ExplainScreen(PageScreen):
    """The chain of evidence."""

    what = "explain"
    indent = 25

    async def fetch(self, feed: Feed) -> list[Spans]:
        answer = await feed.explain(Kind.ValueType(self._ref.kind), self._ref.name)
        return explain.lines(answer.chain, answer.partial)


class YamlScreen(PageScreen):
    """The object as the CLI prints it."""

    what = "yaml"
    indent = 4

    async def fetch(self, feed: Feed) -> list[Spans]:
        return describe.as_yaml(await feed.get(Kind.ValueType(self._ref.kind), self._ref.name))


class LogScreen(PageScreen):
    """The end of a job's output, live; stays at the end until scrolled up."""

    what = "log of"
    live = True

    async def fetch(self, feed: Feed) -> list[Spans]:
        node, text = await feed.job_logs(self._ref.name)
        lines: list[Spans] = [(span(f"{self._ref.name} on {node or 'no node'}", Tone.DIM),), ()]
        lines += [(span(one),) for one in text.decode("utf-8", "replace").splitlines()]
        return lines

    def refresh_body(self, state: State, now: Now) -> None:
        page = self.query_one(Lines)
        at_end = page.scroll_offset.y >= page.max_scroll_y
        super().refresh_body(state, now)
        if at_end:
            page.scroll_end(animate=False)


class InfoScreen(PageScreen):
    """Who answers: each replica of each region."""

    what = "info"
    live = True

    def __init__(self, tab: str) -> None:
        super().__init__(Ref(0, ""), tab)

    @property
    def ref(self) -> Ref | None:
        return None

    def trail(self) -> Spans:
        return (Span("info", Tone.STRONG),)

    async def fetch(self, feed: Feed) -> list[Spans]:
        lines: list[Spans] = []
        for status in await feed.info():
            lines.append((span(f"{status.region} {status.address}", Tone.TITLE),))
            info = status.info
            if info is None:
                lines += [describe.field("answers", status.error or "no", Tone.BAD), ()]
                continue
            leads = [what for what, yes in (("region", info.region_leader), ("global", info.global_leader)) if yes]
            stores = (("region", info.region_store_reachable), ("global", info.global_store_reachable))
            away = " and ".join(what for what, reachable in stores if not reachable)
            lines += [
                describe.field("replica", f"{info.replica}, version {info.version}"),
                describe.field("leads", ", ".join(leads) or "nothing"),
                describe.field("stores", f"{away} away" if away else "reachable", Tone.BAD if away else Tone.GOOD),
                describe.field("you are", f"{info.identity} with role {info.role}"),
                (),
            ]
        return lines
