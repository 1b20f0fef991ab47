import contextlib
import math

import pytest
import torch
from diffusers import ConfigMixin, DiffusionPipeline, FirstBlockCacheConfig, ModelMixin
from diffusers.configuration_utils import register_to_config

from diffusers_lightningdit.pipelines import LightningDiTLikelihoodPipeline
from diffusers_lightningdit.pipelines.pipeline_lightningdit_likelihood import exact_divergence, hutchinson_divergence

# ---------------------------------------------------------------------------------------------------------------------
# Closed form
# ---------------------------------------------------------------------------------------------------------------------


class GaussianFlow(ModelMixin, ConfigMixin):
    """The exact velocity for data ~ N(mean of the class, covariance): what a perfect network would have learnt.

    x_t = t x_1 + (1 - t) x_0 has the covariance C_t = t^2 C + (1 - t)^2 I, and
    v(x, t) = E[x_1 - x_0 | x_t = x] = mean + (t C - (1 - t) I) C_t^-1 (x - t mean).
    """

    is_cache_enabled = False

    @register_to_config
    def __init__(self, sample_size: int = 2, patch_size: int = 1, in_channels: int = 2, num_classes: int = 3):
        super().__init__()
        num_dims = in_channels * sample_size**2
        factor = torch.randn(num_dims, num_dims) / math.sqrt(num_dims)
        self.covariance = torch.nn.Parameter(factor @ factor.T + 0.1 * torch.eye(num_dims))
        self.means = torch.nn.Parameter(torch.randn(num_classes + 1, num_dims))

    def cache_context(self, name):
        return contextlib.nullcontext()

    def distribution(self, class_id: int) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(self.means[class_id], self.covariance)

    def forward(self, hidden_states, timestep, class_labels, attention_kwargs=None, return_dict=True):
        t, mean = timestep[0], self.means[class_labels]  # [B, D]
        identity = torch.eye(len(self.covariance))
        gain = (t * self.covariance - (1 - t) * identity) @ torch.linalg.inv(
            t**2 * self.covariance + (1 - t) ** 2 * identity
        )
        velocity = mean + (hidden_states.flatten(1) - t * mean) @ gain.T
        return (velocity.reshape(hidden_states.shape),)


@pytest.fixture
def gaussian(make_vae):
    vae = make_vae(latent_channels=2, latents_mean=None, latents_std=None)
    return LightningDiTLikelihoodPipeline(GaussianFlow(), vae, id2label={0: "zero", 1: "one", 2: "two"})


