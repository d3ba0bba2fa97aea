"""The built-in burn-in finds wrong results, and says when it can tell nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

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
