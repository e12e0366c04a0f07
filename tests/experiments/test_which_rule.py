"""What rules take and give, put together from files as frontier.py and cost.py write them."""

import json

import pytest
import which_rule

from tests.common.scripts import assert_picture, call


def write(folder, name, content):
    folder.mkdir()
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def folders(tmp_path):
    trained = [
        {
            "rule": rule,
            "temp_bytes": memory,
            "flops_per_update": 8e9,
            "test_accuracy": [mean, 0.01],
            "cosine": [c, 0.0],
        }
        for rule, memory, mean, c in (
            ("bptt", 4000, 0.9, 1.0),
            ("ottt(0.5)", 1500, 0.88, 0.8),
            ("sltt(6)", 1000, 0.85, 0.7),
        )
    ]
    on_gpu = {
        rule: [{"T": 6, "temp_bytes": memory, "flops": flops, "moved_bytes": 10 * memory}]
        for rule, memory, flops in (("bptt", 800, 3.0), ("bptt(T, bits=True)", 200, 4.0))
    }
    here = {"bptt": [{"T": 6, "temp_bytes": 500, "forward_flops": 1.0, "backward_flops": 2.0}]}
    return (
        write(tmp_path / "frontier_digits", "frontier.json", {"T": 6, "rows": trained}),
        write(tmp_path / "resnet18_h100", "target.json", {"rules": on_gpu}),
        write(tmp_path / "resnet18_cpu", "cost.json", {"rules": here}),
    )


def test_figures_are_put_together(folders, monkeypatch, tmp_path, capsys):
    assert call(which_rule, monkeypatch, *folders, "--workdir", tmp_path / "all") == 0
    rows = json.loads((tmp_path / "all" / "which_rule.json").read_text())["rows"]
    kinds = "bptt", "ottt", "sltt in chunks", "bptt", "bptt in bits", "bptt"
    assert tuple(row["kind"] for row in rows) == kinds
    assert [row["network"] for row in rows] == ["digits"] * 3 + ["resnet18 h100"] * 2 + ["resnet18 cpu"]
    assert rows[2]["temporaries"] == 0.25 and rows[2]["lost"] == pytest.approx(0.05)
    assert rows[4]["operations"] == pytest.approx(4 / 3) and rows[4]["bytes moved"] == 0.25
    assert "| resnet18 h100 | bptt(T, bits=True) | 0.25 | 1.33 | 0.25 |  |  |" in capsys.readouterr().out
    assert_picture(tmp_path / "all" / "which_rule.png")


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has none of frontier\.json, target\.json, cost\.json"):
        which_rule.read(tmp_path)
    of_sltt = {"rules": {"sltt": [{"T": 6}]}}
    with pytest.raises(ValueError, match="must have bptt among its rules"):
        which_rule.read(write(tmp_path / "none", "cost.json", of_sltt))
    several = {"rules": {"bptt": [{"T": 2}, {"T": 4}]}}
    with pytest.raises(ValueError, match="several numbers of time steps"):
        which_rule.read(write(tmp_path / "several", "cost.json", several))
