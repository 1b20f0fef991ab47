# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""The display and the record of a training run: progress bar, `metrics.jsonl`, trackers, throughput."""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ..files import append_json, atomic_write
from ..processes import on_main_process
from .config import TrainingConfig

METRICS_FILE = "metrics.jsonl"
VALIDATION = "validation_"  # the beginning of the names of metrics
# Dense peak in 16-bit floating point with 32-bit sums, in 10^12 operations a second, by the vendor's data sheets
PEAK_TFLOPS = {
    "A100": 312,
    "A800": 312,
    "A10": 125,
    "L4": 121,
    "L40S": 362,
    "H100 PCIe": 756,
    "H100": 989,
    "H800": 989,
    "H200": 989,
    "H20": 148,
    "B200": 2250,
    "RTX 3090": 71,
    "RTX 4090": 165,
    "RTX 5090": 209,
}


def forward_flops(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """Floating-point operations of one forward pass (a multiplication and an addition are two).

    Args:
        model: A model on the meta device, as are its `inputs`, so that nothing is computed.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops()


def peak_flops(device: torch.device) -> float | None:
    """16-bit operations a second that a device can do by its data sheet; None for one that isn't in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [key for key in PEAK_TFLOPS if key in name]
    return PEAK_TFLOPS[max(known, key=len)] * 1e12 if known else None


class TrainingProgress:
    """Shows and records the metrics of a run, on the main process only; a context around the steps.

    Args:
        config: The settings; those that count are `max_train_steps`, `logging_steps`, `global_batch_size`,
            `output_dir` and `report_to`.
        accelerator: The accelerator, which has the trackers of `report_to`.
        step: The steps done before.
        flops_per_image: The floating-point operations of a training step, forward and backward, divided by its images;
            None shows no MFU.
        shown: The names of the metrics that are shown beside the bar; None shows all.
    """

    def __init__(
        self,
        config: TrainingConfig,
        accelerator: Accelerator,
        step: int = 0,
        flops_per_image: float | None = None,
        shown: Sequence[str] | None = None,
    ):
        self.shown = shown
        self.config = config
        self.accelerator = accelerator
        self.images = 0  # trained on since `last_time`
        self.last_time = time.perf_counter()
        self.flops_per_image = flops_per_image
        self.peak = peak_flops(accelerator.device)
        self.bar = tqdm(
            total=config.max_train_steps, initial=step, desc="train", disable=not accelerator.is_main_process
        )
        if accelerator.is_main_process:
            Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        if config.trackers:
            plain = {
                key: value if isinstance(value, (int, float, str, bool)) else str(value)
                for key, value in vars(config).items()
            }
            accelerator.init_trackers("logs", config=plain)

    def report(self, line: str) -> None:
        """Show a line above the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(line)

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """After each step: move the bar; every `logging_steps`, and after the last, record the metrics."""
        self.images += self.config.global_batch_size
        self.bar.n = step
        shown = {key: f"{value:.4g}" for key, value in metrics.items() if self.shown is None or key in self.shown}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(0)
        if step % self.config.logging_steps == 0 or step == self.config.max_train_steps:
            self.record(step, {**metrics, **self._throughput()})

    def _throughput(self) -> dict[str, float]:
        now = time.perf_counter()
        images_per_second = self.images / (now - self.last_time)
        self.images, self.last_time = 0, now
        throughput = {"images_per_second": images_per_second}
        if self.peak is not None and self.flops_per_image is not None:
            # part of the peak that the model's own operations need (model FLOPs utilisation, arXiv 2204.02311)
            flops = images_per_second * self.flops_per_image
            throughput["mfu"] = flops / (self.peak * self.accelerator.num_processes)
        self.bar.set_description(
            f"train {images_per_second:.3g} images/s"
            + (f", MFU {100 * throughput['mfu']:.3g} %" if "mfu" in throughput else "")
        )
        return throughput

    def record(self, step: int, metrics: dict[str, Any]) -> None:
        """Write a line of `metrics.jsonl`, and to the trackers; validation is shown as well."""
        if any(name.startswith(VALIDATION) for name in metrics):
            numbers = (f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float))
            self.report(f"step {step}: {', '.join(numbers)}")
        if self.accelerator.is_main_process:
            append_json(Path(self.config.output_dir) / METRICS_FILE, {"step": step, **metrics})
        if self.config.trackers:
            self.accelerator.log(metrics, step=step)

    def record_image(self, step: int, image: Image.Image) -> None:
        """Write `samples/step-<step>.png`, and show it in those trackers that show images; on the main process only."""
        path = self._image_path(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            image.save(partial, format="PNG")
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images({"samples": np.asarray(image)[None]}, step=step, **layout)

    def _image_path(self, step: int) -> Path:
        return Path(self.config.output_dir) / "samples" / f"step-{step}.png"

    def has_image(self, step: int) -> bool:
        """Whether the image of a step was written, as every process hears from the main one."""
        return on_main_process(self.accelerator, self._image_path(step).exists)

    def has_validation(self, step: int) -> bool:
        """Whether the validation of a step was recorded, as every process hears from the main one."""
        return on_main_process(self.accelerator, lambda: step in self._validated_steps())

    def _validated_steps(self) -> set[int]:
        path, steps = Path(self.config.output_dir) / METRICS_FILE, set()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            # The end of a line is missing, since the disk was full; or it was never a record.
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                record = json.loads(line)
                if any(key.startswith(VALIDATION) for key in record):
                    steps.add(record["step"])
        return steps

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *_) -> None:
        """End the bar's line, also before an error."""
        self.bar.close()
