"""Receipts: a signed statement of what the ledger held, that a customer keeps, so that history cannot be rewritten
unseen. Pure but for the signature's chance.

Each scope's entries are chained: a digest covers an entry and the digest before it, so one digest and the numbers of
the first and last entry speak for all between. A receipt lists those of every scope, and is signed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from blake3 import blake3
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gridkeeper.records.settlement import ExclusionRecord

KIND = "SlaReceipt"
VERSION = 1
FIELDS = {
    "kind": str, "version": int, "issued_ms": int, "from_ms": int, "until_ms": int, "previous": str, "chains": list,
    "signature": str,
}  # fmt: skip


class BadReceipt(ValueError):
    """A receipt, key or certificate that cannot be used. The message names the field and the remedy."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Entries ``first`` to ``last`` of a scope, in one digest (BLAKE3, hexadecimal)."""

    scope: str
    first: int
    last: int
    digest: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """Of the entries that overlap [from_ms, until_ms) and were closed at ``issued_ms``. ``previous``: digest of the
    receipt before this one, "" of the first. ``signature``: base64 of ECDSA with SHA-256 over ``statement``."""

    issued_ms: int
    from_ms: int
    until_ms: int
    previous: str
    chains: tuple[Chain, ...]
    signature: str = ""

    def statement(self) -> bytes:
        """What is signed."""
        return json.dumps(_plain(self), separators=(",", ":"), sort_keys=True).encode()

    def digest(self) -> str:
        """Of the statement: what the next receipt names."""
        return str(blake3(self.statement()).hexdigest())

    def text(self) -> str:
        return json.dumps({**_plain(self), "signature": self.signature}, indent=1) + "\n"


def _plain(receipt: Receipt) -> dict[str, Any]:
    return {
        "kind": KIND,
        "version": VERSION,
        "issued_ms": receipt.issued_ms,
        "from_ms": receipt.from_ms,
        "until_ms": receipt.until_ms,
        "previous": receipt.previous,
        "chains": [[chain.scope, chain.first, chain.last, chain.digest] for chain in receipt.chains],
    }


def chains_of(frame: pl.DataFrame, known: Mapping[str, tuple[int, int]] | None = None) -> tuple[Chain, ...]:
    """Of each scope in ``frame`` (columns as ``books.SCHEMA``); ``known``: only of these, from the first to the last
    number. Raises ``BadReceipt`` where a number is missing or twice: such a ledger proves nothing."""
    found: dict[str, Chain] = {}
    entries = frame.filter(pl.col("sequence") > 0)  # exclusions have a chain of their own
    for row in entries.sort("scope", "sequence").iter_rows(named=True):
        scope, number = row["scope"], row["sequence"]
        if known is not None and not (scope in known and known[scope][0] <= number <= known[scope][1]):
            continue
        before = found.get(scope)
        if before is not None and number != before.last + 1:
            raise BadReceipt(f"{scope}: entry {number} follows entry {before.last}; one is missing or there twice")
        said = [scope, number, row["from_ms"], row["until_ms"], row["uptime"], row["reason"], list(row["refs"] or ())]
        found[scope] = _link(before, scope, number, said)
    return tuple(found[scope] for scope in sorted(found))


def _link(before: Chain | None, scope: str, number: int, said: list[Any]) -> Chain:
    one = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    digest = str(blake3((before.digest if before else "").encode() + b"\n" + one).hexdigest())
    return Chain(scope, before.first if before else number, number, digest)


EXCLUSIONS = "exclusions"
"""The scope under which a receipt names the log of exclusions."""


def exclusions_chain(log: Iterable[ExclusionRecord], until: int | None = None) -> Chain | None:
    """Of the whole log, or of its events up to the number ``until``; None: there is none. Raises ``BadReceipt`` as
    ``chains_of``."""
    chain: Chain | None = None
    for event in sorted(log, key=lambda event: event.sequence):
        if until is not None and event.sequence > until:
            break
        if event.sequence != (chain.last + 1 if chain else 1):
            raise BadReceipt(f"exclusions: event {event.sequence} is out of order; one is missing or there twice")
        said = [
            event.sequence, event.scope, event.cause.value, event.from_ms, event.until_ms, event.recorded_by,
            event.recorded_ms, event.reason, list(event.evidence), event.retracts,
        ]  # fmt: skip
        chain = _link(chain, EXCLUSIONS, event.sequence, said)
    return chain


