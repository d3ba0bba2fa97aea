"""Protects: no bytes from outside crash what reads them: fixed seeds and mutations here, more by ``make fuzz``."""

from __future__ import annotations

import pytest

from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, run_once

MUTATIONS = {"policy": 15, "contracts": 30, "openslo": 30}
"""YAML is slow to read; of everything else, 300."""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_parser_answers_or_refuses(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    for data in (*seeds[:50], b"", *mutated(seeds, 0, MUTATIONS.get(name, 300))):
        run_once(target, data)


def test_a_crash_would_be_seen() -> None:
    """Protects: the harness itself: an error that is no answer goes through."""
    import dataclasses

    broken = dataclasses.replace(TARGETS["csrs"], answers=())
    with pytest.raises(Exception, match="csr"):
        run_once(broken, b"x")
