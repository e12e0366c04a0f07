"""Keys in the state of a network: each device draws by its own, and all hold the same afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from sltt_jax import Neuron, functional, lif_step, losses, sltt, training
from sltt_jax.data.encoders import event_frames

pytestmark = pytest.mark.usefixtures("quick_compile")

T, B, DEVICES = 3, 4, 4
SHOWN = 64  # entries of a mask
RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(B, T, 5)).astype(np.float32), "y": np.arange(B) % 3}
OPTIMIZER = optax.sgd(0.1)


class Net(nnx.Module):
    """Its outputs are those of a readout, and the mask of the step."""

    def __init__(self, rngs):
        self.hidden, self.readout = nnx.Linear(5, SHOWN, rngs=rngs), nnx.Linear(SHOWN, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, v, x):
        v, s = lif_step(v, self.hidden(x), Neuron(v_threshold=0.3))
        mask = self.dropout(jnp.ones_like(s))
        return v, (self.readout(s * mask), mask)


def of_nnx():
    apply, params, rest = functional.from_nnx(Net(nnx.Rngs(0)))
    return apply, params, rest, lambda rest, x: (jnp.zeros((len(x), SHOWN)), rest)


def of_function():
    """It has two keys, an array of them, of which each step splits the first off."""

    def apply(params, state, xs, *, temporal_gradient):
        masks = []
        for _ in xs:
            key, own = jax.random.split(state[0])
            state = jnp.stack([key, state[1]])
            masks.append(jax.random.bernoulli(own, 0.5, (xs.shape[1], SHOWN)).astype(xs.dtype))
        masks = jnp.stack(masks)
        return ((xs @ params["w"] * masks) @ params["r"], masks), state

    normal = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    params = {"w": normal(5, SHOWN), "r": normal(SHOWN, 3)}
    return apply, params, jax.random.split(jax.random.key(0)), lambda keys, x: keys


@pytest.mark.parametrize("network", [of_nnx, of_function])
def test_each_device_draws_its_own_masks(network):
    apply, params, rest, start = network()
    seen = []

    def step_loss(outputs, target):
        outputs, mask = outputs
        jax.debug.callback(lambda m: seen.append(np.asarray(m).tobytes()), mask)
        return losses.cross_entropy(outputs, target)

    devices = training.local_devices(DEVICES)
    update = training.parallel(
        training.make_update(
            apply,
            sltt(),
            step_loss,
            OPTIMIZER,
            event_frames(),
            start=start,
            kept=lambda state: state[1] if network is of_nnx else state,
            metrics=lambda outputs, target: {},
            axis_name=training.AXIS,
        ),
        devices,
        arguments=1,
    )
    state = training.replicate(training.state_of(params, OPTIMIZER, jax.random.key(1), rest), devices)
    update(state, training.split(BATCH, devices))
    jax.effects_barrier()
    seen.clear()  # with the samples that the loss was checked with as the update was traced
    for updates in (1, 2):  # other masks at each step, device and update
        state, metrics = update(state, training.split(BATCH, devices))
        jax.effects_barrier()
        assert len(seen) == len(set(seen)) == updates * T * DEVICES
    assert np.isfinite(metrics.loss)
    for leaf in jax.tree.leaves(state.variables):
        data = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        assert len({np.asarray(shard.data).tobytes() for shard in data.addressable_shards}) == 1
