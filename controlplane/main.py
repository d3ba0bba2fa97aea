"""``gridkeeper controlplane``: the composition root of a replica."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal

import grpc

from controlplane.garbage import collect_now_and_then
from controlplane.metrics import serve_metrics
from controlplane.rpc.agentlink import SERVER_OPTIONS, AgentLinkServicer
from controlplane.rpc.enrolment import Enrolment, Issuer
from controlplane.rpc.regionlink import GrpcRegions, RegionLinkServicer
from controlplane.rpc.server import add_grid
from controlplane.security.bearer import JwtBearer
from controlplane.security.gate import Gate
from controlplane.security.guards import guards_of
from controlplane.security.refusals import RefusalBook
from controlplane.shell.pager import HttpPager
from controlplane.shell.replica import Ports, Replica
from controlplane.shell.tickets import HttpDesk
from controlplane.store.archive import open_archive
from controlplane.store.etcd import EtcdStore
from failover.checkpoint.store import open_store
from gridkeeper import failpoint, tracing
from gridkeeper.clock import SystemClock, SystemRng
from gridkeeper.config import ControlPlaneConfig
from gridkeeper.configfile import ConfigError
from gridkeeper.identity.files import read_pem
from gridkeeper.identity.tls import TlsError, channel_credentials, server_credentials
from gridkeeper.policy.document import default_policy, load_policy
from gridkeeper.ports.store import StoreError
from gridkeeper.sla.receipts import issue
from gridkeeper.snapshot import Settings
from gridkeeper.v1 import agent_pb2_grpc, identity_pb2_grpc, regions_pb2_grpc

log = logging.getLogger("gridkeeper.controlplane")

GRACE_S = 1.0


async def run_controlplane(config: ControlPlaneConfig) -> int:
    """Serve until SIGTERM or SIGINT: 0. 1: it cannot start, and the log says why."""
    clock, rng = SystemClock(), SystemRng()
    which = "region_store"
    try:
        policy = load_policy(config.policy_file) if config.policy_file else default_policy()
        credentials = server_credentials(config.tls)
        signing_key = read_pem("ledger_key", config.ledger_key, secret=True) if config.ledger_key else b""
        others = GrpcRegions(channel_credentials(config.tls), config.trust_domain)
        region_store = await EtcdStore.open(config.region_store, clock, rng)
        which = "global_store"
        global_store = await EtcdStore.open(config.global_store, clock, rng)
    except (TlsError, ConfigError) as error:
        log.error("replica %s cannot start: %s", config.replica, error)
        return 1
    except StoreError as error:
        log.error("replica %s cannot start: %s: %s", config.replica, which, error)
        return 1
    tracing.setup(f"gridkeeper-controlplane-{config.replica}", config.otlp_endpoint)
    ports = Ports(
        clock=clock,
        rng=rng,
        region_store=region_store,
        global_store=global_store,
        failpoints=failpoint.from_environment(),
        checkpoints={p.region: open_store(p.path) for p in config.checkpoints},
        others=others,
        tickets=HttpDesk(config.ticket_token_file),
        archive=open_archive(config.ledger_archive) if config.ledger_archive else None,
        pager=HttpPager(config.alert_token_file),
        sign=functools.partial(issue, key_pem=signing_key) if signing_key else None,
    )
    settings = Settings(config.timings, policy)
    replica = Replica(config.region, config.replica, config.advertise or config.listen, ports, settings)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    bearer = JwtBearer(config.bearer, clock) if config.bearer else None
    gate = Gate(config.trust_domain, replica.front.revoked, clock, bearer)
    book = RefusalBook(replica.front.record, clock, rng)
    guards = guards_of(gate, book, config.limits, clock)
    agent_pb2_grpc.add_AgentLinkServicer_to_server(AgentLinkServicer(replica.ingest, guards, clock), server)
    desk = add_grid(server, replica.front, replica.front, guards)
    issuer = Issuer(config.issuer_dir, config.node_certificate_hours, clock)
    nodes = Enrolment(replica.front, replica.front, guards, issuer, entry=False)
    identity_pb2_grpc.add_IdentityServicer_to_server(nodes, server)
    link = RegionLinkServicer(config.region, replica.promiser.answer, guards)
    regions_pb2_grpc.add_RegionLinkServicer_to_server(link, server)
    server.add_secure_port(config.listen, credentials)
    servers = [server]
    if config.entry_listen:
        # Those without a certificate: hosts that join with a token, and users with a bearer token. No agents.
        entry = grpc.aio.server(options=SERVER_OPTIONS)
        hosts = Enrolment(replica.front, replica.front, guards, issuer, entry=True)
        identity_pb2_grpc.add_IdentityServicer_to_server(hosts, entry)
        entry.add_generic_rpc_handlers((desk.handlers(certified=False),))
        entry.add_secure_port(config.entry_listen, server_credentials(config.tls, clients=False))
        servers.append(entry)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.ensure_future(replica.run())
    stopping = asyncio.ensure_future(stop.wait())
    collecting = asyncio.ensure_future(collect_now_and_then(clock))
    noting = asyncio.ensure_future(book.run())
    metrics = serve_metrics(config.metrics_listen, replica, lambda: book.total) if config.metrics_listen else None
    for each in servers:
        await each.start()
    log.info("replica %s of region %s serves on %s", config.replica, config.region, config.listen)
    try:
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        return 0
    finally:
        # First, so that another replica may lead at once: agents' streams never end by themselves, so the grace for
        # calls under way is always waited out.
        running.cancel()
        await asyncio.gather(*(each.stop(GRACE_S) for each in servers))
        stopping.cancel()
        collecting.cancel()
        noting.cancel()
        await asyncio.gather(running, stopping, collecting, noting, return_exceptions=True)
        await replica.ingest.stop()  # again, for the streams that have ended since
        if metrics:
            metrics.close()
        await others.close()
        await region_store.close()
        await global_store.close()
        tracing.shutdown()