def issue(receipt: Receipt, key_pem: bytes) -> Receipt:
    """The receipt, signed. Raises ``BadReceipt``."""
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise BadReceipt(f"key: is no private key without a password: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadReceipt("key: is no key of an elliptic curve; use one of 'gridkeeper ca issue'")
    signed = key.sign(receipt.statement(), ec.ECDSA(hashes.SHA256()))
    return Receipt(
        receipt.issued_ms, receipt.from_ms, receipt.until_ms, receipt.previous, receipt.chains,
        base64.b64encode(signed).decode(),
    )  # fmt: skip


def check_signature(receipt: Receipt, certificate_pem: bytes) -> str:
    """Who signed, as the certificate names it. Raises ``BadReceipt`` unless its key did."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        signature = base64.b64decode(receipt.signature, validate=True)
    except ValueError as error:
        raise BadReceipt(f"certificate or signature: cannot be read: {error}") from error
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise BadReceipt("certificate: its key is of no elliptic curve; use that of 'gridkeeper ca issue'")
    try:
        key.verify(signature, receipt.statement(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BadReceipt("signature: is not by this certificate's key, or the receipt was changed") from error
    return certificate.subject.rfc4514_string() or f"serial {certificate.serial_number}"


def parse_receipt(text: str) -> Receipt:
    """Raises ``BadReceipt``."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadReceipt(f"is no JSON: {error}") from error
    if not isinstance(value, dict) or value.get("kind") != KIND or value.get("version") != VERSION:
        raise BadReceipt(f"kind: is no {KIND} of version {VERSION}; use what 'gridkeeper sla receipt' wrote")
    for name, kind in FIELDS.items():
        if type(value.get(name)) is not kind:
            raise BadReceipt(f"{name}: is missing or no {kind.__name__}")
    chains = []
    for row in value["chains"]:
        if not isinstance(row, list) or [type(part) for part in row] != [str, int, int, str]:
            raise BadReceipt(f"chains: {str(row)[:80]} is not [scope, first, last, digest]")
        chains.append(Chain(*row))
    return Receipt(
        value["issued_ms"], value["from_ms"], value["until_ms"], value["previous"], tuple(chains), value["signature"]
    )


def differences(receipt: Receipt, frame: pl.DataFrame, log: Iterable[ExclusionRecord] | None = None) -> tuple[str, ...]:
    """Where the books no longer say what the receipt does, one sentence per scope; entries that came later are none.
    ``log``: of exclusions; None: it is not at hand, and is not compared. Raises ``BadReceipt`` as ``chains_of``."""
    known = {chain.scope: (chain.first, chain.last) for chain in receipt.chains}
    now = {chain.scope: chain for chain in chains_of(frame, known)}
    if EXCLUSIONS in known:
        held_log = exclusions_chain(log, known[EXCLUSIONS][1]) if log is not None else _named(receipt, EXCLUSIONS)
        now.update({EXCLUSIONS: held_log} if held_log else {})
    told = []
    for chain in receipt.chains:
        held = now.get(chain.scope)
        if held is None:
            told.append(f"{chain.scope}: its entries {chain.first} to {chain.last} are not in the books")
        elif (held.first, held.last) != (chain.first, chain.last):
            told.append(
                f"{chain.scope}: the books hold entries {held.first} to {held.last}, the receipt names {chain.first} "
                f"to {chain.last}"
            )
        elif held.digest != chain.digest:
            told.append(f"{chain.scope}: an entry between {chain.first} and {chain.last} was changed")
    return tuple(told)


def _named(receipt: Receipt, scope: str) -> Chain:
    return next(chain for chain in receipt.chains if chain.scope == scope)
