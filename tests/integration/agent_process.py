"""Runs one real agent for the tests: ``python -m tests.integration.agent_process <json>``."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

from gridkeeper.config import AgentConfig, RepairCommands, SlurmHost, TlsFiles
from nodeagent.main import run_agent


def main() -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    values = json.loads(sys.argv[1])
    for name in ("servers", "backends"):
        values[name] = tuple(values[name])
    if "repair_commands" in values:
        lines = {name: tuple(words) for name, words in values["repair_commands"].items()}
        values["repair_commands"] = RepairCommands(**lines)
    if "slurm" in values:
        values["slurm"] = SlurmHost(**values["slurm"])
    values["tls"] = TlsFiles(**values["tls"])
    return asyncio.run(run_agent(AgentConfig(**values)))


if __name__ == "__main__":
    sys.exit(main())
