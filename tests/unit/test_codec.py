"""Records and messages are the same thing twice; these tests keep them so."""

from __future__ import annotations

import dataclasses
import enum
import random
import typing
import zlib

import pytest

from controlplane.store.limits import check_txn
from gridkeeper import codec, keys
from gridkeeper.ids import DeviceId, Epoch, JobId, MigrationId, NodeId, RegionId
from gridkeeper.ports.store import Compare, PutOp
from gridkeeper.records import books, care, common, documents, faults, fleet, jobs, limits, policy
from gridkeeper.records.faults import BudgetHold, BudgetRecord, HoldKind
from gridkeeper.records.jobs import OwnershipRecord, Revoke
from gridkeeper.v1 import records_pb2

MODULES = (common, fleet, faults, jobs, books, limits, care, policy, documents)


def _own(base: type) -> list[type]:
    return [
        v
        for m in MODULES
        for v in vars(m).values()
        if isinstance(v, type) and v.__module__ == m.__name__ and (issubclass(v, enum.Enum) == (base is enum.Enum))
    ]


@pytest.mark.parametrize("record", _own(object), ids=lambda r: r.__name__)
def test_a_record_has_exactly_the_fields_of_its_message(record: type) -> None:
    message = getattr(records_pb2, record.__name__)
    assert [f.name for f in dataclasses.fields(record)] == [f.name for f in message.DESCRIPTOR.fields]


@pytest.mark.parametrize("kind", _own(enum.Enum), ids=lambda r: r.__name__)
def test_an_enum_has_exactly_the_members_of_its_message(kind: type[enum.Enum]) -> None:
    prefix = codec.enum_prefix(kind)
    names = set(getattr(records_pb2, kind.__name__).keys()) - {prefix + "UNSPECIFIED"}
    assert names == {prefix + member.name for member in kind}


def test_every_kind_of_key_leads_to_a_record_that_has_a_message() -> None:
    for kind in (*keys.REGION_KINDS.values(), *keys.GLOBAL_KINDS.values()):
        assert codec.message_type(kind).DESCRIPTOR.name == kind.__name__


def _sample(hint: typing.Any, name: str) -> typing.Any:
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    if typing.get_origin(hint) is tuple:
        return (_sample(typing.get_args(hint)[0], name),)
    if typing.get_origin(hint) is not None:
        return _sample(typing.get_args(hint)[0], name)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{f.name: _sample(hints[f.name], f.name) for f in dataclasses.fields(hint)})  # type: ignore[operator]
    if issubclass(hint, enum.Enum):
        return list(hint)[-1]
    return {str: name, int: 7, float: 0.5, bool: True}[hint]


@pytest.mark.parametrize("record", _own(object), ids=lambda r: r.__name__)
def test_a_record_survives_the_round_trip(record: type) -> None:
    value = _sample(record, record.__name__)
    assert codec.decode(record, codec.encode(value)) == value


def test_an_absent_message_field_is_none_and_comes_back_as_none() -> None:
    spec = _sample(jobs.JobSpec, "j")
    owner = OwnershipRecord(
        JobId("j"), Epoch(1, 2), RegionId("e"), NodeId("n"), (), common.Desired.RUN, 0, None, -1, "", MigrationId("m"),
        spec, "",
    )  # fmt: skip
    assert codec.decode(OwnershipRecord, codec.encode(owner)).revoke is None
    revoked = dataclasses.replace(owner, revoke=Revoke(MigrationId("m"), "why", 5))
    assert codec.decode(OwnershipRecord, codec.encode(revoked)) == revoked


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b""])
def test_bytes_that_are_no_record_are_corrupt_and_not_a_default(data: bytes) -> None:
    with pytest.raises(codec.CorruptRecord):
        codec.decode(fleet.HealthRecord, data)


def _budget(size: int, out: int) -> BudgetRecord:
    """Of a region of ``size`` devices, ``out`` of them drained at different times."""
    rng = random.Random(7)
    names = [(f"east-{i // 8:05}", f"gpu{i % 8}") for i in sorted(rng.sample(range(size), out))]
    holds = tuple(
        BudgetHold(DeviceId(f"{node}/{slot}"), HoldKind.DRAIN, f"{node}:{slot}:drain:{rng.getrandbits(26)}")
        for node, slot in names
    )
    return BudgetRecord("region", holds, out, size)


def test_budgets_of_a_hundred_thousand_devices_fit_into_one_transaction() -> None:
    """Protects: with a quarter of a large region out (region, fleet, zone and vendor each name them all), the next
    drain or cordon is still written."""
    record = _budget(100_000, 25_000)
    data = codec.encode(record)
    assert codec.decode(BudgetRecord, data) == record and codec.encode(record) == data
    names = ("region", "fleet", "zone-a", "vendor-nvidia")
    check_txn([Compare(name, 1) for name in names], [PutOp(name, data) for name in names], ())  # type: ignore[arg-type]


def test_what_is_small_is_stored_as_its_message() -> None:
    """Protects: other programs read records with nothing but the ``.proto``; only large ones are packed."""
    record = _budget(100, 25)
    assert codec.encode(record) == codec.to_message(record).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:40] + b"\xff" + data[41:],
        lambda data: codec.PACKED,
        lambda data: codec.PACKED + zlib.compress(bytes(codec.MAX_UNPACKED + 1), 1),
    ],
    ids=["cut", "more", "damaged", "empty", "bomb"],
)
def test_a_packed_value_that_is_damaged_is_corrupt(harm: typing.Callable[[bytes], bytes]) -> None:
    """Protects: it stands for something unknown, never for an empty record, and takes no more memory than it may."""
    with pytest.raises(codec.CorruptRecord, match="BudgetRecord"):
        codec.decode(BudgetRecord, harm(codec.encode(_budget(3_000, 3_000))))
