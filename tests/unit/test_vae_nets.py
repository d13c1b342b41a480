"""Variational autoencoders: priors, what of them is learned, samples, and the policy."""

from typing import Any

import pytest
import torch
import torch.distributions as D
from torch import Tensor

from raymimic.algo.noise import EpisodeNoise
from raymimic.config import GLConfig
from raymimic.errors import ConfigError
from raymimic.models.vae_nets import VAE, VAEActor, gumbel_temperature, vae_args_from_config
from raymimic.models.vae_priors import (
    CategoricalPrior,
    GaussianPrior,
    GMMPrior,
    StandardNormalPrior,
)
from raymimic.observations.shapes import ObsShapes

B, Z, M, C = 5, 3, 4, 6
OBS = {"pos": (2,), "vel": (1,)}
LEARNED = {"prior_learn": True}
GMM = {"prior_learn": True, "prior_use_gmm": True, "prior_gmm_num_modes": M}
CATEGORICAL = {"prior_use_categorical": True, "prior_categorical_dim": C}
WEIGHTS = {"prior_gmm_learn_weights": True}
CONDITIONED = {"prior_is_conditioned": True, "prior_layer_dims": (8,)}

# Settings, class, and the parameters of one mode that they give.
PRIORS: dict[str, tuple[dict[str, Any], type, dict[str, tuple[int, ...]]]] = {
    "standard": ({}, StandardNormalPrior, {}),
    "gaussian": (LEARNED, GaussianPrior, {"mean": (1, Z), "logvar": (1, Z)}),
    "gmm": (GMM, GMMPrior, {"mean": (M, Z), "logvar": (M, Z)}),
    "gmm weights": (
        GMM | WEIGHTS,
        GMMPrior,
        {"mean": (M, Z), "logvar": (M, Z), "weight": (M,)},
    ),
    "uniform": (CATEGORICAL, CategoricalPrior, {}),
    "categorical": (CATEGORICAL | LEARNED, CategoricalPrior, {"logit": (Z, C)}),
}
LEARNED_PRIORS = [name for name, (_, _, shapes) in PRIORS.items() if shapes]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def obs(rows: int = B) -> dict[str, Tensor]:
    return {k: torch.randn(rows, *shape) for k, shape in OBS.items()}


def make_vae(**settings: Any) -> VAE:
    return VAE(
        input_shapes={"x": (2,), "y": (1, 2)},
        output_shapes={"x": (2,), "y": (1, 2)},
        condition_shapes=ObsShapes(OBS),
        encoder_layer_dims=(16,),
        decoder_layer_dims=(16,),
        latent_dim=Z,
        **settings,
    )


def make_prior(cls: type, rows: int = 1, **kwargs: Any) -> Any:
    prior = cls(Z, **kwargs)
    return prior, {"pos": torch.zeros(rows, 2)}


def data(rows: int = B) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, 2), "y": torch.randn(rows, 1, 2)}


# -------------------------------------------------------------------------------- priors


@pytest.mark.parametrize("name", PRIORS)
def test_priors_parameters_are_learned_where_asked_for(name):
    settings, cls, shapes = PRIORS[name]
    vae = make_vae(**settings)
    assert type(vae.prior) is cls
    params = {k: tuple(p.shape) for k, p in vae.prior.named_parameters()}
    assert params == {f"prior_params.{k}": (1, *shape) for k, shape in shapes.items()}

    x, s = data(), obs()
    vae(x, x, s)["kl_loss"].backward()
    for parameter in vae.prior.parameters():
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LEARNED_PRIORS)
def test_conditioned_prior_is_a_network_of_the_observation(name):
    settings, _, shapes = PRIORS[name]
    vae = make_vae(**settings, **CONDITIONED)
    assert not vae.prior.prior_params
    heads = vae.prior.prior_module.nets["decoder"].nets
    sizes = {k: head.out_features for k, head in heads.items()}
    assert sizes == {k: torch.Size(shape).numel() for k, shape in shapes.items()}

    x, s = data(), obs()
    kl = vae(x, x, s)["kl_loss"]
    kl.backward()
    assert all(p.grad is not None for p in vae.prior.parameters())


