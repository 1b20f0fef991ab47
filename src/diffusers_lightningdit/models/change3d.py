# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Change3D: change detection and captioning by a video network (arXiv 2503.18803).

Two images of one place are the ends of a short clip. Learnable perception frames stand between them, X3D-L
(arXiv 2004.04730) runs over the clip, and small decoders read the perception frames.

This file imports torch and diffusers only, because it is uploaded to the Hub, together with `model_mixin.py`.

Letters in the shape comments: B pairs of images, n perception frames, T = n + 2 frames of a clip, C channels, H and W
the sides of an image, K classes, L words of a caption, V words of the vocabulary, D width, N = H/16 W/16 tokens.
Between the blocks, the frames of all clips are stacked into a batch of images, [B T, C, H, W]: time is never strided,
and what does not mix frames is computed in two dimensions.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import nn
from torch.utils.checkpoint import checkpoint

from .model_mixin import LightningDiTModelMixin, self_contained

# The network of X3D at the factors 1: width and number of blocks of each stage after the stem (arXiv 2004.04730,
# table 1). X3D-L has the width factor 2 and the depth factor 5.
STEM_WIDTH = 12
STAGE_WIDTHS = (12, 24, 48, 96)
STAGE_DEPTHS = (1, 2, 5, 3)
BOTTLENECK_FACTOR = 2.25
SQUEEZE_FACTOR = 0.0625

# {task: (number of perception frames, the frame that is enhanced)}, counted from 1; captioning enhances none.
TASKS = {"binary": (1, 1), "semantic": (3, 2), "damage": (2, 2), "captioning": (1, None)}
WITH_CLASSES = ("semantic", "damage")


