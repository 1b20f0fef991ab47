# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Measure the plainest detector of changes: the difference of both images, and a threshold.

    python examples/change3d_buildings/difference.py --data outputs/change3d_buildings/data --output_dir FOLDER

Each channel is first given the same mean and deviation in both images, so that light does not count as much, and the
difference is blurred. The threshold is the one with the best F1 on the split train; the scores are those of the split
test. It writes baseline.json.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import load_dataset

from diffusers_lightningdit.change3d.metrics import binary_scores
from diffusers_lightningdit.files import check_output_dir, write_json
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting

THRESHOLDS = np.linspace(0.0, 4.0, 201)


@dataclass(kw_only=True)
class BaselineConfig:
    """Settings of difference.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    data: str = required("Folder that draw_pairs.py wrote.", group="Data")
    num_train: int = setting(500, "Pairs of the split train that the threshold is chosen on.", minimum=1)
    blur: float = setting(1.0, "The standard deviation of the blur, in pixels.", minimum=0)
    output_dir: str = required("Folder of baseline.json, new or empty.", group="Output")

    def __post_init__(self):
        check_settings(self)
        check_output_dir(self.output_dir)


def difference(before: np.ndarray, after: np.ndarray, blur: float) -> np.ndarray:
    """The mean absolute difference of the channels [H, W], of images [H, W, 3] with equal means and deviations."""
    from scipy.ndimage import gaussian_filter  # optional, and not needed for --help

    images = [image.astype(np.float64) for image in (before, after)]
    images = [(image - image.mean((0, 1))) / (image.std((0, 1)) + 1e-6) for image in images]
    return gaussian_filter(np.abs(images[0] - images[1]).mean(-1), blur)


def matrices(rows, blur: float) -> np.ndarray:
    """The confusion matrices [thresholds, 2, 2] of all rows, labels in rows."""
    edges = np.append(THRESHOLDS, np.inf)
    counts = np.zeros((2, len(edges) - 1), dtype=np.int64)  # differences from each threshold to the next, by label
    below = np.zeros(2, dtype=np.int64)
    for row in rows:
        values = difference(np.array(row["image_before"]), np.array(row["image_after"]), blur)
        labels = np.array(row["label"]) > 0
        for label in (0, 1):
            counts[label] += np.histogram(values[labels == label], edges)[0]
            below[label] += (values[labels == label] < edges[0]).sum()
    predicted = counts[:, ::-1].cumsum(1)[:, ::-1]  # at or above each threshold
    total = (counts.sum(1) + below)[:, None]
    return np.stack([total - predicted, predicted], -1).transpose(1, 0, 2)


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(BaselineConfig, argv, __doc__)
    splits = load_dataset(config.data)
    rows = splits["train"].select(range(min(config.num_train, len(splits["train"]))))
    best = int(np.argmax([binary_scores(matrix)["f1"] for matrix in matrices(rows, config.blur)]))
    scores = binary_scores(matrices(splits["test"], config.blur)[best])
    record = {"threshold": float(THRESHOLDS[best]), "blur": config.blur, "num_pairs": len(splits["test"]), **scores}
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(config.output_dir) / "baseline.json", record)
    print(f"image difference: F1 {scores['f1']:.4f} on {len(splits['test'])} pairs of the split test")


if __name__ == "__main__":
    main()
