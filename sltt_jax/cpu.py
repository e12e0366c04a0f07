"""What XLA's CPU compiler must be told for convolutions that use all cores."""

import os
from importlib.metadata import version

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"

# XLA ends a process at a flag that it does not know; this one was tried with jaxlib 0.10.2 and 0.12.0.
_FIRST_UNTRIED = 13


def use_all_cores():
    """Has XLA compute convolutions on a CPU with Eigen; to be called before JAX computes anything.

    By default they go to YNNPACK. In jaxlib 0.10 it shares the output channels alone among the cores, so that
    a convolution with fewer than about 128 runs on one core; in 0.12 it uses all and is slower for most.

    Adds to the environment variable XLA_FLAGS, which XLA reads once, and so has no effect on a process that
    has computed already. Leaves XLA_FLAGS alone if they say something about YNNPACK, or if this jaxlib is
    newer than those for which the flag is known. It changes nothing on other platforms.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    major, minor = (int(part) for part in version("jaxlib").split(".")[:2])
    if _FLAG not in flags and (major, minor) < (0, _FIRST_UNTRIED):
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=-individual_convolution".strip()
