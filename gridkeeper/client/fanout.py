"""Asking several regions at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from gridkeeper.client.errors import ClientError, Incomplete, Unreachable
from gridkeeper.client.replicas import Replicas

T = TypeVar("T")


class HasPartial(Protocol):
    @property
    def partial(self) -> tuple[str, ...]: ...


P = TypeVar("P", bound=HasPartial)


async def as_completed(work: Sequence[Coroutine[Any, Any, T]]) -> AsyncGenerator[T | ClientError, None]:
    """Results and ``ClientError``s in the order in which they come; the rest is cancelled when the caller stops."""
    tasks = [asyncio.ensure_future(one) for one in work]
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    yield task.result()
                elif isinstance(error, ClientError):
                    yield error
                else:
                    raise error
    finally:
        # Also those that are done and were not looked at: an error nobody fetches is reported by asyncio.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def first_whole(regions: Sequence[Replicas], ask: Callable[[Replicas], Coroutine[Any, Any, P]]) -> P | None:
    """The first region's answer that misses nothing; None if there is none. Raises what a region refuses with."""
    async with contextlib.aclosing(as_completed([ask(replicas) for replicas in regions])) as outcomes:
        async for outcome in outcomes:
            if not isinstance(outcome, ClientError):
                if not outcome.partial:
                    return outcome
            elif not isinstance(outcome, Unreachable):
                raise outcome
    return None


async def everywhere(
    regions: Sequence[Replicas],
    ask: Callable[[Replicas], Coroutine[Any, Any, T]],
    tolerate: type[ClientError] | tuple[()] = (),
) -> tuple[list[T], list[str]]:
    """Answers of all regions, and a sentence for each that does not answer. Raises if none answers, or what a region
    that answers refuses with (``tolerate``: unless another one has an answer)."""
    outcomes = await asyncio.gather(*(ask(replicas) for replicas in regions), return_exceptions=True)
    answers: list[T] = []
    errors: list[str] = []
    tolerated: list[ClientError] = []
    for outcome in outcomes:
        if isinstance(outcome, Unreachable):
            errors.append(str(outcome))
        elif tolerate and isinstance(outcome, tolerate):
            tolerated.append(outcome)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            answers.append(outcome)
    if answers:
        return answers, errors
    if tolerated and not errors:
        raise max(tolerated, key=lambda error: len(str(error)))
    if tolerated:
        raise Incomplete(f"{tolerated[0]}; and {'; '.join(errors)}")
    raise Unreachable("; ".join(errors))
