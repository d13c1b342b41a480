"""Orders are pure functions of seed and epoch, and every sample is as likely as any other."""

import numpy as np
import pytest
import torch
from demo_files import write_demos

from raymimic.config.base_config import config_factory
from raymimic.data.reads import one_window
from raymimic.data.sampler import EpochSampler, ValidationSampler
from raymimic.data.store import shard_owners
from raymimic.data.training_data import make_loaders
from raymimic.errors import ConfigError, DatasetError

CPU = torch.device("cpu")


def split(batches):
    return [part.tolist() for part in torch.split(batches.indices, batches.sizes.tolist())]


def config_for(path, *, batch_size=5, steps=None, shard=False, valid=None):
    config = config_factory("td3_bc")
    config.train.data = str(path)
    config.train.batch_size = batch_size
    config.experiment.epoch_every_n_steps = steps
    config.observation.modalities.obs.low_dim = ["flat"]
    config.ray.data_placement = "shard" if shard else "replicate"
    if valid is not None:
        config.experiment.validate = True
        config.experiment.validation_epoch_every_n_steps = None
        config.train.hdf5_filter_key, config.train.hdf5_validation_filter_key = valid
    return config


def rows_of(batch):
    """Rows that a batch holds, by the number that is written into each observation."""
    return batch["obs"]["flat"][:, 0, 0].to(torch.int64).tolist()


# The global order


@pytest.mark.parametrize("steps", [None, 4])
def test_order_is_a_function_of_seed_and_epoch(steps):
    fresh = EpochSampler([23], 5, seed=7, steps_per_epoch=steps)
    used = EpochSampler([23], 5, seed=7, steps_per_epoch=steps)
    for epoch in range(1, 30):
        used.epoch(epoch)
    for epoch in (3, 17, 1):  # in any order, from any sampler
        assert torch.equal(fresh.epoch(epoch).indices, used.epoch(epoch).indices)
    assert not torch.equal(fresh.epoch(1).indices, fresh.epoch(2).indices)
    other = EpochSampler([23], 5, seed=8, steps_per_epoch=steps)
    assert not torch.equal(fresh.epoch(1).indices, other.epoch(1).indices)


def test_epoch_of_a_pass_repeats_nothing_and_drops_the_rest():
    sampler = EpochSampler([23], 5, seed=0)
    seen = np.zeros(23)
    for epoch in range(1, 101):
        batches = sampler.epoch(epoch)
        assert sampler.num_steps == len(batches.sizes) == 4
        assert batches.sizes.tolist() == batches.totals.tolist() == [5] * 4
        assert len(set(batches.indices.tolist())) == 20
        seen[batches.indices.numpy()] += 1
    assert seen.min() > 70  # the dropped samples vary: each is in 20/23 of the epochs


def test_endless_stream_of_permutations():
    sampler = EpochSampler([23], 5, seed=0, steps_per_epoch=7)
    stream = torch.cat([sampler.epoch(epoch).indices for epoch in range(1, 24)])
    assert len(stream) == 23 * 7 * 5
    for i in range(35):  # 23 epochs of 35 samples are exactly 35 permutations
        assert sorted(stream[23 * i : 23 * (i + 1)].tolist()) == list(range(23))


def test_negative_seed():
    assert len(EpochSampler([9], 3, seed=-1).epoch(1).indices) == 9


def test_batch_larger_than_the_data():
    with pytest.raises(ConfigError, match=r"train\.batch_size is 24, but the training data has 23"):
        EpochSampler([23], 24, seed=0)


def test_weighted_datasets():
    # Of 30 and 10 samples with weights 1 and 9: the first has 30 / 120 of the draws.
    sampler = EpochSampler([30, 10], 10, seed=0, steps_per_epoch=2000, weights=[1.0, 9.0])
    counts = np.bincount(sampler.epoch(1).indices.numpy(), minlength=40)
    assert counts[:30].sum() / 20000 == pytest.approx(0.25, abs=0.015)
    assert counts[:30] / 20000 == pytest.approx(0.25 / 30, rel=0.3)
    assert counts[30:] / 20000 == pytest.approx(0.75 / 10, rel=0.1)
    assert torch.equal(sampler.epoch(5).indices, sampler.epoch(5).indices)
    assert not torch.equal(sampler.epoch(5).indices, sampler.epoch(6).indices)


