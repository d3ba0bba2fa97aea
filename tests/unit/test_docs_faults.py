"""``docs/faults.md`` and ``gridkeeper faults`` show the catalogue as it is, with every source and every conflict."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from gridkeeper.catalogue import report
from gridkeeper.catalogue.tables import FILES, conflicts, sources, table
from gridkeeper.cli.docgen import FAULTS
from gridkeeper.cli.faults import faults
from gridkeeper.records.fleet import EventKind


def test_the_document_is_current() -> None:
    assert FAULTS.read_text() == report.document(), "run python -m gridkeeper.cli.docgen"


def test_every_entry_source_and_conflict_is_in_it() -> None:
    """Protects: the table is whole; each entry cites its source, and each source its version and date."""
    text = FAULTS.read_text()
    for kind in FILES:
        for entry in table(kind).values():
            line = (
                entry.mnemonic.removeprefix("0x")
                if kind is EventKind.ASCEND
                else f"| {entry.code} | {entry.mnemonic} |"
            )
            assert line in text, entry.name
    for source in sources().values():
        assert f"| `{source.id}` | {source.name} | {source.version} | {source.date} |" in text
    report_part = text[text.index("## Conflict report") :]
    for code in conflicts(EventKind.XID):
        assert f"| xid-{code} |" in report_part


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["xid", "94"], 0, ["Contained memory error", "RESTART_APP", "gpud", "2025-10-29", "contradict each other"]),
        (["xid", "64"], 0, ["differs from NVIDIA", "RMA"]),
        (["xid", "149"], 0, ["NETIR_BER_EVENT", "31 rules"]),
        (["ascend", "80E01801"], 0, ["RestartNPU", "suspect", "2023-12-15"]),
        (["host", "61"], 0, ["NIC_UP", "ends host-60"]),
        (["thead", "1"], 0, ["our reading"]),
        (["xid", "4242"], 4, ["policy for unknown codes"]),
        (["xid", "ninety"], 2, ["a number like 94"]),
        (["host"], 0, ["host-26", "out of memory"]),
        (["--conflicts"], 0, ["| xid-160 |", "RESTART_BM"]),
        ([], 0, ["xid", "ascend"]),
    ],
)
def test_the_command_prints_an_entry_and_all_verdicts(arguments: list[str], code: int, words: list[str]) -> None:
    result = CliRunner().invoke(faults, arguments, standalone_mode=code == 2)
    assert (result.exit_code or result.return_value or 0) == code, result.output
    for word in words:
        assert word in result.output, word
