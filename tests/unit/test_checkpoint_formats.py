"""Which directories are refused as incomplete checkpoints.

Protects: a checkpoint that no job can resume from never becomes the newest one, whatever a pickle in it asks for.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import pickletools
import struct
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from failover.checkpoint import inertpickle
from failover.checkpoint.files import walk
from failover.checkpoint.formats import refuse_incomplete
from gridkeeper.ports.jobs import CheckpointError


def check(directory: Path) -> None:
    refuse_incomplete(directory, walk(directory))


# -- what PyTorch writes: classes with these fields, pickled
# (torch/distributed/checkpoint/metadata.py and filesystem.py)


@dataclass(frozen=True)
class MetadataIndex:
    fqn: str
    offset: Any = None
    index: int | None = None


@dataclass
class _StorageInfo:
    relative_path: str
    offset: int
    length: int


@dataclass
class Metadata:
    state_dict_metadata: dict[str, Any]
    planner_data: Any = None
    storage_data: dict[Any, Any] = field(default_factory=dict)


def dcp(directory: Path, ranks: int = 2) -> Path:
    directory.mkdir(parents=True)
    entries = {}
    for rank in range(ranks):
        name = f"__{rank}_0.distcp"
        (directory / name).write_bytes(bytes(100))
        entries[MetadataIndex(f"w{rank}")] = _StorageInfo(name, 0, 60)
        entries[MetadataIndex(f"b{rank}")] = _StorageInfo(name, 60, 40)
    (directory / ".metadata").write_bytes(pickle.dumps(Metadata({"w0": 1}, storage_data=entries)))
    return directory


def test_a_whole_pytorch_checkpoint_passes_also_below_the_directory(tmp_path: Path) -> None:
    dcp(tmp_path / "step-1" / "model")
    (tmp_path / "step-1" / "trainer.json").write_text("{}")
    check(tmp_path / "step-1")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda d: (d / ".metadata").unlink(), r"without its \.metadata"),
        (lambda d: (d / "__1_0.distcp").unlink(), r"'__1_0\.distcp' is missing"),
        (lambda d: (d / "__1_0.distcp").write_bytes(bytes(99)), "99 bytes, .metadata needs 100"),
        (lambda d: (d / ".metadata").write_bytes((d / ".metadata").read_bytes()[:-20]), "does not parse"),
        (lambda d: (d / ".metadata").write_bytes(b""), "does not parse"),
    ],
)
def test_an_incomplete_pytorch_checkpoint_is_refused(tmp_path: Path, damage: Any, why: str) -> None:
    damage(dcp(tmp_path / "step-1"))
    with pytest.raises(CheckpointError, match=why):
        check(tmp_path / "step-1")


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    """Protects: the agent, which runs as more than the job, from what a job writes."""
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-1" / ".metadata").write_bytes(pickle.dumps(Evil(str(tmp_path / "pwned"))))
    (tmp_path / "step-1" / "__0_0.distcp").write_bytes(b"x")
    check(tmp_path / "step-1")
    assert not (tmp_path / "pwned").exists()


# -- safetensors


def safetensors(path: Path, *names: str) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for number, name in enumerate(names):
        header[name] = {"dtype": "F32", "shape": [4], "data_offsets": [16 * number, 16 * number + 16]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16 * len(names)))


def sharded(directory: Path) -> Path:
    directory.mkdir()
    safetensors(directory / "model-00001-of-00002.safetensors", "a", "b")
    safetensors(directory / "model-00002-of-00002.safetensors", "c")
    places = {"a": 1, "b": 1, "c": 2}
    index = {"metadata": {}, "weight_map": {k: f"model-0000{n}-of-00002.safetensors" for k, n in places.items()}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_whole_safetensors_pass(tmp_path: Path) -> None:
    check(sharded(tmp_path / "step-1"))


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda d: (d / SECOND).unlink(), "this shard is missing"),
        (lambda d: cut(d / FIRST, -1), "its header says"),
        (lambda d: cut(d / FIRST, 20), "ends within its header"),
        (lambda d: cut(d / FIRST, 3), "no safetensors file"),
        (lambda d: safetensors(d / FIRST, "a"), "tensor 'b' is not in it"),
        (
            lambda d: (d / "model.safetensors.index.json").write_text('{"weight_map": {"a": "other"}}'),
            "'other' is missing",
        ),
        (lambda d: (d / "model.safetensors.index.json").write_text("{"), "does not parse"),
    ],
)
def test_incomplete_safetensors_are_refused(tmp_path: Path, damage: Any, why: str) -> None:
    damage(sharded(tmp_path / "step-1"))
    with pytest.raises(CheckpointError, match=why):
        check(tmp_path / "step-1")


def test_any_other_directory_passes(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"anything")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / ".metadata").write_text("another program's")
    check(tmp_path)


def nested_keys() -> bytes:
    """A dict whose key is a tuple of one tuple twice, sixty deep: hashing it never ends."""
    doubled = b"".join(b"q%c0h%ch%c\x86" % (n, n, n) for n in range(60))
    return b"\x80\x02})" + doubled + b"Ns."


@pytest.mark.parametrize(
    "data",
    [
        b"\x8e\x00\x00\x00\x00\x00\x00\x00\x01",  # bytes of 2**56
        b"\x8d\x00\x00\x00\x00\x00\x00\x00\x80",  # text of 2**63
        b"\x96\x00\x00\x00\x00\x00\x00\x00\x01",  # a bytearray of 2**56
        b"Nr\xff\xff\xff\x7f.",  # a memo of 2**31 places
        nested_keys(),
        b")" + b"\x85" * 100_000 + b".",  # tuples in tuples
    ],
)
def test_a_pickle_takes_no_more_memory_or_time_than_its_size_is_worth(tmp_path: Path, data: bytes) -> None:
    """Protects: the agent from a job's file of a few bytes that asks for exabytes, or for hours."""
    dcp(tmp_path / "step-1")
    (tmp_path / "step-1" / ".metadata").write_bytes(data)
    tracemalloc.start()
    with contextlib.suppress(CheckpointError):
        check(tmp_path / "step-1")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 1024 * 1024


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_inert_pickle_says_what_was_written(protocol: int) -> None:
    """Protects: every protocol that Python ever wrote is read as it was meant."""
    deep: list[Any] = [1, -(2**70), 1.5, "ä", b"b", None, True, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]
    thing = Metadata({"a": deep, "again": deep}, storage_data={"key": {"inner": [{}]}})
    read = inertpickle.read(pickle.dumps(thing, protocol))
    assert isinstance(read, inertpickle.Thing)
    fields = read.fields()
    (states, storage) = (fields["state_dict_metadata"], fields["storage_data"])
    assert isinstance(states, inertpickle.Pairs) and isinstance(storage, inertpickle.Pairs)
    values = [value for _, value in states.pairs]
    assert [key for key, _ in states.pairs] == ["a", "again"] and values[0] is values[1]
    plain = [item for item in deep if item != b"b"]  # protocols below 3 write bytes as a call
    assert isinstance(values[0], list) and [v for v in values[0] if v != b"b" and not _thing(v)] == plain
    assert storage.pairs == [("key", inertpickle.Pairs([("inner", [inertpickle.Pairs()])]))]


def _thing(value: object) -> bool:
    return isinstance(value, inertpickle.Thing)


OPERATIONS = st.lists(
    st.sampled_from([code.code.encode("latin-1") for code in pickletools.opcodes]).flatmap(
        lambda code: st.binary(max_size=9).map(lambda rest: code + rest)
    ),
    max_size=30,
).map(b"".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["weight_map", "data_offsets", "a", "m.safetensors"]), inner, max_size=3)
    ),
    max_leaves=8,
)
DOCUMENTS = VALUES.map(lambda value: json.dumps(value).encode())
HEADERS = DOCUMENTS.map(lambda text: struct.pack("<Q", len(text)) + text)


@settings(max_examples=200)
@given(
    st.binary(max_size=200) | OPERATIONS | DOCUMENTS | HEADERS,
    st.sampled_from([".metadata", "m.safetensors", "m.safetensors.index.json"]),
)
def test_hostile_bytes_are_refused_or_pass_and_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str
) -> None:
    directory = tmp_path_factory.mktemp("step")
    (directory / name).write_bytes(data)
    try:
        check(directory)
    except CheckpointError as error:
        assert str(directory) in str(error)
