"""Flags of XLA's CPU compiler that make spiking networks fast."""

import os
from importlib.metadata import version

# XLA ends a process at a flag that it does not know; these were tried with jaxlib 0.10.2 and 0.12.0.
_FIRST_UNTRIED = 13

# Convolutions by Eigen. By default they go to YNNPACK, which in jaxlib 0.10 shares the output channels alone
# among the cores, so that a convolution with fewer than about 128 runs on one core.
_EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"

# One loop for several results of the same operands.
_MULTI_OUTPUT = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"


def tune_xla():
    """Tells XLA's CPU compiler how to run the networks of this library fast; before JAX computes anything.

    Adds flags to the environment variable XLA_FLAGS, which XLA reads once, so it has no effect on a process
    that has computed already. A flag that XLA_FLAGS set already stays as it is, and nothing is added for a
    jaxlib that is newer than those for which the flags are known. Other platforms ignore all of them.

    One of the flags lets XLA compute several results in one loop. XLA then draws in convolutions too, and
    runs them a hundred times slower, where a convolution reads the output of neurons and has its very shape.
    Those of `sltt_jax.layers.Conv` are written such that it does not; those of `flax.linen.Conv` are not.
    """
    major, minor = (int(part) for part in version("jaxlib").split(".")[:2])
    if (major, minor) >= (0, _FIRST_UNTRIED):
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.split("=")[0] for flag in flags}
    wanted = [flag for flag in (_EIGEN, _MULTI_OUTPUT) if flag.split("=")[0] not in names]
    os.environ["XLA_FLAGS"] = " ".join(flags + wanted)
