"""Where the compilers for GPUs and TPUs are that tests use: `make compilers` installs them."""

import os
from pathlib import Path

import pytest

SITE = Path(os.environ.get("SLTT_JAX_COMPILERS", Path(__file__).parents[2] / ".compilers"))

needs_compilers = pytest.mark.skipif(
    not SITE.exists(),
    reason=f"no compilers for GPUs and TPUs in {SITE}: make compilers, or SLTT_JAX_COMPILERS",
)
