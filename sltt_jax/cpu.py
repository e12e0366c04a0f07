"""What XLA's CPU compiler must be told to be fast on spiking networks."""

import os
from importlib.metadata import entry_points, version
from importlib.util import find_spec

import jax

# XLA ends a process at a flag that it does not know; these were tried with jaxlib 0.10.2 and 0.12.0.
_FIRST_UNTRIED = 13

# Convolutions by Eigen. By default they go to YNNPACK, which in jaxlib 0.10 shares the output channels alone
# among the cores, so that a convolution with fewer than about 128 runs on one core.
_EIGEN = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"

# One loop for several results of the same operands.
_MULTI_OUTPUT = "--xla_backend_extra_options=xla_cpu_use_multi_output_fusion"

# Temporaries in blocks of a little less than 32 MiB. By default they are one block, which is taken and given
# back in every update; glibc returns a larger one to the system, which clears its pages anew each time.
_BLOCKS = "--xla_multiheap_size_constraint_per_heap=33500000"


def tune_xla():
    """Tells XLA's CPU compiler how to run the networks of this library fast; before JAX computes anything.

    Adds flags to the environment variable XLA_FLAGS, which XLA reads once, so it has no effect on a process
    that has computed already. A flag that XLA_FLAGS set already stays as it is, and nothing is added for a
    jaxlib that is newer than those for which the flags are known. Other platforms ignore all of them but one,
    which divides the memory of temporaries into blocks and is set only where JAX has no platform but the CPU.
    With it XLA warns of every array that is larger than a block, so its warnings (not its errors, and nothing
    of Python's) are turned off, unless JAX was told a level of logging.

    One of the flags lets XLA compute several results in one loop. XLA then draws in convolutions too, and
    runs them a hundred times slower, where a convolution reads the output of neurons and has its very shape.
    Those of `sltt_jax.layers.Conv` are written such that it does not; those of `flax.linen.Conv` are not.
    """
    major, minor = (int(part) for part in version("jaxlib").split(".")[:2])
    if (major, minor) >= (0, _FIRST_UNTRIED):
        return
    flags = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.split("=")[0] for flag in flags}
    ours = (_EIGEN, _MULTI_OUTPUT, _BLOCKS) if _only_cpu() else (_EIGEN, _MULTI_OUTPUT)
    wanted = [flag for flag in ours if flag.split("=")[0] not in names]
    flags += wanted
    os.environ["XLA_FLAGS"] = " ".join(flags)
    if _BLOCKS in flags:
        _silence_warnings_of_xla()


def _only_cpu() -> bool:
    """Whether JAX can have no other platform; without starting one, since that would read XLA_FLAGS."""
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    return platforms == "cpu" or not (platforms or entry_points(group="jax_plugins") or find_spec("libtpu"))


def _silence_warnings_of_xla():
    level = jax.config.jax_logging_level  # pyright: ignore[reportAttributeAccessIssue]
    if level == "NOTSET":  # which JAX takes to mean that of Python's loggers alone
        jax.config.update("jax_logging_level", "ERROR")
        jax.config.update("jax_logging_level", "NOTSET")
