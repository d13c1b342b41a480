"""What must hold between an algorithm's settings, and between them and the data it is given.

An algorithm's parts have sections of their own, so settings are found by the names of sections,
wherever they are; only those that have the keys in question are looked at, as an algorithm of the
user's own may use the same names for something else.
"""

from __future__ import annotations

from collections.abc import Iterator

from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.config.config import Config
from raymimic.errors import did_you_mean


def algo_problems(config: BaseConfig) -> Iterator[str]:
    """Yields one sentence for each contradiction."""
    algo, train = config.algo, config.train
    for path, _ in sections_named(config, "optim_params"):
        name = path.removesuffix(".optim_params")
        yield from _parts_problems(name, config.get_path(name), train.seq_length)
    for path, section in _enabled_sections(algo, "rnn", "horizon"):
        yield from _rnn_problems(path, section, train.seq_length)
    for path, section in _enabled_sections(algo, "transformer", "num_heads"):
        yield from _transformer_problems(path, section, config)
    for path, section in _enabled_sections(algo, "vae", "prior"):
        yield from _vae_problems(path, section)
    for path, section in _enabled_sections(algo, "action_sampler", "gmm"):
        yield from _action_sampler_problems(path, section)
    for path, section in _enabled_sections(algo, "critic", "value_bounds"):
        yield from _critic_problems(path, section)
    for path, section in _enabled_sections(algo, "net", "common"):
        yield from _net_problems(path, section)
    for path, section in _enabled_sections(algo, "unet", "n_groups"):
        yield from _unet_problems(path, section)
    yield from _entropy_problems(algo)
    yield from _stack_problems(config)
    if "prediction_horizon" in _section(algo, "horizon"):
        yield from _diffusion_problems(config)
    if "latent_subgoal" in algo:
        yield from _hierarchy_problems(config)


def algo_warnings(config: BaseConfig) -> Iterator[str]:
    """Yields one sentence for each setting of an algorithm that will not do what it seems to."""
    for path, critic in _enabled_sections(config.algo, "critic", "value_bounds"):
        if _enabled(critic, "distributional") and critic.distributional.clip_to_second_atom:
            yield (
                f"'{path}.distributional' cuts every return off at the second lowest atom, as "
                f"robomimic does by mistake: set its 'clip_to_second_atom' to false for C51"
            )
    if "latent_subgoal" in config.algo:
        yield from _hierarchy_warnings(config)
    ddpm = _section(config.algo, "ddpm")
    if (
        _enabled(config.algo, "ddpm")
        and not ddpm.get("respace_steps", True)
        and ddpm.num_inference_timesteps < ddpm.num_train_timesteps
    ):
        yield (
            f"'algo.ddpm' leaves noise in the actions: each of its {ddpm.num_inference_timesteps} "
            f"inference steps removes that of one of {ddpm.num_train_timesteps} steps, as in "
            "robomimic; set 'algo.ddpm.respace_steps' to true, or use 'algo.ddim'"
        )


# -- finding sections --


def _section(section: Config, name: str) -> Config:
    """Returns the section of that name, an empty one where there is none."""
    value = section.get(name)
    return value if isinstance(value, Config) else Config()


def _enabled(section: Config, *names: str) -> list[str]:
    return [name for name in names if _section(section, name).get("enabled")]


def _enabled_sections(algo: Config, name: str, key: str) -> Iterator[tuple[str, Config]]:
    """Yields paths and sections of a name that have a key and are not switched off."""
    for path, section in sections_named(algo, name):
        if key in section and section.get("enabled", True):
            yield f"algo.{path}", section


def _and(section: str, keys: list[str]) -> str:
    return ", ".join(f"'{section}.{key}'" for key in keys)


# -- policies, planners, values --


def _parts_problems(name: str, algo: Config, seq_length: int) -> Iterator[str]:
    """Looks at ``config.algo``, or at the section of one of its parts (``name``)."""
    variants = _enabled(algo, "gaussian", "gmm", "vae")
    if len(variants) > 1:
        yield (
            f"{_and(name, variants)} exclude each other: set all but one '{name}.*.enabled' to "
            "false"
        )
    memories = _enabled(algo, "rnn", "transformer")
    if len(memories) > 1:
        yield f"{_and(name, memories)} exclude each other: set one '{name}.*.enabled' to false"
    heads = _enabled(algo, "gaussian", "vae")
    if heads and memories:
        yield (
            f"'{name}.{heads[0]}' and '{name}.{memories[0]}' cannot be combined: a policy with "
            f"memory is deterministic or a mixture ('{name}.gmm'); set one 'enabled' to false"
        )
    losses = _section(algo, "loss")
    if losses and not any(losses.values()):
        yield f"all weights in '{name}.loss' are 0 ({', '.join(losses)}): raise one"
    for key in ("n_step", "subgoal_horizon"):
        if algo.get(key, 1) > seq_length >= 1:
            yield (
                f"'{name}.{key}' is {algo[key]} but 'train.seq_length' is {seq_length}: raise "
                f"'train.seq_length' to {algo[key]}"
            )
    if algo.get("infinite_horizon") and algo.discount == 1:
        yield f"'{name}.infinite_horizon' divides by 1 - discount: set '{name}.discount' below 1"


def _action_sampler_problems(path: str, section: Config) -> Iterator[str]:
    if not _enabled(section, "vae", "gmm"):
        yield f"'{path}' samples from nothing: set '{path}.vae.enabled' or '{path}.gmm.enabled'"


