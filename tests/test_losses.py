import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import losses

LOGITS = np.array([[1.0, -0.5, 2.0], [0.3, 0.1, -1.0]])
LABELS = np.array([2, 1])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_against_numpy(x64):
    ce = -log_softmax(LOGITS)[[0, 1], LABELS].mean()
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, LABELS), ce, rtol=1e-13)
    ones = ((LOGITS - 1) ** 2).mean()
    one_hot = ((LOGITS - np.eye(3)[LABELS]) ** 2).mean()
    np.testing.assert_allclose(losses.mean_squared_error(LOGITS, LABELS), ones, rtol=1e-13)
    for target, mse in (("ones", ones), ("one_hot", one_hot)):
        loss = losses.classification(mse_weight=0.05, mse_target=target)
        np.testing.assert_allclose(loss(LOGITS, LABELS), 0.95 * ce + 0.05 * mse, rtol=1e-13)
    smooth = 0.8 * ce + 0.2 * -log_softmax(LOGITS).mean()
    np.testing.assert_allclose(losses.classification(label_smoothing=0.2)(LOGITS, LABELS), smooth, rtol=1e-13)


@pytest.mark.parametrize("label", [-1, 3, 100])
def test_label_outside_the_classes_is_nan(label):
    assert jnp.isnan(jax.jit(losses.classification())(LOGITS, jnp.asarray([0, label])))
    assert jnp.isfinite(losses.classification()(LOGITS, jnp.asarray([0, 2])))


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
    with pytest.raises(ValueError, match=message):
        losses.classification(mse_weight=0.1)(logits, labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mse_weight": 1.5}, "mse_weight must be in 0..1, got 1.5"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in 0..1, got -0.1"),
        ({"mse_target": "zeros"}, "must be one of .*ones.*one_hot.* got 'zeros'"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        losses.classification(**settings)
