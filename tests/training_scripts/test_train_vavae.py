import pytest
import torch
import train_vavae

from diffusers_lightningdit import AutoencoderVAVAE
from diffusers_lightningdit.data.images import ImageDataset
from diffusers_lightningdit.data.latents import encode_moments


def test_every_weight_is_trained(trained_vae, tiny_vae_arguments):
    trained = AutoencoderVAVAE.from_pretrained(trained_vae)
    torch.manual_seed(0)  # as the script
    initial = AutoencoderVAVAE(**tiny_vae_arguments, sample_size=8)
    weights = dict(trained.named_parameters())
    for name, weight in initial.named_parameters():
        # Adam moves a weight by at most about the learning rate, 1e-4, a step
        assert 0 < (weights[name] - weight).abs().max() < 4e-4, name
    assert trained.config.sample_size == 8


def test_statistics_are_those_of_the_data(trained_vae, data):
    vae = AutoencoderVAVAE.from_pretrained(trained_vae).eval()
    pixels = torch.stack([item["pixel_values"] for item in ImageDataset(data, 8)])
    mean, logvar = encode_moments(vae, pixels).chunk(2, dim=1)
    # over samples of the posterior: its own variance adds to that of the means
    std = (mean.var((0, 2, 3)) + logvar.exp().mean((0, 2, 3))).sqrt()
    assert vae.config.latents_mean == pytest.approx(mean.mean((0, 2, 3)).tolist(), abs=0.4)
    assert vae.config.latents_std == pytest.approx(std.tolist(), rel=0.3)


def test_a_run_is_reproducible(trained_vae, data, vae_recipe, tmp_path):
    train_vavae.main(["--config", vae_recipe, f"data={data}", f"output_dir={tmp_path / 'vae'}"])
    again = AutoencoderVAVAE.from_pretrained(tmp_path / "vae").state_dict()
    for name, weight in AutoencoderVAVAE.from_pretrained(trained_vae).state_dict().items():
        assert torch.equal(weight, again[name]), name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("kl_weigth=1", "`kl_weigth` is no key of VAVAETrainingConfig. Did you mean `kl_weight`?"),
        ("vae.latent_channel=4", "`vae.latent_channel` is no key of AutoencoderVAVAE"),
        ("resolution=9", "`resolution` is 9; required: a multiple of the VAE's factor, 2"),
        ("data=/no/such/folder", "`data` is '/no/such/folder'"),
        ("image_column=picture", "`image_column` is 'picture'; required: a column of images"),
        ("global_batch_size=9", "`global_batch_size` is 9; required: at most the 8 samples"),
        ("global_batch_size=0", "`global_batch_size` is 0; required: at least 1"),
        ("max_train_steps=0", "`max_train_steps` is 0; required: at least 1"),
        ("lr_scheduler=cosin", "`lr_scheduler` is 'cosin'; required: one of"),
        ("mixed_precision=half", "`mixed_precision` is 'half'; required: one of no, fp16, bf16, fp8"),
    ],
)
def test_bad_input_is_one_line_and_touches_nothing(data, vae_recipe, tmp_path, capsys, setting, message):
    output_dir = tmp_path / "vae"
    with pytest.raises(SystemExit) as stop:
        train_vavae.main(["--config", vae_recipe, f"data={data}", f"output_dir={output_dir}", setting])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert message in error
    assert not output_dir.exists()


def test_a_result_is_not_overwritten(trained_vae, data, vae_recipe, capsys):
    with pytest.raises(SystemExit):
        train_vavae.main(["--config", vae_recipe, f"data={data}", f"output_dir={trained_vae}"])
    assert "which exists; required: a new or an empty folder" in capsys.readouterr().err
