"""Which commitments a drain would break: asked before ``gridkeeper drain`` acts."""

from __future__ import annotations

import sys

from gridkeeper.client.errors import ClientError
from gridkeeper.client.grid import GridClient
from gridkeeper.clock import SystemClock


async def contract_breaks(grid: GridClient, target: str, out_ms: int) -> list[str]:
    """One line per commitment of the applied contracts that would be missed this month if ``target`` (a node or a
    device) were out from now on for so long, and would be met without. What cannot be looked at is said on stderr and
    holds up nobody: a drain may be urgent."""
    from gridkeeper.cli.sla_books import Held, from_grid
    from gridkeeper.configfile import ConfigError
    from gridkeeper.sla.document import parse_contract
    from gridkeeper.sla.months import month_of, month_window
    from gridkeeper.sla.render import amount, percent, span
    from gridkeeper.sla.whatif import effects

    lines: list[str] = []
    held: dict[str, Held] = {}
    now_ms = SystemClock().wall_ms()
    try:
        names = [record.name for record in (await grid.documents("contract")).records]
        for name in names:
            contract = parse_contract((await grid.documents("contract", name)).records[0].text, f"contract {name}")
            month = month_of(now_ms, contract.zone)
            if contract.zone not in held:
                window = month_window(month, contract.zone)
                held[contract.zone] = await from_grid(grid, window, now_ms, f"device/{target.partition('/')[0]}/")
            books = held[contract.zone]
            if books.partial:
                print(f"contract {name}: the ledger is incomplete: {books.partial[0]}", file=sys.stderr)
            frame = books.whole()
            under = f"device/{target}" if "/" in target else f"device/{target}/"
            scopes = [one for one in frame["scope"].unique().sort().to_list() if (one + "/").startswith(under)]
            for one in effects(contract, month, frame, books.labels, scopes, now_ms, out_ms) if scopes else ():
                if one.breaks:
                    lines.append(
                        f"contract {name}: {one.commitment} of {one.subject} would end the month at "
                        f"{percent(one.after.measured.availability)} %; {span(max(0, int(one.left_ms)))} of downtime "
                        f"are left; {amount(one.owed, contract)} more would be owed"
                    )
    except (ClientError, ConfigError, ValueError) as error:
        print(f"contracts could not be looked at: {error}", file=sys.stderr)
    return lines