def _rnn_problems(path: str, section: Config, seq_length: int) -> Iterator[str]:
    if section.horizon != seq_length:
        yield (
            f"'{path}.horizon' is {section.horizon} but 'train.seq_length' is {seq_length}: "
            "set both to the same number of steps"
        )
    if section.get("kwargs", {}).get("bidirectional"):
        yield (
            f"'{path}.kwargs.bidirectional' is true, but a policy that acts step by step does not "
            "know the steps to come: set it to false"
        )


def _transformer_problems(path: str, section: Config, config: BaseConfig) -> Iterator[str]:
    if section.embed_dim % section.num_heads:
        yield (
            f"'{path}.embed_dim' is {section.embed_dim}, which {section.num_heads} heads do not "
            f"divide: change it or '{path}.num_heads'"
        )
    if "context_length" not in section:
        return
    length, train = section.context_length, config.train
    if length != train.frame_stack:
        yield (
            f"'{path}.context_length' is {length} but 'train.frame_stack' is {train.frame_stack}: "
            "set both to the same number of steps"
        )
    if section.pred_future_acs and not section.supervise_all_steps:
        yield f"'{path}.pred_future_acs' needs '{path}.supervise_all_steps': set it to true"
    elif section.pred_future_acs and train.seq_length < length:
        yield (
            f"'{path}.pred_future_acs' predicts {length} steps but 'train.seq_length' is "
            f"{train.seq_length}: raise 'train.seq_length' to {length}"
        )


def _stack_problems(config: BaseConfig) -> Iterator[str]:
    own = type(config).__module__.startswith("raymimic.")  # a user's algorithm may do otherwise
    sees_stacks = "observation_horizon" in _section(config.algo, "horizon") or any(
        section.get("enabled") for _, section in sections_named(config.algo, "transformer")
    )
    if config.train.frame_stack > 1 and own and not sees_stacks:
        yield (
            f"'train.frame_stack' is {config.train.frame_stack}, but this policy sees one "
            "observation at a time: set it to 1, or 'algo.transformer.enabled' (bc) to true"
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
    bounds = section.value_bounds
    if bounds is not None and (len(bounds) != 2 or not bounds[0] < bounds[1]):
        yield f"'{path}.value_bounds' is {list(bounds)}: give [lowest, highest]"
    if _enabled(section, "distributional") and bounds is None:
        yield (
            f"'{path}.distributional' spreads its atoms over '{path}.value_bounds', which is null: "
            "give [lowest, highest]"
        )


def _entropy_problems(algo: Config) -> Iterator[str]:
    entropy = _section(algo, "actor").get("target_entropy")
    if isinstance(entropy, str) and entropy != "default":
        yield (
            f"'algo.actor.target_entropy' is '{entropy}': it must be a number, 'default' or null "
            "(a fixed weight of the entropy)"
        )


def _net_problems(path: str, section: Config) -> Iterator[str]:
    kinds = [key for key in section if key not in ("type", "common")]
    if section.type not in kinds:
        listed = " or ".join(f"'{kind}'" for kind in kinds)
        yield f"'{path}.type' is '{section.type}': it must be {listed}"


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
    if _enabled(algo, "unet"):
        halved = 2 ** (len(algo.unet.down_dims) - 1)
        if horizon.prediction_horizon % halved:
            yield (
                f"'algo.horizon.prediction_horizon' is {horizon.prediction_horizon}, which "
                f"{len(algo.unet.down_dims)} levels of 'algo.unet.down_dims' cannot halve: make it "
                f"a multiple of {halved}"
            )


# -- hierarchies --


def _hierarchy_problems(config: BaseConfig) -> Iterator[str]:
    """Looks at what a planner's subgoals are, and what the actor sees of them."""
    latent = config.algo.latent_subgoal.enabled
    if latent and "value_planner" in config.algo:
        yield (
            "'algo.latent_subgoal.enabled' is true, but values are of states, not of latents: set "
            "it to false, or train hbc"
        )
        return
    if latent and not config.algo.planner.vae.enabled:
        yield (
            "'algo.latent_subgoal.enabled' takes latents of the planner's VAE: set "
            "'algo.planner.vae.enabled' to true"
        )
    path, planned = _subgoal_keys(config)
    for key in _actors_goal_keys(config):
        if key not in planned:
            yield (
                f"'observation.actor.modalities.goal' names '{key}', which is no part of a subgoal "
                f"({path}){did_you_mean(key, planned)}"
            )


def _subgoal_keys(config: BaseConfig) -> tuple[str, list[str]]:
    """Returns the setting that says what subgoals are, and their keys."""
    if config.algo.latent_subgoal.enabled:
        return "algo.latent_subgoal.enabled", ["latent_subgoal"]
    path = next(
        path
        for path, groups in sections_named(config.observation, "modalities")
        if "subgoal" in groups
    )
    groups = config.observation.get_path(path).subgoal.values()
    return f"observation.{path}.subgoal", [key for keys in groups for key in keys]


def _actors_goal_keys(config: BaseConfig) -> list[str]:
    groups = config.observation.actor.modalities.goal.values()
    return [key for keys in groups for key in keys]


def _hierarchy_warnings(config: BaseConfig) -> Iterator[str]:
    if not _actors_goal_keys(config):
        _, planned = _subgoal_keys(config)
        yield (
            "'observation.actor.modalities.goal' is empty, so the actor does not see its subgoals "
            f"(as in robomimic): list there what it shall see, of {', '.join(planned)}"
        )
    trained = {"planner_only": "actor", "actor_only": "planner"}
    untrained = trained.get(config.algo.mode)
    if untrained and config.experiment.rollout.enabled and config.experiment.ckpt_path is None:
        yield (
            f"'algo.mode' is '{config.algo.mode}', so evaluation shows an untrained {untrained}: "
            "set 'experiment.ckpt_path' to a checkpoint that has one, or "
            "'experiment.rollout.enabled' to false"
        )
