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


def test_a_signing_request_of_a_version_that_does_not_exist_is_refused() -> None:
    """Protects against what the fuzzer found: cryptography's ``InvalidVersion`` is no ``ValueError``."""
    (request,) = TARGETS["csrs"].seeds()
    version = request.index(b"\x02\x01\x00")  # the first INTEGER of the request
    run_once(TARGETS["csrs"], request[:version] + b"\x02\x01\x08" + request[version + 3 :])


def test_a_crash_would_be_seen() -> None:
    """Protects: the harness itself: an error that is no answer goes through."""
    import dataclasses

    broken = dataclasses.replace(TARGETS["csrs"], answers=())
    with pytest.raises(Exception, match="csr"):
        run_once(broken, b"x")
