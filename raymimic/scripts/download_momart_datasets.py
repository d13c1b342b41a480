"""`python -m raymimic.scripts.download_momart_datasets`: robomimic's name for fetching MOMART's."""

import argparse

from raymimic import storage
from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.data.robomimic_datasets import MOMART_DATASET_REGISTRY
from raymimic.scripts.download_datasets import chosen, fetch

_TYPES = ["expert", "suboptimal", "generalize", "sample"]


def main(args: argparse.Namespace) -> None:
    """Downloads datasets of MOMART (https://arxiv.org/abs/2112.05251).

    robomimic asks whether it shall; here `--dry_run` tells the sizes beforehand.

    Args:
        args: robomimic's arguments.

    Raises:
        RaymimicError: see `fetch`.
    """
    tasks = chosen("--tasks", args.tasks, {"all": [*MOMART_DATASET_REGISTRY]})
    types = chosen("--dataset_types", args.dataset_types, {"all": _TYPES})
    folder = storage.expanded(args.download_dir).absolute()
    files = [
        (f"{task} {source} ({file['size']:g} GB)", file["url"], folder / task / source)
        for task, sources in MOMART_DATASET_REGISTRY.items()
        for source, file in sources.items()
        if task in tasks and source in types
    ]
    fetch(((text, url, place / url.split("/")[-1]) for text, url, place in files), args.dry_run)


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="download_momart_datasets", description="Downloads datasets of MOMART.")
    parser.add_argument("--download_dir", default="datasets", help="folder for them (datasets)")
    first = next(iter(MOMART_DATASET_REGISTRY))
    parser.add_argument("--tasks", nargs="+", default=[first], help=f"names, or all ({first})")
    parser.add_argument(
        "--dataset_types", nargs="+", default=["expert"], help=f"of {', '.join(_TYPES)}; or all"
    )
    parser.add_argument("--dry_run", action="store_true", help="download nothing, list it")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
