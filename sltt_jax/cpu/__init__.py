"""What XLA's CPU compiler needs to be fast on spiking networks; everything else in the library is free of it.

Every function here computes what its namesake in `jax.lax` does, or nothing at all, and leaves GPUs and TPUs
to XLA.
"""

from sltt_jax.cpu.convolution import conv_general_dilated
from sltt_jax.cpu.dense import dot_general
from sltt_jax.cpu.elementwise import computed_once, scan, stored
from sltt_jax.cpu.flags import tune_xla
from sltt_jax.cpu.sums import two_sums

__all__ = ["computed_once", "conv_general_dilated", "dot_general", "scan", "stored", "tune_xla", "two_sums"]
