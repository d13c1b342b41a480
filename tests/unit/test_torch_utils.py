"""Steps of optimizers, targets and schedules, against numbers worked out by hand."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from checks import assert_same
from tiny import run_process, train_args
from torch import Tensor, nn

import raymimic.utils.torch_utils as TorchUtils
from raymimic.config import Config
from raymimic.errors import CheckpointError, ConfigError


def optim_params(**learning_rate: Any) -> Config:
    rate = {"initial": 0.1, "decay_factor": 0.5, "epoch_schedule": [], **learning_rate}
    return Config(learning_rate=rate, regularization={"L2": 0.0})


def linear(weight: list[float]) -> nn.Linear:
    net = nn.Linear(len(weight), 1, bias=False)
    net.weight.data = torch.tensor([weight])
    return net


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_an_optimizer_steps_as_torchs_does_and_loads_its_state(kind):
    torchs_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    ours_net, torchs_net = linear([1.0, 2.0, 3.0]), linear([1.0, 2.0, 3.0])
    params = {**optim_params(), "optimizer_type": kind, "regularization": {"L2": 0.01}}
    ours = TorchUtils.optimizer_from_optim_params(params, ours_net)
    torchs = torchs_class(torchs_net.parameters(), lr=0.1, weight_decay=0.01, fused=True)

    def step() -> None:
        x = torch.randn(4, 3)
        for net, optimizer in ((ours_net, ours), (torchs_net, torchs)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()

    step()
    assert ours_net.weight.grad is not None
    again = TorchUtils.optimizer_from_optim_params(params, ours_net)
    again.load_state_dict(copy.deepcopy(torchs.state_dict()))  # which would share its tensors
    assert str(again) == str(ours) == str(torchs)
    ours = again
    step()
    assert torch.equal(ours_net.weight, torchs_net.weight)
    assert_same(ours.state_dict(), torchs.state_dict())


@pytest.mark.parametrize("rates", [(0.1, 0.1), (0.1, 0.01)])
def test_optimizers_that_step_together_step_as_each_alone(rates):
    """To the bit; the second network's last layer is reached from the third step on."""
    x = torch.linspace(-1, 1, 6).reshape(3, 2)

    def trained(together: bool) -> list[Any]:
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)) for _ in rates]
        optims = [
            TorchUtils.optimizer_from_optim_params(optim_params(initial=rate), net)
            for rate, net in zip(rates, nets, strict=True)
        ]
        for step in range(4):
            losses = [nets[0](x).square().mean(), nets[1][: 1 + step // 2](x).square().mean()]
            if together:
                TorchUtils.backprop_for_losses(optims, losses, [None, None])
                continue
            for optim, loss in zip(optims, losses, strict=True):
                optim.zero_grad()
                loss.backward()
                optim.step()
        return [state.state_dict() for state in (*nets, *optims)]

    for ours, alone in zip(trained(True), trained(False), strict=True):
        assert_same(ours, alone)


@pytest.mark.slow
def test_a_training_does_not_import_torchs_compiler(hopper, tmp_path):
    code = "import sys\nfrom raymimic.cli import main\n"
    code += "try: main(sys.argv[1:])\nfinally: print('torch._dynamo' in sys.modules)"
    ran = run_process("-c", code, *train_args(hopper), cwd=tmp_path)
    assert ran.status == 0, ran.err
    assert ran.out.splitlines()[-1] == "False", "torch imports it in another way"


def test_soft_and_hard_updates_move_targets():
    source, target = linear([1.0, 2.0]), linear([0.0, 4.0])
    TorchUtils.soft_update(source=source, target=target, tau=0.25)
    assert target.weight.tolist() == [[0.25, 3.5]]
    TorchUtils.hard_update(source=source, target=target)
    assert target.weight.tolist() == source.weight.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "update", [TorchUtils.hard_update, lambda **n: TorchUtils.soft_update(**n, tau=0.1)]
)
def test_targets_follow_in_running_statistics(update):
    source, target = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    source(torch.tensor([[0.0, 2.0], [4.0, 2.0]]))
    update(source=source, target=target)
    torch.testing.assert_close(target.running_mean, torch.tensor([0.2, 0.2]))
    assert target.num_batches_tracked == 1


def test_backprop_steps_and_returns_the_squared_gradient_norm():
    net = linear([1.0, 2.0])
    optim = torch.optim.SGD(net.parameters(), lr=0.5)
    norm = TorchUtils.backprop_for_loss(net=net, optim=optim, loss=net(torch.tensor([3.0, 4.0])))
    assert norm.dim() == 0
    assert norm.item() == 25.0
    assert net.weight.tolist() == [[-0.5, 0.0]]


def test_backprop_clips_and_returns_the_norm_after_clipping():
    net = linear([1.0, 2.0])
    optim = torch.optim.SGD(net.parameters(), lr=1.0)
    loss = net(torch.tensor([3.0, 4.0]))
    norm = TorchUtils.backprop_for_loss(net=net, optim=optim, loss=loss, max_grad_norm=2.0)
    assert norm.item() == pytest.approx(4.0, rel=1e-5)
    torch.testing.assert_close(
        net.weight.data, torch.tensor([[1 - 1.2, 2 - 1.6]]), rtol=0, atol=1e-5
    )

    loss = net(torch.tensor([0.3, 0.4]))
    norm = TorchUtils.backprop_for_loss(net=net, optim=optim, loss=loss, max_grad_norm=2.0)
    assert norm.item() == pytest.approx(0.25)


def test_backprop_of_several_losses_reports_and_clips_each_networks_gradient():
    nets = [linear([1.0, 2.0]), linear([3.0]), linear([5.0]).double()]
    nets[1].requires_grad_(False)
    optims = [torch.optim.SGD(net.parameters(), lr=1.0) for net in nets]
    losses = [
        nets[0](torch.tensor([3.0, 4.0])),
        nets[1](torch.tensor([1.0])),
        nets[2](torch.tensor([2.0], dtype=torch.float64)).float(),
    ]
    norms = TorchUtils.backprop_for_losses(optims, losses, [2.0, 2.0, None])
    assert [norm.item() for norm in norms] == pytest.approx([4.0, 0.0, 4.0], rel=1e-5)
    torch.testing.assert_close(nets[0].weight.data, torch.tensor([[-0.2, 0.4]]))
    assert [nets[1].weight.item(), nets[2].weight.item()] == [3.0, 3.0]


def test_backprop_averages_gradients_before_clipping():
    class Halving:
        """Another worker, with the same share of the batch and no gradient."""

        def average_gradients(self, params: Iterable[nn.Parameter]) -> None:
            for p in params:
                assert p.grad is not None
                p.grad.mul_(0.5)

        def mean(self, x: Tensor) -> Tensor:
            return x

    net = linear([1.0, 2.0])
    optim = torch.optim.SGD(net.parameters(), lr=1.0)
    loss = net(torch.tensor([6.0, 8.0]))
    with TorchUtils.synchronized(Halving()):
        norm = TorchUtils.backprop_for_loss(net=net, optim=optim, loss=loss, max_grad_norm=5.0)
    assert norm.item() == pytest.approx(25.0, rel=1e-5)
    torch.testing.assert_close(net.weight.data, torch.tensor([[-2.0, -2.0]]), rtol=0, atol=1e-5)


def test_backprop_passes_over_parameters_that_the_loss_does_not_reach():
    net = nn.ModuleDict({"used": linear([1.0]), "unused": linear([5.0])})
    optim = torch.optim.Adam(net.parameters(), lr=0.1)
    norm = TorchUtils.backprop_for_loss(net, optim, net["used"](torch.tensor([2.0])))
    assert norm.item() == 4.0
    assert net["unused"].weight.item() == 5.0


def test_frozen_network_passes_gradients_but_gets_none():
    critic, actor = linear([2.0]), linear([3.0])
    with TorchUtils.frozen(critic):
        loss = critic(actor(torch.tensor([1.0])))
    loss.backward()
    assert critic.weight.grad is None
    assert critic.weight.requires_grad
    assert actor.weight.grad.item() == 2.0


def test_frozen_leaves_parameters_alone_where_no_graph_is_made():
    critic = linear([2.0])
    with torch.no_grad(), TorchUtils.frozen(critic):
        assert critic.weight.requires_grad
    critic.requires_grad_(False)
    with TorchUtils.frozen(critic):
        pass
    assert not critic.weight.requires_grad


def test_maybe_no_grad():
    x = torch.ones(1, requires_grad=True)
    with TorchUtils.maybe_no_grad(no_grad=True):
        assert not (2 * x).requires_grad
    with TorchUtils.maybe_no_grad(no_grad=False):
        assert (2 * x).requires_grad


def rates(params: Config, steps: int) -> list[float]:
    net = linear([1.0])
    optim = TorchUtils.optimizer_from_optim_params(params, net)
    scheduler = TorchUtils.lr_scheduler_from_optim_params(params, net=net, optimizer=optim)
    seen = []
    for _ in range(steps):
        seen.append(optim.param_groups[0]["lr"])
        optim.step()
        scheduler.step()
    return seen


def test_multistep_schedule():
    assert rates(optim_params(epoch_schedule=[1, 3]), 5) == pytest.approx(
        [0.1, 0.05, 0.05, 0.025, 0.025]
    )


def test_linear_schedule():
    params = optim_params(scheduler_type="linear", epoch_schedule=[4])
    assert rates(params, 6) == pytest.approx([0.1, 0.0875, 0.075, 0.0625, 0.05, 0.05])


def test_cosine_schedule_with_warmup():
    params = optim_params(scheduler_type="cosine", step_every_batch=True, warmup_steps=2)
    params.num_train_batches, params.num_epochs = 5, 2
    cosine = [0.05 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    assert rates(params, 10) == pytest.approx([0.0, 0.05, *cosine])


@pytest.mark.parametrize(
    "settings",
    [
        {"epoch_schedule": [1, 3]},
        {"scheduler_type": "linear", "epoch_schedule": [4]},
        {"scheduler_type": "cosine", "step_every_batch": True, "warmup_steps": 2},
    ],
)
def test_a_schedule_under_way_goes_on_from_another_initial_rate(settings: dict[str, object]):
    def made(initial: float) -> tuple[torch.optim.Optimizer, object]:
        params = optim_params(**settings)
        params.num_train_batches, params.num_epochs = 5, 2
        params.learning_rate.initial = initial
        optim = TorchUtils.optimizer_from_optim_params(params, linear([1.0]))
        return optim, TorchUtils.lr_scheduler_from_optim_params(params, optim)

    def tail(optim: torch.optim.Optimizer, scheduler: object, steps: int) -> list[float]:
        seen = []
        for _ in range(steps):
            optim.step()
            scheduler.step()
            seen.append(optim.param_groups[0]["lr"])
        return seen

    optim, scheduler = made(0.1)
    tail(optim, scheduler, 3)
    TorchUtils.set_initial_learning_rates(optim, scheduler, [0.03])
    assert tail(optim, scheduler, 4) == pytest.approx(tail(*made(0.03), 7)[3:])


def test_a_rate_without_schedule_is_set():
    optim = TorchUtils.optimizer_from_optim_params(optim_params(), linear([1.0]))
    TorchUtils.set_initial_learning_rates(optim, None, [0.03])
    assert optim.param_groups[0]["lr"] == pytest.approx(0.03)
    assert TorchUtils.initial_learning_rates(optim) == [optim.param_groups[0]["lr"]]


def test_no_schedule_by_default():
    params = optim_params()
    optim = TorchUtils.optimizer_from_optim_params(params, linear([1.0]))
    assert TorchUtils.lr_scheduler_from_optim_params(params, optim) is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (optim_params(scheduler_type="cosin"), "did you mean 'cosine'"),
        (optim_params(scheduler_type="cosine"), "step_every_batch=true"),
        (optim_params(scheduler_type="cosine", step_every_batch=True), "num_train_batches"),
        (optim_params(scheduler_type="linear", epoch_schedule=[1, 2]), "takes one epoch"),
    ],
)
def test_schedules_that_cannot_be(params, message):
    optim = TorchUtils.optimizer_from_optim_params(params, linear([1.0]))
    with pytest.raises(ConfigError, match=message):
        TorchUtils.lr_scheduler_from_optim_params(params, optim)


