"""Rules stand in an algorithm's config class, and hold wherever its settings stand."""

import math
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from waiting import DEADLINE_S

from raymimic.config import BaseConfig, BCConfig, TD3_BCConfig, config_factory, parse_set
from raymimic.config.base_config import REGISTERED_CONFIGS
from raymimic.config.bcq_config import BCQConfig
from raymimic.config.checks import problems, warnings_for
from raymimic.config.describe import describe
from raymimic.config.limits import Limits, limits_of, perturbable
from raymimic.config.q_learning_config import QLearningConfig
from raymimic.config.sections import (
    ABOVE_0,
    BoundedCriticSection,
    OptimizerSection,
    Section,
    VAESection,
)
from raymimic.errors import ConfigError
from raymimic.sweep.spec.sweep_file import sweep_from_dict


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Forgets the classes of a test."""
    before = dict(REGISTERED_CONFIGS)
    yield
    REGISTERED_CONFIGS.clear()
    REGISTERED_CONFIGS.update(before)


def mistakes(cls: type[BaseConfig], *assignments: str) -> list[str]:
    config = cls()
    config.train.data = "demos.hdf5"
    for assignment in assignments:
        config.set_path(*parse_set(assignment))
    return problems(config)


POSITIVE, AT_LEAST_0, AT_LEAST_1 = "greater than 0", "at least 0", "at least 1"
STD = "one of 'softplus', 'exp'"
RULES = {
    "td3_bc": {
        "algo.alpha": AT_LEAST_0,
        "algo.target_tau": "between 0 and 1",
        "algo.critic.max_gradient_norm": POSITIVE,
        "algo.critic.ensemble.weight": "between 0 and 1",
        "algo.critic.value_bounds": "",
        "algo.optim_params.actor.optimizer_type": "one of 'adam', 'adamw'",
        "algo.optim_params.actor.start_epoch": "at least -1",
        "train.batch_size": AT_LEAST_1,
        "ray.cpus_per_worker": "at least 0.001",
    },
    "bc": {
        "algo.loss.cos_weight": AT_LEAST_0,
        "algo.gaussian.init_std": POSITIVE,
        "algo.gaussian.std_activation": STD,
        "algo.rnn.rnn_type": "one of 'LSTM', 'GRU'",
        "algo.transformer.block_output_dropout": "between 0 and 1",
        "algo.transformer.activation": "one of 'gelu', 'geglu'",
        "algo.vae.prior.categorical_min_temp": "at least 1e-06",
    },
    "bcq": {
        "algo.discount": "between 0 and 1",
        "algo.critic.num_action_samples_rollout": AT_LEAST_1,
        "algo.critic.distributional.num_atoms": "at least 2",
        "algo.action_sampler.vae.latent_clip": POSITIVE,
        "algo.action_sampler.gmm.num_modes": AT_LEAST_1,
        "algo.actor.perturbation_scale": AT_LEAST_0,
    },
    "cql": {
        "algo.critic.min_q_weight": AT_LEAST_0,
        "algo.critic.target_q_gap": "",  # negative: a fixed weight
        "algo.actor.net.common.std_activation": STD,
        "algo.actor.net.gaussian.init_last_fc_weight": AT_LEAST_0,
    },
    "iql": {
        "algo.adv.beta": "at least 1e-06",
        "algo.vf_quantile": "between 0 and 1",
        "algo.actor.net.gmm.num_modes": AT_LEAST_1,
        "algo.critic.layer_dims": AT_LEAST_1,
    },
    "diffusion_policy": {
        "algo.horizon.action_horizon": AT_LEAST_1,
        "algo.unet.diffusion_step_embed_dim": "at least 4",
        "algo.ddim.prediction_type": "one of 'epsilon', 'sample', 'v_prediction'",
        "algo.ddpm.num_inference_timesteps": AT_LEAST_1,
        "algo.transformer.attn_dropout": "between 0 and 1",
        "algo.optim_params.policy.learning_rate.warmup_steps": AT_LEAST_0,
    },
    "gl": {"algo.subgoal_horizon": AT_LEAST_1, "algo.ae.planner_layer_dims": AT_LEAST_1},
    "hbc": {
        "algo.mode": "one of 'separate', 'cascade', 'planner_only', 'actor_only'",
        "algo.planner.subgoal_horizon": AT_LEAST_1,
        "algo.planner.vae.kl_weight": AT_LEAST_0,
        "algo.actor.loss.l1_weight": AT_LEAST_0,
        "algo.actor.rnn.hidden_dim": AT_LEAST_1,
    },
    "iris": {
        "algo.mode": "one of 'separate', 'cascade', 'planner_only', 'actor_only'",
        "algo.value_planner.num_samples": AT_LEAST_1,
        "algo.value_planner.planner.optim_params.goal_network.learning_rate.initial": AT_LEAST_0,
        "algo.value_planner.value.n_step": AT_LEAST_1,
        "algo.value_planner.value.action_sampler.vae.latent_dim": AT_LEAST_1,
        "algo.actor.actor_layer_dims": AT_LEAST_1,
    },
}


@pytest.mark.parametrize("algo", RULES)
def test_ranges_and_choices_of_the_built_in(algo):
    cls = type(config_factory(algo))
    assert {path: limits_of(cls, path).in_words() for path in RULES[algo]} == RULES[algo]


@pytest.mark.parametrize(
    ("bounds", "choices", "words"),
    [
        (None, None, ""),
        ((-math.inf, math.inf), None, ""),
        ((-math.inf, 3), None, "at most 3"),
        ((0, math.inf), None, AT_LEAST_0),
        ((-2, 0.5), None, "between -2 and 0.5"),
        ((ABOVE_0, math.inf), None, POSITIVE),
        ((ABOVE_0, 1), None, "greater than 0 and at most 1"),
        ((2, 2), None, "at least 2 and at most 2"),
        (None, (None, "all"), "one of null, 'all'"),
        ((1, math.inf), (0, 1, 2), "one of 0, 1, 2 and at least 1"),
    ],
)
def test_limits_in_words(bounds, choices, words):
    limits = Limits(range=bounds, choices=choices, example=None, nullable=False)
    assert limits.in_words() == words


def test_a_mixin_brings_rules_too():
    class Sizes:
        RANGES: ClassVar[Mapping[str, Any]] = {"algo.size": (1, 8)}

    def algo_config(self: Any) -> None:
        self.algo.size = 4

    body = {"algo_config": algo_config}
    mixed = type("Mixed", (Sizes, BaseConfig), {"ALGO_NAME": "mixed", **body})
    assert mistakes(mixed, "algo.size=9") == ["'algo.size' is 9: it must be between 1 and 8"]
    lacking = type("Lacking", (Sizes, BaseConfig), {"ALGO_NAME": "lacking"})
    assert "Sizes.RANGES names 'algo.size'" in mistakes(lacking)[0]


def test_types_that_defaults_do_not_show():
    config = type(config_factory("iris"))
    path = "algo.value_planner.value"
    assert limits_of(config, f"{path}.critic.value_bounds").example == [-1.0, 1.0]
    assert limits_of(config, "algo.actor.optim_params.policy.num_epochs").example == 1
    assert limits_of(type(config_factory("cql")), "algo.critic.target_q_gap").nullable
    assert not limits_of(config, f"{path}.target_tau").nullable


PERTURBABLE = {
    "td3_bc": ["algo.alpha", "algo.target_tau", *(f"{net}" for net in ("critic", "actor"))],
    "bc": ["policy"],
    "iql": ["algo.target_tau", "critic", "vf", "actor"],
}


@pytest.mark.parametrize("algo", PERTURBABLE)
def test_a_population_perturbs_what_the_config_class_lists(algo):
    expected = {
        key if "." in key else f"algo.optim_params.{key}.learning_rate.initial"
        for key in PERTURBABLE[algo]
    }
    assert set(perturbable(type(config_factory(algo)))) == expected


class Annealed(QLearningConfig):
    """An algorithm as a user would write it; `algo.prior` is a section of raymimic's."""

    RANGES: ClassVar[Mapping[str, Any]] = {
        "algo.beta": (0, math.inf),
        "algo.prior.latent_dim": (4, 8),
    }
    CHOICES: ClassVar[Mapping[str, Any]] = {"algo.mode": ("fast", "exact")}
    EXAMPLES: ClassVar[Mapping[str, Any]] = {"algo.clip": 1.0}
    NULLABLE = ("algo.beta",)
    PERTURBABLE = ("algo.beta",)

    def algo_config(self) -> None:
        super().algo_config()
        self.algo.optim_params.actor.learning_rate.initial = 1e-4
        self.algo.optim_params.critic = OptimizerSection(3e-4)
        self.algo.beta = 3.0  # weight of imitation
        self.algo.clip = None  # bound of the advantage
        self.algo.mode = "fast"  # way to integrate
        self.algo.prior = VAESection()
        self.algo.prior.latent_dim = 6
        self.algo.prior.enabled = True
        self.algo.critic = BoundedCriticSection()
        self.algo.low_level = BCConfig().algo
        self.observation.low_level = BCConfig().observation


