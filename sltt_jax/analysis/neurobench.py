"""The metrics of NeuroBench (Yik et al. 2025), under its names, without PyTorch."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.analysis.activity import operations
from sltt_jax.analysis.recording import record
from sltt_jax.blocks import PyTree
from sltt_jax.cell_layers import MEMBRANE, Cells, Recurrent
from sltt_jax.layers import BATCH_STATS, NormedConv, ScaledWSConv


class SynapticOperations(NamedTuple):
    """Operations for one sample over all steps, in the mean over the batch.

    Attributes:
      Effective_MACs: weights that are not 0 times inputs that are not 0, in calls of a layer (one a step, of
        the whole batch) whose inputs are not all 0 or 1: images, and also spikes that were pooled.
      Effective_ACs: the same in calls whose inputs are all 0 or 1.
      Dense: all weights times all inputs.
    """

    Effective_MACs: float
    Effective_ACs: float
    Dense: float


class NeuroBench(NamedTuple):
    """Metrics of a network on a batch.

    Attributes:
      footprint: bytes of parameters and batch statistics. NeuroBench adds the buffers of a PyTorch network:
        of snnTorch's neurons their constants.
      connection_sparsity: share of the weights that are 0; biases do not count.
      activation_sparsity: share of the outputs of spiking cells that are 0, over layers, steps and samples.
      synaptic_operations: see there.
      membrane_updates: membranes that a step has changed, for one sample over all steps; at the first step
        all of them.
    """

    footprint: int
    connection_sparsity: float
    activation_sparsity: float
    synaptic_operations: SynapticOperations
    membrane_updates: float


def neurobench(model: nn.Module, params: PyTree, state: PyTree, inputs: PyTree) -> NeuroBench:
    """Measures a network as NeuroBench's package measures the same network in snnTorch.

    A pure function but for its results, which are numbers: it compiles one program. The network is the one
    that is deployed, with its batch norms folded into the weights.

    Args:
      model: the network; its weights are in `nn.Dense`, `nn.Conv`, `NormedConv`, `ScaledWSConv` (all of whose
        weights count) and `Recurrent`.
      params, state, inputs: as for a rule, the membranes in `state` at rest.

    Raises:
      ValueError: there are no such layers, or a convolution pads with something else than zeros.
    """
    measure = jax.jit(lambda *given: record(model, lambda: _observe, *given))
    seen = jax.device_get(measure(params, state, inputs)).values()
    total = lambda name: float(sum(v[name].sum(dtype=np.float64) for v in seen if name in v))
    # At the first step a membrane is there that was not.
    updates = sum(v["neurons"][0] + v["updates"][1:].sum(dtype=np.float64) for v in seen if "updates" in v)
    return NeuroBench(
        footprint=sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((params, state.get(BATCH_STATS)))),
        connection_sparsity=total("zeros") / total("weights"),
        activation_sparsity=total("silent") / total("outputs"),
        synaptic_operations=SynapticOperations(total("macs"), total("acs"), total("dense")),
        membrane_updates=float(updates),
    )


def _observe(module, variables, xs, ys):
    """Counts of a layer at each step, `[C]` each; those that depend on the batch in the mean over it."""
    C, B = xs.shape[:2]
    same = lambda value: jnp.full(C, value, jnp.float32)
    if isinstance(module, Cells):
        before, after = variables[MEMBRANE]["v"], module.variables[MEMBRANE]["v"]
        found = {"neurons": same(before.size / B), "updates": same((before != after).sum() / B)}
        if module.spikes:
            found |= {
                "silent": (ys == 0).sum(range(1, ys.ndim)).astype(jnp.float32),
                "outputs": same(ys[0].size),
            }
        return found
    if isinstance(module, Recurrent):  # whose weights its spikes go through, one step later
        n, xs = ys.shape[-1], ys
        kernel = variables["params"]["kernel"]
        module = nn.Dense(n)
    elif isinstance(module, nn.Dense | nn.Conv | NormedConv | ScaledWSConv):
        kernel = variables["params"]["kernel"]
    else:
        return None
    there = (xs != 0).astype(jnp.float32)
    standardised = isinstance(module, ScaledWSConv)
    weights = jnp.ones_like(kernel) if standardised else (kernel != 0).astype(jnp.float32)
    done = operations(module, there, weights).mean(1)
    binary = jnp.all((xs == 0) | (jnp.abs(xs) == 1), range(1, xs.ndim))
    return {
        "macs": jnp.where(binary, 0, done),
        "acs": jnp.where(binary, done, 0),
        "dense": same(operations(module, jnp.ones_like(there[:1, :1]))[0, 0]),
        "zeros": same((weights == 0).sum()),
        "weights": same(weights.size),
    }