@pytest.mark.parametrize(
    ("class_labels", "class_ids"), [([0, "two", 1], [0, 2, 1]), (None, [3, 3, 3]), ("one", [1] * 3)]
)
def test_exact_likelihood_of_a_gaussian(gaussian, class_labels, class_ids):
    latents = torch.randn(3, 2, 2, 2)
    output = gaussian(latents=latents, class_labels=class_labels, divergence="exact")
    expected = torch.stack(
        [gaussian.transformer.distribution(i).log_prob(x.flatten()) for i, x in zip(class_ids, latents, strict=True)]
    )
    torch.testing.assert_close(output.log_likelihood, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(output.bits_per_dim, -output.log_likelihood / (8 * math.log(2)))


def test_noise_is_what_the_flow_maps_to_the_data(gaussian):
    """The flow of a Gaussian is x = mean + C^(1/2) noise, the symmetric root."""
    latents = torch.randn(2, 2, 2, 2)
    noise = gaussian(latents=latents, class_labels=[0, 1], divergence="exact", ode_rtol=1e-6).noise
    values, vectors = torch.linalg.eigh(gaussian.transformer.covariance)
    root = vectors @ values.sqrt().diag() @ vectors.T
    expected = gaussian.transformer.means[[0, 1]] + noise.flatten(1) @ root
    torch.testing.assert_close(latents.flatten(1), expected, rtol=0, atol=1e-3)


def test_hutchinson_s_mean_is_the_likelihood_and_its_spread_shrinks(gaussian):
    """Estimates are unbiased; with K probes their variance is a K-th."""
    latents = torch.randn(1, 2, 2, 2).expand(256, -1, -1, -1)
    exact = gaussian(latents=latents[:1], class_labels=0, divergence="exact").log_likelihood

    def estimate(num_probes):
        settings = {"generator": torch.Generator().manual_seed(0), "num_probes": num_probes, "ode_rtol": 1e-4}
        return gaussian(latents=latents, class_labels=0, **settings).log_likelihood

    one, many = estimate(1), estimate(16)
    assert abs(one.mean() - exact) < 4 * one.std() / math.sqrt(256)
    assert abs(many.mean() - exact) < 4 * many.std() / math.sqrt(256)
    assert one.std() > 0.1
    assert 0.15 < many.std() / one.std() < 0.4


# ---------------------------------------------------------------------------------------------------------------------
# Divergences
# ---------------------------------------------------------------------------------------------------------------------


def test_divergences_against_the_jacobian(make_transformer):
    transformer = make_transformer()
    x = torch.randn(2, 4, 2, 2, requires_grad=True)
    labels = torch.tensor([0, 3])

    def velocity(x):
        return transformer(x, 0.4, labels).sample

    jacobian = torch.autograd.functional.jacobian(velocity, x).reshape(2, 16, 2, 16)
    blocks = torch.stack([jacobian[i, :, i] for i in range(2)])
    torch.testing.assert_close(exact_divergence(velocity(x), x), blocks.diagonal(dim1=1, dim2=2).sum(1))
    probes = torch.randn(2, 3, 4, 2, 2)
    flat = probes.flatten(2)
    expected = torch.einsum("bki,bij,bkj->b", flat, blocks, flat) / 3
    torch.testing.assert_close(hutchinson_divergence(velocity(x), x, probes), expected)


# ---------------------------------------------------------------------------------------------------------------------
# With the network
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def likelihood(pipe):
    return LightningDiTLikelihoodPipeline.from_pipe(pipe)


def solve(transformer, x: torch.Tensor, class_id: int, num_steps: int = 30) -> torch.Tensor:
    """The flow from noise to latents by fourth-order Runge-Kutta steps, differentiable."""
    labels, h = torch.tensor([class_id]), 1 / num_steps
    for i in range(num_steps):
        t = i * h
        k1 = transformer(x, t, labels).sample
        k2 = transformer(x + h / 2 * k1, t + h / 2, labels).sample
        k3 = transformer(x + h / 2 * k2, t + h / 2, labels).sample
        k4 = transformer(x + h * k3, t + h, labels).sample
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def test_density_changes_by_the_determinant_of_the_map_from_noise(pipe, likelihood):
    """And the flow takes generated latents back to their noise."""
    noise = torch.randn(1, 4, 2, 2)
    settings = {"guidance_scale": 1.0, "ode_method": "dopri5", "ode_atol": 1e-6, "ode_rtol": 1e-6}
    latents = pipe(3, latents=noise, height=4, width=4, output_type="latent", **settings).images
    output = likelihood(latents=latents, class_labels=3, divergence="exact")
    torch.testing.assert_close(output.noise, noise, rtol=0, atol=1e-3)

    jacobian = torch.autograd.functional.jacobian(lambda x: solve(pipe.transformer, x, 3), noise).reshape(16, 16)
    prior = torch.distributions.Normal(0, 1).log_prob(noise).sum()
    expected = prior - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(output.log_likelihood[0], expected, rtol=0, atol=1e-2)


def test_images_are_encoded_and_normalised(likelihood):
    image = torch.rand(3, 8, 8)
    with torch.no_grad():
        latents = likelihood.vae.normalize_latents(likelihood.vae.encode(2 * image[None] - 1).latent_dist.mode())
    settings = {"class_labels": "tench", "ode_rtol": 1e-3}
    of_image = likelihood(image, generator=torch.Generator().manual_seed(0), **settings)
    of_latents = likelihood(latents=latents, generator=torch.Generator().manual_seed(0), **settings)
    assert torch.equal(of_image.log_likelihood, of_latents.log_likelihood)


def test_one_image_and_several_classes(likelihood):
    image, settings = torch.rand(3, 4, 4), {"height": 4, "width": 4, "divergence": "exact"}
    output = likelihood(image, class_labels=[0, 1, 3], **settings)
    alone = likelihood(image, class_labels=3, **settings).log_likelihood
    torch.testing.assert_close(output.log_likelihood[2:], alone, rtol=0, atol=1e-2)  # steps are common to the batch
    assert output.noise.shape == (3, 4, 2, 2)


def test_generators_and_outputs(likelihood):
    latents = torch.randn(1, 4, 4, 4).expand(2, -1, -1, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0)]
    log_likelihood, _, _ = likelihood(latents=latents, generator=generators, ode_rtol=1e-3, return_dict=False)
    torch.testing.assert_close(log_likelihood[0], log_likelihood[1])
    assert not log_likelihood.requires_grad


