"""The benchmark of the evaluation, on a few digits."""

import re
import subprocess
import sys


def test_every_part_is_measured(repository, digits_pipeline, vision_transformer):
    command = [sys.executable, str(repository / "benchmarks" / "evaluation_throughput.py")]
    arguments = ["--pipeline", digits_pipeline, "--features", vision_transformer, "--num_images", "12"]
    small = ["--num_inference_steps", "1", "--micro_batch_size", "4"]
    output = subprocess.run([*command, *arguments, *small], capture_output=True, text=True, check=True).stdout
    rows = dict(re.findall(r"^\| ([a-z, ]+) \| ([0-9,.]+) \|$", output, re.MULTILINE))
    assert list(rows) == ["drawing", "writing", "reading", "encoding", "decoding", "features", "sums",
                          "drawing, writing, features and sums together", "precision and recall"]  # fmt: skip
    assert all(float(number.replace(",", "")) > 0 for number in rows.values())
    assert re.search(r"writing held up drawing for \d+\.\d{3} s", output)
