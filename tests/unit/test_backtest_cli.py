"""Protects: 'gridkeeper backtest' reads CSV and recordings, compares, and refuses bad input with one line per fault."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from controlplane.backtest.recorded import read_recording
from controlplane.backtest.trace import BadTrace
from gridkeeper import recording
from gridkeeper.cli.main import run
from gridkeeper.ids import DeviceId
from gridkeeper.records.fleet import EventKind
from gridkeeper.telemetry import METRICS
from tests.unit.applier import NOON

GIVEN = "device,time,code,truth\nn1/gpu0,2024-03-05T14:02:11Z,xid 48,real\nn2/gpu0,2024-03-07T14:02:11Z,xid 31,false\n"
TIGHT = "budgets:\n  - {kind: region, fraction: 0.0, minimum: 0}\n"


def recorded(directory: Path, regions: tuple[str, ...] = ("east",)) -> Path:
    """Two devices, one of them busy, an XID 48 on each, of which the grid drained one for an hour."""
    for region in regions:
        node = f"{region}-1"
        devices = [f"{node}/gpu0", f"{node}/gpu1"]
        recording.write(
            directory,
            recording.INVENTORY,
            recording.frame(
                recording.INVENTORY,
                [
                    (NOON, d, node, region, "", "r1", "nvidia", "H100", "hopper", d, "", 0, "", True, [])
                    for d in devices
                ],
            ),
        )
        rows = [
            (
                NOON + 60_000 * i,
                f"{node}/s/{i}",
                region,
                node,
                d,
                "xid",
                48,
                "XID 48",
                ["kmsg", "nvml"],
                1,
                0,
                "",
                0,
                "",
            )
            for i, d in enumerate(devices)
        ]
        recording.write(directory, recording.EVENTS, recording.frame(recording.EVENTS, rows))
        owner = [(NOON, "train", "1.1", region, node, [devices[0]]), (NOON + 30_000, "train", "1.1", "", "", [])]
        recording.write(directory, recording.OWNERSHIP, recording.frame(recording.OWNERSHIP, owner))
        drains = [
            (NOON + at, "d1", region, node, devices[0], state, "why", [f"{node}/s/0"], "nvidia-xid", 1, 1, "machine",
             NOON + 1_000, [], "")
            for at, state in ((1_000, "admitted"), (2_000, "drained"))
        ]  # fmt: skip
        recording.write(directory, recording.DRAINS, recording.frame(recording.DRAINS, drains))
        health = [(NOON + 3_600_000, devices[0], node, "probation", "returned", "by-hand", 1, "d1")]
        recording.write(directory, recording.HEALTH, recording.frame(recording.HEALTH, health))
    return directory


def test_a_recording_tells_faults_jobs_and_what_was_drained(tmp_path: Path) -> None:
    trace = read_recording(recorded(tmp_path))
    assert [(f.device, f.kind, f.code, f.source) for f in trace.faults] == [
        ("east-1/gpu0", EventKind.XID, 48, "kmsg+nvml"),
        ("east-1/gpu1", EventKind.XID, 48, "kmsg+nvml"),
    ]
    assert trace.busy == {DeviceId("east-1/gpu0"): ((NOON, NOON + 30_000),)}
    (drain,) = trace.recorded
    assert (drain.device, drain.state, drain.admitted_ms, drain.back_ms, drain.faults) == (
        "east-1/gpu0", "admitted", NOON + 1_000, NOON + 3_600_000, (0,),
    )  # fmt: skip


def test_a_recording_of_several_regions_wants_one_named(tmp_path: Path) -> None:
    directory = recorded(tmp_path, ("east", "west"))
    with pytest.raises(BadTrace, match="choose one with --region"):
        read_recording(directory)
    with pytest.raises(BadTrace, match="'north' is not in"):
        read_recording(directory, "north")
    assert {f.node for f in read_recording(directory, "west").faults} == {"west-1"}


def test_the_rules_over_recorded_samples_are_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed row remap shows in the samples of one device from the third minute on, and nowhere else."""
    directory = recorded(tmp_path)
    devices = [DeviceId("east-1/gpu0"), DeviceId("east-1/gpu1")]
    place = [metric.name for metric in METRICS].index("remap_failed")
    for second in range(0, 300, 10):
        values = np.zeros((2, len(METRICS)), np.float32)
        values[1, place] = second >= 180
        at_ms = np.array([NOON + second * 1000] * 2, np.int64)
        recording.write(directory, recording.TELEMETRY, recording.telemetry_frame(devices, at_ms, values))
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "budgets:\n  - {kind: region, fraction: 1.0, minimum: 2}\n"
        "events:\n  - {name: quiet, kind: xid, severity: info, action: ignore}\n"
        "rules:\n  - {name: remap-failed, when: remap_failed >= 1, severity: fatal, action: replace, "
        "fault_class: memory, meaning: it failed}\n"
    )
    assert run(["backtest", "--trace", str(directory), "--policy", str(policy), "-o", "json"]) == 0
    (drain,) = json.loads(capsys.readouterr().out)["outcome"]["drains"]
    assert (drain["device"], drain["rule"], drain["action"]) == ("east-1/gpu1", "remap-failed", "replace")
    assert drain["admitted_ms"] == NOON + 181_000  # samples of a second are judged at its end


