"""Memory- and time-efficient training of spiking neural networks in JAX.

The core, which is all that is imported here, is pure functions and knows no neural network library. What is
built on Flax Linen is in `sltt_jax.functional`, `sltt_jax.layers` and `sltt_jax.models`; `sltt_jax.training`,
`sltt_jax.data` and `sltt_jax.analysis` make experiments of it.
"""

from sltt_jax import losses, surrogate
from sltt_jax.blocks import PerStep, Repeat, run
from sltt_jax.cell_blocks import over_time, recurrent
from sltt_jax.cells import alif, alif_step, li, li_step, synaptic, synaptic_step
from sltt_jax.neurons import Neuron, lif, lif_step
from sltt_jax.online_learning import Online, online
from sltt_jax.rules import Aux, BlockRule, Rule, bptt, ottt, parse_rule, sltt, sltt_k, tbptt
from sltt_jax.streaming import stream
from sltt_jax.traces import synapse

__version__ = "0.2.0"

__all__ = [
    "Aux",
    "BlockRule",
    "Neuron",
    "Online",
    "PerStep",
    "Repeat",
    "Rule",
    "alif",
    "alif_step",
    "bptt",
    "li",
    "li_step",
    "lif",
    "lif_step",
    "losses",
    "online",
    "ottt",
    "over_time",
    "parse_rule",
    "recurrent",
    "run",
    "sltt",
    "sltt_k",
    "stream",
    "surrogate",
    "synapse",
    "synaptic",
    "synaptic_step",
    "tbptt",
]
