"""A device that keeps failing is not returned again and again: after ``flaps`` machine drains within ``flap_ms`` a
human decides whether it comes back or is retired. Pure.

(Within one stay in service, the health machine itself doubles the quiet time that it asks for with each relapse.)
"""

from __future__ import annotations

from controlplane.domain.words import clock_time, duration
from gridkeeper.policy.model import DrainPolicy
from gridkeeper.records.fleet import HealthRecord

MAX_REMEMBERED = 100
"""As many as a policy may ask for."""


def remembered(record: HealthRecord, policy: DrainPolicy, ledger_ms: int) -> tuple[int, ...]:
    """``drained_ms`` with a machine drain that begins now; what lies before the window is forgotten."""
    recent = (at for at in record.drained_ms if at > ledger_ms - policy.flap_ms)
    return (*recent, ledger_ms)[-MAX_REMEMBERED:]


def waits_for_human(record: HealthRecord, policy: DrainPolicy) -> str:
    """Why the device does not come back by itself; "": it may. The window ends with its last drain, so that waiting
    alone does not bring it back."""
    if not record.drained_ms:
        return ""
    last = record.drained_ms[-1]
    count = sum(1 for at in record.drained_ms if at > last - policy.flap_ms)
    if count < policy.flaps:
        return ""
    return (
        f"drained {count} times within {duration(policy.flap_ms)}, last at {clock_time(last)}: "
        "a human returns it (uncordon) or retires it"
    )
