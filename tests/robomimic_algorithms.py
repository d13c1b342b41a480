"""Trains and plays robomimic's own algorithm files as algorithms of a user.

    python tests/robomimic_algorithms.py PATH [VARIANT …]

PATH is a checkout of robomimic 0.5, which is only read. Of each of its nine algorithms the two
files, in `config/` and `algo/`, become one module, in which imports and the algorithm's name are
changed and nothing else. Each of the 80 variants on low-dimensional observations (tests/golden)
then validates, acts and trains as such an algorithm, and its numbers are compared with robomimic's,
but those that docs/deviations.md names. Prints a line for each variant; the exit status is 1 where
one fails.
"""

import argparse
import math
import re
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from reference import compare, fill, golden_batch, log, make, numbers, observation, variants

from raymimic.config import BaseConfig, config_factory, import_modules

NAMES = ("bc", "bcq", "cql", "diffusion_policy", "gl", "hbc", "iql", "iris", "td3_bc")
IMPORTS = {
    r"\brobomimic\b": "raymimic",
    # robomimic wants version 0.11; later ones have another class of this name.
    r"\bdiffusers\.training_utils\b": "raymimic.utils.torch_utils",
}
# They train and act, with other numbers.
OTHERS = {
    "bcq_distributional": "values reach the last atom (docs/deviations.md)",
    "diffusion_policy_ddpm": "diffusers after 0.11 spans the steps that it leaves out",
}


def write_module(checkout: Path, name: str, folder: Path) -> str:
    """Writes an algorithm of robomimic as a user's module.

    Args:
        checkout: of robomimic.
        name: of the algorithm.
        folder: for the module.

    Returns:
        the name of the module, and of the algorithm in it.
    """
    files = [f"config/{name}_config.py", f"algo/{name}.py"]
    text = "\n".join((checkout / "robomimic" / file).read_text() for file in files)
    for theirs, ours in IMPORTS.items():
        text = re.sub(theirs, ours, text)
    text = re.sub(rf'(ALGO_NAME = |algo_factory_func\()"{name}"', rf'\1"their_{name}"', text)
    (folder / f"their_{name}.py").write_text(text)
    return f"their_{name}"


def config_of(variant: str) -> BaseConfig:
    """A variant's config, of the user's algorithm."""
    config = variants()[variant]["config"]
    name = f"their_{config['algo_name']}"
    return config_factory(name, {**config, "algo_name": name})


def run(variant: str) -> str:
    """Validates, acts and trains.

    Returns:
        how its numbers are.

    Raises:
        AssertionError: they are not robomimic's, or not finite.
    """
    config = config_of(variant)
    algo, raw = fill(make(config)), golden_batch(config, numbers()[variant]["idx"])
    if variant not in OTHERS:
        compare(variant, algo, raw)
        return "the numbers of robomimic"
    algo.set_train()
    assert all(math.isfinite(x) for _ in range(3) for x in log(algo, raw).values())
    algo.set_eval()
    algo.reset()
    obs = observation(raw, config, slice(0, 1))
    with torch.no_grad():
        assert algo.get_action({k: x.float() for k, x in obs.items()}).isfinite().all()
    return f"other numbers: {OTHERS[variant]}"


def main() -> None:
    """Runs the variants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="checkout of robomimic 0.5")
    parser.add_argument("variants", nargs="*", default=list(variants()), metavar="VARIANT")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # about their code
    failed = 0
    with tempfile.TemporaryDirectory() as folder, patch("sys.path", [*sys.path, folder]):
        import_modules([write_module(args.path, name, Path(folder)) for name in NAMES])
        for variant in args.variants:
            try:
                print(f"{variant}: {run(variant)}", flush=True)
            except Exception:  # their code may raise anything
                failed += 1
                print(f"{variant}: fails\n{traceback.format_exc()}", flush=True)
    print(f"{len(args.variants) - failed} of {len(args.variants)} variants train and act")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