@pytest.fixture
def annealed() -> type[BaseConfig]:
    return type("Annealed", (Annealed,), {"ALGO_NAME": "annealed", "__module__": "users_own"})


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        ([], None),
        (["algo.beta=-1"], "'algo.beta' is -1: it must be at least 0"),
        (["algo.beta=null"], None),
        (["algo.clip=high"], "'algo.clip' is 'high': it must be a number or null"),
        (["algo.mode=slow"], "'algo.mode' is 'slow': it must be one of 'fast', 'exact'"),
        (["algo.discount=2"], "'algo.discount' is 2: it must be between 0 and 1"),  # its base's
        (["algo.n_step=3"], "raise 'train.seq_length' to 3"),
        (["algo.prior.latent_dim=3"], "'algo.prior.latent_dim' is 3: it must be between 4 and 8"),
        (["algo.prior.kl_weight=-1"], "'algo.prior.kl_weight' is -1: it must be at least 0"),
        (["algo.prior.prior.use_gmm=true"], "set 'algo.prior.prior.learn' to true"),
        (["algo.critic.value_bounds=[1, 0]"], "'algo.critic.value_bounds' is [1, 0]: give"),
        (
            ["algo.optim_params.actor.learning_rate.epoch_schedule=[2, 1]"],
            "'algo.optim_params.actor.learning_rate.epoch_schedule' is [2, 1]: list the epochs",
        ),
        (["algo.low_level.gmm.num_modes=0"], "'algo.low_level.gmm.num_modes' is 0: it must be"),
        (["algo.low_level.loss.l2_weight=0"], "all weights in 'algo.low_level.loss' are 0"),
        (
            ["algo.low_level.gmm.enabled=true", "algo.low_level.gaussian.enabled=true"],
            "'algo.low_level.gaussian', 'algo.low_level.gmm' exclude each other: set all but one "
            "'algo.low_level.*.enabled' to false",
        ),
        (["train.frame_stack=2"], "this policy sees one observation at a time"),
    ],
)
def test_a_users_own_has_the_rules_of_its_bases_sections_and_parts(annealed, assignments, message):
    found = mistakes(annealed, *assignments)
    assert len(found) == (message is not None), found
    assert message is None or message in found[0]


