"""Protects: from a real line of the kernel log to what is done about it: code, scope, severity and action, parser and
catalogue together. The lines are those of ``tests/data/kernel``."""

from __future__ import annotations

from gridkeeper.catalogue import judge
from gridkeeper.policy.model import Policy
from nodeagent.kernel.line import read_line
from nodeagent.kernel.parse import Parser
from tests.unit.events import card, event
from tests.unit.test_kernel_lines import LINES

CARDS = {"xid": card("hopper", "NVIDIA H100 80GB HBM3"), "amd": card("", "AMD Instinct MI300X", vendor="amd")}
OF_NODES = ("host", "sxid")

EXPECTED = """
amd-1001 device fatal reset_device
amd-1005 device fatal reset_device
amd-1021 device warning watch
amd-1043 device info watch
amd-1048 link info watch
amd-1103 device fatal replace
amd-1110 device warning watch
amd-1130 process warning restart_job
amd-1131 device error watch
amd-1132 device info ignore
amd-1133 device fatal reboot_node
amd-1134 process warning restart_job
amd-1135 device error restart_job
amd-1150 node fatal reboot_node
ascend-80E01801 device fatal reset_device
cambricon-3 device warning watch
cambricon-7 link error watch
host-1 node error watch
host-2 node warning watch
host-20 node error watch
host-21 node error watch
host-22 node error watch
host-23 node fatal reboot_node
host-24 process warning watch
host-25 node warning watch
host-26 process warning watch
host-27 process warning watch
host-3 node fatal reboot_node
host-4 node warning watch
host-40 node fatal drain
host-42 node error watch
host-43 node error watch
host-46 node warning watch
host-5 node warning watch
host-6 process error watch
host-60 node error watch
host-63 node error watch
host-80 node error watch
host-81 node warning watch
host-82 node info watch
sxid-12028 link warning watch
sxid-20034 link error watch
xid-119 device fatal reset_device
xid-13 process warning restart_job
xid-144 link info watch
xid-145 link warning watch
xid-149 link fatal reset_device
xid-150 link error watch
xid-154 device fatal reboot_node
xid-31 process warning restart_job
xid-43 process warning watch
xid-45 process warning watch
xid-48 device fatal reset_device
xid-63 device warning watch
xid-74 link fatal reset_device
xid-79 node fatal reboot_node
xid-94 device error restart_job
xid-95 device fatal reset_device
"""


def test_each_line_leads_to_the_right_scope_severity_and_action() -> None:
    told: dict[str, str] = {}
    for where, _, line in LINES:
        seen = Parser().see(read_line(line), 1 << 50)
        if seen is None:
            continue
        about = event(seen.kind, seen.code, seen.message, device="" if seen.kind.value in OF_NODES else "n1/gpu0")
        verdict = judge(about, CARDS.get(seen.kind.value), Policy())
        assert verdict is not None, where
        said = f"{verdict.code} {verdict.scope.value} {verdict.severity.value} {verdict.action.value}"
        assert told.setdefault(verdict.code, said) == said or "xid-14" in said, where
    assert sorted(told.values()) == sorted(EXPECTED.split("\n")[1:-1])
