"""Who besides the replica's own ear can say whether a silent node lives, what they said, and whom to ask. Pure.

The witnesses, each with what it proves:

- *A peer's probe* that reached the node's agent, by the node's own certificate: it lives, and only the way to us is
  cut. With another boot id than the one that said hello to us: what ran there is gone; that node has *failed*.
- *A peer's probe* that was refused: the host lives, its agent does not answer. It says nothing of the jobs, which the
  guardian keeps, so it convicts nobody early (an agent may be restarting).
- *A peer's probe* that got no answer at all: the silence is not ours alone.
- *The job's progress*: a run on the node that another replica wrote after the silence began.
- *The kernel's last words*: a panic that its agent reported right before the silence. It has *failed*.

An answer counts only if this process saw it arrive after it had seen the question, and the question after the silence
(``Versioned.seen_ms``, own clock): what an earlier leader asked and heard is asked again.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from controlplane.domain.words import duration, listed
from gridkeeper.catalogue.codes import HostCode
from gridkeeper.decision import Decision, Delete, Draft, Guard, Now, Put, Versioned
from gridkeeper.hearing import heard
from gridkeeper.ids import NodeId
from gridkeeper.keys import RegionKeys
from gridkeeper.records.care import ProbeRecord, WitnessRecord
from gridkeeper.records.fleet import EventKind, EventRecord, NodeState, SessionRecord
from gridkeeper.records.jobs import RunPhase, RunRecord
from gridkeeper.snapshot import GlobalState, RegionState, Settings

MAX_QUESTIONS = 256
"""Nodes asked about at a time. When more fall silent, the rest are judged by the full limit alone."""
MAX_FORGOTTEN = 96
"""Records deleted in one transaction."""
LAST_WORDS_MS = 30_000
"""A panic explains a silence that began within this time of it."""


@dataclass(frozen=True, slots=True)
class Testimony:
    """What is known of a silent node besides that it is silent. ``alive``, ``gone``: one sentence per witness that
    proves it. ``pending``: a question whose answers are still to be waited for. ``unanswered``: peers that got no
    answer at all, out of those that ``reported``. ``words``: all witnesses, one sentence each."""

    alive: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    asked: int = 0
    reported: int = 0
    unanswered: int = 0
    refused: int = 0
    pending: bool = False
    words: tuple[str, ...] = ()

    @property
    def corroborated(self) -> bool:
        """Nobody says that it lives, and enough peers heard nothing either: two, or all there are."""
        settled = self.asked > 0 and not self.pending and not self.alive and not self.refused
        return settled and self.unanswered >= min(2, self.asked)


@dataclass(slots=True)
class Court:
    """What all silent nodes of one round share, worked out at most once."""

    state: RegionState
    world: GlobalState
    settings: Settings
    now: Now
    _runs: dict[NodeId, list[Versioned[RunRecord]]] | None = None
    _panics: dict[NodeId, list[EventRecord]] | None = None
    _peers: dict[str, list[NodeId]] | None = None
    _said: dict[NodeId, list[Versioned[WitnessRecord]]] | None = None
    _under_way: int | None = None
    decisions: list[Decision] = field(default_factory=list)

    @property
    def answer_ms(self) -> int:
        """How long answers are waited for: what peers get, and the way there and back."""
        return self.settings.policy.liveness.witness_ms * 5 // 4

    @property
    def again_ms(self) -> int:
        """A question that was answered is asked again after this, while the silence lasts."""
        return max(2 * self.settings.policy.liveness.witness_ms, self.settings.timings.unreachable_ms // 2)

    # -- what is known

    def hear(self, node: NodeId, session: SessionRecord, started_ms: int) -> Testimony:
        """``started_ms``: this process's clock when the silence began for it."""
        alive, gone, words = [], [], []
        for run in self._progress(node, started_ms):
            age = duration(self.now.mono_ms - run.seen_ms)
            said = f"job {run.record.job} reported step {run.record.last_step} {age} ago, by another way"
            alive.append(said)
            words.append(said)
        for event in self._last_words(node, session):
            gone.append(f"its kernel panicked right before ({event.id})")
            words.append(f"its own agent reported a kernel panic: {event.message[:120]}")
        asked = self._question(node, started_ms)
        answers = self._answers(node, asked) if asked else []
        boot = self.state.nodes[node].record.boot_id
        unanswered = refused = 0
        for answer in answers:
            record, age = answer.record, duration(self.now.mono_ms - answer.seen_ms)
            if record.reached and record.boot_id == boot:
                alive.append(f"{record.peer} reached its agent")
                words.append(f"{record.peer} reached its agent in {record.rtt_us / 1000:.1f} ms, {age} ago")
            elif record.reached:
                gone.append(f"it booted anew (boot id {record.boot_id}, before: {boot})")
                words.append(f"{record.peer} reached an agent of boot {record.boot_id}, {age} ago")
            elif record.refused:
                refused += 1
                words.append(f"{record.peer} found its host, but not its agent, {age} ago: {record.detail}")
            else:
                unanswered += 1
                words.append(f"{record.peer} got no answer, {age} ago: {record.detail}")
        peers = len(asked.record.peers) if asked else 0
        waiting = asked is not None and len(answers) < peers and self.now.mono_ms - asked.seen_ms < self.answer_ms
        return Testimony(tuple(alive), tuple(gone), peers, len(answers), unanswered, refused, waiting, tuple(words))

    def _question(self, node: NodeId, started_ms: int) -> Versioned[ProbeRecord] | None:
        """The one that is about this silence."""
        asked = self.state.probes.get(node)
        return asked if asked is not None and asked.seen_ms >= started_ms else None

    def _answers(self, node: NodeId, asked: Versioned[ProbeRecord]) -> list[Versioned[WitnessRecord]]:
        found = (self.state.witnesses.get(f"{node}/{peer}") for peer in asked.record.peers)
        return [a for a in found if a and a.record.round == asked.record.round and a.seen_ms > asked.seen_ms]

    def _progress(self, node: NodeId, started_ms: int) -> Iterator[Versioned[RunRecord]]:
        """Not of gangs: their record changes with the report of any member, so it says nothing of one node."""
        if self._runs is None:
            self._runs = {}
            for run in self.world.runs.values() if self.world.fresh else ():
                if run.record.phase is RunPhase.RUNNING and run.record.last_step >= 0 and not run.record.members:
                    self._runs.setdefault(run.record.node, []).append(run)
        for run in self._runs.get(node, ()):
            if run.seen_ms > started_ms and self.now.mono_ms - run.seen_ms <= self.settings.timings.unreachable_ms:
                yield run

    def _last_words(self, node: NodeId, session: SessionRecord) -> list[EventRecord]:
        """Panics that happened in this session (by the clock of the replica that held it), shortly before its end."""
        if self._panics is None:
            self._panics = {}
            for held in self.state.events.values():
                if held.record.kind is EventKind.HOST and held.record.code == HostCode.KERNEL_PANIC:
                    self._panics.setdefault(held.record.node, []).append(held.record)
        heard_ms = session.at_wall_ms - session.silent_ms
        hello_ms = self.state.nodes[node].record.registered_wall_ms
        return [
            event
            for event in self._panics.get(node, ())
            if not session.open and event.observed_ms >= max(hello_ms, heard_ms - LAST_WORDS_MS)
        ]

    # -- asking

    def ask(self, node: NodeId, session: Versioned[SessionRecord], started_ms: int, told: Testimony) -> None:
        """Ask peers about a silent node, for the first time or again, if there is whom to ask and room for it."""
        address = self.state.nodes[node].record.probe_address
        if not address or self.settings.policy.liveness.witnesses < 1:
            return
        old, current = self.state.probes.get(node), self._question(node, started_ms)
        if current is not None:
            age = self.now.mono_ms - current.seen_ms
            if told.pending or age < (self.again_ms if told.reported else self.answer_ms):
                return
        if self._under_way is None:
            asked = (self.now.mono_ms - held.seen_ms < self.answer_ms for held in self.state.probes.values())
            self._under_way = sum(asked)
        if self._under_way >= MAX_QUESTIONS:
            return
        number = old.record.round + 1 if old else 1
        peers = self._choose(node, number)
        if not peers:
            return
        self._under_way += 1
        keys = RegionKeys(self.state.region)
        draft = Draft()
        draft.put(keys.probe(node), ProbeRecord(node, address, peers, self.now.ledger_ms, number), old)
        for answer in self._said_of(node):
            if answer.record.peer not in peers:
                draft.delete(keys.witness(node, answer.record.peer), answer)
        sentence = f"{listed(list(peers))} are asked whether they reach {node} at {address}"
        guards = (Guard(keys.session(node), session.revision),)
        self.decisions.append(Decision("liveness.ask", sentence, draft.writes(), guards, f"node/{node}", audit=False))

    def _choose(self, node: NodeId, number: int) -> tuple[NodeId, ...]:
        """Living peers, others in each round: one of the same rack (to tell its switch from the node), the rest of as
        many other racks as there are."""
        if self._peers is None:
            self._peers = {}
            for peer in sorted(n for n in self.state.nodes if self._may_witness(n)):
                self._peers.setdefault(self.state.nodes[peer].record.rack, []).append(peer)
        turn = zlib.crc32(f"{node}/{number}".encode())
        own = self.state.nodes[node].record.rack
        others = sorted(self._peers.keys() - {own})
        start = turn % len(others) if others else 0
        racks = [own, *others[start:], *others[:start]]
        count, chosen = self.settings.policy.liveness.witnesses, []
        for lap in range(count):  # one of each rack; where there are too few racks, more of each
            for rack in racks:
                peers = (
                    [peer for peer in self._peers.get(rack, ()) if peer != node] if rack == own else self._peers[rack]
                )
                if lap < len(peers):
                    chosen.append(peers[(turn + lap) % len(peers)])
                if len(chosen) == count:
                    return tuple(chosen)
        return tuple(chosen)

    def _may_witness(self, node: NodeId) -> bool:
        liveness = self.state.liveness.get(node)
        return bool(heard(self.state, node)) and liveness is not None and liveness.record.state is NodeState.ALIVE

    def _said_of(self, node: NodeId) -> list[Versioned[WitnessRecord]]:
        if self._said is None:
            self._said = {}
            for held in self.state.witnesses.values():
                self._said.setdefault(held.record.node, []).append(held)
        return self._said.get(node, [])

    def forget(self, node: NodeId) -> None:
        """The node is heard again: questions about it, and what was answered, go."""
        keys = RegionKeys(self.state.region)
        asked = self.state.probes.get(node)
        if asked is None:
            return
        writes: list[Put | Delete] = [
            Delete(keys.witness(node, held.record.peer), held.revision) for held in self._said_of(node)
        ]
        if len(writes) < MAX_FORGOTTEN:  # the question last: while it is there, the rest is deleted in a next round
            writes.append(Delete(keys.probe(node), asked.revision))
        sentence = f"{node} is heard again: nobody is asked about it any more"
        self.decisions.append(
            Decision("liveness.ask", sentence, tuple(writes[:MAX_FORGOTTEN]), (), f"node/{node}", audit=False)
        )
