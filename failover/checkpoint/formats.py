"""What people's checkpoints look like, and when one is not complete: PyTorch DCP, safetensors, any other directory.

A job that renames its directory too early, or a rank that died while it wrote, leaves something that no job can resume
from. It is refused before it is stored, with the reason, and the checkpoint before it stays the newest one.
"""

from __future__ import annotations

import json
import operator
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from failover.checkpoint import files, inertpickle
from gridkeeper.ports.jobs import CheckpointError

MAX_METADATA_BYTES = 256 * 1024 * 1024
"""Of a DCP ``.metadata``, an index or a safetensors header (which its own library limits to 100 MB)."""
DCP_METADATA = ".metadata"
DCP_SHARD = re.compile(r"^__\d+_\d+\.distcp$")
INDEX = ".safetensors.index.json"
NUMBERED = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<all>\d{5})\.safetensors$")


def refuse_incomplete(directory: Path, found: Sequence[files.Found]) -> None:
    """Raises ``CheckpointError`` naming the file and what is missing, if the directory or one below it holds a
    checkpoint of a known format that is not complete."""
    for path, why in lacking(file.path for file in found):
        raise _refused(directory, path, why)
    below: dict[str, dict[str, int]] = {}
    for file in found:
        parent, _, name = file.path.rpartition("/")
        below.setdefault(parent, {})[name] = file.size_bytes
    for parent, sizes in below.items():
        here = f"{parent}/" if parent else ""
        _dcp(directory, here, sizes)
        _safetensors(directory, here, sizes)


def lacking(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What names alone show of a checkpoint that is not complete: files (of each set that lacks some, the first), and
    why."""
    shards: dict[str, str] = {}
    numbers: dict[tuple[str, int], set[int]] = {}
    described: set[str] = set()
    for path in sorted(paths):
        parent, _, name = path.rpartition("/")
        if name == DCP_METADATA:
            described.add(parent)
        elif DCP_SHARD.match(name):
            shards.setdefault(parent, path)
        elif match := NUMBERED.match(name):
            here = f"{parent}/" if parent else ""
            numbers.setdefault((f"{here}{match['stem']}", int(match["all"])), set()).add(int(match["number"]))
    for parent, path in shards.items():
        if parent not in described:
            yield path, f"a PyTorch checkpoint without its {DCP_METADATA}"
    for (stem, count), there in numbers.items():
        missing = next((number for number in range(1, count + 1) if number not in there), None)
        if missing is not None:
            yield f"{stem}-{missing:05d}-of-{count:05d}.safetensors", "this shard is missing"


def _refused(directory: Path, path: str, why: str) -> CheckpointError:
    return CheckpointError(f"{directory / path}: {why}; rename the directory to step-<n> when it is complete")


def _read(directory: Path, path: str, size: int) -> bytes:
    if size > MAX_METADATA_BYTES:
        raise _refused(directory, path, f"{size} bytes are too many for what describes a checkpoint")
    try:
        return files.read_part(directory, path, 0, size)
    except OSError as error:
        raise CheckpointError(f"{directory / path}: cannot be read: {error}") from error


# -- PyTorch distributed checkpoints: .metadata is written last, and says which bytes of which shard are what ----------


def _dcp(directory: Path, here: str, sizes: Mapping[str, int]) -> None:
    shards = {name for name in sizes if DCP_SHARD.match(name)}
    if not shards and DCP_METADATA not in sizes:
        return
    path = f"{here}{DCP_METADATA}"
    try:
        document = inertpickle.read(_read(directory, path, sizes[DCP_METADATA]))
    except inertpickle.NotRead as error:
        if not shards:
            return  # another program's file of that name
        raise _refused(directory, path, f"it does not parse: {error}"[:300]) from error
    entries = document.fields().get("storage_data") if isinstance(document, inertpickle.Thing) else None
    if not isinstance(entries, inertpickle.Pairs):
        return  # a storage writer of another kind: nothing can be said
    for _, entry in entries.pairs:
        fields = entry.fields() if isinstance(entry, inertpickle.Thing) else {}
        shard, offset, length = (fields.get(name) for name in ("relative_path", "offset", "length"))
        if not isinstance(shard, str) or not isinstance(offset, int) or not isinstance(length, int):
            raise _refused(directory, path, "an entry names no shard, offset and length")
        if offset < 0 or length < 0:
            raise _refused(directory, path, f"shard {shard[:200]!r}: offset {offset}, length {length} are no place")
        if shard not in sizes:
            raise _refused(directory, path, f"shard {shard[:200]!r} is missing")
        if offset + length > sizes[shard]:
            why = f"it has {sizes[shard]} bytes, {DCP_METADATA} needs {offset + length}"
            raise _refused(directory, f"{here}{shard}", why)


# -- safetensors: 8 bytes length, a JSON header with offsets, the data; an index names the shards ----------------------


def _safetensors(directory: Path, here: str, sizes: Mapping[str, int]) -> None:
    tensors = {
        name: _tensors(directory, f"{here}{name}", sizes[name]) for name in sizes if name.endswith(".safetensors")
    }
    for name in (n for n in sizes if n.endswith(INDEX)):
        path = f"{here}{name}"
        document = _json(directory, path, _read(directory, path, sizes[name]))
        places = document.get("weight_map")
        if not isinstance(places, dict):
            raise _refused(directory, path, "it has no weight_map")
        for tensor, shard in places.items():
            if not isinstance(shard, str) or shard not in tensors:
                raise _refused(directory, path, f"shard {str(shard)[:200]!r} is missing")
            if tensor not in tensors[shard]:
                raise _refused(directory, f"{here}{shard}", f"tensor {tensor[:200]!r} is not in it")


def _tensors(directory: Path, path: str, size: int) -> frozenset[str]:
    """The names in one file, whose length must be what its header says."""
    start = _read(directory, path, min(size, 8))
    if len(start) < 8:
        raise _refused(directory, path, f"{size} bytes are no safetensors file")
    (length,) = struct.unpack("<Q", start)
    if 8 + length > size:
        raise _refused(directory, path, f"it ends within its header: {size} bytes of {8 + length}")
    header = _json(directory, path, _read(directory, path, 8 + length)[8:])
    header.pop("__metadata__", None)
    end = 0
    for name, entry in header.items():
        try:
            end = max(end, operator.index(entry["data_offsets"][1]))
        except (TypeError, KeyError, IndexError) as error:
            raise _refused(directory, path, f"tensor {name[:200]!r} has no data_offsets") from error
    if 8 + length + end != size:
        raise _refused(directory, path, f"it has {size} bytes, its header says {8 + length + end}")
    return frozenset(header)


def _json(directory: Path, path: str, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(directory, path, f"it does not parse: {error!r}"[:300]) from error
    if not isinstance(document, dict):
        raise _refused(directory, path, "it is no JSON object")
    return document
