"""Convert a folder of diffusers (pipeline, transformer or autoencoder) to files that the original loads.

    python conversion/convert_diffusers_to_lightningdit.py --checkpoint lightningdit-xl-800ep --output_dir original

Writes, as far as they apply: lightningdit.pt ({"ema": ...}), vavae.ckpt ({"state_dict": ...}) or marvae.ckpt
({"model": ...}), latents_stats.pt, and a config.yaml of the architecture and the sampling recipe. Weights that came
from an original checkpoint return bit by bit.
"""

import argparse

from diffusers_lightningdit.files import check_output_dir, new_folder
from diffusers_lightningdit.original.command_line import OneLineParser, run
from diffusers_lightningdit.original.export import original_files, write_original_files


def get_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, metavar="FOLDER", help="as save_pretrained wrote it")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="new or empty")
    return parser


def convert(args: argparse.Namespace) -> None:
    check_output_dir(args.output_dir)
    files, remarks = original_files(args.checkpoint)
    with new_folder(args.output_dir) as folder:
        write_original_files(files, folder)
    print(f"{args.output_dir}: {', '.join(files)}")
    for remark in remarks:
        print(remark)


def main(arguments: list[str] | None = None) -> None:
    run(convert, get_parser(), arguments)


if __name__ == "__main__":
    main()
