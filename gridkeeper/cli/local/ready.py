"""Waiting until a grid serves: every replica answers, each region has a leader, every node is alive."""

from __future__ import annotations

from collections.abc import Callable

from gridkeeper.cli.local.children import GridError
from gridkeeper.client import ClientError, GridClient
from gridkeeper.config import ClientConfig
from gridkeeper.ports.clock import Clock
from gridkeeper.v1 import api_pb2, records_pb2

READY_MS = 60_000
POLL_MS = 100


async def wait_ready(
    config: ClientConfig, nodes: int, devices: int, check: Callable[[], None], clock: Clock, limit_ms: int = READY_MS
) -> None:
    """``devices``: per node. ``check`` raises when a process has ended. Raises ``GridError`` saying what is missing."""
    until_ms = clock.mono_ms() + limit_ms
    async with GridClient(config) as client:
        while missing := await _missing(client, nodes, devices):
            check()
            if clock.mono_ms() >= until_ms:
                raise GridError(f"the grid is not ready after {limit_ms // 1000} s: {missing}")
            await clock.sleep(POLL_MS)


async def _missing(client: GridClient, nodes: int, devices: int) -> str:
    """What is not there yet; "" = ready."""
    for status in await client.info():
        if status.info is None:
            return f"a replica of {status.region} does not answer: {status.error}"
        if not (status.info.region_store_reachable and status.info.global_store_reachable):
            return f"{status.info.replica} does not reach its stores"
    try:
        regions = (await client.list(api_pb2.KIND_REGION)).objects
        found = (await client.list(api_pb2.KIND_NODE)).objects
    except ClientError as error:
        return str(error)
    for region in regions:
        if not region.region_view.leader:
            return f"region {region.name} has no leader"
    alive = [node for node in found if node.node.liveness.state == records_pb2.NODE_STATE_ALIVE]
    if len(alive) < nodes:
        return f"{len(alive)} of {nodes} nodes are alive"
    for node in alive:
        if node.node.devices_usable < devices:
            return f"{node.node.devices_usable} of {devices} devices of {node.name} are usable"
    return ""
