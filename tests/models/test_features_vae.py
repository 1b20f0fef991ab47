"""The features that diffusers offers for its own autoencoders work on AutoencoderVAVAE, tested by their effect."""

import pytest
import torch
import torch._dynamo
import yaml
from diffusers import AutoencoderKL
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.original import autoencoder_to_original

TINY = {"block_out_channels": (32, 32, 32), "layers_per_block": 1, "latent_channels": 4, "sample_size": 16}


def tiny(**changes) -> AutoencoderVAVAE:
    torch.manual_seed(0)
    return AutoencoderVAVAE(**TINY | changes).eval()


def images(batch_size: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(batch_size, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def record_shapes(module: torch.nn.Module) -> list[tuple]:
    """The shape of each input from now on."""
    shapes = []
    module.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_slicing():
    """One image at a time, in both directions; the same numbers."""
    model = tiny()
    latents = model.encode(images(3)).latent_dist.mode()
    decoded = model.decode(latents).sample
    encoder, decoder = record_shapes(model.encoder), record_shapes(model.decoder)
    model.enable_slicing()
    close(model.encode(images(3)).latent_dist.mode(), latents)
    close(model.decode(latents).sample, decoded)
    assert encoder == [(1, 3, 16, 16)] * 3
    assert decoder == [(1, 4, 4, 4)] * 3
    model.disable_slicing()
    model.decode(latents)
    assert decoder[3:] == [(3, 4, 4, 4)]


@torch.no_grad()
def test_tiling():
    """The network never sees more than the trained size; what lies inside the first tile is untouched by blending."""
    model = tiny()
    latents = torch.randn(1, 4, 8, 8)
    whole = model.decode(latents).sample
    first_tile = model.decode(latents[..., :4, :4]).sample
    encoder, decoder = record_shapes(model.encoder), record_shapes(model.decoder)
    model.enable_tiling()
    decoded = model.decode(latents).sample
    assert decoded.shape == whole.shape == (1, 3, 32, 32)
    assert len(decoder) > 4 and all(max(shape[2:]) <= 4 for shape in decoder)
    close(decoded[..., :12, :12], first_tile[..., :12, :12])
    assert not torch.allclose(decoded, whole, atol=1e-3)
    encoded = model.encode(images(1, 32)).latent_dist.mode()
    assert encoded.shape == (1, 4, 8, 8)
    assert len(encoder) > 4 and all(max(shape[2:]) <= 16 for shape in encoder)
    model.disable_tiling()
    close(model.decode(latents).sample, whole)


def test_gradient_checkpointing():
    def train_step(model) -> int:
        num_saved = 0

        def pack(tensor):
            nonlocal num_saved
            num_saved += tensor.numel() * (not tensor.is_leaf)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(images()).sample.pow(2).mean()
        loss.backward()
        return num_saved

    plain, checkpointed = tiny().train(), tiny().train()
    checkpointed.enable_gradient_checkpointing()
    assert train_step(checkpointed) < train_step(plain) / 2
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        close(other.grad, parameter.grad, 1e-6)
        assert torch.isfinite(parameter.grad).all(), name


@torch.no_grad()
def test_layerwise_casting():
    model = tiny()
    expected = model(images()).sample
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    output = model(images()).sample
    assert model.decoder.conv_in.weight.dtype == torch.float8_e4m3fn
    assert model.decoder.conv_norm_out.weight.dtype == torch.float32
    assert 0 < (output - expected).pow(2).mean().sqrt() < 0.5 * expected.std()


@torch.no_grad()
def test_group_offload(tmp_path):
    """On the CPU the groups can only go to files; each call reads them, so a changed file changes the output."""
    model = tiny()
    expected = model(images()).sample
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    for _ in range(2):
        close(model(images()).sample, expected, 0)
    for file in tmp_path.glob("*.safetensors"):
        save_file({key: torch.zeros_like(value) for key, value in load_file(file).items()}, file)
    assert not torch.allclose(model(images()).sample, expected, atol=1e-3)


@torch.no_grad()
def test_device_map(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "model")
    size = sum(parameter.nbytes for parameter in model.parameters())
    spread = AutoencoderVAVAE.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory={"cpu": int(0.6 * size)}, offload_folder=tmp_path / "disk"
    )
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    close(spread(images()).sample, model(images()).sample, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Speed and adapters
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_compilation_of_the_whole_model():
    torch._dynamo.reset()
    model, graphs = tiny(), []
    compiled = torch.compile(model, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph.forward)
    for _ in range(2):
        close(compiled(images()).sample, model(images()).sample)
    assert len(graphs) == 1
    torch._dynamo.reset()


@torch.no_grad()
def test_channels_last(tmp_path):
    """The memory of the weights alone changes: neither the numbers, beyond rounding, nor the files."""
    model, other = tiny(), tiny().to(memory_format=torch.channels_last)
    assert other.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    latents = model.encode(images()).latent_dist.mode()
    close(other.encode(images()).latent_dist.mode(), latents)
    close(other.decode(latents).sample, model.decode(latents).sample)
    files = []
    for name, vae in (("first", model), ("second", other)):
        vae.save_pretrained(tmp_path / name)
        files.append((tmp_path / name / "diffusion_pytorch_model.safetensors").read_bytes())
    assert files[0] == files[1]


@torch.no_grad()
def test_fused_qkv():
    model = tiny()
    expected, keys = model(images()).sample, set(model.state_dict())
    model.fuse_qkv_projections()
    attention = model.decoder.mid_block.attentions[0]
    fused, single = record_shapes(attention.to_qkv), record_shapes(attention.to_q)
    close(model(images()).sample, expected)
    assert len(fused) == 1 and not single
    model.unfuse_qkv_projections()
    assert set(model.state_dict()) >= keys
    close(model(images()).sample, expected)


@torch.no_grad()
def test_lora(tmp_path):
    """Adapters of the attention and of convolutions."""
    model = tiny()
    plain = model(images()).sample
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "conv_in"], init_lora_weights=False))
    adapted = model(images()).sample
    assert not torch.allclose(adapted, plain, atol=1e-3)
    model.save_lora_adapter(tmp_path)
    model.unload_lora()
    close(model(images()).sample, plain)
    model.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    close(model(images()).sample, adapted)


