"""Protects: what the README tells people to type and to write works."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from gridkeeper.cli.main import COMMANDS
from gridkeeper.config import AgentConfig, ClientConfig, ControlPlaneConfig
from gridkeeper.configfile import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^ *```yaml\n(.*?)^ *```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("kind", "index"), [(ControlPlaneConfig, 0), (AgentConfig, 1), (ClientConfig, 2)])
def test_its_configurations_are_valid(kind: type, index: int) -> None:
    parse(kind, textwrap.dedent(BLOCKS[index]), f"README block {index + 1}")


def test_its_commands_exist() -> None:
    named = set(re.findall(r"^ *(?:\.venv/bin/)?gridkeeper ([a-z-]+)|`gridkeeper ([a-z-]+)", README, re.MULTILINE))
    words = {first or second for first, second in named}
    assert {"ca", "get", "job", "agent", "controlplane", "explain"} <= words <= set(COMMANDS)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+) ", README)) <= targets | {"and"}


def test_it_is_short_and_its_files_are_there() -> None:
    assert len(README.splitlines()) < 150
    for path in re.findall(r"\]\((docs/[^)]+)\)|`((?:docs|gridkeeper)/[a-z/._]+)`", README):
        assert (ROOT / (path[0] or path[1])).exists(), path
