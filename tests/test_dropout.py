"""Dropout in networks of one's own: masks that would depend on the chunk are refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, bptt, functional, losses, run, sltt
from sltt_jax.cell_layers import LIF
from sltt_jax.layers import Dropout

pytestmark = pytest.mark.usefixtures("quick_compile")

T, B = 6, 4
KEY = jax.random.key(0)
XS, LABELS = 2 * jax.random.normal(KEY, (T, B, 5)), jnp.arange(B) % 3


class Head(nn.Module):
    """A readout of spikes after dropout, which is called on `reshape` of them, or on its weights."""

    dropout: nn.Module
    merge: bool = False
    of_weights: bool = False

    @nn.compact
    def __call__(self, xs, train):
        w = self.param("w", nn.initializers.normal(), (xs.shape[-1], 3))
        if self.of_weights:
            return xs @ self.dropout(w, deterministic=not train)
        shape = xs.shape
        xs = xs.reshape(-1, shape[-1]) if self.merge else xs
        return self.dropout(xs, not train).reshape(shape) @ w


class Net(nn.Module):
    head: nn.Module

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        xs = LIF(Neuron(v_threshold=0.3))(nn.Dense(16)(xs), temporal_gradient=temporal_gradient)
        return self.head(xs, train)


def of(dropout, **how):
    net = Net(Head(dropout, **how))
    return net, *functional.init(net, KEY, XS[0])


def loss(rule, net, params, state):
    apply = functional.applier(net, key=jax.random.key(7))
    return float(rule.value_and_grad(apply, losses.cross_entropy)(params, state, XS, LABELS)[0][0])


@pytest.mark.parametrize("rule", [sltt(), sltt(3), bptt()], ids=str)
def test_masks_with_a_time_axis_are_refused(rule):
    with pytest.raises(
        ValueError, match=r"the Dropout head/dropout draws another mask .* sltt_jax.layers.Dropout"
    ):
        loss(rule, *of(nn.Dropout(0.5)))


def test_masks_whose_axis_of_time_is_one_with_that_of_samples_are_refused():
    """In blocks of one step they are those of a batch."""
    assert loss(sltt(), *of(nn.Dropout(0.5), merge=True)) > 0
    with pytest.raises(ValueError, match=r"each time step of a block, \(12, 16\)"):
        loss(sltt(3), *of(nn.Dropout(0.5), merge=True))


@pytest.mark.parametrize(
    ("dropout", "how"),
    [
        (Dropout(0.5), {}),
        (nn.Dropout(0.5, broadcast_dims=(-3, -1)), {}),
        (nn.Dropout(0.5), {"of_weights": True}),
    ],
    ids=["of the library", "of samples", "of weights"],
)
def test_masks_without_a_time_axis_are_the_same_at_any_chunk(dropout, how):
    with_masks = of(dropout, **how)
    of_rules = [loss(rule, *with_masks) for rule in (sltt(), sltt(3), sltt(T), bptt())]
    np.testing.assert_allclose(of_rules, of_rules[0], rtol=1e-5)
    assert abs(of_rules[0] - loss(sltt(), *of(nn.Dropout(0.0), **how))) > 1e-4


def test_dropout_that_is_off_is_let_be():
    net, params, state = of(nn.Dropout(0.5))
    off = functional.applier(net, train=False)
    outputs, _ = run(off, params, state, XS)
    none = functional.applier(Net(Head(nn.Dropout(0.0))))
    assert (outputs == run(none, params, state, XS)[0]).all() and (outputs != 0).any()
