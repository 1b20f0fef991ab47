"""Convert an original LightningDiT checkpoint to a transformer folder or, with --vae, a whole pipeline folder.

    python conversion/convert_lightningdit_to_diffusers.py --checkpoint lightningdit-xl-imagenet256-800ep.pt \
        --config conversion/configs/lightningdit_xl_800ep.yaml --vae vavae-imagenet256-f16d32-dinov2.pt \
        --latents_stats latents_stats.pt --output_dir lightningdit-xl-800ep

The architecture is read off the checkpoint; the YAML (the original's own format) adds the sampling recipe, the latent
multiplier and, for sizes that were never published, the number of heads. Contradictions between the two are errors.
"""

import argparse

from diffusers_lightningdit.files import check_output_dir, new_folder, read_checkpoint
from diffusers_lightningdit.original import (
    OriginalConfig,
    build_autoencoder,
    build_pipeline,
    embedded_config,
    load_transformer,
    read_autoencoder,
)
from diffusers_lightningdit.original.command_line import OneLineParser, run


def get_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="path, or user/repo:file of the Hub")
    parser.add_argument("--config", metavar="YAML", help="the original's YAML; default: the checkpoint's own, if any")
    parser.add_argument("--weights", choices=["ema", "model"], help="default: ema where the checkpoint has it")
    parser.add_argument("--vae", metavar="FILE_OR_FOLDER", help="an original checkpoint, or a folder of diffusers")
    parser.add_argument("--latents_stats", metavar="FILE", help="the original's latents_stats.pt")
    parser.add_argument("--num_attention_heads", type=int, metavar="N", help="for sizes that were never published")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="new or empty")
    return parser


def convert(args: argparse.Namespace) -> None:
    check_output_dir(args.output_dir)
    if args.latents_stats is not None and args.vae is None:
        raise ValueError("latents_stats is given without vae; required: --vae, whose config keeps the statistics.")
    checkpoint = read_checkpoint(args.checkpoint)
    config = OriginalConfig.read(args.config) if args.config else embedded_config(checkpoint)
    transformer = load_transformer(
        args.checkpoint, args.weights, config=config, num_attention_heads=args.num_attention_heads
    )
    saved, notes = transformer, []
    if args.vae is not None:
        parts = read_autoencoder(args.vae)
        if parts.training or parts.left_out:
            notes.append("left out of the VAE: what only its training needs (see convert_vavae_to_diffusers.py)")
        saved = build_pipeline(transformer, build_autoencoder(parts, args.latents_stats), config)
        if config is None:
            notes.append("no YAML given: the pipeline has no sampling recipe, no time shift")
        notes.append(f"sampling recipe: {saved.config.sampling_recipe}")
        notes.append(f"scheduler shift {saved.scheduler.config.shift:.6g}")
        notes.append(f"VAE scaling_factor {saved.vae.config.scaling_factor:.6g}")
    with new_folder(args.output_dir) as folder:
        saved.save_pretrained(folder)

    shape = transformer.config
    print(
        f"{args.output_dir}: {type(saved).__name__}; transformer: depth {shape.num_layers}, "
        f"width {transformer.inner_dim}, {shape.num_attention_heads} heads, patch {shape.patch_size}, "
        f"{transformer.num_parameters():,} parameters, {str(transformer.dtype).removeprefix('torch.')}"
    )
    for note in notes:
        print(note)


def main(arguments: list[str] | None = None) -> None:
    run(convert, get_parser(), arguments)


if __name__ == "__main__":
    main()
