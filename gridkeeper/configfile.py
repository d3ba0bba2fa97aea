"""Configuration files: strict YAML to the dataclasses of ``gridkeeper.config`` and back.

Everything that is wrong is told at once, each with file, line, field path, value and remedy. Nothing is guessed: an
unknown field, ``yes`` where a text belongs, or a number in quotes is an error, not a surprise at run time.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import math
import re
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, NewType, TypeVar, cast

import yaml

from gridkeeper.configrules import NAMES, RULES, UNIQUE, Wrong
from gridkeeper.ids import BadName, checked_name
from gridkeeper.records.common import Label
from gridkeeper.timings import BadTimings

C = TypeVar("C")

MAX_BYTES = 1024 * 1024
MAX_NODES = 262_144
"""Values of a file, its aliases written out: far more than any file of ours has."""
Verbatim = NewType("Verbatim", str)
"""Any YAML at all, kept as JSON text: a part of a document that is somebody else's business."""
Written = NewType("Written", str)
"""Any single value, as it is written: where a standard lets people write 2026-01-01 00:00:00 without quotes."""
_INVALID = object()
_DECIMAL = re.compile(r"-?\d{1,12}(\.\d{1,9})?")


class ConfigError(ValueError):
    """What is wrong with a configuration file; one line per fault."""


def load(kind: type[C], path: str | Path) -> C:
    """The configuration in ``path``. Raises ``ConfigError``."""
    return parse(kind, load_text(path), str(path))


def load_text(path: str | Path) -> str:
    """What the file says. Raises ``ConfigError``."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, so it is no configuration of ours")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def parse(kind: type[C], text: str, source: str) -> C:
    """The configuration in ``text``; ``source`` names it in errors. Raises ``ConfigError``."""
    roots = _composed(text, source)
    if len(roots) > 1:
        raise ConfigError(f"{source}:{roots[1].start_mark.line + 1}: a second document begins here; use one file each")
    if not roots:
        raise ConfigError(f"{source}: the file is empty; it needs {_names(_required(kind))}")
    reader = _Reader(source)
    value = reader.read(kind, roots[0], "")
    if reader.faults:
        raise ConfigError("\n".join(reader.faults))
    return cast(C, value)


@dataclass(frozen=True, slots=True)
class Placed(Generic[C]):
    """A document, and the line in which it begins."""

    value: C
    line: int


def parse_documents(kinds: Mapping[str, type[C]], text: str, source: str) -> tuple[Placed[C], ...]:
    """The documents in ``text``, each of the kind that its field ``kind`` names. Raises ``ConfigError``."""
    reader, found = _Reader(source), []
    roots = _composed(text, source)
    if not roots:
        raise ConfigError(f"{source}: the file is empty; it needs a document of kind {', '.join(kinds)}")
    for root in roots:
        pairs = root.value if isinstance(root, yaml.MappingNode) else ()
        node = next((value for key, value in pairs if key.value == "kind"), None)
        if node is None:
            reader.fault(root, "kind", f"is missing; it is one of {', '.join(kinds)}")
        elif not isinstance(node, yaml.ScalarNode) or node.value not in kinds:
            word = node.value if isinstance(node, yaml.ScalarNode) else ""
            reader.fault(node, "kind", f"{_shown(node)} is none of its values; {_remedy(word, tuple(kinds))}")
        else:
            value = reader.read(kinds[node.value], root, "")
            found.append(Placed(cast(C, value), root.start_mark.line + 1))
    if reader.faults:
        raise ConfigError("\n".join(reader.faults))
    return tuple(found)


def _composed(text: str, source: str) -> list[yaml.Node]:
    """The documents in ``text`` that are not empty."""
    try:
        roots = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        weights: dict[int, int] = {}
        whole = sum(_weight(root, weights) for root in roots if root is not None)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not YAML: {str(error).splitlines()[0][:200]}") from error
    if whole > MAX_NODES:
        raise ConfigError(
            f"{source}: with its aliases written out it has {whole} values; at most {MAX_NODES} are taken"
        )
    return [r for r in roots if r is not None and not (isinstance(r, yaml.ScalarNode) and r.value == "")]


def _weight(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, its aliases written out. Raises ``YAMLError`` for one that holds itself."""
    found = known.get(id(node))
    if found is None:
        known[id(node)] = -1
        children = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        found = known[id(node)] = 1 + sum(_weight(child, known) for child in children)
    if found < 0:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: an alias stands for a value that holds itself")
    return found


