"""Jobs and nodes in Kubernetes, over HTTP: conflicts, throttling, lost replies, listings that expire, budgets."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from failover.executors.batch import BatchUnavailable, Standing
from failover.executors.kubernetes import OURS, Kubernetes, PodPlan, standing
from failover.executors.kubernetes_gate import KubernetesGate
from failover.executors.queued import QueuedExecutor
from gridkeeper.clock import SystemClock
from gridkeeper.ids import DeviceId, Epoch, JobId
from gridkeeper.ports.gate import GateError
from gridkeeper.ports.jobs import ExecutorError, ExecutorWaiting, Launch, Process
from gridkeeper.records.jobs import JobSpec
from tests.fixtures.kubernetes import JOBS, NAMESPACE, NODE, Cluster, Fault, Served, kubernetes, refusal
from tests.integration.waiting import until

JOB = JobId("train")
FIRST = Epoch(1, 1)
WORK = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nos.rename('pid', 'seen')\ntime.sleep(600)\n"
NODES = f"/nodes/{NODE}"


def launch(epoch: Epoch = FIRST) -> Launch:
    spec = JobSpec(JOB, "default", (sys.executable, "-c", WORK), (), "", 1, "", (), False, False, 1_000, 0)
    return Launch(JOB, epoch, spec, (DeviceId("east-1/gpu0"), DeviceId("east-1/gpu1")), "", -1)


class Bench:
    def __init__(self, served: Served, directory: Path) -> None:
        self.served = served
        self.cluster: Cluster = served.cluster
        self.directory = directory
        self.clock = SystemClock()
        self.executor: QueuedExecutor = served.executor(directory, self.clock)
        self.gate = KubernetesGate(served.api, NODE)

    async def ask(self, epoch: Epoch = FIRST) -> str:
        """Why it has to wait; "": it has begun."""
        try:
            await self.executor.start(launch(epoch), self.clock.mono_ms() + 60_000)
        except ExecutorWaiting as waiting:
            return str(waiting)
        return ""

    async def begin(self, epoch: Epoch = FIRST) -> int:
        """The job runs: its pid."""

        async def begun() -> bool:
            return not await self.ask(epoch)

        seen = self.directory / "jobs" / JOB / str(epoch) / "work" / "seen"

        async def there() -> bool:
            return seen.exists()

        await until(begun, "room for it")
        await until(there, "the job runs")
        return int(seen.read_text())

    async def gone(self) -> Process:
        async def look() -> Process | None:
            (process,) = await self.executor.list()
            return process if process.tree_gone else None

        found = await until(look, "its whole tree is gone")
        assert found is not None
        return found


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with kubernetes(SystemClock()) as served:
        made = Bench(served, tmp_path)
        yield made
        made.executor.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def test_a_job_is_one_pod_pinned_to_its_node_and_never_started_again(bench: Bench) -> None:
    await bench.begin()
    (job,) = bench.cluster.jobs.values()
    pod = job["spec"]["template"]["spec"]
    assert (job["spec"]["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchFields"][0]["values"] == [NODE]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert pod["securityContext"]["runAsUser"] == os.getuid()
    assert not pod["automountServiceAccountToken"], "a job gets no right that its owner has not"
    assert not pod["hostNetwork"], "only a gang needs it"
    await bench.executor.stop(JOB, FIRST, 5_000)
    assert (await bench.gone()).exit_signal == signal.SIGTERM


@pytest.mark.parametrize("status", [500, 503, 504, 429])
async def test_a_creation_whose_reply_was_lost_is_found_again(bench: Bench, status: int) -> None:
    """Protects: no second Job for one start."""
    bench.cluster.faults.append(Fault("POST", "/jobs", status, {"Retry-After": "1"}, obeyed=True))
    await bench.begin()
    assert bench.cluster.calls.count(f"POST {JOBS}") == 1


async def test_a_job_that_is_there_already_is_taken_for_ours(bench: Bench) -> None:
    """A reply may be lost, and the listing that should show the Job may be older than it."""
    fault = Fault("POST", "/jobs", 409, {}, refusal(409, "already exists"), obeyed=True)
    bench.cluster.faults.append(fault)
    await bench.begin()


async def test_a_refusal_ends_the_start_in_the_servers_words(bench: Bench) -> None:
    bench.cluster.faults.append(Fault("POST", "/jobs", 403, {}, refusal(403, "exceeded quota: gpus")))

    async def refused() -> bool:
        try:
            await bench.ask()
        except ExecutorError as error:
            return "exceeded quota: gpus" in str(error)
        return False

    await until(refused, "the refusal")


async def test_an_agent_without_the_right_to_look_waits_and_says_so(bench: Bench) -> None:
    """Protects: a refusal to tell where tickets stand is no end of any of them, and none of the agent."""
    bench.cluster.faults.extend(Fault("GET", "/pods", 403, {}, refusal(403, "cannot list pods")) for _ in range(200))

    async def told() -> bool:
        return "cannot be asked: list jobs and pods: 403: cannot list pods" in await bench.ask()

    await until(told, "the refusal")
    assert await bench.executor.list() == ()
    bench.cluster.faults.clear()


async def test_a_server_that_asks_for_a_pause_gets_it(bench: Bench) -> None:
    """Protects: 429 with Retry-After holds up every call; nothing is concluded meanwhile."""
    system = Kubernetes(bench.served.api, PodPlan(NODE, NAMESPACE, "i", "", ()))
    bench.cluster.faults.append(Fault("GET", "/jobs", 429, {"Retry-After": "1"}, refusal(429, "too many requests")))
    with pytest.raises(BatchUnavailable, match="429: too many requests"):
        await system.find(["a"])
    calls = len(bench.cluster.calls)
    with pytest.raises(BatchUnavailable, match="has asked for a pause"):
        await system.cancel("a")
    assert len(bench.cluster.calls) == calls

    async def answered() -> bool:
        try:
            return await system.find(["a"]) == {}
        except BatchUnavailable:
            return False

    await until(answered, "an answer after the pause")


async def test_a_listing_that_expires_is_read_anew_and_whole(bench: Bench) -> None:
    """Protects: 410 in the middle of a listing loses no Job: one that were missed would count as ended."""
    system = Kubernetes(bench.served.api, PodPlan(NODE, NAMESPACE, "i", "", ()))
    bench.cluster.node["spec"]["unschedulable"] = True
    await bench.ask()

    async def created() -> bool:
        return bool(bench.cluster.jobs)

    await until(created, "the first Job")
    (job,) = bench.cluster.jobs.values()
    names = []
    for number in range(5):
        meta = {**job["metadata"], "name": f"j{number}", "annotations": {"gridkeeper.io/ticket": f"t{number}"}}
        bench.cluster.jobs[f"j{number}"] = {**job, "metadata": meta}
        names.append(f"t{number}")
    bench.cluster.page, bench.cluster.pages_expire = 2, 2
    assert sorted(await system.find(names)) == names
    bench.cluster.pages_expire = 9
    with pytest.raises(Exception, match="410") as caught:
        await system.find(names)
    assert caught.type.__name__ == "BatchError"


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"[]", b"\xff", b"{" * 5_000])
async def test_an_answer_that_is_none_concludes_nothing(bench: Bench, body: bytes) -> None:
    system = Kubernetes(bench.served.api, PodPlan(NODE, NAMESPACE, "i", "", ()))
    bench.cluster.faults.append(Fault("GET", "/jobs", 200, raw=body))
    with pytest.raises(BatchUnavailable):
        await system.find(["a"])


async def test_a_closed_node_makes_it_wait_and_says_why(bench: Bench) -> None:
    await bench.gate.close("gpu3 is draining")

    async def told() -> bool:
        return "unschedulable" in await bench.ask()

    await until(told, "the reason")
    assert await bench.executor.list() == ()
    await bench.gate.open()
    await bench.begin()


async def test_who_does_not_ask_again_gives_up_its_place(bench: Bench) -> None:
    bench.cluster.node["spec"]["unschedulable"] = True

    async def queued() -> bool:
        return bool(await bench.ask() and bench.cluster.jobs)

    async def empty() -> bool:
        await bench.executor.list()
        return not bench.cluster.jobs

    await until(queued, "its Job is there")
    await until(empty, "its Job is deleted")
    del bench.cluster.node["spec"]["unschedulable"]
    await bench.begin()


async def test_a_pod_that_is_killed_takes_its_job_along(bench: Bench) -> None:
    """Protects: the stop is confirmed once nothing is left, and the next epoch may start."""
    pid = await bench.begin()
    bench.cluster.kill_pods()
    ended = await bench.gone()
    assert not ended.alive
    assert not alive(pid)
    await bench.begin(Epoch(1, 2))


async def test_a_server_that_is_away_stops_no_job_and_no_stop(bench: Bench) -> None:
    await bench.begin()
    bench.cluster.faults.extend(Fault("GET", "", 503) for _ in range(1_000))
    await bench.executor.extend({(JOB, FIRST): bench.clock.mono_ms() + 90_000})
    await bench.executor.stop(JOB, FIRST, 5_000)
    await bench.gone()

    async def waits() -> bool:
        return "cannot be asked" in await bench.ask(Epoch(1, 2))

    await until(waits, "it says that Kubernetes cannot be asked")


def test_only_a_pod_that_is_known_to_have_ended_counts_as_ended() -> None:
    def pod(phase: str) -> dict[str, object]:
        return {"metadata": {"name": "p"}, "status": {"phase": phase}}

    failed = {"metadata": {"name": "j"}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    fresh: dict[str, object] = {"metadata": {"name": "j"}, "status": {}}
    deleted = {"metadata": {"name": "j", "deletionTimestamp": "t"}}
    assert standing(failed, [pod("Failed")]).standing is Standing.ENDED
    assert standing(failed, [pod("Unknown")]).standing is Standing.RUNNING
    assert standing(fresh, [pod("Unknown")]).standing is Standing.RUNNING
    assert standing(fresh, [pod("Pending")]).standing is Standing.WAITING
    assert standing(fresh, []).standing is Standing.WAITING
    assert standing(deleted, []).standing is Standing.RUNNING


# The gate


async def test_a_node_is_closed_and_opened_beside_what_others_write(bench: Bench) -> None:
    """Protects: their taints stay, their cordon stays, and a conflict is decided again on what is there then."""
    node = bench.cluster.node
    node["spec"]["taints"] = [{"key": "dedicated", "value": "gpu", "effect": "NoExecute"}]
    node["metadata"]["annotations"]["theirs"] = "1"
    bench.cluster.faults.extend(Fault("PATCH", NODES, 409, {}, refusal(409, "modified")) for _ in range(3))
    assert "is closed in Kubernetes: gpu3 is draining" in await bench.gate.close("gpu3 is draining")
    assert await bench.gate.close("gpu3 is draining") == ""
    spec = bench.cluster.node["spec"]
    assert [taint["key"] for taint in spec["taints"]] == ["dedicated", "gridkeeper.io/closed"]
    assert spec["unschedulable"]
    await bench.gate.close("gpu3 is drained")
    marks = bench.cluster.node["metadata"]["annotations"]
    assert marks == {"theirs": "1", "gridkeeper.io/closed": "gpu3 is drained", "gridkeeper.io/cordoned": "true"}
    assert "takes pods again" in await bench.gate.open()
    spec, marks = bench.cluster.node["spec"], bench.cluster.node["metadata"]["annotations"]
    assert ([taint["key"] for taint in spec["taints"]], marks) == (["dedicated"], {"theirs": "1"})
    assert "unschedulable" not in spec
    assert await bench.gate.open() == ""


async def test_a_cordon_of_somebody_else_stays_his(bench: Bench) -> None:
    bench.cluster.node["spec"]["unschedulable"] = True
    await bench.gate.close("gpu3 is draining")
    await bench.gate.open()
    spec = bench.cluster.node["spec"]
    assert spec == {"unschedulable": True}


async def test_a_lost_reply_to_a_patch_is_no_second_owner(bench: Bench) -> None:
    """Protects: our cordon is not taken for somebody else's when its reply was lost."""
    bench.cluster.faults.append(Fault("PATCH", NODES, 504, {"Retry-After": "0"}, obeyed=True))
    with pytest.raises(GateError, match="504"):
        await bench.gate.close("gpu3 is draining")
    await bench.gate.close("gpu3 is drained")
    await bench.gate.open()
    assert bench.cluster.node["spec"] == {}


