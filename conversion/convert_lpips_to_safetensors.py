r"""Convert the published weights of LPIPS on VGG16 to the one file that the perceptual loss reads.

    python conversion/convert_lpips_to_safetensors.py --vgg16 vgg16-397923af.pth --linear vgg.pth \
        --output lpips_vgg16.safetensors

--vgg16 is torchvision's file (https://download.pytorch.org/models/vgg16-397923af.pth), --linear is
lpips/weights/v0.1/vgg.pth in the wheel of the package lpips 0.1.4 (`pip download lpips==0.1.4 --no-deps`, then unzip).
Both are checked by their sha256, and the file that is written names them. Prints its sha256.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from diffusers_lightningdit.files import atomic_write, check_sha256, read_checkpoint, resolve_file
from diffusers_lightningdit.networks.lpips import ORIGIN, PUBLISHED_SHA256, STAGES
from diffusers_lightningdit.original.translation import check_shape, check_values, naming
from diffusers_lightningdit.settings import one_line_errors, parse_config, required, setting


@dataclass(kw_only=True)
class ConversionConfig:
    """Settings of convert_lpips_to_safetensors.py."""

    vgg16: str = required("File of torchvision's vgg16-397923af.pth.")
    linear: str = required("File weights/v0.1/vgg.pth of the package lpips.")
    vgg16_sha256: str = setting(
        PUBLISHED_SHA256["vgg16"], "The SHA-256 of the file `vgg16`, or its first digits, at least 8."
    )
    linear_sha256: str = setting(
        PUBLISHED_SHA256["linear"], "The SHA-256 of the file `linear`, or its first digits, at least 8."
    )

    output: str = required("The new .safetensors file, in an existing folder.", group="Output")


def translate(vgg16: dict, linear: dict, names: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Both state dicts -> that of `LPIPS`; raises ValueError naming the file and the key at fault."""
    weights = {}

    def take(source: dict, name: str, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        with naming(name):
            if not isinstance(source.get(key), torch.Tensor):
                raise ValueError(f"key `{key}` is missing; required: a tensor of shape {list(shape)}.")
            check_shape(key, source[key], torch.Size(shape))
            check_values({key: source[key]})
        return source[key].float().contiguous()

    channels, layer = 3, 0  # torchvision counts convolutions, rectifiers and poolings
    for i, widths in enumerate(STAGES):
        for j, width in enumerate(widths):
            for kind, shape in (("weight", (width, channels, 3, 3)), ("bias", (width,))):
                weights[f"stages.{i}.{j}.{kind}"] = take(vgg16, names[0], f"features.{layer}.{kind}", shape)
            channels, layer = width, layer + 2
        weights[f"linear.{i}"] = take(linear, names[1], f"lin{i}.model.1.weight", (1, channels, 1, 1)).flatten()
        if (weights[f"linear.{i}"] < 0).any():
            raise ValueError(f"{names[1]}: key `lin{i}.model.1.weight` has values below 0; required: none.")
        layer += 1
    return weights


def convert(config: ConversionConfig) -> dict[str, Any]:
    output = Path(config.output)
    if output.exists():
        raise ValueError(f"output {output} exists; required: a new file.")
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise ValueError(f"output is {output}; required: a .safetensors file in an existing folder.")
    origin = {
        "vgg16": check_sha256(resolve_file(config.vgg16), config.vgg16_sha256, "vgg16_sha256"),
        "linear": check_sha256(resolve_file(config.linear), config.linear_sha256, "linear_sha256"),
    }
    weights = translate(read_checkpoint(config.vgg16), read_checkpoint(config.linear), (config.vgg16, config.linear))
    content = save(weights, {ORIGIN: json.dumps(origin)})  # one entry: the order of several varies
    with atomic_write(output) as partial:
        partial.write_bytes(content)
    digits = hashlib.sha256(content).hexdigest()
    print(f"{output}: {len(content):,} bytes, sha256 {digits}")
    return {"output": str(output), "sha256": digits}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    with one_line_errors((ValueError, OSError)):
        return convert(parse_config(ConversionConfig, arguments, __doc__))


if __name__ == "__main__":
    main()
