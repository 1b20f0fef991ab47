# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of `evaluate sweep`."""

import dataclasses
from typing import Any

from ...settings import check_at_least

HELP = {
    "pipeline": "folder or Hub id of a class-conditional pipeline",
    "output_dir": "new, empty, or that of a sweep that goes on",
    "guidance_scales": "of classifier-free guidance; empty: that of the pipeline's recipe",
    "guidance_intervals": "pairs of times t from which and up to which guidance acts; empty: the recipe's",
    "num_inference_steps": "numbers of steps; empty: the recipe's",
    "schedulers": "classes of diffusers; empty: the pipeline's",
    "generation": "generation.NAME=VALUE are settings of `evaluate generation` for each run, as num_images",
    "metric": "that is plotted; default: the first that there is",
    "keep_images": "of every run; otherwise they are deleted when the run is measured",
}


@dataclasses.dataclass(kw_only=True)
class SweepConfig:
    """Settings of `evaluate sweep`; `HELP` says what each is.

    Raises:
        ValueError: for a value that cannot be swept over, or if no axis has one.
    """

    pipeline: str
    output_dir: str
    guidance_scales: tuple[float, ...] = ()
    guidance_intervals: tuple[tuple[float, float], ...] = ()
    num_inference_steps: tuple[int, ...] = ()
    schedulers: tuple[str, ...] = ()
    generation: dict = dataclasses.field(default_factory=dict)
    metric: str | None = None
    keep_images: bool = False

    def __post_init__(self):
        self.generation = nested(self.generation)
        axes = ("guidance_scales", "guidance_intervals", "num_inference_steps", "schedulers")
        if not any(getattr(self, name) for name in axes):
            raise ValueError(f"{', '.join(f'`{name}`' for name in axes)} are empty; required: one of them, at least.")
        for name in axes:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` is {list(values)}, with a value twice; required: each once.")
        for steps in self.num_inference_steps:
            check_at_least("num_inference_steps", steps, 1)
        for start, end in self.guidance_intervals:
            if not 0 <= start <= end <= 1:
                raise ValueError(f"`guidance_intervals` has {[start, end]}; required: times, 0 <= start <= end <= 1.")
        for name, own in (("pipeline", "pipeline"), ("output_dir", "output_dir"), ("scheduler", "schedulers")):
            if name in self.generation:
                raise ValueError(f"`generation.{name}` is given; required: `{own}` of the sweep itself.")
        if self.generation.get("features") is None and self.generation.get("inception") is None:
            raise ValueError(
                "`generation.features` and `generation.inception` are not given; required: one of them, to measure by."
            )


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """{"sampling.guidance_scale": 2} as {"sampling": {"guidance_scale": 2}}.

    Raises:
        ValueError: if `sampling` is given, and is no dictionary.
    """
    inner = {name: value for name, value in settings.items() if "." in name}
    settings = {name: value for name, value in settings.items() if "." not in name}
    for name, value in inner.items():
        outer, _, key = name.partition(".")
        if not isinstance(settings.setdefault(outer, {}), dict):
            raise ValueError(
                f"`generation.{name}` is given, but `generation.{outer}` is {settings[outer]!r}; required: keys with "
                "values."
            )
        settings[outer] = {**settings[outer], key: value}
    return settings
