"""``gridkeeper join-token create|list|cancel`` and ``gridkeeper identity revoke|reinstate|list``."""

from __future__ import annotations

import click

from gridkeeper.cli.acts import SPAN, reason_option, tell
from gridkeeper.cli.session import Session, call, client_options, pass_session, warn_partial
from gridkeeper.cli.table import print_table
from gridkeeper.cli.text import moment
from gridkeeper.client.identities import Everywhere

region_option = click.option("--region", required=True, help="The region that the host joins.")


@click.group("join-token")
def join_token() -> None:
    """Tokens with which new hosts get their first certificate."""


@join_token.command()
@region_option
@click.option("--node", default="", help="The only node that may use it. Default: any, once.")
@click.option("--for", "ttl", type=SPAN, default=0, metavar="DURATION", help="Good for so long. Default: 1h.")
@reason_option
@client_options
@pass_session
def create(session: Session, region: str, node: str, ttl: int, reason: str) -> int:
    """Make a token and print it, alone, on stdout. It is good once, and told once: only its hash is stored.

    \b
    Example:
      gridkeeper join-token create --region east --node gpu-host-7 | ssh gpu-host-7 \\
        gridkeeper join --node gpu-host-7 --server cp1:7444 --authority ca.crt --token-file -
    """
    made = call(session, lambda grid: grid.identities.create_token(region, node, ttl, reason))
    click.echo(made.sentence, err=True)
    click.echo(made.token)
    return 0


@join_token.command("list")
@client_options
@pass_session
def list_tokens(session: Session) -> int:
    """Those that are not over, and those that were used lately."""
    found = call(session, lambda grid: grid.identities.tokens())
    rows = [
        (
            record.id,
            region,
            record.node or "any",
            record.created_by,
            moment(record.expires_ms),
            f"used by {record.used_by}" if record.used_by else "open",
        )
        for region, record in found.records
    ]
    print_table(("TOKEN", "REGION", "NODE", "CREATED BY", "EXPIRES", "STATE"), rows)
    return warn_partial(found.partial)


@join_token.command()
@click.argument("token")
@region_option
@reason_option
@client_options
@pass_session
def cancel(session: Session, token: str, region: str, reason: str) -> int:
    """Make a token useless. TOKEN is its id, as listed."""
    return tell(call(session, lambda grid: grid.identities.cancel_token(region, token.partition(".")[0], reason)))


@click.group()
def identity() -> None:
    """Who may no longer come in."""


def _told(outcome: Everywhere) -> int:
    for sentence in outcome.sentences:
        click.echo(sentence)
    return warn_partial(outcome.partial)


@identity.command()
@click.argument("target", metavar="node/REGION/NODE|user/NAME|serial/HEX")
@reason_option
@client_options
@pass_session
def revoke(session: Session, target: str, reason: str) -> int:
    """Refuse an identity, or one certificate by its serial, in every region, from now on; open streams end.

    A region that does not answer still lets it in: the exit code is then 3; repeat it.
    """
    return _told(call(session, lambda grid: grid.identities.revoke(target, reason)))


@identity.command()
@click.argument("target", metavar="node/REGION/NODE|user/NAME|serial/HEX")
@reason_option
@client_options
@pass_session
def reinstate(session: Session, target: str, reason: str) -> int:
    """Take back a revocation."""
    return _told(call(session, lambda grid: grid.identities.reinstate(target, reason)))


@identity.command("list")
@client_options
@pass_session
def list_revocations(session: Session) -> int:
    """What is revoked, per region."""
    found = call(session, lambda grid: grid.identities.revocations())
    rows = [
        (record.target, region, record.revoked_by, moment(record.revoked_ms), record.reason)
        for region, record in found.records
    ]
    print_table(("TARGET", "REGION", "BY", "AT", "REASON"), rows)
    return warn_partial(found.partial)