def test_from_a_folder(pipe, likelihood, tmp_path, repository):
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(
        tmp_path,
        custom_pipeline=str(repository / "pipelines/pipeline_lightningdit_likelihood.py"),
        trust_remote_code=True,
    )
    assert set(loaded.components) == {"transformer", "vae"}
    settings = {"latents": torch.randn(1, 4, 4, 4), "class_labels": "golden retriever", "ode_rtol": 1e-3}
    expected = likelihood(generator=torch.Generator().manual_seed(0), **settings).log_likelihood
    value = loaded(generator=torch.Generator().manual_seed(0), **settings).log_likelihood
    torch.testing.assert_close(value, expected, rtol=0, atol=0.1)


LATENTS = torch.zeros(2, 4, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": None}, "`image` and `latents`: neither given; required: one of the two"),
        ({"image": torch.zeros(3, 8, 8)}, "`image` and `latents`: both given"),
        ({"latents": LATENTS[:, :3]}, r"`latents` has the shape \(2, 3, 4, 4\); required: \[B, 4, height, width\]"),
        ({"class_labels": [0, 1, 2]}, "`class_labels` has 3 for 2 images"),
        ({"class_labels": 9}, "`class_labels` has the id 9"),
        ({"divergence": "trace"}, "`divergence` is 'trace'; required: one of"),
        ({"num_probes": 0}, "`num_probes` is 0"),
        ({"ode_rtol": 0}, "`ode_rtol` is 0; required: a positive number"),
        ({"generator": [torch.Generator()]}, "`generator` is a list of 1; required: 2"),
        ({"latents": None, "image": torch.zeros(3, 8, 8), "height": 7}, "`height` is 7"),
    ],
)
def test_wrong_arguments(likelihood, arguments, message):
    likelihood.transformer.forward = likelihood.vae.encode = None  # nothing may be computed
    with pytest.raises(ValueError, match=message):
        likelihood(**{"latents": LATENTS, **arguments})


def test_refuses_a_cache(likelihood):
    likelihood.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="`transformer` has a cache"):
        likelihood(latents=LATENTS)


@pytest.mark.gpu
def test_on_a_gpu_equals_cpu(make_pipeline):
    settings = {"latents": torch.randn(2, 4, 2, 2), "class_labels": 1, "divergence": "exact"}
    expected = LightningDiTLikelihoodPipeline.from_pipe(make_pipeline())(**settings).log_likelihood
    likelihood = LightningDiTLikelihoodPipeline.from_pipe(make_pipeline()).to("cuda")
    torch.testing.assert_close(likelihood(**settings).log_likelihood.cpu(), expected, rtol=0, atol=1e-2)
