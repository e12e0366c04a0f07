import os
from pathlib import Path

# A cache of compiled programs of the tests' own, kept from run to run; processes they start inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))

import jax
import pytest

from sltt_jax.cpu import tune_xla

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_num_cpu_devices", 4)


def pytest_addoption(parser):
    parser.addoption("--tuned", action="store_true", help="tell XLA what the experiments tell it")


def pytest_configure(config):
    if config.getoption("tuned"):
        tune_xla()


@pytest.fixture
def x64():
    """Double precision, for identities that are to hold up to rounding."""
    with jax.enable_x64(True):
        yield
