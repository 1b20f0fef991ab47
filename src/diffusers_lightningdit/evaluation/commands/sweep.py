# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Measure a pipeline over guidance scales, guidance intervals, numbers of steps and schedulers.

    python -m diffusers_lightningdit.evaluate sweep --pipeline P --output_dir FOLDER --guidance_scales "[1, 1.5, 2]" \
        --num_inference_steps "[20, 50]" generation.reference=REF generation.inception=FILE generation.num_images=5000

Each combination is a run of `evaluate generation` in its own folder in `output_dir`/runs. The command writes sweep.csv,
sweep.json and sweep.png. Run again after an interruption, it resumes; run again with more values, it adds combinations.
"""

import csv
import dataclasses
import itertools
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline

from ...files import HOLDER_FILE, LOCK_FILE, atomic_write, json_values, write_json
from ...interruption import interruptible
from ...locks import locked_by_run
from ...processes import patient_accelerator
from ...settings import check_settings, make_config, nested, one_line_errors, parse_config, required, setting
from ..drawn_images import load_pipeline, set_scheduler
from ..generation_config import GenerationConfig
from ..generation_metrics import metric_names
from ..plots import check_matplotlib, plot_bars, plot_lines
from ..provenance import IMAGES, check_folder, first_difference, pipeline_provenance, samples_provenance
from ..records import RESUMES, read_record
from ..reference import content_sha256, open_reference
from ..set_statistics import make_network
from .generation import ARCHIVE, RESULTS_FILE, evaluate_generation

AXES = ("guidance_scales", "guidance_intervals", "num_inference_steps", "schedulers")
RUNS = "runs"
TABLE_FILE, JSON_FILE, PLOT_FILE = "sweep.csv", "sweep.json", "sweep.png"
# Settings of `evaluate generation` that do not change the metrics.
IRRELEVANT_SETTINGS = ("output_dir", "batch_size", "num_workers")


@dataclasses.dataclass(kw_only=True)
class SweepConfig:
    """Settings of `evaluate sweep`.

    Raises:
        ValueError: If a value cannot be swept over, or no axis has one.
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
        if not any(getattr(self, name) for name in AXES):
            raise ValueError(f"{', '.join(f'`{name}`' for name in AXES)} are empty; required: one of them, at least.")
        for name in AXES:
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


# ---------------------------------------------------------------------------------------------------------------------
# The runs
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Combination:
    """One combination of the swept settings. None keeps the pipeline's own setting."""

    guidance_scale: float | None
    guidance_interval: tuple[float, float] | None
    num_inference_steps: int | None
    scheduler: str | None

    @property
    def name(self) -> str:
        """The name of the folder of its run."""
        parts = []
        if self.guidance_scale is not None:
            parts.append(f"scale-{self.guidance_scale:g}")
        if self.guidance_interval is not None:
            parts.append("interval-{:g}-{:g}".format(*self.guidance_interval))
        if self.num_inference_steps is not None:
            parts.append(f"steps-{self.num_inference_steps}")
        return "_".join([*parts, *filter(None, [self.scheduler])])

    def row(self) -> dict[str, Any]:
        """Return its columns of the table."""
        start, end = self.guidance_interval or (None, None)
        return {
            "guidance_scale": self.guidance_scale,
            "interval_start": start,
            "interval_end": end,
            "num_inference_steps": self.num_inference_steps,
            "scheduler": self.scheduler,
        }


def of_same_images(combination: Combination) -> Combination:
    """The combination without what changes no image: an interval at the scale 1, which is no guidance."""
    return dataclasses.replace(combination, guidance_interval=None) if combination.guidance_scale == 1 else combination


def combinations(config: SweepConfig) -> list[Combination]:
    """List all combinations, with the scales in the outermost loop."""
    return [Combination(*values) for values in itertools.product(*(getattr(config, axis) or (None,) for axis in AXES))]


