"""A region's grant: taken, extended, and taken anew after the region was lost. Pure; decided by the region's leader.

The grant says that the region may keep its jobs alive. Its leader extends it a few times within F; a grant that is not
extended is how the others notice that a region may be lost (``losses``). It also says where its replicas are, and which
regions they ask when the global store is away (``promises``).
"""

from __future__ import annotations

from dataclasses import replace

from failover.domain.promises import peers_to_name
from gridkeeper.decision import ABSENT, Decision, Guard, Now, Put, Versioned, guards_of
from gridkeeper.ids import RegionId, ReplicaId
from gridkeeper.keys import KEYS
from gridkeeper.records.jobs import GrantRecord
from gridkeeper.records.regions import LossRecord, LossState
from gridkeeper.snapshot import GlobalState, Settings
from gridkeeper.timings import Timings

EXTENSIONS = 4
"""Within one F."""


def grant_guard(world: GlobalState, region: RegionId) -> Guard | None:
    """A region's leader writes to the global store only while its region's grant is the one it saw, and stands."""
    grant = world.grants.get(region)
    return Guard(KEYS.grant(region), grant.revision) if grant and not grant.record.revoked else None


def extend_every_ms(timings: Timings) -> int:
    return timings.fence_ms // EXTENSIONS


def decide_grant(
    region: RegionId,
    world: GlobalState,
    settings: Settings,
    now: Now,
    term: int,
    replica: ReplicaId,
    addresses: tuple[str, ...] = (),
) -> Decision | None:
    """Hold the grant under this term: take it, extend it, or, after a loss, take it anew when the hold-down is over. A
    lower term never takes it back. ``addresses``: of the region's live replicas."""
    if not world.fresh or KEYS.grant(region) in world.suspect_keys or KEYS.loss(region) in world.suspect_keys:
        return None
    held, loss = world.grants.get(region), world.losses.get(region)
    if held is not None and held.record.term > term:
        return None
    if held is not None and held.record.revoked:
        return _again(world, held, loss, settings, now, term, replica, addresses)
    peers = peers_to_name(world, region)
    if held is None or held.record.term < term:
        record = GrantRecord(region, term, replica, now.ledger_ms, now.ledger_ms, "", peers, addresses)
        sentence = f"{replica} holds the grant of region {region}, term {term}"
        put = Put(KEYS.grant(region), record, held.revision if held else ABSENT)
        return Decision("grant.take", sentence, (put,), (), f"region/{region}")
    age = now.ledger_ms - held.record.extended_ms
    told = (held.record.peers, held.record.addresses) == (peers, addresses)
    if told and age < extend_every_ms(settings.timings):
        return None
    record = replace(held.record, extended_ms=now.ledger_ms, peers=peers, addresses=addresses)
    sentence = f"{replica} extends the grant of region {region}, term {term}"
    put = Put(KEYS.grant(region), record, held.revision)
    return Decision("grant.extend", sentence, (put,), (), f"region/{region}", audit=False)


def _again(
    world: GlobalState,
    held: Versioned[GrantRecord],
    loss: Versioned[LossRecord] | None,
    settings: Settings,
    now: Now,
    term: int,
    replica: ReplicaId,
    addresses: tuple[str, ...],
) -> Decision | None:
    """The region was taken for lost and is back. It is held down for R, so that a link that comes and goes does not
    take part in decisions; what was moved stays where it is: jobs do not come back by themselves."""
    region = held.record.region
    if now.mono_ms - held.seen_ms < settings.timings.takeover_ms:
        return None
    peers = peers_to_name(world, region)
    record = GrantRecord(region, term, replica, now.ledger_ms, now.ledger_ms, "", peers, addresses)
    writes = [Put(KEYS.grant(region), record, held.revision)]
    guards = guards_of([(KEYS.loss(region), loss)])
    if loss is not None:
        back = replace(loss.record, state=LossState.RETURNED, returned_ms=now.ledger_ms)
        writes.append(Put(KEYS.loss(region), back, loss.revision))
        guards = ()
    sentence = (
        f"region {region} is back: {replica} holds its grant again, term {term}, after a hold-down of "
        f"{settings.timings.takeover_ms} ms; it was taken for lost ({held.record.revoked}), its jobs are fenced here "
        "and stay where they went"
    )
    return Decision(
        "grant.take", sentence, tuple(writes), guards, f"region/{region}", (), loss.record.trace if loss else ""
    )