def test_optimizer_types_and_weight_decay():
    params = optim_params()
    params.regularization.L2 = 0.01
    adam = TorchUtils.optimizer_from_optim_params(params, linear([1.0]))
    assert isinstance(adam, torch.optim.Adam)
    assert not isinstance(adam, torch.optim.AdamW)
    assert adam.param_groups[0]["weight_decay"] == 0.01
    params.optimizer_type = "adamw"
    adamw = TorchUtils.optimizer_from_optim_params(params, linear([1.0]))
    assert isinstance(adamw, torch.optim.AdamW)
    params.optimizer_type = "adan"
    with pytest.raises(ConfigError, match="did you mean 'adam'"):
        TorchUtils.optimizer_from_optim_params(params, linear([1.0]))


def test_states_nest_like_what_they_are_of():
    nets = {"critic": [linear([1.0]), linear([2.0])], "actor": linear([3.0]), "none": None}
    state = TorchUtils.get_state_dict(nets)
    assert state["critic"][1]["weight"].item() == 2.0
    others = {"critic": [linear([0.0]), linear([0.0])], "actor": linear([0.0]), "none": None}
    TorchUtils.load_state_dict(others, state)
    assert [net.weight.item() for net in (*others["critic"], others["actor"])] == [1.0, 2.0, 3.0]
    with pytest.raises(CheckpointError, match="another number"):
        TorchUtils.load_state_dict({**others, "critic": others["critic"][:1]}, state)
    with pytest.raises(CheckpointError, match="holds states of"):
        TorchUtils.load_state_dict({"actor": others["actor"]}, state)


