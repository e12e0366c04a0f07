"""The trained networks that come with the package do what is said of them."""

import os
from functools import partial
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import sltt_jax.models.pretrained as pretrained
from sltt_jax import data, functional
from sltt_jax.data.events.cameras import load_nmnist
from sltt_jax.models.pretrained import PRETRAINED, load_pretrained, read_weights, write_weights

DATA = Path(os.environ.get("TFDS_DATA_DIR", Path(__file__).parents[2] / "data"))
FOLDER = Path(pretrained.__file__).parent / "weights"


def correct(net, x, y, batch, encode=None):
    """How many samples `[N, ...]` of whole batches are classified correctly."""
    evaluate = jax.jit(partial(functional.applier(net.model, train=False), temporal_gradient=False))
    encode = encode or (lambda x: np.broadcast_to(x, (net.T, *x.shape)))
    state, found = net.at_rest(encode(x[:batch])[0]), 0
    for i in range(0, len(x), batch):
        xs = encode(x[i : i + batch])
        found += int((evaluate(net.params, state, xs)[0].sum(0).argmax(-1) == y[i : i + batch]).sum())
    return found


def test_digits_have_the_accuracy_that_is_said():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    digits, net, said = data.load_digits(), load_pretrained("digits"), PRETRAINED["digits"]
    assert len(digits.test_x) == said.tested and net.accuracy == said.correct / said.tested > 0.98
    found = correct(net, digits.test_x, digits.test_y, said.tested)
    assert abs(found - said.correct) <= 1, found
    # Its weights do it: with those of one layer in another order it guesses.
    kernel = net.params["Conv_1"]["kernel"]
    shuffled = net._replace(params={**net.params, "Conv_1": {"kernel": kernel[..., ::-1]}})
    assert correct(shuffled, digits.test_x, digits.test_y, said.tested) < 200


@pytest.mark.slow
def test_mnist_has_the_accuracy_that_is_said():
    if not (DATA / "mnist").is_dir():
        pytest.skip(f"no MNIST in {DATA}/mnist, its official files or prepared")
    from sltt_jax.data.images.tfds_sets import load_images

    mnist, net, said = load_images("mnist", DATA), load_pretrained("mnist"), PRETRAINED["mnist"]
    assert len(mnist.test_x) == said.tested
    found = correct(net, mnist.test_x.astype(np.float32) / 255, mnist.test_y, 500)
    assert abs(found - said.correct) <= 5, found


@pytest.mark.slow
def test_nmnist_has_the_accuracy_that_is_said():
    net, said = load_pretrained("nmnist"), PRETRAINED["nmnist"]
    try:
        nmnist = load_nmnist(DATA / "nmnist", steps=net.T)
    except FileNotFoundError as error:
        pytest.skip(f"no N-MNIST in {DATA}/nmnist: {error}")
    # Of a larger part of the release as many as it was tested on, which may be others: 4 of 100 are two
    # standard deviations.
    every = len(nmnist.test_x) // said.tested
    x, y = (a[::every][: said.tested] for a in (nmnist.test_x, nmnist.test_y))
    found = correct(net, x, y, said.tested, lambda x: np.moveaxis(x, 1, 0))
    assert abs(found - said.correct) <= 4, found


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_file_fits_its_network(name):
    net = load_pretrained(name)
    shape = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "nmnist": (34, 34, 2)}[name]
    x = jax.ShapeDtypeStruct((1, *shape), np.float32)
    params, state = jax.eval_shape(partial(functional.init, net.model), jax.random.key(0), x)
    statistics = {k: state[k] for k in functional.kept(net.model) if k in state}
    chex.assert_trees_all_equal_shapes_and_dtypes((net.params, net.statistics), (params, statistics))


def test_the_files_are_small_and_all_of_them_are_named():
    files = sorted(FOLDER.iterdir())
    assert [file.name for file in files] == [f"{name}.npz" for name in sorted(PRETRAINED)]
    assert sum(file.stat().st_size for file in files) < 2 * 10**6


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no trained network 'cifar10'; there are digits, mnist, nmnist"):
        load_pretrained("cifar10")


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_FOLDER", tmp_path)
    with pytest.raises(OSError):
        load_pretrained("digits")
    content = bytearray((FOLDER / "digits.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "digits.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"digits\.npz is damaged: its SHA-256 is [0-9a-f]{64}, not 3020f6"):
        load_pretrained("digits")


def test_weights_of_ones_own(tmp_path):
    net = load_pretrained("digits")
    sums = {write_weights(tmp_path / f"{i}.npz", net.params, net.statistics) for i in range(2)}
    assert sums == {PRETRAINED["digits"].sha256}
    chex.assert_trees_all_equal(read_weights(tmp_path / "0.npz"), (net.params, net.statistics))
    write_weights(tmp_path / "plain.npz", {"w": np.ones(2)}, {})
    chex.assert_trees_all_equal(read_weights(tmp_path / "plain.npz"), ({"w": np.ones(2)}, {}))


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    whole = (FOLDER / "digits.npz").read_bytes()
    objects = np.array([os.getcwd], dtype=object)
    for write in (
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(whole[: len(whole) // 2]),
        lambda: path.write_bytes(b"\x93NUMPY not"),
        lambda: np.savez(path, **{"params/w": objects}),
    ):
        write()
        with pytest.raises(ValueError, match=r"x\.npz is not a file of weights by write_weights, or damaged"):
            read_weights(path)
    np.savez(path, a=np.ones(2))
    with pytest.raises(ValueError, match=r"x\.npz holds no params; it has a"):
        read_weights(path)
