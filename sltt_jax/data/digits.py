"""Embedded data set: 1,797 handwritten digits of 8x8 pixels that come with scikit-learn."""

import numpy as np

from sltt_jax.data.arrays import ArrayData

TEST_SAMPLES = 360


def load_digits() -> ArrayData:
    """Loads the digits as `[N, 8, 8, 1]` float32 in 0..1, 1,437 for training and 360 for testing.

    The split is stratified by class and always the same.

    Raises:
      ModuleNotFoundError: scikit-learn, of the extra "experiments", is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the digits come with scikit-learn: pip install scikit-learn") from error
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.asarray(pixels, np.float32).reshape(-1, 8, 8, 1) / 16
    labels = np.asarray(labels, np.int32)
    train, test = model_selection.train_test_split(
        np.arange(len(images)), test_size=TEST_SAMPLES, stratify=labels, random_state=0
    )
    return ArrayData(images[train], labels[train], images[test], labels[test], classes=10)
