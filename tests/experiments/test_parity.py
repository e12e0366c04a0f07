"""The paper's networks against the numbers of the authors' PyTorch code, and that the checker can fail."""

import copy
import json
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from sltt_jax import functional
from sltt_jax.models.torch_weights import to_torch
from sltt_jax.models.vgg import VGG

pytestmark = pytest.mark.usefixtures("quick_compile")

CASES = Path(__file__).parents[1] / "parity"

NAMES = "resnet18", "resnet18_tau2_sigmoid", "vgg11_dvs", "vgg11_gesture", "nfresnet34"
SMALL = partial(VGG, convs=(1, 1, 0, 0, 0))


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    """One more network for the cases that the tests make, which is compiled in no time."""
    monkeypatch.setitem(parity.NETS, "small", SMALL)


@cache
def content(name):
    return parity.load(CASES / f"{name}.json")


@cache
def results():
    """What our VGG-11 gives under SLTT."""
    with jax.enable_x64(True):
        return parity.compute(content("vgg11_dvs"), ("sltt",))


def quantities(failed):
    """Names of the quantities in a list of failures."""
    return {failure.split()[-4] for failure in failed}


def failing(case, computed):
    return quantities(parity.failures(parity.errors(case, computed)))


def test_every_case_is_tried():
    assert {*NAMES} == {path.stem for path in CASES.glob("*.json")}


def test_a_network_of_the_paper_under_sltt():
    found = parity.errors(content("vgg11_dvs"), results())
    assert found.keys() == {"forward", "sltt"}
    assert found["sltt"].keys() == set(parity.BOUNDS) - {"firing_rates"}
    assert not parity.failures(found), found


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_case_under_every_rule(name, x64):
    """Of a network that comes twice, with other neurons or inputs, the second time under two rules."""
    second = name in ("resnet18_tau2_sigmoid", "vgg11_gesture")
    rules = ("bptt", "sltt") if second else ("bptt", "sltt", "sltt chunk 2", "sltt_k")
    if name in ("resnet18", "vgg11_dvs"):  # what bits change is the same for all neurons and inputs
        rules += ("bptt in bits",)
    found = parity.check(content(name), rules)
    assert found.keys() == {"forward", *rules}
    assert not parity.failures(found), found


# From here on: what the checker must not let pass.


@pytest.mark.slow
def test_gradients_of_another_rule_fail():
    case, computed = recorded()
    forward, bptt, sltt = (computed[name] for name in ("forward", "bptt", "sltt"))
    assert failing(case, {"forward": forward, "bptt": bptt, "sltt": sltt}) == set()
    for swapped in ({"forward": forward, "sltt": bptt}, {"forward": forward, "bptt": sltt}):
        assert failing(case, swapped) == {"gradient"}


def relative(array):
    return array * (1 + 1e-6)


def transposed_window(array):
    return array.swapaxes(-1, -2)


def one_entry(array):
    changed = array.copy()
    changed.flat[-1] += 1e-6 * np.linalg.norm(array)
    return changed


def not_a_number(array):
    return np.full_like(array, np.nan)


@pytest.mark.parametrize(
    ("quantity", "name", "change"),
    [
        ("gradient", "layer3.4.weight", relative),
        ("gradient", "layer3.4.weight", transposed_window),
        ("gradient", "layer5.5.bias", one_entry),
        ("gradient", "layer1.0.weight", not_a_number),
        ("gradient", "classifier.1.weight", relative),
        ("membrane", "layer1.2", relative),
        ("membrane", "layer5.6", transposed_window),
        ("running_statistics", "layer4.1.running_var", relative),
        ("running_statistics", "layer5.5.running_mean", one_entry),
    ],
)
def test_a_changed_array_fails(quantity, name, change):
    computed = {name: copy.deepcopy(results()[name]) for name in ("forward", "sltt")}
    changed = computed["sltt"][quantity]
    changed[name] = change(changed[name])
    assert failing(content("vgg11_dvs"), computed) == {quantity}


@cache
def recorded():
    """A small case in the same format, and our own numbers that it is made of.

    It is cheap to run again with something changed.
    """
    with jax.enable_x64(True):
        model = SMALL(width=1 / 16, classes=3)
        x = jax.ShapeDtypeStruct((1, 32, 32, 2), jnp.float64)
        params, _ = jax.eval_shape(lambda x: functional.init(model, jax.random.key(0), x), x)
        arrays = to_torch(model, jax.tree.map(lambda p: np.zeros(p.shape), params), {})
        # The checker takes the first for the kernel of the first convolution, "layer1.0.weight" here.
        names = sorted(arrays, key=lambda name: (arrays[name].ndim != 4, name))
        parameters = [[name, list(arrays[name].shape)] for name in names]
        case = {
            "seed": 3, "net": "small", "T": 3, "batch": 2, "size": 32, "classes": 3, "tau": 1.1,
            "surrogate": "triangle", "mse_weight": 0.05, "mse_target": "one_hot", "k_steps": [1, 2],
            "input": "normal",
        }  # fmt: skip
        steps = {"bptt": None, "sltt": [0, 1, 2], "sltt_k": [1, 2]}
        made = {"case": case, "labels": [0, 2], "parameters": parameters}
        made["rules"] = {name: {"steps": taken} for name, taken in steps.items()}
        computed = parity.compute(made, tuple(steps))
    seed = case["seed"]
    made["logits"] = computed["forward"]["logits"].tolist()
    made["firing_rates"] = {name: x.tolist() for name, x in computed["forward"]["firing_rates"].items()}
    for quantity, stream in (("membrane", 5_000_000), ("running_statistics", 6_000_000)):
        arrays = computed["sltt"][quantity]
        made[quantity] = {name: sketch(x, seed, stream + i) for i, (name, x) in enumerate(arrays.items())}
    for name, rule in made["rules"].items():
        gradients = [computed[name]["gradient"][parameter] for parameter, _ in parameters]
        rule["loss"] = computed[name]["losses"][rule["steps"] or slice(None)].sum() / case["T"]
        rule["gradient"] = [sketch(x, seed, 2_000_000 + i) for i, x in enumerate(gradients)]
        rule["first_entries"] = [x.ravel()[:4].tolist() for x in gradients]
    return json.loads(json.dumps(made)), computed


