"""`.nir` files from elsewhere: what is wrong in them is an error that names the file."""

import numpy as np
import pytest

nir = pytest.importorskip("nir", reason="the extra nir is not installed")
import h5py  # noqa: E402

from sltt_jax.nir import from_nir, model_from_nir  # noqa: E402


@pytest.fixture
def file(tmp_path):
    """The path of a whole file."""
    path, each = tmp_path / "net.nir", np.ones(4)
    lif = nir.LIF(tau=2e-4 * each, r=each, v_leak=0 * each, v_threshold=each, v_reset=0 * each)
    nodes = {
        "input": nir.Input(np.array([3])),
        "fc": nir.Affine(np.ones((4, 3)), each),
        "lif": lif,
        "output": nir.Output(np.array([4])),
    }
    nir.write(path, nir.NIRGraph(nodes, [("input", "fc"), ("fc", "lif"), ("lif", "output")]))
    return path


def spoil_type(f):
    f["node/nodes/lif/type"][...] = "Izhikevich"


def spoil_field(f):
    del f["node/nodes/lif/tau"]


def spoil_shape(f):
    del f["node/nodes/fc/weight"]
    f["node/nodes/fc/weight"] = np.ones((4, 7))


def spoil_size(f):
    del f["node/nodes/fc/weight"]
    f.create_dataset("node/nodes/fc/weight", (10**6, 10**6), "f4", chunks=(1000, 1000))


def spoil_link(f):
    del f["node/nodes/fc/weight"]
    f["node/nodes/fc/weight"] = h5py.ExternalLink("/etc/passwd", "/x")


def spoil_node(f):
    del f["node/nodes/lif"]
    f["node/nodes/lif"] = np.ones(3)


def spoil_edges(f):
    del f["node/edges"]
    f["node/edges"] = ["input", "fc"]


def spoil_all(f):
    del f["node"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_type, "node 'lif' is of the unknown type 'Izhikevich'"),
        (spoil_field, "node 'lif' .LIF. has no tau"),
        (spoil_shape, r"node 'fc' .Affine. must have weights .*\(4, 7\)"),
        (spoil_size, "node/nodes/fc/weight has .* more than the bytes of the file can be"),
        (spoil_link, "node/nodes/fc/weight does not lie in the file"),
        (spoil_node, "node 'lif' must be a group with a type"),
        (spoil_edges, "edges .n, 2. of names"),
        (spoil_all, "it has no group 'node'"),
    ],
)
def test_what_is_wrong_in_a_file_is_an_error_that_names_it(spoil, message, file):
    model_from_nir(file)  # the control: it is whole
    with h5py.File(file, "a") as f:
        spoil(f)
    with pytest.raises(ValueError, match=message) as error:
        from_nir(file)
    assert str(error.value).startswith(str(file))


def test_a_file_that_is_none_is_an_error(tmp_path):
    (tmp_path / "text.nir").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"text.nir: not an NIR file"):
        from_nir(tmp_path / "text.nir")
    with pytest.raises(FileNotFoundError):
        from_nir(tmp_path / "gone.nir")
