"""Costs of a training update, distance of SLTT's gradient from BPTT's, and activity of the neurons.

All here works on networks of any kind. Two things are imported by their own names: what looks into the
layers of a Linen network, `sltt_jax.analysis.activity` and `sltt_jax.analysis.recording`, and what compiles
for a GPU or TPU that need not be there, `sltt_jax.analysis.accelerators`.
"""

from sltt_jax.analysis.apply_check import BrokenApply, Finding, check_apply
from sltt_jax.analysis.chunks import auto_chunk
from sltt_jax.analysis.costs import Cost, cost, cost_over_time, growth, program_cost, temp_bytes
from sltt_jax.analysis.flop_count import flops
from sltt_jax.analysis.gradients import (
    Agreement,
    Report,
    agreement,
    compare,
    report,
    step_agreement,
    step_gradients,
)
from sltt_jax.analysis.limits import assert_memory_flat, largest_batch
from sltt_jax.analysis.temporal_part import (
    LagNorms,
    advice,
    cut_share,
    horizon,
    lag_norms,
    temporal_factors,
)
from sltt_jax.analysis.timing import Timing, time_update

__all__ = [
    "Agreement",
    "BrokenApply",
    "Cost",
    "Finding",
    "LagNorms",
    "Report",
    "Timing",
    "advice",
    "agreement",
    "assert_memory_flat",
    "auto_chunk",
    "check_apply",
    "compare",
    "cost",
    "cost_over_time",
    "cut_share",
    "flops",
    "growth",
    "horizon",
    "lag_norms",
    "largest_batch",
    "program_cost",
    "report",
    "step_agreement",
    "step_gradients",
    "temp_bytes",
    "temporal_factors",
    "time_update",
]
