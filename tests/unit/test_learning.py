"""Updates: how losses become steps, for built-in algorithms and for ones that extend them."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from raymimic import tensors
from raymimic.algo import BC, IQL, Algo, PolicyAlgo, algo_factory, registered_algos
from raymimic.algo import optimization as TorchUtils
from raymimic.algo.learning import Learner, Losses, Update
from raymimic.config import config_factory
from raymimic.errors import ConfigError
from raymimic.training.worker import fill_in_schedule_lengths

torch.set_num_threads(1)

BATCH, OBS, ACTIONS = 6, 3, 2


def make(cls: type[Algo], name: str, **settings: Any) -> Algo:
    config = config_factory(name)
    config.observation.modalities.obs.low_dim = ["flat"]
    for path, value in settings.items():
        config.set_path(path.replace("__", "."), value)
    torch.manual_seed(0)
    algo = cls(
        config.algo, config.observation, config, {"flat": [OBS]}, ACTIONS, torch.device("cpu")
    )
    algo.set_train()
    return algo


def make_batch() -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    return {
        "obs": {"flat": torch.randn(BATCH, OBS, generator=g)},
        "next_obs": {"flat": torch.randn(BATCH, OBS, generator=g)},
        "goal_obs": None,
        "actions": torch.rand(BATCH, ACTIONS, generator=g),
        "rewards": torch.randn(BATCH, 1, generator=g),
        "dones": torch.zeros(BATCH, 1),
    }


def steps_taken(algo: Algo) -> int:
    states = algo.optimizers["policy"].state.values()
    return int(max((s["step"] for s in states), default=0))


class Extends(BC):
    """A user's: adds a metric to a step of the class above."""

    def train_on_batch(self, batch: Any, epoch: int, validate: bool = False) -> dict[str, Any]:
        info = super().train_on_batch(batch, epoch, validate)
        return {**info, "mine": torch.ones(())}


class StepsByItself(BC):
    """A user's, as written for robomimic: goes round the class that it extends."""

    def train_on_batch(self, batch: Any, epoch: int, validate: bool = False) -> dict[str, Any]:
        with tensors.maybe_no_grad(no_grad=validate):
            info = super(BC, self).train_on_batch(batch, epoch, validate=validate)
            info["loss"] = self.compute_losses(batch)["loss"]
            if not validate:
                TorchUtils.backprop_for_loss(
                    net=self.nets["policy"], optim=self.optimizers["policy"], loss=info["loss"]
                )
        return info


@pytest.mark.parametrize("cls", [BC, Extends, StepsByItself])
def test_an_algorithm_that_extends_train_on_batch_takes_each_step_once(cls):
    algo, plain = make(cls, "bc"), make(BC, "bc")
    for _ in range(3):
        info = algo.train_on_batch(make_batch(), epoch=1)
        plain.train_on_batch(make_batch(), epoch=1)
    assert steps_taken(algo) == 3
    assert ("mine" in info) == (cls is Extends)
    for own, other in zip(algo.nets.parameters(), plain.nets.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0)
    assert algo.train_on_batch(make_batch(), epoch=1, validate=True)["loss"].grad_fn is None
    assert steps_taken(algo) == 3


def test_a_mixin_that_takes_the_steps_is_left_in_place():
    class Mixin:
        def train_on_batch(self, batch: Any, epoch: int, validate: bool = False) -> dict[str, Any]:
            return {"loss": torch.ones(())}

    class Mixed(Mixin, BC):
        def updates(self) -> tuple[Update, ...]:
            return tuple(super().updates())

    algo = make(Mixed, "bc")
    assert set(algo.train_on_batch(make_batch(), epoch=1)) == {"loss"}
    assert steps_taken(algo) == 0


class TwoNets(PolicyAlgo):
    """Two networks in one update, of which the second one has a gate and a limit of its own."""

    counted = 0

    def _create_networks(self) -> None:
        self.nets["policy"] = nn.Linear(OBS, ACTIONS)
        self.nets["value"] = nn.Linear(OBS, 1)
        self.nets["dual"] = nn.Linear(1, 1)

    def _create_optimizers(self) -> None:
        super()._create_optimizers()
        for name in ("value", "dual"):
            self.optimizers[name] = torch.optim.SGD(self.nets[name].parameters(), lr=1.0)

    def updates(self) -> tuple[Update, ...]:
        policy = Learner("policy", "policy_norms", then=self.count)
        value = Learner("value", "value_norms", max_grad_norm=0.5)
        return (Update((policy, value, Learner("dual", "dual_norms")), self.losses),)

    def losses(self, batch: dict[str, Any], epoch: int) -> Losses:
        obs = batch["obs"]["flat"]
        of = {
            "policy": self.nets["policy"](obs).square().mean(),
            "value": (self.nets["value"](obs) - 100.0).square().mean(),
            "dual": self.nets["dual"](torch.ones(1, 1)).sum(),
        }
        return Losses(of, {"loss": of["policy"]})

    def count(self) -> None:
        self.counted += 1


