"""Sums of gradients over the blocks of an update, to which one kernel adds all that is small.

A network has dozens of small parameters: biases, scales, time constants. On a GPU the gradient of each would
be added by a kernel of its own in every block, which takes longer to launch than to run.
"""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from sltt_jax.blocks import PyTree, at_least_float32
from sltt_jax.varying import vary_like, varying_over


class _Form(NamedTuple):
    """What a sum is like: the structure and shapes of the parameters, and the places of the small ones."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GradientSum:
    """Sum of gradients, at least in float32, and a pytree: `jax.tree.map(lambda g: g / 2, total)`.

    Attributes:
      large: arrays of two axes or more, like the parameters.
      small: the others end to end, an array `[n]` for those of one type.
      form: how they make a pytree like the parameters.
    """

    large: tuple[jax.Array, ...]
    small: tuple[jax.Array, ...]
    form: _Form = dataclasses.field(metadata={"static": True})

    @classmethod
    def zeros(cls, params: PyTree) -> Self:
        """Makes the sum of no gradient to `params`, floating point arrays."""
        leaves, structure = jax.tree.flatten(params)
        zeros = [vary_like(at_least_float32(jnp.zeros_like(p)), p) for p in leaves]
        groups = {}
        for place, zero in enumerate(zeros):
            if zero.ndim < 2:
                groups.setdefault((zero.dtype, varying_over(zero)), []).append(place)
        form = _Form(structure, tuple(z.shape for z in zeros), tuple(map(tuple, groups.values())))
        return cls(tuple(z for z in zeros if z.ndim > 1), _end_to_end(zeros, form), form)

    def __add__(self, grads: PyTree) -> Self:
        """Adds gradients like the parameters."""
        leaves = jax.tree.leaves(grads)
        added = tuple(g for g in leaves if g.ndim > 1), _end_to_end(leaves, self.form)
        large, small = jax.tree.map(jnp.add, (self.large, self.small), added)
        return dataclasses.replace(self, large=large, small=small)

    def tree(self) -> PyTree:
        """Returns the sum like the parameters."""
        shapes, large = self.form.shapes, iter(self.large)
        leaves = [next(large) if len(shape) > 1 else None for shape in shapes]
        for total, group in zip(self.small, self.form.groups, strict=True):
            ends = itertools.accumulate(math.prod(shapes[place]) for place in group)
            for place, part in zip(group, jnp.split(total, [*ends][:-1]), strict=True):
                leaves[place] = part.reshape(shapes[place])
        return jax.tree.unflatten(self.form.structure, leaves)


def _end_to_end(leaves, form):
    return tuple(jnp.concatenate([leaves[place].reshape(-1) for place in group]) for group in form.groups)
