"""Protects: OpenSLO v1 documents are read as the specification says, strictly; what is not supported is refused by the
name of its field, never passed over."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from gridkeeper.cli.main import run
from gridkeeper.configfile import ConfigError
from gridkeeper.sla.budget import DAY_MS, MINUTE_MS
from gridkeeper.sla.objectives import Duration, Goal, duration, parse_slos
from gridkeeper.sla.openslo import Budgeting, Op

DATA = Path(__file__).parents[1] / "data"
SLOS = (DATA / "sla/slos.yaml").read_text()
REFUSED = {"timeslices-slo.yaml": "timeWindow[0].duration: '1m' is a calendar window of minutes"}
"""Published examples that mean something else than they say."""


def goals(text: str = SLOS) -> dict[str, Goal]:
    return {goal.name: goal for goal in parse_slos(text, "s.yaml").goals}


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        parse_slos(text, "s.yaml")
    return str(wrong.value).splitlines()


@pytest.mark.parametrize("path", sorted((DATA / "openslo").glob("*.yaml")), ids=lambda path: path.name)
def test_the_published_examples_load_or_are_refused_by_field(path: Path) -> None:
    if path.name in REFUSED:
        (told,) = faults(path.read_text())
        assert REFUSED[path.name] in told and "1M" in told
    else:
        (goal,) = goals(path.read_text()).values()
        assert goal.levels and goal.source == "any"


def test_all_methods_and_windows_are_read_exactly() -> None:
    found = goals()
    requests, devices, latency, errors = (found[name] for name in ("requests", "devices", "latency", "errors"))
    assert requests.method is Budgeting.OCCURRENCES and requests.levels[0].target == Fraction("0.995")
    assert (requests.window, requests.rolling, requests.source) == (Duration("30d", 30 * DAY_MS), True, "prometheus")
    (alert,) = requests.alerts
    assert (alert.policy, alert.severity, alert.op, alert.threshold) == ("wake-up", "page", Op.GTE, Fraction("2.5"))
    assert (alert.lookback_ms, alert.after_ms, alert.no_data) == (30 * MINUTE_MS, 5 * MINUTE_MS, True)
    assert devices.method is Budgeting.TIMESLICES and devices.levels[0].slice_ms == 5 * MINUTE_MS, "a number is minutes"
    assert (devices.window.months, devices.start, devices.zone) == (1, "2026-01-01 00:00:00", "Europe/Berlin")
    assert devices.levels[0].slice_target == Fraction("0.95")
    assert latency.method is Budgeting.RATIO_TIMESLICES and latency.levels[0].edge == (Op.LTE, Fraction("0.5"))
    assert errors.levels[0].slice_ms == 0


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("kind: SLI\n", "kind: SLIs\n", "s.yaml:7: kind: 'SLIs' is none of its values; did you mean 'SLI'?"),
        ("openslo/v1\nkind: SLI", "openslo/v2\nkind: SLI", "SLI requests: apiVersion: 'openslo/v2' is not supported"),
        ("indicatorRef: requests", "indicatorRef: request", "there is no SLI 'request' here"),
        ("  indicatorRef: requests\n", "", "spec.indicator: give exactly one of indicator and indicatorRef"),
        ("targetPercent: 99.5", "targetPercent: 100", "targetPercent: 100.0 is not at least 0 and below 100"),
        ("targetPercent: 99.5", "targetPercent: 99.5, target: 0.9", "exactly one of target and targetPercent"),
        ("targetPercent: 99.5", "targetPercent: 99.5, compositeWeight: 1", "compositeWeight: composite SLOs are not"),
        ("duration: 30d, isRolling: true", "duration: 1M, isRolling: true", "has no fixed length, so it cannot roll"),
        ("duration: 30d, isRolling", "duration: 30 days, isRolling", "'30 days' is no duration"),
        ("timeZone: Europe/Berlin", "timeZone: Berlin", "calendar.timeZone: 'Berlin' is no time zone"),
        ("startTime: 2026-01-01 00:00:00", "startTime: today", "calendar.startTime: 'today' is no local time"),
        ("timeSliceTarget: 0.95, ", "", "timeSliceTarget: is missing; Timeslices need it"),
        ("op: lte, value: 0.5, ", "op: lte, ", "op and value are needed with a thresholdMetric"),
        ("rawType: success", "counter: false", "ratioMetric.rawType: is missing"),
        ("conditionRef: fast", "conditionRef: slow", "conditions[0].conditionRef: there is no 'slow' here"),
        ("targetRef: on-call", "targetRef: off-call", "targetRef: there is no 'off-call'"),
        ("alertPolicyRef: wake-up", "alertPolicyRef: wake", "alertPolicyRef: there is no AlertPolicy 'wake' here"),
        (
            "metricSourceRef: prometheus, spec: {query: req",
            "metricSourceRef: p, spec: {query: req",
            "no DataSource 'p'",
        ),
        ("service: api\n  indicatorRef", "services: api\n  indicatorRef", "spec.services: there is no such field"),
        ("metadata: {name: latency}", "metadata: {name: devices}", "there is another SLO 'devices'"),
    ],
)
def test_each_fault_is_told_with_its_field_and_remedy(old: str, new: str, told: str) -> None:
    assert SLOS.count(old) >= 1
    assert any(told in line for line in faults(SLOS.replace(old, new))), faults(SLOS.replace(old, new))


def test_durations() -> None:
    assert [duration(text).ms for text in ("5m", "2h", "3d", "4w")] == [
        5 * MINUTE_MS, 120 * MINUTE_MS, 3 * DAY_MS, 28 * DAY_MS,
    ]  # fmt: skip
    assert [duration(text).months for text in ("1M", "2Q", "1Y")] == [1, 6, 12]
    for wrong in ("", "0d", "1s", "-1d", "1.5h", "1D", "1234567m"):
        with pytest.raises(ValueError, match="is no duration"):
            duration(wrong)


def test_the_command_checks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SLOS)
    assert run(["slo", "validate", str(path)]) == 0
    assert "valid: 9 documents, 4 SLOs" in capsys.readouterr().out
    assert run(["slo", "rules", str(path), "--output", str(tmp_path / "r.yaml")]) == 0
    assert (tmp_path / "r.yaml").read_text().count("alert: SloBudgetBurn") == 16
    path.write_text(SLOS.replace("sli: device-availability", "sli: goodput"))
    assert run(["slo", "rules", str(path)]) == 2
    assert "'goodput' is not exported to Prometheus" in capsys.readouterr().err
    path.write_text("a: 1\n")
    assert run(["slo", "validate", str(path)]) == 2
    assert "kind: is missing" in capsys.readouterr().err
