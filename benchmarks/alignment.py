# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The claim of VA-VAE (arXiv 2501.01423, figure 1) at a size that runs on a CPU: does alignment help generation?

    python benchmarks/alignment.py --output_dir outputs/alignment --seeds 0 1 2 --latent_channels 4 32 --jobs 2

On the handwritten digits, the same autoencoder is trained with and without the VF loss, at few and at many latent
channels, then the same transformer on its latents, for equal numbers of steps, by the training scripts as they are.
Measured: linear CKA of the latents with the features that they are aligned to (1: the same but for rotation and scale);
PSNR of reconstructions (dB, higher is better); accuracy, the part of the generated images that a classifier takes for
the requested digit; Fréchet distance of generated and real images (lower is better) in the classifier's features. The
classifier is a second encoder, of another seed than the one that is aligned to, with a logistic regression; beside it,
`pixel_accuracy` is that of a support-vector machine, which sees pixels. Writes `results.json`, `table.md` and
`alignment.png`; run again, it goes on where it was.
"""

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from diffusers_lightningdit.files import read_json, write_json
from diffusers_lightningdit.metrics.frechet import FeatureStatistics
from diffusers_lightningdit.metrics.image_similarity import peak_signal_to_noise_ratio
from diffusers_lightningdit.metrics.linear_classifier import class_accuracy
from diffusers_lightningdit.networks.foundation_model import FoundationModel
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting

REPOSITORY = Path(__file__).parents[1]
EXAMPLE = REPOSITORY / "examples" / "digits"
TRAINING_SCRIPTS = REPOSITORY / "training_scripts"
sys.path.insert(0, str(EXAMPLE))

VAE = {
    "resolution": 32,
    "vae.block_out_channels": [32, 64, 64, 64],
    "vae.layers_per_block": 1,
    "perceptual_weight": 0,
    "disc_weight": 0,
    "kl_weight": 1e-3,
    "distmat_margin": 0,
    "cos_margin": 0,
    "global_batch_size": 64,
    "learning_rate": 1e-3,
    "adam_betas": [0.9, 0.99],
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 50,
    "validation_split": "train",
    "label_column": "label",
}
TRANSFORMER = {
    "data_kind": "latents",
    "random_flip": False,
    "latents_in_memory": True,
    "transformer.num_layers": 4,
    "transformer.num_attention_heads": 4,
    "transformer.attention_head_dim": 32,
    "global_batch_size": 128,
    "learning_rate": 1e-3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 50,
    "ema_decay": 0.995,
    "ema_warmup": True,
    "time_sampling": "uniform",
    "num_inference_steps": 40,
    "timestep_shift": 0.5,
    "guidance_scale": 1.0,
    "guidance_interval": [0.0, 1.0],
    "guidance_channels": None,
}
SHARED = {"mixed_precision": "bf16", "checkpointing_steps": None}
VF_WEIGHT = 0.5  # of the released model's first stage
MEASURES = {"linear_cka": "linear CKA", "psnr_db": "PSNR (dB)", "accuracy": "accuracy",
            "frechet_distance": "Fréchet distance"}  # fmt: skip
DIGITS = {"linear_cka": 2, "psnr_db": 1, "accuracy": 3, "frechet_distance": 2}  # behind the point


@dataclass(kw_only=True)
class AlignmentConfig:
    """Settings of alignment.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    seeds: tuple[int, ...] = setting((0, 1, 2), "The seeds of both stages, a cell of the table for each.", minimum=0)
    latent_channels: tuple[int, ...] = setting((4, 32), "The numbers of latent channels.", minimum=1)

    encoder_steps: int = setting(900, "Steps of the encoder that is aligned to.", group="Optimisation", minimum=2)
    vae_steps: int = setting(300, "Steps of the autoencoder.", minimum=1)
    transformer_steps: int = setting(600, "Steps of the transformer.", minimum=1)

    num_images: int = setting(500, "Images that are generated for each cell.", group="Sampling", minimum=1)

    jobs: int = setting(1, "Cells that are computed at a time.", group="Computation", minimum=1)

    output_dir: str = required("Folder of the results; a run that was interrupted goes on.", group="Output")

    def __post_init__(self):
        check_settings(self)


# ---------------------------------------------------------------------------------------------------------------------
# One cell of the table
# ---------------------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """In one line, for the command line to say."""


