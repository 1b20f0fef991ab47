# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Speed of training, sampling, the autoencoder, reading and importing, against a plain baseline and the machine.

    python benchmarks/speed.py --output_dir outputs/speed

Each part runs in a process of its own with a limit of its own, and writes every result as it comes: a run that is cut
short keeps what it has. What is compared is run in turns in one process, since a machine's speed drifts; ratios are of
the fastest rounds. `plain_lightningdit.py` is the baseline, the equations written down without the package. Writes
`speed.json` and `speed.md`, with the machine and versions. On one GPU everything runs, in the published sizes; on a
CPU, or with `size=reduced`, smaller networks at the published depth; `size=tiny` takes seconds and measures nothing of
use.
"""

import copy
import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import diffusers
import plain_lightningdit as plain
import timing
import torch
from timing import seconds_of
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.data.latent_dataset import LatentsDataset
from diffusers_lightningdit.data.latent_shards import shard_name, write_shard, write_statistics
from diffusers_lightningdit.files import read_json, write_json
from diffusers_lightningdit.flow_matching import flow_matching_losses
from diffusers_lightningdit.settings import one_line_errors, parse_config, required, setting
from diffusers_lightningdit.training.moving_averages import MovingAverages
from diffusers_lightningdit.training.optimizers import make_adamw
from diffusers_lightningdit.training.progress import forward_flops

REPOSITORY = Path(__file__).parents[1]
ENOUGH = 25  # seconds of measuring one thing


@dataclasses.dataclass(kw_only=True)
class SpeedConfig:
    """Settings of speed.py."""

    output_dir: str = required("Folder of `speed.json` and `speed.md`.", group="Output")
    device: str | None = setting(None, "The device; null: a GPU if there is one.", group="Computation")
    size: str | None = setting(
        None,
        "The sizes that are measured; null: full on a GPU, reduced on a CPU.",
        choices=("full", "reduced", "tiny"),
    )
    compiled: bool | None = setting(None, "Whether to measure what is compiled, too; null: in the full size.")
    baseline: str | None = setting("plain", "The baseline beside the package, or null.", choices=("plain",))
    parts: tuple[str, ...] = setting((), "The parts to run, by name; none: all.")
    time_limit: float | None = setting(
        None,
        "Seconds that all parts may take together, where a machine is lent for a time; null: each has its own.",
        above=0,
    )
    processor_time: bool = setting(
        False, "Measure the processor time of one thread: on a CPU that others use, too, the clock tells little."
    )
    part_of: str | None = setting(None, "Run the one part in `parts` in this process and write to this file.")


@dataclasses.dataclass
class Size:
    """The sizes of what is measured.

    Attributes:
        transformer: Arguments of the transformer in training and sampling.
        overhead: Arguments of a transformer of the published depth whose arithmetic costs nothing.
        batches: The numbers of images drawn at a time, and the steps of each by the published recipe, whose grid has
            this number of equal parts. A step costs as much where there are fewer of them.
        train_batch, train_steps: The images of a training step, and the steps.
        vae: Arguments of the autoencoder.
        vae_batch, resolutions: The images that it takes at a time, and their sides in pixels.
        num_latents: Latents in the files to be read.
        rounds: Turns of each measurement.
        matrix: The side of the matrices whose product measures the machine.
        limit: The seconds that a part may take.
        compiled: Whether what is compiled is measured, too.
    """

    transformer: dict
    overhead: dict
    batches: dict[int, int]
    train_batch: int
    train_steps: int
    vae: dict
    vae_batch: int
    resolutions: tuple[int, ...]
    num_latents: int
    rounds: int
    matrix: int
    limit: float
    compiled: bool = False


NARROW = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "sample_size": 4}
SMALL_VAE = {"block_out_channels": (32, 32, 64, 64, 128), "layers_per_block": 1}
TINY_VAE = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "layers_per_block": 1}
SIZES = {
    "full": Size({}, NARROW, {1: 249, 32: 62}, 128, 20, {}, 32, (256, 512), 16384, 5, 8192, 240, True),
    "reduced": Size(
        {"num_attention_heads": 4, "attention_head_dim": 24, "num_layers": 28},
        *(NARROW, {1: 20}, 8, 6, SMALL_VAE, 2, (256,), 4096, 3, 1024, 300),
    ),
    "tiny": Size(
        {**NARROW, "num_layers": 2}, {**NARROW, "num_layers": 2}, {1: 8, 3: 4}, 4, 3, TINY_VAE, 2, (8,), 32, 1, 64, 240
    ),
}
# The published sampling of LightningDiT-XL/1 after 800 epochs
SHIFT, SCALE, INTERVAL, NUM_CHANNELS = 0.3, 6.7, (0.125, 1.0), 3


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def in_turns(
    functions: dict[str, Callable[[], object]], rounds: int, device: torch.device, warm_ups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each call of each function, one after the other in every round; no round begins after ENOUGH."""
    for function in functions.values():
        for _ in range(warm_ups):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    start = timing.clock()
    for number in range(rounds):
        if number > 0 and timing.clock() - start > ENOUGH:
            break
        for name, function in functions.items():
            seconds[name].append(seconds_of(function, device))
    return seconds


