"""The pictures show all that they are drawn of: nothing is hidden, cut off or without a name."""

import itertools

import numpy as np
import plots.agreement
import plots.benchmark
import plots.cost
import plots.sweeps
import plots.temporal
import plots.which_rule
import pytest


@pytest.fixture
def drawn(monkeypatch):
    """Catches the figures in place of saving them."""
    figures = []
    modules = plots.agreement, plots.benchmark, plots.cost, plots.sweeps, plots.temporal, plots.which_rule
    for module in modules:
        monkeypatch.setattr(module, "save", lambda figure, *_: figures.append(figure))
    yield figures
    for figure in figures:
        figure.clear()


def texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_bars_of_the_limits_stay_within_what_was_measured(drawn, tmp_path):
    """A standard deviation around 95 % would go beyond 100 %."""
    of = {
        "accuracy": [1.0, 1.0, 1.0, 0.7],
        "cosine": [0.9, 1.0, 1.0, 1.0],
        "horizon": 7.0,
        "without_memory": 0.25,
    }
    rows = [{"tau": 2.0, "delay": d, "rule": rule, **of} for d in (1, 2) for rule in ("bptt", "sltt")]
    plots.temporal.plot_delays(rows, tmp_path, title="recall")
    plots.temporal.plot_taus(rows, tmp_path, title="rows")
    assert np.mean(of["accuracy"]) + np.std(of["accuracy"]) > 1
    for figure, places in zip(drawn, (0, 0), strict=True):
        bars = [s for c in figure.axes[places].containers for s in c.lines[2][0].get_segments()]
        assert len(bars) == 4 and np.max(bars, axis=(0, 1))[1] == 100 and np.min(bars, axis=(0, 1))[1] == 70


def test_rules_of_the_limits_that_give_the_same_are_all_seen(drawn, tmp_path):
    """Also one that has no run at the shortest delay; the legend has the order that was asked for."""
    same = {"accuracy": [0.9, 0.8], "cosine": [0.9, 0.8], "horizon": 7.0, "without_memory": 0.25}
    rules = "bptt", "tbptt(2)", "sltt"
    rows = [
        {"tau": 5.0, "delay": d, "rule": rule, **same}
        for d, some in ((0, rules[::2]), (1, rules), (8, rules))
        for rule in some
    ]
    plots.temporal.plot_delays(rows, tmp_path, title="recall")
    plots.temporal.plot_taus([row for row in rows if row["delay"] == 1], tmp_path, title="rows")
    for figure, points in zip(drawn, (3, 1), strict=True):
        for axes in figure.axes:
            last = [container.lines[0].get_xdata()[-1] for container in axes.containers]
            lengths = [len(container.lines[0].get_xdata()) for container in axes.containers]
            assert len(set(last)) == 3 and lengths == [points, max(points - 1, 1), points]
        (legend,) = figure.legends
        assert [name for name in texts(legend) if name != "without memory"] == list(rules)


FIGURES = {"temporaries": 0.5, "operations": 1.0, "lost": 0.0, "accuracy": (0.9, 0.01)}


def test_windows_of_one_kind_of_rule_are_told_apart(drawn, tmp_path):
    names = {"bptt": "bptt", "tbptt(100)": "tbptt", "tbptt(10)": "tbptt", "ottt(0.9, 20)": "ottt in chunks"}
    rows = [
        {"network": "qtdb", "rule": rule, "kind": kind, "cosine": (0.9, 0.3), **FIGURES}
        for rule, kind in names.items()
    ]
    plots.which_rule.plot_rules(rows, tmp_path)
    for axes, shown in zip(drawn[0].axes, (True, False, True, True), strict=True):
        assert [text.get_text() for text in axes.texts] == ["100", "10"] * shown


def test_bars_of_cosines_end_at_1(drawn, tmp_path):
    """A standard deviation of 0.3 around 0.9 would go beyond it."""
    row = {"rule": "sltt", "test_accuracy": (0.9, 0.01), "temp_bytes": 1e6, "flops_per_update": 1e9}
    plots.sweeps.plot_frontier([{**row, "cosine": (0.9, 0.3)}], tmp_path, title="qtdb")
    one = {"network": "qtdb", "rule": "sltt", "kind": "sltt", "cosine": (0.9, 0.3), **FIGURES}
    plots.which_rule.plot_rules([one], tmp_path)
    for figure in drawn:
        across = figure.axes[2].containers[0].lines[2][0].get_segments()[0][:, 0]
        assert across == pytest.approx([0.6, 1.0])