def run_script(script: Path, *arguments: str, log: Path) -> None:
    """Run a script in a process of its own; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        command = [sys.executable, str(script), *arguments]
        if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ).returncode != 0:
            raise Failed(f"{script.name} failed, see {log}")


def settings(*parts: dict) -> list[str]:
    """As `key=value` of a command line."""
    merged = {name: value for part in parts for name, value in part.items()}
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in merged.items()]


def measure_cell(folder: Path, channels: int, is_aligned: bool, seed: int, config: AlignmentConfig) -> dict:
    """Train both stages, and measure them; what an earlier run has finished is kept."""
    place = {"latent_channels": channels, "is_aligned": is_aligned, "seed": seed}
    cell = folder / f"channels{channels}-{'aligned' if is_aligned else 'plain'}-seed{seed}"
    result = cell / "result.json"
    if result.is_file():
        return read_json(result)
    if cell.exists():
        shutil.rmtree(cell)
    log = cell / "log.txt"
    vae = {
        "data": str(folder / "data"),
        "foundation_model": str(folder / "encoder0"),
        "output_dir": str(cell / "vae"),
        "vae.latent_channels": channels,
        "vf_weight": VF_WEIGHT if is_aligned else 0,
        "max_train_steps": config.vae_steps,
        "validation_steps": config.vae_steps,
        "seed": seed,
    }
    run_script(TRAINING_SCRIPTS / "train_vavae.py", *settings(SHARED, VAE, vae), log=log)
    caching = {"data": str(folder / "data"), "vae": str(cell / "vae"), "output_dir": str(cell / "latents")}
    run_script(TRAINING_SCRIPTS / "cache_latents.py", *settings(caching, {"resolution": 32}), log=log)
    transformer = {
        "data": str(cell / "latents"),
        "vae": str(cell / "latents" / "vae"),
        "output_dir": str(cell / "pipeline"),
        "max_train_steps": config.transformer_steps,
        "seed": seed,
    }
    run_script(TRAINING_SCRIPTS / "train_lightningdit.py", *settings(SHARED, TRANSFORMER, transformer), log=log)
    values = {**place, **measure(folder, cell, config.num_images)}
    write_json(result, values)
    for name in ("latents", "vae", "pipeline"):
        shutil.rmtree(cell / name)
    return values


def measure(folder: Path, cell: Path, num_images: int) -> dict[str, float]:
    """Measure a finished cell: reconstruction, accuracy, Fréchet distance, organisation of the latents."""
    from judge import classifier_features, fit_classifier, generate, real_images, reconstruct

    pipeline = DiffusionPipeline.from_pretrained(cell / "pipeline")
    real, real_labels, id2label = real_images(str(folder / "data"), 32)
    labels = torch.arange(len(id2label)).repeat(num_images // len(id2label))
    generated = generate(pipeline, labels, seed=0, batch_size=100)
    by_pixels = torch.from_numpy(fit_classifier(real, real_labels)[0].predict(classifier_features(generated)))
    encoder = FoundationModel.from_pretrained(str(folder / "encoder1"))
    with torch.no_grad():
        features = [
            torch.cat([encoder(2 * batch - 1).mean((2, 3)) for batch in pixels.split(100)])
            for pixels in (generated, real)
        ]
    psnr = peak_signal_to_noise_ratio(real, reconstruct(pipeline.vae, real, 100), value_range=1)
    records = [json.loads(line) for line in (cell / "vae" / "metrics.jsonl").read_text("utf-8").splitlines()]
    validation = next(record for record in reversed(records) if "latents_linear_probe_accuracy" in record)
    return {
        "psnr_db": psnr.mean().item(),
        "accuracy": class_accuracy(features[0], labels, features[1], real_labels),
        "pixel_accuracy": (by_pixels == labels).double().mean().item(),
        "frechet_distance": FeatureStatistics.of(features[0]).distance_to(FeatureStatistics.of(features[1])),
        "linear_probe_accuracy": validation["latents_linear_probe_accuracy"],
        "linear_cka": validation["latents_linear_cka"],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Table and plot
# ---------------------------------------------------------------------------------------------------------------------


def rows_of(results: list[dict]) -> list[dict]:
    """Mean and standard deviation over the seeds, for each number of channels without and with alignment."""
    rows = []
    for channels, is_aligned in sorted({(result["latent_channels"], result["is_aligned"]) for result in results}):
        cells = [r for r in results if (r["latent_channels"], r["is_aligned"]) == (channels, is_aligned)]
        row = {"latent_channels": channels, "is_aligned": is_aligned, "num_seeds": len(cells)}
        for name in MEASURES:
            values = [cell[name] for cell in cells]
            row[name] = (statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, values)
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """In Markdown: mean ± standard deviation over the seeds."""
    lines = [
        "| Latent channels | VF loss | " + " | ".join(MEASURES.values()) + " |",
        "|---|---|" + "---|" * len(MEASURES),
    ]
    for row in rows:
        cells = [f"{row[name][0]:.{DIGITS[name]}f} ± {row[name][1]:.{DIGITS[name]}f}" for name in MEASURES]
        lines.append(f"| {row['latent_channels']} | {'yes' if row['is_aligned'] else 'no'} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict], file: Path) -> None:
    """A panel for each measure: bars of the means, with their values, and a dot for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(MEASURES), 3.2), layout="constrained")
    panels = figure.subplots(1, len(MEASURES))
    channels = sorted({row["latent_channels"] for row in rows})
    for panel, (name, title) in zip(panels, MEASURES.items(), strict=True):
        for row in rows:
            place = channels.index(row["latent_channels"]) + (0.2 if row["is_aligned"] else -0.2)
            color = "tab:blue" if row["is_aligned"] else "tab:gray"
            label = "with VF loss" if row["is_aligned"] else "without"
            panel.bar(place, row[name][0], width=0.36, color=color, alpha=0.6,
                      label=label if row["latent_channels"] == channels[0] else None)  # fmt: skip
            panel.plot([place] * len(row[name][2]), row[name][2], "k.", markersize=5)
            top = max(row[name][2])
            panel.annotate(f"{row[name][0]:.{DIGITS[name]}f}", (place, top), (0, 4), textcoords="offset points",
                           ha="center", fontsize=9)  # fmt: skip
        panel.set_ylim(0, 1.12 * max(value for row in rows for value in row[name][2]))
        panel.set_xticks(range(len(channels)), [f"{number} channels" for number in channels])
        panel.set_title(title)
    panels[0].legend(loc="upper left")
    figure.savefig(file, dpi=110)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> list[dict]:
    with one_line_errors():
        config = parse_config(AlignmentConfig, argv, __doc__)
    try:
        return run(config)
    except Failed as error:
        raise SystemExit(f"error: {error}") from error


