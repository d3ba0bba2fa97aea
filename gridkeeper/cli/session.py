"""What commands share: which configuration, running a call against the grid, and how it ends."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from gridkeeper.client.errors import ClientError
from gridkeeper.client.grid import GridClient
from gridkeeper.config import ClientConfig

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

LOCAL = Path("var/grid/client.yaml")
"""Where ``gridkeeper up`` leaves the configuration of its grid, under the working directory."""


@dataclass(slots=True)
class Session:
    """The options before the command; ``click.Context.obj``."""

    config: str = ""
    verbose: bool = False


def find_config(option: str, environment: Mapping[str, str], home: Path, directory: Path) -> Path:
    """``--config``, ``$GRIDKEEPER_CONFIG``, ``~/.config/gridkeeper/client.yaml``, ``./var/grid/client.yaml``: the first
    that is given or exists. Raises ``ClientError`` if there is none."""
    if option:
        return Path(option)
    if environment.get("GRIDKEEPER_CONFIG"):
        return Path(environment["GRIDKEEPER_CONFIG"])
    default = home / ".config" / "gridkeeper" / "client.yaml"
    for path in (default, directory / LOCAL):
        if path.is_file():
            return path
    raise ClientError(
        f"no client configuration: {default} and {directory / LOCAL} are not there; start a grid with 'gridkeeper up', "
        "or name one with --config or $GRIDKEEPER_CONFIG"
    )


def client_config(session: Session) -> ClientConfig:
    """Raises ``ClientError``."""
    from gridkeeper.configfile import ConfigError, load

    path = find_config(session.config, os.environ, Path.home(), Path.cwd())
    if session.verbose:
        print(f"configuration: {path}", file=sys.stderr)
    try:
        return load(ClientConfig, path)
    except ConfigError as error:
        raise ClientError(str(error)) from error


def call(session: Session, work: Callable[[GridClient], Awaitable[T]]) -> T:
    """Open the grid, do the work, close it. Raises ``ClientError``."""
    from gridkeeper.identity.files import TlsError

    config = client_config(session)

    async def whole() -> T:
        try:
            client = GridClient(config)
        except TlsError as error:
            raise ClientError(str(error)) from error
        async with client as grid:
            return await work(grid)

    return asyncio.run(whole())


def client_options(command: F) -> F:
    """``--config`` and ``-v`` after the command as well as before it."""

    def keep_config(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value:
            session_of(context).config = value

    def keep_verbose(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        if value:
            session_of(context).verbose = True

    command = click.option(
        "--config", expose_value=False, callback=keep_config, metavar="FILE", help="Client configuration."
    )(command)
    return click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=keep_verbose, help="Say which one is used."
    )(command)


def session_of(context: click.Context) -> Session:
    session = context.find_object(Session)
    if session is None:
        session = context.obj = Session()
    return session


def pass_session(command: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the ``Session`` to the command as its first argument."""
    return click.make_pass_decorator(Session, ensure=True)(command)


def warn_partial(sentences: tuple[str, ...]) -> int:
    """Say on stderr what is missing. The exit code: 0, or 3 when something is."""
    for sentence in sentences:
        print(f"warning: incomplete: {sentence}", file=sys.stderr)
    return 3 if sentences else 0
