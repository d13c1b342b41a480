"""Runs robomimic's own tests, examples, notebooks and documentation on raymimic.

    python tests/robomimic_suite.py PATH [PART …] [--only PATTERN] [--dataset test_v15.hdf5]

PATH is a checkout of robomimic, which is only read. Its parts are copied into a temporary folder,
in which raymimic stands in the place of the package; there `import robomimic` gives raymimic. The
tests need robomimic's small dataset of robosuite's task Lift; without `--dataset`, twelve demos are
recorded. `--only` runs the cases whose names match it. Prints a line for each case, and at the end
the table of docs/from_robomimic.md. The exit status is 1 where a case fails that should pass.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "tests/programs/robomimic_page.py"
SILENCE_S = 1200
"""A process that prints nothing for so long is ended [s]."""

# Texts that a reader replaces, and long trainings made short, in the copies of examples and pages.
EDITS = [
    (r"(?<![\w/])/tmp/", "{here}/tmp/"),
    (r"num_epochs = \d+", "num_epochs = 2"),
    (r"--n_rollouts \d+ --horizon \d+", "--n_rollouts 2 --horizon 20"),
    (r"\bdataset_states_to_obs.py --", "dataset_states_to_obs.py --n 1 --"),
    (r"\btrain.py --", "train.py --debug --"),
    (r"image.hdf5 \\", r"compressed.hdf5 \\"),  # raymimic replaces no file
    (  # robomimic's defaults lie in the package
        r"\bgenerate_paper_configs.py --output_dir",
        "generate_paper_configs.py --config_dir {here}/robomimic/exps/paper "
        "--dataset_dir {here}/datasets --output_dir",
    ),
    (r"model_dict, /path/to/ckpt.pth", r'model_dict, "saved.pth"'),
    (r"ckpt_path=/path/to/ckpt.pth", r'ckpt_path="model.pth"'),
    (r"/?path/to/(ckpt|model).pth", "{here}/model.pth"),
    (r"/?path/to/(the/)?(dataset|demo).hdf5|<PATH_TO_POSTPROCESSED_DATASET>", "{here}/demos.hdf5"),
    (r"/path/to/walker2d_medium_expert.hdf5", "{here}/walker2d.hdf5"),
    (r"/path/to/config.json|<PATH_TO_CONFIG>", "{here}/config.json"),
    (r"low_dim_v141.hdf5", "low_dim_v15.hdf5"),
    (r"<FILTER_KEY_NAME>", "train"),
    (r"/path/to/robomimic/", "{here}/robomimic/"),
    (r"/path/to/(output|desired)", "{here}/output"),
    (r'"cuda:0"', '"cuda:0" if torch.cuda.is_available() else "cpu"'),
    (r"core_kwargs = \.\.\.", "core_kwargs = {}"),
    (r'ALGO_NAME = "|register_algo_factory_func\("', r"\g<0>my_"),  # raymimic's stay
]

# The first cell of each notebook.
DOWNLOADS = """
import shutil, urllib.request
import robomimic.utils.file_utils as FileUtils
FileUtils.download_url = lambda url, download_dir: shutil.copy(
    "{here}/demos.hdf5", f"{download_dir}/low_dim_v15.hdf5"
)
urllib.request.urlretrieve = lambda url, filename: shutil.copy("{here}/model.pth", filename)
"""

# Commands of the pages that are not run.
LEFT = {
    r"download_(?!.*--dry_run)|convert_d4rl": "downloads",
    r"convert_roboturk_pilot": "needs files of RoboTurk",
    r"test\.sh": "the tests above",
}

# Cases that are wrong in themselves: they fail with robomimic too.
FAULTS = {
    "docs/datasets/robosuite.md:71": "the option is `--shaped`",
    "docs/modules/algorithms.md:159": "takes three values of `env.step`, which returns four",
    "docs/modules/configs.md:25": "`json.load` of a text",
    "docs/modules/dataset.md:8": "`SequenceDataset` without `action_keys` and `action_config`",
    "docs/modules/models.md:54": "`VisualCore` has no argument `core_class`",
    "docs/modules/models.md:108": "`VisualCore` has no argument `core_class`",
    "docs/tutorials/tensor_collections.md:68": "lacks a comma",
}


@dataclass
class Part:
    """A row of the table.

    Attributes:
        name: first column.
        passed: number of cases that ran.
        failed: cases that failed, with their errors.
        faults: cases that are wrong in themselves, with the reasons.
        left: cases that were not run, with the reasons.
    """

    name: str
    passed: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def add(self, case: str, error: str | None) -> None:
        """Counts a case, and says so.

        Args:
            case: its name.
            error: None where it ran.
        """
        fault = FAULTS.get(case)
        if error is None:
            self.passed += 1
        elif fault is not None:
            self.faults[case] = fault
        else:
            self.failed[case] = error
        verdict = "passed" if error is None else "failed" if fault is None else "wrong in itself"
        print(f"{time.strftime('%H:%M:%S')} {verdict}: {case}", flush=True)
        if error is not None:
            print(f"    {error[-2000:]}", flush=True)

    def judge(self, case: str, told: Sequence[str]) -> None:
        """Counts a case of a test.

        Args:
            case: its name; empty: there is none yet.
            told: its verdict, and the lines printed after it. `maybe failed` stands for anything
                on the standard error.
        """
        text = "\n".join(told)
        passed = {"passed": True, "failed": False}.get(
            told[0], not re.search("Traceback|error:", text)
        )
        if case:
            self.add(case, None if passed else text)


class Bench:
    """A temporary folder that looks like a checkout whose package is raymimic.

    Args:
        checkout: robomimic's.
        here: the folder.
        only: pattern of the names of the cases to run. The cases of one process count as one,
            named by their file.
    """

    def __init__(self, checkout: Path, here: Path, only: str = "") -> None:
        self.here = here
        self.only = re.compile(only)
        self._env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(here),  # holds `sitecustomize`, which all processes import
            "PYTHONUNBUFFERED": "1",
            "RAYMIMIC_AS_ROBOMIMIC": "replace",
            "RAYMIMIC_CACHE": str(here / "cache"),
            "TMPDIR": str(here / "tmp"),
        }
        skip = shutil.ignore_patterns("__pycache__", "*.py", "images")
        shutil.copytree(checkout / "robomimic", here / "raymimic", ignore=skip)
        shutil.copytree(ROOT / "raymimic", here / "raymimic", dirs_exist_ok=True)
        (here / "robomimic").symlink_to("raymimic")
        for name in ("tests", "examples", "docs"):
            shutil.copytree(checkout / name, here / name, ignore=shutil.ignore_patterns("images"))
        for name in ("tmp/gen_configs", "generated"):
            (here / name).mkdir(parents=True)
        (here / "sitecustomize.py").write_text("import raymimic.as_robomimic\n")
        for path in (*here.glob("examples/**/*.*"), *here.glob("docs/**/*.md")):
            text = path.read_text()
            for pattern, to in EDITS:
                text = re.sub(pattern, to.replace("{here}", str(here)), text)
            path.write_text(text)

    def files(self, pattern: str) -> Iterator[Path]:
        """The files to run, in the order of their names.

        Args:
            pattern: of their paths in the folder.
        """
        for path in sorted(self.here.glob(pattern)):
            if self.only.search(str(path.relative_to(self.here))):
                yield path

    def lines(self, *words: str | Path, folder: Path | None = None) -> Iterator[str]:
        """Runs a command, and gives each line that it prints.

        Args:
            words: of the command.
            folder: where it runs, by default the bench's.

        Raises:
            RuntimeError: it fails, or is silent for too long.
        """
        with subprocess.Popen(
            [str(word) for word in words],
            cwd=folder or self.here,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            last: deque[str] = deque(maxlen=30)
            while True:
                timer = threading.Timer(SILENCE_S, os.killpg, (process.pid, signal.SIGKILL))
                timer.start()
                line = process.stdout.readline()
                timer.cancel()
                if not line:
                    break
                last.append(line)
                yield line.rstrip("\n")
        if process.returncode == -signal.SIGKILL:
            raise RuntimeError(f"it printed nothing for {SILENCE_S} s, or ran out of memory")
        if process.returncode:
            raise RuntimeError(f"exit status {process.returncode}: {''.join(last)}")

    def error(self, *words: str | Path, folder: Path | None = None) -> str | None:
        """Runs a command; returns the end of its output where it failed, else None.

        Args:
            words: see `lines`.
            folder: see `lines`.
        """
        try:
            for _ in self.lines(*words, folder=folder):
                pass
        except RuntimeError as error:
            return str(error)
        return None

    def prepare(self, dataset: Path | None) -> None:
        """Brings the dataset, and trains a policy on it for three steps.

        Args:
            dataset: robomimic's `test_v15.hdf5`; None: twelve demos are recorded.

        Raises:
            RuntimeError: that fails.
        """
        demos = self.here / "demos.hdf5"
        raymimic = (sys.executable, "-m", "raymimic")
        make = (*raymimic, "dataset", "make", "--actors", "0")
        few = ("--expert", "300", "--medium", "300", "--out", "walker2d.hdf5")
        commands = [(*make, "walker2d-medium-expert", *few)]
        if dataset is not None:
            shutil.copy(dataset, demos)
        else:
            cameras = ("--cameras", "agentview,robot0_eye_in_hand", "--depth", "--next-obs")
            commands += [
                (*make, "robosuite-lift", "--demos", "12", *cameras, "--out", demos),
                (*raymimic, "dataset", "split", demos, "--ratio", "0.2"),
            ]
        shutil.copy(self.here / "raymimic/exps/templates/bc.json", self.here / "config.json")
        train = (*raymimic, "train", "--config", "config.json", "--dataset", demos, "--debug")
        quiet = ("--workers", "0", "--set", f"train.output_dir={self.here}/tmp")
        for words in (*commands, (*train, *quiet, "mlflow.enabled=false")):
            for line in self.lines(*words):
                print(f"    {line}", flush=True)
        shutil.copy(next((self.here / "tmp").glob("**/models/*.pth")), self.here / "model.pth")
        for place in ("tests/assets/test_v15.hdf5", "datasets/lift/ph/low_dim_v15.hdf5"):
            (self.here / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(demos, self.here / place)


def tests(bench: Bench) -> Iterator[Part]:
    """Runs the files of `tests/`, which print a line for each of their cases."""
    verdict = re.compile(r"(\S.*): (?:\x1b\[\d+m)?((?:maybe )?failed|passed)")
    for path in bench.files("tests/test_*.py"):
        part = Part(f"`tests/{path.name}`")
        case, told = "", [""]
        try:
            for line in bench.lines(sys.executable, path.name, folder=path.parent):
                if (found := verdict.match(line)) is None:
                    told.append(line)
                    continue
                part.judge(case, told)
                case, told = f"{path.name}: {found[1]}", [found[2]]
            part.judge(case, told)
        except RuntimeError as error:
            part.judge(case, told)
            part.add(path.name, str(error))
        yield part


def examples(bench: Bench) -> Iterator[Part]:
    """Runs the scripts of `examples/`."""
    part = Part("examples")
    for path in bench.files("examples/*.py"):
        words = ["--debug"] if "--debug" in path.read_text() else []
        part.add(path.name, bench.error(sys.executable, path, *words))
    yield part


def notebooks(bench: Bench) -> Iterator[Part]:
    """Runs the notebooks, behind a cell that replaces their downloads."""
    part = Part("notebooks")
    for path in bench.files("examples/notebooks/*.ipynb"):
        book = json.loads(path.read_text())
        source = DOWNLOADS.replace("{here}", str(bench.here))
        cell = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        book["cells"].insert(0, {**cell, "source": source})
        path.write_text(json.dumps(book))
        part.add(path.name, bench.error(sys.executable, "-m", "jupyter", "execute", path))
    yield part


def python(bench: Bench) -> Iterator[Part]:
    """Runs the Python blocks of the pages."""
    part = Part("Python blocks of `docs/`")
    for path in bench.files("docs/**/*.md"):
        page = str(path.relative_to(bench.here))
        if "```python" not in path.read_text():
            continue
        try:
            for line in bench.lines(
                sys.executable, ROOT / "tests/programs/robomimic_page.py", page
            ):
                if line.startswith('{"line": '):
                    told = json.loads(line)
                    part.add(f"{page}:{told['line']}", told["error"])
        except RuntimeError as error:
            part.add(page, str(error))
    yield part


def commands(bench: Bench) -> Iterator[Part]:
    """Runs the commands of the pages that start Python, in robomimic's folder of scripts."""
    part = Part("commands of `docs/`")
    for path in sorted(bench.here.glob("docs/**/*.md")):
        for line, command in shell(path.read_text()):
            case = f"{path.relative_to(bench.here)}:{line}"
            if not bench.only.search(case):
                continue
            reason = next((LEFT[key] for key in LEFT if re.search(key, command)), None)
            if reason is not None:
                part.left[case] = reason
                continue
            in_root = (bench.here / command.split()[1]).exists()
            folder = bench.here if in_root else bench.here / "robomimic" / "scripts"
            error = bench.error("bash", "-c", command, folder=folder)
            part.add(case, error and f"{command}: {error}")
    yield part


