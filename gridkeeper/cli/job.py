"""``gridkeeper job submit|stop|migrate|logs``."""

from __future__ import annotations

import sys

import click

from gridkeeper.cli.acts import SPAN, reason_option, tell
from gridkeeper.cli.jobfile import JobFile, parse_env, to_spec
from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.client.errors import InvalidRequest
from gridkeeper.configfile import ConfigError, load, parse


@click.group()
def job() -> None:
    """Submit, stop, move and read jobs."""


@job.command()
@click.option("-f", "--file", "path", default="", metavar="FILE", help="The job as YAML; - reads standard input.")
@click.option("--name", default="", help="Its name.")
@click.option("--devices", type=int, default=1, show_default=True, help="Devices on each of its nodes.")
@click.option("--nodes", type=int, default=1, show_default=True, help="Nodes, all started together or none.")
@click.option("--env", multiple=True, metavar="KEY=VALUE", help="An environment variable; may be repeated.")
@click.option("--region", "regions", multiple=True, help="A region where it may run; may be repeated. Default: any.")
@click.option("--model", default="", help="Model of the devices. Default: any.")
@click.option("--workdir", default="", help="Absolute path on the node. Default: a fresh directory per start.")
@click.option("--prefer-other-region", is_flag=True, help="When displaced, move to another region if it has room.")
@click.option("--handles-sigusr1", is_flag=True, help="The job writes a checkpoint on SIGUSR1.")
@click.option("--grace", type=SPAN, default=0, metavar="DURATION", help="From SIGTERM to SIGKILL. Default: 30s.")
@click.option(
    "--priority", type=int, default=0, show_default=True, help="Higher goes first if there is not room for all."
)
@click.option("--max-restarts", type=int, default=3, show_default=True, help="After crashes of its own doing.")
@click.option("--residency", default="", metavar="WORD", help="Only regions that the policy lists with it, such as eu.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@client_options
@pass_session
def submit(
    session: Session,
    path: str,
    name: str,
    devices: int,
    nodes: int,
    env: tuple[str, ...],
    regions: tuple[str, ...],
    model: str,
    workdir: str,
    prefer_other_region: bool,
    handles_sigusr1: bool,
    grace: int,
    priority: int,
    max_restarts: int,
    residency: str,
    command: tuple[str, ...],
) -> int:
    """Submit a job from a file, or from options and a command after --. Doing it twice is harmless.

    \b
    Examples:
      gridkeeper job submit -f train.yaml
      gridkeeper job submit --name train --devices 4 -- python train.py --steps 1000
      gridkeeper job submit --name large --nodes 4 --devices 8 -- torchrun train.py
    """
    if path:
        if name or command:
            raise click.UsageError("-f goes with neither --name nor a command; put both into the file")
        wanted = read_job(path)
    elif not name or not command:
        raise click.UsageError("give -f FILE, or --name NAME and the command after --")
    else:
        try:
            variables = parse_env(env)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        wanted = JobFile(
            name=name,
            command=command,
            devices=devices,
            nodes=nodes,
            env=variables,
            workdir=workdir,
            model=model,
            regions=regions,
            prefer_other_region=prefer_other_region,
            handles_sigusr1=handles_sigusr1,
            grace_ms=grace,
            max_restarts=max_restarts,
            priority=priority,
            residency=residency,
        )
    return tell(call(session, lambda grid: grid.submit_job(to_spec(wanted))))


def read_job(path: str) -> JobFile:
    """Raises ``InvalidRequest`` naming line, field and remedy."""
    try:
        return parse(JobFile, sys.stdin.read(), "standard input") if path == "-" else load(JobFile, path)
    except ConfigError as error:
        raise InvalidRequest(str(error)) from error


@job.command()
@click.argument("name", metavar="JOB")
@reason_option
@client_options
@pass_session
def stop(session: Session, name: str, reason: str) -> int:
    """Stop a job for good, after a last checkpoint."""
    return tell(call(session, lambda grid: grid.stop_job(name.removeprefix("job/"), reason)))


@job.command()
@click.argument("name", metavar="JOB")
@click.option("--to", "region", default="", metavar="REGION", help="Where to. Default: wherever the placement says.")
@reason_option
@client_options
@pass_session
def migrate(session: Session, name: str, region: str, reason: str) -> int:
    """Move a running job: it is copied ahead, stopped after a checkpoint and goes on elsewhere."""
    return tell(call(session, lambda grid: grid.migrate_job(name.removeprefix("job/"), region, reason)))


@job.command()
@click.argument("name", metavar="JOB")
@click.option("--tail", default=16_384, show_default=True, type=click.IntRange(1, 65_536), help="Bytes from the end.")
@client_options
@pass_session
def logs(session: Session, name: str, tail: int) -> int:
    """The end of the output of the job's newest start."""
    node, text = call(session, lambda grid: grid.job_logs(name.removeprefix("job/"), tail))
    if session.verbose:
        print(f"from {node}", file=sys.stderr)
    sys.stdout.write(text.decode("utf-8", "replace"))
    return 0
