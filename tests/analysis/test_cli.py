"""``diffssl-analyze map``: from results to a picture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from diffssl.analysis.cli import group, main, map_command
from diffssl.probe import ProbeSpec, Results
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore
from PIL import Image

Line = Callable[..., dict[str, Any]]
Run = Callable[..., int]
MakeStore = Callable[..., FeatureStore]


@pytest.fixture
def folder(line: Line, tmp_path: Path) -> Path:
    results = Results(tmp_path / "feats.results")
    for head in ("linear", "logreg"):
        for pool in (1, 2):
            results.append(line(1, 10, 0.5, 0.6, head=head, pool=pool))
            results.append(line(2, 10, 0.7, 0.6, head=head, pool=pool))
    return results.folder


@pytest.mark.parametrize(
    ("arguments", "maps"),
    [
        ([], 4),
        (["--head", "linear"], 2),
        (["--head", "linear,logreg", "--pools", "2"], 2),
        (["--head", "logreg", "--pools", "1-2"], 2),
        (["--value", "test"], 4),
    ],
    ids=str,
)
def test_a_picture_is_drawn_and_named(folder: Path, tmp_path: Path, arguments: list[str], maps: int) -> None:
    out = tmp_path / "picture.png"
    result = CliRunner().invoke(group, ["map", "--results", str(folder), "--out", str(out), *arguments])
    assert result.exit_code == 0
    assert result.stdout == f"{maps} map{'s' if maps > 1 else ''} in {out}\n"
    with Image.open(out) as image:
        assert image.format == "PNG"


def test_defaults_are_the_results_and_the_picture_of_this_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert CliRunner().invoke(group, ["map"]).exit_code == 0
    assert (folder.parent / "map.png").exists()


def test_a_map_of_what_was_probed(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store({"train": 100, "test": 60}, [FeatureKey(block, t, 1) for block in (1, 2) for t in (10, 90)])
    probe(ProbeSpec(Path(store.path), ["linear"], steps=5, device="cpu"), lambda _: None)
    out = tmp_path / "map.svg"
    result = CliRunner().invoke(group, ["map", "--results", str(tmp_path / "feats.results"), "--out", str(out)])
    assert result.stdout == f"1 map in {out}\n"
    assert out.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--value", "train"], "'train' is not one of 'val', 'test'"),
        (["--pools", "0"], "a pool must be at least 1"),
        (["--pools", "two"], "'two' in 'two' is not a number"),
        (["--out", "map.doc"], "doc"),
    ],
    ids=str,
)
def test_bad_options_are_told_and_exit_with_2(
    folder: Path,
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    assert program(main, "map", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_made_or_told(
    folder: Path, program: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder.parent)
    if program(main, "map", "--out", "none/map.png"):
        assert "none" in capsys.readouterr().err
    else:
        assert Path("none/map.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "none.results"], "run diffssl-probe first"),
        (["--head", "forest"], "forest"),
        (["--pools", "4", "--head", "forest"], "forest"),
    ],
    ids=str,
)
def test_errors_about_results_are_one_message_and_exit_with_1(
    folder: Path,
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder.parent)
    assert program(main, "map", *arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (folder.parent / "map.png").exists()


def test_a_head_that_was_not_probed_is_not_passed_over(folder: Path, program: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert program(main, "map", "--head", "linear,forest") == 1


def test_a_damaged_line_is_one_message_that_names_it(folder: Path, program: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = folder.iterdir()
    path.write_text("oops\n" + path.read_text())
    assert program(main, "map", "--results", str(folder)) == 1
    assert f"{path}, line 1" in capsys.readouterr().err


def test_help_and_version(program: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(main, "map", "--help") == 0
    text = capsys.readouterr().out
    for option in (parameter.opts[0] for parameter in map_command.params if isinstance(parameter, click.Option)):
        assert option in text
    assert program(main, "--version") == 0
    assert f", version {version('diffssl')}" in capsys.readouterr().out


def test_analysis_needs_no_backbone() -> None:
    code = "import sys; sys.modules['guided_diffusion'] = sys.modules['diffssl.extract'] = None; import diffssl.analysis.cli"
    subprocess.run([sys.executable, "-c", code], check=True)
