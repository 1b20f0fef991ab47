"""What a model saves is what is loaded afterwards, and a LoRA is loaded whole or not at all."""

import re
from pathlib import Path

import diffusers
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTTransformer2DModel

TRANSFORMER = {"sample_size": 4, "in_channels": 4, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
VAE = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
FILE = "diffusion_pytorch_model.safetensors"
A, B = (f"transformer_blocks.0.attn.to_q.lora_{matrix}.weight" for matrix in "AB")


def make(cls: type, seed: int = 0):
    torch.manual_seed(seed)
    return cls(**(TRANSFORMER if cls is LightningDiTTransformer2DModel else VAE)).eval()


@pytest.fixture(params=[LightningDiTTransformer2DModel, AutoencoderVAVAE], ids=lambda cls: cls.__name__)
def model(request):
    return make(request.param)


def same(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------------------------------------------------------------
# Saving
# ---------------------------------------------------------------------------------------------------------------------

WAYS = {"whole": {}, "shards": {"max_shard_size": "4KB"}, "pickle": {"safe_serialization": False}}


@pytest.mark.parametrize("first", WAYS)
@pytest.mark.parametrize("second", WAYS)
def test_the_last_weights_are_the_only_ones(model, tmp_path, first, second):
    make(type(model), seed=1).save_pretrained(tmp_path / "both", **WAYS[first])
    model.save_pretrained(tmp_path / "both", **WAYS[second])
    model.save_pretrained(tmp_path / "alone", **WAYS[second])
    assert same(type(model).from_pretrained(tmp_path / "both"), model)
    assert files(tmp_path / "both").keys() == files(tmp_path / "alone").keys()


def test_pickled_shards_are_refused(model, tmp_path):
    """diffusers writes, but does not read them."""
    model.save_pretrained(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="`max_shard_size` is '4KB', less than the model"):
        model.save_pretrained(tmp_path, max_shard_size="4KB", safe_serialization=False)
    assert files(tmp_path) == before


def test_variants_and_other_files_stay(model, tmp_path):
    other = make(type(model), seed=1)
    other.save_pretrained(tmp_path, variant="fp16", max_shard_size="4KB")
    (tmp_path / "notes.txt").write_text("mine")
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert same(type(model).from_pretrained(tmp_path), model)
    assert same(type(model).from_pretrained(tmp_path, variant="fp16"), other)


def test_files_have_the_permissions_of_new_files(model, tmp_path):
    (tmp_path / "new").touch()
    model.save_pretrained(tmp_path)
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_what_cannot_be_written_leaves_the_old_model(model, tmp_path, monkeypatch):
    other = make(type(model), seed=1)
    other.save_pretrained(tmp_path)
    before = files(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_with_a_lora_is_not_saved(model, tmp_path, fused):
    model.save_pretrained(tmp_path)
    before = files(tmp_path)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), adapter_name="style")
    if fused:
        model.fuse_lora()
    with pytest.raises(ValueError, match=r"has LoRAs loaded \('style'\), .*; required: unload them before saving"):
        model.save_pretrained(tmp_path)
    assert files(tmp_path) == before
    model.unload_lora()
    model.save_pretrained(tmp_path)
    assert same(type(model).from_pretrained(tmp_path), model)
    assert (files(tmp_path)[FILE] != before[FILE]) == fused


def test_a_model_whose_lora_was_deleted_is_saved(model, tmp_path):
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="style")
    model.delete_adapters("style")
    model.save_pretrained(tmp_path)
    assert same(type(model).from_pretrained(tmp_path), make(type(model)))