@pytest.mark.parametrize("learn_weights", [False, True])
def test_kl_from_a_mixture_estimates_the_integral(learn_weights):
    """The mean over many latents, against a Monte Carlo estimate by torch's distributions."""
    n = 200_000
    prior, s = make_prior(GMMPrior, n, num_modes=M, learn_weights=learn_weights)
    mean, logvar = torch.randn(Z), 0.3 * torch.randn(Z)
    posterior = {"mean": mean.expand(n, Z), "logvar": logvar.expand(n, Z)}
    with torch.no_grad():
        kl = prior.kl(posterior, prior.sample_posterior(posterior), s)

    params = {k: p.detach()[0] for k, p in prior.prior_params.items()}
    q = D.Independent(D.Normal(mean, (0.5 * logvar).exp()), 1)
    p = D.MixtureSameFamily(
        D.Categorical(logits=params.get("weight", torch.zeros(M))),
        D.Independent(D.Normal(params["mean"], (0.5 * params["logvar"]).exp()), 1),
    )
    z = q.sample((n,))
    differences = q.log_prob(z) - p.log_prob(z)
    assert kl.item() == pytest.approx(
        differences.mean().item(), abs=5 * differences.std().item() / n**0.5
    )


def test_kl_of_gaussian_and_categorical_priors_is_torchs():
    prior, s = make_prior(GaussianPrior, B)
    posterior = {"mean": torch.randn(B, Z), "logvar": torch.randn(B, Z)}
    params = {k: p[:, 0].expand(B, Z) for k, p in prior.prior_params.items()}
    q, p = (D.Normal(x["mean"], (0.5 * x["logvar"]).exp()) for x in (posterior, params))
    expected = D.kl_divergence(q, p).sum(-1).mean()
    torch.testing.assert_close(prior.kl(posterior, torch.zeros(B, Z), s), expected)

    prior, s = make_prior(CategoricalPrior, B, categorical_dim=C, learn=True, hard=False)
    logits = torch.randn(B, Z, C)
    p = D.Categorical(logits=prior.prior_params["logit"].expand(B, Z, C))
    expected = D.kl_divergence(D.Categorical(logits=logits), p).sum(-1).mean()
    kl = prior.kl({"logit": logits.flatten(1)}, torch.zeros(B, Z * C), s)
    torch.testing.assert_close(kl, expected)


def test_standard_normal_samples_and_their_clip():
    prior, s = make_prior(StandardNormalPrior, 20_000)
    z = prior.sample(s)
    assert z.mean(0).abs().max() < 0.03
    assert (z.std(0) - 1).abs().max() < 0.03
    assert z.abs().max() > 3

    prior, s = make_prior(StandardNormalPrior, 20_000, latent_clip=0.5)
    z = prior.sample(s)
    assert z.abs().max() == 0.5
    assert (z.abs() < 0.5).float().mean() == pytest.approx(0.383, abs=0.01)


@torch.no_grad()
def test_gaussian_samples_have_the_priors_moments():
    prior, s = make_prior(GaussianPrior, 20_000)
    z = prior.sample(s)
    mean, logvar = prior.prior_params["mean"][0, 0], prior.prior_params["logvar"][0, 0]
    torch.testing.assert_close(z.mean(0), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), (0.5 * logvar).exp(), atol=0.05, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("learn_weights", [False, True])
def test_mixture_samples_come_from_modes_by_weight(learn_weights):
    prior, s = make_prior(GMMPrior, 20_000, num_modes=2, learn_weights=learn_weights)
    prior.prior_params["mean"].copy_(torch.tensor([-10.0, 10.0])[None, :, None])
    prior.prior_params["logvar"].fill_(-4.0)
    if learn_weights:
        prior.prior_params["weight"].copy_(torch.tensor([[0.8, 0.2]]).log())
    z = prior.sample(s)
    assert ((z > 0).float().mean(1) % 1 == 0).all()  # a mode gives the whole latent
    expected = 0.2 if learn_weights else 0.5
    assert (z[:, 0] > 0).float().mean().item() == pytest.approx(expected, abs=0.02)
    assert z[z > 0].std().item() == pytest.approx(torch.tensor(-2.0).exp().item(), abs=0.01)


