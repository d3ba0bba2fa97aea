"""The whole agent on simulated ports: one owner, nothing lost, whatever restarts."""

from __future__ import annotations

from chaos.simulate.executor import SimJob, loss_of, state_after
from gridkeeper.ids import Epoch
from gridkeeper.timings import SHORT
from gridkeeper.v1 import records_pb2
from tests.unit.agentbench import JOB, Bench, on_bench


async def connected(bench: Bench) -> None:
    await bench.until(lambda: bench.a.session, "the agent is connected")


async def running(bench: Bench, number: int = 1, **changes: object) -> None:
    await connected(bench)
    await bench.a.command(number, **changes)  # type: ignore[arg-type]
    await bench.until(lambda: bench.phase(number) == "RUNNING", f"epoch {number} runs")


@on_bench
async def test_a_start_waits_for_its_first_acknowledged_renewal(bench: Bench) -> None:
    """Ordered is not allowed: without an acknowledged renewal the process does not exist."""
    bench.a.grants = False
    bench.start_agent()
    await connected(bench)
    await bench.a.command(1)
    await bench.until(lambda: bench.phase(1) == "STARTING", "the order is reported")
    await bench.until(lambda: any(r.jobs for r in bench.a.renewals), "a renewal asks for it")
    await bench.clock.sleep(3 * SHORT.fence_ms)
    assert await bench.process(1) is None
    bench.a.grants = True
    await bench.until(lambda: bench.phase(1) == "RUNNING", "it runs once it is acknowledged")


@on_bench
async def test_without_renewals_a_job_is_fenced_before_F(bench: Bench) -> None:
    """F counts from the send of the last renewal that was acknowledged, not from its acknowledgement."""
    bench.start_agent()
    await running(bench)
    bench.a.grants = False
    refused_at = bench.clock.mono_ms()
    await bench.until(lambda: bench.phase(1) == "EXITED", "it is fenced")
    process = await bench.process(1)
    assert process is not None
    assert process.fenced
    assert process.ended_ms <= refused_at + SHORT.fence_ms
    workload = bench.workload(1)
    assert workload is not None
    assert workload.stopped_by_us
    assert workload.stop_confirmed


