"""Where reports of datasets are kept, so that each is made once."""

import hashlib
from pathlib import Path

from raymimic.data.fetch import cache_dir

_VERSION = 1  # of the page


def kept_report(path: str | Path, digest: str) -> Path:
    """Place of the report of a dataset on this machine, whether or not it has been made.

    Args:
        path: path or URI of the dataset, of which the name counts.
        digest: of its content, see `raymimic.data.metadata.content_digest`.
    """
    name = Path(path).name
    own = hashlib.sha256(f"{_VERSION} {digest} {name}".encode(errors="replace")).hexdigest()[:20]
    return cache_dir() / "reports" / f"{own}.html"


def is_made(report: Path) -> bool:
    """Whether a report is there; none is in a folder that cannot be searched."""
    try:
        return report.is_file()
    except OSError:
        return False
