"""Kubernetes' gate of this node: a taint of ours and a cordon, and, if wanted, the eviction of others' pods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kubernetes_asyncio.client import CoreV1Api

from failover.executors.kubernetes import OURS
from failover.executors.kubernetes_api import ApiAway, ApiRefusal, Json, KubernetesApi, name_of, part
from gridkeeper.ports.gate import GateError

CLOSED = "gridkeeper.io/closed"
"""Key of our taint, and of the annotation that says why."""
CORDONED = "gridkeeper.io/cordoned"
"""Annotation: the cordon is ours. Without it, it is somebody else's, and stays."""
TRIES = 6
MAX_REASON = 300
MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class NodeView:
    """``reason``: of our taint, "" without it. ``cordoned``: by anybody; ``ours``: by us."""

    version: str
    taints: tuple[Json, ...]
    tainted: bool
    reason: str
    cordoned: bool
    ours: bool


def node_view(node: Json) -> NodeView:
    marks = part(node, "metadata", "annotations")
    taints = tuple(taint for taint in part(node, "spec").get("taints") or () if isinstance(taint, dict))
    return NodeView(
        version=str(part(node, "metadata").get("resourceVersion", "")),
        taints=tuple(taint for taint in taints if taint.get("key") != CLOSED),
        tainted=any(taint.get("key") == CLOSED for taint in taints),
        reason=str(marks.get(CLOSED, "")),
        cordoned=bool(part(node, "spec").get("unschedulable")),
        ours=CORDONED in marks,
    )


def closing(view: NodeView, reason: str) -> dict[str, object] | None:
    """The merge patch that closes it; None: it is closed, for this reason. A cordon that is there stays whose it is."""
    if view.tainted and view.cordoned and view.reason == reason:
        return None
    ours = view.ours or not view.cordoned
    marks = {CLOSED: reason, **({CORDONED: "true"} if ours else {})}
    taints = [*view.taints, {"key": CLOSED, "effect": "NoSchedule"}]
    return _patch(view, marks, {"taints": taints, "unschedulable": True})


def opening(view: NodeView) -> dict[str, object] | None:
    """The merge patch that takes back what is ours; None: nothing is."""
    if not view.tainted and not view.ours and not view.reason:
        return None
    spec: dict[str, object] = {"taints": list(view.taints) or None}
    if view.ours:
        spec["unschedulable"] = None
    return _patch(view, {CLOSED: None, CORDONED: None}, spec)


def _patch(view: NodeView, marks: dict[str, str] | dict[str, None], spec: dict[str, object]) -> dict[str, object]:
    return {"metadata": {"resourceVersion": view.version, "annotations": marks}, "spec": spec}


class KubernetesGate:
    """``evict``: pods of others are evicted when the node is closed, as far as their PodDisruptionBudgets allow: what
    may not go now is tried again at each look."""

    title = "Kubernetes"

    def __init__(self, api: KubernetesApi, node: str, evict: bool = False) -> None:
        self._api = api
        self._node = node
        self._evict = evict
        self._told: dict[str, str] = {}  # pod -> why it is still there

    async def close(self, reason: str) -> str:
        words = reason[:MAX_REASON]
        done = (
            [f"node {self._node} is closed in Kubernetes: {words}"]
            if await self._change(lambda view: closing(view, words))
            else []
        )
        if self._evict:
            done += await self._evicted()
        return "; ".join(done)

    async def open(self) -> str:
        self._told.clear()
        return f"node {self._node} takes pods again" if await self._change(opening) else ""

    async def _change(self, decide: Callable[[NodeView], dict[str, object] | None]) -> bool:
        """Whether anything was to be changed. Decided again on what is there now, if somebody else was faster."""
        for left in reversed(range(TRIES)):
            try:
                core = CoreV1Api(await self._api.client())
                patch = decide(node_view(await self._api.ask(core.read_node, self._node)))
                if patch is None:
                    return False
                await self._api.ask(core.patch_node, self._node, patch, _content_type=MERGE)
                return True
            except ApiRefusal as refusal:
                if refusal.status != 409 or not left:
                    raise GateError(f"node {self._node}: {refusal}") from refusal
            except ApiAway as away:
                raise GateError(f"node {self._node}: {away}") from away
        raise AssertionError("the last turn returns or raises")

    async def _evicted(self) -> list[str]:
        """What was evicted, and each pod that stays, told when that, or its reason, is new."""
        done: list[str] = []
        still: dict[str, str] = {}
        try:
            core = CoreV1Api(await self._api.client())
            selector = f"spec.nodeName={self._node}"
            pods = await self._api.items(core.list_pod_for_all_namespaces, field_selector=selector)
            for pod in (pod for pod in pods if _to_go(pod)):
                where = str(part(pod, "metadata").get("namespace", ""))
                who = f"{where}/{name_of(pod)}"
                try:
                    await self._api.ask(core.create_namespaced_pod_eviction, name_of(pod), where, _eviction(pod))
                    done.append(f"pod {who} is evicted")
                except ApiRefusal as refusal:
                    if refusal.status in (404, 409):
                        continue  # it has gone, or another one of its name has come: the next look sees
                    kept = "its disruption budget" if refusal.budget else "the server"
                    still[who] = f"pod {who} stays, {kept} does not let it go now ({refusal})"
        except (ApiAway, ApiRefusal) as error:
            raise GateError(f"evicting from node {self._node}: {error}") from error
        done += [why for who, why in still.items() if self._told.get(who) != why]
        self._told = still
        return done


def _to_go(pod: Json) -> bool:
    """Not: what runs on each node, what the kubelet itself runs, what has ended or is ending, and our own jobs."""
    meta = part(pod, "metadata")
    owners = meta.get("ownerReferences") or ()
    if any(owner.get("kind") == "DaemonSet" and owner.get("controller") for owner in owners):
        return False
    if "kubernetes.io/config.mirror" in part(meta, "annotations") or meta.get("deletionTimestamp"):
        return False
    if OURS.items() <= part(meta, "labels").items():
        return False
    return part(pod, "status").get("phase") not in ("Succeeded", "Failed")


def _eviction(pod: Json) -> dict[str, object]:
    """Of this very pod, not of a later one of its name."""
    meta = part(pod, "metadata")
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": meta.get("name"), "namespace": meta.get("namespace")},
        "deleteOptions": {"preconditions": {"uid": meta.get("uid")}},
    }
