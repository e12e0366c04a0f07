"""Weights from PyTorch and back, and files by the real torch."""

import dataclasses
import logging
import re

import chex
import jax
import numpy as np
import pytest

from sltt_jax import functional, losses, rules
from sltt_jax.models.torch_weights import from_torch, read_checkpoint, to_torch
from sltt_jax.neurons import Neuron
from tests.common.torch_weights import MODELS, model_and_input, random_variables, state_dict

pytestmark = pytest.mark.usefixtures("quick_compile")

every_model = pytest.mark.parametrize("name", MODELS)


def torch_net(name, **neuron):
    pytest.importorskip("torch", reason="PyTorch is an optional development dependency")
    from tests.common import torch_nets

    cls, fields, _, channels = MODELS[name]
    net = getattr(torch_nets, cls.__name__)(
        **fields, classes=5, width=1 / 16, channels=channels, neuron={"tau": 1.5, **neuron}
    )
    return net.double()


@every_model
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_round_trip(name, dtype):
    variables = random_variables(name, dtype)
    model, _ = model_and_input(name)
    there = to_torch(model, *variables)
    back = from_torch(model, there)
    chex.assert_trees_all_equal(back, variables)
    assert {x.dtype for x in jax.tree.leaves(back)} == {np.dtype(dtype)}
    again = to_torch(model, *back)
    assert again.keys() == there.keys()
    assert all(x.flags.c_contiguous and x.flags.owndata for x in again.values())


@every_model
def test_arrays_are_copies(name):
    params, state = random_variables(name)
    model, _ = model_and_input(name)
    for x in (there := to_torch(model, params, state)).values():
        x[...] = 0
    assert all(np.all(x != 0) for x in jax.tree.leaves((params, state)))
    loaded = from_torch(model, there)
    for x in there.values():
        x[...] = 1
    assert not any(np.any(x) for x in jax.tree.leaves(loaded))


NEURONS = {
    "resnet": {"v_reset": -0.25, "v_threshold": 0.75},
    "vgg": {"detach_reset": True, "v_threshold": 0.5},
    "nf_resnet": {"v_reset": 0.0, "decay_input": True},
    "nf_resnet_bottleneck": {},
}
RULES = [rules.bptt(), rules.sltt(), rules.sltt(chunk=2), rules.sltt_k(k=1, draw=(1,))]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_same_network_as_in_torch(name, rule, x64):
    """Weights go to PyTorch, which loads them strictly; then both compute the same, gradients too."""
    net = torch_net(name, **NEURONS[name])
    import torch

    from tests.common import torch_nets

    model, x = model_and_input(name, Neuron(tau=1.5, **NEURONS[name]))
    rng = np.random.default_rng(1)
    xs = rng.standard_normal((3, *x.shape))
    labels = np.array([1, 3])
    params, statistics = random_variables(name)
    weights = {k: torch.from_numpy(v) for k, v in to_torch(model, params, statistics).items()}
    net.load_state_dict(weights, strict=True)

    _, fresh = functional.init(model, jax.random.key(0), xs[0])
    apply, step_loss = functional.applier(model), losses.classification()
    f = jax.jit(rule.value_and_grad(apply, step_loss))
    (_, aux), grads = f(params, {**fresh, **statistics}, xs, labels)

    scored = (1,) if isinstance(rule, rules.sltt_k) else (0, 1, 2)
    logits, loss = torch_nets.run(
        net, torch.from_numpy(xs.transpose(0, 1, 4, 2, 3)), torch.from_numpy(labels),
        isinstance(rule, rules.bptt), scored,
    )  # fmt: skip
    np.testing.assert_allclose(aux.outputs, logits.detach().sum(0), rtol=1e-10)
    np.testing.assert_allclose(np.asarray(aux.losses)[list(scored)].sum() / 3, loss.item(), rtol=1e-12)
    moved = {k: v.numpy() for k, v in net.state_dict().items() if "running" in k}
    ours = {k: v for k, v in to_torch(model, {}, aux.state).items() if "running" in k}
    assert ours.keys() == moved.keys()
    for key, value in moved.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-10)
    ours = to_torch(model, grads, {})
    expected = {k: p.grad.numpy() for k, p in net.named_parameters()}
    assert ours.keys() == expected.keys()
    largest = max(np.linalg.norm(g) for g in expected.values())
    assert largest > 1e-3
    for key, g in expected.items():
        assert np.linalg.norm(ours[key] - g) <= 1e-9 * max(np.linalg.norm(g), 1e-6 * largest), key


@pytest.mark.slow
@every_model
def test_checkpoint_by_torch(name, tmp_path):
    """As the authors save it, with the optimizer, through DataParallel, and the bare state dict."""
    net = torch_net(name)
    import torch

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    expected = {k: v.numpy() for k, v in net.state_dict().items()}
    wrapped = {f"module.{k}": v for k, v in net.state_dict().items()}
    rest = {"optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 3}
    model, _ = model_and_input(name)
    for content in ({"net": net.state_dict(), **rest}, {"state_dict": wrapped, **rest}, net.state_dict()):
        torch.save(content, tmp_path / "x.pth")
        loaded = read_checkpoint(tmp_path / "x.pth")
        params, state = from_torch(model, loaded)
        for key, value in to_torch(model, params, state).items():
            np.testing.assert_array_equal(value, expected[key], strict=True)


def test_every_kind_of_tensor(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional development dependency")
    base = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4)
    tensors = {
        "transposed": base.permute(2, 0, 1),
        "part": base[1, :, 1:3],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        **{
            str(dtype): torch.tensor([0, 1, 100]).to(dtype)
            for dtype in (
                torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
                torch.bool,
            )
        },
    }  # fmt: skip
    torch.save(tensors, tmp_path / "x.pth")
    loaded = read_checkpoint(tmp_path / "x.pth")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert str(loaded[name].dtype) == str(tensor.dtype).removeprefix("torch.")
        value = tensor.detach()
        value = value.float() if tensor.dtype == torch.bfloat16 else value
        np.testing.assert_array_equal(loaded[name].astype(value.numpy().dtype), value.numpy(), strict=True)


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy", reason="safetensors is optional").save_file
    save_file(expected := state_dict(), tmp_path / "x.safetensors")
    loaded = read_checkpoint(str(tmp_path / "x.safetensors"))
    assert loaded.keys() == expected.keys()
    from_torch(model_and_input("resnet")[0], loaded)
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"y\.safetensors is not a safetensors file, or damaged"):
        read_checkpoint(tmp_path / "y.safetensors")


