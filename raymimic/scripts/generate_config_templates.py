"""Writes a config of each built-in algorithm to `raymimic/exps/templates`.

Run `python -m raymimic.scripts.generate_config_templates` after a default has changed.
"""

from typing import Any

from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.config import BaseConfig, config_factory, get_all_registered_configs
from raymimic.config.templates import TEMPLATES
from raymimic.sweep.spec.config_generator import write_text

STATE = ["robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object"]
# Templates that are not an algorithm's defaults: the algorithm, and the differences.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bc_rnn": (
        "bc",
        {
            "train.seq_length": 10,
            "algo.actor_layer_dims": [],
            "algo.gmm.enabled": True,
            "algo.rnn.enabled": True,
        },
    ),
    # As robomimic's template of this name, without its settings of images.
    "bc_transformer": (
        "bc",
        {
            "train.frame_stack": 10,
            "algo.optim_params.policy.optimizer_type": "adamw",
            "algo.optim_params.policy.learning_rate.epoch_schedule": [100],
            "algo.optim_params.policy.learning_rate.scheduler_type": "linear",
            "algo.optim_params.policy.regularization.L2": 0.01,
            "algo.actor_layer_dims": [],
            "algo.gmm.enabled": True,
            "algo.transformer.enabled": True,
        },
    ),
    # By default, as in robomimic, the actor does not see its subgoals.
    "hbc": ("hbc", {"observation.actor.modalities.goal.low_dim": STATE}),
    "iris": ("iris", {"observation.actor.modalities.goal.low_dim": STATE}),
}


def templates() -> dict[str, BaseConfig]:
    """Returns the config of each template: every built-in algorithm's, and the variants'."""
    configs = {
        name: config_factory(name)
        for name, cls in get_all_registered_configs().items()
        if cls.__module__.startswith("raymimic.")
    }
    for name, (algo, settings) in VARIANTS.items():
        configs[name] = config_factory(algo)
        for key, value in settings.items():
            configs[name].set_path(key, value)
    return configs


def main() -> None:
    """Writes each algorithm's config, and other templates, into raymimic's own folder of these."""
    for name, config in templates().items():
        write_text(TEMPLATES / f"{name}.json", f"{config.dump()}\n")


if __name__ == "__main__":
    parser = Parser(prog="generate_config_templates", description=main.__doc__)
    run_script(parser, lambda _: main())
