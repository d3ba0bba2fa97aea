"""Kubernetes as a ``BatchSystem``: room on this node through a Job whose one pod runs a guardian.

The state directory, the guardian's code and what the configuration mounts are the host's, at the same paths: agent and
guardian share books, socket, clock and boot id. A pod is never started again by itself (``backoffLimit: 0``,
``restartPolicy: Never``). Where tickets stand is listed while somebody waits for it; nothing is watched.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubernetes_asyncio.client import BatchV1Api, CoreV1Api

import gridkeeper
from failover.executors.batch import BatchError, BatchUnavailable, Placed, Standing, Ticket
from failover.executors.kubernetes_api import ApiAway, ApiRefusal, Json, KubernetesApi, name_of, part

TICKET = "gridkeeper.io/ticket"
HOST = "gridkeeper.io/host"
OURS = {"app.kubernetes.io/managed-by": "gridkeeper"}
KEEP_S = 3_600
"""An ended Job can be looked at for an hour."""
GRACE_S = 30
OVER = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class PodPlan:
    """How pods on this host are made. ``mounts``: host paths that jobs see, at the same paths; the
    state directory is one of them. ``resource``: what
    devices are called there; "" = they are not counted."""

    node: str
    namespace: str
    image: str
    resource: str
    mounts: tuple[Path, ...]


def short(text: str) -> str:
    """A name that Kubernetes takes for anything, the same for the same text."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class Kubernetes:
    title = "Kubernetes"

    def __init__(self, api: KubernetesApi, plan: PodPlan) -> None:
        self._api = api
        self._plan = plan

    async def find(self, names: Sequence[str]) -> dict[str, Placed]:
        mine = f"{HOST}={short(self._plan.node)}"
        try:
            client = await self._api.client()
            jobs = await self._api.items(
                BatchV1Api(client).list_namespaced_job, self._plan.namespace, label_selector=mine
            )
            pods = await self._api.items(
                CoreV1Api(client).list_namespaced_pod, self._plan.namespace, label_selector=mine
            )
        except (ApiAway, ApiRefusal) as error:
            raise _fault("list jobs and pods", error) from error
        by_ticket: dict[str, list[Json]] = {}
        for pod in pods:
            by_ticket.setdefault(_ticket(pod), []).append(pod)
        found = {_ticket(job): standing(job, by_ticket.get(_ticket(job), ())) for job in jobs}
        for ticket, orphans in by_ticket.items():  # somebody has deleted their Job; they may still end
            if ticket not in found and any(not _over(pod) for pod in orphans):
                found[ticket] = Placed(Standing.RUNNING, f"pod {name_of(orphans[0])} is left by its Job")
        return {name: found[name] for name in names if name in found}

    async def submit(self, ticket: Ticket) -> None:
        try:
            client = await self._api.client()
            body = manifest(self._plan, ticket, os.getuid(), os.getgid())
            await self._api.ask(BatchV1Api(client).create_namespaced_job, self._plan.namespace, body)
        except ApiRefusal as refusal:
            if refusal.status == 409:
                return  # an earlier submission whose reply was lost
            raise _fault("create a Job", refusal) from refusal
        except ApiAway as away:
            raise _fault("create a Job", away) from away

    async def cancel(self, name: str) -> None:
        """The Job stays until its pod has ended."""
        try:
            client = await self._api.client()
            await self._api.ask(
                BatchV1Api(client).delete_namespaced_job,
                f"gridkeeper-{short(name)}",
                self._plan.namespace,
                propagation_policy="Foreground",
            )
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return
            raise _fault("delete a Job", refusal) from refusal
        except ApiAway as away:
            raise _fault("delete a Job", away) from away


def _fault(what: str, error: ApiAway | ApiRefusal) -> BatchError:
    return (BatchUnavailable if isinstance(error, ApiAway) else BatchError)(f"{what}: {error}")


def _ticket(item: Json) -> str:
    return str(part(item, "metadata", "annotations").get(TICKET, ""))


def _over(pod: Json) -> bool:
    return part(pod, "status").get("phase") in OVER


def standing(job: Json, pods: Iterable[Json]) -> Placed:
    """Of a Job with its pods. A pod that is not known to have ended counts as running."""
    living = [pod for pod in pods if not _over(pod)]
    if part(job, "metadata").get("deletionTimestamp"):
        return Placed(Standing.RUNNING, f"Job {name_of(job)} is being deleted")
    ended = [c for c in part(job, "status").get("conditions") or () if c.get("status") == "True"]
    for condition in ended:
        if condition.get("type") in ("Complete", "Failed") and not living:
            why = f" ({condition['message']})" if condition.get("message") else ""
            return Placed(Standing.ENDED, f"Job {name_of(job)} is {condition['type']}{why}")
    for pod in living:
        if part(pod, "status").get("phase") != "Pending" or _begun(pod):
            return Placed(Standing.RUNNING, f"pod {name_of(pod)} is {part(pod, 'status').get('phase', 'there')}")
    why = _why_pending(living[0]) if living else f"Job {name_of(job)} has no pod yet"
    return Placed(Standing.WAITING, why)


def _begun(pod: Json) -> bool:
    statuses = part(pod, "status").get("containerStatuses") or ()
    return any("running" in (status.get("state") or {}) for status in statuses)


def _why_pending(pod: Json) -> str:
    status = part(pod, "status")
    for container in status.get("containerStatuses") or ():
        waiting = part(container, "state", "waiting")
        if waiting.get("reason"):
            return f"pod {name_of(pod)}: {waiting['reason']} {str(waiting.get('message', ''))[:200]}".strip()
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"pod {name_of(pod)}: {str(condition.get('message') or condition.get('reason'))[:200]}"
    return f"pod {name_of(pod)} is pending"


def manifest(plan: PodPlan, ticket: Ticket, uid: int, gid: int) -> dict[str, object]:
    """The Job. Its pod goes through the scheduler, pinned to this node, so that resources and taints count."""
    code = Path(gridkeeper.__file__).parent.parent
    paths = {code: True, **dict.fromkeys(plan.mounts, False)}
    marks = {"labels": {**OURS, HOST: short(plan.node)}, "annotations": {TICKET: ticket.name}}
    counted = {plan.resource: str(len(ticket.slots))} if plan.resource and ticket.slots else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"gridkeeper-{short(ticket.name)}", **marks},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": KEEP_S,
            "template": {
                "metadata": marks,
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": GRACE_S,
                    "automountServiceAccountToken": False,
                    "hostNetwork": ticket.spec.members > 1,  # a gang meets at an address of a host
                    "affinity": _only_on(plan.node),
                    "securityContext": {"runAsUser": uid, "runAsGroup": gid},
                    "containers": [
                        {
                            "name": "job",
                            "image": plan.image,
                            "command": list(ticket.command),
                            "env": [{"name": "PYTHONPATH", "value": str(code)}],
                            "resources": {"limits": counted},
                            "volumeMounts": [
                                {"name": f"v{i}", "mountPath": str(path), "readOnly": fixed}
                                for i, (path, fixed) in enumerate(paths.items())
                            ],
                        }
                    ],
                    "volumes": [{"name": f"v{i}", "hostPath": {"path": str(path)}} for i, path in enumerate(paths)],
                },
            },
        },
    }


def _only_on(node: str) -> Mapping[str, object]:
    field = {"key": "metadata.name", "operator": "In", "values": [node]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
