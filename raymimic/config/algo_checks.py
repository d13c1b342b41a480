"""What must hold between the settings of ``config.algo``, wherever an algorithm's part has them."""

from __future__ import annotations

from collections.abc import Iterator

from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.config.config import Config


def algo_problems(config: BaseConfig) -> Iterator[str]:
    """Yields one sentence for each contradiction between an algorithm's own settings."""
    for path, section in _sections(config.algo, "algo"):
        yield from _policy_problems(path, section)
    for name, check in {
        "action_sampler": _action_sampler_problems,
        "rnn": _rnn_problems,
        "vae": _vae_problems,
        "critic": _critic_problems,
        "net": _net_problems,
        "unet": _unet_problems,
    }.items():
        for path, section in sections_named(config.algo, name):
            optimizer = "optim_params" in path.split(".")  # of a network of that name
            if section.get("enabled", True) and not optimizer:
                yield from check(f"algo.{path}", section)
    entropy = config.algo.get("actor", {}).get("target_entropy")
    if isinstance(entropy, str) and entropy != "default":
        yield (
            f"'algo.actor.target_entropy' is '{entropy}': it must be a number, 'default' or null "
            "(a fixed weight of the entropy)"
        )
    if "prediction_horizon" in config.algo.get("horizon", {}):
        yield from _diffusion_problems(config)


def _sections(section: Config, path: str) -> Iterator[tuple[str, Config]]:
    yield path, section
    for key, value in section.items():
        if isinstance(value, Config):
            yield from _sections(value, f"{path}.{key}")


def _enabled(section: Config, *names: str) -> list[str]:
    return [n for n in names if isinstance(section.get(n), Config) and section[n].get("enabled")]


def _policy_problems(path: str, section: Config) -> Iterator[str]:
    heads, memories = _enabled(section, "gaussian", "vae"), _enabled(section, "rnn", "transformer")
    if heads and memories:
        yield (
            f"'{path}.{heads[0]}' and '{path}.{memories[0]}' cannot be combined: a policy with "
            f"memory is deterministic or a mixture ('{path}.gmm'); set one 'enabled' to false"
        )


def _action_sampler_problems(path: str, section: Config) -> Iterator[str]:
    if not _enabled(section, "vae", "gmm"):
        yield f"'{path}' samples from nothing: set '{path}.vae.enabled' or '{path}.gmm.enabled'"


def _rnn_problems(path: str, section: Config) -> Iterator[str]:
    if section.get("kwargs", {}).get("bidirectional"):
        yield (
            f"'{path}.kwargs.bidirectional' is true, but a policy that acts step by step does not "
            "know the steps to come: set it to false"
        )


def _vae_problems(path: str, section: Config) -> Iterator[str]:
    prior = section.prior
    if prior.use_gmm and prior.use_categorical:
        yield (
            f"'{path}.prior.use_gmm' and '{path}.prior.use_categorical' exclude each other: set "
            "one to false"
        )
    if prior.use_gmm and not prior.learn:
        yield f"'{path}.prior.use_gmm' is a learned prior: set '{path}.prior.learn' to true"
    if prior.is_conditioned and not prior.learn:
        yield (
            f"'{path}.prior.is_conditioned' needs a learned prior: set '{path}.prior.learn' to true"
        )
    if not section.decoder.is_conditioned and not prior.is_conditioned:
        yield (
            f"neither '{path}.decoder.is_conditioned' nor '{path}.prior.is_conditioned' is true, "
            "so that nothing depends on the observation: set one to true"
        )
    if prior.use_categorical and prior.categorical_min_temp > prior.categorical_init_temp:
        yield (
            f"'{path}.prior.categorical_min_temp' is {prior.categorical_min_temp}, above "
            f"'{path}.prior.categorical_init_temp' ({prior.categorical_init_temp}): lower it"
        )


def _critic_problems(path: str, section: Config) -> Iterator[str]:
    if _enabled(section, "distributional") and section.value_bounds is None:
        yield (
            f"'{path}.distributional' spreads its atoms over '{path}.value_bounds', which is null: "
            "give [lowest, highest]"
        )


def _net_problems(path: str, section: Config) -> Iterator[str]:
    kinds = [key for key in section if key not in ("type", "common")]
    if section.type not in kinds:
        listed = ", ".join(f"'{kind}'" for kind in kinds)
        yield f"'{path}.type' is '{section.type}': here it must be {listed}"


def _unet_problems(path: str, section: Config) -> Iterator[str]:
    dims, groups = list(section.down_dims), section.n_groups
    if any(dim % groups for dim in dims):
        yield (
            f"'{path}.down_dims' is {dims}, not all multiples of '{path}.n_groups' ({groups}): "
            "change one of them"
        )
    for key, what in {"kernel_size": 1, "diffusion_step_embed_dim": 0}.items():
        if section[key] % 2 != what:
            yield f"'{path}.{key}' is {section[key]}: it must be {'odd' if what else 'even'}"


def _diffusion_problems(config: BaseConfig) -> Iterator[str]:
    algo, train, horizon = config.algo, config.train, config.algo.horizon
    for key, other, value in (
        ("prediction_horizon", "train.seq_length", train.seq_length),
        ("observation_horizon", "train.frame_stack", train.frame_stack),
    ):
        if horizon[key] != value:
            yield (
                f"'algo.horizon.{key}' is {horizon[key]} but '{other}' is {value}: set both to the "
                "same number of steps"
            )
    most = horizon.prediction_horizon - horizon.observation_horizon + 1
    if horizon.action_horizon > most:
        yield (
            f"'algo.horizon.action_horizon' is {horizon.action_horizon}: of "
            f"{horizon.prediction_horizon} predicted steps only {most} lie ahead, so it must be at "
            f"most {most}"
        )
    for pair in (("unet", "transformer"), ("ddpm", "ddim")):
        chosen = _enabled(algo, *pair)
        if len(chosen) != 1:
            yield (
                f"{'both' if chosen else 'neither'} of 'algo.{pair[0]}.enabled' and "
                f"'algo.{pair[1]}.enabled' {'are' if chosen else 'is'} true: enable one"
            )
    for name in _enabled(algo, "ddpm", "ddim"):
        scheduler = algo[name]
        if scheduler.num_inference_timesteps > scheduler.num_train_timesteps:
            yield (
                f"'algo.{name}.num_inference_timesteps' is {scheduler.num_inference_timesteps}, "
                f"more than 'algo.{name}.num_train_timesteps' ({scheduler.num_train_timesteps}): "
                "lower it"
            )
    if _enabled(algo, "transformer") and algo.transformer.embed_dim % algo.transformer.num_heads:
        yield (
            f"'algo.transformer.embed_dim' is {algo.transformer.embed_dim}, which "
            f"{algo.transformer.num_heads} heads do not divide: change it or "
            "'algo.transformer.num_heads'"
        )
    if _enabled(algo, "unet"):
        halved = 2 ** (len(algo.unet.down_dims) - 1)
        if horizon.prediction_horizon % halved:
            yield (
                f"'algo.horizon.prediction_horizon' is {horizon.prediction_horizon}, which "
                f"{len(algo.unet.down_dims)} levels of 'algo.unet.down_dims' cannot halve: make it "
                f"a multiple of {halved}"
            )
