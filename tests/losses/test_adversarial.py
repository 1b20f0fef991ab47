import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffusers_lightningdit.losses import PatchGANDiscriminator, discriminator_loss, generator_loss


def test_losses_by_their_definition():
    real, fake = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * ((3 + 0.5 + 0) / 3 + (0 + 1 + 2) / 3))
    cross_entropy = F.binary_cross_entropy_with_logits
    expected = 0.5 * (cross_entropy(real, torch.ones(3)) + cross_entropy(fake, torch.zeros(3)))
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), expected)
    assert generator_loss(fake).item() == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="`kind` is 'wgan'; required: one of hinge, vanilla"):
        discriminator_loss(real, fake, "wgan")


def test_published_architecture(golden):
    """Names and shapes of the original's, and 70x70 pixels for each patch."""
    structure = json.loads(golden("structure/vae.json").read_text())
    recorded = structure["training_module_f16d32_vfdinov2_reverse_proj_true"]["state_dict"]
    prefix = "loss.discriminator.main."
    expected = {key.removeprefix(prefix): shape for key, (shape, *_) in recorded.items() if key.startswith(prefix)}
    model = PatchGANDiscriminator().eval()
    assert {key.removeprefix("layers."): list(value.shape) for key, value in model.state_dict().items()} == expected

    pixels = torch.zeros(1, 3, 128, 128, requires_grad=True)
    logits = model(pixels)
    assert logits.shape == (1, 1, 14, 14)
    logits[0, 0, 7, 7].backward()
    rows = pixels.grad.abs().sum((0, 1, 3)).nonzero()
    assert rows.max() - rows.min() + 1 == 70


def test_initial_weights():
    torch.manual_seed(0)
    model = PatchGANDiscriminator()
    for layer in model.layers:
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d)) and layer.weight.numel() > 100:
            mean = 1.0 if isinstance(layer, nn.BatchNorm2d) else 0.0
            assert layer.weight.mean().item() == pytest.approx(mean, abs=5 * 0.02 / layer.weight.numel() ** 0.5)
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize(("num_layers", "smallest"), [(1, 6), (2, 12), (3, 24)])
def test_smallest_image(num_layers, smallest):
    model = PatchGANDiscriminator(base_channels=2, num_layers=num_layers).eval()
    assert model(torch.zeros(1, 3, smallest, smallest + 9)).shape[2] == 1
    with pytest.raises(ValueError, match=f"`pixels` is {smallest - 1} x 64; required: at least {smallest} each way"):
        model(torch.zeros(1, 3, smallest - 1, 64))
