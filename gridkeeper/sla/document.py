"""The contract document: YAML to a ``Contract``, with every fault told by file, line, field, value and remedy."""

from __future__ import annotations

import importlib.resources
from fractions import Fraction
from pathlib import Path

from gridkeeper.configfile import ConfigError, load_text, parse
from gridkeeper.sla.contract import Contract
from gridkeeper.sla.credit import exact_text

MAX_BYTES = 128 * 1024


def parse_contract(text: str, source: str) -> Contract:
    """The contract that the document says. Raises ``ConfigError``, one line per fault."""
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ConfigError(f"{source}: {size} bytes; a contract has at most {MAX_BYTES}")
    contract = parse(Contract, text, source)
    faults = [
        f"{source}: commitments[{index}].tiers: the highest is below {_percent(max(t.below for t in promise.tiers))}, "
        f"the target is {_percent(promise.target)}; credits cannot begin above the target"
        for index, promise in enumerate(contract.commitments)
        if promise.tiers and max(t.below for t in promise.tiers) > promise.target
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    return contract


def load_contract(path: str | Path) -> Contract:
    """The contract in a file. Raises ``ConfigError``."""
    return parse_contract(load_text(path), str(path))


def shipped_text(name: str) -> str:
    """One of ``contracts.SHIPPED``."""
    return importlib.resources.files("gridkeeper.sla.contracts").joinpath(f"{name}.yaml").read_text(encoding="utf-8")


def _percent(value: Fraction) -> str:
    return f"{exact_text(value)} %"
