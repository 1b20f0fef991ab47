"""Draw every class of a checkpoint a few times, as one labelled grid: the picture of the README.

python demo/generate_grid.py [--pipeline FOLDER_OR_HUB_ID] [--output outputs/digits.png]
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from diffusers_lightningdit.grids import draw_labelled_grid

REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=str(REPOSITORY / "model_cards" / "lightningdit-digits"))
    parser.add_argument("--classes", nargs="+", help="names or ids of the classes to draw; all by default")
    parser.add_argument("--num_images_per_class", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=int, default=2, help="enlarges the images by a whole factor")
    parser.add_argument("--output", type=Path, default=Path("outputs/digits.png"))
    arguments = parser.parse_args()

    pipe = DiffusionPipeline.from_pretrained(arguments.pipeline)
    if torch.cuda.is_available():
        pipe.to("cuda")
    if arguments.classes is None:
        classes = list(pipe.id2label) or list(range(pipe.transformer.config.num_classes))
    else:
        classes = pipe.get_label_ids([int(c) if c.isdecimal() else c for c in arguments.classes])

    grid = draw_labelled_grid(
        pipe, classes, arguments.num_images_per_class, arguments.seed, batch_size=16, zoom=arguments.scale
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    grid.save(arguments.output)
    print(arguments.output.resolve())


if __name__ == "__main__":
    main()
