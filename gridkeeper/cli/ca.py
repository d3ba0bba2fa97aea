"""``gridkeeper ca init|issue``: the built-in certificate authority, for sites without one of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from gridkeeper.client.errors import InvalidRequest
from gridkeeper.clock import SystemClock
from gridkeeper.config import TlsFiles
from gridkeeper.identity import spiffe
from gridkeeper.identity.ca import CA_DAYS, LEAF_DAYS, CertificateAuthority
from gridkeeper.identity.files import TlsError
from gridkeeper.identity.spiffe import BadIdentity, Identity, UserRole

T = TypeVar("T")
FOLDER = click.Path(file_okay=False, path_type=Path)
directory_option = click.option(
    "--ca", "directory", type=FOLDER, default=Path("ca"), show_default=True, help="The authority's directory."
)


@click.group()
def ca() -> None:
    """Make a certificate authority, and certificates for agents, control planes, stores and users."""


@ca.command()
@directory_option
@click.option("--trust-domain", default="gridkeeper.local", show_default=True, help="Name of the grid in certificates.")
def init(directory: Path, trust_domain: str) -> int:
    """Make an authority. Keep its ca.key off the hosts of the grid; everybody gets its ca.crt."""
    made = _checked(lambda: CertificateAuthority.create(directory, trust_domain, SystemClock()))
    print(f"{made.authority}: authority of {trust_domain}, valid for {CA_DAYS} days; its key is beside it")
    return 0


@ca.command()
@click.argument("kind", type=click.Choice(("node", "replica", "store", "user")))
@click.argument("name")
@directory_option
@click.option("--region", default="", help="Of a node or replica.")
@click.option("--role", type=click.Choice([str(role) for role in UserRole]), help="Of a user.")
@click.option("--namespace", default="", help="Of a user with the role job-owner.")
@click.option("--host", "hosts", multiple=True, help="DNS name or address of a replica or store; may be repeated.")
@click.option(
    "--days", type=click.IntRange(1, CA_DAYS), default=LEAF_DAYS, show_default=True, help="Valid for so long."
)
@click.option("--out", type=FOLDER, default=Path("."), help="Where to. Default: the current directory.")
def issue(
    kind: str,
    name: str,
    directory: Path,
    region: str,
    role: str | None,
    namespace: str,
    hosts: tuple[str, ...],
    days: int,
    out: Path,
) -> int:
    """Issue a certificate and its key (0600).

    \b
    Examples:
      gridkeeper ca issue replica east-r1 --region east --host cp1.example.com
      gridkeeper ca issue node gpu-host-7 --region east
      gridkeeper ca issue user ann --role operator
      gridkeeper ca issue user bob --role job-owner --namespace vision
    """
    if (kind in ("node", "replica")) != bool(region):
        raise click.UsageError("--region: give it for a node or replica, and only for those")
    if (kind == "user") != bool(role):
        raise click.UsageError("--role: give it for a user, and only for users")

    if (role == UserRole.JOB_OWNER) != bool(namespace):
        raise click.UsageError("--namespace: give it for the role job-owner, and only for that")

    def work() -> TlsFiles:
        authority = CertificateAuthority.load(directory, SystemClock())
        return authority.issue(_identity(kind, name, region, role, namespace), out, hosts, days)

    files = _checked(work)
    print(f"{files.certificate} and {files.key}: valid for {days} days; use them with {files.authority}")
    return 0


def _identity(kind: str, name: str, region: str, role: str | None, namespace: str) -> Identity:
    match kind:
        case "node":
            return spiffe.node(region, name)
        case "replica":
            return spiffe.replica(region, name)
        case "user":
            return spiffe.user(name, role or "", namespace)
    return spiffe.store(name)


def _checked(work: Callable[[], T]) -> T:
    try:
        return work()
    except (TlsError, BadIdentity) as error:
        raise InvalidRequest(str(error)) from error
    except OSError as error:
        raise InvalidRequest(f"{error.filename}: {error.strerror}") from error
