"""Protects: either engine may page: the rules that are written pass Prometheus's own checks, and fire and end in the
same minute as the alerts computed here, on the same series.

Needs ``promtool`` (Debian's package ``prometheus``), on the PATH or in $PROMTOOL.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from gridkeeper.sla.alerts import windows_of
from gridkeeper.sla.budget import MINUTE_MS
from gridkeeper.sla.burn import Errors, Tick, firing, turns
from gridkeeper.sla.objectives import parse_slos
from gridkeeper.sla.promrules import rules_text

SLOS = (Path(__file__).parents[1] / "data/sla/slos.yaml").read_text()
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool") or ""

pytestmark = pytest.mark.skipif(
    not PROMTOOL,
    reason="NOT CHECKED against Prometheus: promtool is missing; apt-get install prometheus, or set PROMTOOL",
)


def promtool(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([PROMTOOL, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def written(directory: Path) -> Path:
    path = directory / "rules.yaml"
    path.write_text(rules_text(parse_slos(SLOS, "slos.yaml").goals))
    return path


def test_every_rule_passes_the_check(tmp_path: Path) -> None:
    assert "SUCCESS: 48 rules found" in promtool("check", "rules", str(written(tmp_path)), cwd=tmp_path)


@pytest.mark.parametrize("seed", range(3))
def test_both_engines_fire_and_end_in_the_same_minute(tmp_path: Path, seed: int) -> None:
    rng, values = random.Random(seed), list[str]()
    while len(values) < 12 * 60:
        values += [rng.choice(("0", "0", "0.001", "0.0313", "0.2713", "1"))] * rng.randrange(1, 90)
    (goal,) = (goal for goal in parse_slos(SLOS, "slos.yaml").goals if goal.name == "errors")
    level, windows = goal.levels[0], windows_of(goal)
    errors = Errors([Tick(minute * MINUTE_MS, Fraction(value)) for minute, value in enumerate(values)])
    last = (len(values) - 1) * MINUTE_MS
    changed = turns(errors, level.target, windows, 0, last, MINUTE_MS)
    assert len(changed) >= 4, "a series on which nothing happens proves nothing"
    minutes = sorted({turn.at_ms + shift for turn in changed for shift in (-MINUTE_MS, 0, MINUTE_MS)} | {last})
    labels = {"slo": "errors", "service": "grid", "objective": "errors"}
    cases: list[dict[str, Any]] = []
    for at_ms in (at for at in minutes if 0 <= at <= last):
        fired = firing(errors, level.target, windows, at_ms)
        cases.append(
            {
                "eval_time": f"{at_ms // MINUTE_MS}m",
                "alertname": "SloBudgetBurn",
                "exp_alerts": [
                    {
                        "exp_labels": {**labels, "severity": window.severity, "window": _named(window.long_ms)},
                        "exp_annotations": {
                            "summary": f"errors: {window.budget * 100} % of the error budget of 30d spent within "
                            f"{_named(window.long_ms)}, and still burning"
                        },
                    }
                    for window in fired
                ],
            }
        )
    document = {
        "rule_files": [str(written(tmp_path))],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": "error_ratio", "values": " ".join(values)}],
                "alert_rule_test": cases,
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    assert "SUCCESS" in promtool("test", "rules", "test.yaml", cwd=tmp_path)


def _named(ms: int) -> str:
    hours = ms // (60 * MINUTE_MS)
    return f"{hours // 24}d" if hours % 24 == 0 else f"{hours}h"
