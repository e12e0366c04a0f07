"""What the neurons of a network do, as activity.py tells it."""

import json
import shutil

import activity
import jax
import pytest
from common import measures
from common.runs import Learned, Run, build

from tests.common.scripts import assert_picture, assert_refused, call

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_of_a_run(digits_run, monkeypatch, tmp_path, capsys):
    shutil.copytree(digits_run, tmp_path / "run")
    assert (
        call(activity, monkeypatch, tmp_path / "run", "--T", 4, "--weight-bits", 4, "--state-bits", 16) == 0
    )
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "activity.json").read_text())
    rates = found["layers"]["LIF_0"]["rates"]
    assert len(rates) == 4 and 0.01 < min(rates) and max(rates) < 0.9
    assert found["weights"]["Dense_0"]["macs"] == 64 * 16
    spikes = found["weights"]["Dense_1"]["operations"]
    assert spikes == pytest.approx(sum(rates) * 16 * 10, rel=1e-4)
    energy = found["energy"]
    assert energy["ann_macs"] == 64 * 16 + 16 * 10
    assert energy["joules"] == pytest.approx(0.9e-12 * spikes + 4.6e-12 * 4 * 64 * 16)
    assert " ".join(f"{rate:.3f}" for rate in rates) in out and f"{1e6 * energy['joules']:.4g} uJ" in out
    traffic = found["traffic"]
    assert traffic["spikes"] == pytest.approx(sum(rates) * 16, rel=1e-4)
    assert traffic["neuron_updates"] == traffic["state_reads"] == 4 * 16
    assert traffic["weight_reads"] == pytest.approx(spikes + 4 * 64 * 16)
    assert traffic["bytes"] == pytest.approx(traffic["weight_reads"] / 2 + 2 * 4 * 16 * 2)
    bench = found["neurobench"]
    assert bench["activation_sparsity"] == pytest.approx(1 - sum(rates) / 4, rel=1e-4)
    assert bench["synaptic_operations"]["Effective_ACs"] == pytest.approx(spikes)
    assert bench["synaptic_operations"]["Dense"] == 4 * energy["ann_macs"]
    assert f"activation_sparsity     {bench['activation_sparsity']:.6g}" in out
    assert f"{traffic['spikes']:.4g} spikes sent" in out and "weights of 4 bits" in out
    assert_picture(tmp_path / "run" / "activity.png")


@pytest.mark.slow
def test_of_a_preset(monkeypatch, tmp_path):
    args = ("digits_mlp", "--batch", 16, "--T", 2, "--workdir", tmp_path)
    assert call(activity, monkeypatch, *args) == 0
    found = json.loads((tmp_path / "activity.json").read_text())
    assert list(found["layers"]) == ["LIF_0", "LIF_1"] and not found["problems"]


@pytest.mark.slow
def test_problems_at_the_start():
    for threshold, words in (
        (0.5, []),
        (1.0, ["LIF_0", "LIF_1 is silent"]),
        (100.0, ["LIF_0 is silent", "LIF_1 is silent"]),
    ):
        experiment = build(Run.of("digits_mlp", T=2, v_threshold=threshold))
        state = experiment.initial_state(jax.random.key(0))
        found = measures.initial_problems(experiment, Learned(state.params, state.variables))
        assert [text.split(":")[0] for text in found] == words


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing",), "'nothing' is no directory, and no preset: digits"),
        ((".", "--made"), "reduced and made are for presets"),
        ((".",), "holds no run"),
        (("digits", "--weight-bits", "0"), "weight_bits must be in 1..64, got 0"),
        (("digits", "--T", "0"), "T must be in 1..1000000, got 0"),
    ],
)
def test_bad_settings(args, message, monkeypatch, tmp_path, capsys):
    assert_refused(activity, args, message, tmp_path / "run", monkeypatch, capsys)
