"""``python -m chaos.simulate --seed N [--story NAME]``: play stories on a simulated grid and tell what happened."""

from __future__ import annotations

import argparse
import logging
import sys

from chaos.simulate.library import ALL_STORIES, run
from chaos.simulate.play import Outcome
from chaos.simulate.replay import replay
from chaos.simulate.sentences import sentences


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all came true and no invariant was violated, 1 not."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.DEBUG if options.log else logging.CRITICAL, format="%(name)s: %(message)s")
    seeds = options.seeds or range(options.seed, options.seed + 1)
    failed = 0
    for name in [options.story] if options.story else list(ALL_STORIES):
        for seed in seeds:
            outcome = run(name, seed, options.rough)
            _tell(outcome, whole=len(seeds) == 1 and not options.quiet, replay_with=_command(name, seed, options.rough))
            failed += not outcome.good
    if failed:
        print(f"\n{failed} runs failed")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=_range, help="A-B: each seed from A to B")
    parser.add_argument("--story", choices=sorted(ALL_STORIES), help="default: all of them")
    parser.add_argument("--rough", action="store_true", help="stores fail now and then, before and after committing")
    parser.add_argument("--quiet", action="store_true", help="verdicts only")
    parser.add_argument("--log", action="store_true", help="with the daemons' own log")
    return parser


def _range(text: str) -> range:
    first, dash, last = text.partition("-")
    if not dash or not first.isdigit() or not last.isdigit() or int(first) > int(last):
        raise argparse.ArgumentTypeError(f"{text!r} is not A-B with A ≤ B; write for example 1-200")
    return range(int(first), int(last) + 1)


def _command(name: str, seed: int, rough: bool) -> str:
    return f"python -m chaos.simulate --story {name} --seed {seed}" + (" --rough" if rough else "")


def _tell(outcome: Outcome, whole: bool, replay_with: str) -> None:
    """The whole story, or one line; of a failure always what was wrong and how to see it again."""
    if whole:
        print(f"== {outcome.story}, seed {outcome.seed}: {ALL_STORIES[outcome.story].title}")
        for sentence in sentences(replay(outcome.history)):
            print(sentence)
        for claim in outcome.claims:
            print(
                f"  {'true ' if claim.true else 'FALSE'}  {claim.text}" + (f" ({claim.detail})" if claim.detail else "")
            )
    seconds = outcome.history.entries[-1].at_ms / 1000 if len(outcome.history) else 0
    verdict = "holds" if outcome.good else "FAILS"
    print(
        f"{outcome.story} seed {outcome.seed} {verdict}: {seconds:.1f} s simulated, history {outcome.history.digest()}"
    )
    if not outcome.good:
        for claim in outcome.false:
            print(f"  FALSE  {claim.text} ({claim.detail})")
        for violation in outcome.violations:
            print(f"  {violation}")
        print(f"  replay it: {replay_with}")


if __name__ == "__main__":
    sys.exit(main())
