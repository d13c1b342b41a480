"""Terms of a VAE's loss, against numbers by hand and torch's distributions."""

import math

import pytest
import torch
import torch.distributions as D

from raymimic.models import vae_losses

B, M, SIZE, C = 6, 3, 4, 5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gaussian(mean, logvar):
    return D.Independent(D.Normal(mean, (0.5 * logvar).exp()), 1)


def test_standard_normal_kl_by_hand():
    """(1 + 1 - 1 - 0) / 2 + (0 + 4 - 1 - ln 4) / 2, and 0 for the prior itself; their mean."""
    mean = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    logvar = torch.tensor([[0.0, math.log(4.0)], [0.0, 0.0]])
    expected = (0.5 + 0.5 * (3.0 - math.log(4.0))) / 2
    assert vae_losses.standard_normal_kl(mean, logvar).item() == pytest.approx(expected)


@pytest.mark.parametrize("rows", [1, B])
def test_gaussian_kl_is_torchs(rows):
    mean, logvar = torch.randn(B, SIZE), torch.randn(B, SIZE)
    prior = torch.randn(rows, SIZE), torch.randn(rows, SIZE)
    expected = D.kl_divergence(
        gaussian(mean, logvar), gaussian(*(x.expand(B, SIZE) for x in prior))
    )
    torch.testing.assert_close(vae_losses.gaussian_kl(mean, logvar, *prior), expected.mean())


def test_gaussian_kl_from_the_standard_normal():
    mean, logvar, zeros = torch.randn(B, SIZE), torch.randn(B, SIZE), torch.zeros(1, SIZE)
    torch.testing.assert_close(
        vae_losses.gaussian_kl(mean, logvar, zeros, zeros),
        vae_losses.standard_normal_kl(mean, logvar),
    )


def test_mixture_log_prob_is_torchs():
    x, means, logvars = torch.randn(B, SIZE), torch.randn(B, M, SIZE), torch.randn(B, M, SIZE)
    logits = torch.randn(B, M)
    mixture = D.MixtureSameFamily(D.Categorical(logits=logits), gaussian(means, logvars))
    for constant in (0.0, 3.0):  # logits are weights up to a constant
        log_prob = vae_losses.mixture_log_prob(x, means, logvars, logits + constant)
        torch.testing.assert_close(log_prob, mixture.log_prob(x))


def test_mixture_of_one_is_a_gaussian():
    x, mean, logvar = torch.randn(B, SIZE), torch.randn(1, SIZE), torch.randn(1, SIZE)
    torch.testing.assert_close(
        vae_losses.mixture_log_prob(x, mean[None], logvar[None], torch.zeros(1, 1)),
        gaussian(mean, logvar).log_prob(x),
    )


def test_categorical_kl_by_hand():
    """Two variables of probabilities 3/4 and 1/4, against uniform ones."""
    logits = torch.tensor([3.0, 1.0]).log().expand(1, 2, 2)
    expected = 2 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert vae_losses.categorical_kl(logits, torch.zeros(1, 2, 2)).item() == pytest.approx(expected)


@pytest.mark.parametrize("rows", [1, B])
def test_categorical_kl_is_torchs(rows):
    logits, prior = torch.randn(B, SIZE, C), torch.randn(rows, SIZE, C)
    expected = D.kl_divergence(
        D.Categorical(logits=logits), D.Categorical(logits=prior.expand(B, SIZE, C))
    )
    torch.testing.assert_close(vae_losses.categorical_kl(logits, prior), expected.sum(-1).mean())


def test_reconstruction_loss_sums_or_averages():
    """Errors 1, 1, 2, 2 of one key (two samples of two elements) and 3, 0 of another."""
    predictions = {"a": torch.tensor([[1.0, 1.0], [2.0, 2.0]]), "b": torch.tensor([[3.0], [0.0]])}
    targets = {"a": torch.zeros(2, 2), "b": torch.zeros(2, 1), "unused": torch.ones(2, 7)}
    averaged = vae_losses.reconstruction_loss(predictions, targets)
    assert averaged.item() == pytest.approx((10 / 4 + 9 / 2) / 2)
    summed = vae_losses.reconstruction_loss(predictions, targets, sum_elements=True)
    assert summed.item() == pytest.approx((10 + 9) / 2)
