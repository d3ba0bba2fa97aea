"""Pure: join tokens and revocations, as records of the region's store."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import re

import grpc

from controlplane.rpc.intents import Plan, Wish
from controlplane.rpc.refusal import Refusal, invalid, not_found, precondition
from gridkeeper.decision import Decision, Delete, Draft, Now
from gridkeeper.ids import BadName, NodeId, checked_name
from gridkeeper.keys import RegionKeys
from gridkeeper.records.identity import JoinTokenRecord, RevocationRecord
from gridkeeper.snapshot import RegionState

DEFAULT_TTL_MS = 3_600_000
MAX_TTL_MS = 7 * 86_400_000
MAX_TOKENS = 2_000
"""Kept at a time: those that are used or over are removed first, the oldest first."""
MAX_REVOCATIONS = 20_000
_USER = re.compile(r"[!-.0-~]{1,140}")
_SERIAL = re.compile(r"[0-9a-f]{1,40}")


def digest_of(secret: str) -> str:
    """What is stored of a token's secret. It has 256 random bits, so that a fast hash is as good as a slow one."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(
    token: str, secret: str, node: str, ttl_ms: int, wish: Wish, region: RegionState, now: Now
) -> tuple[JoinTokenRecord, Decision]:
    """A new token. Raises ``Refusal``."""
    if not 0 <= ttl_ms <= MAX_TTL_MS:
        raise invalid(f"ttl_ms: {ttl_ms} is not between 0 (= {DEFAULT_TTL_MS}) and {MAX_TTL_MS} (a week)")
    if node:
        try:
            checked_name("node", node)
        except BadName as error:
            raise invalid(str(error)) from error
    draft, keys = Draft(), RegionKeys(region.region)
    over = sorted(
        (held.record.expires_ms, name)
        for name, held in region.tokens.items()
        if held.record.expires_ms <= now.ledger_ms
    )
    for _, name in over[:50]:
        draft.delete(keys.token(name), region.tokens[name])
    if len(region.tokens) - len(over) >= MAX_TOKENS:
        raise precondition(f"there are {MAX_TOKENS} join tokens that are not over; cancel some, or let them expire")
    record = JoinTokenRecord(
        id=token,
        digest=digest_of(secret),
        node=node,
        created_by=wish.actor,
        created_ms=now.ledger_ms,
        expires_ms=now.ledger_ms + (ttl_ms or DEFAULT_TTL_MS),
        trace=wish.trace,
    )
    draft.put(keys.token(token), record, None)
    whom = f"node {node}" if node else "any one node"
    sentence = f"join token {token} for {whom}, for {(ttl_ms or DEFAULT_TTL_MS) // 60_000} minutes: {wish.reason}"
    return record, Decision("token.create", sentence, draft.writes(), subject=f"token/{token}", trace=wish.trace)


def cancel_token(token: str, wish: Wish, region: RegionState) -> Plan:
    held = region.tokens.get(token)
    if held is None:
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"token {token[:80]!r} is not in region {region.region}")
    sentence = f"join token {token} cancelled: {wish.reason}"
    write = Delete(RegionKeys(region.region).token(token), held.revision)
    return Plan(sentence, (), Decision("token.cancel", sentence, (write,), subject=f"token/{token}", trace=wish.trace))


class NoEntry(Exception):
    """A token that opens nothing; the message is for our log and trail. Who tried is told ``UNWELCOME``."""


UNWELCOME = "the token is not good here: unknown, used, expired or for another node; ask for a new one"
"""One answer for all, so that nobody learns which tokens exist."""


def use_token(token: str, secret: str, node: NodeId, key_digest: str, region: RegionState, now: Now) -> Decision | None:
    """Use up a token for ``node`` and a key. None: it is used up already, for the same; its answer may have been lost.
    Raises ``NoEntry``."""
    held = region.tokens.get(token)
    record = held.record if held else None
    good = hmac.compare_digest(digest_of(secret), record.digest if record else "0" * 64)
    if held is None or record is None or not good:
        raise NoEntry(f"no join token {token[:40]!r} with this secret")
    if record.expires_ms <= now.ledger_ms:
        raise NoEntry(f"join token {token} has expired")
    if record.node not in ("", node):
        raise NoEntry(f"join token {token} is for node {record.node}, not {node}")
    if record.used_by:
        if record.used_by == node and record.key_digest == key_digest:
            return None
        raise NoEntry(f"join token {token} was used up by {record.used_by}")
    keys = RegionKeys(region.region)
    used = dataclasses.replace(record, used_by=str(node), used_ms=now.ledger_ms, key_digest=key_digest)
    draft = Draft()
    draft.put(keys.token(token), used, held)
    sentence = f"node {node} joins region {region.region} with token {token} of {record.created_by}"
    return Decision("identity.join", sentence, draft.writes(), subject=f"node/{node}", trace=record.trace)


def revoke(target: str, wish: Wish, region: RegionState, now: Now) -> Plan:
    """From now on ``target`` is refused in this region."""
    _checked_target(target)
    if target == wish.actor:
        raise precondition(f"{target} is you; let somebody else revoke you")
    held = region.revocations.get(target)
    if held is not None:
        return Plan(f"{target} is revoked already, by {held.record.revoked_by}: {held.record.reason}", (target,))
    if len(region.revocations) >= MAX_REVOCATIONS:
        raise precondition(
            f"{MAX_REVOCATIONS} targets are revoked; reinstate serials of certificates that have expired"
        )
    draft = Draft()
    record = RevocationRecord(target, wish.reason, wish.actor, now.ledger_ms, wish.trace)
    draft.put(RegionKeys(region.region).revocation(target), record, None)
    sentence = f"{target} revoked in region {region.region}: {wish.reason}"
    decision = Decision("identity.revoke", sentence, draft.writes(), subject=target, trace=wish.trace)
    return Plan(sentence, (target,), decision)


def reinstate(target: str, wish: Wish, region: RegionState) -> Plan:
    _checked_target(target)
    key = RegionKeys(region.region).revocation(target)
    held = region.revocations.get(target)
    if held is None:
        raise not_found("revocation", target, region.revocations.keys(), f"in region {region.region}")
    sentence = f"{target} reinstated in region {region.region}: {wish.reason}"
    write = Delete(key, held.revision)
    decision = Decision("identity.reinstate", sentence, (write,), subject=target, trace=wish.trace)
    return Plan(sentence, (target,), decision)


def _checked_target(target: str) -> None:
    match target.split("/"):
        case ["node" | "replica", region, name] if _is_name(region) and _is_name(name):
            return
        case ["user", name] if _USER.fullmatch(name):
            return
        case ["serial", serial] if _SERIAL.fullmatch(serial):
            return
    raise invalid(
        f"name: {target[:80]!r} is nothing to revoke; use node/<region>/<node>, replica/<region>/<replica>, "
        "user/<name> or serial/<hex>"
    )


def _is_name(text: str) -> bool:
    try:
        checked_name("name", text)
    except BadName:
        return False
    return True
