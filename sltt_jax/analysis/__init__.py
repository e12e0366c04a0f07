"""What a training update costs."""

from sltt_jax.analysis.flops import flops
from sltt_jax.analysis.memory import temp_bytes

__all__ = ["flops", "temp_bytes"]
