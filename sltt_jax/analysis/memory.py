"""Memory of a compiled program."""

from typing import Any

import jax


def temp_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes that a compiled program allocates beside its arguments and outputs, as its compiler planned them.

    This is where training keeps activations, carried states and sums of gradients. It does not depend on what
    else the machine does, and nothing is run for it.

    Raises:
      RuntimeError: the platform does not tell.
    """
    return memory_stats(compiled).temp_size_in_bytes


def memory_stats(compiled: jax.stages.Compiled) -> Any:
    """All that the compiler tells: `argument_size_in_bytes`, `output_...`, `alias_...`, `temp_...` and more.

    Raises:
      RuntimeError: the platform does not tell.
    """
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError("this platform's compiler does not tell the memory of a program")
    return memory
