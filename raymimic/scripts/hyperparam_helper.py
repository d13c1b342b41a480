"""`python -m raymimic.scripts.hyperparam_helper`: robomimic's example of a sweep by configs.

Copy this file and change `make_generator`. `raymimic tune --configs FOLDER` trains and compares the
configs that it writes.
"""

import argparse
from typing import Any

from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.sweep.spec.config_generator import ConfigGenerator
from raymimic.terminal import shown


def make_generator(config_file: str, script_file: str | None) -> ConfigGenerator:
    """Describes the sweep: BC with a recurrent network, of several sizes and learning rates.

    Args:
        config_file: JSON config of `bc`, into which the values are put.
        script_file: shell script to write, with one training a line; None: none.
    """
    generator = ConfigGenerator(config_file, script_file=script_file)
    always: dict[str, Any] = {
        "algo.rnn.enabled": True,
        "train.seq_length": 10,
        "algo.rnn.horizon": 10,
    }
    for key, value in always.items():
        generator.add_param(key, name="", group=0, values=[value])
    rate = "algo.optim_params.policy.learning_rate.initial"
    generator.add_param(rate, name="plr", group=1, values=[1e-3, 1e-4])
    generator.add_param(
        "algo.gmm.enabled", name="gmm", group=2, values=[True, False], value_names=["t", "f"]
    )
    # Parameters of one group take their values together.
    generator.add_param("algo.rnn.hidden_dim", name="rnnd", group=3, values=[400, 1000])
    generator.add_param(
        "algo.actor_layer_dims",
        name="mlp",
        group=3,
        values=[[1024, 1024], []],
        value_names=["1024", "0"],
    )
    return generator


def main(args: argparse.Namespace) -> None:
    """Writes the configs of the sweep beside the base config, and a script that trains them."""
    for path in make_generator(args.config, args.script).generate():
        print(shown(path))
    if args.script:
        print(f"script: {shown(args.script)}")


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="hyperparam_helper", description=main.__doc__)
    parser.add_argument("--config", required=True, help="JSON config into which values are put")
    parser.add_argument("--script", help="shell script to write, with one training a line")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
