"""What a checkpoint holds, when it exists, and which ones are kept.

`models/checkpoints.json` lists the checkpoints of a run and is replaced atomically after a
checkpoint's file is complete: a file that it does not list does not exist. So the same rule holds
on a local disk and on an object store, which cannot rename. The list also carries what the
evaluations found, so that none is lost or counted twice over a crash.
"""

import io
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from raymimic.errors import CheckpointError
from raymimic.utils import storage
from raymimic.utils.file_utils import load_dict_from_checkpoint

MANIFEST = "checkpoints.json"


@dataclass(frozen=True)
class Outcome:
    """What the evaluation of one checkpoint found.

    Attributes:
        epoch: the epoch at whose end the checkpoint was taken.
        metrics: all numbers to log, by full metric name.
        returns: mean return by environment.
        success_rates: success rate in 0..1 by environment.
        episodes: return of every episode by environment.
    """

    epoch: int
    metrics: dict[str, float]
    returns: dict[str, float]
    success_rates: dict[str, float]
    episodes: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Entry:
    """One committed checkpoint.

    Attributes:
        epoch: the epoch at whose end it was taken.
        file: its name in the folder `models`.
        keep: why it is kept beyond being the last one: `epochs`, `time`, `best_validation`,
            `best_return/<env>`, `best_success_rate/<env>`, `best`.
        pending: its evaluation has not come back yet.
    """

    epoch: int
    file: str
    keep: list[str] = field(default_factory=list)
    pending: bool = False


@dataclass
class Scores:
    """The best scores so far, under the names of robomimic's `variable_state`."""

    best_valid_loss: float | None = None
    best_return: dict[str, float] = field(default_factory=dict)
    best_success_rate: dict[str, float] = field(default_factory=dict)
    best: list[float] | None = None

    def record_validation(self, loss: float) -> bool:
        """Notes an epoch's validation loss; whether it is the best so far."""
        if not math.isfinite(loss):
            return False
        if self.best_valid_loss is not None and not loss < self.best_valid_loss:
            return False
        self.best_valid_loss = loss
        return True


