# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""LightningDiT written down as plainly as its equations, to measure the package against; `speed.py` runs it.

Nothing here is of the package: an nn.Module without hooks, mixins or configurations (arXiv 2501.01423, section 4;
adaLN-Zero of DiT, arXiv 2212.09748; RoPE, arXiv 2104.09864; SwiGLU, arXiv 2002.05202), Euler's method that evaluates
both halves of guidance at every step and computes the conditions anew at every step, a training step of separate
passes, and latents read by opening a file for each item. `load` takes the weights of a
`LightningDiTTransformer2DModel`, with which it computes the same numbers.

Letters in the shape comments: B batch, C latent channels, N tokens, D width, H heads, d = D / H.
"""

import itertools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import nn
from torch.utils.checkpoint import checkpoint

EPS = 1e-6


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times a weight (arXiv 1910.07467), in float32."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        numbers = x.float()
        return (numbers * torch.rsqrt(numbers.pow(2).mean(-1, keepdim=True) + EPS)).to(x.dtype) * self.weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring pairs of the entries of x [B, H, N, d] by the angles of cos and sin, [N, d]."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-second, first], dim=-1).flatten(-2) * sin


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, hidden_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.ff_in, self.ff_out = nn.Linear(dim, 2 * hidden_dim), nn.Linear(hidden_dim, dim)
        self.adaln = nn.Linear(dim, 6 * dim)

    def forward(self, x: torch.Tensor, condition: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        vectors = self.adaln(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)  # [B, 1, D] each
        shift1, scale1, gate1, shift2, scale2, gate2 = vectors
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, cos, sin)
        hidden, gate = self.ff_in(self.norm2(x) * (1 + scale2) + shift2).chunk(2, dim=-1)
        return x + gate2 * self.ff_out(hidden * F.silu(gate))

    def attention(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, d]
        query, key = rotate(query, cos, sin).to(value.dtype), rotate(key, cos, sin).to(value.dtype)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class PlainTransformer(nn.Module):
    """The velocity of square latents [B, C, side, side] at patch size 1; the arguments are sizes."""

    def __init__(self, side: int, channels: int, num_layers: int, num_heads: int, head_dim: int, num_classes: int):
        super().__init__()
        dim, self.side, self.checkpointing = num_heads * head_dim, side, False
        self.embed = nn.Linear(channels, dim)
        self.register_buffer("positions", torch.zeros(side * side, dim))
        rows, columns = (torch.arange(side * side) // side).float(), (torch.arange(side * side) % side).float()
        frequencies = 10000 ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
        angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)
        self.register_buffer("cos", angles.cos().repeat_interleave(2, dim=1), persistent=False)
        self.register_buffer("sin", angles.sin().repeat_interleave(2, dim=1), persistent=False)
        self.time = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.classes = nn.Embedding(num_classes + 1, dim)
        hidden_dim = int(2 / 3 * 4 * dim)
        self.blocks = nn.ModuleList([Block(dim, num_heads, hidden_dim) for _ in range(num_layers)])
        self.norm_out, self.adaln_out = RMSNorm(dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, channels)

    def forward(self, latents: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the velocity at times t [B] for the classes [B]."""
        x = self.embed(latents.flatten(2).transpose(1, 2)).to(latents.dtype) + self.positions
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=latents.device).float() / 128)
        angles = t.float()[:, None] * frequencies
        features = torch.cat([angles.cos(), angles.sin()], dim=1).to(latents.dtype)
        condition = self.time(features) + self.classes(labels)  # [B, D]
        for block in self.blocks:
            if self.checkpointing:
                x = checkpoint(block, x, condition, self.cos, self.sin, use_reentrant=False)
            else:
                x = block(x, condition, self.cos, self.sin)
        scale, shift = self.adaln_out(F.silu(condition)).unsqueeze(1).chunk(2, dim=-1)
        x = self.out(self.norm_out(x) * (1 + scale) + shift)
        return x.transpose(1, 2).unflatten(2, (self.side, self.side))

    def load(self, weights: dict[str, torch.Tensor]) -> "PlainTransformer":
        """Take the weights of a `LightningDiTTransformer2DModel` of the same sizes."""
        parts = {
            "embed.weight": weights["patch_embed.weight"].flatten(1),
            "embed.bias": weights["patch_embed.bias"],
            "positions": weights["pos_embed"][0],
            "classes.weight": weights["class_embedder.embedding_table.weight"],
        }
        renamed = {
            "time.0": "timestep_embedder.linear_1",
            "time.2": "timestep_embedder.linear_2",
            "adaln_out": "norm_out.linear",
            "norm_out": "norm_out.norm",
            "out": "proj_out",
        }
        for number in range(len(self.blocks)):
            new, old = f"blocks.{number}.", f"transformer_blocks.{number}."
            for kind in ("weight", "bias"):
                parts[f"{new}qkv.{kind}"] = torch.cat([weights[f"{old}attn.to_{part}.{kind}"] for part in "qkv"])
            renamed |= {new + "out": old + "attn.to_out.0", new + "adaln": old + "adaln"}
            renamed |= {new + "ff_in": old + "ff.net.0.proj", new + "ff_out": old + "ff.net.2"}
            renamed |= {new + name: old + name for name in ("norm1", "norm2")}
        for name in self.state_dict():
            if name not in parts:
                module, kind = name.rsplit(".", 1)
                parts[name] = weights[f"{renamed[module]}.{kind}"]
        self.load_state_dict(parts)
        return self


