"""The list of robomimic's datasets: their URLs and the lengths of their episodes.

`raymimic.DATASET_REGISTRY` hands it out. Paths are those in the repository `HF_REPO_ID` of Hugging
Face; images are extracted from the raw files and lie nowhere.
"""

from typing import Any

__all__ = [
    "DATASET_REGISTRY",
    "HF_REPO_ID",
    "MOMART_DATASET_REGISTRY",
    "register_dataset_link",
    "register_momart_dataset_link",
]

HF_REPO_ID = "robomimic/robomimic_datasets"

DATASET_REGISTRY: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
"""`{task: {type of data: {kind of file: {"url": …, "horizon": …}}}}`."""

MOMART_DATASET_REGISTRY: dict[str, dict[str, dict[str, Any]]] = {}
"""`{task: {type of data: {"url": …, "size": …}}}`, the size in GB."""

_STANFORD = "http://downloads.cs.stanford.edu/downloads"


def register_dataset_link(
    task: str, dataset_type: str, hdf5_type: str, link: str | None, horizon: int
) -> None:
    """Adds a file.

    Args:
        task: such as `lift`.
        dataset_type: such as `ph`, of one proficient human.
        hdf5_type: such as `low_dim`.
        link: its path or URL; None: it lies nowhere.
        horizon: steps of an evaluation's episode.
    """
    files = DATASET_REGISTRY.setdefault(task, {}).setdefault(dataset_type, {})
    files[hdf5_type] = {"url": link, "horizon": horizon}


def register_momart_dataset_link(
    task: str, dataset_type: str, link: str, dataset_size: float
) -> None:
    """Adds a file of MOMART.

    Args:
        task: such as `unload_dishwasher`.
        dataset_type: such as `expert`.
        link: its URL.
        dataset_size: in GB.
    """
    files = MOMART_DATASET_REGISTRY.setdefault(task, {})
    files[dataset_type] = {"url": link, "size": dataset_size}


def hugging_face_url(repo_id: str, path: str) -> str:
    """The URL of a file of a dataset of Hugging Face.

    Args:
        repo_id: such as `HF_REPO_ID`.
        path: of the file there.
    """
    return f"https://huggingface.co/datasets/{repo_id}/resolve/main/{path}"


def url_of(link: str) -> str:
    """The URL of a file of the registries, whose links are URLs or paths in `HF_REPO_ID`."""
    return link if "://" in link else hugging_face_url(HF_REPO_ID, link)


def _register_all() -> None:
    human = ("raw", "low_dim", "image")
    machine = ("raw", "low_dim_sparse", "image_sparse", "low_dim_dense", "image_dense")
    horizons = {
        "ph": {"lift": 400, "can": 400, "square": 400, "transport": 700, "tool_hang": 700},
        "mh": {"lift": 500, "can": 500, "square": 500, "transport": 1100},
        "mg": {"lift": 400, "can": 400},
        "paired": {"can": 400},
    }
    for dataset_type, tasks in horizons.items():
        for task, horizon in tasks.items():
            for kind in machine if dataset_type == "mg" else human:
                name = "demo" if kind == "raw" else kind
                link = f"v1.5/{task}/{dataset_type}/{name}_v15.hdf5"
                has_file = not kind.startswith("image")
                register_dataset_link(task, dataset_type, kind, link if has_file else None, horizon)
    for task in ("lift_real", "can_real", "tool_hang_real"):
        link = f"{_STANFORD}/rt_benchmark/{task}/ph/demo.hdf5"
        register_dataset_link(task, "ph", "raw", link, 1000)
    sizes = {
        "table_setup_from_dishwasher": (14, 14, 3.3, 0.6),
        "table_setup_from_dresser": (16, 17, 3.1, 0.7),
        "table_cleanup_to_dishwasher": (23, 36, 5.3, 1.1),
        "table_cleanup_to_sink": (17, 28, 2.9, 0.8),
        "unload_dishwasher": (21, 27, 5.4, 1.0),
    }
    for task, of_type in sizes.items():
        types = ("expert", "suboptimal", "generalize", "sample")
        for dataset_type, size in zip(types, of_type, strict=True):
            link = f"{_STANFORD}/rt_mm/{dataset_type}/{task}_{dataset_type}.hdf5"
            register_momart_dataset_link(task, dataset_type, link, size)


_register_all()
