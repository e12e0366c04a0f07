"""Agreement of the gradient of a rule with that of BPTT, by layer, by parameter and by time step.

`agreement` compares gradients as a rule returns them, summed over time. `step_agreement` compares what each
time step adds to them. For that the parameters of the T steps are told apart: with a copy theta[t] of its own
for every step,

    g[t] = dL / d theta[t]                          sum over t of g[t] = the gradient of the rule

is the error signal that arrives at step t, times the input of each weight at that step (for a bias, the error
signal alone), summed over the batch. BPTT's g[t] holds the losses of step t and of all later ones, SLTT's
that of step t only (Meng et al. 2023), so both agree at the last step. This needs no knowledge
of the network, and holds for every rule.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sltt_jax.blocks import Apply, PyTree, time_steps
from sltt_jax.rules import Rule, StepLoss, bptt


class Agreement(NamedTuple):
    """Agreement of a gradient with a reference; NaN but for `norm` where the reference is 0.

    Rounding noise agrees with nothing: a bias before batch normalisation has a gradient of 0, and what is
    computed of it means nothing. `norm` shows it.

    Attributes:
      cosine: of the angle between the two, -1..1; 0 if the gradient alone is 0.
      relative_error: norm of the difference over the norm of the reference, >= 0.
      sign_agreement: share of the reference's entries other than 0 where the gradient has the same sign.
      norm: of the reference.
    """

    cosine: jax.Array
    relative_error: jax.Array
    sign_agreement: jax.Array
    norm: jax.Array


class Report(NamedTuple):
    """Agreement of a gradient as a whole and of its parts.

    Attributes:
      overall: of all parameters together.
      layers: of the parameters of each layer: those under a first key of their tree (with Linen, a module of
        the network), or under a number where there is a list or tuple of layers ("0", "hidden/0").
      parameters: of each, named by its path ("Dense_0/kernel").
    """

    overall: Agreement
    layers: dict[str, Agreement]
    parameters: dict[str, Agreement]


def compare(gradient: PyTree, reference: PyTree) -> Agreement:
    """Compares two trees of arrays, each taken as one vector.

    Raises:
      ValueError: the trees differ, or the shapes in them.
    """
    shapes, expected = (jax.tree.map(jnp.shape, tree) for tree in (gradient, reference))
    if shapes != expected:
        raise ValueError(f"the gradients have different shapes, {shapes} and {expected}")
    norm, own = optax.tree.norm(reference), optax.tree.norm(gradient)
    product = norm * own
    cosine = optax.tree.vdot(gradient, reference) / jnp.where(product > 0, product, 1)
    counted = sum(jnp.sum(b != 0) for b in jax.tree.leaves(reference))
    same = jax.tree.map(lambda a, b: jnp.sum((b != 0) & (jnp.sign(a) == jnp.sign(b))), gradient, reference)
    defined = lambda x: jnp.where(norm > 0, x, jnp.nan)
    return Agreement(
        cosine=defined(jnp.clip(cosine, -1, 1)),
        relative_error=defined(optax.tree.norm(optax.tree.sub(gradient, reference)) / norm),
        sign_agreement=defined(sum(jax.tree.leaves(same)) / counted),
        norm=norm,
    )


def report(gradient: PyTree, reference: PyTree) -> Report:
    """Compares two trees of arrays as a whole, by layer and by leaf.

    Raises:
      ValueError: the trees differ, or the shapes in them.
    """
    overall = compare(gradient, reference)
    paths, a = zip(*jax.tree_util.tree_leaves_with_path(gradient), strict=True)
    b = jax.tree.leaves(reference)
    layers, parameters = {}, {}
    for i, path in enumerate(paths):
        name = lambda keys: jax.tree_util.keystr(keys, simple=True, separator="/")
        layers.setdefault(name(_layer(path)), []).append(i)
        parameters[name(path)] = [i]
    part = lambda members: compare([a[i] for i in members], [b[i] for i in members])
    return Report(overall, *({k: part(v) for k, v in group.items()} for group in (layers, parameters)))


def _layer(path):
    """Cuts the path of a leaf after the first number in it, or else after its first key.

    A number that names the leaf itself does not count: `{"dense": (w, b)}` is one layer.
    """
    # NNX has numbers as keys of a dict in the place of a list.
    numbers = [isinstance(getattr(key, "idx", getattr(key, "key", None)), int) for key in path[:-1]]
    return path[: numbers.index(True) + 1] if True in numbers else path[:1]


def agreement(
    rules: Mapping[str, Rule], apply: Apply, step_loss: StepLoss
) -> Callable[..., dict[str, Report]]:
    """Builds `f(params, state, inputs, target, key=None) -> {name: Report}`, of each rule against BPTT.

    Args:
      rules: by names of your choice; `sltt_k` with random steps is measured on the one draw of `key`.
      apply, step_loss: as for a rule.

    Returns:
      A pure function of the arguments of a rule, to be compiled.
    """

    def f(params, state, inputs, target, key=None):
        def gradient(rule):
            return rule.value_and_grad(apply, step_loss)(params, state, inputs, target, key)[1]

        exact = gradient(bptt())
        return {name: report(gradient(rule), exact) for name, rule in rules.items()}

    return f


def step_agreement(
    rules: Mapping[str, Rule], apply: Apply, step_loss: StepLoss
) -> Callable[..., dict[str, Report]]:
    """Builds `agreement` of the part of each time step in the gradient: entries of the reports are `[T]`.

    It takes T times the memory of the parameters, several times over.
    """

    def f(params, state, inputs, target, key=None):
        def gradient(rule):
            return step_gradients(rule, apply, step_loss)(params, state, inputs, target, key)

        exact = gradient(bptt())
        return {name: jax.vmap(report)(gradient(rule), exact) for name, rule in rules.items()}

    return f


def step_gradients(rule: Rule, apply: Apply, step_loss: StepLoss) -> Callable[..., PyTree]:
    """Builds `f(params, state, inputs, target, key=None) -> grads`, `[T, ...]` for each parameter `[...]`.

    Entry t is the gradient with respect to the parameters as step t uses them; the sum over t is the rule's
    gradient. The steps that `sltt_k` passes over have 0.
    """

    def own_parameters(params, state, xs, *, temporal_gradient):
        def step(carry, x):
            t, state = carry
            block = jax.tree.map(lambda a: a[None], x)
            at_t = jax.tree.map(lambda p: p[t], params)
            outputs, state = apply(at_t, state, block, temporal_gradient=temporal_gradient)
            return (t + 1, state), jax.tree.map(lambda o: o[0], outputs)

        state, outputs = jax.lax.scan(step, state, xs)
        return outputs, state

    def f(params, state, inputs, target, key=None):
        T = time_steps(inputs)
        copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (T, *jnp.shape(p))), params)
        start = jnp.zeros((), jnp.int32), state
        return rule.value_and_grad(own_parameters, step_loss)(copies, start, inputs, target, key)[1]

    return f
