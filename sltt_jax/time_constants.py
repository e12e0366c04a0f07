"""Time constants that are learned: the parameter is any real number, the cell's time constant is above 1.

    1 - 1/tau = sigmoid(p)            tau = 1 + exp(p)

So p is the logit of what a membrane keeps in a step. A step of p is a share of tau, which lets one learning
rate suit short time constants and long ones.
"""

import jax
import jax.numpy as jnp
import numpy as np

# What the layers' parameters of this kind are called, or begin with.
LOGIT_DECAY = "logit_decay"


def tau_of(logit_decay: jax.Array) -> jax.Array:
    """Returns the time constant `1 + exp(p)`, > 1 in time steps, of a parameter of any shape."""
    return 1 + jnp.exp(logit_decay)


def logit_decay_of(tau: jax.Array | float) -> jax.Array:
    """Returns the parameter `log(tau - 1)` of which `tau_of` makes `tau`, for initialisation.

    Raises:
      ValueError: an entry is not above 1, or not finite.
    """
    if not np.all((np.asarray(tau) > 1) & np.isfinite(np.asarray(tau))):
        raise ValueError(f"a learned time constant must be above 1 and finite (in time steps), got {tau}")
    return jnp.log(jnp.asarray(tau, float) - 1)
