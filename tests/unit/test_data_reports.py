"""Pages about a training's files, made beside it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from demo_files import write_demos
from waiting import wait_for

from raymimic.data.metadata import content_digest
from raymimic.training.data_reports import DataReports


@pytest.mark.slow
def test_a_file_without_a_report_takes_no_report_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    bad, good = tmp_path / "bad.hdf5", write_demos(tmp_path / "good.hdf5", [5, 6])
    bad.write_bytes(b"no dataset")  # any more
    paths = (str(bad), str(good))
    data = SimpleNamespace(paths=paths, digest=",".join(map(content_digest, paths)))
    reports = DataReports(data, ())  # type: ignore[arg-type]
    reports.make_missing()
    pages: list[Path] = []

    def complete() -> bool:
        pages.extend(reports.found())
        return bool(pages) and "is not made" in caplog.text

    wait_for(complete, "the page of one file and the warning about the other")
    reports.close()
    assert len(pages) == 1
    assert "good.hdf5" in pages[0].read_text()
    assert f"the report of the data is not made: dataset '{bad}'" in caplog.text
