"""Checkpoints of robomimic, of any version: they load, act, train further and go back to it."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import (
    ACTION_DIM,
    DATA,
    OBS_KEYS,
    SHAPES,
    centred_rng,
    fill,
    make,
    variant_config,
    variants,
)
from tiny import Ran

from raymimic.checkpoints.export import export_checkpoint
from raymimic.checkpoints.policy import config_from_checkpoint, policy_from_checkpoint
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.checkpoints.upgrade import upgrade_checkpoint
from raymimic.config import config_factory
from raymimic.errors import CheckpointError, OutputError

CHECKPOINTS = sorted(path.stem for path in (DATA / "checkpoints").glob("*.pth"))
MADE = [
    *("bc_gaussian", "bc_vae_gmm_prior_obs_dependent_weights_learned", "bc_rnn_gru"),
    *("bc_transformer_gmm", "bcq_as_gmm", "bcq_distributional", "cql_fixed_gaussian", "iql_gmm"),
    *("td3_bc_huber", "hbc_vae_gaussian_prior_obs_dependent", "iris"),
]
CROP = "CropRandomizer"
CAMERAS = ("front", "wrist")
ENV = {"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}}
STATS = {
    key: {"offset": [[0.1 * i for i in range(n)]], "scale": [[1.0 + 0.1 * i for i in range(n)]]}
    for key, (n,) in SHAPES.items()
}

# Keys that came with a version: the configs of those before have not got them.
NEW_IN = {
    "0.5": [
        "ckpt_path",
        "env_meta_update_dict",
        "action_keys",
        "action_config",
        "max_grad_norm",
        "normalize_weights_by_ds_size",
        "pred_future_acs",
        "num_train_batches",
        "num_epochs",
    ],
    "0.3": [
        "log_wandb",
        "wandb_proj_name",
        "meta",
        "hdf5_load_next_obs",
        "pad_seq_length",
        "frame_stack",
        "pad_frame_stack",
        "hdf5_validation_filter_key",
        "transformer",
        "optimizer_type",
        "scheduler_type",
    ],
}


def robomimics(name: str) -> dict[str, Any]:
    """A checkpoint as robomimic 0.5 writes it: one of its own, or a variant's with its stats."""
    if name in CHECKPOINTS:
        return torch.load(DATA / "checkpoints" / f"{name}.pth", weights_only=True)
    config = variants()[name]["config"]
    config["train"]["hdf5_normalize_obs"] = True
    return {
        "model": fill(make(variant_config(name))).serialize(),
        "config": json.dumps(config),
        "algo_name": config["algo_name"],
        "env_metadata": ENV,
        "shape_metadata": {
            "ac_dim": ACTION_DIM,
            "all_shapes": SHAPES,
            "all_obs_keys": list(OBS_KEYS),
            "use_images": False,
        },
        "variable_state": {"epoch": 3},
        "obs_normalization_stats": STATS,
    }