class CheckpointStore:
    """The checkpoints of one run.

    Written by the first rank while training runs and by the driver after it, never by both.
    Unlike robomimic, which keeps every checkpoint that was ever the best, only the present best
    of each kind is kept.

    Args:
        run_dir: folder or URI of the run.
        save: the config's `experiment.save`.
    """

    def __init__(self, run_dir: str, save: Any) -> None:
        self.folder = storage.join(run_dir, "models")
        self._save = save
        self.entries: list[Entry] = []
        self.outcomes: list[Outcome] = []
        self.scores = Scores()
        self._read_manifest()

    # -- reading --

    def _read_manifest(self) -> None:
        path = storage.join(self.folder, MANIFEST)
        try:
            manifest = json.loads(storage.read_bytes(path))
        except FileNotFoundError:
            return
        except ValueError as error:
            raise CheckpointError(f"'{path}' is damaged: {error}") from error
        self.entries = [Entry(**entry) for entry in manifest["checkpoints"]]
        self.outcomes = [Outcome(**outcome) for outcome in manifest["outcomes"]]
        self.scores = Scores(**manifest["scores"])

    def path(self, entry: Entry) -> str:
        """Full path or URI of a checkpoint."""
        return storage.join(self.folder, entry.file)

    @property
    def last(self) -> Entry | None:
        """The newest checkpoint."""
        return max(self.entries, key=lambda e: e.epoch, default=None)

    @property
    def best(self) -> Entry | None:
        """The checkpoint of the best evaluation, or of the best validation loss without one."""
        for reason in ("best", "best_validation"):
            for entry in self.entries:
                if reason in entry.keep:
                    return entry
        return None

    @property
    def pending(self) -> list[Entry]:
        """Checkpoints that wait for their evaluation, oldest first."""
        return sorted((e for e in self.entries if e.pending), key=lambda e: e.epoch)

    def load_last(self) -> dict[str, Any] | None:
        """Loads the newest checkpoint, or nothing when the run has none yet."""
        return load_dict_from_checkpoint(self.path(self.last)) if self.last else None

    # -- writing --

    def commit(self, ckpt: dict[str, Any], epoch: int, keep: list[str], pending: bool) -> Entry:
        """Writes a checkpoint, then makes it exist; what need not be kept any more goes.

        Args:
            ckpt: the checkpoint; its `variable_state` is filled in here.
            epoch: the epoch at whose end it was taken.
            keep: why it is to be kept (see `Entry`); nothing is, where saving is disabled.
            pending: it waits for an evaluation.

        Raises:
            OutputError: it cannot be written; the one before still exists.
        """
        entry = Entry(
            epoch, f"model_epoch_{epoch}.pth", keep if self._save.enabled else [], pending
        )
        if "best_validation" in entry.keep:
            self._withdraw("best_validation")
        ckpt["variable_state"] = {"epoch": epoch, **asdict(self.scores)}
        data = io.BytesIO()  # torch says nothing useful of a file that cannot be written
        torch.save(ckpt, data)
        storage.write_bytes(self.path(entry), data.getbuffer())
        self.entries = [e for e in self.entries if e.epoch != epoch] + [entry]
        self._write()
        return entry

    def adopt(self, data: bytes, epoch: int) -> None:
        """Begins a run with the checkpoint of another one.

        Args:
            data: content of its file.
            epoch: the epoch at whose end it was taken.

        Raises:
            OutputError: it cannot be written.
        """
        entry = Entry(epoch, f"model_epoch_{epoch}.pth")
        storage.write_bytes(self.path(entry), data)
        self.entries = [entry]
        self._write()

    def settle(self, outcome: Outcome) -> None:
        """Takes in an evaluation: its checkpoint waits no more, and may be the best so far."""
        entry = next((e for e in self.entries if e.epoch == outcome.epoch), None)
        if entry is None or not entry.pending:
            return
        entry.pending = False
        self.outcomes.append(outcome)
        for kind, wanted, best, values in (
            ("return", self._save.on_best_rollout_return, self.scores.best_return, outcome.returns),
            (
                "success_rate",
                self._save.on_best_rollout_success_rate,
                self.scores.best_success_rate,
                outcome.success_rates,
            ),
        ):
            for env, value in values.items():
                if math.isfinite(value) and (env not in best or value > best[env]):
                    best[env] = value
                    if wanted:
                        self._promote(entry, f"best_{kind}/{env}")
        score = self._score(outcome)
        if score is not None and (self.scores.best is None or score > self.scores.best):
            self.scores.best = score
            self._promote(entry, "best")
        self._write()

    def _score(self, outcome: Outcome) -> list[float] | None:
        """What `best` ranks by: success rate first where that is what is saved, then return."""
        means = [sum(v.values()) / len(v) for v in (outcome.success_rates, outcome.returns) if v]
        if not self._save.on_best_rollout_success_rate or self._save.on_best_rollout_return:
            means = means[-1:]
        return means if means and all(map(math.isfinite, means)) else None

    def tidy(self, evaluates: bool) -> None:
        """Clears up after a kill, before anything is written.

        Args:
            evaluates: whether anything will be evaluated; otherwise nothing waits for it.
        """
        listed = {MANIFEST, *(entry.file for entry in self.entries)}
        for name in storage.files(self.folder):
            if name not in listed:
                storage.remove(storage.join(self.folder, name))
        if not evaluates:
            for entry in self.entries:
                entry.pending = False

    def _promote(self, entry: Entry, reason: str) -> None:
        if self._save.enabled:
            self._withdraw(reason)
            entry.keep.append(reason)

    def _withdraw(self, reason: str) -> None:
        for entry in self.entries:
            entry.keep = [r for r in entry.keep if r != reason]

    def _write(self) -> None:
        """Replaces the manifest, then deletes the files that it no longer lists."""
        last = self.last
        kept = [e for e in self.entries if e is last or e.pending or e.keep]
        dropped = [e for e in self.entries if e not in kept]
        self.entries = kept
        manifest = {
            "checkpoints": [asdict(e) for e in sorted(kept, key=lambda e: e.epoch)],
            "outcomes": [asdict(o) for o in self.outcomes],
            "scores": asdict(self.scores),
        }
        storage.write_bytes(
            storage.join(self.folder, MANIFEST), json.dumps(manifest, indent=2).encode()
        )
        for entry in dropped:
            storage.remove(self.path(entry))
