"""A LoRA that brings new classes: their rows come and go with it, and everything else stays as it was."""

import copy

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils import is_peft_version
from peft import LoraConfig, get_peft_model_state_dict

from diffusers_lightningdit import AutoencoderVAVAE, LightningDiTPipeline, LightningDiTTransformer2DModel
from diffusers_lightningdit.pipelines.pipeline_lightningdit_img2img import LightningDiTImg2ImgPipeline

FILE = "pytorch_lora_weights.safetensors"
WIDTH = 16


def make_transformer() -> LightningDiTTransformer2DModel:
    torch.manual_seed(0)
    transformer = LightningDiTTransformer2DModel(
        sample_size=4, in_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=8, num_classes=2
    )
    for parameter in transformer.parameters():  # a new one is zero everywhere
        torch.nn.init.normal_(parameter, std=0.2)
    return transformer.eval()


@pytest.fixture
def pipe() -> LightningDiTPipeline:
    transformer = make_transformer()
    vae = AutoencoderVAVAE(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)
    pipe = LightningDiTPipeline(transformer, vae, FlowMatchEulerDiscreteScheduler(), id2label={0: "cat", 1: "dog"})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> dict[str, tuple[str, torch.Tensor]]:
    """By name: folder of a LoRA, rows of its new classes."""
    made = {}
    for seed, (name, classes) in enumerate({"a": ["ox"], "b": ["bee", "eel"]}.items()):
        transformer = make_transformer()
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        transformer.add_adapter(config)
        rows = torch.randn(len(classes), WIDTH)
        folder = str(tmp_path_factory.mktemp(name))
        LightningDiTPipeline.save_lora_weights(
            folder,
            get_peft_model_state_dict(transformer) | {"class_embedder.lora_new_classes.weight": rows},
            transformer_lora_adapter_metadata=config.to_dict() | {"lora_new_classes": classes},
        )
        made[name] = (folder, rows)
    return made


def load(pipe, loras, name: str, **settings) -> None:
    pipe.load_lora_weights(loras[name][0], weight_name=FILE, adapter_name=name, **settings)


