"""The command line as people and scripts use it: real processes against real servers. Exit codes and stdout are an
interface; what is for people goes to stderr."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from gridkeeper.clock import SystemClock
from gridkeeper.identity import spiffe
from gridkeeper.ids import JobId
from gridkeeper.keys import KEYS
from gridkeeper.kinds import KINDS
from gridkeeper.records.books import EntryRecord, Totals, UptimeClass
from gridkeeper.records.documents import DocumentKind, DocumentRecord
from gridkeeper.records.fleet import HealthState
from gridkeeper.records.settlement import AdjustmentRecord, ClosingRecord, ScopeChange
from tests.fixtures import records
from tests.fixtures.filled import every_kind, fleet
from tests.fixtures.grid import FakeGrid, MemoryStore
from tests.fixtures.gridserver import GridServers


@dataclass(frozen=True)
class Result:
    code: int | None
    out: str
    err: str


class Cli:
    def __init__(self, config: Path, home: Path) -> None:
        self.config = config
        self.environment = {**os.environ, "HOME": str(home), "GRIDKEEPER_CONFIG": str(config), "COLUMNS": "200"}

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gridkeeper.cli.main",
            *arguments,
            env=self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str, stdin: str = "") -> Result:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return Result(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[GridServers]:
    made, world = GridServers(tmp_path), MemoryStore()
    await made.start(every_kind(fleet(world=world)))
    await made.start(FakeGrid("west", world=world))
    yield made
    await made.stop()


@pytest.fixture
def cli(servers: GridServers, tmp_path: Path) -> Cli:
    home = tmp_path / "home"
    home.mkdir()
    return Cli(servers.config_file(), home)


async def test_every_kind_is_listed_in_every_form(cli: Cli) -> None:
    await cli("drain", "east-1/gpu1", "--yes", "--reason", "for the audit trail")

    async def check(kind: str, singular: str) -> None:
        shown = await cli("get", kind, "-o", "json")
        assert (shown.code, shown.err) == (0, ""), shown
        listing = json.loads(shown.out)
        assert listing["partial"] == [] and listing["items"], kind
        assert all(item["kind"] == singular for item in listing["items"])
        table = await cli("get", singular, "-o", "wide")
        assert table.code == 0 and len(table.out.splitlines()) == len(listing["items"]) + 1

    for start in range(0, len(KINDS), 4):
        await asyncio.gather(*(check(info.plural, info.singular) for info in KINDS[start : start + 4]))


async def test_forms_of_one_listing_agree(cli: Cli) -> None:
    shown = [await cli("get", "de", "-l", "health=draining", "-o", form) for form in ("json", "yaml", "name", "table")]
    as_json, as_yaml = json.loads(shown[0].out), yaml.safe_load(shown[1].out)
    as_json["as_of_ms"] = as_yaml["as_of_ms"] = 0
    assert as_json == as_yaml
    assert shown[2].out == "device/east-1/gpu0\n"
    header, row = shown[3].out.splitlines()
    assert header.split()[:4] == ["NAME", "REGION", "MODEL", "HEALTH"]
    assert row.startswith("east-1/gpu0  east") and "draining" in row
    item = as_json["items"][0]
    assert item["device"]["health"]["since_ms"] == records.T0 + 20
    assert item["device"]["health"]["state"] == "draining"


async def test_one_object_by_kind_and_name(cli: Cli) -> None:
    shown = await cli("get", "job", "train", "-o", "json")
    item = json.loads(shown.out)
    assert item["job"]["ownership"]["epoch"] == {"generation": 1, "number": 1}
    assert item["job"]["run"]["phase"] == "running"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("get", "device", "east-1/gpu9"), 4, "device 'east-1/gpu9' is not in region"),
        (("get", "devices", "-l", "sate=x"), 2, "no object here has the label 'sate'"),
        (("get", "devices", "-l", "state"), 2, "is not key=value"),
        (("get", "dervices"), 2, "kind: 'dervices' is none; use one of regions"),
        (("get", "devices", "-o", "xml"), 2, "xml"),
        (("explain", "device"), 2, "is not <kind>/<name>"),
        (("job", "submit", "--name", "x"), 2, "the command after --"),
        (("cordon", "east-1", "--for", "soon"), 2, "'soon' is not a duration"),
        (("incident", "ack", "nope"), 4, "incident 'nope' is not in"),
        (("tui",), 2, "not on a terminal"),
        (("no-such-command",), 2, "No such command"),
    ],
)
async def test_errors_are_for_people_on_stderr_with_an_exit_code(
    cli: Cli, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = await cli(*arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err and "Traceback" not in result.err


async def test_a_region_that_is_away_is_exit_code_3_and_said(cli: Cli, servers: GridServers) -> None:
    await servers.kill("west-1")
    result = await cli("get", "nodes", "-o", "json")
    assert result.code == 3
    listing = json.loads(result.out)
    assert [item["name"] for item in listing["items"]] == ["east-1"]
    assert "region west does not answer" in listing["partial"][0]
    assert result.err.startswith("warning: incomplete: region west does not answer")
    assert (await cli("get", "jobs")).code == 0
    assert (await cli("info")).code == 3
    await servers.kill("east-1")
    gone = await cli("get", "nodes", "-o", "json")
    assert (gone.code, gone.out) == (1, "")


async def test_a_viewer_is_refused_with_exit_code_5(cli: Cli, servers: GridServers) -> None:
    servers.config_file(spiffe.user("bob", "viewer"))
    result = await cli("job", "stop", "train")
    assert result.code == 5
    assert "user/bob has the role viewer, and StopJob needs operator" in result.err


async def test_a_drain_shows_the_jobs_it_hits_and_asks(cli: Cli, servers: GridServers) -> None:
    asked = await cli("drain", "east-1/gpu0")
    assert asked.code == 2
    assert "out 0 of 1 device" in asked.err, "it is draining already"
    assert "repeat with --yes" in asked.err
    east = servers.grids["east-1"]
    back = records.health("east-1/gpu0")
    east.put(east.keys.health(back.device), back)
    east.delete(east.keys.drain("d1"))
    rehearsed = await cli("drain", "east-1", "--dry-run", "--mode", "deadline", "--wait", "2h")
    assert rehearsed.code == 0 and "out 1 of 2 devices; 1 would be refused" in rehearsed.out.replace("\n  ", "; ")
    assert "job train (1 device, step" in rehearsed.out
    assert "east-1/gpu1: refused: budget region is full" in rehearsed.out
    assert not east.region().drain_requests and not east.region().drains
    east.put(east.keys.health(back.device), records.health("east-1/gpu0", HealthState.DRAINING))
    done = await cli("drain", "east-1", "--yes", "--reason", "PSU")
    assert done.code == 0 and "1 were asked for or out before" in done.out
    assert list(east.region().drain_requests) == ["east-1/gpu1"]


async def test_a_job_from_a_file_from_stdin_and_from_options(cli: Cli, servers: GridServers, tmp_path: Path) -> None:
    text = "name: other\ncommand: [python, train.py]\ndevices: 2\nenv: {SEED: '7'}\ngrace_ms: 5000\n"
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert (await cli("job", "submit", "-f", str(path))).out.startswith("job other submitted: 2 devices")
    assert "submitted already" in (await cli("job", "submit", "-f", "-", stdin=text)).out
    made = await cli(
        "job", "submit", "--name", "third", "--env", "A=b", "--grace", "10s", "--", "sh", "-c", "echo -n hi"
    )
    assert made.code == 0
    spec = servers.grids["east-1"].world().jobs[JobId("third")].record.spec
    assert (spec.command, spec.grace_ms) == (("sh", "-c", "echo -n hi"), 10_000)
    wrong = await cli("job", "submit", "-f", "-", stdin="name: x\ncomand: [a]\n")
    assert wrong.code == 2
    assert "comand" in wrong.err and "standard input:2" in wrong.err
    clash = await cli("job", "submit", "--name", "third", "--", "true")
    assert clash.code == 5 and "another spec" in clash.err


async def test_job_stop_and_logs(cli: Cli, servers: GridServers) -> None:
    servers.grids["east-1"].logs["train"] = "loss 0.5 ü\n".encode()
    assert (await cli("job", "logs", "train")).out == "loss 0.5 ü\n"
    stopped = await cli("job", "stop", "job/train", "--reason", "enough")
    assert (stopped.code, stopped.out) == (0, "job train is to stop: enough\n")


async def test_acknowledging_several_incidents(cli: Cli, servers: GridServers) -> None:
    east = servers.grids["east-1"]
    east.put(east.keys.incident("i2"), records.incident("i2", "east-1/gpu1"))
    result = await cli("incident", "ack", "incident/i1", "i2", "--reason", "on it")
    assert result.code == 0
    assert {i.record.acknowledged_by for i in east.region().incidents.values()} == {"user/ann"}


async def test_a_replica_that_cannot_start_says_why_in_one_line(cli: Cli, servers: GridServers, tmp_path: Path) -> None:
    tls = dataclasses.asdict(servers.authority.issue(spiffe.replica("east", "east-r1"), tmp_path / "replica"))
    config: dict[str, Any] = {
        "replica": "east-r1",
        "region": "east",
        "listen": "127.0.0.1:1",
        "tls": tls,
        "region_store": {"endpoints": ["https://127.0.0.1:1"]},
        "global_store": {"endpoints": ["127.0.0.1:1"]},
        "checkpoints": [{"region": "east", "path": str(tmp_path / "checkpoints")}],
    }
    file = tmp_path / "controlplane.yaml"
    for change, message in (
        ({}, "region_store: store.endpoints: 'https://127.0.0.1:1' does not fit store.tls; configure store.tls"),
        ({"tls": {**tls, "authority": "nowhere.crt"}}, "cannot start: tls.authority: nowhere.crt: No such file"),
    ):
        file.write_text(yaml.safe_dump({**config, **change}))
        result = await cli("controlplane", "--config", str(file))
        assert result.code == 1 and "Traceback" not in result.err, result.err
        assert "replica east-r1 cannot start" in result.err and message in result.err


async def test_maintenance_is_announced_and_ended(cli: Cli, servers: GridServers) -> None:
    told = await cli("cordon", "east-1", "--maintenance", "--for", "2h", "--reason", "new fans")
    assert told.code == 0 and "east-1 cordoned by maintenance" in told.out, told.err
    (reason,) = servers.grids["east-1"].region().cordons["east-1"].record.reasons
    assert (reason.owner, reason.reason) == ("maintenance", "new fans (announced by user/ann)")
    ended = await cli("uncordon", "east-1", "--maintenance")
    assert ended.code == 0 and "east-1" not in servers.grids["east-1"].region().cordons, ended.err


async def test_describe_shows_everything_and_what_is_related(cli: Cli) -> None:
    result = await cli("describe", "device", "east-1/gpu0")
    assert result.code == 0
    for part in ("Device east-1/gpu0 in region east", "state: draining", "Incidents:", "Events:", "Chain of evidence:"):
        assert part in result.out
    job = await cli("describe", "job", "train")
    assert "command: python, train.py" in job.out and "Checkpoints:" in job.out


async def test_explain_prints_the_chain(cli: Cli) -> None:
    result = await cli("explain", "incident/i1")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["AT", "AFTER", "STEP", "OBJECT", "WHAT"]
    assert "backend.events" in lines[1] and "+0ms" in lines[1]
    assert any("migrate.confirm" in line and "+9s" in line for line in lines)
    chain = json.loads((await cli("explain", "incident/i1", "-o", "json")).out)["chain"]
    assert len(chain) == len(lines) - 1


async def test_sla_status(cli: Cli) -> None:
    result = await cli("sla", "status")
    assert result.code == 0
    assert [line.split()[0] for line in result.out.splitlines()] == ["SCOPE", "device/east-1/gpu0", "job/train"]
    one = json.loads((await cli("sla", "status", "job/train", "-o", "json")).out)["items"][0]
    assert one["account"]["current"] == "up" and "/" in one["uptime"]


async def test_sla_report_from_the_grid(cli: Cli, servers: GridServers, tmp_path: Path) -> None:
    """Protects: the intervals that are still open are in the report, and what is asked of the grid can be kept."""
    grid = servers.grids["east-1"]
    account = dataclasses.replace(records.account(), since_ms=1_700_003_600_000)
    grid.put(grid.keys.account(account.scope), account)
    begin = account.since_ms - 3_600_000
    entry = EntryRecord(account.scope, account.sequence, "", begin, account.since_ms, UptimeClass.UP, "healthy", ())
    grid.put(grid.keys.entry(entry.scope, entry.sequence), entry)
    contract, kept = tmp_path / "c.yaml", tmp_path / "kept.parquet"
    contract.write_text((await cli("sla", "contract", "example", "aws")).out)
    month = datetime.fromtimestamp(begin / 1000, UTC).strftime("%Y-%m")
    asked = ("sla", "report", "--contract", str(contract), "--month", month, "-o", "json")
    result = await cli(*asked, "--save-ledger", str(kept))
    assert result.code == 0, result.err
    (node,) = json.loads(result.out)["commitments"][1]["subjects"]
    assert node["subject"] == "node/east-1" and node["totals"]["up_ms"] == 3_600_000
    assert node["totals"]["down_ms"] > 0 and node["outages"][0]["reason"] == "draining"
    frame = pl.read_parquet(kept)
    assert (await cli("sla", "contract", "get")).err == "no contract has been applied\n"
    refused = await cli("sla", "contract", "apply", str(contract), "--reason", "signed")
    assert refused.code == 5 and "ApplyDocument needs admin" in refused.err
    text = contract.read_text()
    record = DocumentRecord(DocumentKind.CONTRACT, "aws-compute", 1, text, "d", "user/root", 1, "signed")
    grid.put(KEYS.document("contract", record.name), record)
    assert (await cli("sla", "contract", "get", "aws-compute")).out == contract.read_text()
    named = await cli("sla", "report", "--contract", "aws-compute", "--month", month, "-o", "csv")
    assert named.code == 0 and "node/east-1" in named.out
    assert (await cli("sla", "report", "--contract", "none", "--month", month)).code == 4
    assert sorted(frame.filter(pl.col("scope") == entry.scope)["sequence"]) == [3, 4]


async def test_a_drain_that_would_break_a_contract_says_so_and_is_refused(cli: Cli, servers: GridServers) -> None:
    grid, now_ms = servers.grids["east-1"], SystemClock().wall_ms()
    account = dataclasses.replace(
        records.account("device/east-1/gpu1", UptimeClass.UP), sequence=0, since_ms=now_ms - 60_000
    )
    grid.put(grid.keys.account(account.scope), account)
    text = (await cli("sla", "contract", "example", "aws")).out
    text = text[: text.index("commitments:")] + "commitments: [{name: gpus, per: device, target: 99.999, tiers: []}]\n"
    text = text.replace("covers_accelerators: false", "covers_accelerators: true")
    record = DocumentRecord(DocumentKind.CONTRACT, "aws-compute", 1, text, "d", "user/root", 1, "signed")
    grid.put(KEYS.document("contract", record.name), record)
    rehearsed = await cli("drain", "east-1/gpu1", "--dry-run")
    told = "contract aws-compute: gpus of device/east-1/gpu1 would end the month at"
    assert rehearsed.code == 0 and told in rehearsed.err
    refused = await cli("drain", "east-1/gpu1", "--yes", "--reason", "PSU")
    assert refused.code == 5 and told in refused.err and "say --accept-breach" in refused.err
    assert not grid.region().drain_requests
    accepted = await cli("drain", "east-1/gpu1", "--yes", "--reason", "PSU", "--accept-breach")
    assert accepted.code == 0 and list(grid.region().drain_requests) == ["east-1/gpu1"]
    foreseen = await cli("sla", "forecast", "--contract", "aws-compute", "-o", "json")
    (item,) = [one for one in json.loads(foreseen.out)["items"] if one["subject"] == "device/east-1/gpu1"]
    assert item["burn"] == "0" and item["exhausted_in_ms"] is None and item["left_ms"] == item["budget_ms"] > 0


async def test_what_is_left_out_is_recorded_by_an_admin_and_shown_to_all(cli: Cli, servers: GridServers) -> None:
    add = (
        "sla", "exclude", "add", "node/east-1", "--cause", "customer", "--from", "2026-09-21T00:00Z", "--until",
        "2026-09-21T02:00Z", "--reason", "their driver", "--evidence", "incident/i1",
    )  # fmt: skip
    refused = await cli(*add)
    assert refused.code == 5 and "RecordExclusion needs admin" in refused.err
    servers.config_file(spiffe.user("root", "admin"))
    assert "exclusion 1: customer on node/east-1" in (await cli(*add)).out
    assert (await cli("sla", "exclude", "retract", "1", "--reason", "a mistake")).code == 0
    listed = json.loads((await cli("sla", "exclude", "list", "-o", "json")).out)["items"]
    assert [(one["sequence"], one["retracts"], one["reason"]) for one in listed] == [
        (1, 0, "their driver"), (2, 1, "a mistake"),
    ]  # fmt: skip
    assert "retracted" in (await cli("sla", "exclude", "list")).out
    grid = servers.grids["east-1"]
    closing = ClosingRecord("Europe/Berlin", "2026-08", 1, 2, "machine/a", 3, "f.parquet", 4, 1, 0, 1, "region/east")
    change = ScopeChange("device/east-1/gpu0", Totals(-5, 0, 5, 0, 0))
    adjusted = AdjustmentRecord("Europe/Berlin", "2026-08", 1, "2026-09", 4, (change,), "region/east")
    grid.put(grid.keys.closing("Europe/Berlin", "2026-08"), closing)
    grid.put(grid.keys.adjustment("Europe/Berlin", "2026-08", 1), adjusted)
    assert "f.parquet" in (await cli("sla", "closed")).out
    shown = await cli("sla", "closed", "--month", "2026-08", "--zone", "Europe/Berlin")
    assert shown.code == 0 and "2026-09" in shown.out and "-5" in shown.out and "+5" in shown.out
    assert (await cli("sla", "closed", "--heads")).err == "there are none\n"


async def test_watch_prints_what_exists_and_then_changes(cli: Cli, servers: GridServers) -> None:
    process = await cli.start("get", "devices", "-w")
    assert process.stdout is not None
    try:
        first = [(await asyncio.wait_for(process.stdout.readline(), 30)).decode() for _ in range(3)]
        assert first[0].startswith("NAME") and "draining" in first[1]
        east = servers.grids["east-1"]
        device = records.device("east-1/gpu1").id
        east.put(east.keys.health(device), records.health(device, HealthState.SUSPECT))
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        assert line.startswith("east-1/gpu1") and "suspect" in line
        east.delete(east.keys.device(device))
        assert (await asyncio.wait_for(process.stdout.readline(), 30)).decode() == "device/east-1/gpu1 is gone\n"
    finally:
        process.kill()
        await process.wait()


async def test_which_configuration_is_used_is_said_and_a_missing_one_too(cli: Cli, tmp_path: Path) -> None:
    said = await cli("get", "nodes", "-v")
    assert said.err == f"configuration: {cli.config}\n"
    del cli.environment["GRIDKEEPER_CONFIG"]
    missing = await cli("get", "nodes")
    assert missing.code == 1 and "start a grid with 'gridkeeper up'" in missing.err
    named = await cli("get", "nodes", "--config", str(cli.config))
    assert named.code == 0
    wrong = await cli("--config", str(tmp_path / "none.yaml"), "get", "nodes")
    assert wrong.code == 1 and "none.yaml: cannot be read" in wrong.err


async def test_help_and_version_need_no_grid(cli: Cli) -> None:
    helped = await cli("--help")
    assert helped.code == 0 and "Exit codes: 0 ok" in helped.out
    assert (await cli("version")).out.startswith("gridkeeper 0.")
