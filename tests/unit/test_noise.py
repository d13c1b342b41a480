"""Random numbers of one episode do not depend on episodes beside it."""

from collections.abc import Callable

import pytest
import torch
import torch.distributions as D
from torch import Tensor

from raymimic.algo.noise import EpisodeNoise
from raymimic.errors import RaymimicError

ROWS, K = 4, 3
PROBS = torch.tensor([0.1, 0.2, 0.3, 0.4])


def mixture(rows: int) -> D.Distribution:
    modes = D.Independent(
        D.Normal(torch.arange(5.0).expand(rows, 5)[..., None], 0.1, validate_args=False), 1
    )
    weights = D.Categorical(logits=torch.zeros(rows, 5), validate_args=False)
    return D.MixtureSameFamily(weights, modes, validate_args=False)


def gumbel(rows: int) -> Tensor:
    return torch.nn.functional.gumbel_softmax(torch.zeros(rows, 6), hard=True)


def wide(rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(rows, 20, dtype=dtype)


DRAWS: dict[str, Callable[[int], Tensor]] = {
    "randn": lambda n: torch.randn(n, 20),
    "randn sized by keyword": lambda n: torch.randn(size=(n, 3), dtype=torch.float64),
    "randn_like": lambda n: torch.randn_like(wide(n)),
    "rand": lambda n: torch.rand((n, 2)),
    "rand_like": lambda n: torch.rand_like(wide(n), dtype=torch.float64),
    "randint": lambda n: torch.randint(7, 1000, (n, 4)),
    "randint by keyword": lambda n: torch.randint(high=1000, size=(n, 4)),
    "randint_like": lambda n: torch.randint_like(wide(n), 1000),
    "normal of tensors": lambda n: torch.normal(wide(n), torch.ones(n, 20)),
    "normal of a number and a tensor": lambda n: torch.normal(2.0, torch.ones(n, 2)),
    "normal of numbers": lambda n: torch.normal(2.0, 0.5, (n, 2)),
    "normal_": lambda n: wide(n).normal_(1.0, 2.0),
    "uniform_": lambda n: wide(n).uniform_(-1, 1),
    "exponential_": lambda n: wide(n).exponential_(),
    "bernoulli_": lambda n: wide(n).bernoulli_(0.5),
    "bernoulli_ of a tensor": lambda n: wide(n).bernoulli_(torch.full((n, 20), 0.5)),
    "bernoulli": lambda n: torch.bernoulli(torch.full((n, 20), 0.5)),
    "multinomial": lambda n: torch.multinomial(PROBS.expand(n, 4), 30, replacement=True),
    "Tensor.multinomial": lambda n: PROBS.expand(n, 4).multinomial(30, replacement=True),
    "init": lambda n: torch.nn.init.normal_(wide(n)),
    "Normal.sample": lambda n: D.Normal(wide(n), 1.0, validate_args=False).sample(),
    "Normal.rsample": lambda n: D.Normal(wide(n), 1.0, validate_args=False).rsample(),
    "Categorical": lambda n: D.Categorical(PROBS.expand(n, 9, 4)).sample(),
    "MixtureSameFamily": lambda n: mixture(n).sample(),
    "TransformedDistribution": lambda n: D.TransformedDistribution(
        D.Normal(wide(n), 1.0), [D.TanhTransform()]
    ).rsample(),
    "Beta": lambda n: D.Beta(torch.ones(n, 3), torch.ones(n, 3)).sample(),
    "Gamma": lambda n: D.Gamma(torch.ones(n, 3), torch.ones(n, 3)).rsample(),
    "gumbel": gumbel,
}


@pytest.mark.parametrize("repeats", [1, K])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
def test_a_row_draws_what_it_would_draw_alone(draw: Callable[[int], Tensor], repeats: int) -> None:
    seeds = [5, 6, 7, 10**13]
    together, other = EpisodeNoise(ROWS), EpisodeNoise(ROWS)
    together.seed(seeds)
    other.seed([1, 6, 2, 3])
    with together:
        first, second = draw(ROWS * repeats), draw(ROWS * repeats)
    with other:
        own = slice(repeats, 2 * repeats)
        torch.testing.assert_close(draw(ROWS * repeats)[own], first[own], rtol=0, atol=0)
    for row, seed in enumerate(seeds):
        alone = EpisodeNoise(1)
        alone.seed([seed])
        with alone:
            for drawn in (first, second):
                own = drawn[row * repeats : (row + 1) * repeats]
                torch.testing.assert_close(draw(repeats), own, rtol=0, atol=0)
    assert first.shape == draw(ROWS * repeats).shape
    assert first.dtype == draw(ROWS * repeats).dtype


def test_numbers_are_of_their_distributions() -> None:
    noise = EpisodeNoise(2)
    noise.seed([0, 1])
    n = 20_000
    with noise:
        assert torch.normal(3.0, torch.full((2, n), 2.0)).mean(1).tolist() == pytest.approx(
            [3, 3], abs=0.05
        )
        normal = torch.normal(3.0, 2.0, (2, n))
        assert normal.std(1).tolist() == pytest.approx([2, 2], abs=0.05)
        assert normal.mean(1).tolist() == pytest.approx([3, 3], abs=0.05)
        assert torch.rand(2, n).mean(1).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
        integers = torch.randint(3, 6, (2, n))
        assert integers.unique().tolist() == [3, 4, 5]
        assert torch.randint(2, (2, n)).unique().tolist() == [0, 1]
        chosen = torch.multinomial(PROBS.expand(2, 4), n, replacement=True)
        assert (chosen == 3).float().mean(1).tolist() == pytest.approx([0.4, 0.4], abs=0.02)
        assert wide(2).bernoulli_(1.0).sum() == 40
        assert torch.randn(2, n)[0].corrcoef().abs() <= 1
        a, b = torch.randn(2, n)
        assert float(abs((a * b).mean())) < 0.03  # two rows, two streams


def test_the_global_generator_stays_where_it_is() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    with EpisodeNoise(2):
        torch.randn(2, 5)
        mixture(2).sample()
    assert torch.equal(torch.randn(2), expected)


def test_rows_outside_only_do_not_advance() -> None:
    def play(masks: list[list[bool]]) -> list[Tensor]:
        noise = EpisodeNoise(3)
        noise.seed([1, 2, 3])
        drawn = []
        with noise:
            for mask in masks:
                with noise.only(torch.tensor(mask)):
                    drawn.append(torch.randn(3, 2))
            drawn.append(torch.randn(3, 2))
        return drawn

    none = play([])[0]
    some = play([[True, False, True]])
    both = play([[True, True, True]])
    assert torch.equal(some[1][1], none[1])
    assert torch.equal(some[1][0], both[1][0])
    assert torch.equal(some[1][2], both[1][2])
    assert not torch.equal(some[1][0], none[0])
    assert torch.isfinite(some[0]).all()  # those that need none get numbers too


def test_only_within_only_draws_for_rows_of_both() -> None:
    noise = EpisodeNoise(2)
    with noise:
        before = torch.randn(2)
        noise.seed([0, 0])
        with noise.only(torch.tensor([True, False])), noise.only(torch.tensor([False, True])):
            torch.randn(2)
        assert torch.equal(torch.randn(2), before)


def test_rows_start_anew_by_mask() -> None:
    noise = EpisodeNoise(2)
    noise.seed([1, 2])
    with noise:
        first, second = torch.randn(2), torch.randn(2)
        noise.seed([1, 9], mask=[True, False])
        third = torch.randn(2)
    assert third[0] == first[0]
    assert third[1] not in (first[1], second[1])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        noise.seed([1])


def test_draws_that_cannot_be_told_apart_are_refused() -> None:
    with EpisodeNoise(4), pytest.raises(RaymimicError, match=r"draws 10 .* 4 episodes"):
        D.Normal(torch.zeros(4), 1.0).sample((10,))
    with EpisodeNoise(4), pytest.raises(RaymimicError, match="draws 1 "):
        torch.rand(())


def test_a_generator_of_the_policys_own_is_left_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    with EpisodeNoise(4):
        own = torch.randn(5, generator=generator)
    assert torch.equal(own, torch.randn(5, generator=torch.Generator().manual_seed(0)))


def test_it_works_where_draws_are_replaced_by_python_functions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "randn", lambda *size, **_: torch.zeros(*size))
    monkeypatch.setattr(torch.Tensor, "normal_", lambda x, *_, **__: x.fill_(0.0))
    monkeypatch.setattr(torch, "normal", lambda mean, std: mean + 0 * std)
    with EpisodeNoise(2):
        assert torch.randn(3).tolist() == [0, 0, 0]
        assert D.Normal(torch.ones(2), 1.0).sample().tolist() == [1, 1]
        assert D.Normal(torch.ones(2), 1.0).rsample().tolist() == [1, 1]
        assert torch.randn_like(torch.ones(2)).tolist() == [0, 0]