def trained() -> tuple[torch.optim.Optimizer, Any]:
    params = optim_params()
    params.learning_rate.epoch_schedule = [1, 3]
    net = linear([1.0])
    optimizer = TorchUtils.optimizer_from_optim_params(params, net)
    scheduler = TorchUtils.lr_scheduler_from_optim_params(params, optimizer)
    for _ in range(2):
        TorchUtils.backprop_for_loss(net, optimizer, net(torch.ones(1, 1)).mean())
        scheduler.step()
    return optimizer, scheduler


def test_states_of_training_are_loaded_where_they_fit():
    optimizer, scheduler = trained()
    state = TorchUtils.get_state_dict([optimizer, scheduler])
    others = list(trained())
    TorchUtils.load_state_dict(others, state)
    assert others[1].last_epoch == 2
    for key in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(others[0].state_dict()["state"][0][key], state[0]["state"][0][key])


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("state"),
        lambda s: s["param_groups"].clear(),
        lambda s: s["param_groups"][0].update(lr="fast"),
        lambda s: s["param_groups"][0].update(lr=float("nan")),
        lambda s: s["param_groups"][0].update(betas=(0.9,)),
        lambda s: s["param_groups"][0].update(params=[]),
        lambda s: s["param_groups"][0].pop("lr"),
        lambda s: s["state"][0].update(exp_avg=torch.ones(7)),
        lambda s: s["state"][0].update(exp_avg="much"),
        lambda s: s["state"].update({5: {}}),
    ],
)
def test_states_of_another_optimizer_are_refused(change):
    optimizer, _ = trained()
    state = optimizer.state_dict()
    change(state)
    with pytest.raises(CheckpointError, match="does not fit the networks"):
        TorchUtils.load_state_dict(trained()[0], state)


@pytest.mark.parametrize(
    "change",
    [{"step": 5}, {"optimizer": None}, {"last_epoch": "last"}, {"milestones": {}}, {"get_lr": 1}],
)
def test_states_of_another_schedule_are_refused(change):
    _, scheduler = trained()
    with pytest.raises(CheckpointError, match="is not one of a schedule"):
        TorchUtils.load_state_dict(trained()[1], {**scheduler.state_dict(), **change})
