"""`raymimic tune`: trains many settings with several seeds each, and compares them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from raymimic.cli.shared import add_allow_links, add_import, add_set, json_text, positive
from raymimic.errors import ConfigError

if TYPE_CHECKING:
    from raymimic.sweep.spec.sweep_spec import SweepSpec


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic tune`."""
    parser.description = (
        "Train many settings with several seeds each on Ray Tune, and compare them."
    )
    add_import(parser)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP.yaml", help="the sweep file")
    parser.add_argument(
        "--configs", metavar="FOLDER", help="train each JSON config of a folder, as of robomimic"
    )
    parser.add_argument("--dataset", metavar="FILE.hdf5", help="training data, path or URI")
    add_allow_links(parser)
    add_set(parser, "change a key of the sweep or of its config, such as budget.trials=8")
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--resume", action="store_true", help="continue the newest sweep of this name"
    )
    either.add_argument(
        "--dry-run", action="store_true", help="print the trials and the estimated cost"
    )
    parser.add_argument(
        "--max-concurrent", type=positive, metavar="N", help="run at most N trials at a time"
    )
    parser.add_argument(
        "--json", action="store_true", help="print the result as one line of JSON at the end"
    )


def run(args: argparse.Namespace) -> None:
    """Runs or continues a sweep, or prints its trials and their estimated cost."""
    from raymimic.config.base_config import import_modules

    for values in (args.imports, args.set):  # they take all words that follow
        if args.sweep is None and values and values[-1].endswith((".yaml", ".yml")):
            args.sweep = values.pop()
    import_modules(args.imports)
    spec = _spec(args)
    # The trials' processes import them too.
    train = spec.base_config["train"]
    train["imports"] = sorted({*train["imports"], *args.imports})
    if args.dry_run:
        from raymimic.sweep.cost import estimate_cost

        estimate = estimate_cost(spec)
        if args.json:
            print(json_text(estimate.to_dict()), flush=True)
        else:
            print("\n".join(estimate.lines()), flush=True)
        return
    from raymimic.sweep import tuner

    result = tuner.run(spec, resume=args.resume)
    if args.json:
        print(json_text(result.to_dict()), flush=True)


def _spec(args: argparse.Namespace) -> SweepSpec:
    """The sweep that the arguments describe."""
    from raymimic.config.base_config import parse_set
    from raymimic.sweep.spec.sweep_file import sweep_from_file

    changes = [parse_set(assignment) for assignment in args.set]
    if args.dataset is not None:
        changes.append(("dataset", args.dataset))
    if args.allow_links:
        changes.append(("train.allow_links", args.allow_links))
    if (args.sweep is None) == (args.configs is None):
        raise ConfigError("nothing to tune: give either a sweep's YAML file or --configs FOLDER")
    if args.max_concurrent is not None:
        changes.append(("max_concurrent", args.max_concurrent))
    if args.configs is not None:
        from raymimic.sweep.spec.config_folder import configs_in

        return configs_in(args.configs, changes)
    return sweep_from_file(args.sweep, changes)
