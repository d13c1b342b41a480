"""Reads each checkpoint of a folder as `raymimic evaluate` does; a line of JSON for each.

A program of its own: a crash of the interpreter or a lack of memory ends it alone.
"""

import json
import resource
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymimic.checkpoints.policy import policy_from_checkpoint
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.errors import RaymimicError

MOST_MEMORY = 8 * 2**30


def as_torch_reads(path: Path) -> Any:
    with torch.serialization.safe_globals(
        [
            np.ndarray,
            np.dtype,
            np.dtypes.Float64DType,
            np._core.multiarray._reconstruct,
            np._core.multiarray.scalar,
        ]
    ):
        return torch.load(path, weights_only=True)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two contents are equal; statistics are arrays here and there."""
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(same(ours[k], theirs[k]) for k in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(theirs, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    return bool(np.array_equal(ours, theirs, equal_nan=isinstance(theirs, float)))


def read(path: Path) -> dict[str, Any]:
    try:
        content = load_dict_from_checkpoint(str(path))
        try:
            theirs = as_torch_reads(path)
        except RuntimeError:  # its own zip reader stumbles over entries without content
            theirs = as_torch_reads(path.parent / "originals" / path.name)
        # The section `raymimic` has an order of its own.
        for found in (content, theirs):
            if isinstance(found.get("raymimic"), dict):
                found["raymimic"] = dict(sorted(found["raymimic"].items()))
        # The rest is brought into today's form.
        kept = [k for k in theirs if k not in ("config", "obs_normalization_stats")]
        if not same({k: content[k] for k in kept}, {k: theirs[k] for k in kept}):
            return {"wrong": "differs from torch's reading"}
        policy, _ = policy_from_checkpoint(str(path))
        policy.start_episode(seeds=None)
        shapes = {**policy.policy.obs_shapes, **policy.policy.goal_shapes}
        policy({key: np.zeros(shape) for key, shape in shapes.items()})
    except RaymimicError as error:
        return {"refused": str(error)}
    except BaseException:
        return {"wrong": traceback.format_exc()}
    return {"equal": True}


def main(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    torch.set_num_threads(1)
    for path in sorted(folder.glob("*.pth")):
        print(json.dumps({"file": path.name, **read(path)}), flush=True)
    # Not `ru_maxrss`, which begins at the memory of the process that this one was forked from.
    status = Path("/proc/self/status").read_text()
    print(json.dumps({"kilobytes": int(status.partition("VmHWM:")[2].split()[0])}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