def check_folder(folder: Path, config: AlignmentConfig) -> None:
    """Raise Failed if the cells of the folder were made with other numbers of steps or images."""
    now = {name: getattr(config, name) for name in ("vae_steps", "transformer_steps", "encoder_steps", "num_images")}
    file = folder / "settings.json"
    if file.is_file():
        before = read_json(file)
        if before != now:
            raise Failed(f"--output_dir is {folder}, with cells of {before}; required: the same, not {now}.")
    elif folder.exists() and any(folder.iterdir()):
        raise Failed(f"--output_dir is {folder}, which holds something else; required: a new or an empty folder.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, now)


def make_once(folder: Path, last_file: str, script: Path, *arguments: str, log: Path) -> None:
    """Run a script that makes `folder`, unless its last file is there; what an interrupted run left is removed."""
    if not (folder / last_file).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        run_script(script, *arguments, log=log)


def run(config: AlignmentConfig) -> list[dict]:
    folder = Path(config.output_dir)
    check_folder(folder, config)
    log, data = folder / "log.txt", folder / "data"
    make_once(data, "train.parquet", EXAMPLE / "prepare.py", "--output_dir", str(data), log=log)
    for seed in (0, 1):  # the one to align to, and the one to measure with
        encoder = folder / f"encoder{seed}"
        words = settings({"data": str(data), "output_dir": str(encoder), "seed": seed,
                          "num_train_steps": config.encoder_steps})  # fmt: skip
        make_once(encoder, "model.safetensors", EXAMPLE / "train_encoder.py", *words, log=log)
    cells = list(itertools.product(config.seeds, config.latent_channels, (False, True)))
    results = []
    with ThreadPoolExecutor(config.jobs) as pool:
        futures = [pool.submit(measure_cell, folder, channels, is_aligned, seed, config)
                   for seed, channels, is_aligned in cells]  # fmt: skip
        try:
            for future in futures:
                results.append(future.result())
                print(json.dumps(results[-1]))
        except Failed:
            pool.shutdown(cancel_futures=True)
            raise
    write_json(folder / "results.json", results)
    rows = rows_of(results)
    (folder / "table.md").write_text(table(rows), encoding="utf-8")
    plot(rows, folder / "alignment.png")
    print(table(rows))
    return results


if __name__ == "__main__":
    main()
