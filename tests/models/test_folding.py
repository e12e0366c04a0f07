"""Batch normalisation folded into the weights before it: the same network, and nothing left to normalise."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional, run
from sltt_jax.layers import LIF, Dense, Dropout, NormedConv, ScaledWSConv, StepBatchNorm, standardised
from sltt_jax.models import ConvNet, ResNet18
from sltt_jax.models.chain import Between, calls, chain
from sltt_jax.models.folding import fold_batch_norm, plain_weights

X = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))


class Normed(nn.Module):
    """A convolution that leaves its bias to the norm, as in VGG, and a dense layer with a norm."""

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        xs, bias = NormedConv(3, (3, 3), bias_init=nn.initializers.ones, name="conv")(xs)
        xs = StepBatchNorm(name="bn1")(xs, bias, train=train)
        xs = LIF(name="lif")(xs, temporal_gradient=temporal_gradient)
        xs = Dense(5, name="fc")(xs.reshape(*xs.shape[:2], -1))
        return StepBatchNorm(name="bn2")(xs, train=train)


def drawn(model):
    """Parameters and statistics that are those of nothing in particular."""
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), X)
    rng = np.random.default_rng(0)
    draw = lambda path, a: jnp.asarray(
        rng.uniform(0.2 if path[-1].key == "var" else -0.5, 1, a.shape), a.dtype
    )
    return jax.tree_util.tree_map_with_path(draw, (params, {"batch_stats": state["batch_stats"]}))


def logits(model, params, state, x, train=False):
    state = functional.at_rest(model, state, x)
    xs = jnp.broadcast_to(x, (4, *x.shape))
    return jax.jit(partial(run, functional.applier(model, train=train)))(params, state, xs)[0]


@pytest.mark.usefixtures("quick_compile", "x64")
@pytest.mark.parametrize("model", [Normed(), ConvNet((3, 4), 5)], ids=["Normed", "ConvNet"])
def test_a_folded_network_computes_the_same(model):
    params, state = jax.tree.map(lambda a: a.astype(float), drawn(model))
    folded, rest = fold_batch_norm(model, params, state, X)
    before, after = logits(model, params, state, X), logits(model, folded, rest, X)
    np.testing.assert_allclose(after, before, rtol=1e-12, atol=1e-12)
    # The kernels do it: with those of before the folded norms give something else.
    kept = jax.tree_util.tree_map_with_path(
        lambda path, new, old: old if path[-1].key == "kernel" else new, folded, params
    )
    assert np.abs(logits(model, kept, rest, X) - before).max() > 0.1


def test_what_is_left_of_a_norm_is_a_bias():
    model = ConvNet((3,), 5)
    params, state = drawn(model)
    folded, rest = fold_batch_norm(model, params, state, X)
    norm, statistics = folded["StepBatchNorm_0"], rest["batch_stats"]["StepBatchNorm_0"]
    assert (statistics["var"] + StepBatchNorm.epsilon == 1).all() and not statistics["mean"].any()
    assert (norm["scale"] == 1).all() and norm["bias"].std() > 0.1
    assert params["StepBatchNorm_0"]["scale"].std() > 0.1  # what was given is as it was


def test_a_norm_without_weights_before_it_is_named():
    x = jnp.zeros((1, 8, 8, 3))
    with pytest.raises(ValueError, match="layer1_1/bn1 normalises what no single layer puts out"):
        fold_batch_norm(ResNet18(width=0.05), {}, {}, x)


def test_a_state_without_running_statistics_is_an_error():
    params, _ = drawn(ConvNet((2,), 3))
    with pytest.raises(ValueError, match="StepBatchNorm_0 has no running statistics in the state"):
        fold_batch_norm(ConvNet((2,), 3), params, {}, X)


def test_weights_that_are_standardised_become_plain():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, xs, *, train, temporal_gradient):
            return ScaledWSConv(3, (3, 3), name="conv")(xs)

    params, _ = functional.init(Net(), jax.random.key(0), X)
    (layer,) = calls(Net(), X).layers
    kernel, bias = plain_weights(layer, params)
    own = params["conv"]
    np.testing.assert_array_equal(kernel, standardised(own["kernel"], own["gain"]))
    assert abs(kernel.mean()) < 1e-6 < np.abs(np.mean(own["kernel"])) and not bias.any()


def test_a_chain_says_what_stands_between_its_layers():
    found = [(between, layer and layer.name) for between, layer in chain(calls(ConvNet((2, 3), 5), X))]
    pooled = Between("avg", 2)
    assert found == [
        (Between(), "Conv_0"),
        (Between(), "StepBatchNorm_0"),
        (Between(), "LIF_0"),
        (pooled, "Conv_1"),
        (Between(), "StepBatchNorm_1"),
        (Between(), "LIF_1"),
        (pooled._replace(flatten=True), "Dense_0"),
        (Between(), None),
    ]


class Told(nn.Module):
    """A layer before and after something that it is told to do."""

    do: object
    flip: bool = False

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        return Dense(4, name="second")(self.do(Dense(4, name="first")(xs)))


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda ys: ys + 1, "second is given .*, which is not what first puts out"),
        (lambda ys: ys + Dense(4, name="side")(ys), "second is given .*, which is not what side puts out"),
        (lambda ys: 2 * ys, "factors between layers are not known"),
        (lambda ys: nn.max_pool(ys, (2, 2), (2, 2)), "maxima"),
        (lambda ys: ys[..., ::-1], "second is given"),
        (lambda ys: nn.LayerNorm(name="norm")(ys), "norm .LayerNorm. has weights of its own"),
        (lambda ys: Dense(4, name="again")(Dense(4, name="again")(ys)), "again"),
    ],
)
def test_what_is_no_chain_is_an_error_that_names_the_layer(do, message):
    with pytest.raises(Exception, match=message):
        chain(calls(Told(do), X))


def test_dropout_in_evaluation_is_an_error():
    still = Told(lambda ys: Dropout(0.5, deterministic=True)(ys))
    assert [layer.name for _, layer in chain(calls(still, X))[:-1]] == ["first", "second"]
    with pytest.raises(ValueError, match="Dropout_0 drops out also when train=False"):
        calls(Told(lambda ys: Dropout(0.5, deterministic=False)(ys)), X)
