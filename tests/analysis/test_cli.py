"""``diffssl-analyze``: from results and stores to pictures and tables."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from diffssl.analysis.cli import (
    cka_command,
    compare_command,
    complement_command,
    curves_command,
    group,
    main,
    map_command,
    statistics_command,
)
from diffssl.analysis.table import NoResults
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


@pytest.mark.parametrize(
    "command",
    [map_command, curves_command, compare_command, complement_command, cka_command, statistics_command],
    ids=lambda c: c.name,
)
def test_help_and_version(program: Run, capsys: pytest.CaptureFixture[str], command: click.Command) -> None:
    assert program(main, str(command.name), "--help") == 0
    text = capsys.readouterr().out
    for option in (parameter.opts[0] for parameter in command.params if isinstance(parameter, click.Option)):
        assert option in text
    assert program(main, "--version") == 0
    assert f", version {version('diffssl')}" in capsys.readouterr().out


@pytest.fixture
def stores(tested: Line, tmp_path: Path) -> list[Path]:
    """Results of two stores with the same test rows; the second has one setting, whose fits are much worse."""
    rng = np.random.default_rng(0)
    one, other = Results(tmp_path / "feats.results"), Results(tmp_path / "other.results")
    good = rng.random(800) < 0.7
    for block, head in ((1, "linear"), (2, "linear"), (2, "logreg")):
        one.append(tested(good ^ (rng.random(800) < 0.02), block, 0.7 - 0.1 * block, head=head))
    other.append(tested(good & (rng.random(800) < 0.6), 1, 0.4, feature_id="g"))
    return [one.folder, other.folder]


def test_stores_are_compared_on_the_same_rows(stores: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "tables" / "compared.csv"
    result = CliRunner().invoke(group, ["compare", *map(str, stores), "--out", str(out)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-4:-2] == [
        "reference, best by val: linear on block 1, timestep 10, pool 1; 800 test rows, paired",
        "not significantly different from it (=): 2 of 3, better (+): 0, worse (-): 1, at 5 % for all comparisons together",
    ]
    assert lines[-2].startswith("cheapest of these: not known, the results of 3 do not say")
    assert lines[-1] == f"4 settings in {out}"
    assert "reference" in lines[1]
    assert lines[4].startswith("-  linear  block 1, timestep 10, pool 1")
    assert lines[4].endswith(str(stores[1]))
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["mark"] for row in rows] == ["=", "=", "=", "-"]
    assert [row["results"] for row in rows] == [str(stores[0])] * 3 + [str(stores[1])]
    assert [float(row["val"]) for row in rows] == pytest.approx([0.6, 0.5, 0.5, 0.4])
    assert float(rows[3]["high"]) < 0 < float(rows[1]["high"])


@pytest.mark.parametrize(
    ("arguments", "others"),
    [([], 2), (["--head", "linear"], 1), (["--blocks", "2"], 1), (["--timesteps", "10", "--pools", "1", "--seed", "3"], 2)],
    ids=["all", "head", "blocks", "rest"],
)
def test_a_selection_of_the_default_folder_is_compared(
    stores: list[Path], monkeypatch: pytest.MonkeyPatch, arguments: list[str], others: int
) -> None:
    monkeypatch.chdir(stores[0].parent)
    result = CliRunner().invoke(group, ["compare", *arguments])
    assert result.exit_code == 0, result.output
    assert f" of {others}, better" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.results"], 1, "none.results has no results; run diffssl-probe first"),
        (["feats.results", "none.results"], 1, "none.results has no results"),
        (["--head", "linear", "--blocks", "1"], 1, "comparing needs two settings or heads, got 1"),
        (["--head", "forest"], 1, "no results of head forest; there are linear, logreg"),
        (["--blocks", "b"], 2, "'b' in 'b' is not a number"),
        (["--seed", "-1"], 2, "-1"),
    ],
    ids=["no folder", "one of two", "one setting", "head", "blocks", "seed"],
)
def test_errors_of_comparing_are_told(
    stores: list[Path],
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(stores[0].parent)
    assert program(main, "compare", *arguments) == code
    assert message in capsys.readouterr().err


def test_results_of_an_older_version_say_to_probe_again(
    stores: list[Path], line: Line, program: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    Results(stores[1]).append(line(7, 10, 0.5, 0.5))
    assert program(main, "compare", *map(str, stores)) == 1
    err = capsys.readouterr().err
    assert f"{stores[1]}: linear on block 7, timestep 10, pool 1 has no stored hits" in err
    assert "run diffssl-probe again" in err


@pytest.fixture
def probed(make_store: MakeStore) -> FeatureStore:
    store = make_store({"train": 100, "test": 60}, [FeatureKey(block, t, 1) for block in (1, 2) for t in (10, 90)])
    probe(ProbeSpec(Path(store.path), ["linear", "ridge"], steps=5, device="cpu"), lambda _: None)
    return store


def test_maps_and_curves_of_several_folders_with_their_numbers(probed: FeatureStore, tested: Line, tmp_path: Path) -> None:
    other = Results(tmp_path / "other.results")
    other.append(tested(np.ones(60, dtype=bool), 3, 0.5, head="ridge", feature_id="g"))
    folders = ["--results", str(Path(probed.path).with_suffix(".results")), "--results", str(other.folder), "--head", "ridge"]
    out = [tmp_path / "pictures" / name for name in ("map.png", "curves.svg", "numbers.csv")]
    result = CliRunner().invoke(group, ["map", *folders, "--out", str(out[0]), "--csv", str(out[2])])
    assert result.stdout == f"2 maps in {out[0]}\n", result.output
    with out[2].open(newline="") as file:
        assert [row["results"] for row in csv.DictReader(file)] == ["feats"] * 4 + ["other"]
    result = CliRunner().invoke(group, ["curves", *folders, "--over", "timestep", "--best", "--out", str(out[1])])
    assert result.stdout == f"2 lines in {out[1]}\n", result.output
    assert out[1].read_text().lstrip().startswith("<?xml")


def test_a_log_snr_that_no_store_has_is_told(probed: FeatureStore, tmp_path: Path) -> None:
    folder = Path(probed.path).with_suffix(".results")
    result = CliRunner().invoke(
        group, ["curves", "--results", str(folder), "--over", "log-snr", "--out", str(tmp_path / "c.png")]
    )
    assert isinstance(result.exception, NoResults)
    assert not (tmp_path / "c.png").exists()


def test_complements_and_classes_are_told_and_written(probed: FeatureStore, tmp_path: Path) -> None:
    out, classes = tmp_path / "found.csv", tmp_path / "classes.csv"
    folder = str(Path(probed.path).with_suffix(".results"))
    arguments = ["complement", folder, "--store", probed.path, "--out", str(out), "--classes", str(classes)]
    result = CliRunner().invoke(group, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("best by val: ")
    assert any(line.startswith("best triple (exhaustive") for line in lines)
    assert "above the best by val, mean over classes" in result.stdout
    with classes.open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == probed.classes
    assert out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--classes", "c.csv"], 2, "--classes needs the labels of the test rows: give --store"),
        (["--head", "linear", "--blocks", "1", "--timesteps", "10"], 1, "needs two settings"),
        (["--store", "none.zarr"], 1, "none.zarr"),
    ],
    ids=["classes", "one", "store"],
)
def test_errors_of_complements_are_told(
    probed: FeatureStore,
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(Path(probed.path).parent)
    assert program(main, "complement", *arguments) == code
    assert message in capsys.readouterr().err


def test_costs_of_older_results_come_from_the_store(probed: FeatureStore, tmp_path: Path) -> None:
    old = Results(tmp_path / "old.results")
    for line in Results(Path(probed.path).with_suffix(".results")).read():
        old.append({name: value for name, value in line.items() if name not in ("gflop", "bytes", "log_snr")})
    without = CliRunner().invoke(group, ["compare", str(old.folder)]).stdout
    assert "give the store with --store" in without
    assert "cheapest of the" in CliRunner().invoke(group, ["compare", str(old.folder), "--store", probed.path]).stdout


@pytest.fixture
def pictured(make_store: MakeStore, add_pictures: Callable[..., Any]) -> FeatureStore:
    """Two blocks with maps, at two timesteps, with thumbnails of both splits."""
    keys = [FeatureKey(block, step, pool) for block in (1, 2) for step in (10, 90) for pool in (1, 4)]
    store = make_store({"train": 80, "test": 70}, keys, name="feats.zarr", left_out={keys[0]: ["c00/test-00000.png"]})
    for split in ("train", "test"):
        add_pictures(store.path, split)
    return store


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["pictures"], "6 images, 4 settings in pictures.png"),
        (["pictures", "--blocks", "2@4", "--timesteps", "90", "--n", "2"], "2 images, 1 settings in pictures.png"),
        (["pictures", "--split", "train", "--id", "c01/train-00001.png"], "1 images, 4 settings in pictures.png"),
        (["neighbours"], "6 images, 2 settings in neighbours.png"),
        (["neighbours", "--k", "3", "--blocks", "1,2", "--timesteps", "10,90"], "6 images, 4 settings in neighbours.png"),
    ],
    ids=str,
)
def test_pictures_of_a_store(
    pictured: FeatureStore,
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(Path(pictured.path).parent)
    assert program(main, *arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == line
    with Image.open(f"{arguments[0]}.png") as image:
        assert min(image.size) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pictures", "--pools", "1"], "has no maps of at least 2x2 among 4 settings"),
        (["pictures", "--id", "dog.png"], "test of feats.zarr has no image 'dog.png'; it has "),
        (["pictures", "--id", "c00/test-00000.png", "--pools", "4"], ""),
        (
            ["neighbours", "--id", "c00/test-00000.png", "--blocks", "1", "--timesteps", "10"],
            "could not be decoded (cut short)",
        ),
        (["neighbours", "--k", "70"], "so an image has no 70 neighbours; ask for fewer"),
        (["neighbours", "--blocks", "3"], "there is no block 3"),
        (["pictures", "--split", "val"], "there is no split 'val'; the store has: test, train"),
        (["pictures", "--store", "none.zarr"], "there is no feature store here"),
    ],
    ids=str,
)
def test_errors_about_pictures_are_one_message(
    pictured: FeatureStore,
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(Path(pictured.path).parent)
    assert program(main, *arguments) == (1 if message else 0)
    err = capsys.readouterr().err
    assert err.startswith("Error: ") == bool(message)
    assert message in err


def test_pictures_of_a_store_without_thumbnails(
    make_store: MakeStore, program: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store({"all": 70}, [FeatureKey(1, 10, 4)])
    for command in ("pictures", "neighbours"):
        assert program(main, command, "--store", store.path) == 1
        assert (
            "all has no thumbnails of its images. Make them with:\n  diffssl-extract --thumbnails 64" in capsys.readouterr().err
        )
    assert program(main, "pictures", "--out", "x.gif") == 2


def test_analysis_needs_no_backbone() -> None:
    code = "import sys; sys.modules['guided_diffusion'] = sys.modules['diffssl.extract'] = None; import diffssl.analysis.cli"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def two_stores(make_store: MakeStore) -> list[Path]:
    """One store with two draws, and one of an encoder; half of their rows are the same."""
    keys = [FeatureKey(block, step, 2, draw) for block in (1, 2) for step in (10, 90) for draw in (0, 1)]
    one = make_store({"train": 128, "test": 100}, keys)
    ids = [str(name) for name in one.ids("test")[:50]] + [f"c00/other-{i}" for i in range(30)]
    other = make_store({"test": ids}, [FeatureKey(1, None, 1), FeatureKey(3, None, 1)], name="vit.zarr", seed=1)
    return [Path(one.path), Path(other.path)]


def test_similarity_of_the_default_store(two_stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two_stores[0].parent)
    result = CliRunner().invoke(group, ["cka"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "8 settings, split test, all 100 rows"
    assert [line.split(": ")[0] for line in lines[1:5]] == ["between draws"] * 4
    assert lines[5:] == ["8 settings, 36 pairs in cka.png, cka.csv"]
    with Image.open("cka.png") as image:
        assert image.format == "PNG"
    with Path("cka.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    assert rows[0]["value"] == "1.0"


def test_similarity_between_stores(two_stores: list[Path], tmp_path: Path) -> None:
    out = [str(tmp_path / "new" / name) for name in ("cka.svg", "cka.csv")]
    arguments = [*map(str, two_stores), "--blocks", "1-2", "--blocks", "3", "--timesteps", "90", "--draws", "0"]
    more = ["--estimator", "biased", "--n", "40", "--features", "10", "--split", "test"]
    result = CliRunner().invoke(group, ["cka", *arguments, *more, *(word for one in out for word in ("--out", one))])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{two_stores[0]}: rows that are not in every store, dropped: 50 of 100",
        f"{two_stores[1]}: rows that are not in every store, dropped: 30 of 80",
        "3 settings of 2 stores, split test, the first 40 of 50 rows, a random sample",
        f"{two_stores[0]}: maps of 2x2 averaged to 1x1, 8 numbers, in blocks 1,2",
        f"3 settings, 6 pairs in {', '.join(out)}",
    ]
    assert Path(out[0]).read_text().lstrip().startswith("<?xml")
    with open(out[1], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["store_b"], row["block_b"], row["timestep_b"]) for row in rows[:3]] == [
        (str(two_stores[0]), "1", "90"),
        (str(two_stores[0]), "2", "90"),
        (str(two_stores[1]), "3", ""),
    ]
    assert {(row["rows"], row["estimator"]) for row in rows} == {("40", "biased")}


def test_statistics_of_a_store(two_stores: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two_stores[0].parent)
    result = CliRunner().invoke(group, ["statistics", "--split", "train", "--blocks", "2", "--pools", "2", "--n", "100"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "4 settings, split train, the first 100 of 128 rows, a random sample",
        "4 settings in statistics.csv",
    ]
    with Path("statistics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["block"], row["timestep"], row["draw"], row["features"]) for row in rows] == [
        ("2", step, draw, "32") for step in ("10", "90") for draw in ("0", "1")
    ]
    assert all(float(row[name]) > 0 for row in rows for name in ("effective_rank", "fisher_ratio", "noise_share"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cka", "none.zarr"], 1, "there is no feature store here"),
        (["cka", "--split", "all"], 1, "there is no split 'all'"),
        (["cka", "--blocks", "9"], 1, "there is no block 9 in "),
        (["cka", "--draws", "7"], 1, "there is no draw 7"),
        (["cka", "--timesteps", "11"], 1, "there is no timestep 11 in "),
        (["cka", "--blocks", "1", "--blocks", "2"], 2, "--blocks is given 2 times, stores 1"),
        (["cka", "feats.zarr", "feats.zarr"], 2, "a store is given twice"),
        (["cka", "--n", "3"], 2, "3 is not in the range x>=4"),
        (["cka", "--estimator", "rbf"], 2, "'rbf' is not one of 'biased', 'unbiased'"),
        (["cka", "--out", "cka.txt"], 2, "files are .png, .svg, .pdf, .csv, .parquet"),
        (["cka", "--features", "0"], 2, "0 is not in the range"),
        (["statistics", "none.zarr"], 1, "there is no feature store here"),
        (["statistics", "--out", "statistics.png"], 2, "files are .csv, .parquet"),
        (["statistics", "--out", "/proc/statistics.csv"], 1, "Error: /proc/statistics.csv: No such file or directory"),
    ],
    ids=str,
)
def test_errors_about_stores_are_told(
    two_stores: list[Path],
    program: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(two_stores[0].parent)
    assert program(main, *arguments) == code
    assert message in capsys.readouterr().err
    assert not list(Path().glob("cka.*"))


def test_a_setting_that_does_not_vary_is_one_message(
    make_store: MakeStore, program: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store({"train": 60}, features=lambda _key, _split, labels: np.ones((len(labels), 8, 1, 1)))
    assert program(main, "cka", store.path) == 1
    assert (
        f"Error: {store.path}, block 1, timestep 10, pool 1: the features are the same in all 60 rows"
        in capsys.readouterr().err
    )
