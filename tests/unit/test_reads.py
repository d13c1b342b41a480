"""An algorithm is given the steps that it declares, and computes the same from whole windows."""

from typing import Any

import h5py
import numpy as np
import pytest
import torch
from demo_files import write_demos
from reference import golden_batch, make, small_config, variants
from torch import Tensor

from raymimic.algo import BC, TD3_BC, Algo, PolicyAlgo, ValueAlgo, algo_class
from raymimic.config import BaseConfig, config_factory
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.reads import Reads, Window, one_step, one_window
from raymimic.data.sequence import SequenceDataset
from raymimic.data.store import DemoStore
from raymimic.data.training_data import inspect_data, make_loaders
from raymimic.errors import ConfigError
from raymimic.tensors import map_tensor

CPU = torch.device("cpu")
B = 64


def reads_of(config: BaseConfig) -> Reads:
    return algo_class(config.algo_name, config).reads(config)


def flat(batch: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensor(batch, found.append)
    return found


# -- the same results --


@pytest.mark.parametrize("name", variants())
def test_exact_windows_and_robomimics_window_give_the_same_batch(name: str) -> None:
    """Bit by bit, of all of robomimic's variants, random subgoals included."""
    config = small_config(name, goals=True)
    if "actor_use_random_subgoals" in config.algo:
        config.algo.actor_use_random_subgoals = True
    algo, reads, index = make(config), reads_of(config), [0, 11, 30, 55, 80]
    batches = []
    for windows in (None, reads):
        raw = golden_batch(config, index, windows)
        torch.manual_seed(0)
        batches.append(algo.process_batch_for_training(raw))
    whole, exact = batches
    served = golden_batch(config, index, reads)
    assert {k for k in served if k not in ("goal_obs", "index")} == set(reads.windows)

    def compare(a: Any, b: Any) -> None:
        for key, value in b.items():
            if isinstance(value, dict):
                compare(a[key], value)
            elif value is None:
                assert a[key] is None
            else:
                assert torch.equal(a[key], value), key

    compare(whole, exact)
    extra = {"rewards", "dones", "next_obs"}  # which whole windows hold, and nobody reads
    assert set(whole) - set(exact) <= extra


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("name", ["td3_bc", "bcq_as_gmm", "cql_fixed_q_gap", "iql_gmm"])
def test_steps_in_a_row_that_count_as_one(name: str, n_step: int) -> None:
    config = small_config(name, **{"algo.n_step": n_step, "train.seq_length": 3})
    algo, index = make(config), [0, 9, 55, 80]
    whole, exact = (
        algo.process_batch_for_training(golden_batch(config, index, windows))
        for windows in (None, reads_of(config))
    )
    for a, b in zip(flat(whole), flat(exact), strict=True):
        assert torch.equal(a, b)


# -- gathering --


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> DemoStore:
    """Two demos of 60 steps, with images of 84 x 84 x 3 bytes."""
    path = tmp_path_factory.mktemp("data") / "camera.hdf5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i in range(2):
            demo = file.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = 60
            demo["obs/camera"] = rng.integers(0, 256, (60, 84, 84, 3), dtype=np.uint8)
            demo["actions"] = rng.uniform(-1, 1, (60, 7))
            demo["rewards"], demo["dones"] = np.zeros(60), np.zeros(60)
    return DemoStore.load([DemoSource(str(path))], ColumnRequest(("camera",)))


@pytest.mark.parametrize(
    ("reads", "images", "steps"),
    [
        (reads_of(config_factory("diffusion_policy")), 2, 16),  # 2.7 MB, of 21.7 in one window
        (Reads(obs=Window(0, 1), actions=Window(0, 100), pad_mask=True), 1, 100),  # 1.4 of 135
    ],
)
def test_no_image_is_gathered_that_is_not_read(
    camera: DemoStore, reads: Reads, images: int, steps: int
) -> None:
    dataset = SequenceDataset(camera, frame_stack=2, seq_length=100, reads=reads)
    batch = dataset.gather(torch.arange(20, 20 + B))
    image = 84 * 84 * 3
    assert batch["obs"]["camera"].nbytes == B * images * image
    assert batch["actions"].shape == (B, steps, 7)
    assert set(batch) - {"pad_mask"} == {"obs", "actions", "index"}
    whole = SequenceDataset(camera, frame_stack=2, seq_length=100).gather(torch.arange(20, 20 + B))
    first = reads.obs.start + 1
    assert torch.equal(batch["obs"]["camera"], whole["obs"]["camera"][:, first : first + images])
    assert dataset.sample_bytes == images * image + steps * 7 * 4


def test_next_actions_and_the_mask_of_the_padding(tmp_path: Any) -> None:
    path = write_demos(tmp_path / "demos.hdf5", (5, 7))
    store = DemoStore.load([DemoSource(str(path))], ColumnRequest(("flat",)))
    reads = Reads(obs=Window(0, 1), actions=Window(-1, 3), next_actions=Window(1, 2), pad_mask=True)
    dataset = SequenceDataset(store, frame_stack=2, seq_length=3, reads=reads)
    batch = dataset.gather(torch.arange(12))
    actions, ends = store.columns["actions"], [4] * 5 + [11] * 7
    for i, end in enumerate(ends):
        assert torch.equal(batch["next_actions"][i, 0], actions[min(i + 2, end)])
        begin = end - 4 if end == 4 else 5
        mask = [begin <= i + step <= end for step in range(-1, 3)]
        assert batch["pad_mask"][i, :, 0].tolist() == mask
        rows = [min(max(i + step, begin), end) for step in range(-1, 3)]
        assert torch.equal(batch["actions"][i], actions[rows])


def test_samples_that_are_rows_know_the_next_action_too(tmp_path: Any) -> None:
    path = write_demos(tmp_path / "demos.hdf5", (5, 7))
    store = DemoStore.load([DemoSource(str(path))], ColumnRequest(("flat",)))
    batch = SequenceDataset(store, reads=one_step()).gather(torch.tensor([0, 3, 4, 5, 11]))
    assert torch.equal(batch["next_actions"][:, 0], store.columns["actions"][[1, 4, 4, 6, 11]])


def test_columns_that_nobody_reads_stay_in_the_file(tmp_path: Any) -> None:
    path = write_demos(tmp_path / "demos.hdf5")
    config = small_config_for("bc", path)
    data = make_loaders(config, reads_of(config), CPU)
    assert set(data.train.dataset.store.columns) == {"obs/flat", "actions"}


# -- declarations --


def small_config_for(name: str, path: Any) -> BaseConfig:
    config = config_factory(name)
    config.train.data = str(path)
    config.train.batch_size = 4
    config.observation.modalities.obs.low_dim = ["flat"]
    config.experiment.rollout.enabled = False
    return config


def test_an_algorithm_that_declares_nothing_reads_robomimics_one_window() -> None:
    class Own(PolicyAlgo):
        needs = frozenset({"rewards", "next_actions", "pad_mask", "phase"})

    config = config_factory("bc")
    config.train.seq_length, config.train.frame_stack = 4, 3
    reads, window = Own.reads(config), Window(-2, 4)
    assert set(reads.windows.values()) == {window}
    assert set(reads.windows) == {"obs", "actions", "rewards", "dones", "next_actions", "phase"}
    assert reads.required == Own.needs
    assert reads.optional == {"dones"}
    assert reads == one_window(config.train, Own.needs)


def test_a_subclass_that_takes_its_own_batches_is_given_whole_windows() -> None:
    """As before algorithms declared their reads; the needs of its parent still hold."""

    class Weighted(BC):
        def process_batch_for_training(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {**super().process_batch_for_training(batch), "w": batch["rewards"].sum(1)}

    class Longer(TD3_BC):
        def process_batch_for_training(self, batch: dict[str, Any]) -> dict[str, Any]:
            return super().process_batch_for_training(batch)

    class Named(BC):
        needs = frozenset({"rewards"})

    class Declared(Longer):
        @classmethod
        def reads(cls, config: BaseConfig) -> Reads:
            return one_step(2)

    config = config_factory("bc")
    assert Weighted.reads(config) == one_window(config.train)
    assert Longer.reads(config_factory("td3_bc")).required == ValueAlgo.needs
    assert Named.reads(config) == one_window(config.train, {"rewards"})
    assert Declared.reads(config) is one_step(2)
    assert BC.reads(config) == Reads(obs=Window(0, 1), actions=Window(0, 1))
    assert Algo.reads(config) == one_window(config.train)


def test_windows_join() -> None:
    a = Reads(obs=Window(-1, 1), rewards=Window(0, 3), optional=frozenset({"rewards"}))
    b = Reads(obs=Window(0, 2), rewards=Window(2, 4), others={"phase": Window(0, 1)})
    both = a | b
    assert both.windows == {
        "obs": Window(-1, 2),
        "rewards": Window(0, 4),
        "phase": Window(0, 1),
    }
    assert both.required == {"rewards", "phase"}
    assert both.span == Window(-1, 4)
    assert (a | a).required == set()


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        (Reads(obs=Window(0, 1), actions=Window(0, 5)), "bc reads 5 steps, .* raise it to 5"),
        (Reads(obs=Window(0, 1)), "'train.frame_stack' is 2, but bc sees one observation at a"),
        (Reads(obs=Window(-3, 1)), "bc reads 3 steps before .*: set it to 4"),
    ],
)
def test_steps_outside_the_samples_are_refused(tmp_path: Any, reads: Reads, message: str) -> None:
    config = small_config_for("bc", write_demos(tmp_path / "demos.hdf5"))
    config.train.frame_stack = 2
    with pytest.raises(ConfigError, match=message):
        inspect_data(config, reads)
