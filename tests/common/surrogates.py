"""Surrogate derivatives worked out by hand, at the default of each `alpha`."""

from math import acosh, cosh, pi, sqrt
from typing import NamedTuple


class Derivative(NamedTuple):
    peak: float
    half_width: float  # at half of the peak
    right: float  # at x = 0.25
    left: float  # at x = -0.4


DERIVATIVES = {
    "triangle": Derivative(1.0, 0.5, 0.75, 0.6),
    "rectangle": Derivative(1.0, 0.5, 1.0, 1.0),
    # 4 s(4x) (1 - s(4x)) = sech^2(2x)
    "sigmoid": Derivative(1.0, acosh(sqrt(2)) / 2, cosh(0.5) ** -2, cosh(0.8) ** -2),
    "atan": Derivative(1.0, 1 / pi, 1 / (1 + (pi / 4) ** 2), 1 / (1 + (0.4 * pi) ** 2)),
    "fast_sigmoid": Derivative(1.0, 0.20710678118654757, 4 / 9, 0.30864197530864196),
}
