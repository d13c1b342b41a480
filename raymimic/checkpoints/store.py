"""Writes a run's checkpoints, and decides which ones are kept.

`checkpoints.json`, the manifest, lists the checkpoints of a run. It is replaced atomically after a
checkpoint's file is complete: a file that it does not list does not exist. So the same rule holds
on a local disk and on an object store, which cannot rename.

Rank 0 of a training is the only writer of the manifest and of `epochs.jsonl`. The driver is the
only writer of `evaluations.jsonl`. It writes an evaluation there before rank 0 hears of it, and
every reader of the manifest takes in the evaluations that it does not know yet. So no evaluation
is lost or counted twice, even after a kill.

Each checkpoint holds the manifest as it was at its commit, and the manifest holds each
checkpoint's SHA-256. So a manifest that is lost is rebuilt from the checkpoints, and a
checkpoint that was altered since is noticed: then the one before it counts.

Runs of 0.1.0 go on in their own layout: the manifest lies in `models/` and holds the evaluations,
and each checkpoint holds all epochs so far.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from raymimic import storage
from raymimic.checkpoints.content import CheckpointContent
from raymimic.checkpoints.digests import LAST, MANIFEST, check_digest, sha256_of
from raymimic.checkpoints.logs import EPOCHS, EVALUATIONS, EpochLog, EvaluationLog
from raymimic.checkpoints.manifest import Manifest, Scores, StoredCheckpoint
from raymimic.checkpoints.reading import read_checkpoint
from raymimic.checkpoints.records import EpochRecord, Evaluation, KeptCheckpoint
from raymimic.errors import CheckpointError
from raymimic.lease import Lease
from raymimic.tracking.episode_rows import knows_success

# Names of checkpoints' files, and of the temporary files that a killed process leaves.
_FILE = re.compile(r"model_epoch_(\d+)\.pth")
_REPLACED = "|".join(map(re.escape, (MANIFEST, LAST, f"{EPOCHS}.jsonl", f"{EVALUATIONS}.jsonl")))
_TEMPORARY = re.compile(rf"\.({_FILE.pattern}|{_REPLACED})\.\d+\.tmp")


class CheckpointStore:
    """The checkpoints of one run.

    Unlike robomimic, which keeps every checkpoint that was ever the best, this keeps only the
    present best of each kind. It keeps the last two in any case: where the last one turns out to
    be damaged, one commit is lost, however seldom the run keeps a checkpoint for good.

    Args:
        run_dir: folder or URI of the run.
        save: the config's `experiment.save`; `None` for a reader.
        lease: the permission to write behind a URI; None where none is needed.

    Attributes:
        folder: folder or URI of the checkpoints' files.
        history: the epochs until the checkpoint that was loaded last.
        notes: sentences for the user about damaged or lost files.

    Raises:
        CheckpointError: the manifest or the record of evaluations is damaged.
    """

    def __init__(self, run_dir: str, save: Any, lease: Lease | None = None) -> None:
        self.folder = storage.join(run_dir, "models")
        self.history: list[EpochRecord] = []
        self.notes: list[str] = []
        self._run_dir, self._save, self._lease = run_dir, save, lease
        self._epochs = EpochLog(run_dir, lease)
        self._unwritten: list[EpochRecord] = []  # of a checkpoint of 0.1.0
        self._manifest = Manifest()
        self._listed: set[str] = set()
        self._has_manifest = self._as_0_1 = False
        self._has_stale_copy = True
        for folder in (run_dir, self.folder):
            path = storage.join(folder, MANIFEST)
            try:
                content = storage.read_bytes(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise CheckpointError(
                    f"cannot read '{path}' ({error.strerror or error}); move it away, and "
                    "--resume rebuilds it from the run's checkpoints"
                ) from error
            self._as_0_1 = folder == self.folder
            self._manifest = Manifest.parse(content, path)
            self._listed = {entry.file for entry in self.entries}
            self._has_manifest = True
            self._take_in_log()
            break

    # -- reading --

    @property
    def manifest_path(self) -> str:
        """Path or URI of the manifest."""
        return storage.join(self.folder if self._as_0_1 else self._run_dir, MANIFEST)

    @property
    def has_evaluation_log(self) -> bool:
        """Whether the driver writes `evaluations.jsonl`; runs of 0.1.0 have none."""
        return not self._as_0_1

    @property
    def entries(self) -> list[StoredCheckpoint]:
        """All checkpoints."""
        return self._manifest.checkpoints

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations, in the order in which they came back."""
        return self._manifest.outcomes

    @property
    def scores(self) -> Scores:
        """The best scores so far."""
        return self._manifest.scores

    def path(self, entry: StoredCheckpoint) -> str:
        """Full path or URI of a checkpoint."""
        return storage.join(self.folder, entry.file)

    @property
    def last(self) -> StoredCheckpoint | None:
        """The newest checkpoint."""
        return max(self.entries, key=lambda e: e.epoch, default=None)

    @property
    def best(self) -> StoredCheckpoint | None:
        """The checkpoint of the best evaluation, or of the best validation loss without one."""
        for reason in ("best", "best_validation"):
            for entry in self.entries:
                if reason in entry.keep:
                    return entry
        return None

    @property
    def pending(self) -> list[StoredCheckpoint]:
        """Checkpoints that wait for their evaluation, oldest first."""
        return sorted((e for e in self.entries if e.pending), key=lambda e: e.epoch)

    def kept(self, at_end: bool = False) -> list[KeptCheckpoint]:
        """The checkpoints that are kept for a reason.

        Args:
            at_end: the training is over: without any other, the newest counts.
        """
        chosen = {entry.epoch: entry.keep for entry in self.entries if entry.keep}
        if at_end and not chosen and self.last is not None and self._save.enabled:
            chosen = {self.last.epoch: ["last"]}
        return [
            KeptCheckpoint(self.path(entry), entry.epoch, entry.sha256, tuple(chosen[entry.epoch]))
            for entry in self.entries
            if entry.epoch in chosen and entry.sha256 is not None
        ]

    def load_last(self) -> CheckpointContent | None:
        """Loads the newest checkpoint that is whole, and its epochs; forgets later ones.

        Where the manifest is lost, it is first rebuilt. Nothing is written.

        Returns:
            the checkpoint, or nothing when the run has none yet.

        Raises:
            CheckpointError: there are checkpoints, but none is whole; or the epochs are damaged.
        """
        content = self._load_newest() if self._has_manifest else self._rebuild()
        if content is None:
            self._epochs.load(None, "")
            return None
        assert self.last is not None
        # The manifest may know a later epoch's loss, which the same epoch must beat again.
        self.scores.best_valid_loss = content.best_valid_loss
        self.load_history(content, self.path(self.last))
        return content

    def _load_newest(self) -> CheckpointContent | None:
        reasons = []
        while (last := self.last) is not None:
            try:
                content = self._load(last)
            except CheckpointError as error:
                reasons.append(str(error))
                self._forget_after(last.epoch - 1)
                continue
            if reasons:
                self.notes.append(
                    f"{'; '.join(reasons)}: training goes on from '{last.file}', the newest "
                    "checkpoint that can be used"
                )
            return content
        if reasons:
            raise CheckpointError(
                f"no checkpoint of the run can be used ({'; '.join(reasons)}); restore one in "
                f"'{self.folder}', or start a new run"
            )
        return None

    def _load(self, entry: StoredCheckpoint) -> CheckpointContent:
        """Loads a checkpoint to go on from.

        Raises:
            CheckpointError: it is missing, damaged, or not the one that the manifest names.
        """
        path = self.path(entry)
        check_digest(path, entry.sha256)
        content = _read_resumable(path)
        if content.epoch != entry.epoch:
            raise CheckpointError(
                f"checkpoint '{path}' is of epoch {content.epoch}, not of {entry.epoch}, as "
                f"'{MANIFEST}' says"
            )
        return content

    def load_history(self, content: CheckpointContent, path: str) -> None:
        """Reads the epochs until a checkpoint.

        Args:
            content: the checkpoint.
            path: of its file, for messages.

        Raises:
            CheckpointError: they are damaged, or those of another run.
        """
        section = content.training
        self._unwritten = []
        if section.history is not None:
            try:
                self.history = section.history_records()
            except CheckpointError as error:
                raise CheckpointError(f"cannot go on from '{path}': {error}") from error
            if not self._as_0_1:  # a checkpoint of 0.1.0 that was put into a newer run
                self._unwritten = list(self.history)
                self._epochs.load(None, path)
        elif self._as_0_1:
            raise CheckpointError(
                f"checkpoint '{path}' is not one of this run, whose checkpoints hold their epochs; "
                "start a new run from its weights (experiment.ckpt_path)"
            )
        else:
            records = self._epochs.load(section.log_prefix, path)
            if records is None:
                self.notes.append(
                    f"'{self._epochs.path}' was lost: training goes on, but its records lack the "
                    f"metrics of the epochs up to {content.epoch}"
                )
            self.history = records or []
        epochs = [record.epoch for record in self.history]
        first = 1 if section.history is not None else content.epoch + 1 - len(epochs)
        if epochs != list(range(first, content.epoch + 1)):
            raise CheckpointError(
                f"cannot go on from '{path}': its epochs are not those up to {content.epoch}; "
                "--from chooses another checkpoint"
            )

    def _rebuild(self) -> CheckpointContent | None:
        """Rebuilds a lost manifest from the checkpoints; loads the newest complete one."""
        found = {
            int(match[1]): StoredCheckpoint(int(match[1]), match[0], ["found"], pending=True)
            for match in map(_FILE.fullmatch, storage.files(self.folder))
            if match
        }
        if not found:
            return None
        self._manifest = Manifest([found[epoch] for epoch in sorted(found)])
        self._listed = {entry.file for entry in self.entries}
        content = self._load_newest()
        assert content is not None  # or there was an error
        last = self.last
        assert last is not None
        self._as_0_1 = content.training.history is not None
        note = f"'{self.manifest_path}' was lost and is rebuilt from the run's checkpoints"
        carried = content.training.checkpoints
        if carried is not None:
            self._manifest = Manifest.parse(carried, self.path(last))
            self._manifest.checkpoints = [e for e in self.entries if e.epoch in found]
            for entry in self.entries:
                if entry.epoch == last.epoch:  # a checkpoint cannot hold its own digest
                    entry.sha256 = sha256_of(self.path(entry))
            self._take_in_log()
        else:  # written by 0.1.0
            for entry in self.entries:
                try:
                    self._load(entry)
                except CheckpointError as error:
                    self.notes.append(str(error))
                    entry.pending = False
            note += "; all of them are evaluated again, as nothing else says which is the best"
        self.notes.append(note)
        return content

    def _take_in_log(self) -> None:
        """Settles the evaluations in `evaluations.jsonl` that the manifest does not know yet.

        Raises:
            CheckpointError: the file is damaged.
        """
        if self._as_0_1:
            return
        log = EvaluationLog(self._run_dir)
        newest = max((entry.epoch for entry in self.entries), default=0)
        self._manifest.outcomes = [e for e in log.read() if e.epoch <= newest]
        epochs = {evaluation.epoch for evaluation in self.evaluations}
        lost = [e for e in self.entries if e.evaluated and e.epoch not in epochs]
        news = [e for e in self.entries if e.pending and e.epoch in epochs]
        for entry in (*lost, *news):
            entry.pending, entry.evaluated = entry in lost, entry in news
        if lost:
            self.notes.append(
                f"'{log.path}' lacks the evaluations of epochs "
                f"{', '.join(str(entry.epoch) for entry in lost)}: these checkpoints are evaluated "
                "again"
            )
        if self._save is None:
            return
        self._recount()
        if news:
            self._award()
            self._drop_unneeded()

    # -- writing --

    def commit(
        self,
        content: CheckpointContent,
        records: Sequence[EpochRecord],
        epoch: int,
        keep: list[str],
        pending: bool,
    ) -> StoredCheckpoint:
        """Writes a checkpoint, then makes it exist; deletes the ones that are no longer needed.

        Args:
            content: the checkpoint; this method fills in `variable_state`, the epochs and the
                manifest.
            records: the epochs since the checkpoint before.
            epoch: the epoch at whose end it was taken.
            keep: why it is to be kept (see `StoredCheckpoint`); nothing is, where saving is
                disabled.
            pending: it waits for an evaluation.

        Raises:
            OutputError: it cannot be written; the one before still exists.
            LeaseLostError: another process has taken over the run.
        """
        section = content.raymimic
        assert section is not None
        if self._as_0_1:
            self.history += records
            section.history = json.dumps([asdict(record) for record in self.history])
        else:
            section.epochs = asdict(self._epochs.append([*self._unwritten, *records]))
            self._unwritten = []
        entry = StoredCheckpoint(
            epoch, f"model_epoch_{epoch}.pth", keep if self._save.enabled else [], pending
        )
        if "best_validation" in entry.keep:
            self._withdraw("best_validation")
        content.variable_state = {"epoch": epoch, **asdict(self.scores)}
        self._manifest.checkpoints = [e for e in self.entries if e.epoch != epoch] + [entry]
        self._drop_unneeded()
        section.checkpoints = self._manifest.dump(self._as_0_1)
        data = io.BytesIO()  # torch says nothing useful of a file that cannot be written
        torch.save(content.to_dict(), data)
        entry.sha256 = hashlib.sha256(data.getbuffer()).hexdigest()
        if self._lease is not None:
            self._lease.check()
        storage.write_bytes(self.path(entry), data.getbuffer())
        self._write()
        return entry

    def adopt(self, data: bytes, epochs: bytes | None, epoch: int) -> None:
        """Begins a run with the checkpoint of another one.

        Args:
            data: content of its file.
            epochs: content of the other run's `epochs.jsonl`, which may have later epochs too;
                `None` where that run has the layout of 0.1.0.
            epoch: the epoch at whose end it was taken.

        Raises:
            OutputError: it cannot be written.
        """
        self._as_0_1 = epochs is None
        if epochs is not None:
            self._epochs.replace(epochs, epoch)
        sha256 = hashlib.sha256(data).hexdigest()
        entry = StoredCheckpoint(epoch, f"model_epoch_{epoch}.pth", sha256=sha256)
        storage.write_bytes(self.path(entry), data)
        self._manifest = Manifest([entry])
        self._write()

    def settle(self, evaluation: Evaluation) -> None:
        """Takes in an evaluation: its checkpoint waits no more, and may be the best so far."""
        entry = next((e for e in self.entries if e.epoch == evaluation.epoch), None)
        if entry is None or not entry.pending:
            return
        entry.pending, entry.evaluated = False, True
        self.evaluations.append(evaluation)
        self._count(evaluation)
        self._award()
        self._drop_unneeded()
        self._write()

    def finish(self) -> None:
        """Makes `last.pth` a copy of the newest checkpoint where no link is possible.

        Raises:
            OutputError: it cannot be written.
            LeaseLostError: another process has taken over the run.
        """
        last = self.last
        if last is None or self._as_0_1 or self._link_last(last):
            return
        if self._lease is not None:
            self._lease.check()
        content = storage.read_bytes(self.path(last))
        storage.write_bytes(storage.join(self._run_dir, LAST), content)

    def find(self, file: str) -> tuple[StoredCheckpoint, CheckpointContent]:
        """Finds a checkpoint to go back to.

        Args:
            file: its name in the folder `models`; the manifest need not list it.

        Raises:
            CheckpointError: it is missing, damaged, or no checkpoint to go on from.
        """
        if not self._has_manifest:
            self._rebuild()
        for entry in self.entries:
            if entry.file == file:
                return entry, self._load(entry)
        path = storage.join(self.folder, file)
        content = _read_resumable(path)
        return StoredCheckpoint(content.epoch, file, ["chosen"], sha256=sha256_of(path)), content

    def go_back_to(self, entry: StoredCheckpoint, content: CheckpointContent, aside: str) -> None:
        """Makes a checkpoint the newest one; moves all later ones away and deletes none.

        Args:
            entry: from `find`.
            content: from `find`.
            aside: folder or URI that takes the later checkpoints, with manifest, epochs and
                evaluations as they were.

        Raises:
            OutputError: it cannot be written.
            LeaseLostError: another process has taken over the run.
        """
        others = [e for e in self.entries if e.epoch != entry.epoch]
        later = [e for e in others if e.epoch > entry.epoch]
        if later:
            folder = storage.join(aside, "models") if self._as_0_1 else aside
            path = storage.join(folder, MANIFEST)
            storage.write_bytes(path, self._manifest.dump(self._as_0_1).encode())
            if not self._as_0_1:
                self._epochs.copy_to(aside)
                EvaluationLog(self._run_dir).copy_to(aside)
        self._manifest.checkpoints = [*others, entry]
        self._forget_after(entry.epoch)
        self.scores.best_valid_loss = content.best_valid_loss
        self._award()
        self._drop_unneeded()
        self._write()
        for moved in later:
            storage.move(self.path(moved), storage.join(aside, "models", moved.file))

    def tidy(self, evaluates: bool) -> None:
        """Clears up after a kill, before anything is written.

        Deletes only files that a killed process of this run provably left: temporary ones, a
        checkpoint that the manifest has dropped, and a commit that was not completed, with its
        epochs.

        Args:
            evaluates: whether anything will be evaluated; otherwise nothing waits for it.
        """
        if self._lease is not None:
            self._lease.check()
        for folder in (self._run_dir, self.folder):
            for name in filter(_TEMPORARY.fullmatch, storage.files(folder)):
                storage.remove(storage.join(folder, name))
        for name in filter(_FILE.fullmatch, storage.files(self.folder)):
            if name not in self._listed and self._is_left_over(name):
                storage.remove(storage.join(self.folder, name))
        if not self._as_0_1:
            last = self.last
            self._epochs.drop_after(last.epoch if last and not self._unwritten else 0)
        for entry in self.pending:
            try:
                if not evaluates:
                    entry.pending = False
                elif entry is not self.last:
                    self._load(entry)
            except CheckpointError as error:
                entry.pending = False
                self.notes.append(f"{error}: epoch {entry.epoch} remains without an evaluation")

    def _is_left_over(self, name: str) -> bool:
        path = storage.join(self.folder, name)
        for entry in self._manifest.dropped:
            if entry.file == name:
                return entry.sha256 is not None and entry.sha256 == sha256_of(path)
        last = self.last
        match = _FILE.fullmatch(name)
        if last is None or match is None or int(match[1]) <= last.epoch:
            return False
        try:
            section = read_checkpoint(path).raymimic
            if section is None or section.checkpoints is None:
                return False
            before = Manifest.parse(section.checkpoints, path).checkpoints
        except CheckpointError:
            return True  # half written, where a store writes in place
        return last.sha256 is not None and last.sha256 in [e.sha256 for e in before]

    # -- the manifest --

    def _forget_after(self, epoch: int) -> None:
        """Drops from the manifest all that came after an epoch; files stay."""
        self._manifest.checkpoints = [e for e in self.entries if e.epoch <= epoch]
        self._manifest.outcomes = [e for e in self.evaluations if e.epoch <= epoch]
        self._recount()

    def _recount(self) -> None:
        """Computes the best scores again; the best validation loss is kept."""
        self._manifest.scores = Scores(self.scores.best_valid_loss)
        for evaluation in self.evaluations:
            self._count(evaluation)

    def _count(self, evaluation: Evaluation) -> None:
        """Takes an evaluation into the best scores."""
        for best, values in (
            (self.scores.best_return, evaluation.returns),
            (self.scores.best_success_rate, evaluation.success_rates),
        ):
            for env, value in values.items():
                if math.isfinite(value):
                    best[env] = max(best.get(env, value), value)
        score = self._score(evaluation)
        if score is not None and (self.scores.best is None or score > self.scores.best):
            self.scores.best = score

    def _score(self, evaluation: Evaluation) -> list[float] | None:
        """Gives the rank for `best`: by success rate if the run saves by it, then by return.

        The rate is 0 if the environment reports no success, so that the return decides.
        """
        if not all(evaluation.episodes.values()):
            return None  # one environment failed altogether, and others are not comparable
        means = [
            sum(v.values()) / len(v) for v in (evaluation.success_rates, evaluation.returns) if v
        ]
        if not self._save.on_best_rollout_success_rate:
            means = means[-1:]
        return means if means and all(map(math.isfinite, means)) else None

    def _award(self) -> None:
        """Names the best checkpoint of each kind among those that exist.

        The first of equals stays, as their order is that in which evaluations came back.
        """
        if not self._save.enabled:
            return
        evaluations = self.evaluations
        self._give("best", [self._score(e) for e in evaluations])
        for env in {env: None for e in evaluations for env in e.returns}:
            if self._save.on_best_rollout_return:
                values = [e.returns.get(env) for e in evaluations]
                self._give(f"best_return/{env}", list(map(_finite, values)))
            if self._save.on_best_rollout_success_rate:
                values = [_success_rate(e, env) for e in evaluations]
                self._give(f"best_success_rate/{env}", list(map(_finite, values)))

    def _give(self, reason: str, scores: list[list[float] | None]) -> None:
        """Gives a reason to be kept to the existing checkpoint of the highest score.

        Args:
            reason: see `StoredCheckpoint`.
            scores: one for each evaluation; `None` where it does not count.
        """
        by_epoch = {entry.epoch: entry for entry in self.entries}
        rivals = [
            (score, by_epoch[evaluation.epoch])
            for score, evaluation in zip(scores, self.evaluations, strict=True)
            if score is not None and evaluation.epoch in by_epoch
        ]
        if rivals:
            self._withdraw(reason)
            max(rivals, key=lambda rival: rival[0])[1].keep.append(reason)

    def _withdraw(self, reason: str) -> None:
        for entry in self.entries:
            entry.keep = [r for r in entry.keep if r != reason]

    def _drop_unneeded(self) -> None:
        """Drops checkpoints that need not be kept; `_write` deletes the files."""
        newest = sorted(self.entries, key=lambda e: e.epoch)
        kept = [e for e in newest if e in newest[-2:] or e.pending or e.keep]
        self._manifest.dropped = [e for e in newest if e not in kept]
        self._manifest.checkpoints = kept

    def _write(self) -> None:
        """Replaces the manifest, then deletes the files that it has dropped."""
        if self._lease is not None:
            self._lease.renew()
        storage.write_bytes(self.manifest_path, self._manifest.dump(self._as_0_1).encode())
        self._has_manifest = True
        if self.last is not None and not self._as_0_1 and not self._link_last(self.last):
            if self._has_stale_copy:  # of an earlier training of this run
                storage.remove(storage.join(self._run_dir, LAST))
            self._has_stale_copy = False
        for entry in self._manifest.dropped:
            storage.remove(self.path(entry))

    def _link_last(self, entry: StoredCheckpoint) -> bool:
        """Lets `last.pth` be the newest checkpoint; returns whether a link is possible."""
        return storage.link(self.path(entry), storage.join(self._run_dir, LAST))


def _read_resumable(path: str) -> CheckpointContent:
    """Reads a checkpoint that a training can go on from.

    Raises:
        CheckpointError: it cannot be read, or is one to play with, such as robomimic's.
    """
    content = read_checkpoint(path)
    if not content.is_resumable:
        raise CheckpointError(
            f"checkpoint '{path}' is not one that a raymimic training wrote, and a training "
            "cannot go on with it; experiment.ckpt_path starts a new run from its weights"
        )
    return content


def _success_rate(evaluation: Evaluation, env: str) -> float | None:
    """The success rate in an environment; None if it does not report success.

    Evaluations of earlier versions lack the episodes: there a rate of 0 may mean no report.
    """
    rate, rows = evaluation.success_rates.get(env), evaluation.played.get(env)
    return rate if rate or (rows and knows_success(rows)) else None


def _finite(value: float | None) -> list[float] | None:
    return None if value is None or not math.isfinite(value) else [value]
