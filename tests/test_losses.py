import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import losses

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
