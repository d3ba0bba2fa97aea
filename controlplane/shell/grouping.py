"""Which decisions of one tick may share a transaction, and which transactions may be under way at once. Pure.

A transaction costs a round trip and a place in etcd's log, however little it writes; when hundreds of decisions come at
once, that is what they wait for. Decisions that have nothing to do with each other are therefore carried out together,
up to what etcd takes in one transaction. If it fails, nothing was done, and the halves are tried apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controlplane.store.limits import MAX_OPS
from gridkeeper.decision import Decision

MOST_OPS = MAX_OPS - 1
"""Of compares and of operations alike; the leader guard needs one more compare."""
MOST_AT_ONCE = 8
"""Transactions under way together: their round trips overlap, and whatever else the store is asked waits behind few."""
MOST_DECISIONS = 64
"""Records are about 1 KiB: far below the 1.5 MiB of a request, and a larger one than that is tried apart anyway."""


def groups(decisions: Iterable[Decision]) -> Iterator[tuple[Decision, ...]]:
    """In their order. Of one group none writes what another one writes or rests on, and all that rest on one key rest
    on the same revision of it: together they do what one after the other would."""
    group: list[Decision] = []
    written: set[str] = set()
    rested: dict[str, int] = {}
    ops = 0
    for decision in decisions:
        writes = {write.key for write in decision.writes}
        guards = {guard.key: int(guard.expected) for guard in decision.guards if guard.key not in writes}
        fresh = sum(1 for key in guards if key not in rested)
        need = len(writes) + max(1, fresh)  # operations with the audit record, or compares: whichever is more
        fits = len(group) < MOST_DECISIONS and ops + need <= MOST_OPS
        apart = (
            writes.isdisjoint(written)
            and writes.isdisjoint(rested)
            and written.isdisjoint(guards)
            and all(rested.get(key, expected) == expected for key, expected in guards.items())
        )
        if group and not (fits and apart):
            yield tuple(group)
            group, written, rested, ops = [], set(), {}, 0
            need = len(writes) + max(1, len(guards))
        group.append(decision)
        written |= writes
        rested |= guards
        ops += need
    if group:
        yield tuple(group)


def waves(decisions: Iterable[Decision]) -> Iterator[tuple[tuple[Decision, ...], ...]]:
    """Groups that may be under way at once, in their order: none of them writes what another one writes or rests on,
    so that it makes no difference which of them comes first."""
    wave: list[tuple[Decision, ...]] = []
    written: set[str] = set()
    touched: set[str] = set()
    for group in groups(decisions):
        writes = {write.key for decision in group for write in decision.writes}
        touches = writes | {guard.key for decision in group for guard in decision.guards}
        if wave and (len(wave) == MOST_AT_ONCE or not written.isdisjoint(touches) or not touched.isdisjoint(writes)):
            yield tuple(wave)
            wave, written, touched = [], set(), set()
        wave.append(group)
        written |= writes
        touched |= touches
    if wave:
        yield tuple(wave)