def test_bars_of_the_ablation_do_not_lie_on_each_other(drawn, tmp_path):
    rows = [
        {
            "surrogate": "atan",
            "tau": tau,
            "T": T,
            "rule": rule,
            "test_accuracy": (0.9, 0.1),
            "cosine": (0.9, 0.1),
        }
        for tau, T, rule in itertools.product((1.1, 2.0, 5.0), (2, 6), ("bptt", "sltt"))
    ]
    plots.sweeps.plot_ablation(rows, tmp_path, title="digits")
    accuracy, cosine = drawn[0].axes
    places = np.concatenate([container.lines[0].get_xdata() for container in accuracy.containers])
    assert len(places) == 12 and np.diff(np.sort(places)).min() > 0.05
    assert [label.get_text() for label in cosine.get_xticklabels()] == ["2", "6"]


def test_colours_of_sltt_k_are_named_once_for_both_panels(drawn, tmp_path):
    row = lambda rule: {"rule": rule, "test_accuracy": (0.9, 0.1), "flops_per_update": 1e9}
    rules = "sltt", "bptt", "sltt_k(1)", "sltt_k(1, draw=first)", "sltt_k(1, scale=unbiased)"
    plots.sweeps.plot_k_tradeoff([row(rule) for rule in rules], tmp_path, title="digits")
    (legend,) = drawn[0].legends
    assert {"uniform", "first", "unbiased"} < set(texts(legend)) and len(texts(legend)) == len(rules)
    over_k, over_work = drawn[0].axes
    colours = lambda axes: [
        c.lines[0].get_color() for c in axes.containers if c.lines[0].get_color() != "black"
    ]
    assert colours(over_k) == colours(over_work) and len(set(colours(over_k))) == 3


def test_a_missing_bar_of_the_benchmark_has_a_cross(drawn, tmp_path):
    def row(workload, peer, rule, seconds):
        times = {"seconds": [seconds], "cpu_seconds": [seconds]}
        return {"workload": workload, "precision": "float32", "peer": peer, "rule": rule, **times}

    rows = [
        row("a", "pytorch", "sltt", 1.0), row("a", "sltt_jax", "sltt", 0.8), row("a", "spyx", "bptt", 2.0),
        row("a", "sltt_jax", "sltt(5)", 0.5), row("b", "pytorch", "sltt", 1.0),
        row("b", "sltt_jax", "sltt", 0.9),
    ]  # fmt: skip
    plots.benchmark.plot_benchmark(rows, ["a", "b"], tmp_path)
    (axes,) = drawn[0].axes
    bars = {c.get_label(): c for c in axes.containers}
    assert list(bars) == ["sltt_jax: SLTT, chunk 1", "sltt_jax: SLTT, best chunk", "Spyx: faster rule"]
    tops = [[round(float(bar.get_y() + bar.get_height()), 3) for bar in c] for c in bars.values()]
    assert tops == [[0.8, 0.9], [0.5, 0.9], [2.0]]
    (cross,) = [line for line in axes.lines if line.get_label() == "not measured"]
    width = bars["Spyx: faster rule"][0].get_width()
    spyx = bars["Spyx: faster rule"][0].get_x() + width / 2
    assert cross.get_xdata() == pytest.approx([spyx + 1])
    assert "not measured" in texts(axes.get_legend())


def test_small_distances_of_gradients_are_to_be_read(drawn, tmp_path):
    def row(epoch, cosine):
        layers = {"Dense_0": {"cosine": cosine}, "Dense_1": {"cosine": 1.0}}
        return {"T": 6, "epoch": epoch, "rules": {"sltt": {"overall": {"cosine": cosine}, "layers": layers}}}

    plots.agreement.plot_agreement([row(0, 0.9999), row(1, 0.9)], tmp_path, title="digits")
    overall, layers = drawn[0].axes
    assert overall.get_yscale() == "log" and overall.lines[0].get_ydata() == pytest.approx([1e-4, 0.1])
    assert layers.lines[1].get_ydata() == pytest.approx([1e-7, 1e-7])  # exactly 1 has a place too


def test_rules_of_the_same_memory_both_show(drawn, tmp_path):
    """The later one is thinner in line and mark; the numbers are those of the table."""
    row = {"T": 4, "temp_bytes": 2**20, "total_bytes": 2**21}
    rows = {name: [row, {**row, "T": 8}] for name in ("bptt", "tbptt(4)", "sltt", "sltt(4)", "sltt_k(1)")}
    plots.cost.plot_memory(rows, tmp_path, title="digits")
    lines = drawn[0].axes[0].lines
    widths, marks = ([getattr(line, of)() for line in lines] for of in ("get_linewidth", "get_markersize"))
    assert len(lines) == 5 and all(np.diff(widths) < 0) and all(np.diff(marks) < 0)
    assert {float(y) for line in lines for y in line.get_ydata()} == {1.0}
