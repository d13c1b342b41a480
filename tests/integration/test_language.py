"""Instructions of datasets (`train.data[].lang`): embedded once, trained on, and played with."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from checks import assert_refused
from tiny import LAYERS, SETTINGS, Ran, small_config, write_hopper

from raymimic.algo import BC
from raymimic.checkpoints.content import check_content
from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.config import BaseConfig
from raymimic.data.training_data import make_loaders
from raymimic.errors import CheckpointError, ConfigError, DatasetError, EnvError, pip_install
from raymimic.models.text import embeddings_of
from raymimic.training.language import embeddings_for, embeddings_of_run
from raymimic.training.prepare import prepare

SIZE = 4
HOP, STAND = "hop on", "stand still"
LISTED = 'observation.modalities.obs.lang=["lang_emb"]'


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP text model of random weights that knows single letters, as transformers saves it."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    folder = tmp_path_factory.mktemp("models") / "clip"
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    source = tmp_path_factory.mktemp("vocabulary")
    (source / "vocab.json").write_text(json.dumps(vocabulary))
    (source / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(source / "vocab.json"), str(source / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "projection_dim": SIZE}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
    config = CLIPTextConfig(vocab_size=len(words), **ends, **sizes, **layers)
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


def reference(encoder: Path, sentence: str) -> torch.Tensor:
    """The embedding by transformers itself, without padding."""
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    tokens = AutoTokenizer.from_pretrained(encoder)(sentence, return_tensors="pt")
    with torch.no_grad():
        return CLIPTextModelWithProjection.from_pretrained(encoder)(**tokens).text_embeds[0]


def write_embedding(path: Path, embedding: Any, demo: int | None = None) -> None:
    """Writes an embedding into each demo, or into one."""
    with h5py.File(path, "r+") as file:
        for name in file["data"] if demo is None else [f"demo_{demo}"]:
            for group in ("obs", "next_obs"):
                target = file[f"data/{name}/{group}"]
                if "lang_emb" in target:
                    del target["lang_emb"]
                rows = len(target["flat"])
                target["lang_emb"] = np.tile(np.asarray(embedding, np.float32), (rows, 1))


def config_for(*entries: dict[str, Any], **settings: Any) -> BaseConfig:
    config = small_config("bc", **{"train.data": list(entries), "train.batch_size": 16})
    config.observation.modalities.obs.lang = ["lang_emb"]
    for key, value in settings.items():
        config.set_path(key, value)
    return config


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return write_hopper(tmp_path / "a.hdf5"), write_hopper(tmp_path / "b.hdf5", seed=1)


@pytest.mark.slow
def test_a_policy_follows_the_instruction_without_the_text_encoder(
    cli: Callable[..., Ran], tmp_path: Path, paths: tuple[Path, Path], encoder: Path
) -> None:
    """Trained on two instructions, resumed and evaluated after the text encoder is gone."""
    folder = tmp_path / "text"
    shutil.copytree(encoder, folder)
    data = [
        {"path": str(path), "lang": lang, "key": lang.split()[0]}
        for path, lang in zip(paths, (HOP, STAND), strict=True)
    ]
    rollouts = ["enabled=true", "n=2", "horizon=3", "rate=1"]
    begun = cli(
        *("train", "--algo", "bc", "--workers", "0", "--json", "--set", *LAYERS["bc"], *SETTINGS),
        *(f"train.data={json.dumps(data)}", f"train.text_encoder={folder}", LISTED),
        *(f"experiment.rollout.{setting}" for setting in rollouts),
        "experiment.render_video=false",
    )
    assert begun.status == 0, begun.err
    shutil.rmtree(folder)
    resumed = cli(
        *("train", "--resume", begun.result["run_dir"], "--workers", "0", "--json"),
        *("--set", "train.num_epochs=3"),
    )
    assert resumed.status == 0, resumed.err
    last = resumed.result["last_checkpoint"]
    assert {"Rollout/Return/hop", "Rollout/Return/stand"} <= resumed.result["metrics"].keys()
    evaluated = cli("evaluate", last, "--episodes", "2", "--horizon", "3")
    assert evaluated.status == 0, evaluated.err

    ckpt = load_dict_from_checkpoint(last)
    assert ckpt["env_metadata"]["lang"] == HOP
    policy, _ = policy_from_checkpoint(ckpt_dict=ckpt)
    obs = {"flat": np.linspace(-1, 1, 11).astype(np.float32)}
    actions = {}
    for lang in (HOP, STAND):
        policy.start_episode(lang=lang)
        assert policy.obs_keys == ["flat"]
        actions[lang] = policy(obs)
        given = {**obs, "lang_emb": reference(encoder, lang).numpy()}
        np.testing.assert_allclose(policy(given), actions[lang], rtol=1e-5, atol=1e-6)
        batch = {"flat": np.stack([obs["flat"]] * 3)}
        np.testing.assert_allclose(policy(batch, batched_ob=True)[2], actions[lang], atol=1e-6)
    assert not np.allclose(actions[HOP], actions[STAND], atol=1e-3)
    ckpt["raymimic"]["language"][HOP] = [[0.0] * SIZE]
    with pytest.raises(CheckpointError, match=r"'raymimic.language' has no embedding of 'hop on'"):
        check_content(ckpt)
    ckpt["raymimic"]["language"][HOP] = [0.0]
    with pytest.raises(CheckpointError, match=r"'raymimic.language' is not of the 4 numbers"):
        policy_from_checkpoint(ckpt_dict=ckpt)
    with pytest.raises(
        EnvError, match=r"no embedding of 'hop of'.*'hop on'.*observation 'lang_emb'"
    ):
        policy.start_episode(lang="hop of")


@pytest.mark.slow
def test_each_dataset_has_the_embedding_of_its_instruction(
    paths: tuple[Path, Path], encoder: Path
) -> None:
    """From the text encoder, or from the file where it holds one; normalised as all else."""
    own = [0.5, -1.0, 2.0, 0.25]
    write_embedding(paths[1], own)
    entries = [{"path": str(paths[0]), "lang": HOP}, {"path": str(paths[1]), "lang": STAND}]
    config = config_for(*entries, **{"train.text_encoder": str(encoder)})
    language = embeddings_for(config)
    assert language.keys() == {HOP, STAND}
    np.testing.assert_allclose(language[HOP], reference(encoder, HOP), rtol=1e-5, atol=1e-6)
    assert language[STAND] == own
    config.train.hdf5_normalize_obs = True
    data = make_loaders(config, BC.reads(config), torch.device("cpu"), language=language)
    columns = data.train.dataset.store.columns
    half = len(columns["obs/lang_emb"]) // 2
    assert torch.equal(columns["obs/lang_emb"][:half], torch.tensor([language[HOP]] * half))
    assert torch.equal(columns["obs/lang_emb"][half:], torch.tensor([own] * half))
    assert data.obs_normalization_stats is not None
    mean = (np.array(language[HOP]) + own) / 2
    np.testing.assert_allclose(
        data.obs_normalization_stats["lang_emb"]["offset"][0], mean, rtol=1e-5, atol=1e-6
    )
    batch, _, _ = next(data.train.epoch(1))
    assert batch["obs"]["lang_emb"].shape[-1] == SIZE


def test_a_file_with_embeddings_needs_no_text_encoder(paths: tuple[Path, Path]) -> None:
    path = paths[0]
    write_embedding(path, np.arange(3))
    prepared = prepare(config_for({"path": str(path), "lang": HOP}))
    assert embeddings_of_run(str(path.parent / "no_run"), prepared.config) == {}
    assert dict(prepared.data.language) == {HOP: [0.0, 1.0, 2.0]}
    assert [env["lang"] for env in prepared.envs.values()] == [HOP]
    write_embedding(path, np.ones(3), demo=2)
    with pytest.raises(DatasetError, match=r"demo 'demo_2': .*more than one instruction: leave"):
        prepare(config_for({"path": str(path), "lang": HOP}))
    prepare(config_for({"path": str(path)}))


def test_mistakes_about_instructions_are_one_sentence(
    paths: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = ({"path": str(path), "lang": HOP} for path in paths)

    def refused(config: BaseConfig, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            prepare(config)

    refused(config_for(one), "'hop on' .* has no embedding: set train.text_encoder to the folder")
    named = {"train.text_encoder": "openai/clip-vit-large-patch14"}
    refused(config_for(one, **named), "is no folder on this machine, and nothing is downloaded")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").touch()
    encoder = {"train.text_encoder": str(pickled)}
    refused(config_for(one, **encoder), "no weights in the form of safetensors")
    two = {"observation.modalities.obs.lang": ["lang_emb", "other"]}
    refused(config_for(one, **two), r"lists 2 embeddings \(lang_emb, other\): list one")
    with pytest.raises(DatasetError, match=r"no observation 'lang_emb'.* set train.data\[\].lang"):
        prepare(config_for({"path": one["path"]}))

    write_embedding(paths[0], np.zeros(3))
    write_embedding(paths[1], np.zeros(5))
    other["lang"] = STAND
    refused(config_for(one, other), "'hop on' has 3 numbers, and that of 'stand still' 5: embed")
    write_embedding(paths[1], np.ones(3))
    other["lang"] = HOP
    refused(config_for(one, other), "hold two embeddings of 'hop on'")
    with caplog.at_level(logging.WARNING):
        prepare(config_for(one, **{"observation.modalities.obs.lang": []}))
    assert "'train.data[].lang' has no effect" in caplog.text


@pytest.mark.slow
def test_a_text_encoder_that_cannot_be_used(
    cli: Callable[..., Ran],
    tmp_path: Path,
    paths: tuple[Path, Path],
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match=r"is 43 tokens long, and .* takes 40: shorten it"):
        embeddings_of(["a " * 41], str(encoder))
    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    lost = weights.pop("text_projection.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"its weights lack text_projection\.weight"):
        embeddings_of([HOP], str(broken))
    save_file({**weights, "text_projection.weight": lost * np.nan}, broken / "model.safetensors")
    with pytest.raises(ConfigError, match="makes no numbers of 'hop on'"):
        embeddings_of([HOP], str(broken))
    (broken / "model.safetensors").write_bytes(b"\x10" + bytes(20))
    with pytest.raises(ConfigError, match="cannot be read: "):
        embeddings_of([HOP], str(broken))
    monkeypatch.setitem(sys.modules, "transformers", None)
    data = [{"path": str(paths[0]), "lang": HOP}]
    settings = [f"train.data={json.dumps(data)}", f"train.text_encoder={encoder}", LISTED]
    ran = cli("train", "--algo", "bc", "--workers", "0", "--set", *SETTINGS, *settings)
    assert_refused(ran, f"'train.text_encoder' needs transformers: {pip_install('lang')}")
