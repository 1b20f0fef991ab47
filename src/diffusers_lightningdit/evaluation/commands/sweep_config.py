# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The settings of `evaluate sweep`."""

import dataclasses

from ...settings import check_settings, nested, required, setting


@dataclasses.dataclass(kw_only=True)
class SweepConfig:
    """Settings of `evaluate sweep`.

    Raises:
        ValueError: For a value that cannot be swept over, or if no axis has one.
    """

    pipeline: str = required("Folder or Hub id of a class-conditional pipeline.", group="Input")

    guidance_scales: tuple[float, ...] = setting(
        (), "The scales of classifier-free guidance; empty: that of the pipeline's recipe.", group="Sampling"
    )
    guidance_intervals: tuple[tuple[float, float], ...] = setting(
        (), "Pairs of times t in [0, 1], from which and up to which guidance acts; empty: that of the recipe."
    )
    num_inference_steps: tuple[int, ...] = setting(
        (), "The numbers of sampling steps; empty: that of the recipe.", minimum=1
    )
    schedulers: tuple[str, ...] = setting((), "Scheduler classes of diffusers; empty: the pipeline's.")
    generation: dict = setting(
        {},
        "Settings of `evaluate generation` for each run, as generation.num_images=5000 or "
        "generation.sampling.guidance_channels=3.",
    )

    metric: str | None = setting(None, "The metric that is plotted; null: the first that there is.", group="Measures")

    output_dir: str = required("Folder of the sweep: new, empty, or that of a sweep that goes on.", group="Output")
    keep_images: bool = setting(
        False, "Keep the images of every run; otherwise they are deleted when the run is measured."
    )

    def __post_init__(self):
        check_settings(self)
        self.generation = nested(self.generation.items(), of="generation.")
        axes = ("guidance_scales", "guidance_intervals", "num_inference_steps", "schedulers")
        if not any(getattr(self, name) for name in axes):
            raise ValueError(f"{', '.join(f'`{name}`' for name in axes)} are empty; required: one of them, at least.")
        for name in axes:
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"`{name}` is {list(values)}, with a value twice; required: each once.")
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
