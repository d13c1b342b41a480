"""IRIS: hierarchical behavioural cloning that chooses among subgoals by their value."""

from typing import Any

from torch import Tensor

from raymimic.algo.algo import Algo, ObsDict, ValueAlgo, register_algo_factory_func
from raymimic.algo.composite import config_of
from raymimic.algo.gl import ValuePlanner
from raymimic.algo.hbc import HBC
from raymimic.config.base_config import BaseConfig
from raymimic.config.config import Config
from raymimic.data.reads import Reads


@register_algo_factory_func("iris")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """IRIS has one class; planner, value and actor choose theirs."""
    return IRIS, {}


class IRIS(HBC, ValueAlgo):
    """Implicit reinforcement without interaction at scale (https://arxiv.org/abs/1911.05321).

    HBC whose planner samples many subgoals and pursues the one with the highest value, which BCQ
    learns from the rewards of the demonstrations: argmax_g V(g), g ~ p(s_{t+H} | s_t).
    So it makes the best of demonstrations that are not all good. After
    `robomimic/algo/iris.py`; deviations as of HBC, and `mode="cascade"`, with which
    robomimic's IRIS stops with an error, works.

    Args:
        value_algo_class: the value network's class; None: that of its algorithm.
        args: see `HBC`.
        kwargs: see `HBC`.
    """

    planner: ValuePlanner

    def __init__(
        self, *args: Any, value_algo_class: type[Algo] | None = None, **kwargs: Any
    ) -> None:
        self._value_class = value_algo_class
        super().__init__(*args, **kwargs)

    @classmethod
    def _planner_reads(cls, config: BaseConfig) -> Reads:
        return ValuePlanner.reads(config_of(config, config.algo.value_planner))

    def _create_planner(self) -> ValuePlanner:
        return ValuePlanner(
            algo_config=self.algo_config.value_planner,
            obs_config=self.obs_config.value_planner,
            global_config=self.global_config,
            obs_key_shapes=self.obs_key_shapes,
            ac_dim=self.ac_dim,
            device=self.device,
            planner_algo_class=self._classes["planner"],
            value_algo_class=self._value_class,
        )

    @property
    def discount(self) -> float:
        """Discount of the value after the (n-step) reward, the planner's."""
        return self.planner.discount

    @discount.setter
    def discount(self, value: float) -> None:
        self.planner.discount = value

    def get_state_value(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Estimates the values `[B, 1]` of states `{key: [B, *shape]}`."""
        return self.planner.get_state_value(obs_dict, goal_dict)

    def get_state_action_value(
        self, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Estimates the values `[B, 1]` of actions `[B, A]` in states."""
        return self.planner.get_state_action_value(obs_dict, actions, goal_dict)
