"""QTDB: electrocardiograms of PhysioNet's QT Database as level crossings, with a label at each step."""

from pathlib import Path

import numpy as np

from sltt_jax.damage import check_is_file, reading
from sltt_jax.data.arrays import ArrayData
from sltt_jax.data.events.foreign import decode

CLASSES = 6  # parts of a heart beat: the waves P, Q, R, S, T, and in between


def load_qtdb(folder: str | Path, *, steps: int = 1301) -> ArrayData:
    """Loads `<folder>/QTDB_train.mat` and `QTDB_test.mat`, as Yin et al. published them (2021).

    The files are in the folder `data` of the repository byin-cwi/Efficient-spiking-networks.

    Args:
      folder: where both files are.
      steps: the first so many time steps of every recording.

    Returns:
      Crossings `[N, steps, 4]` in -1, 0, 1, float32, and targets `{"y": [N, steps], "weight": [N, steps]}`;
      steps without a label have the weight 0.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged, or there are not so many steps.
    """
    (train_x, train_y), (test_x, test_y) = (
        _read(Path(folder) / f"QTDB_{n}.mat", steps) for n in ("train", "test")
    )
    return ArrayData(train_x, train_y, test_x, test_y, classes=CLASSES)


def _read(path: Path, steps: int):
    check_is_file(path)
    with reading(path, "a MATLAB file of x [N, T, 4] and one-hot y [N, T, 6]"):
        file = decode("scipy", path)
        x, y = file["x"], file["y"]
        N, T = x.shape[:2]
        if x.shape != (N, T, 4) or y.shape != (N, T, CLASSES) or not N:
            raise ValueError(f"x {x.shape} and y {y.shape}")
        if not (np.isin(x, (-1, 0, 1)).all() and np.isin(y, (0, 1)).all() and (y.sum(-1) <= 1).all()):
            raise ValueError("entries of x other than -1, 0, 1, or of y that are not one-hot")
    if not 1 <= steps <= T:
        raise ValueError(f"{path} has recordings of {T} steps, so T must be in 1..{T}, got {steps}")
    x, y = x[:, :steps], y[:, :steps]
    target = {"y": y.argmax(-1).astype(np.int32), "weight": y.sum(-1).astype(np.float32)}
    return x.astype(np.float32), target
