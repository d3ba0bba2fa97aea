"""The ``gridkeeper`` command. Each subcommand's module is imported when it is used, so that ``--help`` is fast.

Exit codes: 0 ok, 1 error, 2 usage, 3 partial result, 4 not found, 5 refused. Errors are one line on stderr.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

EXIT_CODES = "Exit codes: 0 ok, 1 error, 2 usage, 3 partial result, 4 not found, 5 refused."

COMMANDS: dict[str, tuple[str, str]] = {
    "get": ("gridkeeper.cli.get:get", "List or show objects."),
    "describe": ("gridkeeper.cli.describe:describe", "Everything about one object."),
    "explain": ("gridkeeper.cli.explain:explain", "The chain of evidence behind an object."),
    "cordon": ("gridkeeper.cli.acts:cordon", "Place nothing new on a node or device."),
    "uncordon": ("gridkeeper.cli.acts:uncordon", "Take back a cordon."),
    "drain": ("gridkeeper.cli.acts:drain", "Take a node's devices or one device out, within the budgets."),
    "cancel-drain": ("gridkeeper.cli.acts:cancel_drain", "Call off a drain."),
    "maintenance": ("gridkeeper.cli.maintenance:maintenance", "Announce work ahead of time; extend it, call it off."),
    "repair": ("gridkeeper.cli.repair:repair", "Approve or reject repairs that wait for a human."),
    "breaker": ("gridkeeper.cli.breaker:breaker", "What stops automatic drains when too many are wanted."),
    "region": ("gridkeeper.cli.region:region", "Veto or approve that a silent region is taken for lost."),
    "incident": ("gridkeeper.cli.acts:incident", "Acknowledge incidents."),
    "job": ("gridkeeper.cli.job:job", "Submit, stop, move and read jobs."),
    "backtest": ("gridkeeper.cli.backtest:backtest", "What a policy would have done with what happened."),
    "policy": ("gridkeeper.cli.policy:policy", "The policy document: apply, look, compare, take back."),
    "query": ("gridkeeper.cli.query:query", "SQL over the live state of the grid."),
    "sla": ("gridkeeper.cli.sla:sla", "Uptime of the month so far; a contract's month."),
    "slo": ("gridkeeper.cli.slo:slo", "Objectives in OpenSLO: check them, alert rules for Prometheus."),
    "faults": ("gridkeeper.cli.faults:faults", "The fault catalogue: what a code means, by whose word."),
    "info": ("gridkeeper.cli.about:info", "The replicas, as they answer."),
    "record": ("gridkeeper.cli.record:record", "Write what happens to Parquet files."),
    "tui": ("gridkeeper.cli.daemons:tui", "The terminal user interface."),
    "up": ("gridkeeper.cli.daemons:up", "A whole grid on this machine."),
    "demo": ("gridkeeper.cli.daemons:demo", "Two stories of faults, played and checked."),
    "agent": ("gridkeeper.cli.daemons:agent", "Run a node's agent."),
    "controlplane": ("gridkeeper.cli.daemons:controlplane", "Run a replica of a region's control plane."),
    "join-token": ("gridkeeper.cli.identity:join_token", "Tokens with which new hosts get a certificate."),
    "join": ("gridkeeper.cli.join:join", "Get this host its first certificate."),
    "identity": ("gridkeeper.cli.identity:identity", "Revoke identities and certificates."),
    "ca": ("gridkeeper.cli.ca:ca", "Certificates from a built-in authority."),
    "version": ("gridkeeper.cli.about:version", "The version of this program."),
}
"""Name -> (module:attribute, one line of help)."""


class LazyGroup(click.Group):
    """A group that imports a command when it is run, and not to list it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{module}:{attribute} is no command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", default="", metavar="FILE", help="Client configuration ($GRIDKEEPER_CONFIG).")
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr which configuration is used.")
@click.pass_context
def cli(context: click.Context, config: str, verbose: bool) -> None:
    """Gridkeeper: the reliability control plane and SLA monitor of an AI grid."""
    from gridkeeper.cli.session import Session

    context.obj = Session(config, verbose)


def run(arguments: Sequence[str]) -> int:
    """Run one command line. Returns the exit code; errors have been printed."""
    try:
        code = cli.main(list(arguments), prog_name="gridkeeper", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return _fail("aborted", 1)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: nothing to complain about
        return 0
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        return _fail(*known)
    return code if isinstance(code, int) else 0


def _known(error: Exception) -> tuple[str, int] | None:
    """The line and exit code of an error that a user may cause; None: it is a bug."""
    from gridkeeper.client.errors import ClientError
    from gridkeeper.kinds import UnknownKind

    if isinstance(error, ClientError):
        return str(error), error.exit_code
    if isinstance(error, UnknownKind):
        return str(error), 2
    return None


def _fail(message: str, code: int) -> int:
    print(f"gridkeeper: {' '.join(message.split())}", file=sys.stderr)
    return code


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
