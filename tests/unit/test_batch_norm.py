"""BatchNorm over the samples of all workers, which are threads here."""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raymimic.algo import algo_factory
from raymimic.algo.optimization import soft_update
from raymimic.config import config_factory
from raymimic.errors import ConfigError
from raymimic.models.obs_nets import EncoderCore, register_encoder_core
from raymimic.models.vision.batch_norm import GlobalBatchNorm2d
from raymimic.ranks import synchronized

CHANNELS, HEIGHT, WIDTH = 5, 3, 4
CUTS = [(8,), (4, 4), (3, 3, 2), (1, 7), (8, 0)]


class Exchange:
    """Lets threads exchange tensors, and counts how often."""

    def __init__(self, world_size: int) -> None:
        self.slots: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=60)
        self.count = 0


class ThreadSync:
    """A rank that is a thread."""

    def __init__(self, exchange: Exchange, rank: int, weight: float) -> None:
        self.exchange, self.rank, self.weight = exchange, rank, weight
        self.world_size = len(exchange.slots)

    def average_gradients(self, params: Iterable[nn.Parameter]) -> None:
        raise AssertionError("BatchNorm takes no steps")

    def mean(self, x: Tensor) -> Tensor:
        raise AssertionError("BatchNorm needs no means of ranks")

    def gather(self, x: Tensor) -> Tensor:
        assert not x.requires_grad
        self.exchange.slots[self.rank] = x.clone()
        self.exchange.barrier.wait()
        gathered = torch.stack(self.exchange.slots)
        self.exchange.count += self.rank == 0
        self.exchange.barrier.wait()
        return gathered


def on_ranks(counts: Sequence[int], work: Callable[[int], Any]) -> tuple[list[Any], int]:
    """Runs `work(rank)` on a thread for each rank; returns the results and exchanges."""
    exchange = Exchange(len(counts))

    def rank(number: int) -> Any:
        sync = ThreadSync(exchange, number, counts[number] / sum(counts))
        try:
            with synchronized(sync):
                return work(number)
        except BaseException:
            exchange.barrier.abort()
            raise

    with ThreadPoolExecutor(len(counts)) as pool:
        return list(pool.map(rank, range(len(counts)))), exchange.count


def made(cls: type[nn.BatchNorm2d], **kwargs: Any) -> nn.BatchNorm2d:
    """A layer whose parameters and buffers are not those of the beginning."""
    g = torch.Generator().manual_seed(0)
    norm = cls(CHANNELS, dtype=torch.float64, **kwargs)
    for value in norm.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=g, dtype=value.dtype) + 0.5)
    return norm


