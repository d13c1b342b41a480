"""`python -m raymimic.scripts.download_datasets`: robomimic's name for fetching its datasets."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from raymimic import storage
from raymimic.cli.entry import run_script
from raymimic.cli.shared import Parser
from raymimic.data.download import download, is_whole_hdf5
from raymimic.data.robomimic_datasets import DATASET_REGISTRY, url_of
from raymimic.errors import ConfigError, OutputError, did_you_mean
from raymimic.terminal import shown


def chosen(option: str, given: Sequence[str], groups: Mapping[str, Sequence[str]]) -> set[str]:
    """The names that an option chooses.

    Args:
        option: such as `--tasks`.
        given: its words: names, or the name of one group.
        groups: names by that of a group; `all` has all.

    Raises:
        ConfigError: there is no such name, or a group stands beside other words.
    """
    if len(given) == 1 and given[0] in groups:
        return set(groups[given[0]])
    for name in given:
        if name in groups:
            raise ConfigError(f"{option} {name} stands alone: leave the other names out")
        if name not in groups["all"]:
            known = [*groups, *groups["all"]]
            raise ConfigError(f"{option}: there is no '{name}'{did_you_mean(name, known)}")
    return set(given)


def fetch(files: Iterable[tuple[str, str | None, Path]], dry_run: bool) -> None:
    """Downloads datasets, but those that are there.

    Args:
        files: of each the description, the URL (None: there is none) and the local file.
        dry_run: print the downloads, and start none.

    Raises:
        ConfigError: there are no files.
        OutputError: a file is there that is no whole HDF5 file, or one cannot be written.
        DatasetError: see `download`.
    """
    files = list(files)
    if not files:
        raise ConfigError("robomimic has no such dataset: name other tasks or types, or 'all'")
    for description, url, target in files:
        if url is None:
            print(f"{description}: lies nowhere; raymimic dataset extract-obs makes it of raw")
        elif dry_run:
            print(f"{description}: {url} would go to {shown(target)}")
        elif not target.exists():
            print(f"{description}: {url} goes to {shown(target)}", flush=True)
            download(url, target)
        elif is_whole_hdf5(target):
            print(f"{description}: is there already, {shown(target)}")
        else:
            raise OutputError(f"'{target}' is there, but is no whole HDF5 file: remove it")


def main(args: argparse.Namespace) -> None:
    """Downloads datasets of robomimic, which lie on Hugging Face, those of real robots at Stanford.

    Args:
        args: robomimic's arguments.

    Raises:
        RaymimicError: see `fetch`.
    """
    tasks = [*DATASET_REGISTRY]
    real = [task for task in tasks if "real" in task]
    groups = {"all": tasks, "sim": [task for task in tasks if task not in real], "real": real}
    types = _names(DATASET_REGISTRY.values())
    kinds = _names(files for of_task in DATASET_REGISTRY.values() for files in of_task.values())
    wanted_tasks = chosen("--tasks", args.tasks, groups)
    wanted_types = chosen("--dataset_types", args.dataset_types, {"all": types})
    wanted_kinds = chosen("--hdf5_types", args.hdf5_types, {"all": kinds})
    folder = storage.expanded(args.download_dir).absolute()
    fetch(
        (
            (f"{task} {source} {kind}", *_place(file["url"], folder / task / source))
            for task, sources in DATASET_REGISTRY.items()
            for source, files in sources.items()
            for kind, file in files.items()
            if task in wanted_tasks and source in wanted_types and kind in wanted_kinds
        ),
        args.dry_run,
    )


def _names(mappings: Iterable[Mapping[str, object]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _place(link: str | None, folder: Path) -> tuple[str | None, Path]:
    return (None, folder) if link is None else (url_of(link), folder / link.split("/")[-1])


def arguments() -> argparse.ArgumentParser:
    """The parser of robomimic's arguments."""
    parser = Parser(prog="download_datasets", description="Downloads datasets of robomimic.")
    parser.add_argument("--download_dir", default="datasets", help="folder for them (datasets)")
    parser.add_argument(
        "--tasks", nargs="+", default=["lift"], help="names, or all, sim or real (lift)"
    )
    parser.add_argument(
        "--dataset_types", nargs="+", default=["ph"], help="such as mh, or all (ph)"
    )
    parser.add_argument(
        "--hdf5_types", nargs="+", default=["low_dim"], help="such as raw, or all (low_dim)"
    )
    parser.add_argument("--dry_run", action="store_true", help="download nothing, list it")
    return parser


if __name__ == "__main__":
    run_script(arguments(), main)
