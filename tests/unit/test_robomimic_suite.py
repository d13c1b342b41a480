"""The program that runs robomimic's own material, on a small checkout of our own."""

from pathlib import Path

import pytest
import robomimic_suite as suite

TESTS = """
import robomimic, sys
from robomimic.utils.log_utils import silence_stdout
with silence_stdout():
    print("unseen: passed!")
print(f"{robomimic.__name__}, first: \\033[32mpassed!\\033[0m")
print("a second: failed with error:\\nZeroDivisionError")
print("a third: maybe failed - stderr output below\\n100%")
print("a fourth: maybe failed - stderr output below\\nTraceback (most recent call last):")
print("last: passed!")
"""
PAGE = r"""
```sh
# a comment
$ python train.py --config <PATH_TO_CONFIG> --dataset \
    /path/to/dataset.hdf5
$ python download_datasets.py
$ conda create
$ cat out.sh
python never.py
```
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Files in the places of robomimic's."""
    files = {
        "robomimic/models/base_nets.py": "raise SystemExit('not this package')",
        "robomimic/config/default_templates/bc.json": "{}",
        "tests/test_one.py": TESTS,
        "tests/test_two.py": "print('first: passed!', flush=True)\nimport robomimic.none",
        "examples/good.py": "import robomimic.utils.tensor_utils\nnum_epochs = 50\n"
        "assert num_epochs == 2",
        "examples/bad.py": "import sys; sys.exit('a reason')",
        "docs/tutorials/page.md": PAGE,
    }
    for name, text in files.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "checkout"


def test_verdicts_are_counted(checkout: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkout.rglob("*")}
    bench = suite.Bench(checkout, tmp_path / "here")
    one, two = suite.tests(bench)
    assert one.passed == 3
    assert list(one.failed) == ["test_one.py: a second", "test_one.py: a fourth"]
    assert (two.passed, list(two.failed)) == (1, ["test_two.py"])
    assert "robomimic.none" in two.failed["test_two.py"]
    [part] = suite.examples(bench)
    assert (part.passed, list(part.failed)) == (1, ["bad.py"])
    assert "a reason" in part.failed["bad.py"]
    assert {path: path.stat().st_mtime_ns for path in checkout.rglob("*")} == before
    lines = list(suite.table("abc", [one, two, part]))
    assert "| `tests/test_one.py` | 3 of 5 |  |  |" in lines
    assert "- see above: `test_one.py: a second`, `test_one.py: a fourth`, " in lines[-1]


def test_commands_of_a_page(checkout: Path, tmp_path: Path, monkeypatch) -> None:
    bench = suite.Bench(checkout, tmp_path / "here")
    assert (bench.here / "robomimic/config/default_templates/bc.json").exists()
    ran = []
    monkeypatch.setattr(bench, "error", lambda *words, folder: ran.append((words[-1], folder)))
    [part] = suite.commands(bench)
    here, scripts = bench.here, bench.here / "robomimic/scripts"
    command = f"python train.py --debug --config {here}/config.json --dataset {here}/demos.hdf5"
    assert ran == [(command, scripts)]
    assert list(part.left) == ["docs/tutorials/page.md:6"]


def test_a_silent_process_is_ended(checkout: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(suite, "SILENCE_S", 1)
    bench = suite.Bench(checkout, tmp_path / "here")
    (bench.here / "examples/good.py").write_text("import time\ntime.sleep(600)")
    [part] = suite.examples(bench)
    assert "printed nothing for 1 s" in part.failed["good.py"]
