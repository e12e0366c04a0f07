"""Rules and convolutions compute the same with the flags that the experiments set."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

from sltt_jax.cpu import tune_xla

ROOT = Path(__file__).parents[2]
FILES = "test_sltt_k.py", "cpu/test_convolution.py", "cpu/test_winograd.py"


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the flags are of the CPU compiler")
@pytest.mark.parametrize("file", FILES)
def test_tests_pass_in_a_tuned_process(file):
    """XLA reads its flags once, so it takes a process of its own, which inherits them."""
    tune_xla()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, str(ROOT / "tests" / file)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
