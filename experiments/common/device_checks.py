"""Whether a device computes what the CPU does."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers import with_sltt_jax
from peers.workloads import Workload

from sltt_jax import parse_rule

# Of the change of the parameters. In single precision a membrane that is rounded otherwise may spike or not,
# and one spike is far above rounding.
BOUNDS = {"float64": 1e-9, "float32": 0.05}


def deviation(workload: Workload, rule: str, dtype: str, device: Any) -> float:
    """Compares what an update changes in the parameters on a device and on the CPU.

    Args:
      workload: the update.
      rule: as `parse_rule` takes it.
      dtype: "float64" or "float32", of everything; TF32 is not used.
      device: of JAX.

    Returns:
      The norm of the difference of the changes, over the norm of that on the CPU.
    """
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        update, state, batch = with_sltt_jax.make_update(workload, parse_rule(rule), "float32")
        state, batch = jax.device_get((_cast(state, dtype), _cast(batch, dtype)))
        changes = []
        for place in (jax.devices("cpu")[0], device):
            after, _ = jax.jit(update)(*jax.device_put((state, batch), place))
            changes.append(_flat(after.params) - _flat(state.params))
    ours, theirs = changes[1], changes[0]
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def check_deviation(workload: Workload, rule: str, dtype: str, device: Any) -> dict[str, Any]:
    """Returns the `deviation` as a row of results.

    Raises:
      ArithmeticError: it is above its bound, or not a number.
    """
    found = deviation(workload, rule, dtype, device)
    if not found <= BOUNDS[dtype]:
        raise ArithmeticError(
            f"the {device.platform} deviates from the CPU by {found:.1e} > {BOUNDS[dtype]:.0e}"
        )
    return {"deviation": found}


def _cast(tree, dtype):
    return jax.tree.map(
        lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a,
        tree,
    )


def _flat(tree) -> np.ndarray:
    leaves = jax.tree.leaves(jax.device_get(tree))
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])
