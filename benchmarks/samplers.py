# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The cost in quality of few evaluations of the network, for each sampler.

    python examples/digits/prepare.py --output_dir outputs/digits/data
    python benchmarks/samplers.py --data outputs/digits/data --output_dir outputs/samplers

Draws digits from the same noise with each sampler and each number of network evaluations. Measured, as by
examples/digits/judge.py and by the evaluator: the part of the images that a support-vector classifier takes for the
digit asked for; the variance within a class over that of the real digits, mean and worst of the classes (1 is best:
fewer evaluations lose variety before they lose legibility); and the Fréchet distance from the real digits in the
features of `--features` (lower is better). `heun` has diffusers' grid, whose last step is a tiny one, and `heun-equal`
steps that are equal before the shift. A network for a few steps, `--students FOLDER ...`, is drawn with its own
scheduler, and has the name of its folder. Writes `samplers.json` and `samplers.png`, and goes on where it was.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from diffusers_lightningdit.evaluation.drawn_images import load_pipeline, set_scheduler
from diffusers_lightningdit.evaluation.plots import check_matplotlib
from diffusers_lightningdit.files import atomic_write, read_json, write_json
from diffusers_lightningdit.grids import draw_images
from diffusers_lightningdit.metrics.frechet import FeatureStatistics
from diffusers_lightningdit.networks.vision_features import VisionFeatures
from diffusers_lightningdit.pixels import to_8_bits
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "examples" / "digits"))

SAMPLERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "heun-equal": "FlowMatchHeunDiscreteScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "ucgm": "FlowMatchUCGMScheduler",
}
MEASURES = {
    "accuracy": "accuracy",
    "frechet_distance": "Fréchet distance",
    "variance_ratio": "variance within a class / real",
}
RESULTS, PLOT = "samplers.json", "samplers.png"


@dataclass(kw_only=True)
class SamplersConfig:
    """Settings of samplers.py.

    Raises:
        ValueError: If a value cannot be used.
    """

    pipeline: str = setting(
        str(REPOSITORY / "model_cards" / "lightningdit-digits"), "Folder or Hub id of the pipeline of a flow."
    )
    students: tuple[str, ...] = setting((), "Folders or Hub ids of pipelines for a few steps.")
    data: str = required("Folder of the real digits, as examples/digits/prepare.py writes them.")
    features: str = setting(
        str(REPOSITORY / "model_cards" / "dinov2-digits"), "Vision model whose features images are compared by."
    )

    samplers: tuple[str, ...] = setting(tuple(SAMPLERS), "The samplers of the flow.", group="Sampling")
    num_evaluations: tuple[int, ...] = setting(
        (1, 2, 4, 8, 16, 32, 64, 119),
        "Evaluations of the network; Heun's are odd, so that it takes one less.",
        minimum=1,
    )
    student_evaluations: tuple[int, ...] = setting((1, 2, 4, 8), "Evaluations of the students.", minimum=1)
    num_images: int = setting(1000, "Images that are drawn for each point, the same number of each class.", minimum=1)
    seed: int = setting(0, "The seed of the first image; image i has `seed` + i.", minimum=0)

    batch_size: int = setting(100, "Images that are drawn at a time.", group="Computation", minimum=1)

    output_dir: str = required("Folder of the results; a run that was interrupted goes on.", group="Output")

    def __post_init__(self):
        check_settings(self)
        for name in self.samplers:
            if name not in SAMPLERS:
                raise ValueError(f"`samplers` has {name!r}; required: any of {', '.join(SAMPLERS)}.")


# ---------------------------------------------------------------------------------------------------------------------
# Measures
# ---------------------------------------------------------------------------------------------------------------------


class Judge:
    """Measures drawn digits against the real ones.

    Args:
        data: The folder of the real digits.
        features: The vision model, a folder or Hub id.
        resolution: The side of the images in pixels.
    """

    def __init__(self, data: str, features: str, resolution: int):
        from judge import fit_classifier, real_images, within_class_variance

        self.real, self.real_labels, id2label = real_images(data, resolution)
        self.num_classes = len(id2label)
        self.classifier, _ = fit_classifier(self.real, self.real_labels)
        self.network = VisionFeatures(features)
        self.real_variance = torch.tensor(within_class_variance(self.real, self.real_labels, self.num_classes))
        self.real_statistics = self.statistics(self.real)

    def statistics(self, pixels: torch.Tensor) -> FeatureStatistics:
        """Mean and covariance of the features of images [B, 3, height, width] in [0, 1]."""
        blocks = [self.network(to_8_bits(2 * block - 1))["features"] for block in pixels.split(100)]
        return FeatureStatistics.of(torch.cat(blocks))

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """Measure images [B, 3, height, width] in [0, 1] that were drawn for labels [B]."""
        from judge import classifier_features, within_class_variance

        taken_for = torch.from_numpy(self.classifier.predict(classifier_features(pixels)))
        ratios = torch.tensor(within_class_variance(pixels, labels, self.num_classes)) / self.real_variance
        return {
            "accuracy": (taken_for == labels).double().mean().item(),
            "frechet_distance": self.statistics(pixels).distance_to(self.real_statistics),
            "variance_ratio": ratios.mean().item(),
            "worst_variance_ratio": ratios.min().item(),
        }


