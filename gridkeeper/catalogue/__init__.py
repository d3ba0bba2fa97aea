"""The fault catalogue: which fault means what, by whose word. ``judge`` answers for one event; ``docs/faults.md`` is
generated from the same data."""

from gridkeeper.catalogue.judge import judge, rehearsed
from gridkeeper.catalogue.model import VERSION, Entry, Evidence, JobEffect, Opinion, Source, Taint, Verdict

__all__ = [
    "VERSION",
    "Entry",
    "Evidence",
    "JobEffect",
    "Opinion",
    "Source",
    "Taint",
    "Verdict",
    "judge",
    "rehearsed",
]
