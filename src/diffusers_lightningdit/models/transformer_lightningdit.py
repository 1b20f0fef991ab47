# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""LightningDiT: a class-conditional diffusion transformer for VA-VAE latents (arXiv 2501.01423, section 4).

This file imports torch and diffusers only, because it is uploaded to the Hub, together with `model_mixin.py`.

Letters in the shape comments: B batch, C latent channels, N tokens (row-major), D width, H heads, d = D / H, p patch
size. Time: t in [0, 1], 0 = noise, 1 = data; the network predicts the velocity data - noise.
"""

import dataclasses
import importlib
import math
import os

import torch
import torch.nn.functional as F
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import FromOriginalModelMixin, PeftAdapterMixin
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import (
    TimestepEmbedding,
    Timesteps,
    get_1d_rotary_pos_embed,
    get_2d_sincos_pos_embed_from_grid,
)
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.utils import apply_lora_scale, get_adapter_name
from torch import nn

from .model_mixin import LightningDiTModelMixin, self_contained

NORM_EPS = 1e-6  # of every norm of the network but the LayerNorm of qk-norm

# The first two of these caches replace a run of whole blocks by the change that it made before: within it nothing is
# computed. The third replaces the unconditional half of the first output, but not of a second one.
CACHES_OF_ONE_OUTPUT = (FirstBlockCacheConfig, MagCacheConfig, FasterCacheConfig)


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring entries of x [B, N, H, d] by the angles of cos and sin, [N, d], in float32.

    diffusers' `apply_rotary_emb` computes the same with more operations: here the products convert by themselves.
    """
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # [B, N, H, d/2] each
    turned = torch.stack([-second, first], dim=-1).flatten(-2)
    return (x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)).to(x.dtype)


