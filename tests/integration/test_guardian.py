"""The guardian with real processes: a job ends when its right to run ends, wholly, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from failover.executors.process import ProcessExecutor, guardian_command
from failover.executors.protocol import MAX_REPLY, Reply, RunState, decode_reply, encode_reply
from gridkeeper.clock import SystemClock
from gridkeeper.ids import DeviceId, Epoch, JobId
from gridkeeper.ports.jobs import ExecutorError, ExecutorUnavailable, Launch, Process
from gridkeeper.records.common import Label
from gridkeeper.records.jobs import JobSpec
from tests.integration.waiting import until

JOB = JobId("train")
LONG_MS = 60_000

SLEEPER = "import time\nwhile True: time.sleep(60)"
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("ready", "w").close()
while True: time.sleep(60)
"""
POLITE = """
import os, signal, sys, time
def finish(number, frame):
    open("finished", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
open("ready", "w").close()
while True: time.sleep(60)
"""
# A grandchild that leaves session, process group, parent and environment behind, and ignores SIGTERM.
ESCAPING = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-c", '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open("escaped.new", "w").write(str(os.getpid()))
os.rename("escaped.new", "escaped")
while True: time.sleep(60)
'''], {})
    os._exit(0)
os.wait()
while not os.path.exists("escaped"): time.sleep(0.01)
open("ready", "w").close()
"""


def spec(script: str, **changes: object) -> JobSpec:
    values: dict[str, object] = {
        "name": JOB,
        "namespace": "default",
        "command": (sys.executable, "-c", script),
        "env": (),
        "workdir": "",
        "devices": 1,
        "model": "",
        "regions": (),
        "prefer_other_region": False,
        "handles_sigusr1": False,
        "grace_ms": 1_000,
        "max_restarts": 0,
    }
    return JobSpec(**{**values, **changes})  # type: ignore[arg-type]


def launch(script: str, number: int = 1, **changes: object) -> Launch:
    devices = (DeviceId("east-1/gpu0"), DeviceId("east-1/gpu3"))
    return Launch(JOB, Epoch(1, number), spec(script, **changes), devices, "", -1)


def running(pid: int) -> bool:
    """False for a zombie too: it runs nothing any more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def guardian_pid(directory: Path) -> int:
    return int((directory / "guardian.lock").read_text())


class Bench:
    """One state directory and the executors that speak to its guardian."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = SystemClock()
        self.executor = self.another()

    def another(self, *options: str) -> ProcessExecutor:
        executor = ProcessExecutor(self.directory, self.clock, (*guardian_command(self.directory.resolve()), *options))
        executor.margins(200, 50)
        return executor

    def in_ms(self, ms: int) -> int:
        return self.clock.mono_ms() + ms

    def work(self, number: int = 1) -> Path:
        return self.directory / "jobs" / JOB / f"1.{number}" / "work"

    async def process(self, number: int = 1) -> Process:
        found = [p for p in await self.executor.list() if p.epoch == Epoch(1, number)]
        assert len(found) == 1, found
        return found[0]

    async def born(self, number: int = 1) -> Process:
        """A start is answered before its process exists."""
        return await self.when(lambda p: bool(p.pids), "its process is there", number)

    async def ready(self, name: str = "ready", number: int = 1) -> None:
        async def look() -> bool:
            return (self.work(number) / name).exists()

        await until(look, f"the job wrote {name}")

    async def when(self, test: Callable[[Process], bool], what: str, number: int = 1) -> Process:
        async def look() -> Process | None:
            process = await self.process(number)
            return process if test(process) else None

        found = await until(look, what)
        assert found is not None
        return found


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.executor.close()
    try:
        pid = guardian_pid(tmp_path)
    except (OSError, ValueError):
        return
    if f"{tmp_path}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes() if running(pid) else False:
        os.kill(pid, signal.SIGKILL)


async def test_a_job_gets_its_contract_and_nothing_else(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No secret of the agent's environment and no open file reaches a job; the documented variables do."""
    monkeypatch.setenv("AGENT_SECRET", "hunter2")
    script = """
import json, os
fds = [fd for fd in os.listdir('/proc/self/fd') if int(fd) > 2]
links = [os.readlink(f'/proc/self/fd/{fd}') for fd in fds if os.path.exists(f'/proc/self/fd/{fd}')]
json.dump({'env': dict(os.environ), 'fds': links, 'in': os.readlink('/proc/self/fd/0')}, open('seen.new', 'w'))
os.rename('seen.new', 'seen')
print('hello')
"""
    await bench.executor.start(
        launch(script, env=(Label("MINE", "1"), Label("GRIDKEEPER_EPOCH", "9.9"))), bench.in_ms(LONG_MS)
    )
    ended = await bench.when(lambda p: p.tree_gone, "the job ended")
    assert (ended.exit_code, ended.exit_signal, ended.fenced, ended.stop_asked) == (0, 0, False, False)
    seen = json.loads((bench.work() / "seen").read_text())
    assert "AGENT_SECRET" not in seen["env"]
    assert seen["env"]["MINE"] == "1"
    assert seen["env"]["GRIDKEEPER_EPOCH"] == "1.1"
    assert seen["env"]["GRIDKEEPER_DEVICES"] == "gpu0,gpu3"
    assert seen["env"]["GRIDKEEPER_RESUME_FROM"] == ""
    assert Path(seen["env"]["GRIDKEEPER_CHECKPOINT_DIR"]) == bench.executor.checkpoint_dir(JOB, Epoch(1, 1))
    assert seen["in"] == "/dev/null"
    assert not seen["fds"]
    assert await bench.executor.log_tail(JOB, 100) == b"hello\n"


async def test_a_job_is_killed_at_its_deadline_though_no_agent_speaks(bench: Bench) -> None:
    """The guardian alone enforces the deadline, also against a job that ignores SIGTERM."""
    await bench.executor.start(launch(STUBBORN), bench.in_ms(2_000))
    await bench.ready()
    pids = (await bench.process()).pids
    assert len(pids) == 1
    bench.executor.close()

    async def gone() -> bool:
        return not running(pids[0])

    await until(gone, "the guardian killed the job")
    ended = await bench.when(lambda p: p.tree_gone, "the stop is confirmed")
    assert ended.fenced
    assert ended.exit_signal == signal.SIGKILL


async def test_extending_keeps_it_alive_and_never_moves_back(bench: Bench) -> None:
    """A renewal moves the deadline forward only."""
    key = (JOB, Epoch(1, 1))
    first = bench.in_ms(1_000)
    await bench.executor.start(launch(SLEEPER), first)
    await bench.executor.extend({key: first + LONG_MS})
    await bench.executor.extend({key: first - 500})

    async def past() -> bool:
        return bench.clock.mono_ms() > first + 200

    await until(past, "the first deadline passed")
    assert (await bench.process()).alive


async def test_sigterm_comes_before_the_deadline_with_time_to_finish(bench: Bench) -> None:
    """A fenced job is asked first: SIGTERM at deadline minus the term margin lets it finish and exit 0."""
    bench.executor.margins(1_500, 50)
    await bench.executor.start(launch(POLITE), bench.in_ms(3_000))
    await bench.ready()
    ended = await bench.when(lambda p: p.tree_gone, "the job ended")
    assert (ended.fenced, ended.exit_code, ended.exit_signal) == (True, 0, 0)
    assert (bench.work() / "finished").exists()


async def test_a_stop_is_confirmed_only_when_escaped_grandchildren_are_gone(bench: Bench) -> None:
    """Double fork, own session, wiped environment, SIGTERM ignored: still part of the tree, and killed with it."""
    await bench.executor.start(launch(ESCAPING), bench.in_ms(LONG_MS))
    await bench.ready()
    escaped = int((bench.work() / "escaped").read_text())
    ended = await bench.when(lambda p: not p.alive, "the leading process ended")
    if not ended.tree_gone:
        assert escaped in ended.pids
    await bench.when(lambda p: p.tree_gone, "the stop is confirmed")
    assert not running(escaped)


async def test_a_job_that_ignores_sigterm_is_killed_after_its_grace(bench: Bench) -> None:
    await bench.executor.start(launch(STUBBORN), bench.in_ms(LONG_MS))
    await bench.ready()
    await bench.executor.stop(JOB, Epoch(1, 1), 200)
    ended = await bench.when(lambda p: p.tree_gone, "the stop is confirmed")
    assert (ended.stop_asked, ended.fenced, ended.exit_signal) == (True, False, signal.SIGKILL)


async def test_a_stopped_job_still_hears_sigterm(bench: Bench) -> None:
    """SIGSTOP by whoever does not keep a job from finishing when it is asked to."""
    await bench.executor.start(launch(POLITE), bench.in_ms(LONG_MS))
    await bench.ready()
    os.kill((await bench.process()).pids[0], signal.SIGSTOP)
    await bench.executor.stop(JOB, Epoch(1, 1), LONG_MS)
    ended = await bench.when(lambda p: p.tree_gone, "the stop is confirmed")
    assert (ended.exit_code, ended.exit_signal) == (0, 0)


async def test_another_agent_finds_the_job_running(bench: Bench) -> None:
    """Re-adoption: what a new agent process lists is what the old one started."""
    await bench.executor.start(launch(SLEEPER), bench.in_ms(LONG_MS))
    before = await bench.born()
    bench.executor.close()
    bench.executor = bench.another()
    after = await bench.process()
    assert (after.alive, after.pids, after.started_ms) == (True, before.pids, before.started_ms)


async def test_jobs_die_with_their_guardian_and_the_next_one_says_so(bench: Bench) -> None:
    """A dead guardian could not end a job at its deadline, so no job outlives it; the next one confirms that."""
    await bench.executor.start(launch(ESCAPING + SLEEPER), bench.in_ms(LONG_MS))
    await bench.ready()
    pids = (await bench.process()).pids
    assert len(pids) == 2
    os.kill(guardian_pid(bench.directory), signal.SIGKILL)

    async def gone() -> bool:
        return not any(running(pid) for pid in pids)

    await until(gone, "the whole tree died with the guardian")
    ended = await bench.when(lambda p: p.tree_gone, "the new guardian confirms it")
    assert (ended.alive, ended.exit_signal) == (False, signal.SIGKILL)
    with pytest.raises(ExecutorError, match="not higher than"):
        await bench.executor.start(launch(SLEEPER, 0), bench.in_ms(LONG_MS))


async def test_a_stop_is_not_confirmed_while_a_keeper_of_a_dead_guardian_has_children(bench: Bench) -> None:
    """The keeper could not clean up (here: it is stopped), and what lives below it carries no tag any more."""
    await bench.executor.start(launch(ESCAPING + SLEEPER), bench.in_ms(LONG_MS))
    await bench.ready()
    escaped = int((bench.work() / "escaped").read_text())
    leader = next(pid for pid in (await bench.process()).pids if pid != escaped)
    keeper = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGSTOP)
    os.kill(guardian_pid(bench.directory), signal.SIGKILL)
    await bench.when(lambda p: p.tree_gone, "the new guardian confirms the stop")
    assert not running(escaped)
    assert not running(keeper)


async def test_a_killed_keeper_leaves_nothing_behind(bench: Bench) -> None:
    """Its orphans fall to the guardian, which kills them before it confirms."""
    await bench.executor.start(launch(ESCAPING + SLEEPER), bench.in_ms(LONG_MS))
    await bench.ready()
    pids = (await bench.process()).pids
    leader = next(pid for pid in pids if pid != int((bench.work() / "escaped").read_text()))
    keeper = int(Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGKILL)
    ended = await bench.when(lambda p: p.tree_gone, "the guardian cleaned up")
    assert not ended.alive
    assert not any(running(pid) for pid in pids)


async def test_an_epoch_is_started_once_and_lower_ones_never(bench: Bench) -> None:
    """Also after the epoch was forgotten and the guardian was restarted."""
    await bench.executor.start(launch(SLEEPER, 5), bench.in_ms(LONG_MS))
    first = await bench.born(5)
    await bench.executor.start(launch(SLEEPER, 5), bench.in_ms(LONG_MS))
    assert (await bench.process(5)).pids == first.pids
    with pytest.raises(ExecutorError, match=r"1\.4 is not higher than 1\.5"):
        await bench.executor.start(launch(SLEEPER, 4), bench.in_ms(LONG_MS))
    with pytest.raises(ExecutorError, match=r"epoch 1\.5 still has processes"):
        await bench.executor.start(launch(SLEEPER, 6), bench.in_ms(LONG_MS))
    with pytest.raises(ExecutorError, match="still has processes"):
        await bench.executor.forget(JOB, Epoch(1, 5))
    await bench.executor.stop(JOB, Epoch(1, 5), 0)
    await bench.when(lambda p: p.tree_gone, "the stop is confirmed", 5)
    await bench.executor.forget(JOB, Epoch(1, 5))
    os.kill(guardian_pid(bench.directory), signal.SIGKILL)
    with pytest.raises(ExecutorError, match=r"1\.5 is not higher than 1\.5"):
        await bench.executor.start(launch(SLEEPER, 5), bench.in_ms(LONG_MS))
    await bench.executor.start(launch(SLEEPER, 6), bench.in_ms(LONG_MS))
    assert (await bench.process(6)).alive


async def test_a_command_that_does_not_exist_is_an_error_that_names_it(bench: Bench) -> None:
    await bench.executor.start(launch("", command=("no-such-program",)), bench.in_ms(LONG_MS))
    ended = await bench.when(lambda p: p.tree_gone, "it ended")
    assert (ended.alive, ended.exit_code, ended.exit_signal) == (False, 127, 0)
    assert ended.reason == "no-such-program: No such file or directory"


async def test_without_descriptors_the_guardian_lives_and_still_ends_jobs(bench: Bench) -> None:
    """A leak, or somebody's many connections, must not end the guardian, and with it all jobs, nor blind it."""
    await bench.executor.start(launch(STUBBORN), bench.in_ms(2_500))
    await bench.ready()
    pids = (await bench.process()).pids
    guardian = guardian_pid(bench.directory)
    before = resource.prlimit(guardian, resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    reader, writer = await asyncio.open_unix_connection(str(bench.directory / "guardian.sock"))
    writer.write(b'{"op": "list"}\n')
    assert (await bench.process()).alive, "who is connected is served"

    async def gone() -> bool:
        return not running(pids[0])

    await until(gone, "the deadline was enforced")
    resource.prlimit(guardian, resource.RLIMIT_NOFILE, before)
    reply = json.loads(await asyncio.wait_for(reader.readline(), 10))
    writer.close()
    assert reply["pid"] == guardian
    await bench.when(lambda p: p.tree_gone and p.fenced, "the stop is confirmed")


async def test_connections_beyond_the_bound_are_closed(bench: Bench) -> None:
    """Descriptors are for finding and ending jobs."""
    await bench.executor.ping()
    writers, served = [], 0
    for _ in range(80):
        reader, writer = await asyncio.open_unix_connection(str(bench.directory / "guardian.sock"))
        writers.append(writer)
        writer.write(b'{"op": "ping"}\n')
        with contextlib.suppress(OSError):
            served += bool(await asyncio.wait_for(reader.readline(), 10))
    assert 8 <= served < 80
    assert await bench.executor.list() == (), "who was there before is still served"
    for writer in writers:
        writer.close()


def test_a_reply_is_bounded_and_loses_its_pids_first() -> None:
    run = RunState("j", "1.1", True, -1, 0, False, False, False, 1, 0, 9, tuple(range(5_000)), "")
    assert decode_reply(encode_reply(Reply("", 7, (run,)))).runs == (run,)
    long = replace(run, reason="x" * (MAX_REPLY - 1_000))
    assert decode_reply(encode_reply(Reply("", 7, (long,)))).runs == (replace(long, pids=()),)
    too_long = decode_reply(encode_reply(Reply("", 7, (long, long))))
    assert (too_long.runs, too_long.pid, "forget" in too_long.error) == ((), 7, True)


async def test_a_reply_without_end_is_no_answer(tmp_path: Path) -> None:
    """It must not end the agent: the guardian is then as good as silent."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * (1 << 20))
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(babble, str(tmp_path / "guardian.sock"))
    executor = ProcessExecutor(tmp_path, SystemClock(), ("false",))
    with pytest.raises(ExecutorUnavailable):
        await executor.list()
    executor.close()
    server.close()


async def test_a_start_that_hangs_holds_up_no_other_deadline(bench: Bench) -> None:
    """A file system that does not answer (here: a fifo for the output that nobody reads) blocks that job before its
    command runs. The guardian still answers, ends the others in time, and this one too."""
    await bench.executor.start(launch(STUBBORN), bench.in_ms(2_000))
    await bench.ready()
    stuck = Launch(JobId("stuck"), Epoch(1, 1), spec(SLEEPER), (), "", -1)
    directory = bench.executor.checkpoint_dir(stuck.job, stuck.epoch).parent
    directory.mkdir(parents=True)
    os.mkfifo(directory / "output.log")
    await bench.executor.start(stuck, bench.in_ms(3_000))
    for job in (JOB, stuck.job):

        async def ended(job: JobId = job) -> Process | None:
            found = next(p for p in await bench.executor.list() if p.job == job)
            return found if found.tree_gone else None

        process = await until(ended, f"{job} was ended at its deadline")
        assert process is not None
        assert (process.fenced, process.exit_signal) == (True, signal.SIGKILL)


async def test_a_start_whose_deadline_has_come_is_refused(bench: Bench) -> None:
    with pytest.raises(ExecutorError, match="deadline has come"):
        await bench.executor.start(launch(SLEEPER), bench.in_ms(150))


async def test_a_frozen_guardian_is_killed_with_its_jobs_once_a_deadline_passes(bench: Bench) -> None:
    """The agent is the second line: it ends a guardian that cannot end jobs."""
    await bench.executor.start(launch(SLEEPER), bench.in_ms(1_000))
    pids = (await bench.born()).pids
    os.kill(guardian_pid(bench.directory), signal.SIGSTOP)

    async def ended() -> bool:
        with contextlib.suppress(ExecutorUnavailable):
            await bench.executor.list()
        return not any(running(pid) for pid in pids)

    await until(ended, "the agent ended the frozen guardian, and its job with it", 30)
    assert (await bench.when(lambda p: p.tree_gone, "a new guardian confirms it")).alive is False


async def test_a_guardian_that_slept_through_a_deadline_ends_the_job_as_it_wakes(bench: Bench) -> None:
    """Agent and guardian frozen together, as a paused virtual machine is: nobody can kill the job, and it lives on (the
    checkpoint fence alone protects); awake, the guardian does so before it does anything else."""
    deadline_ms = bench.in_ms(1_500)
    await bench.executor.start(launch(STUBBORN), deadline_ms)
    await bench.ready()
    pids = (await bench.process()).pids
    bench.executor.close()
    os.kill(guardian_pid(bench.directory), signal.SIGSTOP)

    async def late() -> bool:
        return bench.clock.mono_ms() >= deadline_ms + 1_000

    await until(late, "the deadline is long past")
    assert all(running(pid) for pid in pids), "nobody was there to kill it"
    os.kill(guardian_pid(bench.directory), signal.SIGCONT)
    bench.executor = bench.another()
    ended = await bench.when(lambda p: p.tree_gone, "the stop is confirmed")
    assert ended.fenced and not any(running(pid) for pid in pids)


async def test_a_new_agent_ends_a_frozen_guardian_that_it_never_heard_of(bench: Bench) -> None:
    """Agent restarted beside a frozen guardian: it knows no deadlines, but nobody could enforce them either."""
    await bench.executor.start(launch(SLEEPER), bench.in_ms(LONG_MS))
    pids = (await bench.born()).pids
    os.kill(guardian_pid(bench.directory), signal.SIGSTOP)
    bench.executor.close()
    bench.executor = bench.another()

    async def ended() -> bool:
        with contextlib.suppress(ExecutorUnavailable):
            await bench.executor.list()
        return not any(running(pid) for pid in pids)

    await until(ended, "the frozen guardian and its job are gone", 30)
    await bench.when(lambda p: p.tree_gone, "a new guardian confirms it")


async def test_progress_is_read_as_it_grows(bench: Bench) -> None:
    """First and newest step; lines that are no progress are passed over."""
    script = """
import json, os
with open(os.environ['GRIDKEEPER_PROGRESS'], 'w') as f:
    f.write('not json\\n[1]\\n{"step": true}\\n' + json.dumps({'step': 40, 'loss': 2.5}) + '\\n{"st')
    f.flush()
    while not os.path.exists('go'): pass
    f.write('ep": 41, "loss": 2.25}\\n')
"""
    await bench.executor.start(launch(script), bench.in_ms(LONG_MS))
    first = await bench.when(lambda p: p.progress.first_step >= 0, "the first step")
    assert (first.progress.last_step, first.progress.last_loss) == (40, 2.5)
    (bench.work() / "go").touch()
    ended = await bench.when(lambda p: p.tree_gone and p.progress.last_step == 41, "the second step")
    assert (ended.progress.first_step, ended.progress.last_loss) == (40, 2.25)
    assert ended.progress.first_step_at_ms <= ended.progress.last_step_at_ms


async def test_an_idle_guardian_goes_and_comes_back(bench: Bench) -> None:
    """Nothing to guard and nobody there: it ends by itself; the next request starts another."""
    bench.executor.close()
    bench.executor = bench.another("--idle-exit-ms", "100")
    await bench.executor.ping()
    pid = guardian_pid(bench.directory)

    async def gone() -> bool:
        return not running(pid)

    await until(gone, "the idle guardian ended")
    await bench.executor.ping()
    assert guardian_pid(bench.directory) != pid


async def test_garbage_on_the_socket_gets_an_error_and_harms_nobody(bench: Bench) -> None:
    await bench.executor.start(launch(SLEEPER), bench.in_ms(LONG_MS))
    reader, writer = await asyncio.open_unix_connection(str(bench.directory / "guardian.sock"))
    for line in (b"\xff\xfe\n", b"[]\n", b'{"op": "start", "job": 7}\n', b'{"op": "rm"}\n', b'{"op": "stop"}\n'):
        writer.write(line)
        assert json.loads(await reader.readline())["error"]
    writer.close()
    mode = (bench.directory / "guardian.sock").stat().st_mode & 0o777
    assert mode == 0o600
    assert (await bench.process()).alive