def test_warnings_of_a_part():
    def algo_config(self: Any) -> None:
        self.algo.value = BCQConfig().algo
        self.algo.value.critic.value_bounds = [0.0, 1.0]
        self.algo.value.critic.distributional.enabled = True

    cls = type("Parted", (BaseConfig,), {"ALGO_NAME": "parted", "algo_config": algo_config})
    assert mistakes(cls) == []
    (warning,) = warnings_for(cls())
    assert warning.startswith("'algo.value.critic.distributional' cuts every return off")


def test_rules_do_not_depend_on_the_module():
    for module in ("raymimic.algo.mine", "users_own"):
        name = module.replace(".", "_")
        body = {"ALGO_NAME": name, "__module__": module}
        of_bc = type(name, (BCConfig,), body)
        assert mistakes(of_bc, "algo.loss.l2_weight=0") == mistakes(
            BCConfig, "algo.loss.l2_weight=0"
        )
        assert "at least 1" in mistakes(of_bc, "algo.gmm.num_modes=0")[0]

        def algo_config(self: Any) -> None:
            self.algo.gmm.num_modes = 5
            self.algo.loss.l2_weight = 1.0

        of_none = type(
            name, (BaseConfig,), {**body, "ALGO_NAME": f"{name}_", "algo_config": algo_config}
        )
        assert mistakes(of_none, "algo.gmm.num_modes=0", "algo.loss.l2_weight=0") == []
        assert mistakes(of_none, "train.batch_size=0") != []


def test_a_subclass_may_drop_keys_of_its_base():
    def algo_config(self: Any) -> None:
        self.algo.beta = 1.0

    cls = type("Lean", (TD3_BCConfig,), {"ALGO_NAME": "lean", "algo_config": algo_config})
    assert limits_of(cls, "algo.beta").in_words() == ""
    assert perturbable(cls) == []


