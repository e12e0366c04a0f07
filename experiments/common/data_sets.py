"""The data sets of the experiments by name: what they look like, and where they are."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.configs import Config
from common.forms import Loader, Spec

from sltt_jax import data
from sltt_jax.data.augment import cifar, random_crop, random_flip, random_roll
from sltt_jax.data.events.cameras import load_cifar10_dvs, load_dvs_gesture, load_nmnist
from sltt_jax.data.events.qtdb import load_qtdb
from sltt_jax.data.events.shd import load_shd
from sltt_jax.data.events.spoken_digits import load_fsdd


def _digits(directory: Path, config: Config, download: bool) -> data.ArrayData:
    del directory, config, download  # they come with scikit-learn
    return data.load_digits()


def _images(name: str) -> Loader:
    def load(directory: Path, config: Config, download: bool) -> data.ArrayData:
        del config
        from sltt_jax.data.images.tfds_sets import load_images  # tensorflow-datasets takes a second to import

        return load_images(name, directory, download=download)

    return load


def _events(load_frames: Callable[..., data.ArrayData], folder: str) -> Loader:
    def load(directory: Path, config: Config, download: bool) -> data.ArrayData:
        del download  # none of these can be fetched
        return load_frames(directory / folder, steps=config.T, cache=directory / "cache")

    return load


def _cifar10_dvs(directory: Path, config: Config, download: bool) -> data.ArrayData:
    del download
    return load_cifar10_dvs(
        directory / "cifar10_dvs",
        steps=config.T,
        preprocessing=config.preprocessing,
        cache=directory / "cache",
    )


def _qtdb(directory: Path, config: Config, download: bool) -> data.ArrayData:
    del download
    return load_qtdb(directory / "qtdb", steps=config.T)


CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # mean and std, as in the paper's code
CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (0.0,), (1.0,)

WORKERS = 4  # processes that decode ImageNet, as many as the authors use

SPECS = {
    "digits": Spec((8, 8, 1), 10, _digits),
    "mnist": Spec(
        (28, 28, 1), 10, _images("mnist"), pixels=GREY, augmentation=partial(random_crop, padding=2)
    ),
    "psmnist": Spec((28, 28, 1), 10, _images("mnist"), pixels=GREY, sequence=True),
    "fashion_mnist": Spec((28, 28, 1), 10, _images("fashion_mnist"), pixels=GREY, augmentation=random_flip),
    "cifar10": Spec((32, 32, 3), 10, _images("cifar10"), pixels=CIFAR10, augmentation=cifar),
    "cifar100": Spec((32, 32, 3), 100, _images("cifar100"), pixels=CIFAR100, augmentation=cifar),
    "imagenet": Spec((224, 224, 3), 1000, None, pixels=IMAGENET),
    "nmnist": Spec(
        (34, 34, 2),
        10,
        _events(load_nmnist, "nmnist"),
        events=True,
        augmentation=partial(random_roll, pixels=2),
    ),
    "dvs_cifar10": Spec((48, 48, 2), 10, _cifar10_dvs, events=True),
    "dvs_gesture": Spec((128, 128, 2), 11, _events(load_dvs_gesture, "dvs_gesture"), events=True),
    "fsdd": Spec((64,), 10, _events(load_fsdd, "fsdd"), events=True),
    "shd": Spec((700,), 20, _events(load_shd, "shd"), events=True),
    "ssc": Spec((700,), 35, _events(partial(load_shd, name="ssc"), "ssc"), events=True),
    "qtdb": Spec((4,), 6, _qtdb, events=True, per_step=True),
}


def spec(config: Config) -> Spec:
    """The data set of a configuration.

    Raises:
      ValueError: there is none of that name.
    """
    if config.data not in SPECS:
        own = "folder:PATH, events:PATH or PATH.py"
        raise ValueError(f"unknown data set {config.data!r}; there are {', '.join(SPECS)}, and {own}")
    return SPECS[config.data]
