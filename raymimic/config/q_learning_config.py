"""Settings shared by the algorithms that learn values by bootstrapping."""

from collections.abc import Iterator
from math import inf
from typing import ClassVar

from raymimic.config.base_config import BaseConfig


class QLearningConfig(BaseConfig):
    """Base of the configs of BCQ, CQL, IQL and TD3-BC: discounted returns and targets."""

    __slots__ = ()

    SEES_STACKS = False
    RANGES = {"algo.discount": (0, 1), "algo.n_step": (1, inf), "algo.target_tau": (0, 1)}
    PERTURBABLE: ClassVar[tuple[str, ...]] = ("algo.target_tau",)

    def algo_config(self) -> None:
        """Fills the part of `algo` that all have."""
        self.algo.discount = 0.99  # discount of rewards, per environment step
        self.algo.n_step = 1  # rewards summed before the bootstrap value
        self.algo.target_tau = 0.005  # target = tau * network + (1 - tau) * target, at each update
        self.algo.infinite_horizon = False  # scale terminal rewards by 1 / (1 - discount)

    def problems(self) -> Iterator[str]:
        """Looks at the returns."""
        yield from super().problems()
        algo, seq_length = self.algo, self.train.seq_length
        if algo.n_step > seq_length:
            yield (
                f"'{algo.dotted('n_step')}' is {algo.n_step} but 'train.seq_length' is "
                f"{seq_length}: raise 'train.seq_length' to {algo.n_step}"
            )
        if algo.infinite_horizon and algo.discount == 1:
            yield (
                f"'{algo.dotted('infinite_horizon')}' divides by 1 - discount: set "
                f"'{algo.dotted('discount')}' below 1"
            )