def test_copies_and_pickles_keep_the_rules(annealed):
    config = config_factory("iris")
    config.train.data = "demos.hdf5"
    config.algo.value_planner.value.n_step = 11
    config.algo.value_planner.planner.vae.prior.use_gmm = True
    expected = problems(config)
    assert len(expected) == 2
    assert problems(config.deepcopy()) == expected
    assert problems(pickle.loads(pickle.dumps(config))) == expected


def test_a_section_states_rules_for_keys_that_it_has():
    class Wrong(Section):
        RANGES: ClassVar[Mapping[str, Any]] = {"sise": (0, 1)}

        def section_config(self) -> None:
            self.size = 1.0

    def algo_config(self: Any) -> None:
        self.algo.net = Wrong()

    cls = type("OfWrong", (BaseConfig,), {"ALGO_NAME": "of_wrong", "algo_config": algo_config})
    (message,) = mistakes(cls)
    assert message.endswith("Wrong.RANGES names 'sise'; did you mean 'size'?")


# -- raymimic config --


def line_of(text: str, path: str) -> str:
    (line,) = [line for line in text.splitlines() if line.lstrip("# ").startswith(f"{path} = ")]
    return line


def test_config_prints_limits_beside_the_comments():
    text = describe("td3_bc")
    setting, notes = line_of(text, "algo.alpha").split("  # ")
    assert setting.rstrip() == "algo.alpha = 2.5"
    assert notes == "weight of the Q term against imitation (eq. 5); at least 0"
    assert line_of(text, "algo.critic.layer_dims").endswith("# hidden layers; each at least 1")
    assert line_of(text, "train.dtype").endswith("; one of 'float32', 'float64'")
    assert line_of(text, "algo.critic.use_huber").endswith("instead of the squared one")
    rate = "algo.optim_params.actor.learning_rate"
    assert line_of(text, f"{rate}.warmup_steps").startswith(f"# {rate}.warmup_steps = 0")
    assert line_of(text, f"{rate}.num_cycles").endswith("over the training; at least 0")


def test_config_prints_the_limits_of_a_users_own(annealed):
    text = describe("annealed")
    assert line_of(text, "algo.beta").endswith("# weight of imitation; at least 0")
    assert line_of(text, "algo.mode").endswith("# way to integrate; one of 'fast', 'exact'")
    assert line_of(text, "algo.prior.latent_dim").endswith("of the latent; between 4 and 8")
    assert line_of(text, "algo.low_level.gmm.min_std").endswith("standard deviation; at least 0")


def test_the_command_prints_them_too(tmp_path: Path) -> None:
    (tmp_path / "users_ranges.py").write_text(
        "from raymimic.config import BaseConfig\n"
        "class Own(BaseConfig):\n"
        "    ALGO_NAME = 'users_ranges'\n"
        "    RANGES = {'algo.flow_steps': (1, 100)}\n"
        "    def algo_config(self):\n"
        "        self.algo.flow_steps = 10  # steps of the integration\n"
    )
    command = [sys.executable, "-m", "raymimic", "config", "users_ranges"]
    run = subprocess.run(
        [*command, "--import", "users_ranges"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    line = line_of(run.stdout, "algo.flow_steps")
    assert line.endswith("# steps of the integration; between 1 and 100")


# -- users of the rules --


def population(algo: str, path: str) -> dict[str, Any]:
    return {
        "name": "population",
        "algo": algo,
        "dataset": "demos.hdf5",
        "space": {path: {"uniform": [0.5, 1.0]}},
        "search": "random",
        "seeds": [1],
        "scheduler": "pbt",
        "metric": "Rollout/Return",
        "budget": {"trials": 4},
        "set": {
            "experiment.epoch_every_n_steps": 50,
            "experiment.rollout.rate": 1,
            "train.num_epochs": 20,
        },
    }


def test_a_sweep_asks_the_config_class_what_pbt_may_change(annealed):
    sweep_from_dict(population("annealed", "algo.beta"))
    sweep_from_dict(population("td3_bc", "algo.alpha"))
    with pytest.raises(ConfigError, match=r"'space.algo.discount' cannot change.*list it in PERTU"):
        sweep_from_dict(population("annealed", "algo.discount"))


def test_robomimic_knows_no_algorithm_of_a_users_own_name():
    assert BCConfig.IN_ROBOMIMIC
    assert type("Tuned", (BCConfig,), {}).IN_ROBOMIMIC
    assert not type("Named", (BCConfig,), {"ALGO_NAME": "named"}).IN_ROBOMIMIC
    assert not Annealed.IN_ROBOMIMIC
