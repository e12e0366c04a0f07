"""Weights from PyTorch and back, and files by the real torch."""

import logging
import re
from functools import partial

import chex
import jax
import numpy as np
import pytest

from sltt_jax import functional, losses, rules
from sltt_jax.models import MLP, VGG, NFResNet, ResNet
from sltt_jax.models.torch_weights import from_torch, read_checkpoint, to_torch
from sltt_jax.neurons import Neuron

pytestmark = pytest.mark.usefixtures("quick_compile")

MODELS = {
    "resnet": (ResNet, {"blocks": (2, 1)}, 8, 3),
    "vgg": (VGG, {"convs": (1, 2, 1, 1, 1)}, 96, 2),
    "nf_resnet": (NFResNet, {"blocks": (2, 1), "bottleneck": False}, 32, 3),
    "nf_resnet_bottleneck": (NFResNet, {"blocks": (2, 1), "bottleneck": True}, 32, 3),
}
every_model = pytest.mark.parametrize("name", MODELS)


def model_and_input(name, neuron=Neuron(tau=1.5)):  # noqa: B008
    cls, fields, size, channels = MODELS[name]
    return cls(classes=5, neuron=neuron, width=1 / 16, **fields), np.zeros((2, size, size, channels))


def random_variables(name, dtype=np.float64):
    """Random parameters and batch statistics, as numpy arrays."""
    model, x = model_and_input(name)
    x = jax.ShapeDtypeStruct(x.shape, np.float32)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    rng = np.random.default_rng(0)
    draw = lambda p: (1.0 + 0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return jax.tree.map(draw, (params, {k: v for k, v in state.items() if k == "batch_stats"}))


def state_dict(name="resnet", dtype=np.float64):
    return to_torch(model_and_input(name)[0], *random_variables(name, dtype))


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
    # Theirs take maxima, which no state dict tells; the authors' take means.
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert all(
        re.search(r"fits VGG\(.*\); .* is assumed: average pooling, Neuron\(.*\), dropout", record.message)
        for record in caplog.records
    )


def test_three_readouts_are_not_one():
    arrays = state_dict("vgg")
    weight, bias = arrays.pop("classifier.1.weight"), arrays.pop("classifier.1.bias")
    arrays |= {"classifier.0.weight": weight, "classifier.0.bias": bias, "classifier.3.weight": weight}
    with pytest.raises(ValueError, match=r"fit VGG\(.*\)\n  unexpected: classifier.3.weight$"):
        from_torch(model_and_input("vgg")[0], arrays)


def test_all_that_does_not_fit_is_listed():
    arrays = state_dict()
    del arrays["bn1.running_var"], arrays["layer1.0.conv2.bias"]
    arrays["layer2.0.downsample.1.weight"] = arrays["extra"] = np.zeros(3)
    arrays["linear.weight"] = np.zeros((7, 8))
    arrays["layer1.1.bn2.weight"] = np.zeros(5)
    with pytest.raises(ValueError) as error:
        from_torch(model_and_input("resnet")[0], arrays)
    first, *lines = str(error.value).splitlines()
    assert first == "the state dict does not fit ResNet(blocks=(2, 1), classes=5, width=0.0625)"
    listed = {what: set(found.split(", ")) for what, found in (line.split(": ", 1) for line in lines)}
    assert listed["  missing"] == {"bn1.running_var", "layer1.0.conv2.bias"}
    assert listed["  unexpected"] == {"layer2.0.downsample.1.weight", "extra"}
    assert (
        lines[2] == "  misshapen: layer1.1.bn2.weight is (5,), not (4,), linear.weight is (7, 8), not (5, 8)"
    )


def test_counters_may_be_missing():
    arrays = {k: x for k, x in state_dict().items() if "num_batches" not in k}
    assert len(arrays) < len(state_dict())
    from_torch(model_and_input("resnet")[0], arrays)


def test_other_models_are_refused():
    for convert in (lambda m: from_torch(m, {}), lambda m: to_torch(m, {"x": {"kernel": np.zeros(1)}}, {})):
        with pytest.raises(TypeError, match="has no MLP"):
            convert(MLP())
