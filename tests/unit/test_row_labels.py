"""Labels by row of the fleet table: what rules choose by follows the records, at the cost of what has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.domain.fleet import FleetTable
from controlplane.domain.rowlabels import Inventory, RowLabels
from gridkeeper.decision import Versioned
from gridkeeper.ids import DeviceId, JobId, NodeId, Revision
from gridkeeper.records.common import Label
from gridkeeper.records.fleet import HealthRecord, HealthState
from gridkeeper.selector import parse
from tests.fixtures import records as fixtures

NODE = NodeId("n1")
DEVICE = fixtures.device("n1/gpu0")


def _held(record: Any) -> Versioned[Any]:
    return Versioned(record, Revision(1), Revision(1), 0)


RACKS = ("r1", "r2")
CHANGES = st.lists(
    st.tuples(st.sampled_from(["device", "gone", "health", "node", "job", "register", "forget"]), st.integers(0, 7)),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_labels_that_follow_changes_are_those_of_a_look_at_everything(steps: list[Any], rng: Any) -> None:
    """Protects: looking only at what has changed misses nothing: records, nodes' labels, jobs, and rows that change
    hands while the table grows."""
    names, selectors = ("health", "job", "rack"), (parse("class=train,rack=r1"), parse("health!=healthy"))
    labels, table, inventory = RowLabels(names, selectors), FleetTable(), Inventory()
    for step in steps:
        for what, number in step:
            node = NodeId(f"n{number}")
            device = DeviceId(f"{node}/gpu{rng.randrange(20)}")
            match what:
                case "device":
                    record = replace(DEVICE, id=device, node=node, rack=rng.choice(RACKS))
                    inventory = replace(inventory, devices={**inventory.devices, device: _held(record)})
                case "gone":
                    kept = {name: held for name, held in inventory.devices.items() if held.record.node != node}
                    inventory = replace(inventory, devices=kept)
                case "health":
                    state = rng.choice(list(HealthState))
                    health = replace(fixtures.health(device), state=state)
                    inventory = replace(inventory, health={**inventory.health, device: _held(health)})
                case "node":
                    record = replace(fixtures.node(node), labels=(Label("class", rng.choice(("train", "serve"))),))
                    inventory = replace(inventory, nodes={**inventory.nodes, node: _held(record)})
                case "job":
                    held = {name: JobId(f"j{rng.randrange(3)}") for name in inventory.devices if rng.random() < 0.5}
                    inventory = replace(inventory, jobs_from=(object(),), jobs=lambda held=held: held)
                case "register":
                    table.register(node, [DeviceId(f"{node}/gpu{i}") for i in range(rng.randrange(1, 20))])
                case "forget":
                    table.forget(node)
        labels.refresh(table, inventory)
        anew = RowLabels(names, selectors)
        anew.refresh(table, inventory)
        for name in names:
            assert labels.column(name, table.rows).to_list() == anew.column(name, table.rows).to_list()
        for selector in selectors:
            for mine, theirs in zip(
                labels.selected(selector, table.rows), anew.selected(selector, table.rows), strict=True
            ):
                assert np.array_equal(mine, theirs)


def test_labels_cost_what_has_changed() -> None:
    """Protects: one health record that changes is no reason to put together the labels of every device."""
    looked: list[DeviceId] = []

    class Told(dict[DeviceId, Versioned[HealthRecord]]):
        def get(self, key: DeviceId, default: Any = None) -> Any:
            looked.append(key)
            return super().get(key, default)

    table, ids = FleetTable(), [DeviceId(f"n1/gpu{i}") for i in range(50)]
    table.register(NODE, ids)
    devices = {name: _held(replace(DEVICE, id=name)) for name in ids}
    before = {name: _held(fixtures.health(name)) for name in ids}
    labels = RowLabels(("health",))
    labels.refresh(table, Inventory({}, devices, before))
    ill = replace(before[ids[7]].record, state=HealthState.DEGRADED)
    labels.refresh(table, Inventory({}, devices, Told({**before, ids[7]: _held(ill)})))
    assert looked == [ids[7]]
    assert labels.column("health", table.rows).to_list()[6:9] == ["healthy", "degraded", "healthy"]
