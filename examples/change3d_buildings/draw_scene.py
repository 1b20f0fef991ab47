# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
r"""Draw a large scene, find its changes in tiles, and measure whether the edges of the tiles are seen in the maps.

    python examples/change3d_buildings/draw_scene.py --pipeline model_cards/change3d-buildings \
        --output_dir outputs/change3d_buildings/scene

The ground is a photograph of the split test, mirrored at its edges; buildings, trees, roads and clouds have the sizes
that they have in the pairs. It writes before.png, after.png, label.png, change.png, probability.png and scene.json.

`seam_ratio` is the mean difference of the probabilities of two neighbouring pixels of which one is in another tile,
divided by that of all other neighbours: 1 is no seam.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from draw_pairs import PHOTOGRAPHS, SCALE, draw_dates, draw_presence, load_photograph, place_buildings, scaled, toned
from PIL import Image, ImageDraw

from diffusers_lightningdit import Change3DPipeline
from diffusers_lightningdit.change3d.metrics import binary_scores, confusion_matrix
from diffusers_lightningdit.files import check_output_dir, new_folder, write_json
from diffusers_lightningdit.pipelines.pipeline_change3d import tile_starts
from diffusers_lightningdit.settings import check_settings, one_line_errors, parse_config, required, setting

CELL = 64  # the side of the squares, in pixels, that buildings and trees are placed in


@dataclass(kw_only=True)
class SceneConfig:
    """Settings of draw_scene.py.

    Raises:
        ValueError: for a value that cannot be used.
    """

    pipeline: str = required("Folder or Hub id of a Change3DPipeline of binary changes.", group="Input")
    photograph: str = setting("flower.jpg", "The photograph of the ground, of the split test of draw_pairs.py.")
    width: int = setting(3000, "The width of the scene in pixels.", minimum=CELL)
    height: int = setting(2000, "The height of the scene in pixels.", minimum=CELL)
    seed: int = setting(0, "The seed of everything that is drawn.", minimum=0)
    tile_overlap: int | None = setting(None, "The pixels by which tiles overlap; null: a quarter of a tile.", minimum=0)
    batch_size: int = setting(16, "Tiles that the model evaluates at a time.", minimum=1)
    output_dir: str = required("Folder of the pictures, new or empty.", group="Output")

    def __post_init__(self):
        check_settings(self)
        if self.photograph not in PHOTOGRAPHS["test"]:
            raise ValueError(
                f"`photograph` is {self.photograph!r}; required: one of {', '.join(PHOTOGRAPHS['test'])}, which no "
                "model is trained on."
            )
        check_output_dir(self.output_dir)


def draw_scene(photograph: Image.Image, width: int, height: int, seed: int) -> dict[str, Image.Image]:
    """Both images [height, width] in RGB and the label of a scene, as `draw_pair` returns them."""
    rng = np.random.default_rng(seed)
    pixels = np.asarray(photograph)
    margins = [(0, max(0, length - n)) for length, n in zip((height, width), pixels.shape, strict=False)]
    pixels = np.pad(pixels, (*margins, (0, 0)), mode="symmetric")[:height, :width]
    ground = toned(Image.fromarray(pixels), rng)
    draw = ImageDraw.Draw(ground)
    for is_upright in rng.random((width + height) // (8 * CELL) + 1) < 0.5:
        ends = rng.uniform(0, 1, (2, 2)) * (width, height)
        ends[:, int(is_upright)] = (0, height if is_upright else width)  # from one side to the other
        grey = int(rng.integers(90, 150))
        draw.line(scaled(ends), (grey, grey, grey - 4), int(rng.uniform(0.04, 0.09) * CELL * SCALE))
    buildings, trees = [], []
    # The squares begin half a square outside of the scene, so that edges of tiles do not run between the buildings.
    for row, column in np.ndindex(math.ceil(height / CELL) + 1, math.ceil(width / CELL) + 1):
        corner = (np.array([column, row]) - 0.5) * CELL
        for corners, roof in place_buildings(CELL, rng):
            if np.min(corners) >= 0 and np.max(corners) <= CELL:  # it could lie on one of the next square
                buildings.append(([tuple(point) for point in corner + np.array(corners)], roof))
        for _ in range(int(rng.integers(4, 20))):
            trees.append((corner + rng.uniform(0, CELL, 2), rng.uniform(0.02, 0.06) * CELL))
    return draw_dates(ground, buildings, draw_presence(len(buildings), 0.5, rng), trees, CELL, rng)


def seam_ratio(probability: np.ndarray, tile: tuple[int, int], overlap: int) -> float:
    """The mean step between neighbours at the edges of tiles of a map [H, W], divided by that elsewhere."""
    at_edges, elsewhere = [], []
    for axis, side in enumerate(tile):
        length = probability.shape[axis]
        starts = tile_starts(length, side, overlap)
        edges = {*starts, *(start + side for start in starts)} - {0, length}
        steps = np.abs(np.diff(probability.astype(np.float64), axis=axis)).mean(1 - axis)  # from pixel i to i + 1
        is_edge = np.isin(np.arange(1, length), list(edges))
        at_edges.append(steps[is_edge])
        elsewhere.append(steps[~is_edge])
    return float(np.concatenate(at_edges).mean() / np.concatenate(elsewhere).mean())


def main(argv: list[str] | None = None) -> None:
    with one_line_errors((ValueError, OSError)):
        config = parse_config(SceneConfig, argv, __doc__)
        pipe = Change3DPipeline.from_pretrained(config.pipeline)
    scene = draw_scene(load_photograph(config.photograph), config.width, config.height, config.seed)
    tile = pipe.model.sample_size
    overlap = min(tile) // 4 if config.tile_overlap is None else config.tile_overlap
    settings = {"tile_overlap": overlap, "batch_size": config.batch_size, "output_type": "pt"}
    output = pipe(scene["image_before"], scene["image_after"], **settings)
    change, probability = output.change[0], output.change_probability[0].numpy()
    label = torch.from_numpy(np.array(scene["label"])) > 0
    scores = binary_scores(confusion_matrix(label, change, 2).numpy())
    record = {"f1": scores["f1"], "seam_ratio": seam_ratio(probability, tile, overlap)}
    with new_folder(config.output_dir) as folder:
        scene["image_before"].save(folder / "before.png")
        scene["image_after"].save(folder / "after.png")
        scene["label"].save(folder / "label.png")
        Image.fromarray(change.numpy() * 255).save(folder / "change.png")
        Image.fromarray((probability * 255).round().astype(np.uint8)).save(folder / "probability.png")
        write_json(folder / "scene.json", record)
    print(f"{config.output_dir}: F1 {record['f1']:.4f}, seam ratio {record['seam_ratio']:.4f}")


if __name__ == "__main__":
    main()
