"""The embedded data set: 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""

import numpy as np

from sltt_jax.data.arrays import ArrayData

TEST_SAMPLES = 360


def load_digits() -> ArrayData:
    """Digits as `[N, 8, 8, 1]` float32 in 0..1, 1,437 for training and 360 for testing.

    The split is stratified by class and always the same.

    Raises:
      ModuleNotFoundError: scikit-learn, of the extra "experiments", is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install scikit-learn") from error
    digits = datasets.load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = model_selection.train_test_split(
        images, digits.target, test_size=TEST_SAMPLES, stratify=digits.target, random_state=0
    )
    return ArrayData(train_x, train_y.astype(np.int32), test_x, test_y.astype(np.int32), classes=10)
