"""Budget records kept in line with what they count: inventory, policy, drains and cordons. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from controlplane.domain.budget import Book, cordon_holds, hold_order
from controlplane.domain.health import IN_SERVICE
from gridkeeper.decision import Decision, Draft, Now
from gridkeeper.keys import RegionKeys
from gridkeeper.records.faults import BudgetHold, DrainState, HoldKind
from gridkeeper.snapshot import RegionState, Settings

HOLDING = frozenset({DrainState.ADMITTED, DrainState.EVACUATING, DrainState.DRAINED, DrainState.EXPIRED})
MAX_RECONCILED = 60


def wanted_holds(state: RegionState) -> set[BudgetHold]:
    """What must be held, as cordons, drains and health records say."""
    wanted = set(cordon_holds(state))
    for drain in state.drains.values():
        record = drain.record
        if record.state not in HOLDING or record.device not in state.devices:
            continue
        health = state.health.get(record.device)
        over = record.state in (DrainState.DRAINED, DrainState.EXPIRED)
        if over and (health is None or health.record.drain != record.id or health.record.state in IN_SERVICE):
            continue
        wanted.add(BudgetHold(record.device, HoldKind.DRAIN, record.id))
    return wanted


def _keeps(state: RegionState, keys: RegionKeys, hold: BudgetHold) -> bool:
    """A hold whose drain or cordon cannot be read stays: nobody knows that it is over."""
    if not state.suspect_keys:
        return False
    ref = keys.drain(hold.ref) if hold.kind is HoldKind.DRAIN else keys.cordon(hold.device)
    node = keys.cordon(hold.device.partition("/")[0])
    unread = ref in state.suspect_keys or (hold.kind is HoldKind.CORDON and node in state.suspect_keys)
    return unread or keys.health(hold.device) in state.suspect_keys


def decide_budgets(state: RegionState, settings: Settings, now: Now) -> Decision | None:
    """Bring the budget records in line with inventory, policy, drains and cordons: places that leaked are given back,
    a record that was lost is made again."""
    keys, book, draft = RegionKeys(state.region), Book.of(state, settings, now), Draft()
    wanted = _by_budget(book, wanted_holds(state))
    moved: list[str] = []
    for name in book.names:
        line = book.line(name)
        if line.unreadable or len(draft.puts) >= MAX_RECONCILED:
            continue
        gone = line.total == 0 or (name.startswith("job-") and not book.is_running(name))
        if gone and not wanted.get(name) and not line.begun:
            if line.old is not None:
                draft.delete(keys.budget(name), line.old)
            continue
        if line.window_ms:
            holds: list[BudgetHold] = []
        else:
            kept = {hold for hold in line.holds if _keeps(state, keys, hold)}
            holds = sorted(kept | wanted.get(name, set()), key=hold_order)
        old = line.old.record if line.old else None
        recorded = list(old.holds) if old else []
        if holds != recorded:
            moved.append(f"{name} {len(recorded)} → {len(holds)} holds")
        line.holds = holds
        if old is None or (old.holds, old.limit, old.total) != (tuple(holds), line.limit, line.total):
            book.write(line, draft)
    if not draft.puts:
        return None
    sentence = f"budgets brought in line with the inventory: {', '.join(moved or book.names[:8])}"
    return Decision(
        "budget.reserve", sentence[:500], draft.writes(), subject=f"region/{state.region}", audit=bool(moved)
    )


def _by_budget(book: Book, holds: Iterable[BudgetHold]) -> Mapping[str, set[BudgetHold]]:
    found: dict[str, set[BudgetHold]] = {}
    for hold in holds:
        for name in book.covering(hold.device):
            found.setdefault(name, set()).add(hold)
    return found
