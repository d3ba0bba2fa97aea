"""SPIFFE identities as certificates carry them, in one URI each. Pure.

spiffe://<trust domain>/region/<region>/node/<node>          an agent
spiffe://<trust domain>/region/<region>/replica/<replica>    a control-plane replica
spiffe://<trust domain>/role/<role>/user/<name>              a person or a program that uses the API
spiffe://<trust domain>/role/job-owner/namespace/<namespace>/user/<name>   one who sees and moves a tenant's jobs only
spiffe://<trust domain>/store/<name>                         a member or a client of an etcd cluster
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from gridkeeper.ids import BadName, RegionId, checked_name

SCHEME = "spiffe://"
MAX_URI = 2048
"""Bytes, from the SPIFFE ID specification, section 2.3."""

REPLICA_HOSTS = ".replica."

_TRUST_DOMAIN = re.compile(r"^[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?\Z")


class BadIdentity(ValueError):
    """A certificate's identity that is missing, malformed or of another trust domain; says what was expected."""


class Kind(enum.StrEnum):
    """What an identity stands for."""

    NODE = "node"
    REPLICA = "replica"
    USER = "user"
    STORE = "store"


class UserRole(enum.StrEnum):
    """What a user may do. Viewer, operator and admin each include the ones before; a job owner has the jobs of some
    namespaces and nothing else."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    JOB_OWNER = "job-owner"


@dataclass(frozen=True, slots=True)
class Identity:
    """``region`` is "" unless the kind is NODE or REPLICA; ``role`` is None unless it is USER; ``namespaces`` are those
    of a job owner, empty for anybody else."""

    kind: Kind
    region: RegionId
    name: str
    role: UserRole | None = None
    namespaces: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For logs and the audit trail: ``user/ann``, ``node/east/east-1``."""
        return f"{self.kind}/{self.region}/{self.name}" if self.region else f"{self.kind}/{self.name}"


def node(region: str, name: str) -> Identity:
    """Raises ``BadIdentity``."""
    return _checked(Kind.NODE, name, region=region)


def replica(region: str, name: str) -> Identity:
    """Raises ``BadIdentity``."""
    return _checked(Kind.REPLICA, name, region=region)


def user(name: str, role: str, namespace: str = "") -> Identity:
    """``namespace``: of a job owner. Raises ``BadIdentity``."""
    return _checked(Kind.USER, name, role=role, namespaces=(namespace,) if namespace else ())


def store(name: str) -> Identity:
    """Raises ``BadIdentity``."""
    return _checked(Kind.STORE, name)


def checked_trust_domain(value: str) -> str:
    """``value`` if it can be a SPIFFE trust domain. Raises ``BadIdentity``."""
    if not _TRUST_DOMAIN.match(value):
        raise BadIdentity(
            f"trust_domain: {value[:80]!r} is none; use 1 to 255 of a-z, 0-9, '.', '_', '-'; e.g. grid.example.com"
        )
    return value


def format_uri(identity: Identity, trust_domain: str) -> str:
    """The URI that goes into the certificate. Raises ``BadIdentity``."""
    identity = _checked(identity.kind, identity.name, identity.region, identity.role or "", identity.namespaces)
    if len(identity.namespaces) > 1:
        raise BadIdentity(f"namespaces: a certificate has one, not {len(identity.namespaces)}; issue one for each")
    start = SCHEME + checked_trust_domain(trust_domain)
    match identity.kind:
        case Kind.NODE | Kind.REPLICA:
            return f"{start}/region/{identity.region}/{identity.kind}/{identity.name}"
        case Kind.USER:
            tenant = "".join(f"/namespace/{namespace}" for namespace in identity.namespaces)
            return f"{start}/role/{identity.role}{tenant}/user/{identity.name}"
        case Kind.STORE:
            return f"{start}/store/{identity.name}"


def replica_host(region: str, trust_domain: str) -> str:
    """The DNS name that certificates of a region's replicas carry beside the URI, and no others: what a client of gRPC
    can check of a server is such a name only."""
    return f"{region}{REPLICA_HOSTS}{trust_domain}"


def parse_uri(uri: str, trust_domain: str) -> Identity:
    """The identity in ``uri``, which must be of ``trust_domain``. Raises ``BadIdentity`` on anything else."""
    if len(uri) > MAX_URI:
        raise BadIdentity(
            f"the identity in the certificate is {len(uri)} characters long; at most {MAX_URI} are allowed"
        )
    if not uri.startswith(SCHEME):
        raise BadIdentity(f"{uri[:80]!r} is no SPIFFE id; use a certificate issued by 'gridkeeper ca issue'")
    domain, _, path = uri[len(SCHEME) :].partition("/")
    if domain != trust_domain:
        raise BadIdentity(
            f"trust domain {domain[:80]!r} is not this grid's, {trust_domain!r}; use a certificate of this grid"
        )
    match path.split("/"):
        case ["region", region, "node", name]:
            return _checked(Kind.NODE, name, region=region)
        case ["region", region, "replica", name]:
            return _checked(Kind.REPLICA, name, region=region)
        case ["role", role, "user", name]:
            return _checked(Kind.USER, name, role=role)
        case ["role", role, "namespace", namespace, "user", name]:
            return _checked(Kind.USER, name, role=role, namespaces=(namespace,))
        case ["store", name]:
            return _checked(Kind.STORE, name)
    raise BadIdentity(
        f"path {'/' + path[:120]!r} names nobody; expected /region/<region>/node/<node>, "
        "/region/<region>/replica/<replica>, /role/<role>/user/<name>, "
        "/role/job-owner/namespace/<namespace>/user/<name> or /store/<name>"
    )


def _checked(kind: Kind, name: str, region: str = "", role: str = "", namespaces: tuple[str, ...] = ()) -> Identity:
    try:
        checked_name(kind, name)
        if kind in (Kind.NODE, Kind.REPLICA):
            checked_name("region", region)
        elif region:
            raise BadIdentity(f"region: {region[:80]!r} is given, but the identity of a {kind} has none")
    except BadName as error:
        raise BadIdentity(str(error)) from None
    if kind is Kind.USER:
        return Identity(kind, RegionId(""), name, *checked_role(role, namespaces))
    if role or namespaces:
        raise BadIdentity(f"role: {role[:80]!r} is given, but only a user has one")
    return Identity(kind, RegionId(region), name)


def checked_role(role: str, namespaces: tuple[str, ...]) -> tuple[UserRole, tuple[str, ...]]:
    """A role with the namespaces that it is for: some for a job owner, none for anybody else. Raises
    ``BadIdentity``."""
    try:
        known = UserRole(role)
        for namespace in namespaces:
            checked_name("namespace", namespace)
    except BadName as error:
        raise BadIdentity(str(error)) from None
    except ValueError:
        roles = ", ".join(UserRole)
        raise BadIdentity(f"role: {role[:80]!r} is none; use one of {roles}") from None
    if (known is UserRole.JOB_OWNER) != bool(namespaces):
        remedy = "name one" if known is UserRole.JOB_OWNER else "leave it out: only a job-owner has one"
        raise BadIdentity(f"namespace: {', '.join(namespaces)[:80]!r} for the role {known}; {remedy}")
    return known, namespaces
