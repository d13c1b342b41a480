"""Random numbers of networks in training follow from the sample's place, not from the worker."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raymimic.algo.draws import SampleDraws, share_draws
from raymimic.errors import RaymimicError
from raymimic.models.vision.draws import DrawingModule

FLOAT = torch.zeros(1)


def begun(positions: list[int], seed: int = 5, epoch: int = 2, step: int = 3) -> SampleDraws:
    draws = SampleDraws(seed)
    draws.begin(epoch, step, torch.tensor(positions, dtype=torch.int64))
    return draws


def some_draws(draws: SampleDraws, samples: int) -> list[Tensor]:
    """Draws of a network in a step, `[samples, frames, ...]` each."""
    frames = 3
    rows = samples * frames
    drawn = [draws.uniform((rows, 2)), draws.normal((rows, 4, 5), FLOAT), draws.uniform((rows,))]
    return [x.unflatten(0, (-1, frames)) for x in drawn]


@pytest.mark.parametrize("cut", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[6, 1], [0], [7, 5, 4, 2, 3]]])
def test_a_sample_draws_the_same_on_any_worker(cut: list[list[int]]) -> None:
    whole = some_draws(begun(list(range(8))), 8)
    for positions in cut:
        for part, of_all in zip(some_draws(begun(positions), len(positions)), whole, strict=True):
            assert torch.equal(part, of_all[positions])


def test_samples_frames_calls_steps_epochs_and_seeds_draw_their_own() -> None:
    draws = begun([0, 1])
    numbers = [draws.uniform((6, 4)) for _ in range(2)]
    for other in ({"step": 4}, {"epoch": 3}, {"seed": 6}, {"seed": -6}, {"epoch": 3, "step": 2}):
        numbers.append(begun([0, 1], **other).uniform((6, 4)))
    assert len(torch.cat(numbers).unique()) == 7 * 6 * 4


def test_a_step_draws_the_same_when_it_is_taken_again() -> None:
    draws = begun([0, 1])
    first = some_draws(draws, 2)
    assert not torch.equal(some_draws(draws, 2)[0], first[0])
    draws.begin(2, 3, torch.tensor([0, 1]))
    assert all(map(torch.equal, some_draws(draws, 2), first))


def test_other_random_numbers_neither_change_nor_are_changed() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = some_draws(begun([0]), 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert all(map(torch.equal, some_draws(begun([0]), 1), first))


def test_the_generator_is_splitmix64() -> None:
    draws = begun([1, 4])
    draws.uniform((2,))
    numbers = draws.uniform((4, 3))  # two rows of a sample: 6 numbers each
    entropy = np.random.SeedSequence([0x647261, 5, 2, 3, 1])
    state = entropy.generate_state(1, np.uint64)
    with np.errstate(over="ignore"):
        z = state + np.arange(1, 31, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    expected = (z >> np.uint64(40)).astype(np.float64) / 2**24
    np.testing.assert_array_equal(
        numbers.flatten().double(), expected[[*range(6, 12), *range(24, 30)]]
    )


def test_moments() -> None:
    draws = begun(list(range(50)))
    uniform, normal = draws.uniform((50, 4000)).double(), draws.normal((50, 4000), FLOAT).double()
    assert uniform.min() >= 0
    assert uniform.max() < 1
    # 200,000 numbers: the bounds are more than four standard deviations of a moment wide.
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.003)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.001)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert (normal**power).mean().item() == pytest.approx(moment, abs=0.1)
    assert abs(normal).max() < 6
    pairs = torch.corrcoef(torch.stack([normal[:, :-1].flatten(), normal[:, 1:].flatten()]))
    assert abs(pairs[0, 1]) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_is_of_the_images_type(dtype: torch.dtype) -> None:
    noise = begun([0]).normal((2, 3), torch.zeros(1, dtype=dtype))
    assert noise.dtype == dtype
    torch.testing.assert_close(noise, begun([0]).normal((2, 3), FLOAT).to(dtype))


def test_rows_that_are_not_the_samples_are_named() -> None:
    with pytest.raises(RaymimicError, match="for 5 rows of a batch of 2 samples"):
        begun([0, 1]).uniform((5, 2))


class Crop(DrawingModule):
    """Draws."""


def test_all_modules_that_draw_get_the_same_draws() -> None:
    net, draws = nn.Sequential(Crop(), nn.Sequential(nn.ReLU(), Crop())), SampleDraws(0)
    assert share_draws(net, draws)
    assert net[0].draws is net[1][1].draws is draws
    assert not share_draws(nn.Linear(2, 2), draws)