def test_other_names_of_the_same_arrays(caplog):
    """torchvision and spikingjelly: readout, shortcuts, wrapped layers, and VGGs of numbered features."""
    model, _ = model_and_input("resnet")
    renamed = {
        key.replace("linear", "fc").replace("shortcut", "downsample.0").replace("1.conv2", "1.conv2.0"): x
        for key, x in state_dict().items()
    }
    assert {"fc.bias", "layer2.0.downsample.0.weight", "layer1.1.conv2.0.bias"} <= renamed.keys()
    chex.assert_trees_all_equal(from_torch(model, renamed), random_variables("resnet"))

    model, _ = model_and_input("vgg")
    numbers = {"layer1.0": 0, "layer1.1": 1, "layer2.0": 4, "layer2.1": 5, "layer2.4": 7, "layer2.5": 8,
               "layer3.0": 11, "layer3.1": 12, "layer4.0": 15, "layer4.1": 16, "layer5.0": 19, "layer5.1": 20,
               "classifier.1": None}  # fmt: skip
    renamed = {}
    for key, x in state_dict("vgg").items():
        module, _, leaf = key.rpartition(".")
        prefix = "classifier.0" if module == "classifier.1" else f"features.{numbers[module]}"
        renamed[f"{prefix}.{leaf}"] = x
    # Kept in no order of their numbers.
    renamed = dict(sorted(renamed.items()))
    with caplog.at_level(logging.INFO):
        chex.assert_trees_all_equal(from_torch(model, renamed), random_variables("vgg"))
        from_torch(model, state_dict("vgg"))
        assert "maximum pooling" not in caplog.text
        theirs = dataclasses.replace(model, max_pooling=True)
        from_torch(theirs, renamed)
    assert "assumed: maximum pooling" in caplog.records.pop().message
    # Theirs take maxima, which no state dict tells; the authors' take means.
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert all(
        re.search(r"fits VGG\(.*\); .* is assumed: average pooling, Neuron\(.*\), dropout", record.message)
        for record in caplog.records
    )


@every_model
def test_names_and_order_of_the_source(name):
    """Of DataParallel and others, in any order; from names alone, the counters are 0."""
    model, _ = model_and_input(name)
    source = {f"module.{key}": x for key, x in reversed(state_dict(name).items())}
    if name == "resnet":
        source = {
            key.replace("linear", "fc").replace("shortcut", "downsample.0"): x for key, x in source.items()
        }
    source |= {key: np.array(12) for key in source if "num_batches" in key}
    params, state = from_torch(model, source)
    for like, counter in ((source, 12), (list(source), 0), ((key for key in source), 0)):
        back = to_torch(model, params, state, like=like)
        assert list(back) == list(source)
        for key, x in source.items():
            expected = np.array(counter) if "num_batches" in key else x
            np.testing.assert_array_equal(back[key], expected, strict=True)
    gradient = to_torch(model, params, {}, like=[key for key in source if "num_batches" not in key])
    assert list(gradient) == [key for key in source if "num_batches" not in key and "running" not in key]


def test_names_that_are_not_of_the_network_are_refused():
    (model, _), variables = model_and_input("resnet"), random_variables("resnet")
    names = [key for key in state_dict() if key != "linear.bias"]
    with pytest.raises(ValueError, match=r"names of ResNet\(.*\): missing linear.bias, unknown head.bias$"):
        to_torch(model, *variables, like=[*names, "head.bias"])


@pytest.mark.slow
@every_model
def test_torch_loads_what_goes_back_into_the_source(name, tmp_path):
    """A checkpoint through DataParallel, read, written and loaded: every tensor, counters too."""
    net = torch_net(name)
    import torch

    wrapped = torch.nn.Module()
    wrapped.module = net
    for x in (source := wrapped.state_dict()).values():
        x.copy_(torch.rand(x.shape) if x.is_floating_point() else torch.tensor(41))
    torch.save({"state_dict": source, "epoch": 3}, tmp_path / "x.pth")
    theirs, (model, _) = read_checkpoint(tmp_path / "x.pth"), model_and_input(name)
    ours = to_torch(model, *from_torch(model, theirs), like=theirs)
    torch.save({key: torch.from_numpy(x) for key, x in ours.items()}, tmp_path / "y.pth")
    loaded = torch.load(tmp_path / "y.pth", weights_only=True)
    assert list(loaded) == list(source)
    for key, x in source.items():
        assert x.dtype == loaded[key].dtype and x.shape == loaded[key].shape and torch.equal(x, loaded[key])
    assert any("num_batches" in key and x == 41 for key, x in loaded.items()) or name.startswith("nf")
    wrapped.load_state_dict(loaded, strict=True)
