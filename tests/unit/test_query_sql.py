"""Protects: a query reads the tables that there are and nothing else, and cannot multiply them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridkeeper.query.sql import FUNCTIONS, BadQuery, checked
from gridkeeper.query.tables import KEY, TABLES


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (
            "select region, count(*) from devices where temperature_c > 85 group by region",
            {"devices": ("device", "region", "temperature_c")},
        ),
        (
            "select d.device as dd, n.rack from devices d left join nodes n using (node) order by dd limit 3",
            {"devices": ("device", "node", "rack"), "nodes": ("node", "rack")},
        ),
        (
            "with hot as (select * from devices where power_w > 1) select count(*) from hot",
            {"devices": tuple(TABLES["devices"])},
        ),
        ("select count(*) from jobs", {"jobs": ("job",)}),
        ("select node from nodes union select node from drains", {"drains": ("drain", "node"), "nodes": ("node",)}),
        (
            "select device from devices a join nodes b on a.node = b.node and b.state = 'alive'",
            {"devices": ("device", "node"), "nodes": ("node", "state")},
        ),
        ("select device from devices where bit(throttle_reasons, 3)", {"devices": ("device", "throttle_reasons")}),
    ],
)
def test_only_what_is_named_is_read(text: str, columns: dict[str, tuple[str, ...]]) -> None:
    assert checked(text).columns == columns


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "it is empty"),
        ("select 1", "it reads no table"),
        ("select temprature_c from devices", "did you mean temperature_c"),
        ("select * from device", "there is no table 'device'; did you mean devices?"),
        ("select * from devices; select * from nodes", "2 statements"),
        ("select * from read_csv('/etc/passwd')", "'read_csv'"),
        ("select * from '/etc/passwd'", "there is no table '/etc/passwd'"),
        ('select * from "/etc/passwd"', "there is no table '/etc/passwd'"),
        ("select read_parquet('s3://x') from devices", "read_parquet"),
        ("select * from read_json('http://x/')", "read_json"),
        ("select * from read_ipc('/x')", "read_ipc"),
        ("copy devices to '/tmp/x'", "only SELECT is"),
        ("drop table devices", "only SELECT is"),
        ("insert into devices values (1)", "only SELECT is"),
        ("update devices set node = 'x'", "only SELECT is"),
        ("create table x as select * from devices", "only SELECT is"),
        ("explain select * from devices", "only SELECT is"),
        ("select * from devices a, devices b", "would multiply the tables"),
        ("select * from devices cross join nodes", "would multiply the tables"),
        ("select * from devices natural join nodes", "would multiply the tables"),
        ("select * from devices a join nodes b on 1 = 1", "would multiply the tables"),
        ("select * from devices a join nodes b on a.node = a.node", "would multiply the tables"),
        ("select * from devices a join nodes b on a.node = b.node or 1 = 1", "would multiply the tables"),
        ("select * from devices a join nodes b on a.node > b.node", "would multiply the tables"),
        ("with recursive x as (select node from nodes union all select node from x) select * from x", "RECURSIVE"),
        ("with nodes as (select 1) select * from nodes", "hides the table"),
        ("select * from system.nodes", "write the table's name alone"),
        ("select repeat('a', 1000000000) from devices", "'repeat'"),
        ("select rpad('a', 1000000000, 'b') from devices", "'pad'"),
        ("select concat(device, device) from devices", "concat"),
        ("select growth(ecc_corrected) from devices", "it is for rules"),
        (f"select '{'a' * 2_000}' from devices", "has 2000 characters; use at most 1024"),
        (f"select {'9' * 200} from devices", "has 200 characters; use at most 30"),
        ("select " + "device, " * 3_000 + "node from devices", "use at most 16384"),
        ("select " + "1+" * 1_500 + "1 from devices", "more than 2000 parts"),
        ("select " + "(" * 3_000 + "1" + ")" * 3_000 + " from devices", "sql: "),
        ("select device from devices where " + "not " * 1_900 + "present", "sql: "),
        ("select device from devices where exists (select 1)", "EXISTS"),
        ("select device from devices for update", "LOCK"),
        ("select unnest(device) from devices", "unnest"),
        ("select device from devices limit (select count(*) from devices)", "LIMIT takes a number"),
        ("select row_number() over () from devices", "not allowed"),
        (
            "select device from devices d " + " ".join(f"join nodes n{i} on d.node = n{i}.node" for i in range(5)),
            "5 joins",
        ),
        ("select device from devices where bit(throttle_reasons, 99)", "write bit(<column>"),
        ("select cast(device as binary) from devices", "'cast'"),
        ("select device from devices where device ~ '(a+)+$'", "sql: "),
        ("select " + "- " * 400 + "1 from devices", "nested too deeply"),
        ("select " + "(" * 8_000 + " from devices", "nested too deeply"),
    ],
)
def test_everything_else_is_refused_with_a_remedy(text: str, told: str) -> None:
    with pytest.raises(BadQuery) as refused:
        checked(text)
    assert told in str(refused.value)


WORDS = """select from devices nodes , * ( ) where join on using union all with recursive x as a.node = b.node read_csv
'/etc/passwd' count device node limit 5 group by order ; -- /* */ \x00 ☃ case when then end bit and or not"""


@settings(max_examples=150)
@given(
    st.lists(
        st.sampled_from(WORDS.split()),
        max_size=20,
    )
)
def test_any_words_are_a_query_or_refused(words: list[str]) -> None:
    try:
        query = checked(" ".join(words))
    except BadQuery:
        return
    assert set(query.columns) <= set(TABLES) and "/etc/passwd" not in query.columns


def test_each_table_has_its_key() -> None:
    assert set(KEY) == set(TABLES) and all(KEY[name] in columns for name, columns in TABLES.items())


def test_every_table_column_and_function_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "query.md").read_text()
    names = {column.name for columns in TABLES.values() for column in columns.values() if not column.metric}
    for name in (*TABLES, *names, *FUNCTIONS):
        assert f"`{name}`" in text, name