def test_text_names_drains_labels_and_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(GIVEN)
    assert run(["backtest", "--trace", str(trace), "--devices", "80"]) == 0
    out = capsys.readouterr().out
    assert "2 faults on 80 devices" in out
    assert "n1/gpu0" in out
    assert "real faults missed    0 of 1" in out
    assert "note: every node is heard throughout" in out


def test_json_compares_two_policies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, tight = tmp_path / "trace.csv", tmp_path / "tight.yaml"
    trace.write_text(GIVEN)
    tight.write_text(TIGHT)
    command = ["backtest", "--trace", str(trace), "--devices", "80", "-o", "json"]
    assert run([*command, "--policy", str(tight), "--against", "default"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [drain["state"] for drain in found["outcome"]["drains"]] == ["refused"]
    assert [drain["device"] for drain in found["difference"]["only_old"]] == ["n1/gpu0"]
    assert found["labels"]["missed_faults"] == [0]


def test_a_policy_is_compared_with_what_really_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = recorded(tmp_path)
    assert run(["backtest", "--trace", str(directory), "--against", "recorded", "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["against"]["policy"] == "as recorded"
    assert [pair[0]["device"] for pair in found["difference"]["moved"]] == ["east-1/gpu0"]
    assert found["outcome"]["interruptions"] == 1  # only one of the devices had a job
    assert [found["against"][name] for name in ("interruptions", "avoided", "incidents", "degraded_ms")] == [None] * 4
    assert found["against"]["out_ms"] == 3_600_000 - 1_000
    assert run(["backtest", "--trace", str(directory), "--against", "recorded"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("job-ending faults in service"))
    assert line.split()[-2:] == ["?", "1"], "what a recording does not tell is not said to be none"


def test_a_file_of_samples_that_does_not_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = recorded(tmp_path)
    samples = np.full((1, len(METRICS)), 40.0, np.float32)
    frame = recording.telemetry_frame([DeviceId("east-1/gpu0")], np.array([NOON], np.int64), samples)
    path = recording.write(directory, recording.TELEMETRY, frame)
    whole = path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:4] + b"\xff" * (len(whole) // 2 - 4) + whole[len(whole) // 2 :]):
        path.write_bytes(broken)
        assert run(["backtest", "--trace", str(directory)]) == 1
        error = capsys.readouterr().err
        assert "telemetry" in error and "remove the file that does not read" in error


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--devices", "1"), "--devices: 1 is less than the 2"),
        (("--against", "recorded"), "does not tell what was drained"),
        (("--region", "east"), "is a CSV and has none"),
        (("--policy", "/none.yaml"), "cannot be read"),
        (("--labels", "/none.csv"), "cannot be read"),
    ],
)
def test_bad_arguments_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], what: str
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(GIVEN)
    assert run(["backtest", "--trace", str(trace), *arguments]) == 1
    captured = capsys.readouterr()
    assert what in captured.err
    assert captured.out == ""


def test_a_directory_that_is_no_recording_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backtest", "--trace", str(tmp_path)]) == 1
    assert "no recording" in capsys.readouterr().err


def test_a_bad_duration_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["backtest", "--trace", "x", "--repair", "soon"]) == 2
    assert "is not a duration" in capsys.readouterr().err