def generation_config(config: SweepConfig, combination: Combination) -> GenerationConfig:
    """Compose the settings of `evaluate generation` for a combination.

    Raises:
        ValueError: If `evaluate generation` refuses the settings, or one of them is swept over.
    """
    swept = {
        "guidance_scale": combination.guidance_scale,
        "guidance_interval": list(combination.guidance_interval) if combination.guidance_interval else None,
        "num_inference_steps": combination.num_inference_steps,
    }
    swept = {name: value for name, value in swept.items() if value is not None}
    sampling = config.generation.get("sampling", {})
    for name in swept.keys() & (sampling if isinstance(sampling, dict) else {}):
        raise ValueError(f"`generation.sampling.{name}` is {sampling[name]!r}, and is swept over; required: either.")
    own = {"pipeline": config.pipeline, "scheduler": combination.scheduler}
    own["output_dir"] = str(Path(config.output_dir) / RUNS / combination.name)
    return make_config(GenerationConfig, {**config.generation, **own, "sampling": {**sampling, **swept}})


def finished_record(settings: GenerationConfig) -> dict[str, Any] | None:
    """Read the record of a run; None if the run is not finished.

    Raises:
        ValueError: If the run was measured with other settings.
    """
    path = Path(settings.output_dir) / RESULTS_FILE
    if not path.is_file():
        return None
    record = read_record(path)
    wanted = json_values(dataclasses.asdict(settings))
    for name, value in wanted.items():
        if name not in IRRELEVANT_SETTINGS and record["settings"].get(name) != value:
            raise ValueError(
                f"{path} was measured with `{name}` {record['settings'].get(name)!r}, now it is {value!r}; required: "
                "the same, or another `output_dir`."
            )
    return record


def check_runs(
    runs: dict[Combination, GenerationConfig],
    records: dict[Combination, dict[str, Any] | None],
    pipeline: DiffusionPipeline,
    device: torch.device,
) -> None:
    """Raise ValueError if pipeline, network or reference have changed since a run was begun or finished.

    Weights and reference are hashed once for all runs.
    """
    own_scheduler, weights = pipeline.scheduler, None
    for settings in runs.values():
        pipeline.scheduler = own_scheduler
        set_scheduler(pipeline, settings.scheduler, settings.shift)
        if Path(settings.output_dir).exists():
            weights = pipeline_provenance(pipeline) if weights is None else weights
            check_folder(Path(settings.output_dir), samples_provenance(settings, pipeline, device, weights))
    measured_by = None
    for combination, record in records.items():
        if record is not None:
            settings = runs[combination]
            measured_by = _measured_by(settings, record, pipeline) if measured_by is None else measured_by
            before = {name: (record.get(name) or {}) for name in ("features", "reference")}
            before["reference"] = {"sha256": before["reference"].get("sha256")}
            if (difference := first_difference(before, measured_by)) is not None:
                name, was, is_ = difference
                raise ValueError(
                    f"{Path(settings.output_dir) / RESULTS_FILE} was measured with {name} = {was}, now it is {is_}; "
                    "required: the same, or another `output_dir`."
                )


