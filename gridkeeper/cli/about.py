"""``gridkeeper version`` and ``gridkeeper info``."""

from __future__ import annotations

import sys

import click

import gridkeeper
from gridkeeper.cli.output import print_value
from gridkeeper.cli.session import Session, call, client_options, pass_session
from gridkeeper.cli.table import print_table
from gridkeeper.client.plain import plain

TITLES = ("REGION", "REPLICA", "ADDRESS", "VERSION", "LEADS", "STORES", "POLICY", "IDENTITY", "ROLE", "STATE")


@click.command()
def version() -> None:
    """The version of this program."""
    print(f"gridkeeper {gridkeeper.__version__}")


@click.command()
@click.option("-o", "--output", type=click.Choice(("table", "json", "yaml")), default="table", show_default=True)
@client_options
@pass_session
def info(session: Session, output: str) -> int:
    """Each replica of each region: who leads, which stores it reaches, and who you are to it.

    Exit code 3 when a replica does not answer, 1 when none does.
    """
    replicas = call(session, lambda grid: grid.info())
    if output == "table":
        rows: list[tuple[str, ...]] = []
        for replica in replicas:
            told = replica.info
            if told is None:
                rows.append((replica.region, "-", replica.address, *("-",) * 6, replica.error))
                continue
            leads = [name for name, yes in (("region", told.region_leader), ("global", told.global_leader)) if yes]
            stores = [
                f"{name} {'ok' if ok else 'away'}"
                for name, ok in (("region", told.region_store_reachable), ("global", told.global_store_reachable))
            ]
            policy = f"{told.policy_version}{' (!)' if told.policy_problem else ''}"
            described = (
                told.version,
                ",".join(leads) or "-",
                ", ".join(stores),
                policy,
                told.identity,
                told.role,
                "up",
            )
            rows.append((told.region, told.replica, replica.address, *described))
        print_table(TITLES, rows, frozenset({9}))
    else:
        items = [
            {
                "region": replica.region,
                "address": replica.address,
                "error": replica.error,
                "info": plain(replica.info) if replica.info is not None else None,
            }
            for replica in replicas
        ]
        print_value({"kind": "ReplicaList", "items": items}, output)
    silent = [replica for replica in replicas if replica.info is None]
    for problem in dict.fromkeys(
        r.info.policy_problem for r in replicas if r.info is not None and r.info.policy_problem
    ):
        print(f"warning: {problem}", file=sys.stderr)
    for replica in silent:
        print(f"warning: {replica.region} at {replica.address}: {replica.error}", file=sys.stderr)
    return 0 if not silent else 1 if len(silent) == len(replicas) else 3
