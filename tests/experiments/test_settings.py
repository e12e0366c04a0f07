"""What cannot be is said before anything is written, and how a rule is named."""

import dataclasses

import ablation
import benchmark
import cost
import gradient_agreement
import input_benchmark
import k_tradeoff
import paper_claims
import precision
import pytest
import scaling
import temporal_limits
import train
from common import presets
from common.configs import Config
from common.presets import reduced
from common.rule_flags import spelt
from common.runs import Run, build

from sltt_jax import bptt
from tests.common.scripts import assert_refused, call, unboxed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("digits", "--T", 0), "T must be in 1..1000000, got 0"),
        (("digits", "--T", 3_000_000_000), "T must be in 1..1000000, got 3000000000"),
        (("digits", "--epochs", 10**12), "epochs must be in 1..1000000, got 1000000000000"),
        (
            ("digits", "--made", "--epochs", 10**6, "--batch-size", 4, "--train-samples", 12000),
            "epochs must be < 715827 here",
        ),
        (("digits", "--seed", 2**32), "seed must be in 0..4294967295, got 4294967296"),
        (("digits", "--seed", -1), "seed must be in 0..4294967295, got -1"),
        (("digits", "--features", 0), "features must be numbers in 1..65536, got (0,)"),
        (("digits", "--features", 8, -1), "features must be numbers in 1..65536, got (8, -1)"),
        (("digits", "--width", "inf"), "width must be in 0.015625..64, got inf"),
        (("digits", "--width", 1e-9), "width must be in 0.015625..64, got 1e-09"),
        (("digits", "--width", 1e6), "width must be in 0.015625..64, got 1000000.0"),
        (("digits", "--lr", "inf"), "lr must be a number that float32 has, got inf"),
        (("digits", "--lr", "nan"), "lr must be a number that float32 has, got nan"),
        (("digits", "--weight-decay", 1e300), "weight_decay must be a number that float32 has, got 1e+300"),
        (("digits", "--gigabytes", "nan"), "gigabytes must be a number that float32 has, got nan"),
        (("digits", "--made", "--train-samples", 10**12), "train_samples must be in 1..1000000"),
        (("digits", "--validation", 0.0001), "validation 0.0001 keeps 0 of 1437 samples"),
        (
            ("digits", "--validation", 0.999),
            "validation 0.999 keeps 1436 of 1437 samples and leaves 1 to train",
        ),
        (("mnist", "--data-dir", "mistyped"), "mnist: there is no directory mistyped"),
        (("digits", "--rule", "sltt_k", "--k", 7), "k=7 is more than the T=6 time steps"),
        (("digits", "--rule", "tbptt", "--window", 7), "window=7 is more than the T=6"),
        (("digits", "--rule", "sltt", "--chunk", 9), "chunk=9 is more than the T=6"),
        (("digits", "--rule", "sltt(9)"), "chunk=9 is more than the T=6"),
        (("digits", "--rule", "sltt_k(2)", "--k", 3), "--rule sltt_k(2) and --k 3 contradict each other"),
        (("digits", "--data", "digit"), "unknown data set 'digit'; there are digits, mnist"),
        (
            ("digits", "--train-samples", 240, "--batch-size", 5000),
            "must be in 1..240, the number of samples, got 5000",
        ),
        (("digits", "--tau", 0.5), "tau must be >= 1 (in time steps), got 0.5"),
        (("digits", "--v-reset", 1.5), "v_reset must be below v_threshold=1.0, got 1.5"),
        (("digits", "--v-reset", "nan"), "v_reset must be a number that float32 has, got nan"),
        (("digits", "--lr", -1), "lr must be > 0, got -1"),
        (("digits", "--dropout", 1), "dropout must be in 0..1, got 1"),
        (("digits", "--resume"), "holds no run to resume"),
        (("digits", "--resume", "--overwrite"), "resume and overwrite exclude each other"),
        (("digits", "--devices", 99), "devices must be in 1.."),
        (("digits", "--validation", 1.5), "validation must be in 0..1, got 1.5"),
        (("digits", "--select", "validation"), "needs a share of the training samples"),
        (("digits", "--preprocessing", "paper"), "preprocessing=paper is for dvs_cifar10"),
        (
            ("nmnist", "--encoding", "rate", "--made", "--batch-size", 64),
            "encoding=rate is for images, got 'nmnist'",
        ),
        (
            ("digits_mlp", "--chunk", "auto", "--rule", "tbptt"),
            "chunk=auto is for sltt and bptt, got rule tbptt",
        ),
        (("digits_mlp", "--chunk", "auto", "--gigabytes", 1e-6), "more than the 1e-06 GB given"),
        (("digits_mlp", "--sync-batch-stats"), "mlp has no batch statistics"),
        (("digits", "--num-processes", 2), "need all of --coordinator"),
        (("digits", "--coordinator", "host:1"), "need all of --coordinator"),
    ],
)
def test_bad_settings_are_said_before_anything_is_written(monkeypatch, tmp_path, capsys, args, message):
    assert_refused(train, args, message, tmp_path / "run", monkeypatch, capsys)


def test_unknown_names_are_answered_with_the_known_ones(monkeypatch, capsys):
    for args, known in (
        (("digit",), presets.PRESETS),
        (("digits", "--rule", "stlt"), ("bptt", "tbptt", "sltt", "sltt_k")),
        (("digits", "--surrogate", "relu"), ("triangle", "rectangle", "sigmoid", "atan", "fast_sigmoid")),
    ):
        assert call(train, monkeypatch, *args) == 2
        err = unboxed(capsys.readouterr().err)
        assert all(name in err for name in known), err


