# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Speed and memory of Change3D against a plain reading of its description, module by module.

    python benchmarks/change3d.py --batch_sizes [1,4,16] --num_threads 2

The plain reading (`PlainChange3D`) uses three-dimensional convolutions and norms, one after the other, in the layout of
memory that torch has by default, and in channels-last 3-D. `Change3DModel` is measured in float32, with bfloat16
autocast, and compiled. Both have the same weights, and the script first compares what they compute. Evaluation is in
pairs of images a second, training in pairs a second of a whole step (forward, backward, Adam), with the peak of the
memory. All forms of one number of pairs take turns, so that a change of the machine's speed meets all of them.
"""

import contextlib
import ctypes
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timing
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from diffusers_lightningdit import Change3DModel
from diffusers_lightningdit.original.change3d import Change3DParts, change3d_to_original
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, setting

# ---------------------------------------------------------------------------------------------------------------------
# The plain reading, under the original's names
# ---------------------------------------------------------------------------------------------------------------------


class PlainSqueezeExcitation(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv3d(channels, hidden, 1), nn.ReLU(), nn.Conv3d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.block(x.mean((2, 3, 4), keepdim=True))


class PlainBranch(nn.Module):
    def __init__(self, in_channels: int, channels: int, inner: int, hidden: int, stride: int, use_se: bool):
        super().__init__()
        self.conv_a, self.norm_a = nn.Conv3d(in_channels, inner, 1, bias=False), nn.BatchNorm3d(inner)
        self.conv_b = nn.Conv3d(inner, inner, 3, (1, stride, stride), padding=1, groups=inner, bias=False)
        se = PlainSqueezeExcitation(inner, hidden) if use_se else nn.Identity()
        self.norm_b = nn.Sequential(nn.BatchNorm3d(inner), se)
        self.conv_c, self.norm_c = nn.Conv3d(inner, channels, 1, bias=False), nn.BatchNorm3d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm_a(self.conv_a(x)))
        x = self.norm_b(self.conv_b(x))
        return self.norm_c(self.conv_c(x * x.sigmoid()))


class PlainBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, inner: int, hidden: int, stride: int, use_se: bool):
        super().__init__()
        self.branch1_conv = self.branch1_norm = None
        if stride > 1:
            self.branch1_conv = nn.Conv3d(in_channels, channels, 1, (1, stride, stride), bias=False)
            if in_channels != channels:
                self.branch1_norm = nn.BatchNorm3d(channels)
        self.branch2 = PlainBranch(in_channels, channels, inner, hidden, stride, use_se)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.branch1_conv is None else self.branch1_conv(x)
        if self.branch1_norm is not None:
            shortcut = self.branch1_norm(shortcut)
        return torch.relu(shortcut + self.branch2(x))


class PlainStage(nn.Module):
    def __init__(self, depth: int, in_channels: int, channels: int, inner: int, hidden: int):
        super().__init__()
        self.res_blocks = nn.Sequential(
            *(PlainBlock(channels if i else in_channels, channels, inner, hidden, 1 if i else 2, i % 2 == 0)
              for i in range(depth))
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_blocks(x)


class PlainStem(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv_t = nn.Conv3d(3, 24, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.conv.conv_xy = nn.Conv3d(24, 24, (5, 1, 1), padding=(2, 0, 0), groups=24, bias=False)
        self.norm = nn.BatchNorm3d(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.conv.conv_xy(self.conv.conv_t(x))))


class PlainDecoder(nn.Module):
    def __init__(self):
        super().__init__()

        def up(in_channels: int, channels: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=False), nn.ConvTranspose2d(channels, channels, 4, 2, 1)
            )

        self.up_c4, self.up_c3, self.up_c2 = up(96, 48), up(48, 24), up(24, 24)
        self.up_c1 = nn.Sequential(nn.Conv2d(24, 1, 3, padding=1, bias=False))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        c1, c2, c3, c4 = features
        c3 = c3 + self.up_c4(c4)
        c2 = c2 + self.up_c3(c3)
        return self.up_c1(c1 + self.up_c2(c2))


class PlainEncoder(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.perception_frames = nn.Parameter(torch.randn(1, 3, 1, size, size))
        sizes = ((5, 24, 24, 54, 8), (10, 24, 48, 108, 8), (25, 48, 96, 216, 16))
        self.x3d = nn.Module()
        self.x3d.blocks = nn.ModuleList([PlainStem(), *(PlainStage(*one) for one in sizes)])
        self.fc = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.ReLU()) for width in (24, 24, 48, 96)
        )

    def forward(self, image_before: torch.Tensor, image_after: torch.Tensor) -> list[torch.Tensor]:
        frames = self.perception_frames.expand(len(image_before), -1, -1, -1, -1)
        x = torch.cat([image_before[:, :, None], frames, image_after[:, :, None]], dim=2)
        features = []
        for block, fc in zip(self.x3d.blocks, self.fc, strict=True):
            x = block(x)
            enhanced = x[:, :, 1] + fc((x[:, :, 0] - x[:, :, 2]).abs())
            x = torch.stack([x[:, :, 0], enhanced, x[:, :, 2]], dim=2)
            features.append(enhanced)
        return features


class PlainChange3D(nn.Module):
    """Binary change detection as it is described (arXiv 2503.18803), without what no forward pass uses."""

    def __init__(self, size: int):
        super().__init__()
        self.encoder, self.decoder = PlainEncoder(size), PlainDecoder()

    def forward(self, image_before: torch.Tensor, image_after: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(image_before, image_after))


def with_weights_of(model: Change3DModel) -> PlainChange3D:
    """Return the plain reading with the weights of a model."""
    plain = PlainChange3D(model.config.sample_size)
    parts = Change3DParts({"task": "binary", "sample_size": model.config.sample_size}, model.state_dict())
    original = change3d_to_original(parts)
    plain.load_state_dict({key: original[key] for key in plain.state_dict()})
    return plain.train(model.training)


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class BenchmarkConfig:
    """Settings of benchmarks/change3d.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    sample_size: int = setting(256, "The side of the images in pixels.", minimum=8)
    batch_sizes: tuple[int, ...] = setting((1, 2, 4, 8, 16), "The numbers of pairs of images at a time.")
    repeats: int = setting(5, "Measurements of each form, of which the median counts.", minimum=1)
    evaluation: bool = setting(True, "Whether to measure evaluation.")
    training: bool = setting(True, "Whether to measure steps of training, which need several times the memory.")
    compile_too: bool = setting(True, "Whether to measure the compiled model, too, whose compilation takes minutes.")
    num_threads: int = setting(2, "Threads on a CPU.", minimum=1, group="Computation")
    processor_time: bool = setting(
        False, "Measure the processor time of one thread: on a CPU that others use, too, the clock tells little."
    )

    def __post_init__(self):
        check_settings(self)
        if self.processor_time and self.num_threads > 1:
            raise ValueError(f"`num_threads` is {self.num_threads} with `processor_time`; required: 1.")


