# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The four tasks: the columns that each has in a data set, and the folders of the original's layouts."""

from dataclasses import dataclass

IMAGES = ("image_before", "image_after")
CAPTIONS = "captions"


@dataclass(frozen=True)
class Task:
    """The data of a task.

    Attributes:
        labels: The columns of label maps, in their order in a sample.
        folders: The folder of each column within a split's folder.
        swapped_labels: The order of the label maps of a pair whose images are swapped; None leaves them.
        channel_order: "rgb" or "bgr", in which the network sees images.
        optional: The label map that follows from another one where it is missing: it is 1 where that is above 0.
    """

    labels: tuple[str, ...]
    folders: dict[str, str]
    swapped_labels: tuple[int, ...] | None = None
    channel_order: str = "rgb"
    optional: tuple[str, str] | None = None


PAIR_FOLDERS = {"image_before": "t1", "image_after": "t2"}
TASKS = {
    "binary": Task(("label",), {**PAIR_FOLDERS, "label": "label"}),
    "semantic": Task(
        ("label_before", "label_after", "label_change"),
        {**PAIR_FOLDERS, "label_before": "label1", "label_after": "label2", "label_change": "change"},
        swapped_labels=(1, 0, 2),
        optional=("label_change", "label_before"),
    ),
    "damage": Task(
        ("label_building", "label_damage"),
        {**PAIR_FOLDERS, "label_building": "label1", "label_damage": "label2"},
        channel_order="bgr",
    ),
    "captioning": Task((), {}),
}
# Labels are whole numbers below the number of classes; these are 0 or 1, and of "label" any other number counts as 1.
ZERO_OR_ONE = ("label", "label_change", "label_building")
