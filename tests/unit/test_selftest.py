"""The built-in burn-in finds wrong results, and says when it can tell nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nodeagent.selftest import cpu, gpu
from nodeagent.selftest.outcome import CannotTest, Failed


def test_the_host_passes_and_says_what_was_done() -> None:
    done = cpu.burn(0.0, 8)
    assert "products on" in done and "1 blocks of memory in 4 patterns" in done


def test_one_flipped_bit_of_a_product_fails() -> None:
    left, right = cpu.operands(0)
    product = left @ right
    cpu.check(product, cpu.reference(0), "here")
    bits = product.view(np.int64)
    bits[17, 4] ^= 1
    with pytest.raises(Failed, match="a matrix product is wrong"):
        cpu.check(product, cpu.reference(0), "here")


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="PyTorch is installed here")
def test_an_accelerator_without_pytorch_is_neither_passed_nor_failed() -> None:
    with pytest.raises(CannotTest, match="PyTorch is not importable"):
        gpu.burn(0.0, 8)


@pytest.mark.parametrize(("vendor", "code", "word"), [("host", 0, "passed"), ("nvidia", 3, "cannot test")])
def test_as_a_process_it_ends_with_a_status_and_one_line(vendor: str, code: int, word: str) -> None:
    if vendor == "nvidia" and importlib.util.find_spec("torch") is not None:
        pytest.skip("PyTorch is installed here")
    line = [sys.executable, "-m", "nodeagent.selftest", "--vendor", vendor, "--seconds", "0", "--mib", "8"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code and ended.stdout.startswith(word) and ended.stdout.count("\n") == 1


LITTLE_MEMORY = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
runpy.run_module("nodeagent.selftest", run_name="__main__")
"""
FULL_DEVICE = """
class OutOfMemoryError(RuntimeError):
    pass

class cuda:
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)

def device(name):
    return name

def from_numpy(matrix):
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.\\nGPU 0 has 79 GiB, 0 free.")
"""


def test_a_host_without_memory_to_spare_is_neither_passed_nor_failed() -> None:
    """Protects: no device is drained again because others use the memory that its test wants."""
    line = [sys.executable, "-c", LITTLE_MEMORY, "--vendor", "host", "--seconds", "0", "--mib", "1048576"]
    few = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=few)
    assert ended.returncode == 3 and ended.stdout.startswith("cannot test: no 1048576 MiB"), ended
    assert ended.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 MiB.", 3, "cannot test: the device has no 8 MiB free (CUDA out"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", 3, "cannot test: the device has no 8 MiB free"),
        ("CUDA error: uncorrectable ECC error encountered", 1, ""),
    ],
)
def test_an_accelerator_whose_memory_others_hold_is_neither_passed_nor_failed(
    tmp_path: Path, said: str, code: int, words: str
) -> None:
    """Protects: as above; an error of the device itself still fails it."""
    (tmp_path / "torch.py").write_text(FULL_DEVICE.replace("CUDA out of memory. Tried to allocate 2.00 MiB.", said))
    line = [sys.executable, "-m", "nodeagent.selftest", "--vendor", "nvidia", "--seconds", "0", "--mib", "8"]
    fake = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=fake)
    assert ended.returncode == code and ended.stdout.startswith(words) and ended.stdout.count("\n") == bool(words)