def test_learners_of_one_update_step_on_their_own_gates_and_limits():
    algo = make(TwoNets, "bc")
    with algo.optim_params.unlocked():
        algo.optim_params["value"] = {"start_epoch": 2, "end_epoch": 3}
    by_epoch = {}
    for epoch in (1, 2, 3):
        before = copy.deepcopy(algo.nets.state_dict())
        info = algo.train_on_batch(make_batch(), epoch)
        moved = {
            k.split(".")[0] for k, x in algo.nets.state_dict().items() if (x != before[k]).any()
        }
        by_epoch[epoch] = moved
        assert {"policy_norms", "dual_norms"} <= set(info)
        if epoch == 2:
            assert info["value_norms"].item() == pytest.approx(0.25, rel=1e-4)  # squared
    assert by_epoch == {
        1: {"policy", "dual"},
        2: {"policy", "value", "dual"},
        3: {"policy", "dual"},
    }
    assert algo.counted == 3


def test_a_learner_without_settings_of_its_own_may_come_first():
    algo = make(TwoNets, "bc")
    (update,) = algo.updates()
    alone = Update((Learner("dual", "dual_norms"),), update.losses)
    algo.updates = lambda: (alone,)  # type: ignore[method-assign]
    assert "dual_norms" in algo.train_on_batch(make_batch(), epoch=1)


def test_the_config_limits_every_network_that_it_names_but_no_dual_variable():
    algo = make(TwoNets, "bc", train__max_grad_norm=1e-3)
    info = algo.train_on_batch(make_batch(), epoch=1)
    assert info["policy_norms"].item() == pytest.approx(1e-6, rel=1e-2)
    assert info["dual_norms"].item() == pytest.approx(2.0)


def test_one_update_exchanges_gradients_once():
    class Counting:
        calls = 0

        def average_gradients(self, params: Any) -> None:
            self.calls += 1

        def mean(self, x: torch.Tensor) -> torch.Tensor:
            return x.detach().mean()

    algo = make(IQL, "iql")
    algo.grad_sync = sync = Counting()
    algo.train_on_batch(make_batch(), epoch=1)
    assert sync.calls == 1


@pytest.mark.parametrize("name", registered_algos())
def test_losses_change_no_parameter(name):
    """So that they can be computed without the steps that follow."""
    config = config_factory(name)
    built_in = type(config).__module__.startswith("raymimic.")
    if name in ("hbc", "iris") or not built_in:
        pytest.skip("made of others, or steps by itself")
    config.observation.modalities.obs.low_dim = ["flat"]
    if "subgoal" in config.observation.modalities:
        config.observation.modalities.subgoal.low_dim = ["flat"]
    fill_in_schedule_lengths(config, num_steps=10)
    algo = algo_factory(name, config, {"flat": [OBS]}, ACTIONS, "cpu")
    algo.set_train()
    length = config.train.seq_length + config.train.frame_stack - 1
    g = torch.Generator().manual_seed(0)
    raw = {
        "obs": {"flat": torch.randn(BATCH, length, OBS, generator=g)},
        "next_obs": {"flat": torch.randn(BATCH, length, OBS, generator=g)},
        "actions": torch.rand(BATCH, length, ACTIONS, generator=g),
        "next_actions": torch.rand(BATCH, length, ACTIONS, generator=g),
        "rewards": torch.randn(BATCH, length, generator=g),
        "dones": torch.zeros(BATCH, length),
    }
    batch = algo.process_batch_for_training(raw)
    before = copy.deepcopy(algo.nets.state_dict())
    for update in algo.updates():
        losses = update.losses(batch, 1)
        assert {learner.name for learner in update.learners} == set(losses.of)
        for learner in update.learners:
            of = losses.of[learner.name]
            for loss in [of] if isinstance(of, torch.Tensor) else of:
                assert loss.dim() == 0
                assert loss.requires_grad
    after = algo.nets.state_dict()
    assert all(torch.equal(x, after[k]) for k, x in before.items())


def test_a_target_follows_buffers_that_were_moved():
    source, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    copy_of_source = TorchUtils.TargetNetwork(source, target)
    source.double(), target.double()  # replaces buffers
    source(torch.tensor([[0.0, 2.0], [4.0, 2.0]], dtype=torch.float64))
    copy_of_source.follow(0.1)
    expected = torch.tensor([0.2, 0.2], dtype=torch.float64)
    torch.testing.assert_close(target.running_mean, expected)


@pytest.mark.parametrize("name", ["fit_config", "robomimic_lacks"])
def test_methods_of_0_1_0_under_their_old_names_are_refused(name):
    with pytest.raises(ConfigError, match=rf"Mine\.{name} is called \w+ now: rename it"):
        type("Mine", (Algo,), {name: classmethod(lambda cls, *args: None)})
