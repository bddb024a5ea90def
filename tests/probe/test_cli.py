"""``diffssl-probe``: options, messages and exit codes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import diffssl.probe.study
import pytest
from click.testing import CliRunner, Result
from diffssl.probe import HEADS, NothingToProbe, ProbeSpec, Results
from diffssl.probe.cli import command, main
from diffssl.store import FeatureKey, FeatureStore

MakeStore = Callable[..., FeatureStore]
Run = Callable[..., int]

GRID = [FeatureKey(block, timestep, 1) for block in (1, 2) for timestep in (10, 90)]


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[ProbeSpec]:
    """What the command line asked for, without doing it."""
    asked: list[ProbeSpec] = []
    monkeypatch.setattr(diffssl.probe.study, "probe_stores", lambda specs, *_, **__: asked.extend(specs))
    return asked


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_defaults_are_those_of_the_spec(specs: list[ProbeSpec]) -> None:
    assert invoke("--head", "mlp").exit_code == 0
    assert specs == [ProbeSpec("feats.zarr", ["mlp"])]
    assert specs[0].results == Path("feats.results")


def test_every_option_arrives(specs: list[ProbeSpec]) -> None:
    arguments = "--store a/b.zarr --head linear,mlp,linear --blocks 18,24@2,24@full --timesteps 10-90:40 --pools 1,full"
    arguments += " --seeds 3 --limit 500 --no-refit --out there --steps 20 --hidden 64,32 --device cpu"
    arguments += " --concat --mix-copies --protocol paper-code --shots 2,5 --fraction 0.1,0.5 --repeats 3 --train-ids ids.txt"
    arguments += " --labels labels.csv --task classify --test-store c.zarr --save-head heads --save-probabilities"
    arguments += " --learning-rates 0.1,1 --weight-decays 0,0.5 --batch-size 16 --threads 2 --part 1/4"
    assert invoke(*arguments.split()).exit_code == 0
    assert specs == [
        ProbeSpec(
            store="a/b.zarr",
            heads=["linear", "mlp"],
            blocks={18: set(), 24: {2, "full"}},
            timesteps=[10, 50, 90],
            pools=[1, "full"],
            seeds=3,
            limit=500,
            refit=False,
            out=Path("there"),
            steps=20,
            hidden=[64, 32],
            device="cpu",
            concat=True,
            mix_copies=True,
            protocol="paper-code",
            shots=[2, 5],
            fraction=[0.1, 0.5],
            repeats=3,
            train_ids=Path("ids.txt"),
            labels=Path("labels.csv"),
            test_store="c.zarr",
            save_heads=Path("heads"),
            save_probabilities=True,
            learning_rates=[0.1, 1.0],
            weight_decays=[0.0, 0.5],
            batch_size=16,
            threads=2,
            part=(1, 4),
        )
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --head, to fit; --study, to fit many; --load-head, to score heads"),
        (["--head", "linear", "--load-head", "heads"], "give one of --head, to fit"),
        (["--head", "linear", "--part", "4/4"], "a part is I/N with 0 <= I < N, got 4/4"),
        (["--head", "linear", "--part", "four"], "four"),
        (["--head", "linear", "--protocol", "mine"], "unknown protocol 'mine'"),
        (["--head", "linear", "--hidden", "64"], "--hidden means nothing to linear"),
        (["--head", "linear", "--shots", "0"], "--shots are numbers of rows a class, at least 1"),
        (
            ["--head", "forest"],
            "unknown heads ['forest']; known are linear, mlp, cnn, attention, attnpool, difformer, logreg, ridge, knn",
        ),
        (["--head", "linear", "--blocks", "two"], "'two' in 'two' is not a number or a range"),
        (["--head", "linear", "--blocks", "0"], "blocks are numbered from 1"),
        (["--head", "linear", "--timesteps", "90-10"], "'90-10' in '90-10' is an empty range"),
        (["--head", "linear", "--pools", "0"], "a pool must be at least 1"),
        (["--head", "linear", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--head", "linear", "--seeds", "two"], "'two' is not a valid integer"),
        (["--head", "linear", "--limit", "-1"], "--limit must be at least 1, got -1"),
        (["--head", "linear", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["--head", "mlp", "--hidden", "0"], "hidden widths must be positive"),
        (["--head", "mlp", "--hidden", "64,wide"], "wide"),
        (["--head", "linear", "--colour", "red"], "No such option"),
    ],
    ids=str,
)
def test_bad_options_are_told_and_exit_with_2(
    program: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert program(main, *arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


def test_a_device_that_does_not_exist_is_told(make_store: MakeStore, program: Run, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store({"train": 100, "test": 60})
    assert program(main, "--store", store.path, "--head", "linear", "--device", "abacus") in (1, 2)
    assert "abacus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ({"train": 100, "test": 60}, ["--blocks", "3"], "has no blocks 3"),
        ({"train": 100}, [], "probing needs the splits train and test"),
        ({"train": 100, "test": 60}, ["--limit", "1"], "--limit large enough"),
    ],
    ids=str,
)
def test_errors_about_data_are_one_message_and_exit_with_1(
    make_store: MakeStore,
    program: Run,
    capsys: pytest.CaptureFixture[str],
    rows: dict[str, int],
    arguments: list[str],
    message: str,
) -> None:
    store = make_store(rows, GRID)
    assert program(main, "--store", store.path, "--head", "linear", *arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not Path(store.path).with_name("feats.results").exists()


def test_a_store_that_is_not_there_is_told_with_what_makes_one(
    program: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert program(main, "--store", str(tmp_path / "none.zarr"), "--head", "linear") == 1
    err = capsys.readouterr().err
    assert str(tmp_path / "none.zarr") in err
    assert "diffssl-extract makes one" in err


def test_an_interrupt_says_that_the_same_command_goes_on(
    program: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(diffssl.probe.study, "probe_stores", terminated)
    assert program(main, "--head", "linear") == 130
    assert "every finished fit is kept, and the same command goes on" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(program: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(diffssl.probe.study, "probe_stores", broken)
    with pytest.raises(ZeroDivisionError):
        program(main, "--head", "linear")


def test_help_and_version(program: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert program(main, "--help") == 0
    text = capsys.readouterr().out
    for option in (parameter.opts[0] for parameter in command.params if isinstance(parameter, click.Option)):
        assert option in text
    for head in HEADS:
        assert head in text
    assert program(main, "--version") == 0
    assert f", version {version('diffssl')}" in capsys.readouterr().out


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, diffssl.probe.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_run_ends_with_the_table_and_the_best_setting(make_store: MakeStore) -> None:
    store = make_store({"train": 200, "test": 100}, GRID)
    arguments = ["--store", store.path, "--head", "linear", "--steps", "20", "--device", "cpu"]
    result = invoke(*arguments)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"store {store.path}: 4 settings, heads linear, results in {Path(store.path).with_name('feats.results')}"
    assert lines[-6].split()[:3] == ["head", "block", "timestep"]
    accuracies = [float(line.split()[4]) for line in lines[-5:-1]]
    assert accuracies == sorted(accuracies, reverse=True)
    first = lines[-5].split()
    assert lines[-1].startswith(
        f"best by val: linear on block {first[1]}, timestep {first[2]}, pool {first[3]}: test top-1 {first[5]} ["
    )
    assert len(Results(Path(store.path).with_name("feats.results")).read()) == 4
    again = invoke(*arguments)
    assert "4 of 4 fits are there already" in again.stdout
    assert again.stdout.splitlines()[-6:] == lines[-6:]


def test_a_store_on_s3_gives_the_results_of_the_same_in_a_folder(
    make_store: MakeStore, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store({"train": 120, "test": 60}, GRID[:2], left_out={GRID[0]: ["c01/train-00005.png"]})
    url = s3.upload(Path(store.path), f"{s3.bucket()}/deep/feats.zarr")
    before = s3.objects(url)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    found = {}
    for where, results in ((store.path, tmp_path / "feats.results"), (url, here / "feats.results")):
        result = invoke("--store", where, "--head", "linear,logreg", "--steps", "20", "--device", "cpu")
        assert result.exit_code == 0
        lines = Results(results).read()
        found[where] = [{k: v for k, v in line.items() if k not in ("seconds", "versions")} for line in lines]
    assert len(found[url]) == 4
    assert found[url] == found[store.path]
    assert result.stdout.startswith(f"store {url}: 2 settings, heads linear, logreg, results in feats.results\n")
    assert s3.objects(url) == before


def test_errors_of_the_library_reach_those_who_call_it(make_store: MakeStore) -> None:
    store = make_store({"train": 100, "test": 60}, GRID)
    result = invoke("--store", store.path, "--head", "linear", "--timesteps", "50")
    assert isinstance(result.exception, NothingToProbe)


def test_under_torchrun_parts_are_alone_and_workers_are_refused(
    monkeypatch: pytest.MonkeyPatch, specs: list[ProbeSpec]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert invoke("--head", "linear", "--part", "1/2").exit_code == 0
    assert [spec.part for spec in specs] == [(1, 2)]
    refused = invoke("--head", "linear", "--workers", "2")
    assert refused.exit_code == 2
    assert "leave out --workers and --dask, or torchrun" in refused.output
    assert len(specs) == 1
