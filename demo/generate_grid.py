"""Draw every class of a checkpoint a few times, as one labelled grid: the picture of the README.

python demo/generate_grid.py --pipeline FOLDER_OR_HUB_ID --output outputs/digits.png
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from diffusers_lightningdit import LightningDiTPipeline
from diffusers_lightningdit.files import read_model
from diffusers_lightningdit.grids import draw_labelled_grid
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, setting

MAX_CLASSES = 20  # that are drawn where none are named: all of ImageNet would take a day
REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(kw_only=True)
class GridConfig:
    """Settings of generate_grid.py.

    Raises:
        ValueError: If a value cannot be used.
    """

    pipeline: str = setting(
        str(REPOSITORY / "model_cards" / "lightningdit-digits"), "Folder or Hub id of a class-conditional pipeline."
    )

    classes: tuple[int | str, ...] | None = setting(
        None,
        f"Names or ids of the classes to draw; null: all, or of more than {MAX_CLASSES} so many, evenly spread.",
        group="Sampling",
    )
    num_images_per_class: int = setting(8, "Images of each class.", minimum=1, below=1000)
    seed: int = setting(0, "The seed of the images.")

    output: str = setting("outputs/digits.png", "The file of the picture.", group="Output")
    scale: int = setting(2, "The whole factor that images are enlarged by.", minimum=1, below=100)

    def __post_init__(self):
        check_settings(self)


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        config = parse_config(GridConfig, argv, __doc__)
        pipe = read_model(
            LightningDiTPipeline, config.pipeline, "pipeline", "folder or Hub id of a LightningDiTPipeline"
        )
        if config.classes is None:
            num_classes = pipe.transformer.config.num_classes
            num_rows = min(num_classes, MAX_CLASSES)
            classes = [row * num_classes // num_rows for row in range(num_rows)]
        else:
            classes = pipe.get_label_ids(list(config.classes))
    if torch.cuda.is_available():
        pipe.to("cuda")
    grid = draw_labelled_grid(pipe, classes, config.num_images_per_class, config.seed, batch_size=16, zoom=config.scale)
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    grid.save(output)
    print(output.resolve())


if __name__ == "__main__":
    main()