class LightningDiTAttnProcessor:
    """Self-attention by diffusers' attention dispatcher (SDPA, flash, sage, ...; see `set_attention_backend`)."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: "LightningDiTAttention",
        hidden_states: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        if attn.fused_projections:
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)  # [B, N, D] each
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)

        query, key, value = [x.unflatten(-1, (attn.heads, -1)) for x in (query, key, value)]  # [B, N, H, d] each

        if attn.norm_q is not None:
            query, key = attn.norm_q(query).to(value.dtype), attn.norm_k(key).to(value.dtype)
        if image_rotary_emb is not None:  # of query and key at once: half as many operations
            query, key = rotate(torch.cat([query, key], dim=2), *image_rotary_emb).chunk(2, dim=2)

        hidden_states = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        hidden_states = hidden_states.flatten(2, 3)  # [B, N, D]
        for module in attn.to_out:
            hidden_states = module(hidden_states)
        return hidden_states


class LightningDiTAttention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention with bias, and optionally with qk-norm before the rotary embedding."""

    _default_processor_cls = LightningDiTAttnProcessor
    _available_processors = [LightningDiTAttnProcessor]

    def __init__(self, dim: int, heads: int, qk_norm: str | None):
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.inner_dim = dim
        self.use_bias = True
        self.is_cross_attention = False
        self.fused_projections = False

        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list, as everywhere in diffusers: LoRA names `to_out.0`
        self.norm_q = self.norm_k = None
        if qk_norm == "rms_norm":
            self.norm_q, self.norm_k = (nn.RMSNorm(self.head_dim, eps=NORM_EPS) for _ in range(2))
        elif qk_norm == "layer_norm":
            self.norm_q, self.norm_k = (nn.LayerNorm(self.head_dim, eps=1e-5) for _ in range(2))
        self.set_processor(self._default_processor_cls())

    def forward(
        self, hidden_states: torch.Tensor, image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Self-attention over tokens [B, N, D] by the processor, with the (cos, sin) of RoPE, [N, D / H] each."""
        return self.processor(self, hidden_states, image_rotary_emb)


# ---------------------------------------------------------------------------------------------------------------------
# Block
# ---------------------------------------------------------------------------------------------------------------------


class LightningDiTTransformerBlock(nn.Module):
    """x <- x + gate1 Attn(norm(x) (1 + scale1) + shift1);  x <- x + gate2 FF(norm(x) (1 + scale2) + shift2).

    The vectors are Linear(SiLU(c)) for the condition c, in the order shift1, scale1, gate1, shift2, scale2, gate2
    (adaLN-Zero of DiT, arXiv 2212.09748), or scale1, gate1, scale2, gate2 without shift.
    """

    def __init__(
        self,
        dim: int,
        num_attention_heads: int,
        feed_forward_dim: int,
        activation_fn: str,
        norm_type: str,
        qk_norm: str | None,
        use_adaln_shift: bool,
    ):
        super().__init__()
        self.use_adaln_shift = use_adaln_shift
        if norm_type == "rms_norm":
            self.norm1, self.norm2 = (nn.RMSNorm(dim, eps=NORM_EPS) for _ in range(2))
        else:
            self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False) for _ in range(2))
        self.attn = LightningDiTAttention(dim, num_attention_heads, qk_norm)
        self.ff = FeedForward(dim, inner_dim=feed_forward_dim, activation_fn=activation_fn)
        self.adaln = nn.Linear(dim, (6 if use_adaln_shift else 4) * dim)

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attention and MLP on tokens [B, N, D], modulated by the condition `temb` [B, D]."""
        vectors = self.adaln(F.silu(temb)).unsqueeze(1)  # [B, 1, 6 D or 4 D]
        if self.use_adaln_shift:
            shift1, scale1, gate1, shift2, scale2, gate2 = vectors.chunk(6, dim=-1)
        else:
            scale1, gate1, scale2, gate2 = vectors.chunk(4, dim=-1)
            shift1 = shift2 = 0

        modulated = self.norm1(hidden_states) * (1 + scale1) + shift1
        hidden_states = hidden_states + gate1 * self.attn(modulated, image_rotary_emb)
        modulated = self.norm2(hidden_states) * (1 + scale2) + shift2
        return hidden_states + gate2 * self.ff(modulated)


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class LightningDiTTransformer2DModelOutput(Transformer2DModelOutput):
    """The output of `LightningDiTTransformer2DModel`.

    Args:
        sample: The velocity [B, C, height, width].
        internal_sample: The velocity after an earlier block, of the same shape; None if it was not asked for.
    """

    internal_sample: torch.Tensor | None = None


class LightningDiTTransformer2DModel(
    LightningDiTModelMixin,
    ModelMixin,
    ConfigMixin,
    PeftAdapterMixin,
    FromOriginalModelMixin,
    CacheMixin,
    AttentionMixin,
):
    """The class-conditional velocity network of LightningDiT (arXiv 2501.01423); by default LightningDiT-XL/1.

    Args:
        sample_size: The size of the latents in training, (height, width) or one number for both, for which the position
            table is stored. `forward` accepts other sizes.
        patch_size: The size p of the p x p patches that latents are cut into.
        in_channels: The number C of latent channels.
        num_layers: The number of blocks.
        num_attention_heads: The number H of heads.
        attention_head_dim: The width d of a head, a multiple of 4. The width of the network is D = H d.
        mlp_ratio: The hidden width of the feed-forward layers over D. SwiGLU takes two thirds of it, rounded down.
        num_classes: The number of classes without the null class of guidance, whose index it is.
        class_dropout_prob: The probability in training mode that a label becomes the null class.
        activation_fn: "swiglu" or "gelu-approximate".
        norm_type: "rms_norm" (with a weight) or "layer_norm" (without).
        use_qk_norm: Whether query and key of each head are normalised, by `norm_type` with affine weights.
        use_rope: Whether query and key are rotated by position.
        use_adaln_shift: Whether the modulation of the blocks has shift vectors; that of the final layer always has.
        learn_sigma: Whether the network has 2 C output channels, of which the first C are returned.
        second_time_embedding: Whether the condition has an embedding of a second time r, too: the end of a jump of a
            few-step student (FACM, arXiv 2507.03738). A new one is zero, so that a network that did without it computes
            the same with it.
        internal_guidance_layer: The block, counted from 1, after which a second output layer predicts the velocity
            (internal guidance, arXiv 2512.24176); None: there is none.

    Raises:
        ValueError: For a value outside these.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 16,
        patch_size: int = 1,
        in_channels: int = 32,
        num_layers: int = 28,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        class_dropout_prob: float = 0.1,
        activation_fn: str = "swiglu",
        norm_type: str = "rms_norm",
        use_qk_norm: bool = False,
        use_rope: bool = True,
        use_adaln_shift: bool = True,
        learn_sigma: bool = False,
        second_time_embedding: bool = False,
        internal_guidance_layer: int | None = None,
    ):
        super().__init__()
        self._check_config()
        dim = self.inner_dim = num_attention_heads * attention_head_dim
        self.out_channels = 2 * in_channels if learn_sigma else in_channels
        feed_forward_dim = int(mlp_ratio * dim)
        if activation_fn == "swiglu":
            feed_forward_dim = int(2 / 3 * feed_forward_dim)

        # Input
        self.patch_embed = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        # The table is stored with the weights: that of a checkpoint is used even where it differs from the formula.
        self.register_buffer("pos_embed", sincos_position_table(dim, *self._trained_grid()).unsqueeze(0))  # [1, N, D]
        self.rope = LightningDiTRotaryEmbedding(attention_head_dim) if use_rope else None
        # cos first; t in [0, 1] enters as it is, not multiplied by 1000
        self.time_proj = Timesteps(num_channels=256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(in_channels=256, time_embed_dim=dim)
        self.second_timestep_embedder = None
        if second_time_embedding:
            self.second_timestep_embedder = TimestepEmbedding(in_channels=256, time_embed_dim=dim)
        self.class_embedder = LightningDiTClassEmbedding(num_classes, dim, class_dropout_prob)

        # Blocks
        qk_norm = norm_type if use_qk_norm else None
        block_args = (dim, num_attention_heads, feed_forward_dim, activation_fn, norm_type, qk_norm, use_adaln_shift)
        self.transformer_blocks = nn.ModuleList([LightningDiTTransformerBlock(*block_args) for _ in range(num_layers)])

        # Output
        output_size = patch_size**2 * self.out_channels
        norm_args = {"elementwise_affine": norm_type == "rms_norm", "eps": NORM_EPS, "norm_type": norm_type}
        self.norm_out = AdaLayerNormContinuous(dim, dim, **norm_args)
        self.proj_out = nn.Linear(dim, output_size)
        self.internal_norm_out = self.internal_proj_out = None
        if internal_guidance_layer is not None:
            self.internal_norm_out = AdaLayerNormContinuous(dim, dim, **norm_args)
            self.internal_proj_out = nn.Linear(dim, output_size)

        self.gradient_checkpointing = False
        self._new_classes: list[tuple[str | None, list[str | None]]] = []  # (LoRA, its classes)
        self._init_weights()

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor | float,
        class_labels: torch.LongTensor,
        return_dict: bool = True,
        attention_kwargs: dict | None = None,
        second_timestep: torch.Tensor | float | None = None,
        return_internal: bool = False,
    ) -> "LightningDiTTransformer2DModelOutput | tuple[torch.Tensor, ...]":
        """Compute the velocity of the flow at (hidden_states, timestep).

        Args:
            hidden_states: Normalised noisy latents [B, C, height, width]; height and width are multiples of
                `patch_size`.
            timestep: t in [0, 1], 0 = noise, 1 = data; a number, or [1], or [B]. A network that was trained with
                expanded times (FACM, arXiv 2507.03738) also takes 2 - t, for the velocity at t.
            class_labels: [B], from 0 to `num_classes - 1`, or `num_classes` for the null class.
            return_dict: Whether to return a `LightningDiTTransformer2DModelOutput` instead of a tuple.
            attention_kwargs: `{"scale": s}` scales the active LoRA adapters.
            second_timestep: r in [0, 1] of a model with `second_time_embedding`, as `timestep`: the end of the jump
                whose average velocity is wanted. None: t, no jump, the velocity itself.
            return_internal: Whether to compute the velocity after block `internal_guidance_layer`, too.

        Returns:
            `sample`: the velocity [B, C, height, width]; with `return_internal` also `internal_sample`, of this shape.

        Raises:
            ValueError: If the number of channels is not C, a side is not a multiple of `patch_size`, or the model lacks
                what an argument needs.
        """
        batch_size, channels, height, width = hidden_states.shape
        patch_size = self.config.patch_size
        if channels != self.config.in_channels:
            raise ValueError(f"`hidden_states` has {channels} channels; required: {self.config.in_channels}.")
        if height % patch_size or width % patch_size:
            raise ValueError(f"`hidden_states` is {height}x{width}; required: multiples of `patch_size`, {patch_size}.")
        if second_timestep is not None and self.second_timestep_embedder is None:
            raise ValueError("`second_timestep` is given; required: None for a model without `second_time_embedding`.")
        if return_internal and self.internal_proj_out is None:
            raise ValueError(
                "`return_internal` is True; required: False for a model without `internal_guidance_layer`."
            )
        if return_internal and isinstance(self._cache_config, CACHES_OF_ONE_OUTPUT):
            raise ValueError(
                f"`return_internal` is True with {type(self._cache_config).__name__}; required: False, or another "
                "cache, since this one has no internal velocity where it skips computing."
            )
        height, width = height // patch_size, width // patch_size

        # Input. The residual stream has the input's type: float32 under autocast, where the embedding returns less.
        dtype = hidden_states.dtype
        hidden_states = self.patch_embed(hidden_states).flatten(2).transpose(1, 2).to(dtype)  # [B, N, D]
        hidden_states = hidden_states + self._position_table(height, width).to(dtype)
        image_rotary_emb = self.rope(height, width, hidden_states.device) if self.rope is not None else None
        timestep = torch.as_tensor(timestep, device=hidden_states.device).expand(batch_size)
        temb = self.timestep_embedder(self.time_proj(timestep).to(dtype))  # [B, D]
        temb = temb + self.class_embedder(class_labels)
        if self.second_timestep_embedder is not None:
            end = timestep if second_timestep is None else second_timestep
            end = torch.as_tensor(end, device=hidden_states.device).expand(batch_size)
            temb = temb + self.second_timestep_embedder(self.time_proj(end).to(dtype))

        # Blocks
        outputs = []
        for number, block in enumerate(self.transformer_blocks, start=1):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, temb, image_rotary_emb)
            else:
                hidden_states = block(hidden_states, temb, image_rotary_emb)
            if return_internal and number == self.config.internal_guidance_layer:
                internal = self.internal_proj_out(self.internal_norm_out(hidden_states, temb))
                outputs.append(self._unpatchify(internal, height, width))

        # Output
        hidden_states = self.proj_out(self.norm_out(hidden_states, temb))  # [B, N, p p C_out]
        outputs.insert(0, self._unpatchify(hidden_states, height, width))

        if not return_dict:
            return tuple(outputs)
        return LightningDiTTransformer2DModelOutput(*outputs)

    def _unpatchify(self, hidden_states: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """[B, N, p p C_out] -> [B, C, height p, width p], without a learned sigma."""
        patch_size = self.config.patch_size
        hidden_states = hidden_states.reshape(-1, height, width, patch_size, patch_size, self.out_channels)
        hidden_states = hidden_states.permute(0, 5, 1, 3, 2, 4)  # [B, C_out, height, p, width, p]
        sample = hidden_states.reshape(-1, self.out_channels, height * patch_size, width * patch_size)
        return sample[:, : self.config.in_channels]

    def _init_weights(self):
        """Initialise as adaLN-Zero of DiT does: every block starts as the identity, and the output is zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.transformer_blocks:
            # The original draws query, key and value as one [3 D, D] matrix: its mean fan is 2 D, not D.
            for projection in (block.attn.to_q, block.attn.to_k, block.attn.to_v):
                nn.init.xavier_uniform_(projection.weight, gain=math.sqrt(0.5))
            nn.init.zeros_(block.adaln.weight)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(self.inner_dim, -1))  # it is a linear layer
        nn.init.zeros_(self.patch_embed.bias)
        nn.init.normal_(self.class_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(self.timestep_embedder.linear_2.weight, std=0.02)
        if self.second_timestep_embedder is not None:  # a network that did without it stays as it is
            nn.init.normal_(self.second_timestep_embedder.linear_1.weight, std=0.02)
            nn.init.zeros_(self.second_timestep_embedder.linear_2.weight)
        for norm, projection in ((self.norm_out, self.proj_out), (self.internal_norm_out, self.internal_proj_out)):
            if norm is not None:
                nn.init.zeros_(norm.linear.weight)
                nn.init.zeros_(projection.weight)

    def _position_table(self, height: int, width: int) -> torch.Tensor:
        """Return the stored table for the size of the training, and for another grid the formula at its indices."""
        if (height, width) == self._trained_grid():
            return self.pos_embed
        return sincos_position_table(self.inner_dim, height, width, self.pos_embed.device).unsqueeze(0)

    def _trained_grid(self) -> tuple[int, int]:
        """Return the numbers of patches, (height, width), of latents of `sample_size`."""
        size, patch_size = self.config.sample_size, self.config.patch_size
        height, width = (size, size) if isinstance(size, int) else size
        return height // patch_size, width // patch_size

    def _check_config(self) -> None:
        c = self.config
        dim = c.num_attention_heads * c.attention_head_dim
        sizes = [c.sample_size] * 2 if isinstance(c.sample_size, int) else c.sample_size
        patch_size = max(c.patch_size, 1)
        for name, value, fits, required in (
            *((name, c[name], c[name] >= 1, "at least 1") for name in
              ("patch_size", "in_channels", "num_attention_heads", "attention_head_dim", "num_classes")),
            ("num_layers", c.num_layers, 0 <= c.num_layers <= 1000, "from 0 to 1000"),
            ("activation_fn", c.activation_fn, c.activation_fn in ("swiglu", "gelu-approximate"),
             "'swiglu' or 'gelu-approximate'"),
            ("norm_type", c.norm_type, c.norm_type in ("rms_norm", "layer_norm"), "'rms_norm' or 'layer_norm'"),
            ("sample_size", c.sample_size, len(sizes) == 2 and all(
                 size % patch_size == 0 and 1 <= size // patch_size <= 1024 for size in sizes),
             f"a multiple of `patch_size`, {c.patch_size}, up to 1024 times, or two, (height, width)"),
            ("attention_head_dim", c.attention_head_dim, not (c.use_rope and c.attention_head_dim % 4),
             "a multiple of 4 for `use_rope=True`"),
            ("num_attention_heads * attention_head_dim", dim, dim % 4 == 0, "a multiple of 4 for the position table"),
            ("internal_guidance_layer", c.internal_guidance_layer,
             c.internal_guidance_layer is None or 1 <= c.internal_guidance_layer <= c.num_layers,
             f"None, or from 1 to `num_layers`, {c.num_layers}"),
            ("class_dropout_prob", c.class_dropout_prob, 0 <= c.class_dropout_prob <= 1, "within [0, 1]"),
        ):  # fmt: skip
            if not fits:
                raise ValueError(f"`{name}` is {value!r}; required: {required}.")

    # -----------------------------------------------------------------------------------------------------------------
    # Services: what diffusers does with a model beside calling it
    # -----------------------------------------------------------------------------------------------------------------

    # -- placement, precision and caches ---------------------------------------------------------------------------

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LightningDiTTransformerBlock"]
    _repeated_blocks = ["LightningDiTTransformerBlock"]
    _skip_layerwise_casting_patterns = ["pos_embed", "patch_embed", "norm", "class_embedder", "proj_out"]

    @property
    def _cp_plan(self) -> dict:
        """The plan of context parallelism: each process computes the blocks for its share of the tokens."""
        plan = {
            "rope": {i: ContextParallelInput(split_dim=0, expected_dims=2, split_output=True) for i in range(2)},
            "transformer_blocks.0": {"hidden_states": ContextParallelInput(split_dim=1, expected_dims=3)},
            "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
        }
        if self.rope is None:  # diffusers looks up every module of the plan
            del plan["rope"]
        if self.internal_proj_out is not None:
            plan["internal_proj_out"] = plan["proj_out"]
        return plan

    def enable_layerwise_casting(self, storage_dtype=torch.float8_e4m3fn, compute_dtype=None, *args, **kwargs) -> None:
        """Enable layerwise casting as diffusers does, also on a model that is not in the type for computing yet.

        diffusers alone would leave embeddings and norms in their type, which does not go together with the others'.
        """
        if compute_dtype not in (None, self.dtype):
            self.to(compute_dtype)
        super().enable_layerwise_casting(storage_dtype, compute_dtype, *args, **kwargs)

    def enable_cache(self, config) -> None:
        """Enable a cache as diffusers does, with settings of `FasterCacheConfig` that fit this model.

        Its defaults are made for video and text. It must know the arguments whose first half is unconditional, and that
        latents are images. `TaylorSeerCacheConfig` in lite mode predicts both output layers of a model with
        `internal_guidance_layer`, where diffusers would predict one.
        """
        if isinstance(config, FasterCacheConfig):
            ours = ("class_labels", "second_timestep")
            names = dict.fromkeys((*config._unconditional_conditional_input_kwargs_identifiers, *ours))
            config = dataclasses.replace(
                config, tensor_format="BCHW", _unconditional_conditional_input_kwargs_identifiers=tuple(names)
            )
        if isinstance(config, TaylorSeerCacheConfig) and config.use_lite_mode and self.internal_proj_out is not None:
            config = dataclasses.replace(
                config,
                use_lite_mode=False,
                skip_predict_identifiers=[r"transformer_blocks\.\d+"],
                cache_identifiers=["proj_out", "internal_proj_out"],
            )
        super().enable_cache(config)

    # -- LoRA with new classes -------------------------------------------------------------------------------------

    # The file of a LoRA may hold rows for new classes beside its matrices. The transformer keeps them with their names,
    # and not a pipeline: it can then load, exchange and delete such a LoRA without a pipeline, and all pipelines that
    # share the transformer know the names (tests/models/test_lora_new_classes.py tests both). `_new_classes` lists, in
    # the order of the rows, the name of each LoRA and the names of its classes. The name of a LoRA is None once it is
    # fused and unloaded, after which its classes stay.

    @property
    def new_class_names(self) -> dict[int, str]:
        """The names, by id, of the classes that loaded LoRAs have brought."""
        names = [name for _, names in self._new_classes for name in names]
        first = self.config.num_classes - len(names)
        return {first + number: name for number, name in enumerate(names) if name is not None}

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict, prefix: str | None = "transformer", hotswap: bool = False, **kwargs
    ) -> None:
        """Load a LoRA as diffusers does, together with its new classes, if it has any.

        The rows of new classes, [n, D], have the key `class_embedder.lora_new_classes.weight`; their names are in the
        metadata under `lora_new_classes`. The classes get the ids from `num_classes` on, and the null class moves
        behind them. They stay until the LoRA is unloaded or deleted.

        Raises:
            ValueError: For rows of another width than D, or another number of names.
        """
        state_dict, metadata = self._read_lora(pretrained_model_name_or_path_or_dict, kwargs)
        start = f"{prefix}." if prefix is not None else ""
        rows = state_dict.pop(start + NEW_CLASSES_WEIGHT, None)
        names = metadata.pop(start + NEW_CLASSES_NAMES, None)
        if rows is not None:
            self._check_new_classes(start, rows, names)
        adapter_name = kwargs.pop("adapter_name", None) or get_adapter_name(self)

        before = self.class_embedder.embedding_table.weight.data, self._new_classes
        try:
            if hotswap:  # PEFT exchanges matrices only, and would look for the rows in a module
                self._remove_classes({adapter_name})
            elif rows is not None:  # first: with the LoRA, offloading registers the weights anew
                self._append_classes(adapter_name, rows, names)
            super().load_lora_adapter(
                state_dict, prefix=prefix, hotswap=hotswap, adapter_name=adapter_name, metadata=metadata, **kwargs
            )
            if hotswap and rows is not None:
                self._append_classes(adapter_name, rows, names)
        except Exception:
            self._set_class_table(*before)
            raise

    def unload_lora(self) -> None:
        """Unload all LoRAs as diffusers does, and the new classes of those that are not fused."""
        fused = {name for module in self.modules() for name in getattr(module, "merged_adapters", ())}
        self._new_classes = [(None if name in fused else name, names) for name, names in self._new_classes]
        self._remove_classes({name for name, _ in self._new_classes if name is not None})
        super().unload_lora()

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Delete LoRAs as diffusers does, with their new classes; the ids of later classes move down."""
        super().delete_adapters(adapter_names)
        self._remove_classes({adapter_names} if isinstance(adapter_names, str) else set(adapter_names))

    def save_lora_adapter(self, save_directory: str | os.PathLike, adapter_name: str = "default", **kwargs) -> None:
        """Save a LoRA as diffusers does, with the names of its new classes.

        Raises:
            ValueError: For a LoRA with new classes and `safe_serialization=False`: such a file holds no names.
        """
        names = dict(self._new_classes).get(adapter_name)
        if names is None or None in names:
            return super().save_lora_adapter(save_directory, adapter_name=adapter_name, **kwargs)
        if not kwargs.get("safe_serialization", True):
            raise ValueError(
                f"`safe_serialization` is False, and the LoRA {adapter_name!r} has new classes with names; required: "
                "True."
            )
        config = self.peft_config[adapter_name]
        metadata = {**config.to_dict(), NEW_CLASSES_NAMES: names}
        config.to_dict = lambda: metadata  # what diffusers writes as the metadata
        try:
            super().save_lora_adapter(save_directory, adapter_name=adapter_name, **kwargs)
        finally:
            del config.to_dict

    def _check_new_classes(self, start: str, rows: torch.Tensor, names: list[str] | None) -> None:
        problem = None
        if rows.ndim != 2 or rows.shape[1] != self.inner_dim:
            problem = f"the width {self.inner_dim}, not rows of shape {list(rows.shape)}"
        elif names is not None and len(names) != len(rows):
            problem = f"{len(rows)} rows there for {len(names)} names"
        elif not torch.isfinite(rows).all():
            problem = "rows there that are NaN or infinite"
        elif self.class_embedder.embedding_table.weight.is_meta:
            problem = "offloaded its class table; load before `enable_sequential_cpu_offload`"
        if problem is not None:
            raise ValueError(
                f"LoRA weight `{start}{NEW_CLASSES_WEIGHT}`: {type(self).__name__} has {problem}; required: a LoRA "
                "trained for this architecture."
            )

    def _append_classes(self, adapter_name: str, rows: torch.Tensor, names: list[str] | None) -> None:
        weight = self.class_embedder.embedding_table.weight.data
        weight = torch.cat([weight[:-1], rows.to(weight), weight[-1:]])  # the null class stays the last
        self._set_class_table(weight, [*self._new_classes, (adapter_name, names or [None] * len(rows))])

    def _remove_classes(self, adapter_names: set[str]) -> None:
        weight = self.class_embedder.embedding_table.weight.data
        kept = [name not in adapter_names for name, names in self._new_classes for _ in names]
        if not all(kept):
            mask = [True] * (len(weight) - 1 - len(kept)) + kept + [True]
            weight = weight[torch.tensor(mask, device=weight.device)]
            self._set_class_table(weight, [entry for entry in self._new_classes if entry[0] not in adapter_names])

    def _new_rows(self, adapter_name: str) -> torch.Tensor | None:
        start = self.config.num_classes - sum(len(names) for _, names in self._new_classes)
        for name, names in self._new_classes:
            if name == adapter_name:
                return self.class_embedder.embedding_table.weight.data[start : start + len(names)].clone()
            start += len(names)
        return None

    def _set_class_table(self, weight: torch.Tensor, new_classes: list[tuple[str | None, list[str | None]]]) -> None:
        self._new_classes = new_classes
        self.class_embedder.lora_new_classes = _make_peft_module(self) if new_classes else None
        num_classes = len(weight) - 1
        if num_classes != self.config.num_classes:
            self.class_embedder.num_classes = num_classes
            self.class_embedder.embedding_table.num_embeddings = num_classes + 1
            self.register_to_config(num_classes=num_classes)
        self.class_embedder.embedding_table.weight.data = weight

    # -- Hub and files: see LightningDiTModelMixin -----------------------------------------------------------------

    _source_code = self_contained(__spec__.loader.get_source(__name__))
    _model_card = """---
library_name: diffusers
tags:
- lightningdit
---

# {title}

```python
import diffusers_lightningdit  # makes its classes known to diffusers

model = diffusers_lightningdit.LightningDiTTransformer2DModel.from_pretrained("{repository}")
```

A LightningDiT transformer ([arXiv 2501.01423](https://arxiv.org/abs/2501.01423)): the velocity of a flow from noise to
latents of a class, as `model(latents, t, class_labels).sample` with t = 0 for noise and 1 for data.
Where this repository also holds Python code, the model loads without the package diffusers-lightningdit, by running it:
`diffusers.AutoModel.from_pretrained("{repository}", trust_remote_code=True)`.
"""


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings of position and class
# ---------------------------------------------------------------------------------------------------------------------


def sincos_position_table(dim: int, height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Compute the fixed sin-cos position table of DiT (arXiv 2212.09748).

    The first D / 2 entries encode the column index, the last D / 2 the row index, each as [sin(pos w_k), cos(pos w_k)]
    with w_k = 10000^(-4k / D).

    Args:
        dim: The width D, a multiple of 4.
        height, width: The size of the grid of tokens.

    Returns:
        [height * width, D], float32.
    """
    columns, rows = torch.meshgrid(
        torch.arange(width, device=device), torch.arange(height, device=device), indexing="xy"
    )
    return get_2d_sincos_pos_embed_from_grid(dim, torch.stack([columns, rows])).float()


class LightningDiTRotaryEmbedding(nn.Module):
    """Two-dimensional rotary position embedding (RoPE, arXiv 2104.09864; 2-D form of EVA-02, arXiv 2303.11331).

    The first half of each head rotates with the row index, the second with the column index (the position table has the
    opposite order). Each frequency g_j = 10000^(-4j / d) is used by two neighbouring entries. This is a module, though
    it has no weights, so that the hooks of context parallelism can reach its output.
    """

    def __init__(self, attention_head_dim: int):
        super().__init__()
        self.attention_head_dim = attention_head_dim
        self._kept: dict[tuple[int, int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(self, height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cos, sin), each [height * width, d], float32; those of the last size are kept.

        They are no buffers, which a change of the model's type would round.
        """
        if torch.compiler.is_compiling():  # what a compiled graph has made must not outlive it
            return self._tables(height, width, device)
        key = height, width, device
        kept = self._kept  # another thread may put other tables in its place
        if key not in kept:
            with torch.inference_mode(False):  # autograd refuses tensors that were made in that mode
                kept = self._kept = {key: self._tables(height, width, device)}
        return kept[key]

    def _tables(self, height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        half = self.attention_head_dim // 2
        rows = torch.arange(height, device=device).repeat_interleave(width, output_size=height * width)  # [N]
        columns = torch.arange(width, device=device).repeat(height)  # [N]
        row_cos, row_sin = get_1d_rotary_pos_embed(half, rows, use_real=True)  # [N, d/2]
        column_cos, column_sin = get_1d_rotary_pos_embed(half, columns, use_real=True)
        return torch.cat([row_cos, column_cos], dim=-1), torch.cat([row_sin, column_sin], dim=-1)


class LightningDiTClassEmbedding(nn.Module):
    """A table of `num_classes + 1` rows, of which the last, index `num_classes`, is the null class of guidance.

    In training mode, each label is replaced by the null class with probability `dropout_prob` (arXiv 2207.12598).
    Unlike in diffusers' `LabelEmbedding`, the null class has a row even if `dropout_prob` is 0, as in the published
    checkpoints.
    """

    def __init__(self, num_classes: int, dim: int, dropout_prob: float):
        super().__init__()
        self.num_classes = num_classes
        self.dropout_prob = dropout_prob
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, class_labels: torch.LongTensor) -> torch.Tensor:
        """The embeddings [B, D] of class ids [B]; in training some become the null class."""
        if self.training and self.dropout_prob > 0:
            uniform = torch.rand(class_labels.shape[0], device=class_labels.device)
            class_labels = self.drop_labels(class_labels, uniform)
        return self.embedding_table(class_labels)  # [B, D]

    def drop_labels(self, class_labels: torch.LongTensor, uniform: torch.Tensor) -> torch.LongTensor:
        """Replace the labels [B] whose u ~ U[0, 1), float32 [B], is below `dropout_prob` by the null class."""
        return torch.where(uniform < self.dropout_prob, self.num_classes, class_labels)


# ---------------------------------------------------------------------------------------------------------------------
# The key of the rows of new classes in the file of a LoRA, [n, D], and that of their names in its metadata, a list
# ---------------------------------------------------------------------------------------------------------------------

NEW_CLASSES_WEIGHT = "class_embedder.lora_new_classes.weight"
NEW_CLASSES_NAMES = "lora_new_classes"


def _make_peft_module(transformer: LightningDiTTransformer2DModel) -> nn.Module:
    """A module without parameters that PEFT asks for the rows of new classes when it makes the weights of a LoRA."""
    # not by a statement: diffusers would ask everybody who runs this file as remote code for PEFT
    peft = importlib.import_module("peft.utils")

    class NewClasses(peft.AuxiliaryTrainingWrapper):
        __getattr__ = nn.Module.__getattr__  # this module wraps none

        def __init__(self):
            nn.Module.__init__(self)
            self._adapters, self._disable_adapters = set(), False  # PEFT switches none of the rows
            self.transformer = [transformer]  # in a list, which does not register it

        def adapter_state_dict(self, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            rows = self.transformer[0]._new_rows(adapter_name)
            return {"weight": rows} if rows is not None else {}

        def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
            return {}  # `load_lora_adapter` loads the rows

        def check_set_adapter(self, adapter_name: str | list[str]) -> None:
            return None  # the rows of all LoRAs are active

        def _get_available_adapters(self) -> set[str]:
            return set()

    return NewClasses()