def peak_megabytes(function: Callable[[], object], device: torch.device) -> float:
    """Return the peak of the memory while a function runs, above what is in use before; NaN where it is not known."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:  # Linux: the mark of the highest resident size can be put down
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be used again, and not be counted
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        function()
        return (_resident("VmHWM") - before) / 2**10
    except (OSError, AttributeError):  # another system, another C library
        return float("nan")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forms(config: BenchmarkConfig, device: torch.device, is_training: bool) -> dict[str, tuple[nn.Module, bool]]:
    """Return {name: (model, whether it runs under autocast)}."""

    def ours() -> Change3DModel:
        torch.manual_seed(0)
        model = Change3DModel(sample_size=config.sample_size).train(is_training)
        for name, value in model.named_parameters():
            if name.endswith("narrow.norm.weight"):  # a new block is its shortcut alone
                nn.init.constant_(value, 0.5)
        return model

    def in_3d(model: nn.Module) -> nn.Module:
        model.encoder.x3d.to(memory_format=torch.channels_last_3d)
        return model

    found = {
        "plain": (with_weights_of(ours()), False),
        "plain, channels-last 3-D": (in_3d(with_weights_of(ours())), False),
        "plain, bf16": (with_weights_of(ours()), True),
        "Change3DModel": (ours(), False),
        "Change3DModel, channels-last 3-D": (ours().to(memory_format=torch.channels_last_3d), False),
        "Change3DModel, bf16": (ours(), True),
    }
    if config.compile_too:
        found["Change3DModel, compiled"] = (torch.compile(ours(), fullgraph=True), False)
        found["Change3DModel, compiled, bf16"] = (torch.compile(ours(), fullgraph=True), True)
    return {name: (model.to(device), is_cast) for name, (model, is_cast) in found.items()}


def call_of(name: str, model: nn.Module, is_cast: bool, pair: list[torch.Tensor], is_training: bool) -> Callable:
    """Return a function of no arguments: an evaluation, whose logits it returns, or a step of training."""
    device = pair[0].device
    autocast = torch.autocast(device.type, torch.bfloat16) if is_cast else contextlib.nullcontext()
    if "channels-last" in name and "plain" in name:
        pair = [image[:, :, None].contiguous(memory_format=torch.channels_last_3d)[:, :, 0] for image in pair]

    def logits() -> torch.Tensor:
        with autocast:
            output = model(*pair)
        return output if isinstance(output, torch.Tensor) else output.change_logits

    def evaluate() -> torch.Tensor:
        with torch.no_grad():
            return logits()

    if not is_training:
        return evaluate
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=1e-4)
    target = (pair[0][:, :1] > 0).float()

    def step() -> None:
        binary_cross_entropy_with_logits(logits().float(), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(config: BenchmarkConfig, device: torch.device, is_training: bool) -> None:
    models = forms(config, device, is_training)
    for batch_size in config.batch_sizes:
        shape = (2, batch_size, 3, config.sample_size, config.sample_size)
        pair = list(torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device))
        calls = {name: call_of(name, *entry, pair, is_training) for name, entry in models.items()}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        memory = {}
        reference = None
        for name, call in calls.items():
            found = call()  # the first call compiles, and chooses kernels
            if not is_training:
                reference = found if reference is None else reference
                error = (found.float() - reference).abs().max() / reference.abs().max()
                if error > (0.1 if models[name][1] else 1e-4):
                    raise ValueError(f"{name} differs from the plain reading by {error:.1e} of its maximum.")
            memory[name] = peak_megabytes(call, device)
        for _ in range(config.repeats):
            for name, call in calls.items():
                seconds[name].append(timing.seconds_of(call, device))
        for name, values in seconds.items():
            rate = batch_size / statistics.median(values)
            kind = "training" if is_training else "evaluation"
            print(f"| {kind} | {batch_size} | {name} | {rate:,.2f} | {memory[name]:,.0f} |", flush=True)


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(BenchmarkConfig, argv, __doc__)
        torch.set_num_threads(config.num_threads)
        timing.clock = time.thread_time if config.processor_time else time.perf_counter
        device = torch.device("cuda" if torch.cuda.is_available() and not config.processor_time else "cpu")
        print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}")
        print("| | pairs at a time | form | pairs/s | peak MB |\n|---|---|---|---|---|", flush=True)
        for is_training, is_wanted in ((False, config.evaluation), (True, config.training)):
            if is_wanted:
                measure(config, device, is_training)


if __name__ == "__main__":
    main()