def draw(
    pipeline: DiffusionPipeline,
    labels: torch.Tensor,
    num_evaluations: int,
    config: SamplersConfig,
    equal_steps: bool = False,
):
    """Draw one image [3, height, width] in [0, 1] for each label: (images, evaluations that it took)."""
    is_heun = "Heun" in type(pipeline.scheduler).__name__  # N steps take 2 N - 1 evaluations
    num_steps = (num_evaluations + 1) // 2 if is_heun else num_evaluations
    if equal_steps:
        pipeline.scheduler.sigma_min = 1 / num_steps
    generators = [torch.Generator().manual_seed(config.seed + index) for index in range(len(labels))]
    images = draw_images(pipeline, labels.tolist(), generators, config.batch_size, "pt", num_inference_steps=num_steps)
    return torch.stack([image.float().cpu() for image in images]), pipeline.num_timesteps


# ---------------------------------------------------------------------------------------------------------------------
# Plot
# ---------------------------------------------------------------------------------------------------------------------


def plot(results: list[dict], file: Path) -> None:
    """A panel for each measure, over the number of evaluations, with a line for each sampler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(MEASURES), 3.8), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(MEASURES))
    names = list(dict.fromkeys(result["sampler"] for result in results))
    for panel, (measure, title) in zip(panels, MEASURES.items(), strict=True):
        for name in names:
            points = sorted((r["num_evaluations"], r[measure]) for r in results if r["sampler"] == name)
            style = {"marker": "o", "markersize": 4} if name in SAMPLERS else {"marker": "*", "markersize": 11}
            panel.plot(*zip(*points, strict=True), label=name, **style)
        panel.set_xscale("log", base=2)
        most = max(result["num_evaluations"] for result in results)
        ticks = [2**power for power in range(most.bit_length())]  # Heun's odd numbers lie beside them
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.set(xlabel="evaluations of the network", title=title)
        panel.grid(alpha=0.3)
    panels[0].set_ylim(min(0.9, *(result["accuracy"] for result in results)), 1.005)  # no differences by the scale
    panels[1].set_yscale("log")
    panels[2].legend(fontsize="small", loc="lower right")
    with atomic_write(file) as partial:
        figure.savefig(partial, format="png")


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def begun(folder: Path, settings: dict) -> list[dict]:
    """The results of an earlier run in the folder.

    Raises:
        ValueError: If it was run with other settings, or the folder holds something else.
    """
    file = folder / RESULTS
    if not file.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"`output_dir` is {str(folder)!r}, which holds something else; required: a new folder.")
        return []
    record = read_json(file)
    if record["settings"] != settings:
        raise ValueError(f"`output_dir` is {str(folder)!r}, of a run with {record['settings']}; required: {settings}.")
    return record["results"]


def main(argv: list[str] | None = None) -> list[dict]:
    with one_line_errors():
        config = parse_config(SamplersConfig, argv, __doc__)
        check_matplotlib()
        settings = {"num_images": config.num_images, "seed": config.seed}
        results = begun(Path(config.output_dir), settings)
        pipelines = {name: load_pipeline(name) for name in (config.pipeline, *config.students)}
        judge = Judge(config.data, config.features, pipelines[config.pipeline].vae.config.sample_size)

    flow, own_scheduler = pipelines[config.pipeline], pipelines[config.pipeline].scheduler
    labels = torch.arange(judge.num_classes).repeat(-(-config.num_images // judge.num_classes))
    for name in (*config.samplers, *config.students):
        sampler = name if name in SAMPLERS else Path(name).name
        pipeline = pipelines.get(name, flow)
        for wanted in config.num_evaluations if name in SAMPLERS else config.student_evaluations:
            if any((result["sampler"], result["asked_for"]) == (sampler, wanted) for result in results):
                continue
            if name in SAMPLERS:
                pipeline.scheduler = own_scheduler
                set_scheduler(pipeline, SAMPLERS[name])
            pixels, num_evaluations = draw(pipeline, labels, wanted, config, name == "heun-equal")
            result = {"sampler": sampler, "asked_for": wanted, "num_evaluations": num_evaluations}
            result |= {measure: round(value, 6) for measure, value in judge(pixels, labels).items()}
            results.append(result)
            Path(config.output_dir).mkdir(parents=True, exist_ok=True)
            write_json(Path(config.output_dir) / RESULTS, {"settings": settings, "results": results})
            print(*(f"{key} {value}" for key, value in result.items() if key != "asked_for"), flush=True)
    plot(results, Path(config.output_dir) / PLOT)
    return results


if __name__ == "__main__":
    main()
