"""Convert a folder of diffusers (pipeline, transformer or autoencoder) to files that the original loads.

    python conversion/convert_diffusers_to_lightningdit.py --checkpoint lightningdit-xl-800ep --output_dir original

Writes, as far as they apply: lightningdit.pt ({"ema": ...}), vavae.ckpt ({"state_dict": ...}) or marvae.ckpt
({"model": ...}), latents_stats.pt, and a config.yaml of the architecture and the sampling recipe. Weights that came
from an original checkpoint return bit by bit.
"""

from dataclasses import dataclass
from typing import Any

from diffusers_lightningdit.files import check_output_dir, new_folder
from diffusers_lightningdit.original.export import original_files, write_original_files
from diffusers_lightningdit.settings import one_line_errors, parse_config, required


@dataclass(kw_only=True)
class ConversionConfig:
    """Settings of convert_diffusers_to_lightningdit.py."""

    checkpoint: str = required("Folder of a pipeline, transformer or autoencoder, as save_pretrained wrote it.")
    output_dir: str = required("Folder of the original's files, new or empty.", group="Output")


def convert(config: ConversionConfig) -> dict[str, Any]:
    check_output_dir(config.output_dir)
    files, remarks = original_files(config.checkpoint)
    with new_folder(config.output_dir) as folder:
        write_original_files(files, folder)
    print(f"{config.output_dir}: {', '.join(files)}")
    for remark in remarks:
        print(remark)
    return {"output_dir": config.output_dir, "files": list(files), "remarks": remarks}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    with one_line_errors((ValueError, OSError)):
        return convert(parse_config(ConversionConfig, arguments, __doc__))


if __name__ == "__main__":
    main()
