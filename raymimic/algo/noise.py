"""Randomness of rollouts: a stream of its own for each episode of a batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode

from raymimic.errors import RaymimicError

Fill = Callable[[Tensor, Generator], object]


class EpisodeNoise(TorchFunctionMode):
    """Gives each row of a batch random numbers of its own.

    While it is active (`with noise:`), every draw of torch, for `torch.distributions`,
    a scheduler of diffusers or a network of the user's, goes row by row, each row from its
    own generator. So a row depends on its seed alone, and not on the
    other rows. A row may draw k numbers where the batch has `rows`: the leading dimension of
    a draw is `rows` or `rows * k`, a row's own k side by side, as
    `repeat_interleave` puts them (and neither `repeat` nor `Distribution.sample((k,))`).

    Numbers are drawn on the CPU, so that a GPU gives the same. Draws that bring a
    `generator` along are left alone.

    Args:
        rows: how many.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self._generators = [Generator() for _ in range(rows)]
        self._drawing = [True] * rows
        self.seed([0] * rows)

    def seed(self, seeds: Sequence[int], mask: Iterable[bool] | None = None) -> None:
        """Starts new episodes in rows.

        Args:
            seeds: `[rows]`.
            mask: `[rows]`, those that start; None: all.

        Raises:
            ValueError: if there are not as many seeds as rows.
        """
        chosen = [True] * self.rows if mask is None else mask
        for generator, seed, starts in zip(self._generators, seeds, chosen, strict=True):
            if starts:
                generator.manual_seed(int(seed))

    @contextmanager
    def only(self, mask: Tensor) -> Iterator[None]:
        """Draws that only some rows need: the others get numbers too, but do not advance.

        Args:
            mask: `[rows]` bool.
        """
        outer = self._drawing
        self._drawing = [a and b for a, b in zip(outer, mask.tolist(), strict=True)]
        try:
            yield
        finally:
            self._drawing = outer

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        draw = _DRAWS.get(getattr(func, "__name__", ""))  # by name: a test may replace functions
        if draw is None or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name != "generator"}
        return draw(self, func, *args, **kwargs)

    def blocks(self, shape: Sequence[int]) -> Iterator[tuple[slice, Generator]]:
        """Yields each row's part of a draw's leading dimension, and its generator.

        Raises:
            RaymimicError: if rows do not divide it.
        """
        size = shape[0] if shape else 1
        k, rest = divmod(size, self.rows)
        if rest:
            raise RaymimicError(
                f"the policy draws {size} random numbers side by side for {self.rows} episodes: "
                "the leading dimension of a draw must be the batch's, or a multiple of it with "
                "each episode's own numbers next to each other (repeat_interleave)"
            )
        for row, (generator, drawing) in enumerate(
            zip(self._generators, self._drawing, strict=True)
        ):
            yield slice(row * k, row * k + k), generator if drawing else generator.clone_state()

    def fill(self, x: Tensor, fill: Fill) -> Tensor:
        """Fills a tensor `[rows * k, ...]` row by row; returns it."""
        drawn = x if x.device.type == "cpu" else torch.empty_like(x, device="cpu")
        for block, generator in self.blocks(x.shape):
            fill(drawn[block], generator)
        return x if drawn is x else x.copy_(drawn)


def _empty(args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Returns the tensor that a function would make, unfilled."""
    if args and isinstance(args[0], Tensor):  # randn_like and so on
        return torch.empty_like(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))
    kept = {name: kwargs[name] for name in ("size", "dtype", "device") if name in kwargs}
    return torch.empty(*args, **kept)


def _randn(noise: EpisodeNoise, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return noise.fill(_empty(args, kwargs), lambda x, g: x.normal_(generator=g))


def _rand(noise: EpisodeNoise, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    return noise.fill(_empty(args, kwargs), lambda x, g: x.uniform_(generator=g))


def _randint(noise: EpisodeNoise, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    bounds = [x for x in args if isinstance(x, int)]  # ([low,] high, size)
    high = kwargs["high"] if "high" in kwargs else bounds.pop()
    low = kwargs.get("low", bounds[0] if bounds else 0)
    others = [x for x in args if not isinstance(x, int)]
    if not (others and isinstance(others[0], Tensor)):
        kwargs = {**kwargs, "dtype": kwargs.get("dtype") or torch.int64}
    empty = _empty(others, kwargs)
    return noise.fill(empty, lambda x, g: x.random_(low, high, generator=g))


def _normal(
    noise: EpisodeNoise, func: Any, mean: Any = 0.0, std: Any = 1.0, *size: Any, **kwargs: Any
) -> Tensor:
    if not isinstance(mean, Tensor) and not isinstance(std, Tensor):
        return _randn(noise, torch.randn, *size, **kwargs).mul_(std).add_(mean)
    eps: Tensor = torch.empty_like(mean + std)  # both broadcast
    return noise.fill(eps, lambda x, g: x.normal_(generator=g)).mul_(std).add_(mean)


def _in_place(noise: EpisodeNoise, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.normal_` and its like."""
    return noise.fill(tensor, lambda block, g: func(block, *args, generator=g, **kwargs))


def _samples(noise: EpisodeNoise, func: Any, *args: Any, **kwargs: Any) -> Tensor:
    """`torch.multinomial` and its like: tensors of parameters to a tensor of samples."""
    if not args:
        args = (kwargs.pop("input"),)
    pieces = []
    for block, generator in noise.blocks(args[0].shape):
        own = [x[block].cpu() if isinstance(x, Tensor) else x for x in args]
        pieces.append(func(*own, generator=generator, **kwargs))
    return torch.cat(pieces).to(args[0].device)


def _bernoulli_(noise: EpisodeNoise, func: Any, x: Tensor, p: Any = 0.5) -> Tensor:
    return x.copy_(_samples(noise, torch.bernoulli, torch.as_tensor(p).expand(x.shape)))


def _gumbel_softmax(
    noise: EpisodeNoise,
    func: Any,
    logits: Tensor,
    tau: float = 1.0,
    hard: bool = False,
    eps: float = 1e-10,
    dim: int = -1,
) -> Tensor:
    """The one function of `torch.nn.functional` that draws by itself, out of a mode's sight."""
    exponential = noise.fill(torch.empty_like(logits), lambda x, g: x.exponential_(generator=g))
    soft = ((logits - exponential.log()) / tau).softmax(dim)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(dim, soft.argmax(dim, keepdim=True), 1.0)
    return one_hot - soft.detach() + soft


_DRAWS: dict[str, Callable[..., Tensor]] = {
    "randn": _randn,
    "randn_like": _randn,
    "rand": _rand,
    "rand_like": _rand,
    "randint": _randint,
    "randint_like": _randint,
    "normal": _normal,
    "normal_": _in_place,
    "uniform_": _in_place,
    "exponential_": _in_place,
    "random_": _in_place,
    "log_normal_": _in_place,
    "cauchy_": _in_place,
    "geometric_": _in_place,
    "bernoulli_": _bernoulli_,
    "bernoulli": _samples,
    "multinomial": _samples,
    "poisson": _samples,
    "binomial": _samples,
    "_standard_gamma": _samples,
    "_sample_dirichlet": _samples,
    "gumbel_softmax": _gumbel_softmax,
}