def shell(page: str) -> Iterator[tuple[int, str]]:
    """The lines and texts of a page's commands that run Python or copy a file.

    Lines after `$ cat FILE` are its output.
    """
    for block in re.finditer(r"^ *```(?:sh|bash)\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL):
        text = re.split(r"^\$ cat ", block[1], maxsplit=1, flags=re.MULTILINE)[0]
        for found in re.finditer(
            r"^(?:\$ )?((?:python |bash |cp \.\./)(?:.*\\\n)*.*)", text, re.MULTILINE
        ):
            line = page.count("\n", 0, block.start(1) + found.start()) + 1
            yield line, re.sub(r"\s*\\\n\s*", " ", found[1])


def table(commit: str, parts: Sequence[Part]) -> Iterator[str]:
    """The lines of the table, and of the lists below it."""
    yield f"Of robomimic at commit `{commit}`:"
    yield ""
    yield "| | passed | faulty in robomimic too | not run |"
    yield "|---|---|---|---|"
    for part in parts:
        ran = part.passed + len(part.failed) + len(part.faults)
        numbers = (f"{part.passed} of {ran}", len(part.faults) or "", len(part.left) or "")
        yield f"| {part.name} | {' | '.join(map(str, numbers))} |"
    for title, told in (
        ("These fail with robomimic too", [part.faults for part in parts]),
        ("Not run", [part.left for part in parts]),
        ("Failed", [dict.fromkeys(part.failed, "see above") for part in parts]),
    ):
        cases = {case: reason for one in told for case, reason in one.items()}
        if cases:
            yield f"\n{title}:\n"
        for reason in dict.fromkeys(cases.values()):
            names = ", ".join(f"`{case}`" for case in cases if cases[case] == reason)
            yield f"- {reason}: {names}"


PARTS: dict[str, Callable[[Bench], Iterator[Part]]] = {
    run.__name__: run for run in (tests, examples, notebooks, python, commands)
}


def main() -> int:
    """Runs the parts that are asked for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkout", type=Path, help="robomimic's, which is only read")
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--dataset", type=Path, help="test_v15.hdf5 (default: one is recorded)")
    parser.add_argument("--only", default="", help="pattern of the cases to run (default: all)")
    args = parser.parse_args()
    if unknown := sorted({*args.parts} - PARTS.keys()):
        parser.error(f"there is no part '{unknown[0]}'")
    git = ["git", "-C", str(args.checkout), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    done: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="suite-") as folder:
        bench = Bench(args.checkout.resolve(), Path(folder).resolve(), args.only)
        bench.prepare(args.dataset)
        for name in args.parts or PARTS:
            done.extend(PARTS[name](bench))
    print("\n".join(table(commit, done)))
    return int(any(part.failed for part in done))


if __name__ == "__main__":
    sys.exit(main())