def draw(pipe, label: str | int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(label, num_inference_steps=2, generator=generator, output_type="latent").images


def table(pipe) -> torch.Tensor:
    return pipe.transformer.class_embedder.embedding_table.weight


def test_loading_and_unloading(pipe, loras):
    before, image = table(pipe).clone(), draw(pipe, "dog")
    load(pipe, loras, "a")
    assert pipe.id2label == {0: "cat", 1: "dog", 2: "ox"}
    assert pipe.transformer.config.num_classes == 3
    assert torch.equal(table(pipe), torch.cat([before[:2], loras["a"][1], before[2:]]))  # the null class is the last
    assert not torch.equal(draw(pipe, "ox"), draw(pipe, "dog"))
    pipe.unload_lora_weights()
    assert pipe.id2label == {0: "cat", 1: "dog"}
    assert pipe.transformer.config.num_classes == 2
    assert torch.equal(table(pipe), before)
    torch.testing.assert_close(draw(pipe, "dog"), image)  # rounded differently elsewhere in memory
    with pytest.raises(ValueError, match="unknown name 'ox'"):
        pipe("ox")


def test_the_new_class_is_what_a_model_with_its_row_draws(pipe, loras):
    """Guidance takes the moved null class: the same rows in a model that was made for three classes."""
    load(pipe, loras, "a")
    other = LightningDiTTransformer2DModel.from_config({**pipe.transformer.config, "num_classes": 3})
    weights = make_transformer().state_dict()
    weights["class_embedder.embedding_table.weight"] = table(pipe).detach().clone()
    other.load_state_dict(weights)
    state_dict, metadata = LightningDiTPipeline.lora_state_dict(loras["a"][0], return_lora_metadata=True)
    state_dict.pop("transformer.class_embedder.lora_new_classes.weight")
    metadata.pop("transformer.lora_new_classes")
    other.load_lora_adapter(state_dict, metadata=metadata)
    expected = LightningDiTPipeline(other.eval(), pipe.vae, pipe.scheduler)
    expected.set_progress_bar_config(disable=True)
    torch.testing.assert_close(draw(pipe, "ox"), draw(expected, 2))


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_several(pipe, loras, order):
    alone = {}
    for name, label in (("a", "ox"), ("b", "eel")):
        load(pipe, loras, name)
        alone[name] = draw(pipe, label)
        pipe.unload_lora_weights()
    for name in order:
        load(pipe, loras, name)
    for name, label in (("a", "ox"), ("b", "eel")):
        pipe.set_adapters(name)
        torch.testing.assert_close(draw(pipe, label), alone[name])
    pipe.delete_adapters(order[0])
    name = order[1]
    assert torch.equal(table(pipe)[2:-1], loras[name][1])
    assert list(pipe.id2label.values()) == ["cat", "dog", *({"a": ["ox"], "b": ["bee", "eel"]}[name])]
    torch.testing.assert_close(draw(pipe, {"a": "ox", "b": "eel"}[name]), alone[name])


def test_fused_classes_stay(pipe, loras, tmp_path):
    load(pipe, loras, "a")
    load(pipe, loras, "b")
    pipe.set_adapters("a")
    image = draw(pipe, "ox")
    pipe.fuse_lora(adapter_names=["a"])
    pipe.unload_lora_weights()
    assert pipe.id2label == {0: "cat", 1: "dog", 2: "ox"}
    torch.testing.assert_close(draw(pipe, "ox"), image)
    # from now on an ordinary pipeline of three classes
    pipe.save_pretrained(tmp_path)
    again = LightningDiTPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.id2label == {0: "cat", 1: "dog", 2: "ox"}
    torch.testing.assert_close(draw(again, "ox"), draw(pipe, "ox"))
    load(again, loras, "b")
    assert again.id2label[4] == "eel"
    again.unload_lora_weights()
    assert again.transformer.config.num_classes == 3


def test_hotswap(pipe, loras):
    load(pipe, loras, "b")
    state_dict, metadata = pipe.lora_state_dict(loras["b"][0], return_lora_metadata=True)
    state_dict["transformer.class_embedder.lora_new_classes.weight"] = torch.ones(1, WIDTH)
    metadata["transformer.lora_new_classes"] = ["ant"]
    pipe.transformer.load_lora_adapter(state_dict, metadata=metadata, adapter_name="b", hotswap=True)
    assert pipe.id2label == {0: "cat", 1: "dog", 2: "ant"}
    assert torch.equal(table(pipe)[2], torch.ones(WIDTH))
    del state_dict["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"]
    metadata["transformer.lora_new_classes"] = ["bug"]
    with pytest.raises(ValueError):
        pipe.transformer.load_lora_adapter(state_dict, metadata=metadata, adapter_name="b", hotswap=True)
    assert pipe.id2label == {0: "cat", 1: "dog", 2: "ant"}


def test_pipelines_that_share_the_transformer_know_the_names(pipe, loras):
    other = LightningDiTImg2ImgPipeline.from_pipe(pipe)
    load(pipe, loras, "b")
    assert other.id2label == pipe.id2label
    assert LightningDiTImg2ImgPipeline.from_pipe(pipe).get_label_ids("eel") == [3]


def test_without_names_the_classes_have_ids(pipe, loras):
    state_dict, metadata = pipe.lora_state_dict(loras["b"][0], return_lora_metadata=True)
    metadata.pop("transformer.lora_new_classes")
    pipe.transformer.load_lora_adapter(state_dict, metadata=metadata)
    assert (pipe.id2label, pipe.transformer.config.num_classes) == ({0: "cat", 1: "dog"}, 4)
    assert pipe.get_label_ids(3) == [3]


def test_the_transformer_alone_loads_a_folder(loras):
    transformer = make_transformer()
    transformer.load_lora_adapter(loras["b"][0], weight_name=FILE, use_safetensors=True)
    assert transformer.new_class_names == {2: "bee", 3: "eel"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": torch.zeros(2, 8)}, r"has the width 16, not rows of shape \[2, 8\]; required"),
        ({"rows": torch.zeros(3, WIDTH)}, "has 3 rows there for 2 names; required"),
        ({"to_q": torch.zeros(2, 8)}, "has input width 16 there, not 8"),
    ],
)
def test_what_does_not_fit_changes_nothing(pipe, loras, changes, message):
    before = table(pipe).clone()
    state_dict, metadata = pipe.lora_state_dict(loras["b"][0], return_lora_metadata=True)
    names = {"rows": "class_embedder.lora_new_classes", "to_q": "transformer_blocks.0.attn.to_q.lora_A"}
    state_dict |= {f"transformer.{names[name]}.weight": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        LightningDiTPipeline.load_lora_into_transformer(state_dict, pipe.transformer, metadata=metadata)
    assert torch.equal(table(pipe), before)
    assert pipe.id2label == {0: "cat", 1: "dog"}


def test_a_failure_in_peft_takes_the_rows_back(pipe, loras):
    load(pipe, loras, "a")
    with pytest.raises(ValueError, match="already in use"):
        load(pipe, loras, "a")
    assert pipe.id2label == {0: "cat", 1: "dog", 2: "ox"}


needs_exact_adapter_names = pytest.mark.skipif(
    is_peft_version("<", "0.20"), reason="PEFT saves all adapters if the name of one is part of a key"
)


@needs_exact_adapter_names
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_peft_saves_the_rows(pipe, loras, order, tmp_path):
    """The way of diffusers' LoRA scripts: names are no part of it, and the classes have ids."""
    for name in order:
        load(pipe, loras, name)
    LightningDiTPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(pipe.transformer, adapter_name="b"))
    pipe.set_adapters("b")
    image = draw(pipe, "eel")
    pipe.unload_lora_weights()
    pipe.load_lora_weights(str(tmp_path))
    assert torch.equal(table(pipe)[2:-1], loras["b"][1])
    torch.testing.assert_close(draw(pipe, 3), image)


