"""What an update costs, as cost.py tells it."""

import dataclasses
import json

import cost
import pytest

from tests.common.scripts import assert_picture, assert_refused, call

pytestmark = pytest.mark.usefixtures("quick_codegen")


def smallest():
    return dataclasses.replace(cost.recipe(cost.Costs(preset="digits_mlp"))[0], T=1)


@pytest.mark.slow
def test_cost(monkeypatch, tmp_path, capsys):
    args = ("digits_mlp", "--T", 2, 32, "--batch", 16, "--rules", "bptt", "sltt")
    args = (*args, "--workdir", tmp_path)
    assert call(cost, monkeypatch, *args) == 0
    rules = json.loads((tmp_path / "cost.json").read_text())["rules"]
    assert list(rules) == ["bptt", "sltt"]
    assert [p["T"] for p in rules["bptt"]] == [2, 32]
    assert rules["bptt"][1]["temp_bytes"] > 2 * rules["bptt"][0]["temp_bytes"]
    assert rules["sltt"][1]["temp_bytes"] < 1.01 * rules["sltt"][0]["temp_bytes"]
    assert rules["sltt"][1]["total_bytes"] > rules["sltt"][1]["temp_bytes"]
    assert (tmp_path / "cost.md").read_text() in capsys.readouterr().out
    assert_picture(tmp_path / "memory.png")


def test_programs_of_the_command_line():
    rules = "bptt", "sltt(2)", "sltt(T)", "sltt_k(2)"
    costs = cost.Costs(model="resnet18", rules=rules, T=(1, 2, 6))
    base, batch = cost.recipe(costs)
    assert (base.data, base.model, batch) == ("cifar10", "resnet18", 128)
    found = [(name, run.rule, run.T) for name, run in cost.variants(costs, base)]
    assert found == [
        *(("bptt", "bptt", T) for T in (1, 2, 6)),
        *(("sltt(2)", "sltt(2)", T) for T in (2, 6)),
        *(("sltt(T)", rule, T) for T, rule in ((1, "sltt"), (2, "sltt(2)"), (6, "sltt(6)"))),
        *(("sltt_k(2)", "sltt_k(2)", T) for T in (2, 6)),
    ]
    for model, data in (("vgg13", "dvs_cifar10"), ("nf_resnet50", "imagenet"), ("mlp", "digits")):
        assert cost.recipe(cost.Costs(model=model, batch=3, width=0.5)) == (
            dataclasses.replace(cost.recipe(cost.Costs(model=model))[0], width=0.5), 3,
        )  # fmt: skip
        assert cost.recipe(cost.Costs(model=model))[0].data == data
    assert cost.recipe(cost.Costs(preset="dvs_gesture", model="vgg13"))[0].data == "dvs_gesture"


@pytest.mark.slow
def test_times_and_chunks(monkeypatch, tmp_path, capsys):
    names = "bptt", "sltt", "sltt(T)", "sltt_k(1)"
    args = ("digits_mlp", "--rules", *names, "--T", 3, "--batch", 8)
    assert call(cost, monkeypatch, *args, "--time", 2, "--workdir", tmp_path) == 0
    found = json.loads((tmp_path / "cost.json").read_text())
    assert (found["model"], found["data"], found["batch"]) == ("mlp", "digits", 8)
    rows = {name: row for name, (row,) in found["rules"].items()}
    assert list(rows) == list(names)
    assert min(row["seconds"] for row in rows.values()) > 0
    exact, k = rows["sltt"], rows["sltt_k(1)"]
    assert exact["flops"] == rows["sltt(T)"]["flops"]
    # The least that SLTT-K can do: every forward pass, and one of three backward passes.
    assert k["flops"] == pytest.approx(exact["forward_flops"] + exact["backward_flops"] / 3)
    # Three passes of a network of 64-256-256-10 with 8 samples.
    assert exact["forward_flops"] == 2 * 3 * 8 * (64 * 256 + 256 * 256 + 256 * 10)
    table = (tmp_path / "cost.md").read_text()
    assert table in capsys.readouterr().out and table.count("\n") == 2 + 4
    assert f"({exact['total_bytes'] / rows['bptt']['total_bytes']:.3f})" in table
    for name in ("memory", "time", "tradeoff"):
        assert_picture(tmp_path / f"{name}.png")


@pytest.mark.slow
def test_made_up_data_and_none_cost_the_same():
    run = smallest()
    row, made = cost.measure(run, 8, None), cost.measure(run, 8, 1)
    for name in ("total_bytes", "temp_bytes", "flops", "forward_flops", "bytes_accessed"):
        assert row[name] == made[name]


def test_table_of_largest_batches(monkeypatch, tmp_path, capsys):
    """With a search that only says what it was asked for."""
    monkeypatch.setattr(cost, "fitting", lambda run, gigabytes: f"{run.rule} in {gigabytes}")
    args = ("digits_mlp", "--rules", "bptt", "sltt(4)", "--T", 2, 8, "--workdir", tmp_path)
    assert call(cost, monkeypatch, *args, "--largest-batch", 0.5) == 0
    out = capsys.readouterr().out
    assert "| rule | T=2 | T=8 |" in out and "| sltt(4) |  | sltt(4) in 0.5 |" in out
    found = json.loads((tmp_path / "largest_batch.json").read_text())
    assert found["rules"]["bptt"] == {"2": "bptt in 0.5", "8": "bptt in 0.5"}


@pytest.mark.slow
def test_largest_batch(monkeypatch, tmp_path, capsys):
    args = ("digits_mlp", "--rules", "sltt", "--T", 2, "--workdir", tmp_path)
    assert call(cost, monkeypatch, *args, "--largest-batch", 0.01) == 0
    batch = json.loads((tmp_path / "largest_batch.json").read_text())["rules"]["sltt"]["2"]
    assert f"| sltt | {batch} |" in capsys.readouterr().out
    run = dataclasses.replace(smallest(), T=2)
    sizes = [cost.measure(run, b, None)["total_bytes"] for b in (batch, batch + 1)]
    assert batch > 8 and sizes[0] <= 0.01e9 < sizes[1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "unknown preset 'nothing'; there are digits"),
        (("digits", "--rules", "eprop"), "a rule is one of bptt(chunk, remat, bits)"),
        (("digits", "--rules", "sltt(0)"), "chunk must be a whole number >= 1, got 0"),
        (("digits", "--batch", "0"), "batch must be in 1..1000000, got 0"),
        (("digits", "--rules", "sltt_k(3)", "--T", "2"), "none of the rules can be run over T=(2,)"),
        (("digits", "--largest-batch", "1", "--time", "3"), "largest_batch runs nothing"),
    ],
)
def test_bad_settings(args, message, monkeypatch, tmp_path, capsys):
    assert_refused(cost, args, message, tmp_path / "run", monkeypatch, capsys)
