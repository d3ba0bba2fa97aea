"""``python -m nodeagent.selftest --vendor V``: exit status 0 passed, 1 failed, 3 cannot test; one line says why."""

from __future__ import annotations

import argparse
import sys

from nodeagent.selftest import cpu, gpu
from nodeagent.selftest.outcome import CannotTest, Failed

HOST = "host"
"""Vendor of the devices that are the host itself."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m nodeagent.selftest")
    parser.add_argument("--vendor", required=True)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to go on")
    parser.add_argument("--mib", type=int, default=256, help="memory that is written and read back")
    options = parser.parse_args(arguments)
    try:
        burn = cpu.burn if options.vendor == HOST else gpu.burn
        print(f"passed: {burn(options.seconds, options.mib)}")
    except Failed as error:
        print(f"failed: {error}")
        return 1
    except CannotTest as error:
        print(f"cannot test: {error}")
        return 3
    except MemoryError as error:
        print(f"cannot test: no {options.mib} MiB of main memory are free here ({error or 'MemoryError'}); free some")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