# ---------------------------------------------------------------------------------------------------------------------
# Single files of the original
# ---------------------------------------------------------------------------------------------------------------------


def same_weights(model: AutoencoderVAVAE, expected: AutoencoderVAVAE) -> None:
    assert type(model) is AutoencoderVAVAE
    assert model.state_dict().keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.fixture
def original() -> dict[str, torch.Tensor]:
    """A state dict as the original implementation saves it."""
    model = tiny()
    return autoencoder_to_original(dict(model.config), model.state_dict())


def test_from_single_file(original, tmp_path):
    """Every layout, without a word about the architecture; what else training saves is left out."""
    training = {"loss.logvar": torch.zeros(()), "foundation_model.model.cls_token": torch.zeros(1)}
    torch.save({"state_dict": original | training, "epoch": 3}, tmp_path / "vavae.ckpt")
    torch.save({"model": original}, tmp_path / "marvae.ckpt")
    save_file(original, tmp_path / "flat.safetensors")
    for name in ("vavae.ckpt", "marvae.ckpt", "flat.safetensors"):
        model = AutoencoderVAVAE.from_single_file(str(tmp_path / name))
        same_weights(model, tiny())
        with torch.no_grad():
            close(model(images()).sample, tiny()(images()).sample, 0)
    statistics = {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4, "scaling_factor": 0.25}
    model = AutoencoderVAVAE.from_single_file(str(tmp_path / "vavae.ckpt"), dtype=torch.float16, **statistics)
    assert model.dtype == torch.float16
    assert {key: model.config[key] for key in statistics} == statistics


def test_from_single_file_with_a_config(original, tmp_path):
    save_file(original, tmp_path / "vae.safetensors")
    tiny(latents_mean=[0.5] * 4, latents_std=[2.0] * 4).save_config(tmp_path / "vae")
    model = AutoencoderVAVAE.from_single_file(str(tmp_path / "vae.safetensors"), config=str(tmp_path), subfolder="vae")
    same_weights(model, tiny())
    assert model.config.latents_mean == [0.5] * 4


def test_from_single_file_with_the_original_yaml(original, tmp_path):
    """It adds the size of the images; a contradiction is an error."""
    torch.save({"state_dict": original}, tmp_path / "vavae.ckpt")
    dimensions = {"z_channels": 4, "ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "resolution": 64}
    for z_channels in (4, 8):
        values = {"model": {"params": {"embed_dim": 4, "ddconfig": dimensions | {"z_channels": z_channels}}}}
        (tmp_path / "vavae.yaml").write_text(yaml.safe_dump(values))
        settings = {"original_config": str(tmp_path / "vavae.yaml")}
        if z_channels == 4:
            model = AutoencoderVAVAE.from_single_file(str(tmp_path / "vavae.ckpt"), **settings)
            assert model.config.sample_size == 64
        else:
            with pytest.raises(ValueError, match=r"`model.params.ddconfig.z_channels` is 8"):
                AutoencoderVAVAE.from_single_file(str(tmp_path / "vavae.ckpt"), **settings)


def test_from_single_file_refuses_what_does_not_fit(original, tmp_path):
    with pytest.raises(ValueError, match="is a LightningDiT transformer"):
        AutoencoderVAVAE.from_single_file({"x_embedder.proj.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"key `decoder.norm_out.bias` is missing"):
        AutoencoderVAVAE.from_single_file({k: v for k, v in original.items() if k != "decoder.norm_out.bias"})
    tiny(latent_channels=8).save_config(tmp_path)
    with pytest.raises(ValueError, match=r"has shape .* in the file; required: .*, by the `config`"):
        AutoencoderVAVAE.from_single_file(original, config=str(tmp_path))


def test_diffusers_own_autoencoder_keeps_its_own_mapping():
    """AutoencoderKL, our base class, still reads Stable Diffusion's files by diffusers' function."""
    from diffusers.loaders import single_file_model

    mapping = single_file_model._get_single_file_loadable_mapping_class
    assert mapping(AutoencoderVAVAE) == "AutoencoderVAVAE"
    assert mapping(AutoencoderKL) == "AutoencoderKL"
