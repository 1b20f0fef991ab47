# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Gather the figures of a trained pipeline beside those of the image difference, and draw pairs with their maps.

    python examples/change3d_buildings/figures.py --pipeline FOLDER --data outputs/change3d_buildings/data \
        --evaluation FOLDER/evaluation --baseline FOLDER/baseline --output_dir FOLDER

The figures are those that `evaluate change` and difference.py wrote, of the split test; they go into metrics.json.
pairs.png shows its first pairs, not selected: both images, the label, and what the pipeline finds. before.png and
after.png are the first pair.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from datasets import load_dataset

from diffusers_lightningdit import Change3DPipeline
from diffusers_lightningdit.files import write_json
from diffusers_lightningdit.grids import labelled_grid
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting

SCORES = ("f1", "iou", "precision", "recall", "accuracy", "kappa")


@dataclass(kw_only=True)
class PictureConfig:
    """Settings of figures.py and caption_figures.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    pipeline: str = required("Folder of the trained pipeline.", group="Input")
    data: str = required("Folder that draw_pairs.py wrote.")
    evaluation: str = required("Folder that `evaluate change` wrote, of the split test.")
    num_pairs: int = setting(8, "The pairs of the picture, the first ones.", minimum=1, group="Output")
    output_dir: str = required("Folder of figures and pictures, which are replaced; it exists.")

    def __post_init__(self):
        check_settings(self)
        if not Path(self.output_dir).is_dir():
            raise ValueError(f"`output_dir` is {self.output_dir!r}; required: a folder that exists.")


@dataclass(kw_only=True)
class FiguresConfig(PictureConfig):
    """Settings of figures.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    baseline: str = required("Folder that difference.py wrote.", group="Input")


def main(argv: list[str] | None = None) -> None:
    with one_line_errors((ValueError, OSError)):
        config = parse_config(FiguresConfig, argv, __doc__)
        measured = json.loads((Path(config.evaluation) / "metrics.json").read_text(encoding="utf-8"))["results"]
        baseline = json.loads((Path(config.baseline) / "baseline.json").read_text(encoding="utf-8"))
        if measured["num_pairs"] != baseline["num_pairs"]:
            raise ValueError(
                f"`baseline` has {baseline['num_pairs']} pairs; required: {measured['num_pairs']}, as `evaluation` has."
            )
        pipe = Change3DPipeline.from_pretrained(config.pipeline)
    record = {"num_pairs": measured["num_pairs"]}
    record |= {name: round(measured["usual"][name], 4) for name in SCORES}
    record["image_difference"] = {name: round(baseline[name], 4) for name in ("f1", "precision", "recall")}
    folder = Path(config.output_dir)
    write_json(folder / "metrics.json", record)

    rows = load_dataset(config.data)["test"].select(range(config.num_pairs))
    pipe.set_progress_bar_config(disable=True)
    found = pipe(list(rows["image_before"]), list(rows["image_after"])).change
    titles = {"before": rows["image_before"], "after": rows["image_after"], "change": rows["label"], "found": found}
    labelled_grid([(title, list(images)) for title, images in titles.items()], zoom=2).save(folder / "pairs.png")
    rows[0]["image_before"].save(folder / "before.png")
    rows[0]["image_after"].save(folder / "after.png")
    print(f"F1 {record['f1']:.4f}, of the image difference {record['image_difference']['f1']:.4f}")


if __name__ == "__main__":
    main()
