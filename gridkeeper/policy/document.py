"""The policy document: YAML to a ``Policy`` and back, with every fault told by file, line, field, value and remedy."""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from gridkeeper.configfile import ConfigError, dump, load_text, parse
from gridkeeper.policy.expression import compile_expression
from gridkeeper.policy.model import Policy
from gridkeeper.policy.terms import Growth

MAX_BYTES = 128 * 1024
"""Of a document: replicas hold a hundred versions in memory, and read one between two decisions."""
MAX_GROWTHS = 16
"""Different counters and windows of one policy: each keeps copies of its column."""

MAX_REPEATS = 32
"""Each may count one event, in the transaction that digests it."""

BUILT_IN = "built-in policy"


@dataclass(frozen=True, slots=True)
class _Document:
    """The same by its text alone."""

    text: str
    source: str = field(compare=False)


def parse_policy(text: str, source: str, version: int = 0) -> Policy:
    """The policy that the document says, under the version that the store gave it. Raises ``ConfigError``."""
    return replace(_parsed(_Document(text, source)), version=version)


@functools.lru_cache(maxsize=8)
def _parsed(document: _Document) -> Policy:
    """Kept, since one of the largest size takes 0.6 s of the event loop, and whoever checks it, compares it, copies it
    or decides by it asks for it. What is wrong is not kept: it names its source."""
    text, source = document.text, document.source
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ConfigError(f"{source}: {size} bytes; a policy has at most {MAX_BYTES}")
    policy = parse(Policy, text, source)
    if policy.version:
        raise ConfigError(f"{source}: version: {policy.version} is given by the store when it is applied; leave it out")
    growths = growths_of(policy)
    if len(growths) > MAX_GROWTHS:
        named = ", ".join(f"{g.metric} over {g.window_ms} ms" for g in growths[:4])
        raise ConfigError(
            f"{source}: rules: {len(growths)} different growths and rates ({named} …); use at most {MAX_GROWTHS}"
        )
    if len(policy.repeats) > MAX_REPEATS:
        raise ConfigError(f"{source}: repeats: {len(policy.repeats)} rules; use at most {MAX_REPEATS}")
    return policy


def growths_of(policy: Policy) -> tuple[Growth, ...]:
    """Every counter and window that some rule asks for."""
    texts = (text for rule in policy.rules for text in (rule.when, rule.clear) if text)
    return tuple(sorted({growth for text in texts for growth in compile_expression(text).growths}))


def load_policy(path: str | Path) -> Policy:
    """The policy in a file. Raises ``ConfigError``."""
    return parse_policy(load_text(path), str(path))


def default_text() -> str:
    """The document that is in force until one is applied."""
    return importlib.resources.files("gridkeeper.policy").joinpath("default.yaml").read_text(encoding="utf-8")


@functools.cache
def default_policy() -> Policy:
    """Version 0."""
    return parse_policy(default_text(), BUILT_IN)


def policy_text(policy: Policy) -> str:
    """A document that says the same."""
    return dump(replace(policy, version=0)).replace("version: 0\n", "", 1)


def digest_of(text: str) -> str:
    return str(blake3(text.encode()).hexdigest())