def rows_of(
    seconds: dict[str, list[float]], work: str, baseline: str = "plain", images: int | None = None, **more
) -> Iterator[dict]:
    """A row of the table for each variant: the median and the fastest round, and the latter against the baseline's."""
    for name, values in seconds.items():
        row = {"work": work, "variant": name, "median_s": statistics.median(values), "fastest_s": min(values)}
        if images is not None:
            row["per_second"] = images / row["median_s"]
        if name != baseline and baseline in seconds:
            row["times_faster"] = min(seconds[baseline]) / min(values)
        yield row | more


def measured(
    functions: dict[str, Callable[[], object]], seconds: dict[str, list[float]], work: str, size: Size,
    device: torch.device, warm_ups: int = 1, baseline: str = "plain", **more,
) -> Iterator[dict]:  # fmt: skip
    """Measure functions and give their rows, also against a baseline that was measured before them.

    What takes long to compile can so come last, when the rows of the others are written.

    Args:
        seconds: What was measured of this work before, to which the functions' times are added.
    """
    start = time.perf_counter()
    times = in_turns(functions, size.rounds, device, warm_ups)
    needed = time.perf_counter() - start - sum(map(sum, times.values()))
    seconds |= times
    known = {name: seconds[name] for name in (*functions, baseline) if name in seconds}
    for row in rows_of(known, work, baseline, **more):
        if row["variant"] in functions:
            has_compiled = "compiled" in row["variant"] and "note" not in row
            yield row | ({"note": f"{needed:.0f} s to compile and warm up"} if has_compiled else {})


class CountOps(TorchDispatchMode):
    """Counts the operations that reach the device, without views, which launch nothing."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        is_view = any(alias.alias_info is not None for alias in function._schema.returns)
        self.count += not is_view
        return function(*args, **(kwargs or {}))


def count_ops(function: Callable[[], object]) -> int:
    with CountOps() as counter:
        function()
    return counter.count


def make_transformer(arguments: dict, device: torch.device, dtype: torch.dtype) -> LightningDiTTransformer2DModel:
    """A transformer whose blocks do something: a new one's output is zero."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LightningDiTTransformer2DModel(**arguments)
        for parameter in model.parameters():
            if not parameter.any():
                parameter.data.normal_(std=0.02)
    return model.to(dtype).eval().requires_grad_(False)


def make_plain(model: LightningDiTTransformer2DModel) -> plain.PlainTransformer:
    c = model.config
    sizes = (c.sample_size, c.in_channels, c.num_layers, c.num_attention_heads, c.attention_head_dim, c.num_classes)
    network = plain.PlainTransformer(*sizes).load(model.state_dict())
    return network.to(model.device, model.dtype).eval().requires_grad_(False)


def flops_of(model: LightningDiTTransformer2DModel) -> int:
    """Floating-point operations of the network for one image."""
    c = model.config
    with torch.device("meta"):
        inputs = torch.empty(1, c.in_channels, c.sample_size, c.sample_size), torch.empty(1)
        return forward_flops(LightningDiTTransformer2DModel(**c), *inputs, torch.empty(1, dtype=torch.long))


