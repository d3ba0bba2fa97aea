"""Ascend's and Cambricon's drivers, as far as their kernel lines are public. Pure.

    CNRM: Xid [Card0]: 3, ECC Error, ddr1 2:…            Cambricon: cn_xid_err() in the published driver, cndrv_xid.h
    [ascend] [dms_event] [ERROR] [… 124] … (event_id=0x80E01801; …)        Huawei: prefix of pr_err in ascend_drv

Cambricon's line names its card by the driver's own word, and how that maps to an address is not published, so the event
is about the node and carries the word as its subject; ``cnmon`` tells which device. Huawei's driver seldom prints a
fault code; one is taken only when it is marked as an event, error or fault code. ``npu-smi`` is the source that counts.
"""

from __future__ import annotations

import re

from gridkeeper.records.fleet import EventKind
from nodeagent.kernel.found import MAX_CODE, Found

_CNRM = re.compile(r"CNRM: Xid \[([\w./ -]{1,32})\]: ([0-9]{1,10}), ")
_ASCEND = re.compile(r"\[ascend\] \[[\w-]{1,32}\] .*?\b(?:event|error|fault)_?(?:id|code)=?:?\s?0x(8[0-9A-Fa-f]{7})\b")


def read_cambricon(text: str) -> Found | None:
    match = _CNRM.match(text)
    if match and 0 < int(match.group(2)) <= MAX_CODE:
        return Found(EventKind.CAMBRICON, int(match.group(2)), subject=match.group(1))
    return None


def read_ascend(text: str) -> Found | None:
    match = _ASCEND.match(text)
    return Found(EventKind.ASCEND, int(match.group(1), 16)) if match else None