@pytest.mark.parametrize(
    ("text", "flags", "rule"),
    [
        ("sltt", {}, "sltt"),
        ("sltt(1)", {}, "sltt"),
        ("sltt", {"chunk": 6}, "sltt(6)"),
        ("sltt(chunk=6)", {"chunk": 6}, "sltt(6)"),
        ("sltt", {"k": 3, "window": 2, "draw": "last"}, "sltt"),
        ("sltt", {"chunk": "auto"}, "sltt(auto)"),
        ("sltt(auto)", {}, "sltt(auto)"),
        ("bptt(1)", {"chunk": 1}, "bptt"),
        ("bptt", {"chunk": "auto"}, "bptt(auto)"),
        ("bptt", {"chunk": 2, "remat": True}, "bptt(2, remat=True)"),
        ("bptt(remat=True)", {"remat": True}, "bptt(remat=True)"),
        ("tbptt", {}, "tbptt(2)"),
        ("tbptt(4)", {}, "tbptt(4)"),
        ("sltt_k", {}, "sltt_k(4)"),
        ("sltt_k", {"k": 1, "draw": "first", "scale": "unbiased"}, "sltt_k(1, draw=first, scale=unbiased)"),
        (" sltt_k( 2,draw = first ) ", {}, "sltt_k(2, draw=first)"),
        ("sltt_k(2, draw=(0, 5))", {"k": 2}, "sltt_k(2, draw=(0, 5))"),
    ],
)
def test_a_rule_has_one_spelling(text, flags, rule):
    assert spelt(text, flags, T=6, k=4) == rule
    assert spelt(rule, {}, T=6, k=4) == rule  # which names it again
    config = Config("digits", "digits", rule=text, paper_k=4, **flags)
    assert config == Config("digits", "digits", rule=rule, paper_k=4) and config.rule == rule


def test_bptt_alone_finds_its_chunk_where_a_network_is_trained():
    """But in the scripts that compare rules "bptt" goes step by step."""
    of = lambda rule, **flags: train.Training.of("digits_mlp", rule=rule, **flags)
    assert of("bptt").rule == of(" bptt ", chunk="auto").rule == of("bptt(auto)").rule == "bptt(auto)"
    assert of("bptt", chunk=1).rule == of("bptt(1)").rule == "bptt(1)"
    assert (of("bptt", chunk=2).rule, of("bptt", remat=True).rule) == ("bptt(2)", "bptt(remat=True)")
    assert reduced(of("bptt(1)")).rule == "bptt(1)" and of("sltt").rule == "sltt"
    assert Run.of("digits_mlp", rule="bptt").rule == "bptt"


@pytest.mark.slow
def test_the_chunk_that_is_found_trains():
    experiment = build(train.Training.of("digits_mlp", rule="bptt", T=2, batch_size=16))
    assert experiment.rule == bptt(2) and experiment.run.rule == "bptt(2)"  # few steps, many weights


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("sltt(6)", {"chunk": 2}, "--rule sltt(6) and --chunk 2 contradict each other"),
        ("sltt(auto)", {"chunk": 2}, "--rule sltt(auto) and --chunk 2 contradict each other"),
        ("sltt_k(2)", {"draw": "last"}, "--rule sltt_k(2) and --draw last contradict each other"),
        ("bptt(remat=False)", {"remat": True}, "--rule bptt(remat=False) and --remat True contradict"),
        ("tbptt(7)", {}, "window=7 is more than the T=6 time steps"),
        ("tbptt", {"window": 0}, "window must be a whole number >= 1, got 0"),
        ("sltt_k(0)", {}, "a rule is one of bptt(chunk, remat, bits), "),
        ("sltt_k", {"chunk": "auto"}, "chunk=auto is for sltt and bptt, got rule sltt_k"),
        ("bptt(auto)", {"remat": True}, "--rule bptt(auto) and --remat True contradict each other"),
        ("eprop", {}, "got 'eprop'"),
    ],
)
def test_rules_that_cannot_be(text, flags, message):
    with pytest.raises(ValueError) as error:
        spelt(text, flags, T=6, k=4)
    assert message in str(error.value)


def test_a_bare_kind_takes_no_more_steps_than_there_are():
    assert spelt("sltt_k", {}, T=1, k=2) == "sltt_k(1)" and spelt("tbptt", {}, T=1, k=2) == "tbptt(1)"


SCRIPTS = {
    ablation: ablation.Ablation,
    benchmark: benchmark.Settings,
    cost: cost.Costs,
    gradient_agreement: gradient_agreement.Tracking,
    input_benchmark: input_benchmark.Settings,
    k_tradeoff: k_tradeoff.Tradeoff,
    paper_claims: paper_claims.Settings,
    precision: precision.Precisions,
    scaling: scaling.Scaling,
    temporal_limits: temporal_limits.Limits,
}


@pytest.mark.parametrize(
    ("module", "name"),
    [
        pytest.param(module, field.name, id=f"{module.__name__} {field.name}")
        for module, settings in SCRIPTS.items()
        for field in dataclasses.fields(settings)
        if isinstance(field.default, tuple) and field.default
    ],
)
def test_a_list_must_not_be_empty(module, name, monkeypatch, tmp_path, capsys):
    preset = ("digits",) if issubclass(SCRIPTS[module], Config) else ()
    args = (*preset, f"--{name.replace('_', '-')}")
    message = f"{name} needs at least one value"
    assert_refused(module, args, message, tmp_path / "run", monkeypatch, capsys)
