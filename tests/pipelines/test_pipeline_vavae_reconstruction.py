import math

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from diffusers_lightningdit.pipelines import VAVAEReconstructionPipeline
from diffusers_lightningdit.pipelines.pipeline_vavae_reconstruction import psnr


@pytest.fixture
def reconstruct(make_vae):
    return VAVAEReconstructionPipeline(make_vae())


def pixels(*shape) -> torch.Tensor:
    """Values k / 255, as images have them."""
    return torch.randint(0, 256, shape).float() / 255


def test_equals_the_autoencoder_s_own_passes(reconstruct):
    images = pixels(2, 3, 8, 8)
    output = reconstruct(images, output_type="pt")
    with torch.no_grad():
        decoded = reconstruct.vae(2 * images - 1).sample
    torch.testing.assert_close(output.images, (decoded / 2 + 0.5).clamp(0, 1))
    error = (output.images - images).square().flatten(1).mean(1)
    torch.testing.assert_close(output.psnr, 10 * torch.log10(1 / error), rtol=0, atol=1e-3)


def test_psnr_by_hand():
    target = torch.zeros(1, 3, 2, 2)
    assert float(psnr(target + 0.2, target)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(target + 5, target + 0.8)) == pytest.approx(20.0, abs=1e-4)  # clamped to 1
    assert math.isinf(psnr(target, target))


def test_posterior_draws_follow_each_image_s_generator(reconstruct):
    images = pixels(2, 3, 8, 8)

    def draw(images, *seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return reconstruct(images, sample_posterior=True, generator=generators, output_type="pt").images

    both = draw(images, 0, 1)
    torch.testing.assert_close(draw(images[1:], 1), both[1:], rtol=0, atol=1e-5)
    assert not torch.allclose(draw(images[1:], 2), both[1:], atol=1e-3)


def test_kinds_of_images_and_outputs(reconstruct):
    tensor = pixels(3, 8, 12)
    array = tensor.permute(1, 2, 0).numpy()
    image = Image.fromarray((array * 255).round().astype("uint8"))
    expected = reconstruct(tensor, output_type="pt").images
    for given in (array, image, [image], tensor[None]):
        torch.testing.assert_close(reconstruct(given, output_type="pt").images, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        reconstruct([tensor, array, image], output_type="pt").images, expected.repeat(3, 1, 1, 1), rtol=0, atol=1e-5
    )
    assert np.array_equal(reconstruct(tensor, output_type="np").images, expected.permute(0, 2, 3, 1).numpy())
    assert reconstruct(tensor).images[0].size == (12, 8)
    assert reconstruct(image.convert("RGBA"), height=16, width=6).images[0].size == (6, 16)
    images, quality = reconstruct(tensor, return_dict=False)
    assert len(images) == len(quality) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": torch.zeros(3, 7, 8)}, "`height` is 7; required: a positive multiple of 2 pixels"),
        ({"width": 3}, "`width` is 3"),
        ({"height": 0}, "`height` is 0"),
        ({"image": torch.zeros(1, 8, 8)}, r"`image` holds the shape \(1, 8, 8\); required: PIL images"),
        ({"image": "three.png"}, "`image` holds a str; required: PIL images"),
        ({"image": []}, "`image` holds nothing"),
        (
            {"image": torch.full((3, 8, 8), -1.0)},
            "`image` holds values from -1 to -1; required",
        ),
        ({"image": np.full((8, 8, 3), 255, dtype="uint8")}, "`image` holds values from 255 to 255"),
        ({"image": [torch.zeros(3, 8, 8), torch.zeros(3, 6, 8)]}, "`image` has the sizes"),
        ({"output_type": "latent"}, "`output_type` is 'latent'"),
        ({"generator": [torch.Generator()] * 2}, "`generator` is a list of 2; required: 1"),
    ],
)
def test_wrong_arguments(reconstruct, arguments, message):
    reconstruct.vae.encode = None  # nothing may be computed
    with pytest.raises(ValueError, match=message):
        reconstruct(**{"image": torch.zeros(3, 8, 8), **arguments})


def test_from_a_folder_and_from_a_pipeline(pipe, tmp_path, repository, caplog):
    image = pixels(3, 8, 8)
    expected = VAVAEReconstructionPipeline(pipe.vae)(image).psnr
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path, custom_pipeline=str(repository / "pipelines/pipeline_vavae_reconstruction.py"), trust_remote_code=True
    )
    assert set(loaded.components) == {"vae"}
    torch.testing.assert_close(loaded(image).psnr, expected)
    taken = VAVAEReconstructionPipeline.from_pipe(pipe)
    assert taken.vae is pipe.vae
    torch.testing.assert_close(taken(image).psnr, expected)