def test_weights_by_dataset_size(tmp_path):
    paths = [write_demos(tmp_path / "a.hdf5", (30,)), write_demos(tmp_path / "b.hdf5", (10,))]
    config = config_for("", steps=1000)
    config.train.data = [{"path": str(p), "weight": w} for p, w in zip(paths, (1, 3), strict=True)]
    config.train.normalize_weights_by_ds_size = True
    loader = make_loaders(config, one_window(config.train, frozenset()), CPU).train
    first = sum((batch["index"] < 30).sum().item() for batch, _, _ in loader.epoch(1))
    assert first / 5000 == pytest.approx(0.25, abs=0.03)


# The workers' parts


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("steps", [None, 6])
def test_parts_of_all_workers_are_the_whole_batch(world_size, steps):
    sampler = EpochSampler([101], 8, seed=3, steps_per_epoch=steps)
    whole = sampler.epoch(2)
    parts = [whole.cut(rank, world_size) for rank in range(world_size)]
    for step, batch in enumerate(split(whole)):
        assert [i for part in parts for i in split(part)[step]] == batch
        sizes = [part.sizes[step] for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1
        assert all(part.totals[step] == 8 for part in parts)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_loaders_of_all_workers_serve_the_one_workers_batches(tmp_path, world_size, shard):
    path = write_demos(tmp_path / "demos.hdf5", (9, 1, 4, 17, 2, 3))
    one = make_loaders(
        config_for(path, steps=9), one_window(config_for(path, steps=9).train, frozenset()), CPU
    ).train
    config = config_for(path, steps=9, shard=shard)
    loaders = [
        make_loaders(config, one_window(config.train, frozenset()), CPU, rank, world_size).train
        for rank in range(world_size)
    ]
    for epoch in (1, 4):
        epochs = [list(loader.epoch(epoch)) for loader in loaders]
        for whole, *parts in zip(one.epoch(epoch), *epochs, strict=True):
            rows = [row for batch, n, _ in parts for row in rows_of(batch)[:n]]
            assert sorted(rows) == sorted(rows_of(whole[0]))
            assert sum(n for _, n, _ in parts) == 5
            assert all(total == 5 and len(rows_of(batch)) == max(n, 1) for batch, n, total in parts)
            there = rows_of(whole[0])
            for batch, n, _ in parts:
                places = batch["position"].tolist()
                assert len(places) == max(n, 1)
                assert [there[i] for i in places[:n]] == rows_of(batch)[:n]


def test_batch_smaller_than_the_workers(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with pytest.raises(ConfigError, match="less than the 6 workers"):
        make_loaders(
            config_for(path),
            one_window(config_for(path).train, frozenset()),
            CPU,
            rank=0,
            world_size=6,
        )


def test_batches_do_not_depend_on_how_many_are_gathered_at_once(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", (40, 60))
    loader = make_loaders(
        config_for(path), one_window(config_for(path).train, frozenset({"next_obs"})), CPU
    ).train
    together = [batch for batch, _, _ in loader.epoch(1)]
    loader._chunk_rows = 1
    for one, other in zip(together, (batch for batch, _, _ in loader.epoch(1)), strict=True):
        assert torch.equal(one["index"], other["index"])
        assert torch.equal(one["actions"], other["actions"])
        assert torch.equal(one["next_obs"]["flat"], other["next_obs"]["flat"])


# Shards


def test_shards_are_disjoint_complete_and_balanced():
    lengths = np.random.default_rng(0).integers(1, 1000, size=200)
    owners = shard_owners(lengths, 7)
    held = np.bincount(owners, weights=lengths)
    assert held.sum() == lengths.sum()
    assert held.max() - held.min() < 1000
    assert set(owners) == set(range(7))
    with pytest.raises(DatasetError, match="2 demos cannot be distributed over 3 workers"):
        shard_owners(np.array([5, 5]), 3)


def test_unequal_shards_are_sampled_equally(tmp_path):
    # One demo is longer than all others together, so that shards hold 60, 12 and 11 transitions.
    path = write_demos(tmp_path / "demos.hdf5", (60, 12, 7, 4))
    config = config_for(path, batch_size=4, steps=83, shard=True)
    loaders = [
        make_loaders(config, one_window(config.train, frozenset()), CPU, rank, 3).train
        for rank in range(3)
    ]
    stores = [loader.dataset.store for loader in loaders]
    assert [store.num_transitions for store in stores] == [60, 12, 11]
    assert sum(store.num_bytes for store in stores) == 83 * stores[0].num_bytes // 60

    weight = np.zeros(83)
    steps = without_sample = 0
    for epoch in range(1, 4):  # 3 epochs of 83 steps of 4 samples are 12 permutations of 83
        for loader in loaders:
            for batch, n, total in loader.epoch(epoch):
                weight[rows_of(batch)[:n]] += 1 / total
                steps += 1
                without_sample += n == 0
    assert weight == pytest.approx(np.full(83, 12 / 4))  # exactly equal, not just on average
    assert steps == 3 * 3 * 83
    assert without_sample > 0  # and the workers without a sample still took every step


# Validation


@pytest.mark.parametrize("size", [1, 7, 10, 11])
def test_validation_visits_each_sample_once(size):
    sampler = ValidationSampler(size, 5, seed=0)
    batches = sampler.epoch(1)
    assert sorted(batches.indices.tolist()) == list(range(size))
    assert batches.sizes.tolist() == [5] * (size // 5) + ([size % 5] if size % 5 else [])
    assert torch.equal(batches.indices, sampler.epoch(9).indices)


def test_validation_is_capped():
    sampler = ValidationSampler(23, 5, seed=0, max_steps=2)
    assert sampler.num_steps == 2
    assert len(set(sampler.epoch(1).indices.tolist())) == 10
    assert ValidationSampler(23, 5, seed=0, max_steps=99).num_steps == 5


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("valid", [["demo_1"], ["demo_1", "demo_2", "demo_4", "demo_5"]])
def test_workers_validate_each_sample_once(tmp_path, world_size, shard, valid):
    train = [f"demo_{i}" for i in range(6) if f"demo_{i}" not in valid] + ["demo_6", "demo_7"]
    path = write_demos(
        tmp_path / "demos.hdf5", (9, 11, 3, 8, 1, 6, 5, 5), masks={"t": train, "v": valid}
    )
    config = config_for(path, shard=shard, valid=("t", "v"))
    loaders = [
        make_loaders(config, one_window(config.train, frozenset()), CPU, r, world_size).valid
        for r in range(world_size)
    ]
    rows, weight, steps = [], 0.0, set()
    for loader in loaders:
        epoch = list(loader.epoch(1))
        steps.add(len(epoch))
        for batch, n, total in epoch:
            rows += rows_of(batch)[:n]
            weight += n / total
    assert len(steps) == 1  # every worker takes the same steps, with or without samples
    assert weight == pytest.approx(steps.pop())
    starts = np.cumsum((0, 9, 11, 3, 8, 1, 6))
    lengths = (9, 11, 3, 8, 1, 6, 5, 5)
    numbers = [int(name[-1]) for name in valid]
    assert sorted(rows) == [
        row for i in numbers for row in range(starts[i], starts[i] + lengths[i])
    ]


def test_validation_on_training_demos(tmp_path):
    masks = {"t": ["demo_0", "demo_1"], "v": ["demo_1", "demo_2"]}
    path = write_demos(tmp_path / "demos.hdf5", masks=masks)
    with pytest.raises(DatasetError, match="demo 'demo_1' is among the training demos and the val"):
        make_loaders(
            config_for(path, valid=("t", "v")),
            one_window(config_for(path, valid=("t", "v")).train, frozenset()),
            CPU,
        )
