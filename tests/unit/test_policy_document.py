"""Protects: a policy is read strictly, every fault in it is told with its line, and the default one is whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gridkeeper.catalogue import judge
from gridkeeper.configfile import ConfigError
from gridkeeper.policy.document import (
    MAX_BYTES,
    default_policy,
    default_text,
    growths_of,
    parse_policy,
    policy_text,
)
from gridkeeper.policy.expression import compile_expression
from gridkeeper.policy.model import Mode, Policy, RulePolicy
from gridkeeper.records.common import Action, Severity
from gridkeeper.records.fleet import EventKind
from tests.unit.events import event

RULE = "rules:\n  - {name: a, when: power_w > 1, severity: error, action: watch, fault_class: power, meaning: m}\n"


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        parse_policy(text, "p.yaml")
    return str(wrong.value).splitlines()


def test_the_default_policy_is_whole() -> None:
    policy = default_policy()
    assert policy.version == 0 and policy.mode is Mode.ACT
    assert len(policy.rules) >= 20 and len({rule.name for rule in policy.rules}) == len(policy.rules)
    assert policy.budgets and policy.breakers
    assert all(compile_expression(rule.when).columns or compile_expression(rule.when).growths for rule in policy.rules)
    assert {growth.metric for growth in growths_of(policy)} == {"ecc_corrected", "pcie_replays"}
    assert parse_policy(default_text(), "default.yaml", 7).version == 7


def test_a_pattern_is_matched_in_linear_time_whatever_the_message_holds() -> None:
    """Protects: a program on a host can write what it likes into the kernel log; no pattern of the policy's takes for
    ever over it, and those that would need to are refused on load."""
    text = "events:\n  - {{name: e, kind: host, severity: error, action: watch, pattern: {pattern}}}\n"
    for pattern in ("'(a+)+\\1$'", "'a(?=b)'", "'[a'"):
        (told,) = faults(text.format(pattern=pattern))
        assert "is no regular expression" in told and "p.yaml:2" in told, told
    policy = parse_policy(text.format(pattern="'(a+)+$'"), "p.yaml")
    said = judge(replace(event(EventKind.HOST, 1), message="a" * 1_000 + "b"), None, policy)
    assert said is not None and said.rule == "host"
    said = judge(replace(event(EventKind.HOST, 1), message="a" * 1_000), None, policy)
    assert said is not None and said.rule == "events/e"


def test_what_is_written_is_read_back() -> None:
    policy = default_policy()
    assert parse_policy(policy_text(policy), "p.yaml") == policy
    rule = RulePolicy("hot", "temperature_c > 85", Severity.ERROR, Action.DRAIN, "thermal", "hot", mode=Mode.SHADOW)
    assert parse_policy(policy_text(Policy(rules=(rule,))), "p.yaml").rules == (rule,)


def test_every_fault_is_told_with_its_line_and_field() -> None:
    text = """\
mode: acting
rules:
  - name: hot
    when: temprature_c > 85
    clear: temperature_c
    for_ms: -1
    severity: bad
    action: watch
    fault_class: thermal
    meaning: hot
    select: rack
  - {name: hot, when: "power_w > (", severity: error, action: watch, fault_class: power, meaning: ""}
budget: []
"""
    told = faults(text)
    for start in (
        "p.yaml:1: mode: 'acting' is none of its values",
        "p.yaml:4: rules[0].when: there is no column 'temprature_c'; did you mean temperature_c",
        "p.yaml:5: rules[0].clear: 'temperature_c' is a number, not a condition",
        "p.yaml:6: rules[0].for_ms: -1 is not between 0 and",
        "p.yaml:7: rules[0].severity: 'bad' is none of its values",
        "p.yaml:11: rules[0].select: 'rack' is not key=value",
        "p.yaml:12: rules[1].when: is not an expression",
        "p.yaml:12: rules[1].meaning: '' is empty",
        "p.yaml:12: rules[1].name: 'hot' is the name of the one in line 3 too; choose another",
        "p.yaml:13: budget: there is no such field; did you mean 'budgets'?",
    ):
        assert any(line.startswith(start) for line in told), (start, told)
    assert len(told) == 10


def test_the_version_is_the_stores_to_give() -> None:
    assert faults(RULE + "version: 3\n") == [
        "p.yaml: version: 3 is given by the store when it is applied; leave it out"
    ]


def test_a_document_is_read_once_and_what_is_wrong_with_it_names_who_asks() -> None:
    """Protects: the event loop of a replica, where everybody who needs the policy asks for it again."""
    first, again = parse_policy(RULE, "p.yaml"), parse_policy(RULE, "policy version 3", 3)
    assert again.rules is first.rules and (first.version, again.version) == (0, 3)
    for source in ("p.yaml", "policy version 3"):
        with pytest.raises(ConfigError, match=f"^{source}:1: "):
            parse_policy("probation_ms: -1\n", source)


def test_memory_is_bounded() -> None:
    assert "a policy has at most" in faults("# " + "x" * MAX_BYTES)[0]
    rule = (
        RULE.splitlines()[1]
        .replace("power_w > 1", "\"growth(ecc_corrected, 'Ns') > 1\"")
        .replace("name: a", "name: rN")
    )
    rules = [rule.replace("N", str(20 + i)) for i in range(17)]
    assert "use at most 16" in faults("\n".join(["rules:", *rules]))[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("budgets: [{kind: site, fraction: 0.1, minimum: 1}]", "p.yaml:1: budgets[0].kind: 'site' is no kind"),
        ("budgets: [{kind: rack, fraction: 25, minimum: 1}]", "fraction: 25.0 is not between 0.0 and 1.0"),
        ("budgets: [{kind: rack, fraction: 25%, minimum: 1}]", "fraction: '25%' is not a number, like 0.25"),
        ("budgets: [{kind: rack, fraction: 0.1, minimum: 1, select: a}]", "select: 'a' is not key"),
        ("budgets: [{kind: fleet, fraction: 0.1, minimum: 1, window_ms: 9}]", "leave out its window_ms"),
        ("breakers: [{kind: job}]", "p.yaml:1: breakers[0].kind: 'job' is no kind of breaker; use region, zone"),
        ("breakers: [{drains: 0}]", "breakers[0].drains: 0 is not between 1 and"),
        ("breakers: [{kind: rack}, {kind: rack}]", "breakers: there are two breakers of kind rack"),
        ("drain: {flaps: 0}", "drain.flaps: 0 is not between 1 and 100"),
        ("freeze_fraction: yes", "p.yaml:1: freeze_fraction: 'yes' is not a number"),
    ],
)
def test_budgets_and_fractions_are_checked(text: str, told: str) -> None:
    assert told in faults(text)[0]
