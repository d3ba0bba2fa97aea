"""Protects: who was refused is written down without filling the store; limits hold per identity; who is revoked or
whose certificate or token has ended is out, also on streams that are open."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from controlplane.rpc.identity_intents import MAX_TOKENS, NoEntry, create_token, revoke, use_token
from controlplane.rpc.intents import Wish
from controlplane.rpc.refusal import Refusal as GrpcRefusal
from controlplane.rpc.sources import Conflict
from controlplane.security.bearer import JwtBearer
from controlplane.security.origin import host_of
from controlplane.security.rates import Buckets, Rate, StreamCounts, TooMany
from controlplane.security.refusals import MOST_WAITING, QUIET_MS, RATE, RefusalBook
from gridkeeper.client import Failed, GridClient, Refused
from gridkeeper.config import BearerConfig, ClientConfig, LimitsConfig, RegionEndpoints
from gridkeeper.decision import Now, Versioned
from gridkeeper.identity import spiffe
from gridkeeper.identity.spiffe import BadIdentity, UserRole
from gridkeeper.ids import NodeId, RegionId, Revision
from gridkeeper.ports.store import StoreUnavailable
from gridkeeper.records.books import AuditRecord
from gridkeeper.v1 import api_pb2
from tests.fixtures.filled import fleet
from tests.fixtures.gridserver import GridServers

WALL_MS = 1_790_000_000_000


class HandClock:
    """Time that moves when somebody sleeps or turns it."""

    def __init__(self) -> None:
        self.ms = 1_000

    def mono_ms(self) -> int:
        return self.ms

    def wall_ms(self) -> int:
        return WALL_MS + self.ms

    async def sleep(self, ms: int) -> None:
        self.ms += ms
        await asyncio.sleep(0)


class CountingRng:
    def __init__(self) -> None:
        self.n = 0

    def token(self, nbytes: int = 8) -> str:
        self.n += 1
        return f"{self.n:0{2 * nbytes}x}"

    def uniform(self, low: float, high: float) -> float:
        return low


def book_of(clock: HandClock, failing: int = 0) -> tuple[RefusalBook, list[AuditRecord]]:
    written: list[AuditRecord] = []
    left = [failing]

    async def write(entries: Sequence[AuditRecord]) -> None:
        if left[0]:
            left[0] -= 1
            raise StoreUnavailable("away")
        written.extend(entries)

    return RefusalBook(write, clock, CountingRng()), written


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.integers(0, 30_000)), max_size=60))
def test_whatever_is_thrown_at_it_a_replica_writes_few_refusals_and_counts_them_all(
    attacks: list[tuple[int, int, int]],
) -> None:
    async def play() -> None:
        clock = HandClock()
        began = clock.ms
        book, written = book_of(clock)
        for who, times, pause in attacks:
            for _ in range(times):
                book.note(f"user/{who}", "10.0.0.9", "api.Drain", "node/x", "no " * 500)
            await clock.sleep(pause)
            await book.flush()
        for _ in range(30):  # rest: what waits comes to paper
            await clock.sleep(QUIET_MS * 30)
            await book.flush()
        told = sum(_count(entry) for entry in written)
        assert told == book.total == sum(times for _, times, _ in attacks)
        assert len(written) <= RATE.burst + (clock.ms - began) / 1000 * RATE.per_s + 1
        assert all(len(entry.sentence) < 500 and entry.result == "refused" for entry in written)
        assert len({entry.id for entry in written}) == len(written)

    asyncio.run(play())


def _count(entry: AuditRecord) -> int:
    if entry.verb == "api.refusals":
        return int(entry.sentence.split()[0])
    return int(entry.sentence.rpartition(" (")[2].split()[0]) if entry.sentence.endswith("since)") else 1


async def test_a_store_that_is_away_loses_no_refusal_and_memory_stays_bounded() -> None:
    clock = HandClock()
    book, written = book_of(clock, failing=3)
    for n in range(10 * MOST_WAITING):
        book.note(f"user/{n}", "10.0.0.9", "api.Drain", "", "no")
    await book.flush()
    assert [entry.actor for entry in written][:2] == ["user/0", "user/1"]
    for _ in range(20):
        await clock.sleep(QUIET_MS * 30)
        await book.flush()
    assert sum(_count(entry) for entry in written) == 10 * MOST_WAITING


@given(st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 50)), min_size=1, max_size=50))
def test_a_bucket_lets_through_what_its_rate_says(asks: list[tuple[int, int]]) -> None:
    clock = HandClock()
    buckets, paid, slowed = Buckets(Rate(10, 40), clock), 0, Buckets(Rate(10, 40), clock)
    for pause, cost in asks:
        clock.ms += pause
        if buckets.admit("a", cost) == 0:
            paid += cost
    assert paid <= 40 + (clock.ms - 1_000) / 1000 * 10 + 1e-6
    assert buckets.admit("b", 1) == 0, "somebody else's asking costs nobody anything"
    began, spent = clock.ms, 0
    for pause, cost in asks:
        clock.ms += pause
        spent += cost
        clock.ms += slowed.take("a", cost)  # who waits as told keeps to the rate
        assert spent <= 40 + (clock.ms - began) / 1000 * 10 + cost


def test_buckets_and_streams_are_bounded() -> None:
    clock = HandClock()
    buckets = Buckets(Rate(1, 1), clock, most=3)
    for name in "abcdef":
        buckets.take(name)
    assert len(buckets._levels) == 3
    streams = StreamCounts(2, 3)
    with streams.one("a"), streams.one("a"):
        with pytest.raises(TooMany, match="a has 2 streams"), streams.one("a"):
            pass
        with streams.one("b"), pytest.raises(TooMany, match="already serves 3"), streams.one("c"):
            pass
    with streams.one("a"):
        pass


def test_where_a_call_came_from() -> None:
    assert host_of("ipv4:10.0.0.5:4711") == "10.0.0.5"
    assert host_of("ipv6:%5B::1%5D:4711") == "::1"
    assert len(host_of("unix:" + "x" * 500)) == 64


# -- bearer tokens ------------------------------------------------------------------------------------------------

ISSUER = BearerConfig("https://id.example", "gridkeeper", "jwks.json")
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def jwks() -> bytes:
    key = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key()))
    secret = {"kty": "oct", "kid": "weak", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"}
    return json.dumps({"keys": [{**key, "kid": "k1", "use": "sig"}, secret]}).encode()


def token(clock: HandClock, key: Any = KEY, kid: str = "k1", algorithm: str = "ES256", **claims: Any) -> str:
    now = clock.wall_ms() // 1000
    body = {"iss": ISSUER.issuer, "aud": "gridkeeper", "sub": "ann@example.com", "exp": now + 300,
            "gridkeeper_role": "operator", **claims}  # fmt: skip
    return jwt.encode({k: v for k, v in body.items() if v is not None}, key, algorithm=algorithm, headers={"kid": kid})


async def test_a_good_token_speaks_for_its_user_until_it_ends() -> None:
    clock = HandClock()
    bearer = JwtBearer(ISSUER, clock, jwks)
    identity, until_ms = await bearer.verify(token(clock))
    assert (str(identity), identity.role) == ("user/oidc:ann@example.com", UserRole.OPERATOR)
    assert 300_000 < until_ms - clock.wall_ms() <= 331_000
    owner, _ = await bearer.verify(token(clock, gridkeeper_role="job-owner", gridkeeper_namespaces=["b", "a"]))
    assert owner.namespaces == ("a", "b")


@pytest.mark.parametrize(
    ("claims", "part"),
    [
        ({"exp": 1}, "has expired"),
        ({"exp": None}, "exp"),
        ({"nbf": 9_000_000_000}, "not valid yet"),
        ({"aud": "other"}, "[Aa]udience"),
        ({"aud": None}, "aud"),
        ({"iss": "https://evil.example"}, "[Ii]ssuer"),
        ({"gridkeeper_role": "root"}, "'root' is none"),
        ({"gridkeeper_role": None}, "names no role"),
        ({"gridkeeper_role": "job-owner"}, "name one"),
        ({"gridkeeper_role": "viewer", "gridkeeper_namespaces": ["a"]}, "leave it out"),
        ({"gridkeeper_role": "job-owner", "gridkeeper_namespaces": ["../x"]}, "namespace"),
        ({"gridkeeper_role": "job-owner", "gridkeeper_namespaces": "a"}, "is no list"),
        ({"sub": "a/b"}, "is no name"),
        ({"sub": "a b"}, "is no name"),
        ({"sub": "a" * 200}, "is no name"),
        ({"sub": None}, "is no name"),
    ],
)
async def test_a_bad_claim_is_named(claims: dict[str, Any], part: str) -> None:
    clock = HandClock()
    with pytest.raises(BadIdentity, match=part):
        await JwtBearer(ISSUER, clock, jwks).verify(token(clock, **claims))


async def test_a_forged_token_is_refused() -> None:
    clock = HandClock()
    bearer = JwtBearer(ISSUER, clock, jwks)
    for forged in (
        token(clock, OTHER),
        token(clock, kid="nobody"),
        token(clock, "secret" * 8, kid="weak", algorithm="HS256"),
        token(clock, "secret" * 8, algorithm="HS256"),
        jwt.encode({"sub": "ann"}, None, algorithm="none", headers={"kid": "k1"}),
        token(clock, rsa.generate_private_key(65537, 2048), algorithm="RS256"),
        token(clock)[:-4],
        "x" * 20_000,
        "..",
        "",
    ):
        with pytest.raises(BadIdentity):
            await bearer.verify(forged)


async def test_keys_are_read_anew_at_a_bounded_rate_and_kept_when_they_cannot_be() -> None:
    clock, reads = HandClock(), [0]

    def read() -> bytes:
        reads[0] += 1
        if reads[0] == 2:
            raise OSError("away")
        return jwks()

    bearer = JwtBearer(ISSUER, clock, read)
    for _ in range(50):
        with pytest.raises(BadIdentity, match="does not publish"):
            await bearer.verify(token(clock, kid="nobody"))
    assert reads == [1]
    clock.ms += 11_000
    await bearer.verify(token(clock))
    with pytest.raises(BadIdentity):
        await bearer.verify(token(clock, kid="nobody"))
    assert reads == [2]
    await bearer.verify(token(clock))


# -- join tokens ---------------------------------------------------------------------------------------------------

NOW = Now(0, WALL_MS)
WISH = Wish("user/adm", "a test", "")


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["k1", "k2"]), st.booleans()), max_size=8))
def test_a_token_is_used_up_by_one_key_of_one_host_whoever_races(tries: list[tuple[str, str, bool]]) -> None:
    """Protects: of all who present a token, in any order, also deciding on a state that is old by then, one wins; and
    the winner may ask again."""
    grid = fleet()
    _, created = create_token("t", "secret", "", 0, WISH, grid.region(), NOW)
    grid.local.apply(created)
    before, winner = grid.region(), None
    for node, key, stale in tries:
        seen = before if stale else grid.region()
        try:
            decision = use_token("t", "secret", NodeId(node), key, seen, NOW)
            if decision is not None:
                grid.local.apply(decision)
        except (NoEntry, Conflict):
            assert winner is not None and (stale or winner != (node, key))
            continue
        assert winner in (None, (node, key))
        winner = (node, key)
    assert (grid.region().tokens["t"].record.used_by or None) == (winner[0] if winner else None)


def test_tokens_that_are_over_make_room_and_the_rest_is_bounded() -> None:
    state = fleet().region()
    record, _ = create_token("t", "s", "", 1_000, WISH, state, NOW)
    full = {f"t{n}": Versioned(record, Revision(n + 1), Revision(n + 1), 0) for n in range(MAX_TOKENS)}
    state = dataclasses.replace(state, tokens=full)
    with pytest.raises(GrpcRefusal, match="join tokens that are not over"):
        create_token("more", "s", "", 0, WISH, state, NOW)
    _, decision = create_token("more", "s", "", 0, WISH, state, Now(0, WALL_MS + 2_000))
    assert len(decision.writes) == 51, "fifty that are over make room"


@pytest.mark.parametrize("target", ["", "node/east", "node/../x", "user/", "user/a b", "serial/XYZ", "store/etcd", "*"])
def test_what_cannot_be_revoked_is_named(target: str) -> None:
    with pytest.raises(GrpcRefusal, match="nothing to revoke"):
        revoke(target, WISH, fleet().region(), NOW)


# -- over the wire ------------------------------------------------------------------------------------------------


async def test_revocation_ends_a_live_watch_and_reinstating_lets_in_again(tmp_path: Path) -> None:
    servers = GridServers(tmp_path)
    grid = fleet()
    await servers.start(grid)
    victim, admin = servers.client(spiffe.user("vic", "viewer")), servers.client(spiffe.user("adm", "admin"))
    try:
        watch = victim.watch((api_pb2.KIND_NODE,))
        await anext(watch)
        await admin.identities.revoke("user/vic", "left the company")
        with pytest.raises(Refused, match="user/vic is revoked: left the company"):
            async with asyncio.timeout(20):
                async for _ in watch:
                    pass
        with pytest.raises(Refused, match="is revoked"):
            await victim.list(api_pb2.KIND_NODE)
        with pytest.raises(Refused, match="is you"):
            await admin.identities.revoke("user/adm", "oops")
        assert [record.target for _, record in (await admin.identities.revocations()).records] == ["user/vic"]
        await admin.identities.reinstate("user/vic", "came back")
        await victim.list(api_pb2.KIND_NODE)
    finally:
        await victim.close()
        await admin.close()
        await servers.stop()


async def test_who_asks_too_often_is_refused_and_others_are_not(tmp_path: Path) -> None:
    servers = GridServers(tmp_path)
    servers.limits = LimitsConfig(reads_per_s=1, streams=1)
    await servers.start(fleet())
    greedy, modest = servers.client(spiffe.user("gus", "viewer")), servers.client(spiffe.user("mo", "viewer"))
    try:
        with pytest.raises(Failed, match="user/gus asks too often"):
            for _ in range(12):
                await greedy.list(api_pb2.KIND_NODE)
        await modest.list(api_pb2.KIND_NODE)
        await servers.books["east-1"].flush()
        trail = (await modest.list(api_pb2.KIND_AUDIT)).objects
        assert [(item.audit.actor, item.audit.result) for item in trail] == [("user/gus", "refused")]
    finally:
        await greedy.close()
        await modest.close()
        await servers.stop()


def test_a_client_with_a_token_needs_the_file_to_be_private(tmp_path: Path) -> None:
    servers = GridServers(tmp_path)
    files = servers.files(spiffe.user("ann", "viewer"))
    path = tmp_path / "token"
    path.write_text("x.y.z")
    path.chmod(0o644)
    config = ClientConfig((RegionEndpoints(RegionId("east"), ("127.0.0.1:1",)),), files, str(path))
    with pytest.raises(ValueError, match="chmod 600"):
        GridClient(config)
