"""Writes what simulated parts see into the history."""

from __future__ import annotations

from collections.abc import Callable

from chaos.simulate.history import Acked, Commit, Gone, Held, History, Renewed, Started, Stepped, Stored, Write
from chaos.simulate.mvcc import Witness
from chaos.simulate.network import SimControlSession
from gridkeeper.ids import Epoch, JobId
from gridkeeper.ports.clock import Clock
from gridkeeper.ports.jobs import Launch
from gridkeeper.ports.link import parts
from gridkeeper.ports.store import Change, Compare
from gridkeeper.v1.agent_pb2 import ControlFrame


class Recorder:
    """``clock``: the run's own, for all entries. It is the ``Witness`` of executors."""

    def __init__(self, history: History, clock: Clock) -> None:
        self._history = history
        self._clock = clock

    def commits(self, store: str) -> Witness:
        """For ``Mvcc.witness``."""

        def witness(revision: int, changes: tuple[Change, ...], compares: tuple[Compare, ...]) -> None:
            writes = tuple(Write(c.kv.key, None if c.deleted else c.kv.value) for c in changes)
            guards = tuple(Held(c.key, int(c.revision), c.create) for c in compares)
            self._history.add(Commit(self._clock.mono_ms(), store, revision, writes, guards))

        return witness

    def stores(self, region: str) -> Callable[[JobId, int, str], None]:
        """For ``SimCheckpointStore``."""

        def witness(job: JobId, step: int, digest: str) -> None:
            self._history.add(Stored(self._clock.mono_ms(), region, job, step, digest))

        return witness

    def sent(self, session: SimControlSession, message: ControlFrame) -> None:
        """For ``SimNetwork``."""
        for frame in parts(message):
            self._said(session, frame)

    def _said(self, session: SimControlSession, frame: ControlFrame) -> None:
        now = self._clock.mono_ms()
        if frame.WhichOneof("frame") == "event_ack":
            sequence = frame.event_ack.sequence
            self._history.add(Acked(now, session.address, session.region, session.node, session.spool, sequence))
        for item in frame.renewal_ack.granted:
            epoch = Epoch(int(item.epoch.generation), int(item.epoch.number))
            self._history.add(Renewed(now, session.address, session.node, JobId(item.job), epoch))

    # -- executors

    def started(self, node: str, launch: Launch) -> None:
        self._history.add(
            Started(self._clock.mono_ms(), node, launch.job, launch.epoch, tuple(launch.devices), launch.resume_step)
        )

    def stepped(self, node: str, launch: Launch, step: int) -> None:
        self._history.add(Stepped(self._clock.mono_ms(), node, launch.job, launch.epoch, step))

    def gone(self, node: str, launch: Launch, exit_code: int, exit_signal: int) -> None:
        self._history.add(Gone(self._clock.mono_ms(), node, launch.job, launch.epoch, exit_code, exit_signal))