@torch.no_grad()
def sample(
    network: PlainTransformer, noise: torch.Tensor, labels: torch.Tensor, num_classes: int, num_steps: int,
    shift: float, scale: float, interval: tuple[float, float], num_channels: int,
) -> torch.Tensor:  # fmt: skip
    """Euler's method from t = 0 to 1 on the grid s t / (1 + (s - 1) t); both halves of guidance at every step."""
    both, latents = torch.cat([labels, torch.full_like(labels, num_classes)]), noise
    grid = torch.linspace(0, 1, num_steps + 1)
    grid = (shift * grid / (1 + (shift - 1) * grid)).tolist()
    for t, end in itertools.pairwise(grid):
        doubled = torch.cat([latents, latents]).to(next(network.parameters()).dtype)
        velocity = network(doubled, torch.full((len(both),), t, device=noise.device), both).float()
        conditional, unconditional = velocity.chunk(2)
        velocity = conditional.clone()
        if interval[0] <= t <= interval[1]:
            guided = unconditional + scale * (conditional - unconditional)
            velocity[:, :num_channels] = guided[:, :num_channels]
        latents = latents + (end - t) * velocity
    return latents


def training_step(
    network: nn.Module, average: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, latents: torch.Tensor,
    labels: torch.Tensor, num_classes: int, dtype: torch.dtype, decay: float = 0.9999,
) -> torch.Tensor:  # fmt: skip
    """One step of flow matching with clipping at 1, AdamW and an average that is a pass for each tensor."""
    t = torch.randn(len(latents), device=latents.device).sigmoid()
    noise, at = torch.randn_like(latents), t.view(-1, 1, 1, 1)
    dropped = torch.rand(len(labels), device=labels.device) < 0.1
    labels = torch.where(dropped, num_classes, labels)
    with torch.autocast(latents.device.type, dtype, enabled=dtype != torch.float32):
        velocity = network(at * latents + (1 - at) * noise, t, labels)
    loss = (velocity.float() - (latents - noise)).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            average[name].mul_(decay).add_(parameter, alpha=1 - decay)
    return loss


def read_item(paths: list[Path], ends: list[int], index: int) -> dict:
    """Latents and label of one image from shards, by opening its file; `ends` counts the images up to each."""
    shard = next(number for number, end in enumerate(ends) if index < end)
    row = index - (ends[shard - 1] if shard else 0)
    with safe_open(paths[shard], "pt") as file:
        return {"latents": file.get_slice("latents")[row], "class_labels": int(file.get_slice("labels")[row])}
