"""The wrapper against the recorded one of the original, and against each model of `transformers` called by hand."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from diffusers_lightningdit.networks.foundation_model import FoundationModel

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
# model and config class, further arguments, tokens before those of the patches
MODELS = {
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config, {}, 1),
    "dinov2_with_registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig,
        {"num_register_tokens": 4},
        5,
    ),
    "dinov3": (transformers.DINOv3ViTModel, transformers.DINOv3ViTConfig, {"num_register_tokens": 4}, 5),
    "vit": (transformers.ViTModel, transformers.ViTConfig, {}, 1),
    "siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig, {}, 0),
}


class MeanColours(nn.Module):
    """The stand-in of the recording: a token is the mean colour of a patch; one more token comes first."""

    def __init__(self, patch_size):
        super().__init__()
        self.config = SimpleNamespace(patch_size=patch_size, hidden_size=3)

    def forward(self, pixel_values):
        self.pixel_values = pixel_values
        tokens = F.avg_pool2d(pixel_values, self.config.patch_size).flatten(2).transpose(1, 2)
        return SimpleNamespace(last_hidden_state=torch.cat([torch.full_like(tokens[:, :1], 7.0), tokens], 1))


def save(folder, model_class, config_class, **arguments) -> str:
    torch.manual_seed(1)
    model_class(config_class(**{**TINY, **arguments})).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("dinov2"), transformers.Dinov2Model, transformers.Dinov2Config)


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32) * 2 - 1


@pytest.mark.parametrize(("name", "patch_size"), [("dinov2", 14), ("mae", 16)])
def test_features_of_the_recorded_stand_ins(golden, name, patch_size):
    recorded = load_file(golden("vae_train/foundation_wrapper.safetensors"))
    seed = int(recorded["x_seed"])
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(image[0, :, 0, :8], recorded["x_first_row"])
    stand_in = MeanColours(patch_size)
    features = FoundationModel(stand_in)(image, grid_size=16)
    torch.testing.assert_close(features, recorded[f"{name}_stub_feature"], atol=1e-5, rtol=0)
    if name == "dinov2":
        resized = stand_in.pixel_values[0, :, :2]
        torch.testing.assert_close(resized, recorded["resized_first_rows"], atol=1e-5, rtol=0)
    else:
        torch.testing.assert_close(stand_in.pixel_values, image)


@pytest.mark.parametrize("name", MODELS)
def test_patch_tokens_row_by_row(name, tmp_path, pixels):
    model_class, config_class, arguments, num_others = MODELS[name]
    folder = save(tmp_path, model_class, config_class, **arguments)
    foundation_model = FoundationModel.from_pretrained(folder)
    with torch.no_grad():
        tokens = model_class.from_pretrained(folder).eval()(pixels).last_hidden_state[:, num_others:]
    features = foundation_model(pixels)
    assert features.shape == (2, foundation_model.num_channels, 4, 4)
    for row, column in ((0, 0), (0, 3), (2, 1)):
        torch.testing.assert_close(features[:, :, row, column], tokens[:, 4 * row + column])
    assert foundation_model(pixels, grid_size=(6, 3)).shape == (2, 16, 6, 3)


def test_mae_sees_every_patch_in_its_place(tmp_path, pixels):
    folder = save(tmp_path, transformers.ViTMAEModel, transformers.ViTMAEConfig, mask_ratio=0.75)
    whole = transformers.ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()
    with torch.no_grad():
        output = whole(pixels)  # all tokens, shuffled
    order = output.ids_restore[..., None].expand(-1, -1, 16)
    tokens = output.last_hidden_state[:, 1:].gather(1, order)
    features = FoundationModel.from_pretrained(folder)(pixels)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens)


SMALL_DECODER = {"decoder_num_hidden_layers": 1, "decoder_hidden_size": 16, "decoder_num_attention_heads": 2}


@pytest.mark.parametrize(
    ("whole_class", "config"),
    [
        (transformers.ViTForImageClassification, transformers.ViTConfig(**TINY)),
        (transformers.ViTMAEForPreTraining, transformers.ViTMAEConfig(**TINY, **SMALL_DECODER)),
    ],
    ids=["classifier", "pretraining"],
)
def test_the_encoder_of_a_larger_model(whole_class, config, tmp_path, pixels):
    """A classifier has no pooler, which patch tokens do not depend on; in pretraining there is a decoder, too."""
    whole = whole_class(config)
    whole.save_pretrained(tmp_path)
    features = FoundationModel.from_pretrained(str(tmp_path))(pixels)
    torch.testing.assert_close(features, FoundationModel(whole.vit)(pixels))


@pytest.mark.parametrize(
    ("config_class", "model_class", "num_others"),
    [(transformers.SiglipConfig, transformers.SiglipModel, 0), (transformers.CLIPConfig, transformers.CLIPModel, 1)],
)
def test_the_half_of_images_of_a_model_of_images_and_text(
    config_class, model_class, num_others, tmp_path, pixels, capsys
):
    text = {**TINY, "vocab_size": 9, "max_position_embeddings": 4}
    model = model_class(config_class(vision_config=TINY, text_config=text)).eval()
    model.save_pretrained(tmp_path)
    features = FoundationModel.from_pretrained(str(tmp_path))(pixels)
    tokens = model.vision_model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), tokens[:, num_others:])
    assert "UNEXPECTED" not in capsys.readouterr().err


def test_class_tokens(dinov2, tmp_path, pixels):
    model = FoundationModel.from_pretrained(dinov2)
    expected = model.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    torch.testing.assert_close(model.class_tokens(pixels), expected)
    without = FoundationModel.from_pretrained(save(tmp_path, *MODELS["siglip"][:2]))
    with pytest.raises(ValueError, match="the foundation model has no class token; required: one that has"):
        without.class_tokens(pixels)


def test_the_image_is_resized_and_not_the_features(dinov2, pixels):
    foundation_model = FoundationModel.from_pretrained(dinov2)
    larger = F.interpolate(pixels, (48, 24), mode="bilinear")
    torch.testing.assert_close(foundation_model(pixels, grid_size=(6, 3)), foundation_model(larger))
    assert torch.equal(foundation_model(pixels, grid_size=4), foundation_model(pixels))


def test_frozen_and_in_evaluation_mode(dinov2, pixels):
    holder = nn.ModuleDict({"foundation_model": FoundationModel.from_pretrained(dinov2)}).train()
    foundation_model = holder["foundation_model"]
    assert not any(module.training for module in foundation_model.modules())
    assert not any(parameter.requires_grad for parameter in foundation_model.parameters())
    assert not foundation_model(pixels.requires_grad_()).requires_grad
    assert foundation_model(pixels.bfloat16()).dtype == torch.bfloat16


def test_the_models_own_normalization(dinov2, pixels, tmp_path):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    folder = tmp_path / "model"
    save(folder, transformers.Dinov2Model, transformers.Dinov2Config)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    normalized = ((pixels + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    features = FoundationModel.from_pretrained(str(folder), image_normalization="model")(pixels)
    torch.testing.assert_close(features, FoundationModel.from_pretrained(str(folder))(normalized), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input
# ---------------------------------------------------------------------------------------------------------------------


def refusal(name_or_path, **arguments) -> str:
    with pytest.raises(ValueError) as error:
        FoundationModel.from_pretrained(str(name_or_path), **arguments)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_no_model(tmp_path):
    assert "required: a folder or Hub id" in refusal(tmp_path / "absent")
    assert "required: a folder or Hub id" in refusal(tmp_path)
    assert "required: a folder or Hub id" in refusal("nobody/nothing")


def test_a_model_of_text(tmp_path):
    config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    transformers.BertModel(config).save_pretrained(tmp_path)
    assert "which takes 'input_ids'; required: a model of images" in refusal(tmp_path)


def test_a_model_without_patches(tmp_path):
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    transformers.ResNetModel(config).save_pretrained(tmp_path)
    message = refusal(tmp_path, argument="features")
    assert message.startswith("`features` is ") and "'resnet'; required: a vision transformer" in message


def test_a_model_of_sound(tmp_path):
    config = transformers.ASTConfig(**{**TINY, "image_size": None}, num_mel_bins=32, max_length=32)
    transformers.ASTModel(config).save_pretrained(tmp_path)
    assert "which takes 'input_values'; required: a model of images" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("model_class", "config"),
    [
        (
            transformers.SwinModel,
            transformers.SwinConfig(
                image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4
            ),
        ),
        (transformers.YolosModel, transformers.YolosConfig(**{**TINY, "image_size": [32, 32]})),
    ],
    ids=["halved grid", "detection tokens"],
)
def test_tokens_that_form_no_grid(model_class, config, tmp_path):
    model_class(config).save_pretrained(tmp_path)
    assert "required: [B, tokens, channels], a token for each patch" in refusal(tmp_path)


def test_weights_that_are_no_safetensors(dinov2, tmp_path):
    model = transformers.Dinov2Model.from_pretrained(dinov2)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "required: weights as safetensors" in refusal(tmp_path)


def test_weights_that_are_cut_off(tmp_path):
    file = Path(save(tmp_path, transformers.Dinov2Model, transformers.Dinov2Config)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "required: weights as safetensors" in refusal(tmp_path)


def test_weights_that_are_missing(dinov2, tmp_path):
    model = transformers.Dinov2Model.from_pretrained(dinov2)
    model.config.save_pretrained(tmp_path)
    weights = {key: value for key, value in model.state_dict().items() if key != "layernorm.weight"}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "without layernorm.weight (1 missing in all); required: all weights" in refusal(tmp_path)


def test_an_image_that_is_no_multiple_of_the_patch(dinov2):
    with pytest.raises(
        ValueError, match="the images are 32x36; required: multiples of the foundation model's patch, 8x8"
    ):
        FoundationModel.from_pretrained(dinov2)(torch.zeros(1, 3, 32, 36))


def test_normalization_that_is_not_there(dinov2):
    assert "`image_normalization` is 'imagenet'" in refusal(dinov2, image_normalization="imagenet")
    assert "a preprocessor_config.json with `image_mean`" in refusal(dinov2, image_normalization="model")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[" * 5000),
        ("config.json", "[]"),
        ("config.json", {"patch_size": [8, "a"]}),
        ("config.json", {"patch_size": 0}),
        ("config.json", {"image_size": 10**9}),
        ("config.json", {"num_hidden_layers": "one"}),
        ("config.json", {"hidden_act": "none such"}),
        ("config.json", {"model_type": 3}),
        ("preprocessor_config.json", "[" * 5000),
        ("preprocessor_config.json", '{"image_mean": [0.5, "a", 0], "image_std": [1, 1, 1]}'),
        ("preprocessor_config.json", '{"image_mean": [0.5, 0.5, 0.5], "image_std": [1, 0, 1]}'),
        ("model.safetensors", "no weights"),
    ],
)
def test_damaged_files_are_one_line(vision_transformer, tmp_path, file, content):
    folder = tmp_path / "model"
    shutil.copytree(vision_transformer, folder)
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / file).read_text()) | content)
    (folder / file).write_text(content)
    normalization = "model" if file.startswith("preprocessor") else "minus_one_to_one"
    with pytest.raises(ValueError, match=r"`foundation_model` is '.*model'.*required") as error:
        FoundationModel.from_pretrained(str(folder), normalization)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite(vision_transformer, tmp_path):
    model = transformers.AutoModel.from_pretrained(vision_transformer)
    model.layernorm.bias.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="NaN or infinity"):
        FoundationModel.from_pretrained(str(tmp_path))
