"""The kernel's own troubles: panics, oopses, lock-ups, hung tasks, stalls, and kills for want of memory. Pure.
Wordings: kernel/panic.c, kernel/watchdog.c, kernel/hung_task.c, kernel/rcu/tree_stall.h, mm/oom_kill.c, arch/*.

    Kernel panic - not syncing: Fatal exception
    BUG: unable to handle page fault for address: ffffc90000ab8000
    watchdog: BUG: soft lockup - CPU#12 stuck for 23s! [python3:4711]
    NMI watchdog: Watchdog detected hard LOCKUP on cpu 3
    INFO: task kworker/u266:10:1234 blocked for more than 122 seconds.
    rcu: INFO: rcu_sched self-detected stall on CPU
    Out of memory: Killed process 4711 (python3) total-vm:…
    Memory cgroup out of memory: Killed process 4711 (python3) total-vm:…

"oom-kill:constraint=…" and "python3 invoked oom-killer:" accompany a kill and hold names that users choose; the line
that names the killed process is the one that counts.
"""

from __future__ import annotations

import re

from gridkeeper.catalogue.codes import HostCode
from nodeagent.kernel.found import Found, host

_HUNG = re.compile(
    r"INFO: task (.{1,40}):([0-9]{1,10}) blocked (?:on an? [\w-]{1,20}[^.]{0,80})?for more than [0-9]{1,7} sec"
)
_SOFT = re.compile(
    r"(?:watchdog: |NMI watchdog: )?BUG: soft lockup - CPU#([0-9]{1,5}) stuck for [0-9]{1,7}s! "
    r"\[.{0,40}:([0-9]{1,10})\]"
)
_HARD = re.compile(r"(?:NMI )?[Ww]atchdog: (?:CPU[0-9]{1,5}: )?Watchdog detected hard LOCKUP ?(?:on cpu ([0-9]{1,5}))?")
_RCU = re.compile(r"(?:rcu: )?INFO: rcu_\w{1,20} (?:self-)?detected (?:expedited )?stalls?")
_KILLED = re.compile(
    r"(Memory cgroup out of memory|Out of memory(?: \([^)]{1,40}\))?): Kill(?:ed)? process ([0-9]{1,10}) \((.{1,40}?)\)"
)
_OOPS = re.compile(
    r"BUG: (?:unable to handle|kernel NULL pointer|Bad page|KASAN|sleeping function)|Oops: |Internal error: Oops"
    r"|kernel BUG at |Unable to handle kernel |general protection fault, (?!ip:)"
)


def read(text: str) -> Found | None:
    """A line whose first word is one of those above."""
    if text.startswith("Kernel panic - not syncing"):
        return host(HostCode.KERNEL_PANIC)
    killed = _KILLED.match(text)
    if killed:
        code = HostCode.OOM_KILL_CGROUP if killed.group(1).startswith("Memory") else HostCode.OOM_KILL
        return host(code, pid=_pid(killed.group(2)))
    hung = _HUNG.match(text)
    if hung:
        return host(HostCode.HUNG_TASK, hung.group(1), pid=_pid(hung.group(2)))
    soft = _SOFT.match(text)
    if soft:
        return host(HostCode.SOFT_LOCKUP, f"CPU {soft.group(1)}", pid=_pid(soft.group(2)))
    hard = _HARD.match(text)
    if hard:
        return host(HostCode.HARD_LOCKUP, f"CPU {hard.group(1)}" if hard.group(1) else "")
    if _RCU.match(text):
        return host(HostCode.RCU_STALL)
    if _OOPS.match(text):
        return host(HostCode.KERNEL_OOPS)
    return None


def _pid(digits: str) -> int:
    pid = int(digits)
    return pid if pid < 1 << 31 else 0
