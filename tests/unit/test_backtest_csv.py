"""Protects: a trace, its labels and its classes are read exactly, or refused with file, line and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.backtest.csvtrace import parse_time, read_classes, read_csv, read_inventory, read_lemons
from controlplane.backtest.trace import BadTrace, Truth, parse_code
from gridkeeper.ids import DeviceId, RegionId
from gridkeeper.records.fleet import EventKind

REGION = RegionId("trace")


def wrote(tmp_path: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_rows_become_faults_in_order_of_time(tmp_path: Path) -> None:
    path = wrote(
        tmp_path,
        "device,time,class,code,message,truth,repaired_at,rack\n"
        'n2/gpu1,2024-03-05T15:00:00+01:00,,XID 79,"fallen, off",real,2024-03-06T00:00:00Z,r7\n'
        "\n"
        "n1,1709640000,Memory ,,,,,\n"
        "n1/gpu0,1709640000500,row_remap,,,false,,\n",
    )
    trace = read_csv(path, REGION)
    assert [(f.at_ms, f.node, f.device, f.kind, f.code, f.truth) for f in trace.faults] == [
        (1_709_640_000_000, "n1", "", EventKind.XID, 48, Truth.UNKNOWN),
        (1_709_640_000_500, "n1", "n1/gpu0", EventKind.XID, 63, Truth.FALSE),
        (1_709_647_200_000, "n2", "n2/gpu1", EventKind.XID, 79, Truth.REAL),
    ]
    assert trace.faults[2].message == "fallen, off"
    assert trace.devices[DeviceId("n2/gpu1")].rack == "r7"
    assert (trace.from_ms, trace.until_ms) == (1_709_640_000_000, 1_709_683_200_000)
    assert any("class 'memory' is read as xid 48" in note for note in trace.notes)
    assert any("no inventory was given" in note for note in trace.notes)


@pytest.mark.parametrize(
    ("row", "where", "what"),
    [
        ("n1/gpu0,yesterday,memory", ":2: time: 'yesterday' is no time", "ISO 8601"),
        ("n1/gpu0,,memory", ":2: time: ''", "ISO 8601"),
        ("n1/gpu0,2024-13-01,memory", ":2: time:", "ISO 8601"),
        ("n1/gpu0,1969-01-01,memory", ":2: time:", "before 1970"),
        ("../etc/passwd,1,memory", ":2: device:", "is not a name"),
        ("n1/gpu 0,1,memory", ":2: device:", "is not a name"),
        (",1,memory", ":2: device:", "is not a name"),
        ("n1/gpu0,1,gremlins", ":2: class: 'gremlins' is not known", "--classes"),
        ("n1/gpu0,1,", ":2: class: there is neither a class nor a code", "xid 48"),
        ("n1/gpu0,1", ":2: 2 cells where the header has 3", "quote commas"),
    ],
)
def test_a_bad_row_is_named_with_its_remedy(tmp_path: Path, row: str, where: str, what: str) -> None:
    path = wrote(tmp_path, f"device,time,class\n{row}\n")
    with pytest.raises(BadTrace) as caught:
        read_csv(path, REGION)
    assert str(caught.value).startswith(f"{path}{where}")
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "it is empty"),
        (b"device,class\nn1,memory\n", "the column 'time' is missing"),
        (b"device,time,time\nn1,1,1\n", "the column 'time' is there twice"),
        (b"device,time,colour\nn1,1,red\n", "there is no column 'colour'"),
        (b"device,time,class\n", "it holds no faults"),
        (b"device,time,class\nn1,1,m\xff\n", ":2: byte"),
        (b'device,time,class\nn1,1,"mem"ory\n', "not CSV"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: bytes, what: str) -> None:
    with pytest.raises(BadTrace, match=what.replace("'", ".")):
        read_csv(wrote(tmp_path, text), REGION)


def test_everything_wrong_is_told_at_once_and_within_bounds(tmp_path: Path) -> None:
    path = wrote(tmp_path, "device,time,class\n" + "n1,never,gremlins\n" * 50)
    with pytest.raises(BadTrace) as caught:
        read_csv(path, REGION)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "… and 80 more"


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="cannot be read"):
        read_csv(tmp_path / "none.csv", REGION)


def test_rows_that_are_there_twice_count_once(tmp_path: Path) -> None:
    path = wrote(tmp_path, "device,time,code\n" + "n1/gpu0,1000,xid 48\n" * 3 + "n1/gpu0,1000,xid 94\n")
    trace = read_csv(path, REGION)
    assert [fault.code for fault in trace.faults] == [48, 94]
    assert any("2 rows were there twice" in note for note in trace.notes)


def test_a_device_that_the_inventory_lacks_is_refused(tmp_path: Path) -> None:
    inventory = read_inventory(str(wrote(tmp_path, "device,rack\nn1/gpu0,r1\nn1/gpu1,r1\n", "inv.csv")), REGION)
    assert inventory[DeviceId("n1/gpu1")].rack == "r1"
    with pytest.raises(BadTrace, match=":2: device: n2/gpu0 is not in the inventory"):
        read_csv(wrote(tmp_path, "device,time,code\nn2/gpu0,1,xid 48\n"), REGION, inventory)
    trace = read_csv(wrote(tmp_path, "device,time,code\nn1,1,xid 48\n"), REGION, inventory)
    assert trace.faults[0].node == "n1"


def test_a_sites_own_classes_overrule_ours(tmp_path: Path) -> None:
    classes = read_classes(str(wrote(tmp_path, "class,code\nMemory,xid 94\ngremlins,ascend 80E01801\n", "classes.csv")))
    trace = read_csv(wrote(tmp_path, "device,time,class\nn1/g,1,memory\nn1/g,2,gremlins\n"), REGION, None, classes)
    assert [(f.kind, f.code) for f in trace.faults] == [(EventKind.XID, 94), (EventKind.ASCEND, 0x80E01801)]
    assert not any("assumption" in note for note in trace.notes)


def test_contradicting_labels_are_refused(tmp_path: Path) -> None:
    good = read_lemons(str(wrote(tmp_path, "device,label\nn1/gpu0,lemon\nn1/gpu1,good\n")))
    assert good == {"n1/gpu0": True, "n1/gpu1": False}
    with pytest.raises(BadTrace, match="labelled both lemon and good"):
        read_lemons(str(wrote(tmp_path, "device,label\nn1/gpu0,lemon\nn1/gpu0,good\n")))
    with pytest.raises(BadTrace, match=":2: label: 'meh' is none"):
        read_lemons(str(wrote(tmp_path, "device,label\nn1/gpu0,meh\n")))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("xid 48", (EventKind.XID, 48)), ("XID-48", (EventKind.XID, 48)), ("sxid:20034", (EventKind.SXID, 20034)),
        ("Ascend 80E01801", (EventKind.ASCEND, 0x80E01801)), ("host 12", (EventKind.HOST, 12)), ("48", None),
        ("xid", None), ("xid 4x", None), ("voodoo 3", None), ("xid " + "9" * 40, None),
    ],
)  # fmt: skip
def test_codes(text: str, code: tuple[EventKind, int] | None) -> None:
    assert parse_code(text) == code


@given(st.integers(min_value=10**9, max_value=4 * 10**9))
@settings(max_examples=50)
def test_a_time_is_the_same_in_every_notation(seconds: int) -> None:
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(seconds, UTC)
    assert {
        parse_time(str(seconds)), parse_time(str(seconds * 1000)), parse_time(f"{seconds}.000"),
        parse_time(moment.isoformat()), parse_time(moment.strftime("%Y-%m-%d %H:%M:%S")),
        parse_time(moment.strftime("%Y-%m-%dT%H:%M:%SZ")),
    } == {seconds * 1000}  # fmt: skip
