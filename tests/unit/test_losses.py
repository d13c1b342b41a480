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
    # Equation 7: every atom gets of every value 1 minus its distance in intervals.
    distance = (values[:, None, :] - atoms[None, :, None]).abs() / 1.0
    expected = ((1.0 - distance).clamp(0.0, 1.0) * probs[:, None, :]).sum(-1)
    torch.testing.assert_close(projected, expected)


def test_categorical_loss_is_the_divergence_averaged_over_the_batch():
    predicted = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    target = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    loss = losses.categorical_loss(predicted.log(), target)
    assert loss.item() == pytest.approx(math.log(2.0) / 2)


# -------------------------------------------------------------------- conservative Q-learning


def test_conservative_gap_is_a_soft_maximum_less_the_datas_value():
    # log(e^0 + e^log 3) = log 4 and log(2 e^2) = 2 + log 2, less 1 and 0
    sampled = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]])
    gap = losses.conservative_gap(sampled, torch.zeros(2, 2), torch.tensor([1.0, 0.0]))
    assert gap.item() == pytest.approx((math.log(4.0) - 1.0 + 2.0 + math.log(2.0)) / 2)


def test_conservative_gap_weighs_samples_by_their_inverse_density():
    # The integral of exp Q over [-1, 1], Q = 0 on the left half and log 5 on the right, is 6. Half
    # of the samples are uniform (density 1/2), half from a density of 1/4 left and 3/4 right.
    value = {"left": 0.0, "right": math.log(5.0)}
    uniform = [("left", 0.5), ("right", 0.5)] * 2
    skewed = [("left", 0.25), ("right", 0.75), ("right", 0.75), ("right", 0.75)]
    samples = uniform + skewed
    q = torch.tensor([[value[side] for side, _ in samples]])
    log_density = torch.tensor([[math.log(density) for _, density in samples]])
    gap = losses.conservative_gap(q, log_density, torch.zeros(1))
    assert gap.item() == pytest.approx(math.log(6.0) + math.log(len(samples)))


def test_conservative_gap_survives_large_values():
    values = torch.full((1, 2), 500.0, requires_grad=True)
    gap = losses.conservative_gap(values, torch.zeros(1, 2), torch.tensor([500.0]))
    assert gap.item() == pytest.approx(math.log(2.0), rel=1e-3)
    (gradient,) = torch.autograd.grad(gap, values)
    assert gradient.flatten().tolist() == pytest.approx([0.5, 0.5], rel=1e-5)


# ------------------------------------------------------------------------ implicit Q-learning


def test_expectile_loss_weighs_errors_by_their_sign():
    predictions, targets = torch.tensor([[0.0], [0.0]]), torch.tensor([[2.0], [-1.0]])
    # 0.9 * 2² for a target above, 0.1 * 1² for one below
    assert losses.expectile_loss(predictions, targets, 0.9).item() == pytest.approx(3.7 / 2)
    assert losses.expectile_loss(predictions, targets, 0.1).item() == pytest.approx(1.3 / 2)


def test_the_expectile_of_one_half_is_half_the_squared_error():
    g = torch.Generator().manual_seed(0)
    predictions, targets = torch.randn(2, 20, 1, generator=g)
    half = losses.regression_loss(predictions, targets, use_huber=False) / 2
    assert losses.expectile_loss(predictions, targets, 0.5).item() == pytest.approx(half.item())


@pytest.mark.parametrize(("expectile", "minimum"), [(0.5, 0.5), (0.75, 0.75), (0.9, 0.9)])
def test_the_minimum_of_the_expectile_loss_is_the_expectile(expectile, minimum):
    # Of 0 and 1 the τ-expectile m solves τ (1 - m) = (1 - τ) m, so m = τ.
    targets = torch.tensor([0.0, 1.0], dtype=torch.float64)
    prediction = torch.tensor(minimum, dtype=torch.float64, requires_grad=True)
    loss = losses.expectile_loss(prediction.expand(2), targets, expectile)
    (gradient,) = torch.autograd.grad(loss, prediction)
    assert gradient.item() == pytest.approx(0.0, abs=1e-15)


def test_advantage_weights_are_exponential_in_the_advantage():
    advantages = torch.tensor([0.0, math.log(4.0)])
    assert losses.advantage_weights(advantages, 1.0).tolist() == pytest.approx([1.0, 4.0])
    assert losses.advantage_weights(advantages, 2.0).tolist() == pytest.approx([1.0, 2.0])


def test_advantages_and_weights_are_cut_from_above():
    advantages = torch.tensor([-3.0, 0.5, 90.0, 1e4])
    cut = losses.advantage_weights(advantages, 1.0, max_advantage=1.0)
    expected = [math.exp(-3.0), math.exp(0.5), math.e, math.e]
    assert cut.tolist() == pytest.approx(expected)
    cut = losses.advantage_weights(advantages, 1.0, max_weight=100.0)
    assert cut.tolist() == pytest.approx([math.exp(-3.0), math.exp(0.5), 100.0, 100.0])