def dtype_of(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def machine(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """The limits that the machine sets: products of matrices, and copying."""
    dtype, n = dtype_of(device), size.matrix
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    copied = torch.empty_like(a)
    seconds = in_turns({"matrix product": lambda: a @ b, "copy": lambda: copied.copy_(a)}, 4 * size.rounds, device, 3)
    rates = {"matrix product": (2 * n**3, "FLOP/s"), "copy": (2 * a.nbytes, "B/s")}
    for row in rows_of(seconds, f"machine, {str(dtype)[6:]}, side {n}"):
        amount, unit = rates[row["variant"]]
        yield row | {"rate": amount / row["fastest_s"], "rate_unit": unit}


def forward(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """The network for one guided image, a batch of two."""
    model = make_transformer(size.transformer, device, dtype_of(device))
    yield from compare_forward(model, f"forward, batch 2, width {model.inner_dim}", size, device, baseline)


def overhead(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """The network where arithmetic costs nothing: what is left is the time to launch operations, by one thread."""
    torch.set_num_threads(1)
    model = make_transformer(size.overhead, device, dtype_of(device))
    work = f"overhead of a forward, batch 2, width {model.inner_dim}"
    size = dataclasses.replace(size, rounds=8 * size.rounds, compiled=False)
    yield from compare_forward(model, work, size, device, baseline)


@torch.no_grad()
def compare_forward(
    model: LightningDiTTransformer2DModel, work: str, size: Size, device: torch.device, baseline: bool
) -> Iterator[dict]:
    c = model.config
    latents = torch.randn(2, c.in_channels, c.sample_size, c.sample_size, device=device, dtype=model.dtype)
    t, labels = torch.full((2,), 0.5, device=device), torch.tensor([1, c.num_classes], device=device)
    fused = make_transformer({**c}, device, model.dtype)
    fused.fuse_qkv_projections()
    functions = {
        "eager": lambda: model(latents, t, labels, return_dict=False),
        "eager, fused projections": lambda: fused(latents, t, labels, return_dict=False),
    }
    if baseline:
        network = make_plain(model)
        functions["plain"] = lambda: network(latents, t, labels)
    ops, seconds = {name: count_ops(function) for name, function in functions.items()}, {}
    for row in measured(functions, seconds, work, size, device, 3, flops=2 * flops_of(model)):
        yield row | {"operations": ops[row["variant"]]}
    if size.compiled:
        for network, name in ((model, "eager"), (fused, "eager, fused projections")):  # the recipe has it as a whole
            network.compile_repeated_blocks(fullgraph=True)
            function = {name.replace("eager", "compiled blocks"): functions[name]}
            yield from measured(function, seconds, work, size, device, 3, flops=2 * flops_of(model))


def recipe(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """The published recipe: Euler on the shifted grid, guidance of three channels from t = 0.125."""
    model = make_transformer(size.transformer, device, dtype_of(device))
    network = make_plain(model) if baseline else None
    c = model.config
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1 / SHIFT)
    vae = AutoencoderVAVAE(**{**TINY_VAE, "latent_channels": c.in_channels})  # latents are asked for
    pipe = LightningDiTPipeline(model, vae, scheduler)
    pipe.set_progress_bar_config(disable=True)
    side = c.sample_size * 2 ** (len(TINY_VAE["block_out_channels"]) - 1)

    def ours(noise: torch.Tensor, num_steps: int) -> torch.Tensor:
        return pipe(
            list(range(len(noise))), latents=noise, num_inference_steps=num_steps, guidance_scale=SCALE,
            guidance_interval=INTERVAL, guidance_channels=NUM_CHANNELS, height=side, width=side, output_type="latent",
        ).images  # fmt: skip

    def original(noise: torch.Tensor, num_steps: int) -> torch.Tensor:
        ids = torch.arange(len(noise), device=device)
        return plain.sample(network, noise, ids, c.num_classes, num_steps, SHIFT, SCALE, INTERVAL, NUM_CHANNELS)

    def rows(variant: str, *others: str) -> Iterator[dict]:
        for batch, num_steps in size.batches.items():
            noise = torch.randn(batch, c.in_channels, c.sample_size, c.sample_size, device=device)
            functions = {variant: partial(ours, noise, num_steps)}
            functions |= {name: partial(original, noise, num_steps) for name in others}
            grid = torch.linspace(0, 1, num_steps + 1)[:-1]
            num_guided = int((SHIFT * grid / (1 + (SHIFT - 1) * grid) >= INTERVAL[0]).sum())
            more = {
                "images": batch,
                "flops": batch * (num_steps + num_guided) * flops_of(model),
            }  # what is needed of it
            start, results = time.perf_counter(), [function() for function in functions.values()]
            if others:
                more["largest_difference"] = float((results[0] - results[1]).abs().max())
            elif "compiled" in variant:
                more["note"] = f"{time.perf_counter() - start:.0f} s for the first run"
            work = f"recipe, {num_steps} steps, {batch} images, width {model.inner_dim}"
            yield from measured(functions, seconds.setdefault(batch, {}), work, size, device, 0, **more)

    seconds: dict[int, dict[str, list[float]]] = {}
    yield from rows("pipeline", *(["plain"] if baseline else []))
    if size.compiled:
        pipe.compile(fullgraph=True)
        yield from rows("pipeline, compiled")


def step_parts(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """The end of a training step, after the backward pass: clipping, AdamW, averages."""
    model = make_transformer(size.transformer, device, torch.float32).requires_grad_(True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    parameters = list(model.parameters())
    num_bytes = sum(parameter.nbytes for parameter in parameters)
    averages = MovingAverages(parameters, [0.9999])
    shadow = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def plain_average():
        for average, parameter in zip(shadow, parameters, strict=True):
            average.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)

    adamw = {kind: make_adamw(kind, parameters, 1e-4, (0.9, 0.95), 0.0) for kind in ("adamw", "adamw_fused")}
    works = {
        "clipping": {"ours": lambda: torch.nn.utils.clip_grad_norm_(parameters, 1.0)},
        "average": {"ours": lambda: averages.step(parameters)} | ({"plain": plain_average} if baseline else {}),
        "optimiser": {kind: optimizer.step for kind, optimizer in adamw.items()},
    }
    for work, functions in works.items():
        seconds = in_turns(functions, size.rounds, device)
        name = f"training step: {work}, {num_bytes / 1e6:,.0f} MB of weights"
        touched = {"clipping": 3, "average": 3, "optimiser": 7}[work] * num_bytes  # each value read and written once
        yield from rows_of(seconds, name, "adamw" if work == "optimiser" else "plain", bytes=touched)


def train(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """The training script as it is, and the plain loop, in images a second."""
    model = make_transformer(size.transformer, device, torch.float32)
    c, batch = model.config, size.train_batch
    flops = 3 * batch * flops_of(model)
    work, fastest = f"training, batch {batch}, width {model.inner_dim}", {}
    if baseline:
        network = make_plain(model).requires_grad_(True).train()
        average = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
        latents = torch.randn(batch, c.in_channels, c.sample_size, c.sample_size, device=device)
        labels = torch.arange(batch, device=device) % c.num_classes
        if size.compiled:  # in pieces, as the original is
            for block in network.blocks:
                block.compile()
        step = (network, average, optimizer, latents, labels, c.num_classes, dtype_of(device))
        for network.checkpointing in (False, True):
            name = "plain, checkpointing" if network.checkpointing else "plain"
            seconds = in_turns({name: lambda: plain.training_step(*step)}, size.train_steps, device, 2)
            for row in rows_of(seconds, work, images=batch, flops=flops):
                yield row | peak_memory(device)
            fastest[network.checkpointing] = min(seconds[name])
        del network, average, optimizer, step
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the memory that the script's own process needs
    with tempfile.TemporaryDirectory() as folder:
        write_latents(Path(folder, "latents"), 4 * batch, model)
        vae = AutoencoderVAVAE(**{**TINY_VAE, "latent_channels": c.in_channels})
        vae.register_to_config(latents_mean=[0.0] * c.in_channels, latents_std=[1.0] * c.in_channels)
        vae.save_pretrained(Path(folder, "vae"))
        del model
        for variant, checkpointing in (("script, adamw_fused", False), ("script, adamw_fused, checkpointing", True)):
            more = {"optimizer": "adamw_fused", "gradient_checkpointing": str(checkpointing).lower()}
            found = run_script(Path(folder), Path(folder, variant), size, device, **more)
            if checkpointing in fastest and "fastest_s" in found:
                found["times_faster"] = fastest[checkpointing] / found["fastest_s"]
            yield {"work": work, "variant": variant, "flops": flops} | found


def internal_guidance(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """A training step with and without the output layer of internal guidance: losses, gradients, clipping, AdamW."""
    functions, batch = {}, size.train_batch
    for name, layer in (("without the layer", None), ("with the layer", 1)):
        model = make_transformer({**size.transformer, "internal_guidance_layer": layer}, device, torch.float32)
        model.requires_grad_(True).train()
        c = model.config
        optimizer = make_adamw("adamw", list(model.parameters()), 1e-4, (0.9, 0.95), 0.0)
        noise, latents = torch.randn(2, batch, c.in_channels, c.sample_size, c.sample_size, device=device)
        draws = noise, latents, torch.rand(batch, device=device), torch.arange(batch, device=device) % c.num_classes

        def step(model=model, optimizer=optimizer, draws=draws, has_layer=layer is not None):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                losses = flow_matching_losses(model, *draws, with_internal=has_layer)
                loss = losses.mse.mean() + losses.cosine.mean()
                if has_layer:
                    loss = loss + 0.5 * losses.internal_mse.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        functions[name] = step
    work = f"training step, internal guidance, batch {batch}, width {model.inner_dim}"
    yield from rows_of(in_turns(functions, 4 * size.rounds, device), work, "without the layer", batch)


def peak_memory(device: torch.device) -> dict:
    """The most memory of a GPU that was used since the last call."""
    if device.type != "cuda":
        return {}
    found = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {"memory": found}


# runs a script, as it is, with the arguments that follow the name of a clock, and prints the most memory of a GPU that
# it used
RUN_SCRIPT = """
import runpy, sys, time, torch
time.perf_counter = getattr(time, sys.argv[1])  # what the script measures its steps by
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
"""


def run_script(folder: Path, output_dir: Path, size: Size, device: torch.device, **more: str) -> dict:
    settings = {
        "data": folder / "latents", "vae": folder / "vae", "output_dir": output_dir,
        "data_kind": "latents", "num_classes": 1000, "global_batch_size": size.train_batch, "check_statistics": "false",
        "max_train_steps": size.train_steps + 2, "logging_steps": 1, "learning_rate": 1e-4,
        "compile_blocks": str(size.compiled).lower(), "num_workers": 2 if device.type == "cuda" else 0,
        "mixed_precision": "bf16" if device.type == "cuda" else "no", "guidance_channels": 3,
        **more,
    }  # fmt: skip
    unset = ("sample_size", "in_channels")  # the data and the autoencoder tell
    settings |= {f"transformer.{name}": value for name, value in size.transformer.items() if name not in unset}
    script = REPOSITORY / "training_scripts" / "train_lightningdit.py"
    command = [sys.executable, "-c", RUN_SCRIPT, timing.clock.__name__, script]
    environment = dict(os.environ)
    if device.type == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    arguments = [f"{name}={value}" for name, value in settings.items()]
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        return {"error": done.stderr.strip().splitlines()[-1]}
    memory = int(done.stdout.split()[-1])
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    rates = [rate for line in lines if (rate := json.loads(line).get("images_per_second")) is not None][2:]
    found = {"per_second": statistics.median(rates), "fastest_s": size.train_batch / max(rates)}
    found["median_s"] = size.train_batch / found["per_second"]
    return found | ({"memory": memory} if memory else {})


def vae(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """Encoding and decoding by the autoencoder: as it is, in `channels_last`, and as `pipe.compile()` does."""
    torch.manual_seed(0)
    dtype = dtype_of(device)
    models = {name: AutoencoderVAVAE(**size.vae).to(device, dtype).eval() for name in ("eager", "channels_last")}
    models["channels_last"].to(memory_format=torch.channels_last)
    models = {name: model.requires_grad_(False) for name, model in models.items()}
    factor = 2 ** (len(models["eager"].config.block_out_channels) - 1)
    for resolution in size.resolutions:
        images = torch.randn(size.vae_batch, 3, resolution, resolution, device=device, dtype=dtype)
        side = resolution // factor
        shape = (size.vae_batch, models["eager"].config.latent_channels, side, side)
        latents = torch.randn(shape, device=device, dtype=dtype)
        works = {
            "decode": lambda model, latents=latents: model.decode(latents).sample,
            "encode": lambda model, images=images: model.encode(images).latent_dist.mode(),
        }
        for work, function in works.items():
            functions = {name: partial(function, model) for name, model in models.items()}
            seconds, arguments = {}, (f"{work}, {resolution} pixels", size, device, 1, "eager")
            yield from measured(functions, seconds, *arguments, images=size.vae_batch)
            if size.compiled:
                compiled = copy.deepcopy(models["channels_last"])
                compiled.encoder.compile()
                compiled.decoder.compile()
                functions = {"channels_last, compiled": partial(function, compiled)}
                yield from measured(functions, seconds, *arguments, images=size.vae_batch)


def write_latents(folder: Path, num_images: int, model: LightningDiTTransformer2DModel) -> list[Path]:
    """Shards of at most 1,024 random latents."""
    folder.mkdir()
    c, paths = model.config, []
    for first in range(0, num_images, 1024):
        count = min(1024, num_images - first)
        latents = torch.randn(count, c.in_channels, c.sample_size, c.sample_size)
        labels = torch.arange(first, first + count) % c.num_classes
        paths.append(folder / shard_name(len(paths)))
        write_shard(paths[-1], latents, latents.flip(-1), labels)
    write_statistics(folder, [0.0] * c.in_channels, [1.0] * c.in_channels)
    return paths


def reading(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """Latents in random order from files that the system keeps in memory, by one thread, as a DataLoader's worker."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = LightningDiTTransformer2DModel(**{**size.transformer, "num_layers": 0})
    with tempfile.TemporaryDirectory() as folder:
        paths = write_latents(Path(folder, "latents"), size.num_latents, model)
        dataset = LatentsDataset(str(Path(folder, "latents")), random_flip=False)
        order = torch.randperm(size.num_latents).tolist()
        ends = [min(1024 * (number + 1), size.num_latents) for number in range(len(paths))]
        functions = {
            "data set, an item at a time": lambda: [dataset[index] for index in order],
            "data set, a batch at a time": lambda: [
                dataset.__getitems__(order[first : first + 128]) for first in range(0, len(order), 128)
            ],
            "one file opened for each item": lambda: [plain.read_item(paths, ends, index) for index in order],
        }
        seconds = in_turns(functions, size.rounds, device)
        work = f"reading {size.num_latents:,} latents, shuffled"
        yield from rows_of(seconds, work, "one file opened for each item", size.num_latents)


OWN_OF_DIFFUSERS = "from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, UniPCMultistepScheduler"


def importing(size: Size, device: torch.device, baseline: bool) -> Iterator[dict]:
    """`import diffusers_lightningdit` in a new process, against diffusers' own pipeline of the kind."""
    code = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
    names = {"diffusers' own": OWN_OF_DIFFUSERS, "diffusers_lightningdit": "import diffusers_lightningdit"}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(1 + size.rounds):
        for name, statement in names.items():
            command = [sys.executable, "-W", "ignore", "-c", code.format(statement)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seconds[name].append(float(output.split()[-1]))
    yield from rows_of({name: values[1:] for name, values in seconds.items()}, "import", "diffusers' own")


MEASURED = (machine, recipe, train, vae, forward, step_parts, overhead, reading, importing, internal_guidance)
PARTS = {part.__name__: part for part in MEASURED}


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def run_part(config: SpeedConfig, size: Size, device: torch.device) -> None:
    """Run one part in this process; the file has every row as soon as it is measured."""
    (name,), rows = config.parts, []
    if config.processor_time:
        torch.set_num_threads(1)
        timing.clock = time.thread_time
    for row in PARTS[name](size, device, config.baseline is not None):
        rows.append(row)
        write_json(Path(config.part_of), {"rows": rows})


def describe_machine(device: torch.device) -> dict:
    about = {
        "device": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    if device.type == "cuda":
        driver = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found = subprocess.run(driver, capture_output=True, text=True)
        about |= {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        about["driver"] = found.stdout.strip()
    return about


def set_shares(parts: dict[str, list[dict]]) -> None:
    """Set how much of the limit each row reaches: what the machine would take by its rates in this run."""
    rates = {row["rate_unit"]: row["rate"] for row in parts.get("machine", [])}
    for row in (row for rows in parts.values() for row in rows):
        for amount, unit in (("flops", "FLOP/s"), ("bytes", "B/s")):
            if amount in row and unit in rates and "error" not in row:
                row["share_of_limit"] = row[amount] / rates[unit] / row["fastest_s"]


def table(results: dict) -> str:
    """The results in Markdown."""
    lines = [", ".join(f"{name} {value}" for name, value in results["machine"].items()), ""]
    lines += ["| work | variant | median | fastest | a second | times faster | more |", "|---|---|---|---|---|---|---|"]
    for rows in results["parts"].values():
        for row in rows:
            if "error" in row:
                lines.append(f"| {row['work']} | {row['variant']} | | | | | {row['error']} |")
                continue
            more = [f"{row['rate']:.3g} {row['rate_unit']}"] if "rate" in row else []
            more += [f"{row['operations']} operations"] if "operations" in row else []
            more += [f"largest difference {row['largest_difference']:.1e}"] if "largest_difference" in row else []
            more += [f"{row['share_of_limit']:.1%} of the limit"] if "share_of_limit" in row else []
            more += [f"{row['memory'] / 1e9:.1f} GB"] if "memory" in row else []
            more += [row["note"]] if "note" in row else []
            rate = f"{row['per_second']:,.2f}" if "per_second" in row else ""
            faster = f"{row['times_faster']:.2f}" if "times_faster" in row else ""
            median, fastest = (f"{row[name] * 1e3:,.2f} ms" for name in ("median_s", "fastest_s"))
            lines.append(
                f"| {row['work']} | {row['variant']} | {median} | {fastest} | {rate} | {faster} | {', '.join(more)} |"
            )
    for name, problem in results["unfinished"].items():
        lines.append(f"| {name} | | | | | | {problem} |")
    return "\n".join(lines) + "\n"


def problem_of(command: list[str], limit: float) -> str | None:
    """Run a command for at most `limit` seconds, and say why it did not end well."""
    if limit <= 0:
        return "not begun, since `time_limit` was over"
    try:
        done = subprocess.run(command, timeout=limit, stderr=subprocess.PIPE, text=True)
    except subprocess.TimeoutExpired:
        return f"not finished in {limit:.0f} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(SpeedConfig, argv, __doc__)
        device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        size_name = config.size or ("full" if device.type == "cuda" else "reduced")
        for name in config.parts:
            if name not in PARTS:
                raise ValueError(f"`parts` has {name!r}; required: some of {', '.join(PARTS)}.")
        if config.processor_time and device.type != "cpu":
            raise ValueError(f"`processor_time` is true on {device}; required: false, or `device=cpu`.")
    size = SIZES[size_name]
    if config.compiled is not None:
        size = dataclasses.replace(size, compiled=config.compiled)
    if config.part_of is not None:
        run_part(config, size, device)
        return
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    results = {"machine": describe_machine(device), "size": size_name, "parts": {}, "unfinished": {}}
    if config.processor_time:
        results["machine"] |= {"threads": 1, "times": "of the processor"}
    begin = time.perf_counter()
    for name in config.parts or PARTS:
        file = folder / f"{name}.part.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--parts", name, "--output_dir", str(folder), "--part_of", str(file)]
        command += ["--device", str(device), "--size", size_name, "--compiled", str(size.compiled).lower()]
        command += ["--baseline", config.baseline or "null", "--processor_time", str(config.processor_time).lower()]
        start = time.perf_counter()
        problem = problem_of(command, min(size.limit, (config.time_limit or math.inf) - (start - begin)))
        results["parts"][name] = read_json(file)["rows"] if file.exists() else []
        file.unlink(missing_ok=True)
        if problem is not None:
            results["unfinished"][name] = problem
        set_shares(results["parts"])
        write_json(folder / "speed.json", results)
        (folder / "speed.md").write_text(table(results), encoding="utf-8")
        print(f"{name}: {time.perf_counter() - start:.0f} s{'' if problem is None else ', ' + problem}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
