"""Selectors come from people and from the wire: every text is a selector that means what it says, or a clear error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridkeeper.selector import EVERYTHING, MAX_LENGTH, MAX_TERMS, BadSelector, check_keys, parse

KEYS = st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)
VALUES = st.from_regex(r"[A-Za-z0-9_./:-]{0,10}", fullmatch=True)
LABELS = st.dictionaries(KEYS, VALUES, max_size=4)


def test_terms_are_joined_by_and() -> None:
    selector = parse("state=open, severity!=info")
    assert selector.matches({"state": "open", "severity": "fatal"})
    assert not selector.matches({"state": "open", "severity": "info"})
    assert not selector.matches({"state": "resolved", "severity": "fatal"})


def test_a_label_that_is_missing_counts_as_empty() -> None:
    assert parse("job=").matches({})
    assert not parse("job!=").matches({"job": ""})
    assert parse("job!=").matches({"job": "train"})


def test_blank_selects_everything() -> None:
    assert parse("  ") is EVERYTHING
    assert EVERYTHING.matches({"any": "thing"})


def test_a_model_with_spaces_can_be_selected() -> None:
    assert parse("model=H100 80GB HBM3").matches({"model": "H100 80GB HBM3"})


@pytest.mark.parametrize(
    "text",
    [
        "state",
        "=open",
        "state=open,",
        ",",
        "state==open",
        "sta te=open",
        "state=a\nb",
        "state=$(id)",
        "x" * (MAX_LENGTH + 1),
        ",".join(["a=b"] * (MAX_TERMS + 1)),
    ],
)
def test_what_is_no_selector_is_refused_with_a_remedy(text: str) -> None:
    with pytest.raises(BadSelector, match=r"selector: .*(use|separate)"):
        parse(text)


@given(st.text(max_size=60), LABELS)
def test_any_text_is_a_selector_or_a_clear_error(text: str, labels: dict[str, str]) -> None:
    try:
        selector = parse(text)
    except BadSelector as error:
        assert str(error).startswith("selector: ")
    else:
        assert selector.matches(labels) in (True, False)


@given(LABELS, KEYS, VALUES)
def test_negation_is_the_complement(labels: dict[str, str], key: str, value: str) -> None:
    assert parse(f"{key}={value}").matches(labels) is not parse(f"{key}!={value}").matches(labels)


@given(LABELS)
def test_what_is_printed_parses_to_the_same(labels: dict[str, str]) -> None:
    selector = parse(",".join(f"{k}={v}" for k, v in labels.items()))
    assert parse(str(selector)) == selector
    assert selector.matches(labels)


def test_a_key_that_no_object_has_is_not_read_as_nothing_there() -> None:
    with pytest.raises(BadSelector, match=r"'sate'; use one of region, state"):
        check_keys(parse("sate=open"), ("state", "region"))
