"""Every recorded run of the original's objective, whole: scalars, gradients of all parameters, and a training step."""

import json

import pytest
import torch
from golden.small_set import draw, recorded_part
from safetensors.torch import load_file
from torch import nn

from diffusers_lightningdit.losses import (
    FoundationProjection,
    PatchGANDiscriminator,
    VAELossSettings,
    autoencoder_losses,
    discriminator_losses,
)
from diffusers_lightningdit.original import build_autoencoder, read_autoencoder
from diffusers_lightningdit.original.autoencoder import autoencoder_rows

RUNS = [
    "reverse_margin_adaptive",
    "reverse_nomargin_adaptive",
    "forward_margin_fixed",
    "forward_nomargin_adaptive_perceptual",
    "no_vf_logvar",
    "pp_style",
]
RELATIVE = 1e-4
# In exact arithmetic, a bias before a norm, or of the keys of an attention, has no gradient: what is left is rounding.
# Of the recorded norms, the largest such is 3.5e-7 of the largest norm of its run, the smallest other 1.3e-5 of it.
ROUNDING = 1e-6


def settings_of(run: dict) -> VAELossSettings:
    arguments = dict(run["loss_params"])
    return VAELossSettings(reduction="mean" if arguments.pop("pp_style", False) else "sum", **arguments)


def redrawn_discriminator(recipe: dict) -> PatchGANDiscriminator:
    """The recorded runs' discriminator, with its weights drawn again."""
    model = PatchGANDiscriminator(num_layers=recipe["n_layers"])
    parameters = {name.replace("layers.", "main.", 1): value for name, value in model.named_parameters()}
    for name, value in draw({name: value.shape for name, value in parameters.items()}, recipe["seed"], recipe["std"]):
        parameters[name].data = value
        assert value.flatten()[0].item() == pytest.approx(recipe["checksums"][name]["first"][0], abs=1e-6)
    return model.train()


class Training(nn.Module):
    """The original's training module: the networks of one run, and its two losses."""

    def __init__(self, golden, run: dict):
        super().__init__()
        self.vae = build_autoencoder(read_autoencoder(golden("vae/vavae/vavae.ckpt"))).train()
        self.discriminator = redrawn_discriminator(
            json.loads(golden("vae_train/discriminator_recipe.json").read_text())
        )
        self.logvar = nn.Parameter(torch.tensor(run["logvar"]))
        self.projection = None
        if run["use_vf"]:
            kind = "reverse" if run["reverse_proj"] else "forward"
            self.projection = FoundationProjection(32, 1024, reverse=run["reverse_proj"])
            weights = load_file(golden("vae_train/linear_proj.safetensors"))
            self.projection.load_state_dict(
                {f"proj.{key.partition('.')[2]}": value for key, value in weights.items() if key.startswith(kind)}
            )
        self.settings = settings_of(run)
        self.inputs = load_file(golden("vae_train/inputs.safetensors"))
        self.forward_pass = load_file(golden("vae_train/forward.safetensors"))

    def autoencoder_step(self, step: int):
        pixels = self.inputs["inputs"]
        posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * self.inputs["noise"]
        self.reconstructions = self.vae.decode(latents).sample
        arguments = {}
        if self.projection is not None:
            names = ("features", "latents_for_vf")
            arguments = dict(zip(names, self.projection(self.inputs["aux_raw"], latents), strict=True))
        if self.settings.perceptual_weight > 0:  # what stood in for LPIPS
            arguments["perceptual"] = (pixels - self.reconstructions).square().mean((1, 2, 3), keepdim=True)
        return autoencoder_losses(
            self.settings,
            pixels,
            self.reconstructions,
            posterior.mean,
            posterior.logvar,
            step=step,
            last_decoder_weight=self.vae.decoder.conv_out.weight,
            last_encoder_weight=self.vae.encoder.conv_out.weight,
            logits_fake=self.discriminator(self.reconstructions),
            logvar_scalar=self.logvar,
            **arguments,
        )

    def discriminator_step(self, step: int):
        logits_real = self.discriminator(self.inputs["inputs"])
        logits_fake = self.discriminator(self.reconstructions.detach())
        return discriminator_losses(self.settings, logits_real, logits_fake, step=step)

    def by_original_name(self) -> dict[str, tuple[torch.Tensor, ...]]:
        """{name in the original: our parameters}; the attentions' are convolutions there."""
        parameters = dict(self.vae.named_parameters())
        names = {row.original: tuple(parameters[key] for key in row.ours) for row in autoencoder_rows(self.vae)}
        if self.projection is not None:
            for name, value in self.projection.named_parameters():
                names[name.replace("proj", "linear_proj", 1)] = (value,)
        for name, value in self.discriminator.named_parameters():
            names[name.replace("layers", "loss.discriminator.main", 1)] = (value,)
        return names | {"loss.logvar": (self.logvar,)}


@pytest.fixture(scope="module")
def runs(golden):
    return json.loads(golden("vae_train/runs.json").read_text())