@torch.no_grad()
@pytest.mark.parametrize("learn", [False, True])
def test_categorical_samples_are_one_hot_by_probability(learn):
    prior, s = make_prior(CategoricalPrior, 20_000, categorical_dim=C, learn=learn, hard=False)
    z = prior.sample(s).unflatten(-1, (Z, C))
    assert torch.equal(z.sum(-1), torch.ones(20_000, Z))
    assert torch.equal(z.amax(-1), torch.ones(20_000, Z))
    expected = prior.prior_params["logit"][0].softmax(-1) if learn else torch.full((Z, C), 1 / C)
    torch.testing.assert_close(z.mean(0), expected, atol=0.02, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", PRIORS)
def test_a_states_samples_are_neighbours_and_its_own(name):
    """Under episodes' own noise a row's samples do not depend on the rows beside it."""
    settings, _, shapes = PRIORS[name]
    vae = make_vae(**settings, **(CONDITIONED if shapes else {}))
    s = obs()

    def sample(rows: list[int]) -> Tensor:
        noise = EpisodeNoise(len(rows))
        noise.seed([100 + row for row in rows])
        with noise:
            z = vae.sample_prior({k: x[rows] for k, x in s.items()}, num_samples=7)
        return z.unflatten(0, (len(rows), 7))

    both, alone = sample([0, 1, 2, 3]), sample([2])
    torch.testing.assert_close(both[2], alone[0])
    assert not torch.equal(both[2], both[1])


# -------------------------------------------------------------------------- gumbel softmax


def test_temperature_falls_with_epochs_to_its_least():
    config = GLConfig().algo.vae.prior
    config.categorical_temp_anneal_step = 0.25
    config.categorical_min_temp = 0.3
    temperatures = [gumbel_temperature(config, epoch) for epoch in (0, 1, 2, 3, 50)]
    assert temperatures == pytest.approx([1.0, 0.75, 0.5, 0.3, 0.3])


def test_temperature_sharpens_the_posteriors_samples():
    vae = make_vae(**CATEGORICAL)
    posterior = {"logit": torch.randn(1000, Z * C)}

    def sharpness(temperature: float) -> float:
        vae.set_gumbel_temperature(temperature)
        assert vae.get_gumbel_temperature() == temperature
        z = vae.prior.sample_posterior(posterior).unflatten(-1, (Z, C))
        torch.testing.assert_close(z.sum(-1), torch.ones(1000, Z))
        return z.amax(-1).mean().item()

    assert sharpness(0.05) > 0.95 > sharpness(1.0) > 0.4 > sharpness(10.0)


def test_hard_samples_are_one_hot_and_pass_gradients():
    vae = make_vae(**CATEGORICAL, prior_categorical_gumbel_softmax_hard=True)
    logits = torch.randn(B, Z * C, requires_grad=True)
    z = vae.prior.sample_posterior({"logit": logits}).unflatten(-1, (Z, C))
    torch.testing.assert_close(
        z.sort(-1).values[..., -2:], torch.tensor([0.0, 1.0]).expand(B, Z, 2)
    )
    (z * torch.randn(C)).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_only_categorical_latents_have_a_temperature():
    with pytest.raises(TypeError, match="categorical"):
        make_vae().set_gumbel_temperature(0.5)


# ------------------------------------------------------------------------------------ VAE


@pytest.mark.parametrize("name", PRIORS)
def test_forward_reconstructs_what_is_asked_for(name):
    settings, _, _ = PRIORS[name]
    vae = make_vae(**settings)
    x, s = data(), obs()
    output = vae(x, x, s)
    assert {k: y.shape for k, y in output["decoder_outputs"].items()} == {
        k: y.shape for k, y in x.items()
    }
    assert output["encoder_z"].shape == (B, vae.latent_size)
    assert vae.decode(s)["y"].shape == (B, 1, 2)
    expected = sum((y - x[k]).square().mean() for k, y in output["decoder_outputs"].items()) / 2
    torch.testing.assert_close(output["reconstruction_loss"], expected)

    vae.sum_elements = True
    torch.manual_seed(1)
    output = vae(x, x, s)
    errors = [(y - x[k]).square() for k, y in output["decoder_outputs"].items()]
    expected = sum(error.flatten(1).sum(1).mean() for error in errors)
    torch.testing.assert_close(output["reconstruction_loss"], expected)


def test_gradients_reach_the_encoder_unless_it_is_frozen():
    vae = make_vae()
    x, s = data(), obs()
    vae(x, x, s)["reconstruction_loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in vae.nets["encoder"].parameters())

    vae.zero_grad()
    output = vae(x, x, s, freeze_encoder=True)
    (output["reconstruction_loss"] + output["kl_loss"]).backward()
    assert all(p.grad is None for p in vae.nets["encoder"].parameters())
    assert all(p.grad is not None for p in vae.nets["decoder"].parameters())


def test_decoder_sees_the_observation_unless_told_not_to():
    z = torch.randn(B, Z)
    seeing = make_vae()
    assert not torch.equal(seeing.decode(obs(), z=z)["x"], seeing.decode(obs(), z=z)["x"])
    blind = make_vae(decoder_is_conditioned=False, **LEARNED, **CONDITIONED)
    assert torch.equal(blind.decode(obs(), z=z)["x"], blind.decode(obs(), z=z)["x"])
    assert blind.nets["decoder"].nets["encoder"].output_dim == Z


def test_goals_go_wherever_observations_go():
    vae = make_vae(goal_shapes=ObsShapes({"pos": (2,)}), **LEARNED, **CONDITIONED)
    dims = {
        name: (net.prior_module if name == "prior" else net).nets["encoder"].output_dim
        for name, net in vae.nets.items()
    }
    assert dims == {"encoder": 4 + 3 + 2, "decoder": Z + 3 + 2, "prior": 3 + 2}
    s, z = obs(), torch.randn(B, Z)
    near, far = {"pos": torch.zeros(B, 2)}, {"pos": torch.ones(B, 2)}
    assert not torch.equal(vae.decode(s, near, z)["x"], vae.decode(s, far, z)["x"])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"decoder_is_conditioned": False}, "decoder.is_conditioned"),
        ({"prior_is_conditioned": True}, "prior.is_conditioned"),
        ({"prior_use_gmm": True}, "prior.use_gmm"),
        ({**GMM, **CATEGORICAL}, "use_categorical"),
    ],
)
def test_contradictions_are_refused(settings, key):
    with pytest.raises(ConfigError, match=key):
        make_vae(**settings)