class Net(nn.Module):
    """The layer twice in a row, so that gradients flow through one's statistics to the other."""

    def __init__(self, cls: type[nn.BatchNorm2d], **kwargs: Any) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.mix = nn.Parameter(torch.randn(CHANNELS, CHANNELS, generator=g, dtype=torch.float64))
        self.norm = made(cls, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bchw,cd->bdhw", x, self.mix)
        return self.norm(self.norm(x).sigmoid() + x)


def batch() -> tuple[Tensor, Tensor]:
    """Inputs, and weights of the outputs in the loss."""
    g = torch.Generator().manual_seed(2)
    shape = (8, CHANNELS, HEIGHT, WIDTH)
    x = torch.randn(shape, generator=g, dtype=torch.float64) * 2.0 + 10.0
    return x, torch.randn(shape, generator=g, dtype=torch.float64)


def learned(net: Net, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and state after a forward and backward pass on some rows."""
    x = x.clone().requires_grad_(True)
    y = net(x)
    # A mean over rows, which are of the same size; not linear, so that all terms are needed.
    loss = (y * weights).square().flatten(1).sum(1).mean() if len(x) else y.sum()
    loss.backward()
    grads = {f"grad of {name}": p.grad for name, p in net.named_parameters()}
    return {"y": y.detach(), "x": x.grad, **grads, **net.state_dict()}


@pytest.mark.parametrize("counts", CUTS, ids=str)
@pytest.mark.parametrize("kwargs", [{}, {"momentum": None}, {"affine": False}], ids=str)
def test_any_cut_of_a_batch_gives_the_numbers_of_one_worker(counts, kwargs):
    x, weights = batch()
    alone = learned(Net(nn.BatchNorm2d, **kwargs), x, weights)
    xs, ws = x.split(counts), weights.split(counts)
    ranks, exchanges = on_ranks(
        counts, lambda r: learned(Net(GlobalBatchNorm2d, **kwargs), xs[r], ws[r])
    )
    shares = [n / 8 for n in counts]
    assert exchanges == (4 if len(counts) > 1 else 0)
    for key, expected in alone.items():
        values = [rank[key] for rank in ranks]
        if key == "x":  # of rank r's own loss: the global one weights it by its share
            value = torch.cat([v * share for v, share in zip(values, shares, strict=True)])
        elif key == "y":
            value = torch.cat(values)
        elif key.startswith("grad of"):
            value = sum(v * s for v, s in zip(values, shares, strict=True) if s)
        else:
            assert all(torch.equal(v, values[0]) for v in values), key  # running statistics
            value = values[0]
        torch.testing.assert_close(
            value, expected, rtol=1e-10, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}"
        )


def test_a_row_that_does_not_count_changes_nothing():
    x, weights = batch()
    alone = learned(Net(nn.BatchNorm2d), x, weights)
    foreign = torch.full_like(x[:1], 1e6)
    xs, ws = [x[:5], foreign, x[5:]], [weights[:5], weights[:1], weights[5:]]
    ranks, _ = on_ranks((5, 0, 3), lambda r: learned(Net(GlobalBatchNorm2d), xs[r], ws[r]))
    torch.testing.assert_close(torch.cat([ranks[0]["y"], ranks[2]["y"]]), alone["y"])
    torch.testing.assert_close(
        torch.cat([ranks[0]["x"] * 5 / 8, ranks[2]["x"] * 3 / 8]), alone["x"]
    )
    for rank in ranks:
        for key in ("norm.running_mean", "norm.running_var", "norm.num_batches_tracked"):
            torch.testing.assert_close(rank[key], alone[key])
        assert all(x.isfinite().all() for x in rank.values())


def test_evaluation_uses_running_statistics_and_exchanges_nothing():
    x, _ = batch()
    expected = made(nn.BatchNorm2d).eval()(x)
    ranks, exchanges = on_ranks((5, 3), lambda r: made(GlobalBatchNorm2d).eval()(x))
    assert exchanges == 0
    assert all(torch.equal(rank, expected) for rank in ranks)


def test_passes_without_gradients_move_the_running_statistics_in_training_alone():
    x, _ = batch()
    alone = made(nn.BatchNorm2d)
    expected = alone(x).detach()

    @torch.no_grad()
    def work(rank: int) -> tuple[Tensor, Tensor]:
        norm = made(GlobalBatchNorm2d)
        y = norm(x[:6] if rank == 0 else x[6:])
        after = norm.running_var.clone()
        norm.eval()(x)
        assert torch.equal(norm.running_var, after)
        return y, after

    ranks, exchanges = on_ranks((6, 2), work)
    assert exchanges == 1
    torch.testing.assert_close(torch.cat([y for y, _ in ranks]), expected)
    torch.testing.assert_close(ranks[0][1], alone.running_var)


def test_one_worker_computes_as_torch_to_the_bit():
    x, weights = batch()
    alone = learned(Net(nn.BatchNorm2d), x, weights)
    (one,), exchanges = on_ranks((8,), lambda r: learned(Net(GlobalBatchNorm2d), x, weights))
    assert exchanges == 0
    for found in (one, learned(Net(GlobalBatchNorm2d), x, weights)):  # the latter outside of any
        assert all(torch.equal(value, alone[key]) for key, value in found.items())


def test_a_large_mean_costs_the_variance_no_digits():
    x = (batch()[0] - 10.0 + 3000.0).float()  # whose square has 7 digits before the point
    expected = x.double().var(dim=(0, 2, 3))

    def work(rank: int) -> Tensor:
        norm = GlobalBatchNorm2d(CHANNELS, momentum=1.0)
        norm(x[:3] if rank == 0 else x[3:])
        return norm.running_var

    ranks, _ = on_ranks((3, 5), work)
    torch.testing.assert_close(ranks[0].double(), expected, rtol=1e-4, atol=0.0)


def test_images_of_half_precision_and_of_channels_last():
    x, weights = batch()
    half = (x - 10.0).to(torch.bfloat16).to(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(CHANNELS)
    whole = half.float().requires_grad_(True)
    (norm(whole) * weights).square().sum().backward()

    def work(rank: int) -> tuple[Tensor, Tensor]:
        rows = half[:6] if rank == 0 else half[6:]
        rows = rows.detach().requires_grad_(True)
        y = GlobalBatchNorm2d(CHANNELS)(rows)
        assert y.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=torch.channels_last)
        own = weights[:6] if rank == 0 else weights[6:]
        ((y * own).square().sum() / len(rows)).backward()
        return y, rows.grad

    ranks, _ = on_ranks((6, 2), work)
    expected = norm(half.float()).to(torch.bfloat16)
    torch.testing.assert_close(torch.cat([y for y, _ in ranks]), expected, rtol=0.02, atol=0.02)
    grad = torch.cat([g * n for (_, g), n in zip(ranks, (6, 2), strict=True)]) / 8
    torch.testing.assert_close(grad.float(), whole.grad / 8, rtol=0.05, atol=0.05)


def test_state_is_that_of_torch_and_targets_follow():
    source, target = made(GlobalBatchNorm2d), GlobalBatchNorm2d(CHANNELS, dtype=torch.float64)
    assert list(source.state_dict()) == list(nn.BatchNorm2d(CHANNELS).state_dict())
    source(batch()[0])
    weight = target.weight.clone()
    soft_update(source, target, 0.25)
    assert torch.equal(target.running_mean, source.running_mean)
    assert torch.equal(target.running_var, source.running_var)
    assert target.num_batches_tracked == 1
    torch.testing.assert_close(target.weight, weight.lerp(source.weight, 0.25))


def test_flat_inputs_are_refused():
    with pytest.raises(ValueError, match="expected 4D input"):
        on_ranks((4, 4), lambda r: made(GlobalBatchNorm2d)(torch.zeros(4, CHANNELS)))


@register_encoder_core
class NormedCore(EncoderCore):
    """The mean of normalised images."""

    output_dim = 3

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__(input_shape)
        self.norm = GlobalBatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).amax((2, 3))


class TwinSync:
    """A rank whose only fellow has the same rows."""

    world_size, weight, gathers = 2, 0.5, 0

    def gather(self, x: Tensor) -> Tensor:
        self.gathers += 1
        return torch.stack([x, x])

    def average_gradients(self, params: Iterable[nn.Parameter]) -> None:
        pass

    def mean(self, x: Tensor) -> Tensor:
        return x.detach().mean()


def test_losses_are_computed_among_the_workers_of_the_algorithm():
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = []
    config.observation.modalities.obs.rgb = ["camera"]
    config.observation.encoder.rgb.core_class = "NormedCore"
    config.algo.actor_layer_dims = [4]
    algo = algo_factory("bc", config, {"camera": [3, 4, 4]}, 2, "cpu")
    batch = {"obs": {"camera": torch.rand(5, 3, 4, 4)}, "actions": torch.zeros(5, 2)}
    inputs = {**batch, "goal_obs": None}
    sync = algo.grad_sync = TwinSync()
    algo.set_train()
    algo.train_on_batch(inputs, epoch=1)
    assert sync.gathers == 1  # the images need no gradient
    algo.set_eval()
    algo.train_on_batch(inputs, epoch=1, validate=True)
    assert sync.gathers == 1


def test_a_single_number_of_each_channel_has_no_variance() -> None:
    net = GlobalBatchNorm2d(3)
    x = torch.ones(1, 3, 1, 1)
    with pytest.raises(ConfigError, match=r"one sample, .* raise train.batch_size to at least 2"):
        net(x)
    assert net(x.expand(2, -1, -1, -1)).isfinite().all()
    assert net.eval()(x).isfinite().all()
