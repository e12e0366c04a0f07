"""The choice of a chunk from the memory of compiled programs."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from sltt_jax import bptt, functional, losses
from sltt_jax.analysis import auto_chunk, chunks
from sltt_jax.models import MLP, ConvNet

pytestmark = pytest.mark.usefixtures("quick_codegen")

LOSS = losses.classification()
MODELS = {"wide": (MLP((512, 512)), (256,)), "maps": (ConvNet((16, 32)), (24, 24, 2))}


def arguments(name, T, batch=32):
    model, shape = MODELS[name]
    xs = jax.ShapeDtypeStruct((T, batch, *shape), jnp.float32)
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    return functional.applier(model), LOSS, params, state, xs, jax.ShapeDtypeStruct((batch,), jnp.int32)


def test_many_weights_and_few_neurons_want_a_long_chunk():
    assert auto_chunk(*arguments("wide", 12), gigabytes=1) == 12


@pytest.mark.slow
def test_it_is_shorter_where_the_block_would_not_stay_in_the_cache(monkeypatch):
    monkeypatch.setattr(chunks, "_CPU_CACHE", 8 * 2**20)
    assert 1 < auto_chunk(*arguments("wide", 60), gigabytes=1) < 60


@pytest.mark.slow
def test_few_weights_and_large_maps_want_a_short_one():
    assert auto_chunk(*arguments("maps", 12), gigabytes=1) in (1, 2, 3)


@pytest.mark.slow
def test_the_memory_given_is_a_bound():
    """With a little less than what the best one takes it is another, down to where none fits."""
    args, taken = arguments("wide", 12), {}
    for c in (1, 12):
        traced = chunks.trace_gradient(*args[:2], chunks.sltt(c), *args[2:])
        taken[c] = chunks.temp_bytes(traced.lower().compile()) / 1e9
    assert auto_chunk(*args, gigabytes=taken[12]) == 12
    assert auto_chunk(*args, gigabytes=0.99 * taken[12]) in (1, 2, 3, 4, 6)
    assert auto_chunk(*args, gigabytes=taken[1]) == 1
    with pytest.raises(ValueError, match=r"sltt\(chunk=1\) takes .* GB of temporaries, more than the"):
        auto_chunk(*args, gigabytes=0.99 * taken[1])
    with pytest.raises(ValueError, match="gigabytes must be > 0, got 0"):
        auto_chunk(*args, gigabytes=0)


@pytest.mark.slow
def test_bptt_has_a_chunk_too(monkeypatch):
    """Its own memory is the bound: the longest chunk that fits is taken."""
    args, taken = arguments("wide", 6), {}
    for c in (1, 2, 3, 6):
        traced = chunks.trace_gradient(*args[:2], bptt(c), *args[2:])
        taken[c] = chunks.temp_bytes(traced.lower().compile()) / 1e9
    assert auto_chunk(*args, gigabytes=1, rule=bptt()) == 6
    for limit in taken.values():
        longest = max(c for c, gigabytes in taken.items() if gigabytes <= limit)
        assert auto_chunk(*args, gigabytes=limit, rule=bptt()) == longest, taken
    with pytest.raises(ValueError, match=r"bptt\(chunk=1\) takes .* GB of temporaries, more than the"):
        auto_chunk(*args, gigabytes=0.99 * min(taken.values()), rule=bptt())
    # Nothing fits, and nothing was asked for.
    monkeypatch.setattr(chunks, "_CPU_GIGABYTES", 0.99 * min(taken.values()))
    assert auto_chunk(*args, rule=bptt()) == min(taken, key=lambda chunk: taken[chunk])


@pytest.mark.slow
def test_by_default_it_is_the_memory_of_the_device(monkeypatch):
    class Accelerator:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": self.limit}

    device = Accelerator()
    monkeypatch.setattr(chunks.jax, "local_devices", lambda: [device])
    monkeypatch.setattr(chunks.jax, "default_backend", lambda: "gpu")
    args = arguments("maps", 4)
    device.limit = 10**12
    assert auto_chunk(*args) == 4  # on an accelerator the longest that fits
    device.limit = 1000
    with pytest.raises(ValueError, match=r"more than the 8e-07 GB given"):
        auto_chunk(*args)


def test_one_step_has_one_chunk():
    assert auto_chunk(*arguments("wide", 1), gigabytes=1) == 1
