r"""Convert an original LightningDiT checkpoint to a transformer folder or, with --vae, a whole pipeline folder.

    python conversion/convert_lightningdit_to_diffusers.py --checkpoint lightningdit-xl-imagenet256-800ep.pt \
        --config conversion/configs/lightningdit_xl_800ep.yaml --vae vavae-imagenet256-f16d32-dinov2.pt \
        --latents_stats latents_stats.pt --output_dir lightningdit-xl-800ep

The architecture is read off the checkpoint; the YAML (the original's own format) adds the sampling recipe, the latent
multiplier and, for sizes that were never published, the number of heads. Contradictions between the two are errors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_lightningdit.files import check_output_dir, new_folder
from diffusers_lightningdit.hub.cards import pipeline_card
from diffusers_lightningdit.hub.repository import write_conversion_card
from diffusers_lightningdit.original import (
    build_autoencoder,
    build_pipeline,
    read_autoencoder,
)
from diffusers_lightningdit.original.checkpoint_settings import OriginalCheckpointSettings
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting


@dataclass(kw_only=True)
class ConversionConfig(OriginalCheckpointSettings):
    """Settings of convert_lightningdit_to_diffusers.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    checkpoint: str = required("File of the transformer's weights: a path, or user/repo:file of the Hub.")
    vae: str | None = setting(
        None, "An original checkpoint of the autoencoder, or a folder of diffusers; null: no pipeline is made."
    )

    output_dir: str = required("Folder of the transformer or pipeline, new or empty.", group="Output")

    def __post_init__(self):
        check_settings(self)
        if self.latents_stats is not None and self.vae is None:
            raise ValueError(
                "`latents_stats` is given without `vae`; required: --vae, whose config keeps the statistics."
            )


def convert(config: ConversionConfig) -> dict[str, Any]:
    check_output_dir(config.output_dir)
    transformer, original, _ = config.load_transformer()
    saved, notes = transformer, []
    if config.vae is not None:
        parts = read_autoencoder(config.vae)
        if parts.training or parts.left_out:
            notes.append("left out of the VAE: what only its training needs (see convert_vavae_to_diffusers.py)")
        saved = build_pipeline(transformer, build_autoencoder(parts, config.latents_stats), original)
        if original is None:
            notes.append("no YAML given: the pipeline has no sampling recipe, no time shift")
        notes.append(f"sampling recipe: {saved.config.sampling_recipe}")
        notes.append(f"scheduler shift {saved.scheduler.config.shift:.6g}")
        notes.append(f"VAE scaling_factor {saved.vae.config.scaling_factor:.6g}")
    with new_folder(config.output_dir) as folder:
        saved.save_pretrained(folder)
        if config.vae is not None:
            files = {"checkpoint": config.checkpoint, "vae": config.vae, "latents_stats": config.latents_stats}
            write_conversion_card(folder, pipeline_card(saved, f"user/{Path(config.output_dir).name}"), files.values())

    shape = transformer.config
    print(
        f"{config.output_dir}: {type(saved).__name__}; transformer: depth {shape.num_layers}, "
        f"width {transformer.inner_dim}, {shape.num_attention_heads} heads, patch {shape.patch_size}, "
        f"{transformer.num_parameters():,} parameters, {str(transformer.dtype).removeprefix('torch.')}"
    )
    for note in notes:
        print(note)
    return {"output_dir": config.output_dir, "class": type(saved).__name__, "remarks": notes}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    with one_line_errors((ValueError, OSError)):
        return convert(parse_config(ConversionConfig, arguments, __doc__))


if __name__ == "__main__":
    main()