def weights_alone(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model as before 0.5: of each part the networks' state dict."""
    if "nets" in model:
        return model["nets"]
    return {name: weights_alone(part) for name, part in model.items()}


def without(section: Any, names: list[str]) -> Any:
    if not isinstance(section, dict):
        return section
    return {k: without(v, names) for k, v in section.items() if k not in names}


def as_of(version: str, ckpt: dict[str, Any], arrays: bool = False) -> dict[str, Any]:
    """A checkpoint in the form that an older version gave it."""
    config = json.loads(ckpt["config"])
    epochs = config["train"]["num_epochs"]  # it was there already, in no other place
    config = without(config, NEW_IN["0.5"])
    config["train"] |= {"data": "demos.hdf5", "num_epochs": epochs}
    if version == "0.2":
        config = without(config, NEW_IN["0.3"])
    old = {
        k: v for k, v in ckpt.items() if k not in ("variable_state", "action_normalization_stats")
    }
    old |= {"model": weights_alone(ckpt["model"]), "config": json.dumps(config)}
    stats = old.pop("obs_normalization_stats", None)
    if stats is not None:
        form: Callable[[Any], Any] = np.asarray if arrays else list
        old["obs_normalization_stats"] = {
            key: {"mean": form(entry["offset"]), "std": form(entry["scale"])}
            for key, entry in stats.items()
        }
    return old


def episode(name: str) -> list[dict[str, Any]]:
    """Some raw observations: robomimic's own episode, or random ones."""
    if name in CHECKPOINTS:
        steps = json.loads((DATA / "checkpoints" / f"{name}.json").read_text())["steps"]
        return [{k: np.array(x) for k, x in step["obs"].items()} for step in steps]
    rng = np.random.default_rng(0)
    return [{k: rng.normal(size=shape) for k, shape in SHAPES.items()} for _ in range(4)]


def actions(ckpt: dict[str, Any], name: str) -> list[Any]:
    policy, _ = policy_from_checkpoint(ckpt_dict=ckpt)
    with centred_rng():
        policy.start_episode()
        return [policy(obs) for obs in episode(name)]


@pytest.mark.parametrize(
    "path", sorted((DATA / "checkpoints" / "old").glob("*.pth")), ids=lambda path: path.stem
)
def test_checkpoints_that_older_versions_wrote_act_as_there(path: Path) -> None:
    """Of their templates with small layers, after three steps on the golden dataset."""
    policy, _ = policy_from_checkpoint(ckpt_path=str(path))
    with centred_rng():
        policy.start_episode()
        for step in json.loads(path.with_suffix(".json").read_text())["steps"]:
            obs = {k: np.array(x) for k, x in step["obs"].items()}
            np.testing.assert_allclose(policy(obs), step["action"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("version", ["0.2", "0.3", "0.4"])
@pytest.mark.parametrize("name", [*CHECKPOINTS, *MADE])
def test_checkpoints_of_older_versions_act_as_todays(
    name: str, version: str, tmp_path: Path
) -> None:
    if version == "0.2" and ("transformer" in name or "iql" in name):
        pytest.skip("robomimic 0.2 had no such algorithm")
    today = robomimics(name)
    torch.save(as_of(version, today), tmp_path / "old.pth")
    old = load_dict_from_checkpoint(str(tmp_path / "old.pth"))
    np.testing.assert_array_equal(actions(old, name), actions(today, name))


def test_statistics_that_are_arrays_load(tmp_path: Path) -> None:
    torch.save(as_of("0.3", robomimics("td3_bc"), arrays=True), tmp_path / "old.pth")
    old = load_dict_from_checkpoint(str(tmp_path / "old.pth"))
    np.testing.assert_array_equal(actions(old, "td3_bc"), actions(robomimics("td3_bc"), "td3_bc"))


@pytest.mark.parametrize(
    ("key", "expected"), [(None, ("train", "valid")), ("20", ("20_train", "20_valid"))]
)
def test_the_held_out_demos_of_the_oldest_version(key: str | None, expected: Any) -> None:
    ckpt = as_of("0.2", robomimics("bc"))
    config = json.loads(ckpt["config"])
    config["experiment"]["validate"] = True
    config["train"]["hdf5_filter_key"] = key
    config, ckpt = config_from_checkpoint(ckpt_dict={**ckpt, "config": json.dumps(config)})
    train = config.train
    assert (train.hdf5_filter_key, train.hdf5_validation_filter_key) == expected
    assert upgrade_checkpoint(ckpt) == ckpt  # once is enough


# -- training further --


@pytest.mark.parametrize("version", ["0.5", "0.2"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_training_starts_from_its_weights(
    name: str, version: str, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    ckpt = robomimics(name)
    (tmp_path / "config.json").write_text(ckpt["config"])
    given = ckpt if version == "0.5" else as_of(version, ckpt)
    torch.save(given, tmp_path / "start.pth")
    ran = cli(
        *("train", "--config", "config.json", "--workers", "0", "--name", "on", "--json"),
        *("--dataset", str(DATA / "dataset" / "golden_low_dim.hdf5"), "--set"),
        "experiment.ckpt_path=start.pth",
        "experiment.rollout.enabled=false",
        "experiment.epoch_every_n_steps=2",
        "experiment.logging.log_tb=false",
        "train.num_epochs=1",
        "train.cuda=false",
        "train.output_dir=out",
        "mlflow.enabled=false",
        *(f"{path}.learning_rate.initial=1e-12" for path in optimizers(ckpt)),
    )
    assert ran.status == 0, ran.err
    (last,) = tmp_path.glob("out/**/model_epoch_1.pth")
    trained, start = load_dict_from_checkpoint(str(last)), flat(weights_alone(ckpt["model"]))
    after = flat(weights_alone(trained["model"]))
    assert after.keys() == start.keys()
    for key, x in start.items():
        if "_target" not in key:  # targets move towards their networks
            torch.testing.assert_close(after[key], x, rtol=0, atol=1e-9)


def optimizers(ckpt: dict[str, Any]) -> Iterator[str]:
    def search(section: Any, path: str) -> Iterator[str]:
        if isinstance(section, dict):
            for key, value in section.items():
                if key == "optim_params":
                    yield from (f"{path}.optim_params.{name}" for name in value)
                else:
                    yield from search(value, f"{path}.{key}")

    return search(json.loads(ckpt["config"])["algo"], "algo")


def flat(state: Mapping[str, Any], prefix: str = "") -> dict[str, torch.Tensor]:
    entries = {}
    for key, value in state.items():
        entries |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {}
        entries |= {prefix + key: value} if isinstance(value, torch.Tensor) else {}
    return entries


# -- and back to robomimic --


def raymimics(name: str, **settings: Any) -> dict[str, Any]:
    """A checkpoint as raymimic writes it: its keys in the config, and a section of its own."""
    ckpt = robomimics(name)
    config = config_factory(ckpt["algo_name"], json.loads(ckpt["config"]))
    for key, value in {"train.data": "demos.hdf5", **settings}.items():
        config.set_path(key, value)
    return {
        "obs_normalization_stats": None,
        "action_normalization_stats": None,
        **ckpt,
        "config": config.dump(),
        "raymimic": {"version": "1", "imports": []},
    }


def paths(config: Any, prefix: str = "") -> set[str]:
    if not isinstance(config, dict):
        return {prefix}
    return {path for k, v in config.items() for path in paths(v, f"{prefix}.{k}")} | {prefix}


@pytest.mark.parametrize("name", [*CHECKPOINTS, *MADE])
def test_exported_checkpoints_are_robomimics(name: str, tmp_path: Path) -> None:
    source, target = str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth")
    torch.save(raymimics(name), source)
    export_checkpoint(source, target)
    exported, original = torch.load(target, weights_only=True), robomimics(name)

    np.testing.assert_array_equal(actions(exported, name), actions(original, name))
    allowed = {"model", "config", "algo_name", "env_metadata", "shape_metadata", "variable_state"}
    assert set(exported) - {"obs_normalization_stats", "action_normalization_stats"} == allowed
    assert exported.get("obs_normalization_stats") == original.get("obs_normalization_stats")
    assert exported["env_metadata"] == original["env_metadata"]
    assert exported["variable_state"]["epoch"] == original["variable_state"]["epoch"]
    # Every key of the config is one of robomimic's.
    config, known = json.loads(exported["config"]), variants()[name]["config"]
    added = {"hp_base_config_file", "num_train_batches", "num_epochs"}
    assert {p for p in paths(config) - paths(known) if p.split(".")[-1] not in added} == set()
    assert config["train"]["data"] == [{"path": "demos.hdf5"}]
    # The whole state of optimizers is there.
    theirs, ours = flat(original["model"]), flat(exported["model"])
    assert theirs.keys() == ours.keys()


def test_what_was_computed_in_double_precision_is_exported_in_single(tmp_path: Path) -> None:
    ckpt = raymimics("td3_bc", **{"train.dtype": "float64"})
    torch.save(ckpt, tmp_path / "ours.pth")
    export_checkpoint(str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth"))
    exported = torch.load(tmp_path / "theirs.pth", weights_only=True)
    assert {x.dtype for x in flat(exported["model"]).values()} == {torch.float32}
    assert "dtype" not in json.loads(exported["config"])["train"]


def test_an_old_checkpoint_is_exported_in_todays_form(tmp_path: Path) -> None:
    torch.save(as_of("0.2", robomimics("td3_bc")), tmp_path / "old.pth")
    export_checkpoint(str(tmp_path / "old.pth"), str(tmp_path / "new.pth"))
    exported = torch.load(tmp_path / "new.pth", weights_only=True)
    assert set(exported["model"]) == {"nets", "optimizers", "lr_schedulers"}
    assert set(exported["obs_normalization_stats"]["object"]) == {"offset", "scale"}
    optim_params = json.loads(exported["config"])["algo"]["optim_params"]
    assert optim_params["actor"]["num_train_batches"] >= 1  # robomimic's optimizers read it
    np.testing.assert_array_equal(
        actions(exported, "td3_bc"), actions(robomimics("td3_bc"), "td3_bc")
    )


def test_nothing_is_overwritten_unasked(cli: Callable[..., Ran], tmp_path: Path) -> None:
    torch.save(raymimics("bc"), tmp_path / "ours.pth")
    (tmp_path / "there.pth").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"there.pth' exists already.*--force"):
        export_checkpoint(str(tmp_path / "ours.pth"), str(tmp_path / "there.pth"))
    ran = cli("export", "ours.pth", "there.pth")
    assert ran.status == 2
    assert (tmp_path / "there.pth").read_bytes() == b"precious"
    ran = cli("export", "ours.pth", "there.pth", "--force")
    assert (ran.status, ran.out) == (0, "written to there.pth, for robomimic 0.5\n")
    assert "model" in torch.load(tmp_path / "there.pth", weights_only=True)
    assert cli("export", "nowhere.pth", "out.pth").status == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.pth", "there.pth"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"algo.unet.down_dims": [16, 32]}, r"a U-Net of other sizes.*algo.unet.down_dims"),
        (
            {"algo.unet.enabled": False, "algo.transformer.enabled": True},
            "Diffusion Policy with a transformer",
        ),
        (
            {"observation.encoder.rgb.obs_randomizer_class": ["RandomShift"]},
            r"the class 'RandomShift' \(observation.encoder.rgb.obs_randomizer_class\)",
        ),
        (
            {"observation.encoder.rgb.core_kwargs": {"backbone_class": "ImpalaConv"}},
            "the class 'ImpalaConv'",
        ),
        (
            {"observation.encoder.depth.share_net_from": {"a": "b"}},
            r"encoders in common \(observation.encoder.depth.share_net_from\)",
        ),
        ({"observation.modalities.obs": {"lang": ["words"]}}, "the modality 'lang'"),
        ({"observation.modalities.obs": {"touch": ["skin"]}}, "the modality 'touch'"),
        ({"observation.encoder.scan.core_class": "OwnCore"}, "the class 'OwnCore'"),
        ({"observation.encoder.rgb.core_kwargs": {"pool_class": "Own"}}, "the class 'Own'"),
        (
            {"observation.encoder.rgb.core_kwargs": {"pool_kwargs": {"output_variance": True}}},
            "variances of keypoints",
        ),
        (
            {
                "observation.encoder.rgb.obs_randomizer_class": ["ColorRandomizer", CROP],
                "observation.encoder.rgb.obs_randomizer_kwargs": [{}, {"pos_enc": True}],
            },
            r"places of pixels in evaluation \(observation.encoder.rgb.obs_randomizer_kwargs",
        ),
        (
            {
                "observation.modalities.obs.rgb": ["front"],
                "observation.encoder.rgb.obs_randomizer_class": CROP,
                "observation.encoder.rgb.obs_randomizer_kwargs": {"crop_width": 80},
            },
            "crops as high or wide as the image",
        ),
        (
            {
                "observation.encoder.rgb.core_class": "VisualCoreLanguageConditioned",
                "observation.encoder.rgb.obs_randomizer_class": CROP,
                "observation.encoder.rgb.obs_randomizer_kwargs": {"num_crops": 2},
            },
            "several crops",
        ),
    ],
)
def test_what_robomimic_lacks_is_not_exported(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    ckpt = raymimics("bc")
    config = config_factory("diffusion_policy")
    for key, value in settings.items():
        config.set_path(key, value)
    ckpt |= {"algo_name": "diffusion_policy", "config": config.dump()}
    ckpt["shape_metadata"]["all_shapes"]["front"] = [3, 84, 80]
    torch.save(ckpt, tmp_path / "ours.pth")
    with pytest.raises(
        CheckpointError, match=rf"cannot export '.*ours.pth'.*robomimic lacks {reason}"
    ):
        export_checkpoint(str(tmp_path / "ours.pth"), str(tmp_path / "theirs.pth"))
    assert not (tmp_path / "theirs.pth").exists()


# -- images --


@pytest.mark.parametrize("name", ["bc", "bc_rnn_gmm"])
def test_checkpoints_on_images_act_as_in_robomimic(name: str) -> None:
    """Two cameras of 22 x 20 pixels, cropped, and joints; robomimic's actions in one episode.

    robomimic 0.5 trained each network (shallow convolutions, a softmax over space) for three steps.
    Then its weights were raised, so that images matter. Files hold no moments of the optimizers.
    """
    path = DATA / "checkpoints" / "images" / f"{name}.pth"
    steps = dict(np.load(path.with_suffix(".npz")))
    expected = steps.pop("action")
    policy, _ = policy_from_checkpoint(ckpt_path=str(path))

    def played(change: Callable[[Any], Any]) -> Any:
        with centred_rng():
            policy.start_episode()
            rows = ({k: x[t] for k, x in steps.items()} for t in range(len(expected)))
            return np.stack([policy(obs | {k: change(obs[k]) for k in CAMERAS}) for obs in rows])

    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(played(lambda x: x), expected, **close)
    prepared = played(lambda x: np.moveaxis(x, -1, 0).astype(np.float32) / 255)
    np.testing.assert_allclose(prepared, expected, **close)
    assert np.abs(played(lambda x: 255 - x) - expected).max() > 1e-3
