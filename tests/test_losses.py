import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import losses

pytestmark = pytest.mark.usefixtures("quick_compile")

LOGITS = np.array([[1.0, -0.5, 2.0], [0.3, 0.1, -1.0]])
LABELS = np.array([2, 1])

# By hand: log(sum(exp(logits))) - logits[label] of the two samples, and means of squares.
CROSS_ENTROPY = (0.371539031852683 + 0.937767972637180) / 2
MSE = {
    "ones": (0.0 + 2.25 + 1.0 + 0.49 + 0.81 + 4.0) / 6,
    "one_hot": (1.0 + 0.25 + 1.0 + 0.09 + 0.81 + 1.0) / 6,
}


def test_numbers_by_hand(compiled, x64):
    np.testing.assert_allclose(compiled(losses.cross_entropy)(LOGITS, LABELS), CROSS_ENTROPY, rtol=1e-9)
    np.testing.assert_allclose(compiled(losses.mean_squared_error)(LOGITS, LABELS), MSE["ones"], rtol=1e-13)
    for target, mse in MSE.items():
        loss = compiled(losses.classification(mse_weight=0.05, mse_target=target))(LOGITS, LABELS)
        np.testing.assert_allclose(loss, 0.95 * CROSS_ENTROPY + 0.05 * mse, rtol=1e-9)


# Two samples more than those of above, that do not count; the others count 2 and 0.5 times, each of them.
WEIGHT = np.array([2, 0, 0.5, 0])
OF_FOUR = np.array([LOGITS[0], [np.nan] * 3, LOGITS[1], [np.inf, 0, 0]]), np.array([2, -1, 1, 7])
BY_HAND = {
    "cross_entropy": (2 * 0.371539031852683 + 0.5 * 0.937767972637180) / 4,
    "ones": (2 * (0.0 + 2.25 + 1.0) + 0.5 * (0.49 + 0.81 + 4.0)) / 12,
    "one_hot": (2 * (1.0 + 0.25 + 1.0) + 0.5 * (0.09 + 0.81 + 1.0)) / 12,
}
WEIGHTED = {
    "cross_entropy": losses.cross_entropy,
    "ones": losses.mean_squared_error,
    "one_hot": functools.partial(losses.mean_squared_error, target="one_hot"),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_by_hand_and_undefined_samples_left_out(compiled, x64, name):
    (logits, labels), loss = OF_FOUR, WEIGHTED[name]
    value, grad = compiled(jax.value_and_grad(losses.weighted(loss)))(logits, {"y": labels, "weight": WEIGHT})
    np.testing.assert_allclose(value, BY_HAND[name], rtol=1e-9)
    assert (np.asarray(grad)[[1, 3]] == 0).all()
    for b, weight in ((0, 2), (2, 0.5)):
        of_one = jax.grad(loss)(logits[b : b + 1], labels[b : b + 1])
        np.testing.assert_allclose(grad[b], weight / 4 * of_one[0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float32, np.float64])
def test_weights_of_one_change_nothing(x64, dtype):
    ones = np.ones(2, dtype)
    for loss in WEIGHTED.values():
        np.testing.assert_allclose(loss(LOGITS, LABELS, ones), loss(LOGITS, LABELS), rtol=1e-15)
    for step_loss in (losses.classification(mse_weight=0.05), losses.weighted(losses.cross_entropy)):
        expected = step_loss(LOGITS, LABELS)
        np.testing.assert_allclose(step_loss(LOGITS, {"y": LABELS, "weight": ones}), expected, rtol=1e-15)


def test_regression_of_membranes_by_hand(compiled, x64):
    membrane, values = np.array([[1.0, 2.0], [np.nan, 0.0]]), np.array([[0.5, 4.0], [3.0, np.nan]])
    loss = compiled(losses.membrane_mse)
    np.testing.assert_allclose(loss(membrane[:1], values[:1]), (0.25 + 4) / 2, rtol=1e-15)
    np.testing.assert_allclose(loss(membrane, values, np.array([3, 0])), 3 * (0.25 + 4) / 4, rtol=1e-15)
    with pytest.raises(ValueError, match=r"of one shape, got \(2, 2\) and \(2,\)"):
        loss(membrane, values[:, 0])


def test_normalised_weights(compiled, x64):
    """Their mean loss is the mean over what counts; on four devices too, the third of which has nothing."""
    rng = np.random.default_rng(0)
    loss, weight = rng.normal(size=(5, 8)), rng.uniform(size=(5, 8)) * (rng.uniform(size=(5, 8)) > 0.6)
    weight[:, 4:6] = 0
    expected = (weight * loss).sum() / weight.sum()
    scaled = compiled(losses.normalised)(weight)
    np.testing.assert_allclose((scaled * loss).mean(), expected, rtol=1e-13)
    parts = lambda a: jnp.asarray(np.stack(np.split(a, 4, axis=1)))
    of_devices = jax.pmap(lambda w: losses.normalised(w, "d"), "d")(parts(weight))
    np.testing.assert_allclose((of_devices * parts(loss)).mean((1, 2)).mean(), expected, rtol=1e-13)
    counts = (parts(weight) != 0).sum((1, 2))
    assert counts[2] == 0 and len(set(counts.tolist())) > 2
    np.testing.assert_array_equal(compiled(losses.normalised)(np.zeros((5, 8))), np.zeros((5, 8)))
    assert compiled(losses.normalised)(np.array([True, False])).tolist() == [2, 0]


def test_weights_of_lengths(compiled):
    found = compiled(losses.length_weights, static_argnums=1)(jnp.asarray([0, 1, 3]), 3)
    assert found.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 1]] and found.dtype == np.float32


def test_weights_of_another_shape():
    for loss in WEIGHTED.values():
        with pytest.raises(ValueError, match=r"weights \[B\] of B=2 samples, got shape \(2, 1\)"):
            loss(LOGITS, LABELS, np.ones((2, 1)))


def test_label_outside_the_classes_is_nan(compiled):
    loss = compiled(losses.classification())
    for label in (-1, 3, 100):
        assert jnp.isnan(loss(LOGITS, jnp.asarray([0, label])))
    assert jnp.isfinite(loss(LOGITS, jnp.asarray([0, 2])))


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS[None], LABELS, r"got shapes \(1, 2, 3\) and \(2,\)"),
        (LOGITS, LABELS[:1], r"got shapes \(2, 3\) and \(1,\)"),
        (LOGITS, np.eye(3)[LABELS], r"and \(2, 3\)"),
        (LOGITS, LABELS.astype(float), "must be integers"),
    ],
)
def test_wrong_inputs(logits, labels, message):
    for loss in (losses.classification(mse_weight=0.1), jax.jit(losses.mean_squared_error)):
        with pytest.raises(ValueError, match=message):
            loss(logits, labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mse_weight": 1.5}, "mse_weight must be in 0..1, got 1.5"),
        ({"mse_weight": -0.1}, "mse_weight must be in 0..1, got -0.1"),
        ({"mse_target": "zeros"}, "must be one of .*ones.*one_hot.* got 'zeros'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        losses.classification(**settings)
