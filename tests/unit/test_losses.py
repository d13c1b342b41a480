"""Losses against numbers computed by hand."""

import math

import pytest
import torch

from raymimic.algo import losses

torch.set_num_threads(1)


def test_cosine_loss_of_a_right_angle_and_of_opposites():
    predictions = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    targets = torch.tensor([[0.0, 3.0], [-1.0, 0.0]])
    assert losses.cosine_loss(predictions, targets).item() == pytest.approx((1.0 + 2.0) / 2)


def test_huber_loss_has_its_corner_at_one():
    predictions, targets = torch.tensor([0.5, 3.0]), torch.zeros(2)
    assert losses.regression_loss(predictions, targets, use_huber=False).item() == (0.25 + 9) / 2
    assert losses.regression_loss(predictions, targets, use_huber=True).item() == (0.125 + 2.5) / 2


# ----------------------------------------------------------------------- temporal differences


def test_td_target_bootstraps_where_the_episode_goes_on():
    rewards, dones = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])
    target = losses.td_target(rewards, dones, torch.tensor([[10.0], [10.0]]), discount=0.5)
    assert target.tolist() == [[6.0], [2.0]]
    of_atoms = losses.td_target(rewards, dones, torch.tensor([0.0, 4.0]), discount=0.5)
    assert of_atoms.tolist() == [[1.0, 3.0], [2.0, 2.0]]


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 1.0), (0.75, 2.0), (0.0, 5.0)])
def test_ensemble_mix_weighs_minimum_and_maximum(weight, expected):
    values = torch.tensor([3.0, 1.0, 5.0]).view(3, 1, 1).expand(3, 2, 1)
    assert losses.ensemble_mix(values, weight).tolist() == [[expected]] * 2


def test_projection_splits_probability_by_nearness():
    atoms = torch.tensor([0.0, 1.0, 2.0])
    values = torch.tensor([[-1.0, 0.25, 1.5], [0.0, 2.0, 7.0]])
    probs = torch.tensor([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]])
    projected = losses.project_onto_atoms(values, probs, atoms)
    first = [0.2 + 0.3 * 0.75, 0.3 * 0.25 + 0.5 * 0.5, 0.5 * 0.5]
    assert projected[0].tolist() == pytest.approx(first)
    assert projected[1].tolist() == pytest.approx([0.2, 0.0, 0.8])


def test_projection_keeps_mass_and_mean_and_is_the_papers_formula():
    generator = torch.Generator().manual_seed(0)
    atoms = torch.linspace(-3.0, 5.0, 9, dtype=torch.float64)
    values = torch.rand(50, 9, generator=generator, dtype=torch.float64) * 8 - 3
    probs = torch.rand(50, 9, generator=generator, dtype=torch.float64).softmax(dim=-1)
    projected = losses.project_onto_atoms(values, probs, atoms)
    torch.testing.assert_close(projected.sum(1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close((projected * atoms).sum(1), (probs * values).sum(1))
    # Equation 7: every atom gets of every value what its distance, in intervals, leaves of 1.
    distance = (values[:, None, :] - atoms[None, :, None]).abs() / 1.0
    expected = ((1.0 - distance).clamp(0.0, 1.0) * probs[:, None, :]).sum(-1)
    torch.testing.assert_close(projected, expected)


def test_categorical_loss_is_the_divergence_averaged_over_the_batch():
    predicted = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    target = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    loss = losses.categorical_loss(predicted.log(), target)
    assert loss.item() == pytest.approx(math.log(2.0) / 2)