async def test_somebody_who_always_writes_first_is_told_not_fought(bench: Bench) -> None:
    bench.cluster.faults.extend(Fault("PATCH", NODES, 409, {}, refusal(409, "modified")) for _ in range(50))
    with pytest.raises(GateError, match="409: modified"):
        await bench.gate.close("gpu3 is draining")
    assert bench.cluster.calls.count(f"PATCH /api/v1{NODES}") == 6


async def test_pods_of_others_are_evicted_as_their_budgets_allow(bench: Bench) -> None:
    """Protects: what runs on each node and our own jobs stay; who may not go now is asked again and told once."""
    gate = KubernetesGate(bench.served.api, NODE, evict=True)
    bench.cluster.add_pod("free")
    bench.cluster.add_pod("held")
    bench.cluster.add_pod("agent", ownerReferences=[{"kind": "DaemonSet", "controller": True}])
    bench.cluster.add_pod("static", annotations={"kubernetes.io/config.mirror": "x"})
    bench.cluster.add_pod("ours", labels=dict(OURS))
    bench.cluster.add_pod("leaving", deletionTimestamp="now")
    bench.cluster.budget.add("held")
    told = await gate.close("gpu3 is draining")
    assert "pod web/free is evicted" in told
    assert "pod web/held stays, its disruption budget does not let it go now" in told
    assert await gate.close("gpu3 is draining") == "", "told once"
    bench.cluster.budget.clear()
    assert await gate.close("gpu3 is draining") == "pod web/held is evicted"
    assert {name for _, name in bench.cluster.pods} == {"agent", "static", "ours", "leaving"}


async def test_a_throttled_eviction_ends_the_round(bench: Bench) -> None:
    gate = KubernetesGate(bench.served.api, NODE, evict=True)
    bench.cluster.add_pod("a")
    bench.cluster.faults.append(Fault("POST", "/eviction", 429, {"Retry-After": "30"}, refusal(429, "slow down")))
    with pytest.raises(GateError, match="slow down"):
        await gate.close("gpu3 is draining")
    with pytest.raises(GateError, match="asked for a pause"):
        await gate.close("gpu3 is draining")
    assert bench.cluster.calls.count("POST /api/v1/namespaces/web/pods/a/eviction") == 1
