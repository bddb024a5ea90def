from __future__ import annotations

import pytest
from diffssl.store.progress import progress_bar


def test_log_files_get_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(1000, " shards", "verify") as bar:
        for _ in range(1000):
            bar.update()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\r") == 2  # the first and the last state
    assert "verify: 100%" in captured.err
    assert "1000/1000" in captured.err


def test_lines_written_beside_the_bar_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(1, " shards", "verify") as bar:
        bar.write("train: damaged")
    assert capsys.readouterr().out == "train: damaged\n"
