"""``docs/objects.md`` documents every field that ``gridkeeper get -o json`` prints, as it is today."""

from __future__ import annotations

from gridkeeper.cli.docgen import TARGET, Writer
from gridkeeper.kinds import KINDS
from gridkeeper.v1 import api_pb2


def test_the_document_is_current() -> None:
    assert TARGET.read_text() == Writer().document(), "run python -m gridkeeper.cli.docgen"


def test_every_kind_and_every_field_of_its_view_is_named() -> None:
    text = TARGET.read_text()
    for info in KINDS:
        assert f"\n### {info.plural}\n" in text
        view = api_pb2.Object.DESCRIPTOR.fields_by_name[info.view].message_type
        for field in view.fields:
            assert f"| `{field.name}` |" in text, f"{info.singular}: {field.name}"