def test_a_file_is_no_folder(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`save_directory` is .*file', a file; required: a folder"):
        model.save_pretrained(tmp_path / "file")


# ---------------------------------------------------------------------------------------------------------------------
# LoRAs
# ---------------------------------------------------------------------------------------------------------------------


def lora() -> dict[str, torch.Tensor]:
    model = make(LightningDiTTransformer2DModel)
    torch.manual_seed(5)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    return get_peft_model_state_dict(model)


def kohya(state_dict: dict) -> dict:
    return {f"lora_transformer_blocks_0_attn_to_q.{name}.weight": value for name, value in
            zip(("lora_down", "lora_up"), (state_dict[A], state_dict[B]), strict=True)}  # fmt: skip


BAD = {
    "nothing": (lambda w: {}, "The LoRA has no weights of LightningDiT"),
    "another component's": (lambda w: {f"vae.{A}": w[A], f"vae.{B}": w[B]}, "has no module `vae.transformer_blocks"),
    "kohya's names": (kohya, "has no module `lora_transformer_blocks_0_attn_to_q`"),
    "no lora_A": (lambda w: {key: value for key, value in w.items() if key != A}, "one of its matrices .* is missing"),
    "no lora_B": (lambda w: {key: value for key, value in w.items() if key != B}, "one of its matrices .* is missing"),
    "infinite": (lambda w: w | {B: torch.full_like(w[B], torch.inf)}, "has values that are NaN or infinite"),
    "NaN": (lambda w: w | {A: w[A] * torch.nan}, "has values that are NaN or infinite"),
    "two ranks": (lambda w: w | {A: torch.zeros(3, 16)}, "the ranks 3 and 2, which differ"),
    "a vector": (lambda w: w | {A: torch.zeros(16)}, r"has input width 16 there, not a tensor of shape \[16\]"),
    "too wide": (lambda w: w | {B: torch.zeros(17, 2)}, "has output width 16 there, not 17"),
    "alpha": (lambda w: w | {A.replace("lora_A.weight", "alpha"): torch.tensor(4.0)}, "diffusers does not use it"),
    "unknown": (lambda w: w | {"lora_foo": torch.zeros(1)}, "has no module `lora_foo`"),
    "half of LoKr": (lambda w: {"transformer_blocks.0.attn.to_q.lokr_w1": torch.eye(4)}, "one of its factors"),
}


@pytest.mark.parametrize("beside_another", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_lora_is_one_line_and_changes_nothing(tmp_path, name, beside_another):
    change, message = BAD[name]
    model = make(LightningDiTTransformer2DModel)
    if beside_another:
        model.load_lora_adapter(lora(), prefix=None, adapter_name="good")
    modules, weights = list(map(id, model.modules())), {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        model.load_lora_adapter(change(lora()), prefix=None)
    assert "\n" not in str(error.value) and "required: " in str(error.value)
    assert list(map(id, model.modules())) == modules
    assert model.state_dict().keys() == weights.keys()
    assert hasattr(model, "peft_config") == beside_another


def test_a_lora_of_another_component_alone():
    model = make(LightningDiTTransformer2DModel)
    with pytest.raises(ValueError, match="The LoRA has no weights of LightningDiTTransformer2DModel; required: keys"):
        model.load_lora_adapter({f"vae.{key}": value for key, value in lora().items()})
    both = {f"transformer.{key}": value for key, value in lora().items()}
    model.load_lora_adapter(both | {f"vae.{A}": torch.zeros(2, 3)})
    assert same_lora(model, lora())


def test_a_failure_in_peft_leaves_no_wrappers(tmp_path):
    model = make(LightningDiTTransformer2DModel)
    keys = set(model.state_dict())
    metadata = LoraConfig(r=4, target_modules=["to_q", "to_v"]).to_dict()  # the matrices have rank 2
    with pytest.raises(ValueError, match=r"The LoRA 'default_0' cannot be loaded by PEFT: .*size mismatch") as error:
        model.load_lora_adapter(lora(), prefix=None, metadata=metadata)
    assert "\n" not in str(error.value)
    assert set(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    assert same(LightningDiTTransformer2DModel.from_pretrained(tmp_path), make(LightningDiTTransformer2DModel))
    model.load_lora_adapter(lora(), prefix=None)
    assert same_lora(model, lora())


def same_lora(model, weights: dict) -> bool:
    found = get_peft_model_state_dict(model, adapter_name="default_0")
    return found.keys() == weights.keys() and all(torch.equal(found[key], value) for key, value in weights.items())


def test_older_names_and_files(tmp_path):
    """Two names of the same matrices, from a file."""
    weights, model = lora(), make(LightningDiTTransformer2DModel)
    for old, new in (("lora_A", "lora.down"), ("lora_B", "lora.up")):
        weights = {key.replace(old, new): value.contiguous() for key, value in weights.items()}
    save_file({f"transformer.{key}": value for key, value in weights.items()}, tmp_path / "lora.safetensors")
    model.load_lora_adapter(tmp_path, weight_name="lora.safetensors", use_safetensors=True)
    assert same_lora(model, lora())


@pytest.mark.skipif(Version(diffusers.__version__) < Version("0.42"), reason="diffusers 0.41 reads no LoKr")
def test_lokr(tmp_path):
    from peft import LoKrConfig

    model = make(LightningDiTTransformer2DModel)
    model.add_adapter(LoKrConfig(r=2, target_modules=["to_q"], init_weights=False))
    weights = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    model.unload_lora()
    model.load_lora_adapter(weights, prefix=None)
    found = get_peft_model_state_dict(model, adapter_name="default_0")
    assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_the_autoencoders_lora(tmp_path):
    """Of convolutions, too."""
    model = make(AutoencoderVAVAE)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "conv_in"], init_lora_weights=False))
    model.save_lora_adapter(tmp_path)
    (file,) = tmp_path.iterdir()
    weights = load_file(file)
    other = make(AutoencoderVAVAE)
    del weights["encoder.conv_in.lora_B.weight"]
    with pytest.raises(ValueError, match=re.escape("LoRA weight `encoder.conv_in`: one of its matrices")):
        other.load_lora_adapter(weights, prefix=None)
    assert same(other, make(AutoencoderVAVAE))
    other.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    assert same(other, model) or other.state_dict().keys() != model.state_dict().keys()