def test_learns_a_distribution_that_depends_on_the_state():
    """x is the state's sign or its negative: a VAE has both in it, a regression their mean, 0."""
    vae = make_vae(decoder_reconstruction_sum_across_elements=True)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-2)
    for _ in range(250):
        s = obs(64)
        coin = torch.randint(2, (64, 1)) * 2.0 - 1.0
        x = {"x": coin * s["pos"].sign(), "y": torch.zeros(64, 1, 2)}
        output = vae(x, x, s)
        optimizer.zero_grad()
        (output["reconstruction_loss"] + 0.2 * output["kl_loss"]).backward()
        optimizer.step()
    for signs in (torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])):
        s = {"pos": 2 * signs.expand(500, 2), "vel": torch.zeros(500, 1)}
        with torch.no_grad():
            along = (vae.decode(s)["x"] * signs).mean(dim=1)
        assert 0.2 < (along > 0).float().mean() < 0.8
        assert along.abs().mean() > 0.4


# ---------------------------------------------------------------------------------- policy


def test_actor_decodes_actions_in_bounds():
    config = GLConfig().algo.vae
    config.encoder_layer_dims = config.decoder_layer_dims = (8,)
    actor = VAEActor(obs_shapes=ObsShapes(OBS), ac_dim=4, **vae_args_from_config(config))
    s, z = obs(), 100 * torch.randn(B, 16)
    actions = actor(s, z=z)
    assert actions.shape == (B, 4)
    assert actions.abs().max() <= 1
    assert actions.abs().max() > 0.9
    assert torch.equal(actor(s, z=z), actions)
    assert not torch.equal(actor(s), actor(s))

    demonstrated = torch.rand(B, 4) * 2 - 1
    output = actor.forward_train(demonstrated, s)
    assert set(output) == {
        "encoder_params",
        "encoder_z",
        "decoder_outputs",
        "kl_loss",
        "reconstruction_loss",
    }
    expected = (output["decoder_outputs"]["action"] - demonstrated).square().mean()
    torch.testing.assert_close(output["reconstruction_loss"], expected)
    posterior = actor.encode(demonstrated, s)
    assert torch.equal(posterior["mean"], output["encoder_params"]["mean"])