def dump(config: Any) -> str:
    """YAML that ``parse`` reads back to an equal configuration."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True, width=100)


@dataclass(slots=True)
class _Reader:
    """Reads nodes by type and collects what is wrong. A value that could not be read is ``_INVALID``."""

    source: str
    faults: list[str] = field(default_factory=list)

    def fault(self, node: yaml.Node, path: str, text: str) -> object:
        where = f"{path}: " if path else ""
        self.faults.append(f"{self.source}:{node.start_mark.line + 1}: {where}{text}")
        return _INVALID

    def read(self, hint: Any, node: yaml.Node, path: str) -> Any:
        if hint is Verbatim:
            return self._verbatim(node, path)
        if hint is Written:
            return node.value if isinstance(node, yaml.ScalarNode) else self.fault(node, path, "is not a single value")
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            if node.tag == "tag:yaml.org,2002:null":
                return None
            hint = next(a for a in typing.get_args(hint) if a is not type(None))
            if hint in (Verbatim, Written):
                return self.read(hint, node, path)
        if typing.get_origin(hint) is tuple:
            return self._tuple(typing.get_args(hint)[0], node, path)
        base = _base(hint)
        if dataclasses.is_dataclass(base):
            return self._record(base, node, path)
        return self._scalar(hint, base, node, path)

    def _verbatim(self, node: yaml.Node, path: str) -> Any:
        try:
            value = yaml.SafeLoader("").construct_document(node)
            return Verbatim(json.dumps(value, default=str, sort_keys=True))
        except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
            return self.fault(node, path, f"cannot be kept: {str(error).splitlines()[0][:200]}")

    def _record(self, kind: Any, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self.fault(
                node, path, f"{_shown(node)} is not a group of fields; it needs {_names(_required(kind))}"
            )
        hints = typing.get_type_hints(kind)
        nodes = self._fields(node, path)
        values: dict[str, Any] = {}
        for name, (key, value) in nodes.items():
            at = _join(path, name)
            if name not in hints:
                self.fault(key, at, f"there is no such field; {_remedy(name, tuple(hints))}")
                continue
            values[name] = self._checked(kind, name, self.read(hints[name], value, at), value, at)
        for name in _required(kind):
            if name not in nodes:
                self.fault(node, _join(path, name), "is missing; add it")
                values[name] = _INVALID
        if any(value is _INVALID for value in values.values()):
            return _INVALID
        try:
            return kind(**values)
        except BadTimings as error:
            where, _, text = str(error).partition(": ")
            named = where.rpartition(".")[2]
            return self.fault(nodes[named][0] if named in nodes else node, _join(path, named), text)

    def _fields(self, node: yaml.MappingNode, path: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        for key, value in pairs:
            if not isinstance(key, yaml.ScalarNode):
                self.fault(key, path, f"{_shown(key)} cannot be a field's name; use plain text")
                continue
            name = str(key.value)
            if name in found:
                self.fault(key, _join(path, name), "is there twice; leave one out")
            else:
                found[name] = (key, value)
        return found

    def _tuple(self, item: Any, node: yaml.Node, path: str) -> Any:
        if item is Label and isinstance(node, yaml.MappingNode):
            labels = [
                Label(name, text)
                for name, (_, value) in self._fields(node, path).items()
                if isinstance(text := self.read(str, value, _join(path, name)), str)
            ]
            return tuple(labels)
        if not isinstance(node, yaml.SequenceNode):
            remedy = f"write [{node.value}]" if isinstance(node, yaml.ScalarNode) and node.value else "write [a, b]"
            return self.fault(node, path, f"{_shown(node)} is not a list; {remedy}")
        values = tuple(self.read(item, child, f"{path}[{index}]") for index, child in enumerate(node.value))
        return _INVALID if any(value is _INVALID for value in values) else values

    def _scalar(self, hint: Any, base: Any, node: yaml.Node, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return self.fault(node, path, f"{_shown(node)} is not {_wanted(base)}")
        tag = node.tag.rpartition(":")[2]
        if base is bool and tag == "bool" and node.value.lower() in ("true", "false"):
            return node.value.lower() == "true"
        if base is int and tag == "int" and _digits(node.value):
            return int(node.value.replace("_", ""))
        if base is float and tag in ("int", "float"):
            return self._float(node, path)
        if base is Fraction and tag in ("int", "float") and _DECIMAL.fullmatch(node.value):
            return Fraction(node.value)  # of the text: a float would not be 99.95
        if isinstance(base, type) and issubclass(base, enum.Enum):
            words = tuple(str(member.value) for member in base)
            if node.value in words:
                return base(node.value)
            return self.fault(node, path, f"{_shown(node)} is none of its values; {_remedy(node.value, words)}")
        if base is str and tag == "str":
            return self._named(hint, node, path)
        if base is str and tag != "null":
            return self.fault(node, path, f'{_shown(node)} is not a text to YAML; put it in quotes: "{node.value}"')
        return self.fault(node, path, f"{_shown(node)} is not {_wanted(base)}")

    def _float(self, node: yaml.ScalarNode, path: str) -> Any:
        try:
            value = float(node.value.replace("_", ""))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            return self.fault(node, path, f"{_shown(node)} is not {_wanted(float)}")
        return value

    def _named(self, hint: Any, node: yaml.ScalarNode, path: str) -> Any:
        if hint in NAMES:
            try:
                return checked_name(path, node.value)
            except BadName as error:
                return self.fault(node, path, str(error).removeprefix(f"{path}: "))
        return node.value

    def _checked(self, kind: Any, name: str, value: Any, node: yaml.Node, path: str) -> Any:
        if (kind, name) in UNIQUE and isinstance(node, yaml.SequenceNode):
            self._unique(UNIQUE[kind, name], node, path)
        rule = RULES.get((kind, name))
        if rule is None or value is _INVALID or value is None:
            return value
        many = isinstance(value, tuple) and not rule.whole
        for index, one in enumerate(value if many else (value,)):
            if many and dataclasses.is_dataclass(one) and not isinstance(one, Label):
                return value
            try:
                rule(one)
            except Wrong as wrong:
                at = _join(path, one.key) if isinstance(one, Label) else f"{path}[{index}]" if many else path
                child = node.value[index] if many and isinstance(node, yaml.SequenceNode) else node
                value = self.fault(child, at, str(wrong))
        if many and value == () and rule.some:
            return self.fault(node, path, "is an empty list; it needs at least one entry")
        return value

    def _unique(self, key: str, node: yaml.SequenceNode, path: str) -> None:
        """Entries of a list that are told apart by the field ``key``."""
        lines: dict[str, int] = {}
        for index, child in enumerate(node.value):
            pairs = child.value if isinstance(child, yaml.MappingNode) else ()
            for named, value in pairs:
                if named.value != key or not isinstance(value, yaml.ScalarNode):
                    continue
                first = lines.setdefault(value.value, value.start_mark.line + 1)
                if first != value.start_mark.line + 1:
                    at = f"{path}[{index}].{key}"
                    self.fault(value, at, f"{value.value!r} is the name of the one in line {first} too; choose another")


def _base(hint: Any) -> Any:
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    return hint


def _required(kind: Any) -> tuple[str, ...]:
    return tuple(
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "some of its fields, or leave it out"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _remedy(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value[:80]) if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a group of fields"


_WANTED: dict[Hashable, str] = {
    int: "a whole number, like 20000",
    float: "a number, like 0.25",
    Fraction: "a decimal number, like 99.95",
    bool: "true or false",
    str: "a text",
}


def _wanted(base: Hashable) -> str:
    return _WANTED.get(base, "one of its values")


def _digits(text: str) -> bool:
    """Plain decimal: no octal, no hexadecimal, and not YAML 1.1's 12:30, which is a number in base 60."""
    digits = text.removeprefix("-").removeprefix("+").replace("_", "")
    return digits.isdecimal() and len(digits) <= 18 and (digits == "0" or not digits.startswith("0"))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        if value and isinstance(value[0], Label) and len({label.key for label in value}) == len(value):
            return {label.key: label.value for label in value}
        return [_plain(item) for item in value]
    return value