def assert_scalars(found: dict, recorded: dict) -> None:
    for name, value in found.items():
        assert value.item() == pytest.approx(recorded[name], rel=RELATIVE, abs=1e-6), name


@pytest.mark.parametrize("name", RUNS)
def test_run(golden, runs, name):
    run = runs[name]
    training = Training(golden, run)
    recorded = load_file(golden(f"vae_train/{name}.safetensors"))
    norms = run["grad_norms_ae_loss"]

    total, scalars = training.autoencoder_step(run["global_step"])
    torch.testing.assert_close(training.reconstructions, training.forward_pass["reconstructions"], atol=1e-4, rtol=0)
    total.backward()
    ours = training.by_original_name()
    smallest = ROUNDING * max(norms.values())
    for key, norm in norms.items():
        gradient = torch.cat([parameter.grad.flatten() for parameter in ours[key]])
        assert gradient.norm().item() == pytest.approx(norm, rel=RELATIVE, abs=smallest), key
    for key, gradient in recorded.items():
        if key.startswith("grad."):
            found = recorded_part(ours[key.removeprefix("grad.")][0].grad, gradient)
            torch.testing.assert_close(found, gradient, atol=RELATIVE * gradient.abs().max().item(), rtol=0)

    training.discriminator.zero_grad()
    loss, of_discriminator = training.discriminator_step(run["global_step"])
    loss.backward()
    for key, norm in run["grad_norms_disc_loss"].items():
        found = ours[f"loss.discriminator.{key}"][0].grad.norm().item()
        assert found == pytest.approx(norm, rel=RELATIVE), key
    for key, value in training.discriminator.named_buffers():
        torch.testing.assert_close(value, recorded[f"disc_buffer.{key.replace('layers', 'main', 1)}"])

    found = scalars | of_discriminator
    returned = {"loss_returned": total, "d_loss_returned": loss}
    assert found.keys() | returned.keys() == run["scalars"].keys()
    assert_scalars(found | returned, run["scalars"])


def test_without_gradients_both_adaptive_weights_are_zero(golden, runs):
    run = runs["reverse_margin_adaptive"]
    training = Training(golden, run)
    training.eval()  # the batch norms as they began
    with torch.no_grad():
        _, scalars = training.autoencoder_step(run["global_step"])
    recorded = {name.removeprefix("val/"): value for name, value in run["eval_no_grad_scalars"].items()}
    assert recorded.keys() <= scalars.keys()
    assert_scalars({name: scalars[name] for name in recorded}, recorded)


def test_training_step(golden, runs):
    recorded = runs["training_step_of_reverse_margin_adaptive"]
    tensors = load_file(golden("vae_train/training_step.safetensors"))
    run = runs["reverse_margin_adaptive"]
    training = Training(golden, run)
    generator = [*training.vae.parameters(), *training.projection.parameters()]
    assert sum(parameter.numel() for parameter in generator) == recorded["params_in_ae_optimizer"]
    arguments = {"lr": recorded["lr"], "betas": recorded["betas"]}
    before = {key: [value.detach().clone() for value in values] for key, values in training.by_original_name().items()}

    optimizer = torch.optim.Adam(generator, **arguments)
    total, scalars = training.autoencoder_step(run["global_step"])
    total.backward()
    gradients = {
        key: [torch.zeros_like(value) if value.grad is None else value.grad.clone() for value in values]
        for key, values in training.by_original_name().items()
    }
    optimizer.step()
    training.discriminator.zero_grad()
    optimizer = torch.optim.Adam(training.discriminator.parameters(), **arguments)
    loss, of_discriminator = training.discriminator_step(run["global_step"] + 1)
    loss.backward()
    optimizer.step()

    logs = {name.removeprefix("train/"): value for name, value in recorded["logs"].items()}
    found = scalars | of_discriminator | {"aeloss": total, "discloss": loss}
    assert_scalars({name: found[name] for name in logs}, logs)
    after = training.by_original_name()
    for key, value in tensors.items():
        # the first step of Adam moves by the sign of the gradient, noise where that is next to nothing
        gradient = gradients[key][0].abs()
        real = recorded_part(gradient, value) > 1e-4 * gradient.max()
        if key.startswith("loss.discriminator"):
            real = torch.ones_like(value, dtype=torch.bool)
        assert real.float().mean() > 0.9 or key == "loss.logvar"
        difference = (recorded_part(after[key][0], value) - value).abs()[real]
        assert difference.numel() == 0 or difference.max() < 2e-6, key
        assert key == "loss.logvar" or not torch.equal(after[key][0], before[key][0])
    for key, norm in recorded["param_l2_after"].items():
        # Adam's first step is the sign of a gradient, smoothed near 0: there its rounding shows (1.4e-3 with torch 2.6)
        assert torch.cat([value.flatten() for value in after[key]]).norm().item() == pytest.approx(norm, rel=3e-3), key
