"""A history as people read it: what was injected, what the machine decided and why, what the jobs' processes did."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.simulate.history import GLOBAL_STORE, Commit, Gone, Injected, Started
from chaos.simulate.replay import Moment
from gridkeeper.records.fleet import LivenessRecord


def sentences(moments: tuple[Moment, ...]) -> Iterator[str]:
    """One line each, with the virtual time since the start of the run."""
    for moment in moments:
        for where, text in _told(moment):
            yield f"{moment.at_ms / 1000:8.3f} s  {where:<8} {text}"


def _told(moment: Moment) -> Iterator[tuple[str, str]]:
    match moment.entry:
        case Injected(_, what):
            yield "FAULT", what
        case Started(_, node, job, epoch, devices, resume_step):
            origin = f"from step {resume_step}" if resume_step >= 0 else "from scratch"
            yield node, f"{job} epoch {epoch} starts on {', '.join(devices)}, {origin}"
        case Gone(_, node, job, epoch, exit_code, exit_signal):
            how = f"signal {exit_signal}" if exit_signal else f"exit status {exit_code}"
            yield node, f"{job} epoch {epoch} is gone ({how})"
        case Commit(_, store):
            for change in moment.changes:
                if change.kind == "audit" and change.new is not None:
                    yield store, f"{change.new.verb}: {change.new.sentence}"
                elif change.kind == "leader" and change.new is not None:
                    what = "the global store" if store == GLOBAL_STORE else f"region {store}"
                    yield store, f"{change.new.replica} leads {what}"
                elif isinstance(change.new, LivenessRecord) and change.old is None:
                    yield store, f"{change.new.node} is {change.new.state.value}"