@on_bench
async def test_an_agent_killed_and_restarted_adopts_its_job_and_kills_none(bench: Bench) -> None:
    bench.start_agent()
    await running(bench)
    before = await bench.process(1)
    await bench.kill_agent()
    await bench.clock.sleep(SHORT.fence_ms // 4)
    bench.a.workloads.clear()
    bench.start_agent()
    await bench.until(lambda: bench.phase(1) == "RUNNING", "the new agent reports it")
    await bench.clock.sleep(3 * SHORT.fence_ms)
    after = await bench.process(1)
    assert before is not None
    assert after is not None
    assert (after.alive, after.pids) == (True, before.pids)


@on_bench
async def test_a_stopped_jobs_last_checkpoint_is_announced_before_its_end_is_final(bench: Bench) -> None:
    """``storing_checkpoint`` stays true until the last checkpoint is acknowledged."""
    bench.a.acks_checkpoints = False
    bench.start_agent()
    await running(bench)
    await bench.clock.sleep(1_000)
    await bench.a.command(1, run=False)
    await bench.until(lambda: bench.phase(1) == "EXITED", "it has ended")
    ended = await bench.process(1)
    assert ended is not None
    assert (ended.exit_code, ended.stop_asked) == (0, True)
    await bench.clock.sleep(3_000)
    workload = bench.workload(1)
    assert workload is not None
    assert workload.stop_confirmed
    assert workload.storing_checkpoint
    assert bench.a.ready[-1].step == ended.progress.last_step
    assert len([r for r in bench.a.ready if r.step == ended.progress.last_step]) >= 2, "repeated until acknowledged"
    bench.a.acks_checkpoints = True
    await bench.until(lambda: not bench.workload(1).storing_checkpoint, "it is acknowledged")  # type: ignore[union-attr]
    assert bench.workload(1).checkpoint_step == ended.progress.last_step  # type: ignore[union-attr]
    manifest = await bench.store.verify(JOB, bench.a.ready[-1].step, bench.a.ready[-1].digest)
    assert manifest.epoch == Epoch(1, 1)
    await bench.a.command(1, run=False, forget=True)
    await bench.until(lambda: bench.workload(1) is None, "it is forgotten")
    assert await bench.process(1) is None


@on_bench
async def test_a_checkpoint_that_the_control_plane_cannot_verify_is_stored_again(bench: Bench) -> None:
    """The object store lost a chunk after it took it: the host still has the directory, so nothing is lost yet."""
    bench.a.verifies = lambda ready: all(bench.store.chunks.values())
    bench.start_agent()
    await running(bench)
    bench.a.acks_checkpoints = False
    await bench.clock.sleep(1_000)
    await bench.a.command(1, run=False)
    await bench.until(lambda: bench.phase(1) == "EXITED" and bench.a.ready, "it has ended")
    await bench.clock.sleep(2_000)
    last = bench.a.ready[-1]
    manifest = await bench.store.verify(JOB, last.step, last.digest)
    for chunk in (chunk for file in manifest.files for chunk in file.chunks):
        bench.store.chunks[chunk] = b""
    bench.a.acks_checkpoints = True
    await bench.until(lambda: not bench.workload(1).storing_checkpoint, "it is acknowledged")  # type: ignore[union-attr]
    assert (await bench.store.verify(JOB, last.step, last.digest)).epoch == Epoch(1, 1)
    assert bench.workload(1).checkpoint_step == last.step  # type: ignore[union-attr]
    assert not bench.workload(1).reason.count("verified")  # type: ignore[union-attr]


@on_bench
async def test_a_checkpoint_that_is_never_verified_is_given_up_and_the_report_says_so(bench: Bench) -> None:
    """The end of a job must not wait for ever for an object store."""
    bench.a.verifies = lambda ready: False
    bench.start_agent()
    await running(bench)
    await bench.until(lambda: bench.a.ready, "a checkpoint")
    await bench.a.command(1, run=False)
    await bench.until(lambda: bench.phase(1) == "EXITED", "it has ended")
    assert bench.workload(1).storing_checkpoint  # type: ignore[union-attr]
    await bench.until(lambda: not bench.workload(1).storing_checkpoint, "it is given up", 90_000)  # type: ignore[union-attr]
    assert "could not be stored: checkpoint" in bench.workload(1).reason  # type: ignore[union-attr]
    assert "a chunk is missing" in bench.workload(1).reason  # type: ignore[union-attr]


@on_bench
async def test_a_resumed_job_goes_on_after_its_checkpoint_and_ends_as_if_undisturbed(bench: Bench) -> None:
    bench.job = SimJob(step_ms=50, steps=60)
    bench.start_agent()
    await running(bench)
    await bench.until(lambda: bench.a.ready, "a checkpoint")
    await bench.a.command(1, run=False)
    await bench.until(lambda: bench.phase(1) == "EXITED" and not bench.workload(1).storing_checkpoint, "it stopped")  # type: ignore[union-attr]
    head = bench.a.ready[-1]
    await bench.a.command(2, resume=(head.step, head.digest))
    await bench.until(lambda: bench.phase(2) == "EXITED", "the second epoch ran to its end")
    workload = bench.workload(2)
    assert workload is not None
    assert (workload.exit_code, workload.resumed_step, workload.first_step) == (0, head.step, head.step + 1)
    steps = [step.step for step in bench.executor.history]
    assert steps == list(range(60)), "no step twice, none left out"
    assert workload.last_loss == loss_of(state_after(JOB, 59))


@on_bench
async def test_a_higher_epoch_waits_until_the_lower_ones_tree_is_gone(bench: Bench) -> None:
    bench.job = SimJob(step_ms=50, linger_ms=2_000)
    bench.start_agent()
    await running(bench)
    await bench.until(lambda: bench.executor.history, "the first step")
    await bench.a.command(2)
    await bench.until(lambda: bench.phase(2) == "RUNNING", "the higher epoch runs")
    old, new = await bench.process(1), await bench.process(2)
    assert old is not None
    assert new is not None
    assert old.tree_gone
    assert new.started_ms >= old.ended_ms + 2_000
    await bench.until(lambda: bench.executor.history[-1].epoch == Epoch(1, 2), "it makes steps")
    last_old = max(s.at_ms for s in bench.executor.history if s.epoch == Epoch(1, 1))
    first_new = min(s.at_ms for s in bench.executor.history if s.epoch == Epoch(1, 2))
    assert last_old < first_new


@on_bench
async def test_lower_epochs_and_lower_terms_are_refused_also_after_a_restart(bench: Bench) -> None:
    bench.start_agent()
    await running(bench, 5, term=9)
    await bench.a.command(4, term=9)
    await bench.a.command(5, run=False, term=8)
    await bench.clock.sleep(2_000)
    await bench.kill_agent()
    bench.start_agent()
    await connected(bench)
    await bench.a.command(4, term=9)
    await bench.a.command(5, run=False, term=8)
    await bench.clock.sleep(2_000)
    assert await bench.process(4) is None
    process = await bench.process(5)
    assert process is not None
    assert process.alive, "an old leader's stop is not obeyed"


@on_bench
async def test_a_stop_before_the_start_is_final(bench: Bench) -> None:
    """Stopped before it started: reported as ended, and never started by a late or repeated order."""
    bench.a.grants = False
    bench.start_agent()
    await connected(bench)
    await bench.a.command(1)
    await bench.until(lambda: bench.phase(1) == "STARTING", "ordered")
    await bench.a.command(1, run=False)
    await bench.until(lambda: bench.phase(1) == "EXITED", "over before it began")
    workload = bench.workload(1)
    assert workload is not None
    assert (workload.stop_confirmed, workload.stopped_by_us) == (True, True)
    bench.a.grants = True
    await bench.a.command(1)
    await bench.a.command(1, run=False, forget=True)
    await bench.until(lambda: bench.workload(1) is None, "forgotten")
    await bench.a.command(1)
    await bench.clock.sleep(3_000)
    assert await bench.process(1) is None


@on_bench
async def test_a_start_that_waits_for_room_is_starting_renewed_and_says_so(bench: Bench) -> None:
    """A batch system that has no room yet: nothing runs, the ownership is kept, and the job begins once there is."""
    bench.job = SimJob(step_ms=50, queue_ms=3 * SHORT.fence_ms)
    bench.start_agent()
    await connected(bench)
    await bench.a.command(1)
    await bench.until(lambda: bench.phase(1) == "STARTING", "it waits")
    await bench.clock.sleep(2 * SHORT.fence_ms)
    workload = bench.workload(1)
    assert workload is not None
    assert (bench.phase(1), workload.reason) == ("STARTING", "there is no room on east-1 yet")
    assert bench.a.renewals[-1].jobs, "it keeps its ownership"
    assert await bench.process(1) is None
    await bench.until(lambda: bench.phase(1) == "RUNNING", "it runs")
    workload = bench.workload(1)
    assert workload is not None and not workload.reason


@on_bench
async def test_what_is_stopped_while_it_waits_for_room_never_begins(bench: Bench) -> None:
    """The batch system's room may come at any time after the stop was reported as confirmed."""
    bench.job = SimJob(step_ms=50, queue_ms=SHORT.fence_ms)
    bench.start_agent()
    await connected(bench)
    await bench.a.command(1)
    await bench.until(lambda: bench.phase(1) == "STARTING", "it waits")
    await bench.a.command(1, run=False)
    await bench.until(lambda: bench.phase(1) == "EXITED", "over before it began")
    workload = bench.workload(1)
    assert workload is not None
    assert (workload.stop_confirmed, workload.stopped_by_us) == (True, True)
    await bench.a.command(1)
    await bench.clock.sleep(3 * SHORT.fence_ms)
    assert await bench.process(1) is None


@on_bench
async def test_an_order_that_cannot_be_kept_on_disk_starts_nothing(bench: Bench) -> None:
    bench.start_agent()
    await connected(bench)
    bench.states["orders"].unwritable = True
    await bench.a.command(1)
    await bench.clock.sleep(3_000)
    assert await bench.process(1) is None
    bench.states["orders"].unwritable = False
    await bench.until(lambda: bench.phase(1) == "RUNNING", "it runs once the order is kept")


@on_bench
async def test_a_resume_checkpoint_that_cannot_be_had_ends_the_epoch_with_its_reason(bench: Bench) -> None:
    bench.start_agent()
    await connected(bench)
    await bench.a.command(1, resume=(10, "ab" * 32))
    await bench.until(lambda: bench.phase(1) == "EXITED", "given up", 120_000)
    workload = bench.workload(1)
    assert workload is not None
    assert "checkpoint 10 to resume from" in workload.reason
    assert await bench.process(1) is None


@on_bench
async def test_checkpoint_requests_reach_the_job_after_its_first_step(bench: Bench) -> None:
    bench.job = SimJob(step_ms=50, checkpoint_every=1_000_000)
    bench.start_agent()
    await running(bench, request=1)
    await bench.until(lambda: bench.a.ready, "the checkpoint asked for is announced")
    assert bench.workload(1).checkpoint_request == 1  # type: ignore[union-attr]
    assert bench.a.ready[-1].step >= 0


@on_bench
async def test_only_the_last_two_checkpoints_stay_on_the_host(bench: Bench) -> None:
    bench.start_agent()
    await running(bench)
    await bench.until(lambda: len({r.step for r in bench.a.ready}) >= 4, "four checkpoints")
    assert len(bench.files.steps(bench.executor.checkpoint_dir(JOB, Epoch(1, 1)))) <= 3


@on_bench
async def test_events_reach_another_replica_when_theirs_dies_none_lost_none_doubled(bench: Bench) -> None:
    bench.servers = ("a", "b")
    bench.start_agent()
    await bench.until(lambda: bench.a.session or bench.b.session, "connected")
    held, other = (bench.a, bench.b) if bench.a.session else (bench.b, bench.a)
    bench.backend.xid("gpu0", 48)
    await bench.until(lambda: held.events, "the first event is durable")
    held.acks_events = False
    bench.backend.xid("gpu0", 94)
    await bench.until(lambda: held.order_of_frames.count("events") >= 2, "the second was sent, not acknowledged")
    bench.network.silence(held.name)
    await bench.until(lambda: len(other.events) == 2, "the other replica has both")
    assert [(e.code, e.count) for e in other.events] == [(48, 1), (94, 1)]
    assert other.hellos[-1].spool == held.hellos[-1].spool
    assert all(len(e.trace) == 55 for e in other.events)


@on_bench
async def test_events_survive_the_agent_and_name_the_job_on_the_device(bench: Bench) -> None:
    bench.start_agent()
    await running(bench)
    bench.a.acks_events = False
    bench.backend.xid("gpu0", 48)
    await bench.until(lambda: "events" in bench.a.order_of_frames, "it was sent")
    await bench.kill_agent()
    bench.a.acks_events = True
    await bench.clock.sleep(2_000)
    bench.start_agent()
    await bench.until(lambda: bench.a.events, "the next agent sends it again")
    (event,) = bench.a.events
    assert (event.code, event.job, event.kind) == (48, JOB, records_pb2.EVENT_KIND_XID)
    assert event.age_ms >= 2_000


@on_bench
async def test_a_silent_server_is_left(bench: Bench) -> None:
    """A stream that takes everything and says nothing is no stream."""
    bench.servers = ("a", "b")
    bench.start_agent()
    await bench.until(lambda: bench.a.session or bench.b.session, "connected")
    held, other = (bench.a, bench.b) if bench.a.session else (bench.b, bench.a)
    held.mute = True
    await bench.until(lambda: other.session, "the agent went to the other replica", 10_000)


@on_bench
async def test_a_refusal_is_not_tried_again_at_once(bench: Bench) -> None:
    bench.a.refusal = "hello.node: not yours"
    agent = bench.start_agent()
    await bench.clock.sleep(60_000)
    assert agent.uplink is not None
    assert 10 <= agent.uplink.counters.reconnects <= 30


@on_bench
async def test_a_reboot_is_told_once(bench: Bench) -> None:
    bench.start_agent()
    await connected(bench)
    await bench.clock.sleep(1_000)
    assert not bench.a.events, "the first boot ever seen is no news"
    for _ in range(2):
        await bench.kill_agent()
        bench.boot_id = "boot-2"
        bench.start_agent()
        await bench.until(lambda: bench.a.session, "connected again")
        await bench.clock.sleep(1_000)
    (event,) = bench.a.events
    assert event.kind == records_pb2.EVENT_KIND_BOOT


@on_bench
async def test_telemetry_has_the_rows_of_the_hello(bench: Bench) -> None:
    bench.start_agent()
    await bench.until(lambda: len(bench.a.telemetry) >= 3, "telemetry comes")
    assert bench.a.telemetry[-1].rows == len(bench.a.hellos[-1].devices) > 0
    assert bench.a.telemetry[-1].age_ms < 2 * SHORT.telemetry_ms


@on_bench
async def test_log_requests_are_answered_with_text_or_a_reason(bench: Bench) -> None:
    bench.start_agent()
    await running(bench)
    from gridkeeper.v1.agent_pb2 import ControlFrame, LogRequest

    assert bench.a.session is not None
    await bench.a.session.send(ControlFrame(log_request=LogRequest(id=1, job=JOB, tail_bytes=100)))
    await bench.a.session.send(ControlFrame(log_request=LogRequest(id=2, job="other", tail_bytes=100)))
    await bench.until(lambda: len(bench.a.logs) == 2, "both are answered")
    answers = {chunk.id: chunk for chunk in bench.a.logs}
    assert answers[1].text.startswith(b"step")
    assert "other" in answers[2].error


@on_bench
async def test_a_job_that_one_replica_does_not_renew_is_renewed_by_the_other(bench: Bench) -> None:
    """A replica that answers but is cut off from the global store must not cost its agents their jobs."""
    bench.servers = ("a", "b")
    bench.start_agent()
    await bench.until(lambda: bench.a.session or bench.b.session, "connected")
    blind, other = (bench.a, bench.b) if bench.a.session else (bench.b, bench.a)
    await blind.command(1)
    await bench.until(lambda: (w := bench.workload(1, blind)) and w.first_step >= 0, "it runs")
    blind.grants = False
    await bench.until(lambda: other.renewals, "the agent turns to the other replica", SHORT.fence_ms)
    await bench.clock.sleep(3 * SHORT.fence_ms)
    process = await bench.process(1)
    assert process is not None
    assert (process.alive, process.fenced) == (True, False)


@on_bench
async def test_an_end_that_one_replica_does_not_record_is_told_to_the_other(bench: Bench) -> None:
    """Else the job could not be moved for as long as that replica is cut off from the global store."""
    bench.servers = ("a", "b")
    bench.start_agent()
    await bench.until(lambda: bench.a.session or bench.b.session, "connected")
    blind, other = (bench.a, bench.b) if bench.a.session else (bench.b, bench.a)
    await blind.command(1)
    await bench.until(lambda: (w := bench.workload(1, blind)) and w.first_step >= 0, "it runs")
    bench.executor.crash(JOB)
    ended = await bench.until(lambda: (w := bench.workload(1, blind)) and w.stop_confirmed, "its end is reported")
    await bench.until(lambda: (w := bench.workload(1, other)) and w.stop_confirmed, "the other one is told too", 20_000)
    assert bench.clock.mono_ms() - ended >= SHORT.fence_ms, "a replica that is at it gets its time"