def _measured_by(settings: GenerationConfig, record: dict[str, Any], pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Describe the present network of the features and the hash of the reference, which are the same for all runs."""
    network, reference = make_network(settings), {"sha256": None}
    if settings.reference is not None:
        size = record["samples"]["height"], record["samples"]["width"]
        _, images = open_reference(settings, network, size, pipeline)
        reference = {"sha256": content_sha256(settings, images)}
    return {"features": json_values(network.description), "reference": reference}


def run_sweep(config: SweepConfig, accelerator: Accelerator) -> list[dict[str, Any]]:
    """Measure all combinations that are not finished, and write table, JSON file and plot after each of them.

    Combinations that draw the same images are measured once.

    Returns:
        The rows of the table, on every process: the columns of `Combination.row` and the metrics of the run.

    Raises:
        ValueError: Before anything is drawn, if the settings of any run cannot be used, as far as that can be known, or
            if runs in the folder were made with other settings, weights, images or versions.
        ImportError: If matplotlib is not installed.
    """
    check_matplotlib()
    folder = Path(config.output_dir)
    check_sweep_folder(config)
    runs = {combination: generation_config(config, combination) for combination in combinations(config)}
    check_metric(config.metric, metric_names(next(iter(runs.values()))))
    records = {combination: finished_record(settings) for combination, settings in runs.items()}
    check_runs(runs, records, load_pipeline(config.pipeline), accelerator.device)
    with locked_by_run(accelerator, folder):
        check_sweep_folder(config)
        records = {combination: finished_record(settings) for combination, settings in runs.items()}
        return _measure_runs(config, runs, records, accelerator)


def check_sweep_folder(config: SweepConfig) -> None:
    """Raise ValueError if the folder holds anything that is no sweep."""
    folder = Path(config.output_dir)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if (folder.exists() and not folder.is_dir()) or (RUNS not in names and names - {LOCK_FILE, HOLDER_FILE}):
        raise ValueError(f"`output_dir` is {config.output_dir!r}, no sweep; required: a new or an empty folder.")


def _measure_runs(
    config: SweepConfig,
    runs: dict[Combination, GenerationConfig],
    records: dict[Combination, dict[str, Any] | None],
    accelerator: Accelerator,
) -> list[dict[str, Any]]:
    folder, rows, references = Path(config.output_dir), [], {}
    measured: dict[Combination, dict[str, Any]] = {}  # of which the others with the same images take the numbers
    for number, (combination, settings) in enumerate(runs.items(), start=1):
        record = records[combination] or measured.get(of_same_images(combination))
        if record is None:
            accelerator.print(f"{number} of {len(runs)}: {combination.name}")
            record = evaluate_generation(settings, accelerator, references)
        measured.setdefault(of_same_images(combination), record)
        if accelerator.is_main_process and not config.keep_images:
            shutil.rmtree(Path(settings.output_dir) / IMAGES, ignore_errors=True)
            (Path(settings.output_dir) / ARCHIVE).unlink(missing_ok=True)
        rows.append({**combination.row(), **record["results"]})
        if accelerator.is_main_process:
            write_table(folder / TABLE_FILE, rows)
            write_json(folder / JSON_FILE, {"settings": dataclasses.asdict(config), "rows": rows})
            plot_sweep(folder / PLOT_FILE, rows, config)
        accelerator.wait_for_everyone()
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Table and plot
# ---------------------------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table without columns that are empty in all rows."""
    names = [name for name in dict.fromkeys(itertools.chain(*rows)) if any(row.get(name) is not None for row in rows)]
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_metric(metric: str | None, measured: list[str]) -> None:
    """Raise ValueError if the metric is not measured, or no metric is."""
    if not measured:
        raise ValueError(
            "`generation.reference` is not given, and nothing would be measured; required: a reference, or "
            "`generation.inception` with images enough for `generation.num_splits`."
        )
    if metric is not None and metric not in measured:
        raise ValueError(f"`metric` is {metric!r}; required: one of those measured, {', '.join(measured)}.")


def plot_sweep(path: Path, rows: list[dict[str, Any]], config: SweepConfig) -> None:
    """Plot the metric over the first numeric axis with several values, with a line for each combination of the others.

    If no numeric axis has several values, plot a bar for each combination.

    Raises:
        ValueError: If the runs have not measured `config.metric`.
    """
    axes = list(Combination(None, None, None, None).row())
    measured = [name for name in rows[0] if name not in axes]
    check_metric(config.metric, measured)
    metric = config.metric or measured[0]
    rows = [row for row in rows if row[metric] is not None]
    # The values of the whole sweep, since the rows of the first runs do not vary yet.
    numbers = {
        "guidance_scale": config.guidance_scales,
        "num_inference_steps": config.num_inference_steps,
        "interval_start": {start for start, _ in config.guidance_intervals},
        "interval_end": {end for _, end in config.guidance_intervals},
    }
    x = next((name for name, values in numbers.items() if len(values) > 1), None)
    if x is None:
        names = [", ".join(str(row[axis]) for axis in axes if row[axis] is not None) for row in rows]
        plot_bars(path, {name: row[metric] for name, row in zip(names, rows, strict=True)}, metric, config.pipeline)
        return
    varied = [name for name in axes if name != x and len({row[name] for row in rows}) > 1]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        lines.setdefault(", ".join(f"{axis} {row[axis]}" for axis in varied), []).append((row[x], row[metric]))
    plot_lines(path, lines, x, metric, config.pipeline)


def main(argv: list[str] | None = None) -> dict[str, str]:
    with one_line_errors((ValueError, ImportError, OSError)), interruptible(RESUMES):
        config = parse_config(SweepConfig, argv, __doc__)
        datasets.disable_progress_bars()
        accelerator = patient_accelerator()
        run_sweep(config, accelerator)
        if accelerator.is_main_process:
            sys.stdout.write((Path(config.output_dir) / TABLE_FILE).read_text(encoding="utf-8"))
            print(f"wrote {config.output_dir}: {TABLE_FILE}, {JSON_FILE}, {PLOT_FILE}")
    accelerator.end_training()
    return {"output_dir": config.output_dir}
