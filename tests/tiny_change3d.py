"""Tiny data of all four tasks of Change3D, in every layout that is read."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
NUM_CLASSES = {"semantic": 3, "damage": 5}
SENTENCES = ("a road appears", "the scene is the same as before")
FOLDERS = {
    "binary": {"label": "label"},
    "semantic": {"label1": "before", "label2": "after", "change": "change"},
    "damage": {"label1": "building", "label2": "damage"},
}


def draw_pair(task: str, number: int) -> dict[str, np.ndarray]:
    """Two noisy images of which one has a square that the other has not, and the label maps by their names."""
    rng = np.random.default_rng(number)
    before = rng.integers(60, 120, (SIZE, SIZE, 3), dtype=np.uint8)
    after = before + rng.integers(0, 10, before.shape, dtype=np.uint8)
    x, y = rng.integers(2, SIZE - 14, 2)
    square = np.zeros((SIZE, SIZE), np.uint8)
    square[y : y + 12, x : x + 12] = 1
    after[square > 0] = (220, 210, 60)
    class_after = 1 + number % 2 if task == "semantic" else 1 + number % 4
    return {
        "image_before": before,
        "image_after": after,
        "label": square * 255,
        "before": square * (3 - class_after if task == "semantic" else 0),
        "after": square * class_after,
        "change": square,
        "building": square,
        "damage": square * class_after,
    }


def write_folders(folder: Path, task: str, number: int = 6, splits=("train", "val")) -> str:
    """`<split>/t1`, `t2` and the folders of labels; the splits have other pairs."""
    for place, split in enumerate(splits):
        for index in range(number):
            pair, name = draw_pair(task, 100 * place + index), f"pair_{index}.png"
            if task == "damage":
                name = f"area_{index}_post_disaster.png"
            maps = {"t1": pair["image_before"], "t2": pair["image_after"]}
            maps |= {inner: pair[column] for inner, column in FOLDERS[task].items()}
            for inner, pixels in maps.items():
                path = folder / split / inner / name
                if task == "damage" and inner.startswith("label"):
                    path = path.with_name(name.replace("disaster", "disaster_target"))
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return str(folder)


def caption_of(number: int) -> str:
    return SENTENCES[number % 2]


def write_raw_captions(folder: Path, number: int = 6, splits=("train", "val"), per_image: int = 5) -> str:
    """The JSON file and the folders of images of LEVIR-CC."""
    entries = []
    for place, split in enumerate(splits):
        for index in range(number):
            pair, name = draw_pair("binary", 100 * place + index), f"{split}_{index}.png"
            if index % 2:
                pair["image_after"] = pair["image_before"]
            for inner, column in (("A", "image_before"), ("B", "image_after")):
                path = folder / "images" / split / inner / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pair[column]).save(path)
            sentences = [{"tokens": caption_of(index).split(), "raw": caption_of(index)} for _ in range(per_image)]
            entries.append({"filepath": split, "filename": name, "split": split, "sentences": sentences})
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": entries}))
    return str(path)


def write_caption_files(folder: Path, vocabulary: dict[str, int], number: int = 4) -> str:
    """RSICCformer's HDF5 and JSON files of the splits TRAIN, VAL and TEST."""
    import h5py

    name = "TINY_CC_5_cap_per_img_5_min_word_freq"
    folder.mkdir(parents=True, exist_ok=True)
    for place, split in enumerate(("TRAIN", "VAL", "TEST")):
        images, captions, lengths = [], [], []
        for index in range(number):
            pair = draw_pair("binary", 100 * place + index)
            images.append([pair["image_before"].transpose(2, 0, 1), pair["image_after"].transpose(2, 0, 1)])
            ids = [vocabulary[word] for word in ("<start>", *caption_of(index).split(), "<end>")]
            captions += [ids + [0] * (52 - len(ids))] * 5
            lengths += [len(ids)] * 5
        with h5py.File(folder / f"{split}_IMAGES_{name}.hdf5", "w") as file:
            file.create_dataset("images", data=np.array(images))
            file.attrs["captions_per_image"] = 5
        (folder / f"{split}_CAPTIONS_{name}.json").write_text(json.dumps(captions))
        (folder / f"{split}_CAPLENS_{name}.json").write_text(json.dumps(lengths))
    (folder / f"WORDMAP_{name}.json").write_text(json.dumps(vocabulary))
    return str(folder)


def write_columns(folder: Path, task: str, number: int = 6) -> str:
    """A parquet file for each split, with the columns image_before, image_after and labels or captions."""
    import datasets

    columns = {
        "binary": {"label": "label"},
        "semantic": {"label_before": "before", "label_after": "after", "label_change": "change"},
        "damage": {"label_building": "building", "label_damage": "damage"},
        "captioning": {},
    }[task]
    columns = {"image_before": "image_before", "image_after": "image_after", **columns}
    folder.mkdir(parents=True, exist_ok=True)
    for place, split in enumerate(("train", "validation")):
        pairs = [draw_pair(task, 100 * place + index) for index in range(number)]
        rows = {name: [Image.fromarray(pair[key]) for pair in pairs] for name, key in columns.items()}
        features = {name: datasets.Image() for name in columns}
        if task == "captioning":
            rows["captions"] = [[caption_of(index)] * 3 for index in range(number)]
            features["captions"] = datasets.List(datasets.Value("string"))
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


TINY_MODEL = {"width_factor": 0.5, "depth_factor": 0.5, "sample_size": SIZE}


def tiny_model(task: str, **settings):
    """A model of the task, of random weights."""
    import torch

    from diffusers_lightningdit import Change3DModel

    if task == "captioning":
        settings = {"num_caption_layers": 1, "num_attention_heads": 2, "vocab_size": 13, **settings}
    torch.manual_seed(0)
    model = Change3DModel(task, **{**TINY_MODEL, "num_classes": NUM_CLASSES.get(task), **settings})
    with torch.no_grad():  # blocks that begin as their shortcuts would not mix the frames
        for name, parameter in model.named_parameters():
            if name.endswith("narrow.norm.weight"):
                parameter.fill_(0.5)
    return model.eval()
