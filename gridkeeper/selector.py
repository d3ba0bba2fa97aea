"""The one selector language of API, CLI and TUI: ``key=value,key!=value``, all terms must hold. Never anything but a
filter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX_LENGTH = 1024
MAX_TERMS = 16

_KEY = re.compile(r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")
_VALUE = re.compile(r"^[A-Za-z0-9_./: +-]{0,253}$")


class BadSelector(ValueError):
    """Text that is no selector. The message shows the part that is wrong and the remedy."""


@dataclass(frozen=True, slots=True)
class Term:
    """``key=value``, or ``key!=value`` when ``negated``."""

    key: str
    value: str
    negated: bool = False

    def matches(self, labels: Mapping[str, str]) -> bool:
        """A label that is not there counts as empty."""
        return (labels.get(self.key, "") == self.value) is not self.negated

    def __str__(self) -> str:
        return f"{self.key}{'!=' if self.negated else '='}{self.value}"


@dataclass(frozen=True, slots=True)
class Selector:
    """All terms must hold; no terms: everything."""

    terms: tuple[Term, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(term.matches(labels) for term in self.terms)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(term.key for term in self.terms)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def __str__(self) -> str:
        return ",".join(str(term) for term in self.terms)


EVERYTHING = Selector()


def parse(text: str) -> Selector:
    """The selector that ``text`` says; blank text selects everything. Raises ``BadSelector``."""
    if len(text) > MAX_LENGTH:
        raise BadSelector(f"selector: {len(text)} characters; use at most {MAX_LENGTH}")
    if not text.strip():
        return EVERYTHING
    parts = text.split(",")
    if len(parts) > MAX_TERMS:
        raise BadSelector(f"selector: {len(parts)} terms; use at most {MAX_TERMS}")
    return Selector(tuple(_term(part.strip()) for part in parts))


def _term(part: str) -> Term:
    key, equals, value = part.partition("=")
    negated = key.endswith("!")
    key, value = key.removesuffix("!").strip(), value.strip()
    if not equals:
        raise BadSelector(f"selector: {part[:80]!r} is not key=value or key!=value; separate terms with ','")
    if not _KEY.match(key):
        raise BadSelector(f"selector: {key[:80]!r} is not a label key; use letters, digits, '.', '_', '-'")
    if not _VALUE.match(value):
        raise BadSelector(
            f"selector: {value[:80]!r} is not a label value; use letters, digits, '.', '_', '-', '/', ':', '+', ' ' "
            "(and a single '=')"
        )
    return Term(key, value, negated)


def check_keys(selector: Selector, known: Iterable[str]) -> None:
    """Refuse keys that no object can have, so that a typing error is not read as "nothing there".

    Raises ``BadSelector`` naming the key and those that exist.
    """
    allowed = set(known)
    for key in selector.keys:
        if key not in allowed:
            raise BadSelector(
                f"selector: no object here has the label {key!r}; use one of {', '.join(sorted(allowed))}"
            )
