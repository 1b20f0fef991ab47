"""Repositories that are damaged, ask for what this version doesn't have, or hold code that nobody asked to be run.

Each is loaded as a folder, here, and from the Hub, in one process with the package.
"""

import json
import re
from pathlib import Path

import pytest
from diffusers import AutoModel, DiffusionPipeline
from safetensors.torch import load, save

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel

INDEX, CONFIG = "model_index.json", "transformer/config.json"
WEIGHTS = "transformer/diffusion_pytorch_model"
SECOND_SHARD = f"{WEIGHTS}-00002-of-00002.safetensors"
MARKER_CODE = b"from pathlib import Path\n\nPath('code-was-run').touch()\n"

# name: (what the user sees, on a folder and on the Hub)
BAD = {
    "unknown-switch": "ValueError: config.json of LightningDiTTransformer2DModel has the unknown key 'use_registers'",
    "unknown-value": "ValueError: `norm_type` is 'batch_norm'; required: 'rms_norm' or 'layer_norm'.",
    "unknown-switch-of-vae": "ValueError: config.json of AutoencoderVAVAE has the unknown key 'use_wavelets'",
    "missing-class": "AttributeError: module 'diffusers_lightningdit' has no attribute 'LightningDiT3DModel'",
    "missing-pipeline-class": "AttributeError: module diffusers has no attribute LightningDiT3DPipeline",
    "missing-shard": f"(FileNotFound|OS)Error: .* does not appear to have a file named .*{Path(SECOND_SHARD).name}",
    "damaged-shard": f"OSError: .*{Path(SECOND_SHARD).name}",
    "missing-weight": "OSError: The weights in .* lack 1 tensors of AutoencoderVAVAE, first `decoder.conv_out.bias`",
    "missing-weight-of-shard": "OSError: The weights in .*transformer lack 1 tensors of .*, first `proj_out.bias`",
    "damaged-config": "OSError: It looks like the config file at '.*config.json' is not a valid JSON file.",
    "no-weights": "OSError: Error no file named .* found in directory .*transformer",
}


@pytest.fixture(scope="module")
def good(workplace, tiny_pipeline) -> dict[str, bytes]:
    """A complete repository, its transformer in two shards."""
    folder = workplace / "good"
    tiny_pipeline.save_pretrained(folder, max_shard_size="50KB")
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert SECOND_SHARD in files
    return files


def without(weights: dict, name: str) -> dict:
    assert name in weights
    return {other: weight for other, weight in weights.items() if other != name}


def changed(data: bytes, **changes) -> bytes:
    return json.dumps(json.loads(data) | changes).encode()


@pytest.fixture(scope="module")
def bad(good, tiny_pipeline) -> dict[str, dict[str, bytes]]:
    whole, vae = without(tiny_pipeline.vae.state_dict(), "decoder.conv_out.bias"), "vae/diffusion_pytorch_model"
    shard = without(load(good[SECOND_SHARD]), "proj_out.bias")
    missing_class = ["diffusers_lightningdit", "LightningDiT3DModel"]
    return {
        "unknown-switch": good | {CONFIG: changed(good[CONFIG], use_registers=True)},
        "unknown-value": good | {CONFIG: changed(good[CONFIG], norm_type="batch_norm")},
        "unknown-switch-of-vae": good | {"vae/config.json": changed(good["vae/config.json"], use_wavelets=True)},
        "missing-class": good | {INDEX: changed(good[INDEX], transformer=missing_class)},
        "missing-pipeline-class": good | {INDEX: changed(good[INDEX], _class_name="LightningDiT3DPipeline")},
        "missing-shard": {name: data for name, data in good.items() if name != SECOND_SHARD},
        "damaged-shard": good | {SECOND_SHARD: good[SECOND_SHARD][:-1000]},
        "missing-weight": {name: data for name, data in good.items() if not name.startswith(vae)}
        | {f"{vae}.safetensors": save(whole, metadata={"format": "pt"})},
        "missing-weight-of-shard": good | {SECOND_SHARD: save(shard, metadata={"format": "pt"})},
        "damaged-config": good | {CONFIG: good[CONFIG][:-20]},
        "no-weights": {name: data for name, data in good.items() if not name.startswith(WEIGHTS)},
    }


@pytest.fixture(scope="module")
def with_code(good) -> dict[str, dict[str, bytes]]:
    """Repositories whose Python files leave a mark when they are run."""
    marked = good | {name: MARKER_CODE for name in good if name.endswith(".py")}
    model = {name.partition("/")[2]: data for name, data in good.items() if name.startswith("vae/")}
    own_module = ["their_module", "LightningDiTTransformer2DModel"]
    return {
        "code": marked,
        "code-by-class-name": marked | {INDEX: changed(good[INDEX], _class_name=["pipeline", "LightningDiTPipeline"])},
        "code-of-a-part": marked
        | {INDEX: changed(good[INDEX], transformer=own_module), "transformer/their_module.py": MARKER_CODE},
        "code-of-a-model": model
        | {
            "their_module.py": MARKER_CODE,
            "config.json": changed(model["config.json"], auto_map={"AutoModel": "their_module.AutoencoderVAVAE"}),
        },
    }


