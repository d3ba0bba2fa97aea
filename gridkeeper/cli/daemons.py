"""What runs for long: ``agent``, ``controlplane``, ``up``, ``demo``, ``tui``. Their packages are imported when used."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import click

from gridkeeper.cli.session import Session, client_config, client_options, pass_session
from gridkeeper.client.errors import ClientError
from gridkeeper.config import AgentConfig, ControlPlaneConfig
from gridkeeper.configfile import ConfigError, load

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"
LEVELS = ("debug", "info", "warning", "error")

config_option = click.option(
    "--config", "path", required=True, metavar="FILE", help="Its configuration, a YAML file; see docs/."
)
level_option = click.option(
    "--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="What goes to stderr."
)


def start_logging(level: str) -> None:
    """One line per message on stderr; the service manager keeps it."""
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=FORMAT, datefmt="%Y-%m-%dT%H:%M:%S")


def _on_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


@click.command()
@config_option
@level_option
def agent(path: str, log_level: str) -> int:
    """Run the agent of a node until SIGTERM; its jobs go on without it until their deadline."""
    from nodeagent.main import run_agent

    try:
        config = load(AgentConfig, path)
    except ConfigError as error:
        raise ClientError(str(error)) from error
    start_logging(log_level)
    return asyncio.run(run_agent(config))


@click.command()
@config_option
@level_option
def controlplane(path: str, log_level: str) -> int:
    """Run one replica of a region's control plane until SIGTERM."""
    from controlplane.main import run_controlplane

    try:
        config = load(ControlPlaneConfig, path)
    except ConfigError as error:
        raise ClientError(str(error)) from error
    start_logging(log_level)
    return asyncio.run(run_controlplane(config))


@click.command()
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), default=Path("var/grid"), show_default=True
)
@click.option("--no-tui", is_flag=True, help="Print progress lines instead, also on a terminal.")
def up(directory: Path, no_tui: bool) -> int:
    """A whole grid on this machine: two regions, agents on simulated devices, a training job, and the TUI.

    Without a terminal it prints progress lines and stays up until Ctrl-C.
    """
    from gridkeeper.cli.up import run

    return run(directory, tui=not no_tui and _on_a_terminal())


@click.command()
@click.option(
    "--directory", type=click.Path(file_okay=False, path_type=Path), default=Path("var/demo"), show_default=True
)
def demo(directory: Path) -> int:
    """Play the stories of faults once, print each step, and exit 0 only if they came true."""
    from gridkeeper.cli.demo import run

    return run(directory)


@click.command()
@click.argument("start", metavar="[PLACE]", required=False, default="")
@click.option("--readonly", is_flag=True, help="Look, touch nothing.")
@client_options
@pass_session
def tui(session: Session, start: str, readonly: bool) -> int:
    """The terminal user interface; PLACE is where it opens: jobs, incident/<id>, device/east-1/gpu3 …"""
    if not _on_a_terminal():
        raise click.UsageError("not on a terminal, so there is nothing to draw on; 'gridkeeper get' prints")
    from tui.app import run_tui

    return run_tui(client_config(session), readonly=readonly, start=start)
