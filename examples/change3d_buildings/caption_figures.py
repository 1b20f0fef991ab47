# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Gather the figures of a pipeline that writes captions beside those of one caption for all, and show some of them.

    python examples/change3d_buildings/caption_figures.py --pipeline FOLDER --data outputs/change3d_captions/data \
        --evaluation FOLDER/evaluation --output_dir FOLDER

The scores are those that `evaluate change` wrote, of the split test, and go into metrics.json. Beside them are `exact`,
the share of pairs whose caption is one of their five, and the same scores of the most frequent caption of the split
train, given to every pair. captions.png shows the first pairs, not selected, with their captions. before.png and
after.png are the first pair in which something has changed.
"""

import csv
import json
from collections import Counter
from pathlib import Path

from datasets import Dataset, load_dataset
from figures import PictureConfig

from diffusers_lightningdit import Change3DPipeline
from diffusers_lightningdit.change3d.caption_metrics import NO_CHANGE_CAPTIONS, caption_scores
from diffusers_lightningdit.files import write_json
from diffusers_lightningdit.grids import labelled_grid
from diffusers_lightningdit.settings import one_line_errors, parse_config

SCORES = ("bleu_4", "rouge_l", "cider")


def exact_share(captions: list[str], references: list[list[str]]) -> float:
    """The share of pairs whose caption is one of their references."""
    return sum(caption in known for caption, known in zip(captions, references, strict=True)) / len(captions)


def one_caption_for_all(train: Dataset, references: list[list[str]]) -> dict[str, str | float]:
    """The most frequent caption of the split train, and its scores as the caption of every pair."""
    counts = Counter(caption for captions in train["captions"] for caption in captions)
    caption = counts.most_common(1)[0][0]
    words = [[reference.split() for reference in known] for known in references]
    scores = caption_scores([caption.split()] * len(references), words)
    return {
        "caption": caption,
        "exact": round(exact_share([caption] * len(references), references), 4),
        **{name: round(scores[name], 4) for name in SCORES},
    }


def main(argv: list[str] | None = None) -> None:
    with one_line_errors((ValueError, OSError)):
        config = parse_config(PictureConfig, argv, __doc__)
        measured = json.loads((Path(config.evaluation) / "metrics.json").read_text(encoding="utf-8"))["results"]
        with open(Path(config.evaluation) / "pairs.csv", newline="", encoding="utf-8") as file:
            captions = [row["caption"] for row in csv.DictReader(file)]
        splits = load_dataset(config.data)
        references = list(splits["test"]["captions"])[: len(captions)]
        pipe = Change3DPipeline.from_pretrained(config.pipeline)
    record = {"num_pairs": len(captions), "exact": round(exact_share(captions, references), 4)}
    for name in (*SCORES, "change_accuracy", "no_change_accuracy"):
        record[name] = round(measured["usual"][name], 4)
    record["one_caption_for_all"] = one_caption_for_all(splits["train"], references)
    folder = Path(config.output_dir)
    write_json(folder / "metrics.json", record)

    rows = splits["test"].select(range(config.num_pairs))
    pipe.set_progress_bar_config(disable=True)
    found = pipe(list(rows["image_before"]), list(rows["image_after"])).captions
    images = zip(rows["image_before"], rows["image_after"], strict=True)
    grid = labelled_grid(
        list(zip(found, map(list, images), strict=True)), columns=("before", "after"), zoom=2, title_width=200
    )
    grid.save(folder / "captions.png")
    changed = next(row for row in splits["test"] if row["captions"][0] not in NO_CHANGE_CAPTIONS)
    changed["image_before"].save(folder / "before.png")
    changed["image_after"].save(folder / "after.png")
    print(f"exact captions {record['exact']:.4f}, BLEU-4 {record['bleu_4']:.4f}")


if __name__ == "__main__":
    main()