@needs_exact_adapter_names
@pytest.mark.parametrize("order", ["ab", "ba"])
def test_a_saved_adapter_has_its_rows_and_their_names(pipe, loras, order, tmp_path):
    for name in order:
        load(pipe, loras, name)
    pipe.set_adapters("b")
    image = draw(pipe, "eel")
    pipe.transformer.save_lora_adapter(tmp_path, adapter_name="b")
    with pytest.raises(ValueError, match="`safe_serialization` is False, and the LoRA 'b' has new classes"):
        pipe.transformer.save_lora_adapter(tmp_path, adapter_name="b", safe_serialization=False)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    pipe.unload_lora_weights()
    pipe.transformer.load_lora_adapter(tmp_path, prefix=None)
    assert pipe.id2label == {0: "cat", 1: "dog", 2: "bee", 3: "eel"}
    torch.testing.assert_close(draw(pipe, "eel"), image)


def test_a_copy_of_the_transformer_has_rows_of_its_own(pipe, loras):
    load(pipe, loras, "b")
    copied = copy.deepcopy(pipe.transformer)
    table(pipe).data.zero_()
    rows = get_peft_model_state_dict(copied, adapter_name="b")["class_embedder.lora_new_classes.weight"]
    assert torch.equal(rows, loras["b"][1])
    assert not hasattr(copied.class_embedder.lora_new_classes, "_hf_hook")  # as Accelerate asks


def test_a_pipeline_that_cannot_be_saved_touches_nothing(pipe, loras, tmp_path):
    pipe.save_pretrained(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    load(pipe, loras, "a")
    pipe.vae.post_quant_conv.weight.data.zero_()
    with pytest.raises(ValueError, match="has LoRAs loaded"):
        pipe.save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
