"""The benchmark of speed at its smallest, and its baseline against the package."""

import json
import subprocess
import sys

import pytest
import torch

from diffusers_lightningdit import LightningDiTTransformer2DModel


@pytest.fixture
def plain(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "benchmarks"))
    import plain_lightningdit

    return plain_lightningdit


@torch.no_grad()
def test_the_baseline_computes_the_same(plain):
    torch.manual_seed(0)
    sizes = {"sample_size": 4, "in_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    model = LightningDiTTransformer2DModel(**sizes, num_classes=5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network = plain.PlainTransformer(4, 4, 2, 2, 16, 5).load(model.state_dict())
    arguments = torch.randn(2, 4, 4, 4), torch.rand(2), torch.tensor([3, 5])
    torch.testing.assert_close(network(*arguments), model(*arguments).sample, atol=1e-5, rtol=0)


def test_the_layer_of_internal_guidance_is_measured_beside_none(plain):
    import speed

    rows = list(speed.internal_guidance(speed.SIZES["tiny"], torch.device("cpu"), False))
    assert [row["variant"] for row in rows] == ["without the layer", "with the layer"]
    assert rows[1]["times_faster"] == rows[0]["fastest_s"] / rows[1]["fastest_s"] > 0


def test_parts_are_measured_and_written(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "speed.py"), "--size", "tiny", "--device", "cpu"]
    command += ["--output_dir", str(tmp_path), "--processor_time", "true"]  # which a busy machine does not change
    subprocess.run([*command, "--parts", "machine", "recipe"], check=True)
    results = json.loads((tmp_path / "speed.json").read_text())
    assert results["unfinished"] == {} and list(results["parts"]) == ["machine", "recipe"]
    assert {row["variant"]: row["rate"] > 0 for row in results["parts"]["machine"]} == {
        "matrix product": True,
        "copy": True,
    }
    ours, baseline, *_ = results["parts"]["recipe"]
    assert ours["largest_difference"] < 1e-5 and ours["times_faster"] > 0 and 0 < ours["share_of_limit"] < 1
    table = (tmp_path / "speed.md").read_text()
    assert f"| {ours['work']} | pipeline |" in table and f"| {baseline['work']} | plain |" in table


def test_a_script_is_measured_by_the_clock_of_its_baseline(plain, tmp_path):
    import speed

    probe = tmp_path / "probe.py"
    probe.write_text("import sys, time\nprint(time.perf_counter is time.thread_time, sys.argv[1:])\n")
    command = [sys.executable, "-c", speed.RUN_SCRIPT, "thread_time", str(probe), "learning_rate=1e-4"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "True ['learning_rate=1e-4']"


def test_the_parts_end_with_the_time(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "speed.py"), "--size", "tiny", "--device", "cpu"]
    command += ["--output_dir", str(tmp_path), "--parts", "machine", "reading", "--time_limit", "0.4"]
    subprocess.run(command, check=True)
    assert json.loads((tmp_path / "speed.json").read_text())["unfinished"] == {
        "machine": "not finished in 0 s",
        "reading": "not begun, since `time_limit` was over",
    }


def test_unknown_parts_are_named(repository, tmp_path):
    command = [sys.executable, str(repository / "benchmarks" / "speed.py"), "--output_dir", str(tmp_path)]
    done = subprocess.run([*command, "--parts", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and "`parts` has 'trian'; required: some of machine, " in done.stderr
