"""Protects: what the control plane posts is what a real Alertmanager takes, shows and resolves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.shell.apply import Fence
from controlplane.shell.pager import HttpPager
from controlplane.shell.paging import Paging
from gridkeeper.clock import SystemClock
from gridkeeper.policy.model import AlertsPolicy, Policy
from gridkeeper.snapshot import Settings
from tests.fixtures.etcd import free_ports
from tests.fixtures.grid import Kept
from tests.unit.test_objectives import HERE, FakeApplier, Leader, burning

ALERTMANAGER = (
    os.environ.get("ALERTMANAGER") or shutil.which("prometheus-alertmanager") or shutil.which("alertmanager") or ""
)
pytestmark = pytest.mark.skipif(
    not ALERTMANAGER,
    reason="NOT CHECKED against Alertmanager: apt-get install prometheus-alertmanager, or set ALERTMANAGER",
)
CONFIG = "route: {receiver: none}\nreceivers: [{name: none}]\n"


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "am.yaml").write_text(CONFIG)
    (ports,) = free_ports(1)
    port = ports.client
    arguments = [
        f"--config.file={tmp_path / 'am.yaml'}", f"--storage.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([ALERTMANAGER, *arguments], stdout=log, stderr=log)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def active(url: str) -> list[dict[str, str]]:
    with urllib.request.urlopen(f"{url}/api/v2/alerts?active=true", timeout=5) as answer:
        return [alert["labels"] for alert in json.loads(answer.read())]


async def until(url: str, wanted: int) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []
    async with asyncio.timeout(30):
        while True:
            try:
                found = await asyncio.to_thread(active, url)
                if len(found) == wanted:
                    return found
            except urllib.error.URLError:
                pass  # it is not up yet
            await asyncio.sleep(0.1)


def paging(leader: Leader, url: str) -> Paging:
    settings = Settings(policy=Policy(alerts=AlertsPolicy(alertmanagers=(url,))))
    return Paging(
        "region/east", HERE, Kept(leader.store, HERE.root), FakeApplier(leader.store), "machine/a",  # type: ignore[arg-type]
        Fence("k", 1), HttpPager(), lambda: settings, SystemClock(),
    )  # fmt: skip


async def test_alerts_are_shown_and_resolved(url: str) -> None:
    await until(url, 0)
    leader = burning()
    leader.places = (url,)
    await paging(leader, url).look()
    alerts = list(leader.alerts().values())
    assert alerts and all(alert.told == (url,) for alert in alerts)
    shown = await until(url, len(alerts))
    assert {labels["alertname"] for labels in shown} == {"SloBudgetBurn"}
    assert {labels["window"] for labels in shown} == {"1h", "6h", "1d", "3d"} and shown[0]["region"] == "east"
    leader.fleet(10)
    leader.run(400)
    await paging(leader, url).look()
    assert await until(url, sum(alert.firing for alert in leader.alerts().values())) is not None
    assert sum(alert.firing for alert in leader.alerts().values()) < len(alerts)
