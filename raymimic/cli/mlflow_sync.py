"""`raymimic mlflow sync`: delivers the records that a tracking server missed."""

import argparse
import sys
from pathlib import Path

from raymimic.errors import OutputError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `raymimic mlflow sync`."""
    parser.add_argument("run_dir", nargs="?", default=".", help="folder of the run (default: here)")


def run(args: argparse.Namespace) -> None:
    """Delivers the records of one run.

    Raises:
        OutputError: some could not be delivered.
    """
    from raymimic.tracking.mlflow_tracker import sync

    report = sync(Path(args.run_dir))
    for remark in report.remarks:
        print(f"warning: {remark}", file=sys.stderr)
    where = f"MLflow{f' run {report.run_id}' * bool(report.run_id)} at {report.server}"
    print(f"delivered {report.delivered} records to {where}")
    if report.reason:
        raise OutputError(
            f"the records of '{args.run_dir}' are not complete in MLflow: {report.reason}; "
            f"{report.left} of them wait there, and nothing is lost: try again later"
        )