def sketch(array, seed, stream):
    probe = np.random.default_rng([seed, stream]).standard_normal(array.shape)
    return [np.linalg.norm(array), np.vdot(array, probe)]


def altered(**changes):
    """The recorded case with other keys; `k_steps` also changes the steps that the rule takes."""
    case = copy.deepcopy(recorded()[0])
    case["case"].update(changes)
    if "k_steps" in changes:
        case["rules"]["sltt_k"]["steps"] = changes["k_steps"]
    return case


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"tau": 1.2},
        {"seed": 33},
        {"neuron": {"v_threshold": 1.001}},
        {"neuron": {"v_reset": 0.0}},
        {"neuron": {"decay_input": True}},
    ],
    ids=str,
)
def test_another_forward_pass_fails(changes, x64):
    found = parity.check(altered(**changes), only=())
    assert {"logits", "firing_rates"} == quantities(parity.failures(found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "changes", "failed"),
    [
        ("sltt", {"surrogate": "rectangle"}, {"gradient"}),
        ("bptt", {"neuron": {"detach_reset": True}}, {"gradient"}),
        ("sltt_k", {"k_steps": [0, 2]}, {"loss", "gradient"}),
        ("sltt", {"mse_target": "ones"}, {"loss", "gradient"}),
    ],
    ids=lambda x: str(sorted(x) if isinstance(x, set) else x),
)
def test_another_backward_pass_fails(rule, changes, failed, x64):
    found = parity.check(altered(**changes), only=(rule,))
    assert quantities(parity.failures(found)) == failed


@pytest.mark.slow
def test_other_labels_fail(x64):
    case = altered()
    case["labels"] = case["labels"][::-1]
    found = parity.check(case, only=("sltt",))
    assert quantities(parity.failures(found)) == {"loss", "gradient"}


def broken(**changes):
    case = altered()
    case.update(changes)
    return case


BROKEN = {
    "keys are missing: ['size']": lambda: {
        **altered(), "case": {k: v for k, v in altered()["case"].items() if k != "size"}
    },
    "net 'resnet19' is unknown": lambda: altered(net="resnet19"),
    "surrogate 'step' is unknown": lambda: altered(surrogate="step"),
    "tau must be >= 1": lambda: altered(tau=0.5),
    "unexpected keyword argument 'v_rest'": lambda: altered(neuron={"v_rest": 0.0}),
    "logits have the shape": lambda: altered(T=5),
    "the state dict does not fit ResNet": lambda: altered(net="resnet18"),
    "of 3 steps sltt_k took [1, 3]": lambda: altered(k_steps=[1, 3]),
    "rules are ['tbptt']": lambda: broken(rules={"tbptt": {}}),
    "KeyError('gradient')": lambda: broken(rules={"sltt": {"steps": [0], "loss": 1.0}}),
    "AttributeError": lambda: broken(case=[]),
    "TypeError": lambda: [],
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_broken_files_are_named(message, tmp_path, capsys):
    path = tmp_path / "case.json"
    path.write_text(json.dumps(BROKEN[message]()))
    assert parity.main([str(path)]) == 2
    assert str(path) in (error := capsys.readouterr().err)
    assert message in error


def test_unreadable_files_are_named(tmp_path, capsys):
    path = tmp_path / "case.json"
    path.write_text(json.dumps(content("vgg11_dvs"))[:1000])
    assert parity.main([str(path), str(tmp_path / "none.json")]) == 2
    assert "none.json" in (error := capsys.readouterr().err)
    assert str(path) in error


def test_a_file_without_all_neurons_is_refused():
    case = copy.deepcopy(content("vgg11_dvs"))
    del case["membrane"]["layer3.6"]
    with pytest.raises(parity.BadCase, match="the file has"):
        parity.errors(case, results())


@pytest.mark.parametrize("wrong", [False, True])
def test_exit_status(wrong, tmp_path, capsys):
    case = altered()
    case["rules"] = {"sltt_k": case["rules"]["sltt_k"]}
    case["rules"]["sltt_k"]["loss"] += 1e-9 * wrong
    path = tmp_path / "case.json"
    path.write_text(json.dumps(case))
    assert parity.main([str(path)]) == wrong
    assert ("FAILED sltt_k: loss" in capsys.readouterr().out) == wrong
