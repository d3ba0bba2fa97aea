"""Burn-in of an accelerator, through PyTorch if it is installed. Without it nothing can be said of the device.

The device is the only visible one (the agent sets that). Integer matrix products in float64 and in float32 within 2^24
are exact, so the device must give the bits that the host computes.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from nodeagent.selftest import cpu
from nodeagent.selftest.outcome import CannotTest, Failed

OUT_OF_MEMORY = ("out of memory", "_ALLOC_FAILED")
"""How PyTorch says that others hold the device's memory: ``torch.OutOfMemoryError``, CUDA's cudaErrorMemoryAllocation,
and CUBLAS_STATUS_ALLOC_FAILED, all of them ``RuntimeError``. Nothing follows from it for the hardware."""


def burn(seconds: float, mib: int) -> str:
    """What was done. Raises ``Failed`` and ``CannotTest``."""
    torch = _torch()
    device = torch.device("cuda:0")
    try:
        products = _products(torch, device, time.monotonic() + seconds)
        blocks = _memory(torch, device, mib)
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        first = str(error).partition("\n")[0]
        raise CannotTest(f"the device has no {mib} MiB free ({first}); see who uses it") from error
    return f"{products} products and {blocks} blocks of memory on {torch.cuda.get_device_name(0)}"


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise CannotTest(
            f"PyTorch is not importable ({error}); install it for the agent, or set repair.self_test to a command"
        ) from error
    if not torch.cuda.is_available() or torch.cuda.device_count() < 1:
        raise CannotTest("PyTorch sees no device; see that the driver is loaded and fits it")
    return torch


def _products(torch: Any, device: Any, until: float) -> int:
    done = 0
    expected = {seed: cpu.reference(seed) for seed in range(2)}
    while not done or time.monotonic() < until:
        for seed, good in expected.items():
            left, right = (torch.from_numpy(matrix).to(device) for matrix in cpu.operands(seed))
            product: np.ndarray = (left @ right).cpu().numpy()
            cpu.check(product, good, f"product {done}")
            done += 1
    return done


def _memory(torch: Any, device: Any, mib: int) -> int:
    count = max(1, (mib << 20) // cpu.BLOCK)
    blocks = [torch.empty(cpu.BLOCK, dtype=torch.uint8, device=device) for _ in range(count)]
    for pattern in cpu.PATTERNS:
        for number, block in enumerate(blocks):
            block.fill_(pattern ^ (number & 0xFF))
        for number, block in enumerate(blocks):
            wrong = int((block != (pattern ^ (number & 0xFF))).sum().item())
            if wrong:
                raise Failed(f"{wrong} bytes of device memory block {number} lost the pattern 0x{pattern:02x}")
    return count
