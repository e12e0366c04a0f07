"""What cannot be is said before anything is written, and how a rule is named."""

import pytest
import train
from common import configs
from common.configs import Config
from common.rule_flags import spelt

from tests.common.scripts import assert_refused, call, unboxed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("digits", "--T", 0), "T must be >= 1, got 0"),
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
        (("digits", "--lr", -1), "lr must be > 0, got -1"),
        (("digits", "--dropout", 1), "dropout must be in 0..1, got 1"),
        (("digits", "--resume"), "holds no run to resume"),
        (("digits", "--resume", "--overwrite"), "resume and overwrite exclude each other"),
        (("digits", "--devices", 99), "devices must be in 1.."),
        (("digits", "--validation", 1.5), "validation must be in 0..1, got 1.5"),
        (("digits", "--select", "validation"), "needs a share of the training samples"),
        (("digits", "--preprocessing", "paper"), "preprocessing=paper is for dvs_cifar10"),
        (("digits_mlp", "--chunk", "auto", "--rule", "bptt"), "chunk=auto is for sltt, got rule bptt"),
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
        (("digit",), configs.PRESETS),
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


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("sltt(6)", {"chunk": 2}, "--rule sltt(6) and --chunk 2 contradict each other"),
        ("sltt(auto)", {"chunk": 2}, "--rule sltt(auto) and --chunk 2 contradict each other"),
        ("sltt_k(2)", {"draw": "last"}, "--rule sltt_k(2) and --draw last contradict each other"),
        ("bptt(remat=False)", {"remat": True}, "--rule bptt(remat=False) and --remat True contradict"),
        ("tbptt(7)", {}, "window=7 is more than the T=6 time steps"),
        ("tbptt", {"window": 0}, "window must be >= 1, got 0"),
        ("sltt_k(0)", {}, "a rule is one of bptt(chunk, remat), "),
        ("bptt", {"chunk": "auto"}, "chunk=auto is for sltt, got rule bptt"),
        ("eprop", {}, "got 'eprop'"),
    ],
)
def test_rules_that_cannot_be(text, flags, message):
    with pytest.raises(ValueError) as error:
        spelt(text, flags, T=6, k=4)
    assert message in str(error.value)


def test_a_bare_kind_takes_no_more_steps_than_there_are():
    assert spelt("sltt_k", {}, T=1, k=2) == "sltt_k(1)" and spelt("tbptt", {}, T=1, k=2) == "tbptt(1)"