LOAD = """
import diffusers_lightningdit
from diffusers import AutoModel, DiffusionPipeline
from diffusers_lightningdit import AutoencoderVAVAE
"""
IS_MARKED = """
from pathlib import Path
result = Path("code-was-run").exists()
"""


@pytest.fixture(scope="module")
def outcomes(hub, bad, with_code, run_blocks) -> dict[str, dict]:
    for name, files in (bad | with_code).items():
        hub.put(f"someone/{name}", files)
    blocks = {name: f'{LOAD}\nDiffusionPipeline.from_pretrained("someone/{name}")' for name in BAD}
    blocks["unknown-repository"] = f'{LOAD}\nDiffusionPipeline.from_pretrained("someone/nothing")'
    blocks["unknown-model"] = f'{LOAD}\nAutoencoderVAVAE.from_pretrained("someone/nothing")'
    blocks["code"] = f'{LOAD}\nresult = origin(DiffusionPipeline.from_pretrained("someone/code"))'
    blocks["code, custom_pipeline"] = (
        f'{LOAD}\nDiffusionPipeline.from_pretrained("someone/code", custom_pipeline="someone/code")'
    )
    blocks["code-by-class-name"] = f'{LOAD}\nDiffusionPipeline.from_pretrained("someone/code-by-class-name")'
    blocks["code-of-a-part"] = f'{LOAD}\nDiffusionPipeline.from_pretrained("someone/code-of-a-part")'
    blocks["code-of-a-model"] = f'{LOAD}\nAutoModel.from_pretrained("someone/code-of-a-model")'
    blocks["code-of-a-model, by its class"] = (
        f'{LOAD}\nresult = origin(AutoencoderVAVAE.from_pretrained("someone/code-of-a-model"))'
    )
    blocks["is marked"] = IS_MARKED
    blocks["with trust"] = (
        f'{LOAD}\nDiffusionPipeline.from_pretrained("someone/code", custom_pipeline="someone/code", '
        "trust_remote_code=True)"
    )
    blocks["is marked with trust"] = IS_MARKED
    return run_blocks(hub.url, blocks, with_package=True)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# -- damaged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BAD)
def test_bad_repository_on_the_hub(name, outcomes):
    error = outcomes[name]["error"]
    assert re.match(BAD[name], error, flags=re.DOTALL), error


@pytest.mark.parametrize("name", BAD)
def test_bad_folder(name, bad, tmp_path):
    with pytest.raises(Exception) as raised:
        DiffusionPipeline.from_pretrained(write(tmp_path, bad[name]))
    error = f"{raised.type.__name__}: {raised.value}"
    assert re.match(BAD[name], error, flags=re.DOTALL), error


@pytest.mark.parametrize("name", ["unknown-repository", "unknown-model"])
def test_unknown_repository_is_named(name, outcomes):
    assert "someone/nothing" in outcomes[name]["error"]


def test_keys_that_are_no_switches_are_allowed(good, tmp_path):
    config = changed(good[CONFIG], auto_map={"AutoModel": "file.Class"}, _name_or_path="x", _some_note=1)
    pipe = DiffusionPipeline.from_pretrained(write(tmp_path, good | {CONFIG: config}))
    assert isinstance(pipe.transformer, LightningDiTTransformer2DModel)


def test_unknown_keys_of_a_plain_autoencoder_are_left_to_diffusers(autoencoder_kl, tmp_path):
    autoencoder_kl.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_bytes(changed(config.read_bytes(), of_a_newer_diffusers=None))
    assert isinstance(AutoencoderVAVAE.from_pretrained(tmp_path), AutoencoderVAVAE)


# -- trust ------------------------------------------------------------------------------------------------------------


def test_the_package_is_used_and_no_code_of_the_repository_is_run(outcomes):
    assert outcomes["code"] == {"result": "diffusers_lightningdit"}
    assert outcomes["code-of-a-model, by its class"] == {"result": "diffusers_lightningdit"}
    assert outcomes["is marked"] == {"result": False}


@pytest.mark.parametrize("name", ["code, custom_pipeline", "code-by-class-name", "code-of-a-part", "code-of-a-model"])
def test_where_code_is_needed_trust_is_asked_for(name, outcomes):
    error = outcomes[name]["error"]
    assert error.startswith("ValueError: "), error
    assert "`trust_remote_code=True`" in error
    assert outcomes["is marked"] == {"result": False}


def test_the_mark_would_have_been_seen(outcomes):
    assert outcomes["is marked with trust"] == {"result": True}


@pytest.mark.parametrize("name", ["code-by-class-name", "code-of-a-part", "code-of-a-model"])
def test_code_in_a_folder_is_not_run_either(name, with_code, tmp_path, monkeypatch):
    folder = write(tmp_path / "repository", with_code[name])
    monkeypatch.chdir(tmp_path)
    load = AutoModel if name == "code-of-a-model" else DiffusionPipeline
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load.from_pretrained(folder)
    assert not (tmp_path / "code-was-run").exists()
