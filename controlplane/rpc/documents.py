"""Pure: applying a contract or a file of objectives, and showing those that there are."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from controlplane.rpc.intents import Wish
from controlplane.rpc.refusal import Refusal, invalid, precondition
from gridkeeper.configfile import ConfigError
from gridkeeper.decision import Decision, Draft, Now
from gridkeeper.ids import BadName, checked_name
from gridkeeper.keys import KEYS
from gridkeeper.policy.document import digest_of
from gridkeeper.records.documents import DocumentKind, DocumentRecord
from gridkeeper.sla.document import MAX_BYTES, parse_contract
from gridkeeper.sla.objectives import parse_slos
from gridkeeper.snapshot import GlobalState

MAX_DOCUMENTS = 1_000
"""Of both kinds together: each replica mirrors them."""


@dataclass(frozen=True, slots=True)
class Applied:
    """``decision`` None: nothing is to be written."""

    sentence: str
    record: DocumentRecord
    decision: Decision | None = None


def checked_kind(text: str) -> DocumentKind:
    """Raises ``Refusal``."""
    try:
        return DocumentKind(text)
    except ValueError as error:
        raise invalid(f"kind: {text[:80]!r} is none; use {' or '.join(DocumentKind)}") from error


def apply(
    kind: DocumentKind, name: str, text: str, source: str, expect: int, wish: Wish, world: GlobalState, now: Now
) -> Applied:
    """Its next version. ``expect``: what the newest one must be, 0: there is none; -1: any. Raises ``Refusal``."""
    shown = source if source.isprintable() and 0 < len(source) <= 200 else kind.value
    size = len(text.encode())
    if size > MAX_BYTES:
        raise invalid(f"{shown}: {size} bytes; a document has at most {MAX_BYTES}")
    try:
        name = _name(kind, name, text, shown)
    except (ConfigError, BadName) as error:
        raise invalid(str(error)) from error
    key = KEYS.document(kind.value, name)
    if key in world.suspect_keys:
        raise precondition(f"{key} does not decode: a newer program wrote it; apply from that one")
    held = world.documents.get(f"{kind.value}/{name}")
    version = held.record.version if held else 0
    if expect not in (-1, version):
        raise precondition(
            f"expect_version: {kind.value} {name} is at version {version}, not {expect}; look at it, put both together "
            f"and apply with --expect-version {version}"
        )
    if held is None and len(world.documents) >= MAX_DOCUMENTS:
        raise precondition(f"there are {len(world.documents)} documents, and no more than {MAX_DOCUMENTS} are kept")
    if held is not None and held.record.digest == digest_of(text):
        return Applied(f"this is version {version} of {kind.value} {name} already", held.record)
    record = DocumentRecord(kind, name, version + 1, text, digest_of(text), wish.actor, now.ledger_ms, wish.reason)
    draft = Draft()
    draft.put(key, record, held)
    sentence = f"{kind.value} {name}, version {record.version}, applied by {wish.actor}: {wish.reason}"
    decision = Decision("document.apply", sentence, draft.writes(), (), f"{kind.value}/{name}", (), wish.trace)
    return Applied(sentence, record, decision)


def _name(kind: DocumentKind, name: str, text: str, source: str) -> str:
    """Checks the document. Raises ``ConfigError``, ``BadName``."""
    if kind is DocumentKind.CONTRACT:
        contract = parse_contract(text, source)
        if name not in ("", contract.name):
            raise BadName(f"name: {name[:80]!r} is not what the contract says, {contract.name!r}; leave it out")
        return contract.name
    parse_slos(text, source)
    return checked_name("name", name)


def shown(kind: DocumentKind, name: str, world: GlobalState) -> tuple[DocumentRecord, ...]:
    """One, or ("") all of a kind, by name. Raises ``Refusal``."""
    found = {v.record.name: v.record for v in world.documents.values() if v.record.kind is kind}
    if not name:
        return tuple(found[key] for key in sorted(found))
    if name not in found:
        there = ", ".join(sorted(found)[:8]) or "none"
        raise Refusal(grpc.StatusCode.NOT_FOUND, f"there is no {kind.value} {name[:80]!r}; applied are: {there}")
    return (found[name],)