def rounded_width(width: float) -> int:
    """Round a number of channels to a multiple of 8, at least 8, that is not below 90 % of it (X3D, MobileNet)."""
    rounded = max(8, math.floor((width + 4) / 8) * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


# ---------------------------------------------------------------------------------------------------------------------
# Outputs
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Change3DBinaryOutput(BaseOutput):
    """The output for `task="binary"`.

    Attributes:
        change_logits: [B, 1, H, W].
        change: The probability of a change, float32 [B, 1, H, W], within [0, 1].
    """

    change_logits: torch.Tensor

    @property
    def change(self) -> torch.Tensor:
        """Return the probability of a change, float32 [B, 1, H, W], within [0, 1]."""
        return self.change_logits.float().sigmoid()


@dataclass
class Change3DSemanticOutput(BaseOutput):
    """The output for `task="semantic"`.

    Attributes:
        before_logits, after_logits: Classes of either image, [B, K, H, W]; class 0 is "no change".
        change_logits: [B, 1, H, W].
        change: The probability of a change, float32 [B, 1, H, W], within [0, 1].
    """

    before_logits: torch.Tensor
    after_logits: torch.Tensor
    change_logits: torch.Tensor

    @property
    def change(self) -> torch.Tensor:
        """Return the probability of a change, float32 [B, 1, H, W], within [0, 1]."""
        return self.change_logits.float().sigmoid()


@dataclass
class Change3DDamageOutput(BaseOutput):
    """The output for `task="damage"`.

    Attributes:
        damage_logits: Classes of damage, [B, K, H, W]; class 0 is "no building".
        building_logits: [B, 1, H, W].
        building: The probability of a building, float32 [B, 1, H, W], within [0, 1].
    """

    damage_logits: torch.Tensor
    building_logits: torch.Tensor

    @property
    def building(self) -> torch.Tensor:
        """Return the probability of a building, float32 [B, 1, H, W], within [0, 1]."""
        return self.building_logits.float().sigmoid()


@dataclass
class Change3DCaptioningOutput(BaseOutput):
    """The output for `task="captioning"`.

    Attributes:
        logits: Of the word that follows each word of the given captions, [B, L, V].
    """

    logits: torch.Tensor


@dataclass
class Change3DGenerateOutput(BaseOutput):
    """Captions from beam search.

    Attributes:
        sequences: For each pair, the ids of the best caption from `<start>` to `<end>`, or None if no beam came to its
            end.
        scores: The sum of the log-probabilities of each caption, or None.
        num_finished: The number of beams of each pair that came to their end.
    """

    sequences: list[list[int] | None]
    scores: list[float | None]
    num_finished: list[int]


# ---------------------------------------------------------------------------------------------------------------------
# X3D
# ---------------------------------------------------------------------------------------------------------------------


class NotFiniteError(ValueError):
    """A model computed NaN or infinity; the message is one line."""


class BatchNormByStatistics(torch.autograd.Function):
    """Normalise by the mean and variance of the batch, which the caller has computed; the gradients pass through them.

    Arguments are frames [N, C, H, W], weight, bias, mean and variance (biased), [C] each, and eps.
    """

    @staticmethod
    def forward(ctx, frames, weight, bias, mean, variance, eps):
        """Normalise frames [N, C, H, W] by a mean and variance [C]."""
        ctx.save_for_backward(frames, weight, mean, torch.rsqrt(variance + eps))
        ctx.eps = eps
        return F.batch_norm(frames, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx, grad_output):
        """The gradients of a batch norm in training, for frames, weight and bias."""
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        frames, weight, mean, inverse_deviation = ctx.saved_tensors
        gradients = torch.ops.aten.native_batch_norm_backward(
            grad_output, frames, weight, None, None, mean, inverse_deviation, True, ctx.eps, [True, True, True]
        )
        return *gradients, None, None, None


class Change3DBatchNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are as exact on a CPU as elsewhere.

    For float32 with the channels last in memory, torch adds the pixels of a batch one after the other there, which
    loses two digits; its sum of a tensor loses none.
    """

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Normalise frames [N, C, H, W]."""
        if not (self.training and frames.device.type == "cpu" and frames.dtype == torch.float32):
            return super().forward(frames)
        with torch.no_grad():
            mean = frames.mean((0, 2, 3))
            variance = (frames - mean[:, None, None]).square_().mean((0, 2, 3))
            number = frames.numel() // frames.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (number / max(number - 1, 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        return BatchNormByStatistics.apply(frames, self.weight, self.bias, mean, variance, self.eps)


class Change3DConvNorm(nn.Module):
    """A convolution without bias and a batch norm, of frames [B T, C, H, W].

    In evaluation, where the norm is a fixed scale and shift of each channel, both are one convolution.

    Args:
        in_channels, out_channels: The widths.
        depthwise: Whether to convolve each channel alone, over 3x3x3 (time, height, width), and not each pixel alone.
        stride: In space.
    """

    def __init__(self, in_channels: int, out_channels: int, depthwise: bool = False, stride: int = 1):
        super().__init__()
        if depthwise:
            self.conv = nn.Conv3d(
                in_channels, out_channels, 3, (1, stride, stride), padding=1, groups=in_channels, bias=False
            )
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.norm = Change3DBatchNorm(out_channels)

    def forward(self, frames: torch.Tensor, num_frames: int) -> torch.Tensor:
        """[B T, C_in, H, W] -> [B T, C_out, H / stride, W / stride], frame by frame or over the clip."""
        if self.training:
            return self.norm(self._convolve(frames, num_frames, self.conv.weight, None))
        return self._convolve(frames, num_frames, *with_norm(self.conv.weight, self.norm))

    def _convolve(
        self, frames: torch.Tensor, num_frames: int, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        if weight.ndim == 4:
            return F.conv2d(frames, weight, bias, self.conv.stride)
        clip = as_clips(frames, num_frames)
        return as_frames(F.conv3d(clip, weight, bias, self.conv.stride, self.conv.padding, groups=self.conv.groups))


def with_norm(weight: torch.Tensor, norm: nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (weight, bias) of the convolution that is one without bias and then a norm in evaluation."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)  # [C]
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), norm.bias - norm.running_mean * scale


def as_clips(frames: torch.Tensor, num_frames: int) -> torch.Tensor:
    """[B T, C, H, W] -> [B, C, T, H, W]; a view."""
    return frames.unflatten(0, (-1, num_frames)).transpose(1, 2)


def as_frames(clips: torch.Tensor) -> torch.Tensor:
    """[B, C, T, ...] -> [B T, C, ...]; a view of clips whose channels are the last in memory."""
    return clips.transpose(1, 2).flatten(0, 1)


class Change3DSqueezeExcitation(nn.Module):
    """Squeeze and excitation (arXiv 1709.01507): a gate for each channel from the mean over time and space."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = rounded_width(SQUEEZE_FACTOR * channels)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, frames: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Scale the channels of frames [B T, C, H, W] by gates of their whole clip."""
        clips = frames.unflatten(0, (-1, num_frames))  # [B, T, C, H, W]
        mean = clips.mean((1, 3, 4)).unflatten(1, (-1, 1, 1))  # [B, C, 1, 1]
        gate = self.expand(F.relu(self.reduce(mean))).sigmoid()
        gate = gate.unsqueeze(1)
        return (clips * gate if torch.is_grad_enabled() else clips.mul_(gate)).flatten(0, 1)


class Change3DBlock(nn.Module):
    """A residual block of X3D: wider by a 1x1x1 convolution, 3x3x3 of each channel, narrower by a 1x1x1 convolution.

    Args:
        in_channels, out_channels: The widths.
        stride: In space.
        use_se: Whether the block has squeeze and excitation.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, use_se: bool):
        super().__init__()
        inner = int(BOTTLENECK_FACTOR * out_channels)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = Change3DConvNorm(in_channels, out_channels, stride=stride)
        elif stride > 1:  # without a norm, in X3D as it was released
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.widen = Change3DConvNorm(in_channels, inner)
        self.depthwise = Change3DConvNorm(inner, inner, depthwise=True, stride=stride)
        self.se = Change3DSqueezeExcitation(inner) if use_se else None
        self.narrow = Change3DConvNorm(inner, out_channels)

    def forward(self, frames: torch.Tensor, num_frames: int) -> torch.Tensor:
        """[B T, C_in, H, W] -> [B T, C_out, H / stride, W / stride]."""
        residual = frames
        if isinstance(self.shortcut, Change3DConvNorm):
            residual = self.shortcut(frames, num_frames)
        elif self.shortcut is not None:
            residual = self.shortcut(frames)
        # In place wherever the value is not needed for gradients: these layers wait for memory.
        frames = F.relu(self.widen(frames, num_frames), inplace=True)
        frames = self.depthwise(frames, num_frames)
        if self.se is not None:
            frames = self.se(frames, num_frames)
        frames = self.narrow(F.silu(frames, inplace=not torch.is_grad_enabled()), num_frames)
        return F.relu(frames.add_(residual), inplace=True)


class Change3DStem(nn.Module):
    """The stem of X3D with stride 1: 1x3x3, then 5x1x1 of each channel, with nothing between; norm and ReLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_space = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.conv_time = nn.Conv3d(channels, channels, (5, 1, 1), padding=(2, 0, 0), groups=channels, bias=False)
        self.norm = Change3DBatchNorm(channels)

    def forward(self, frames: torch.Tensor, num_frames: int) -> torch.Tensor:
        """[B T, 3, H, W] -> [B T, C, H, W]."""
        frames = self.conv_space(frames)
        size = frames.shape[2:]
        # Over time alone, all pixels are a picture of the height T and the width H W. In three dimensions, this kernel
        # is ten times slower on one thread of a CPU. The order of the views keeps the strides of a batch of one.
        clips = frames.flatten(2).unflatten(0, (-1, num_frames)).transpose(1, 2)  # [B, C, T, H W]
        weight, bias = self.conv_time.weight[..., 0], None  # [C, 1, 5, 1]
        if not self.training:
            weight, bias = with_norm(weight, self.norm)
        clips = F.conv2d(clips, weight, bias, padding=(2, 0), groups=len(weight))
        frames = as_frames(clips).unflatten(2, size)
        return F.relu(self.norm(frames) if self.training else frames, inplace=True)


class Change3DEncoder(nn.Module):
    """X3D over clips of an image, perception frames and an image, with enhanced differences (section 2 of the paper).

    Args:
        num_perception_frames: n.
        enhanced_frame: The number m of the perception frame to which the differences are added, or None.
        sample_size: (height, width) of the frames.
        num_stages: The number of stages after the stem: 3, or 4 for captioning.
        width_factor, depth_factor: Of X3D.
    """

    def __init__(
        self,
        num_perception_frames: int,
        enhanced_frame: int | None,
        sample_size: tuple[int, int],
        num_stages: int,
        width_factor: float,
        depth_factor: float,
    ):
        super().__init__()
        self.enhanced_frame = enhanced_frame
        self.perception_frames = nn.Parameter(torch.empty(1, 3, num_perception_frames, *sample_size))
        channels = rounded_width(width_factor * STEM_WIDTH)
        self.stem = Change3DStem(channels)
        self.out_channels = [channels]
        self.stages = nn.ModuleList()
        for width, depth in zip(STAGE_WIDTHS[:num_stages], STAGE_DEPTHS, strict=False):
            channels, in_channels = rounded_width(width_factor * width), channels
            self.out_channels.append(channels)
            self.stages.append(
                nn.ModuleList(
                    Change3DBlock(channels if i else in_channels, channels, stride=1 if i else 2, use_se=i % 2 == 0)
                    for i in range(math.ceil(depth_factor * depth))
                )
            )
        self.differences = None
        if enhanced_frame is not None:
            self.differences = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for width in self.out_channels)

    def clips(self, image_before: torch.Tensor, image_after: torch.Tensor) -> torch.Tensor:
        """Put the perception frames between the images [B, 3, H, W]: [B T, 3, H, W], channels last in memory."""
        perception = self.perception_frames[0].transpose(0, 1).to(image_before)  # [n, 3, H, W]
        perception = perception.expand(len(image_before), -1, -1, -1, -1)
        clips = torch.cat([image_before[:, None], perception, image_after[:, None]], dim=1)  # [B, T, 3, H, W]
        # On a CPU, convolutions over few channels are several times faster in this order.
        return clips.flatten(0, 1).contiguous(memory_format=torch.channels_last)

    def enhance(self, frames: torch.Tensor, num_frames: int, stage: int) -> torch.Tensor:
        """Add ReLU(W |first - last|) to one perception frame: the "difference enhancement" of the paper.

        The other frames stay as they are, and the next stage reads the result.
        """
        clips = frames.unflatten(0, (-1, num_frames))  # [B, T, C, H, W]
        difference = F.relu(self.differences[stage]((clips[:, 0] - clips[:, -1]).abs()), inplace=True)
        if torch.is_grad_enabled():
            clips = clips.clone()
        clips[:, self.enhanced_frame] += difference
        return clips.flatten(0, 1)

    def forward(self, image_before: torch.Tensor, image_after: torch.Tensor, run_block) -> list[torch.Tensor]:
        """Return the perception frames [B, n, C, H / s, W / s] after the stem (s = 1) and each stage (s = 2, 4, 8, 16).

        Args:
            image_before, image_after: [B, 3, H, W].
            run_block: A function of (block, frames, num_frames) that evaluates a block.
        """
        num_frames = self.perception_frames.shape[2] + 2
        frames = self.clips(image_before, image_after)
        features = []
        for stage, blocks in enumerate([[self.stem], *self.stages]):
            for block in blocks:
                frames = run_block(block, frames, num_frames)
            if self.differences is not None:
                frames = self.enhance(frames, num_frames, stage)
            features.append(frames.unflatten(0, (-1, num_frames))[:, 1:-1])
        return features


# ---------------------------------------------------------------------------------------------------------------------
# Maps
# ---------------------------------------------------------------------------------------------------------------------


class Change3DUpsample(nn.Module):
    """A 1x1 convolution, then a transposed convolution that doubles the sides; nothing between or behind."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.upsample = nn.ConvTranspose2d(out_channels, out_channels, 4, stride=2, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, C_in, H, W] -> [B, C_out, 2 H, 2 W]."""
        return self.upsample(self.conv(hidden_states))


class Change3DDecoder(nn.Module):
    """From the features of one perception frame, at 1, 1/2, 1/4 and 1/8 of the sides, to a map of full size.

    Args:
        channels: The widths of the features.
        num_channels: The number of channels of the map.
    """

    def __init__(self, channels: list[int], num_channels: int):
        super().__init__()
        self.up = nn.ModuleList(Change3DUpsample(channels[i + 1], channels[i]) for i in range(3))
        self.conv_out = nn.Conv2d(channels[0], num_channels, 3, padding=1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Return the logits [B, K, H, W] of features [B, C, H / s, W / s] at s = 1, 2, 4 and 8."""
        hidden_states = features[3]
        for i in (2, 1, 0):
            hidden_states = features[i] + self.up[i](hidden_states)
        return self.conv_out(hidden_states)


# ---------------------------------------------------------------------------------------------------------------------
# Captions
# ---------------------------------------------------------------------------------------------------------------------


def sinusoidal_positions(length: int, dim: int) -> torch.Tensor:
    """Compute the fixed positions of arXiv 1706.03762, with w_j = 10000^(-2j / D).

    Returns:
        p[i, 2j] = sin(i w_j) and p[i, 2j + 1] = cos(i w_j), float32 [length, D].
    """
    frequencies = torch.exp(torch.arange(0, dim, 2).float() * (-math.log(10000.0) / dim))
    angles = torch.arange(length).float()[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


class Change3DAttention(nn.Module):
    """Multi-head attention to keys and values that the caller may keep."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)

    def _heads(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, D / heads]

    def keys_and_values(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, N, D] -> twice [B, heads, N, D / heads]."""
        return self._heads(self.to_k(hidden_states)), self._heads(self.to_v(hidden_states))

    def forward(
        self, hidden_states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, is_causal: bool = False
    ) -> torch.Tensor:
        """Attend from hidden states [B, N, D] to keys and values [B, heads, M, D / heads] -> [B, N, D]."""
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(
            self._heads(self.to_q(hidden_states)), keys, values, dropout_p=dropout, is_causal=is_causal
        )
        return self.to_out(attended.transpose(1, 2).flatten(2))


class Change3DCaptionBlock(nn.Module):
    """Causal self-attention and attention to the image, each with a residual and a norm behind it; no feed-forward."""

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.attn1 = Change3DAttention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.attn2 = Change3DAttention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        image: tuple[torch.Tensor, torch.Tensor],
        past: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Return the new states [B, L, D] and the keys and values of the words up to now.

        Args:
            hidden_states: Of all words [B, L, D], or with `past` of the next word [B, 1, D].
            image: Keys and values of the image for `attn2`.
            past: Keys and values of the words before.
        """
        words = self.attn1.keys_and_values(hidden_states)
        if past is not None:
            words = tuple(torch.cat(pair, dim=2) for pair in zip(past, words, strict=True))
        attended = self.attn1(hidden_states, *words, is_causal=past is None)
        hidden_states = self.norm1(hidden_states + self.dropout(attended))
        return self.norm2(hidden_states + self.dropout(self.attn2(hidden_states, *image))), words


class Change3DCaptionDecoder(nn.Module):
    """A transformer that writes captions of a feature map.

    Args:
        dim: The width D, that of the feature map.
        vocab_size: V, with `<pad>` = 0, and `<unk>`, `<start>` and `<end>` as the last three.
        num_layers, num_heads: Of the transformer.
        max_length: The largest number of words, with `<start>` and `<end>`.
        dropout: The probability of dropout.
    """

    def __init__(self, dim: int, vocab_size: int, num_layers: int, num_heads: int, max_length: int, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.register_buffer("positions", sinusoidal_positions(max_length, dim), persistent=False)
        self.blocks = nn.ModuleList(Change3DCaptionBlock(dim, num_heads, dropout) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)
        self.proj_out = nn.Linear(dim, vocab_size)

    def _embed(self, words: torch.LongTensor, first: int = 0) -> torch.Tensor:
        positions = self.positions[first : first + words.shape[1]]
        embedded = self.embedding(words)
        return self.dropout(embedded + positions.to(embedded))

    def forward(self, features: torch.Tensor, captions: torch.LongTensor) -> torch.Tensor:
        """Return the logits [B, L, V] of the words that follow `captions` [B, L], of features [B, D, h, w]."""
        memory = features.flatten(2).transpose(1, 2)  # [B, N, D]
        hidden_states = self._embed(captions)
        for block in self.blocks:
            hidden_states, _ = block(hidden_states, block.attn2.keys_and_values(memory))
        return self.proj_out(self.dropout(hidden_states))

    def generate(
        self, features: torch.Tensor, num_beams: int, start_token_id: int, end_token_id: int
    ) -> Change3DGenerateOutput:
        """Beam search without normalisation by length, as the figures of the paper were computed.

        All images and beams are one batch. A step takes, of each image, the best of all continuations of its beams; a
        beam that takes `<end>` is finished and leaves its place empty. An image ends when no beam is left, or after
        `max_length - 1` steps. Its caption is the finished beam of the largest sum of log-probabilities; any word may
        be taken, `<pad>` too.

        Args:
            features: [B, D, h, w].
            num_beams: The number of beams at the beginning.
            start_token_id, end_token_id: The ids of `<start>` and `<end>`.
        """
        memory = features.flatten(2).transpose(1, 2)  # [B, N, D]
        image = [block.attn2.keys_and_values(memory) for block in self.blocks]  # [B, heads, N, D / heads]
        past: list = [None] * len(self.blocks)
        finished: list[list[tuple[float, list[int]]]] = [[] for _ in features]
        # of each row, one per beam: its image, words and score; at first one row per image
        owners, words = list(range(len(features))), [[start_token_id] for _ in features]
        scores = torch.zeros(len(features), device=features.device)
        beams = [num_beams] * len(features)
        for step in range(len(self.positions) - 1):
            hidden_states = self._embed(torch.tensor([row[-1:] for row in words], device=features.device), step)
            rows = torch.tensor(owners, device=features.device)
            for i, block in enumerate(self.blocks):
                of_rows = tuple(value[rows] for value in image[i])
                hidden_states, past[i] = block(hidden_states, of_rows, past[i])
            candidates = scores[:, None] + self.proj_out(hidden_states[:, 0]).float().log_softmax(-1)  # [rows, V]
            vocab_size = candidates.shape[1]
            kept, new_owners, new_words, first = [], [], [], 0
            for owner in dict.fromkeys(owners):
                number = owners.count(owner)
                best = candidates[first : first + number].flatten().topk(min(beams[owner], number * vocab_size))
                for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    if math.isnan(score):  # which `topk` takes for the largest
                        raise NotFiniteError(
                            "`model` computed NaN in place of a caption; required: finite weights, in their type."
                        )
                    row, word = first + index // vocab_size, index % vocab_size
                    if word == end_token_id:
                        finished[owner].append((score, [*words[row], word]))
                        beams[owner] -= 1
                    else:
                        kept.append((row, score))
                        new_owners.append(owner)
                        new_words.append([*words[row], word])
                first += number
            if not kept:
                break
            owners, words = new_owners, new_words
            rows = torch.tensor([row for row, _ in kept], device=features.device)
            scores = torch.tensor([score for _, score in kept], device=features.device)
            past = [tuple(value[rows] for value in pair) for pair in past]
        best = [max(beams, key=lambda beam: beam[0], default=(None, None)) for beams in finished]
        return Change3DGenerateOutput(
            sequences=[sequence for _, sequence in best],
            scores=[score for score, _ in best],
            num_finished=[len(beams) for beams in finished],
        )


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kept_running_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the norms within a module from counting a batch twice, when a block is computed again for its gradients."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(num_batches)


def checkpointed(block: nn.Module, *args) -> torch.Tensor:
    """Evaluate a block without keeping what its gradients need: it is computed again for them."""

    def contexts():
        return contextlib.nullcontext(), kept_running_statistics(block)

    return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)


class Change3DModel(LightningDiTModelMixin, FromOriginalModelMixin, ModelMixin, ConfigMixin):
    """Change3D for one of its four tasks; the defaults are the published sizes (arXiv 2503.18803).

    Only what the task uses is built: X3D without its head, its last stage for captioning only, a decoder for each map.

    Args:
        task: "binary" (change detection), "semantic" (change detection with the classes before and after), "damage" (of
            buildings) or "captioning".
        sample_size: The side of images in pixels, or (height, width): multiples of 8, of 16 for captioning. It is the
            size of the perception frames; see `resize_perception_frames`.
        num_classes: K, for "semantic" (with "no change" as class 0) and "damage" (with "no building" as class 0; 5 in
            the paper).
        vocab_size: V, for "captioning": words, and `<pad>` = 0, `<unk>` = V - 3, `<start>` = V - 2, `<end>` = V - 1.
        num_caption_layers, num_attention_heads: Of the transformer that writes captions.
        max_caption_length: The largest number of words of a caption, with `<start>` and `<end>`.
        dropout: The probability of dropout in that transformer.
        width_factor, depth_factor: Of X3D; 2 and 5 are X3D-L.

    Raises:
        ValueError: For an argument that does not fit the task, or an impossible size.
    """

    _supports_gradient_checkpointing = True
    _supports_group_offloading = False  # norms are folded into convolutions, which are then not called themselves
    _no_split_modules = ["Change3DBlock", "Change3DCaptionBlock"]
    _skip_layerwise_casting_patterns = ["encoder", "norm", "embedding"]

    @register_to_config
    def __init__(
        self,
        task: str = "binary",
        sample_size: int | tuple[int, ...] = 256,
        num_classes: int | None = None,
        vocab_size: int | None = None,
        num_caption_layers: int = 3,
        num_attention_heads: int = 8,
        max_caption_length: int = 52,
        dropout: float = 0.1,
        width_factor: float = 2.0,
        depth_factor: float = 5.0,
    ):
        super().__init__()
        self._check_config()
        num_perception_frames, enhanced_frame = TASKS[task]
        self.encoder = Change3DEncoder(
            num_perception_frames,
            enhanced_frame,
            self.sample_size,
            num_stages=4 if task == "captioning" else 3,
            width_factor=width_factor,
            depth_factor=depth_factor,
        )
        channels = self.encoder.out_channels
        if task == "binary":
            self.decoder_change = Change3DDecoder(channels, 1)
        elif task == "semantic":
            self.decoder_before = Change3DDecoder(channels, num_classes)
            self.decoder_change = Change3DDecoder(channels, 1)
            self.decoder_after = Change3DDecoder(channels, num_classes)
        elif task == "damage":
            self.decoder_damage = Change3DDecoder(channels, num_classes)
            self.decoder_building = Change3DDecoder(channels, 1)
        else:
            self.decoder_caption = Change3DCaptionDecoder(
                channels[-1], vocab_size, num_caption_layers, num_attention_heads, max_caption_length, dropout
            )
        self.gradient_checkpointing = False
        self._init_weights()

    @property
    def sample_size(self) -> tuple[int, int]:
        """(height, width) of the images, in pixels."""
        size = self.config.sample_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def size_multiple(self) -> int:
        """The number that height and width of images are multiples of."""
        return 16 if self.config.task == "captioning" else 8

    def forward(
        self,
        image_before: torch.Tensor,
        image_after: torch.Tensor,
        captions: torch.LongTensor | None = None,
        return_dict: bool = True,
    ) -> Change3DBinaryOutput | Change3DSemanticOutput | Change3DDamageOutput | Change3DCaptioningOutput | tuple:
        """Compute the maps of pairs of images, or the words of captions by teacher forcing.

        Args:
            image_before, image_after: [B, 3, H, W] of `sample_size`, normalised as in the training: RGB in [-1, 1] for
                "binary" and "semantic", BGR in [-1, 1] for "damage", ImageNet's mean and deviation for "captioning".
            captions: For "captioning", [B, L] ids of words that begin with `<start>`.
            return_dict: Whether to return the output class of the task instead of a tuple of its fields.

        Raises:
            ValueError: For images of another shape, or captions that are missing, too long or not needed.
        """
        task = self.config.task
        if (captions is not None) != (task == "captioning"):
            raise ValueError(
                f"`captions` {'are' if captions is not None else 'is None, not'} given for `task` {task!r}; required: "
                "captions for 'captioning', and for no other task."
            )
        if captions is not None:
            self._check_captions(captions, len(image_before))
            logits = self.decoder_caption(self.encode(image_before, image_after), captions)
            return Change3DCaptioningOutput(logits=logits) if return_dict else (logits,)

        self._check_images(image_before, image_after)
        frames = self.encoder(image_before, image_after, self._run_block)  # of each stage, [B, n, C, H / s, W / s]

        def of_frame(number: int) -> list[torch.Tensor]:
            return [features[:, number - 1] for features in frames]

        if task == "binary":
            output = Change3DBinaryOutput(change_logits=self.decoder_change(of_frame(1)))
        elif task == "semantic":
            output = Change3DSemanticOutput(
                before_logits=self.decoder_before(of_frame(1)),
                after_logits=self.decoder_after(of_frame(3)),
                change_logits=self.decoder_change(of_frame(2)),
            )
        else:
            output = Change3DDamageOutput(
                damage_logits=self.decoder_damage(of_frame(1)), building_logits=self.decoder_building(of_frame(2))
            )
        return output if return_dict else output.to_tuple()

    def encode(self, image_before: torch.Tensor, image_after: torch.Tensor) -> torch.Tensor:
        """Return the features [B, D, H / 16, W / 16] that captions are written of; see `forward` for the images."""
        self._require_captioning()
        self._check_images(image_before, image_after)
        return self.encoder(image_before, image_after, self._run_block)[-1][:, 0]

    @torch.no_grad()
    def generate(
        self, image_before: torch.Tensor, image_after: torch.Tensor, num_beams: int = 1
    ) -> Change3DGenerateOutput:
        """Write captions of pairs of images by beam search; see `generate_from_features`."""
        return self.generate_from_features(self.encode(image_before, image_after), num_beams)

    @torch.no_grad()
    def generate_from_features(self, features: torch.Tensor, num_beams: int = 1) -> Change3DGenerateOutput:
        """Write captions of features [B, D, h, w] of `encode` by beam search; one beam is greedy search.

        Raises:
            ValueError: If the model writes no captions, or for a number of beams below 1.
            NotFiniteError: If it computes NaN.
        """
        self._require_captioning()
        if num_beams < 1:
            raise ValueError(f"`num_beams` is {num_beams}; required: at least 1.")
        vocab_size = self.config.vocab_size
        return self.decoder_caption.generate(
            features, num_beams, start_token_id=vocab_size - 2, end_token_id=vocab_size - 1
        )

    def resize_perception_frames(self, sample_size: int | tuple[int, int]) -> None:
        """Make the model one for images of another size, in place: its perception frames are resized bilinearly.

        The paper fixes the size, and trains at 256x256. A resized model is a start for training at the new size.

        Args:
            sample_size: The side in pixels, or (height, width), multiples of 8, of 16 for captioning.

        Raises:
            ValueError: For an impossible size.
        """
        before = self.config.sample_size
        self.register_to_config(sample_size=sample_size)
        try:
            self._check_config()
        except ValueError:
            self.register_to_config(sample_size=before)
            raise
        frames = self.encoder.perception_frames
        resized = F.interpolate(frames.data[0].transpose(0, 1), self.sample_size, mode="bilinear", align_corners=False)
        self.encoder.perception_frames = nn.Parameter(resized.transpose(0, 1)[None].contiguous(), frames.requires_grad)

    def to(self, *args, **kwargs):
        """Move or cast as diffusers does; `memory_format=torch.channels_last_3d` may be given for the whole model."""
        memory_format = kwargs.pop("memory_format", None)
        if args or kwargs:
            super().to(*args, **kwargs)
        if memory_format in (torch.channels_last, torch.channels_last_3d):
            # Each is defined for one number of dimensions, and torch.nn would refuse the other weights.
            formats = {4: torch.channels_last, 5: torch.channels_last_3d}
            for parameter in self.parameters():
                if parameter.ndim in formats:
                    parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
        elif memory_format is not None:
            super().to(memory_format=memory_format)
        return self

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None) -> None:
        """Enable it as diffusers does; recomputed blocks do not count a batch twice in their norms' statistics."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func or checkpointed)

    def _run_block(self, block: nn.Module, frames: torch.Tensor, num_frames: int) -> torch.Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, frames, num_frames)
        return block(frames, num_frames)

    def _init_weights(self) -> None:
        """Initialise as the authors train from scratch: each block of X3D begins as its shortcut."""
        nn.init.normal_(self.encoder.perception_frames)
        for module in [*self.encoder.stem.modules(), *self.encoder.stages.modules()]:
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Change3DBlock):
                nn.init.zeros_(module.narrow.norm.weight)
        for decoder in (module for module in self.modules() if isinstance(module, Change3DDecoder)):
            for module in decoder.modules():  # transposed convolutions and `differences` keep the default of torch
                if type(module) is nn.Conv2d:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if self.config.task == "captioning":
            for module in self.decoder_caption.modules():
                if isinstance(module, nn.Linear):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                    nn.init.zeros_(module.bias)
            for attention in (m for m in self.decoder_caption.modules() if isinstance(m, Change3DAttention)):
                # The original draws query, key and value as one [3 D, D] matrix: its mean fan is 2 D, not D.
                for projection in (attention.to_q, attention.to_k, attention.to_v):
                    nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
            nn.init.uniform_(self.decoder_caption.embedding.weight, -0.1, 0.1)
            nn.init.uniform_(self.decoder_caption.proj_out.weight, -0.1, 0.1)

    def _check_config(self) -> None:
        c = self.config
        if c.task not in TASKS:
            raise ValueError(f"`task` is {c.task!r}; required: one of {', '.join(map(repr, TASKS))}.")
        size = [c.sample_size] if isinstance(c.sample_size, int) else list(c.sample_size)
        multiple, is_captioning, has_classes = self.size_multiple, c.task == "captioning", c.task in WITH_CLASSES
        for name, value, fits, required in (
            ("sample_size", c.sample_size, isinstance(c.sample_size, int) + len(size) == 2
             and all(0 < n <= 16384 and n % multiple == 0 for n in size),
             f"a multiple of {multiple} pixels, at most 16384, or (height, width) of such"),
            ("num_classes", c.num_classes, has_classes or c.num_classes is None, f"None for the task {c.task!r}"),
            ("num_classes", c.num_classes, not has_classes or 2 <= (c.num_classes or 0) <= 1000,
             f"2 to 1000 for the task {c.task!r}, with class 0"),
            ("vocab_size", c.vocab_size, is_captioning or c.vocab_size is None, f"None for the task {c.task!r}"),
            ("vocab_size", c.vocab_size, not is_captioning or (c.vocab_size or 0) > 4,
             "at least 5 for the task 'captioning': words, and <pad>, <unk>, <start> and <end>"),
            ("num_caption_layers", c.num_caption_layers, 1 <= c.num_caption_layers <= 100, "from 1 to 100"),
            ("max_caption_length", c.max_caption_length, 2 <= c.max_caption_length <= 5000, "from 2 to 5000"),
            ("dropout", c.dropout, 0 <= c.dropout < 1, "at least 0 and below 1"),
            ("width_factor", c.width_factor, 0 < c.width_factor <= 16, "above 0 and at most 16"),
            ("depth_factor", c.depth_factor, 0 < c.depth_factor <= 16, "above 0 and at most 16"),
        ):  # fmt: skip
            if not fits:
                raise ValueError(f"`{name}` is {value!r}; required: {required}.")
        width = rounded_width(c.width_factor * STAGE_WIDTHS[-1])
        if is_captioning and (c.num_attention_heads < 1 or width % c.num_attention_heads):
            raise ValueError(f"`num_attention_heads` is {c.num_attention_heads}; required: a divisor of {width}.")

    def _check_images(self, image_before: torch.Tensor, image_after: torch.Tensor) -> None:
        for name, image in (("image_before", image_before), ("image_after", image_after)):
            if image.ndim != 4 or image.shape[1] != 3:
                raise ValueError(f"`{name}` has the shape {tuple(image.shape)}; required: [B, 3, height, width].")
            if tuple(image.shape[2:]) != self.sample_size:
                height, width = image.shape[2:]
                required = f"{self.sample_size[0]}x{self.sample_size[1]}, the `sample_size` of the model"
                raise ValueError(
                    f"`{name}` is {height}x{width}; required: {required}. `resize_perception_frames` makes it one for "
                    "another size, `Change3DPipeline` tiles images of any size."
                )
        if len(image_before) != len(image_after):
            raise ValueError(
                f"`image_after` has {len(image_after)} images; required: {len(image_before)}, as `image_before` has."
            )

    def _check_captions(self, captions: torch.LongTensor, batch_size: int) -> None:
        longest = self.config.max_caption_length
        if captions.ndim != 2 or len(captions) != batch_size or not 1 <= captions.shape[1] <= longest:
            raise ValueError(
                f"`captions` has the shape {tuple(captions.shape)}; required: [{batch_size}, L] with L from 1 to "
                f"{longest}."
            )

    def _require_captioning(self) -> None:
        if self.config.task != "captioning":
            raise ValueError(f"`task` is {self.config.task!r}; required: a model with the task 'captioning'.")

    # -- Hub and files: see LightningDiTModelMixin -----------------------------------------------------------------

    _source_code = self_contained(__spec__.loader.get_source(__name__))
    _model_card = """---
library_name: diffusers
tags:
- change3d
---

# {title}

```python
import diffusers_lightningdit  # makes its classes known to diffusers

model = diffusers_lightningdit.Change3DModel.from_pretrained("{repository}")
```

Change3D ([arXiv 2503.18803](https://arxiv.org/abs/2503.18803)): changes between two images of one place, as
`model(image_before, image_after)`.
Where this repository also holds Python code, the model loads without the package diffusers-lightningdit, by running it:
`diffusers.AutoModel.from_pretrained("{repository}", trust_remote_code=True)`.
"""
