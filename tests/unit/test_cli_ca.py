"""Protects: certificates made on the command line are those that the daemons accept, and misuse is explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from gridkeeper.cli.main import run
from gridkeeper.config import TlsFiles
from gridkeeper.identity.spiffe import parse_uri
from gridkeeper.identity.tls import channel_credentials


def _uri(path: Path) -> str:
    names = x509.load_pem_x509_certificate(path.read_bytes()).extensions
    found = names.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(found.get_values_for_type(x509.UniformResourceIdentifier)[0])


def test_each_kind_of_certificate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ca, out = str(tmp_path / "ca"), str(tmp_path / "out")
    assert run(["ca", "init", "--ca", ca, "--trust-domain", "grid.test"]) == 0
    for arguments, stem, who in (
        (["node", "n1", "--region", "east"], "node-n1", "node/east/n1"),
        (["replica", "r1", "--region", "east", "--host", "cp.test", "--host", "::2"], "replica-r1", "replica/east/r1"),
        (["store", "etcd-1", "--host", "etcd.test"], "store-etcd-1", "store/etcd-1"),
        (["user", "ann", "--role", "operator"], "user-ann", "user/ann"),
    ):  # fmt: skip
        assert run(["ca", "issue", *arguments, "--ca", ca, "--out", out]) == 0
        assert str(parse_uri(_uri(Path(out) / f"{stem}.crt"), "grid.test")) == who
        channel_credentials(TlsFiles(f"{out}/{stem}.crt", f"{out}/{stem}.key", f"{ca}/ca.crt"))
    assert "valid for 90 days" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["init"], "ca.key exists"),
        (["issue", "node", "n1"], "--region: give it"),
        (["issue", "user", "ann"], "--role: give it"),
        (["issue", "user", "ann", "--role", "root"], "'root' is not one of"),
        (["issue", "user", "Ann B", "--role", "admin"], "user: 'Ann B' is not a name"),
        (["issue", "node", "n1", "--region", "east", "--host", "a"], "not connected to"),
        (["issue", "store", "s", "--host", "a b"], "hosts: 'a b'"),
        (["issue", "store", "s", "--ca", "nowhere"], "No such file"),
    ],
)
def test_misuse_is_explained(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["ca", "init"]) == 0
    assert run(["ca", *arguments]) == 2
    assert part in capsys.readouterr().err
