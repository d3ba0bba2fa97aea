"""How fast lines are parsed: ``python -m nodeagent.kernel.speed [SECONDS]`` prints microseconds per line and MB/s."""

from __future__ import annotations

import json
import sys

from gridkeeper.clock import SystemClock
from nodeagent.kernel.line import read_line
from nodeagent.kernel.parse import Parser

NOISE = (
    "usb 1-1: new high-speed USB device number 4 using xhci_hcd",
    "audit: type=1400 audit(1700000000.123:456): apparmor=\"DENIED\" operation=\"open\"",
    "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed Feb 26 02:00:00 UTC 2025",
    "amdgpu 0000:c3:00.0: amdgpu: Freeing queue vital buffer 0x7f3b2c000000, queue evicted",
    "mlx5_core 0000:3b:00.0 enp59s0f0np0: Link up",
    "EXT4-fs (sda1): mounted filesystem with ordered data mode. Quota mode: none.",
    "docker0: port 1(veth1234) entered forwarding state",
    "python3[4711]: segfault at 0 ip 00007f2b1c0d sp 00007ffd err 4 in libc.so.6[7f2b1c000000+195000]",
)  # fmt: skip


def measure(seconds: float) -> dict[str, float]:
    """Noise of eight kinds as /dev/kmsg records; keys: lines, us_per_line, mb_per_s."""
    clock = SystemClock()
    parser = Parser()
    records = [f"6,{n},{n * 7},-;{text}\n".encode() for n, text in enumerate(NOISE)]
    size = sum(map(len, records))
    start_ms = clock.mono_ms()
    rounds = 0
    elapsed_us = 0
    while elapsed_us < seconds * 1e6:
        for _ in range(500):
            for record in records:
                parser.see(read_line(record), 0)
        rounds += 500
        elapsed_us = (clock.mono_ms() - start_ms) * 1000
    lines = rounds * len(records)
    return {"lines": lines, "us_per_line": elapsed_us / lines, "mb_per_s": rounds * size / elapsed_us}


if __name__ == "__main__":
    print(json.dumps(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)))
