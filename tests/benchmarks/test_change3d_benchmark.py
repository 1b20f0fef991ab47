"""The benchmark of Change3D, and its plain reading as a second implementation."""

import re

import pytest
import torch
from safetensors.torch import load_file

from diffusers_lightningdit.original.change3d import build_change3d, change3d_from_original


@pytest.fixture(scope="module")
def benchmark(load_benchmark):
    return load_benchmark("change3d")


def test_the_plain_reading_is_the_original(benchmark, change3d_checkpoint, golden_change3d):
    plain = benchmark.with_weights_of(build_change3d(change3d_from_original(change3d_checkpoint("bcd_64x64"))))
    recorded = load_file(golden_change3d("bcd_64x64.safetensors"))
    with torch.no_grad():
        logits = plain(recorded["pre"], recorded["post"])
    step = logits.shape[-1] // recorded["logits_change"].shape[-1]  # of the small set, every second pixel
    assert torch.allclose(logits[..., ::step, ::step], recorded["logits_change"], atol=1e-5)


def test_every_form_is_measured(benchmark, capsys):
    small = ["--sample_size", "16", "--batch_sizes", "[1]", "--repeats", "1", "--num_threads", "1"]
    benchmark.main([*small, "--compile_too", "false", "--training", "false", "--processor_time", "true"])
    output = capsys.readouterr().out
    rows = re.findall(r"^\| evaluation \| 1 \| (.+) \| ([\d,.]+) \| [-\d,na]+ \|$", output, re.MULTILINE)
    names = ["plain", "plain, channels-last 3-D", "plain, bf16", "Change3DModel"]
    names += ["Change3DModel, channels-last 3-D", "Change3DModel, bf16"]
    assert [name for name, _ in rows] == names
    assert all(float(rate.replace(",", "")) > 0 for _, rate in rows)


def test_processor_time_is_that_of_one_thread(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--processor_time", "true", "--num_threads", "2"])
    assert "`num_threads` is 2 with `processor_time`; required: 1" in capsys.readouterr().err


def test_a_step_of_training_moves_the_weights(benchmark):
    config = benchmark.BenchmarkConfig(sample_size=16, compile_too=False)
    model, is_cast = benchmark.forms(config, torch.device("cpu"), is_training=True)["Change3DModel"]
    before = model.decoder_change.conv_out.weight.detach().clone()
    benchmark.call_of("Change3DModel", model, is_cast, list(torch.randn(2, 1, 3, 16, 16)), is_training=True)()
    assert not torch.equal(model.decoder_change.conv_out.weight, before)
