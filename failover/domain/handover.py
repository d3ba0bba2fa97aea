"""When the world is better led from another region. Pure."""

from __future__ import annotations

from failover.domain.indexes import living_owners
from gridkeeper.ids import RegionId
from gridkeeper.snapshot import GlobalState
from gridkeeper.timings import Timings


def decided_elsewhere(world: GlobalState, mono_ms: int, timings: Timings) -> str:
    """Why a leader of another region is to decide on some job's next owner, as a sentence; "": none is. The grant of
    the region that held the job does not name ours, so R never passes here (``promises``); one that it names is there.
    """
    failsafe = world.failsafe
    if failsafe is None or not world.fresh:
        return ""
    named: dict[RegionId, tuple[RegionId, ...]] = {}
    for region, grant in world.grants.items():
        if region != failsafe.here and failsafe.here not in grant.record.peers:
            named[region] = tuple(peer for peer in grant.record.peers if _is_there(world, peer, mono_ms, timings))
    if not any(named.values()):
        return ""
    for owner in living_owners(world, mono_ms, timings):
        region = owner.record.region
        if owner.record.revoke is not None and named.get(region):
            peer = named[region][0]
            return f"{owner.record.job} is to leave {region}, which asks {peer} for promises and not {failsafe.here}"
    return ""


def _is_there(world: GlobalState, region: RegionId, mono_ms: int, timings: Timings) -> bool:
    """Its grant, which it extends several times within F, was extended."""
    grant = world.grants.get(region)
    return grant is not None and not grant.record.revoked and mono_ms - grant.seen_ms < timings.fence_ms
