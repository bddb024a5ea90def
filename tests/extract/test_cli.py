from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from diffssl.extract import ExtractSpec
from diffssl.extract.cli import command
from diffssl.extract.zoo import BUNDLED, PUBLISHED
from diffssl.store import FeatureKey, FeatureStore
from diffssl.store.verify import verify

Outcome = tuple[int, str, str]
RunMain = Callable[..., Outcome]
Start = Callable[..., "subprocess.Popen[str]"]

GRID = ["--blocks", "3,5", "--timesteps", "90", "--row-block", "16", "--batch-size", "8", "--limit", "16"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Mapping[str, Path], photos: Path) -> list[str]:
    """Options of a small extraction in an empty folder."""
    monkeypatch.chdir(tmp_path)
    model = ["--checkpoint", str(tiny["checkpoint"]), "--model-config", str(tiny["model_config"])]
    return [*GRID, *model, "--data", str(photos)]


# --- what it does


def test_an_extraction(small: list[str], run_main: RunMain) -> None:
    code, out, err = run_main(*small)
    assert code == 0
    assert "Error" not in err
    store = FeatureStore.open("feats.zarr")
    assert store.keys("all") == [FeatureKey(3, 90, 1), FeatureKey(5, 90, 1)]
    assert store.read(FeatureKey(5, 90, 1), "all").shape == (16, 64, 1, 1)
    assert out.splitlines()[-1].startswith("16 forward passes in ")
    code, out, err = run_main(*small)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "nothing to do: feats.zarr has all 1 units"


def test_order_and_duplicates_on_the_command_line_do_not_matter(small: list[str], run_main: RunMain) -> None:
    run_main(*small)
    before = sorted(str(path) for path in Path().rglob("*"))
    same = ["--blocks", "5, 3,5,3-3", "--timesteps", "90,90", *small[4:]]
    code, out, _ = run_main(*same)
    assert code == 0
    assert "nothing to do" in out
    assert sorted(str(path) for path in Path().rglob("*")) == before


def test_ranges_and_pools_of_a_block(small: list[str], run_main: RunMain) -> None:
    run_main("--blocks", "3-5:2,4@2,4@full", "--timesteps", "10-90:40", "--pools", "1,3", *small[4:])
    keys = FeatureStore.open("feats.zarr").keys("all")
    assert sorted({(key.block, key.pool) for key in keys}) == [(3, 1), (3, 3), (4, 2), (4, 8), (5, 1), (5, 3)]
    assert {key.timestep for key in keys} == {10, 50, 90}


def test_list_blocks(run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main("--list-blocks")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["block", "kind", "channels", "size", "GFLOP", "share"]
    assert [row[0] for row in rows[1:]] == [str(number) for number in range(1, 38)]
    assert rows[24][:4] == ["24", "Res", "128", "2"]
    assert rows[24][5] == "28.7%"
    assert list(tmp_path.iterdir()) == []


def test_list_blocks_of_a_published_model_needs_no_weights(
    run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFSSL_CACHE", str(tmp_path))
    code, out, _ = run_main("--list-blocks", "--model", "adm256-uncond")
    assert code == 0
    assert out.splitlines()[24].split() == ["24", "Res+Attn", "1024", "16", "639.3", "28.5%"]


def test_list_blocks_of_an_own_model(small: list[str], run_main: RunMain) -> None:
    code, out, _ = run_main("--list-blocks", *small[10:14])
    assert code == 0
    assert len(out.splitlines()) == 1 + 9


@pytest.mark.parametrize("option", ["--checkpoint", "--model-config"])
def test_list_blocks_of_half_an_own_model(small: list[str], run_main: RunMain, option: str) -> None:
    """Not the blocks of another model."""
    place = small.index(option)
    code, out, err = run_main("--list-blocks", *small[place : place + 2])
    assert (code, out) == (2, "")
    assert "--checkpoint and --model-config go together" in err


def test_plan(small: list[str], run_main: RunMain, tmp_path: Path) -> None:
    code, out, err = run_main(*small, "--plan")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "split", "settings", "there", "to", "to"]
    assert "72 images, 3 classes" in lines[1]
    assert "0 of 1 units" in lines[3]
    assert "16 images, 16 forward passes in batches of 8" in lines[4]
    assert re.search(r"2 arrays, [\d.]+ kB in 5 files \([\d.]+ [GT]B free\)", lines[5])
    assert list(tmp_path.iterdir()) == []
    run_main(*small)
    assert "1 of 1 units" in run_main(*small, "--plan")[1]


def test_plan_with_measure(small: list[str], run_main: RunMain, tmp_path: Path) -> None:
    code, out, err = run_main(*small, "--plan", "--measure")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"time +[\d.e-]+ ms a forward pass of one image here, \d+:\d\d:\d\d in all", out.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_option() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    shown = {word for line in result.output.splitlines() for word in line.split()[:1]}
    assert {
        f"--{name.replace('_', '-')}" for name in ExtractSpec.__dataclass_fields__ if name not in ("command", "sharing")
    } <= shown
    assert {"--plan", "--measure", "--list-blocks"} <= shown


def test_version() -> None:
    assert re.fullmatch(r".*\d+\.\d+.*\n", CliRunner().invoke(command, ["--version"]).output)


# --- what it says


def test_defaults_are_announced_on_the_first_line(run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, _ = run_main("--blocks", "18,24", "--timesteps", "10,90", "--plan")
    first = out.splitlines()[0]
    assert f"model {BUNDLED} (bundled; --model for another)" in first
    assert "handwritten digits (bundled; --data for yours)" in first
    assert "store feats.zarr" in first
    assert "1797 images, 10 classes" in out


def test_what_was_given_is_announced(small: list[str], run_main: RunMain, photos: Path, tiny: Mapping[str, Path]) -> None:
    _, out, _ = run_main(*small, "--plan", "--store", "other.zarr")
    assert out.splitlines()[0] == f"model {tiny['checkpoint']}, images {photos}, store other.zarr"


def test_stray_files_are_noted(small: list[str], run_main: RunMain, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "x/cat").mkdir(parents=True)
    (tmp_path / "x/cat/1.png").write_bytes((photos / "bridge/00.png").read_bytes())
    (tmp_path / "x/cat/notes.txt").write_text("x")
    _, out, _ = run_main(*small, "--data", "x", "--plan")
    assert "given twice" not in out
    _, out, _ = run_main(*small[:-2], "--data", "x", "--plan")
    assert "all: 1 files (.txt) are not images and are ignored" in out.splitlines()


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--blocks is needed, such as --blocks 18,24 --timesteps 10,90"),
        (["--blocks", "18,x", "--timesteps", "10"], "is not a number or a range (such as 24, 1-37"),
        (["--blocks", "0", "--timesteps", "10"], "numbered from 1"),
        (["--blocks", "9-3", "--timesteps", "10"], "empty range"),
        (["--blocks", "18@0", "--timesteps", "10"], "at least 1"),
        (["--blocks", "18", "--timesteps", "-3"], "-3"),
        (["--blocks", "18", "--timesteps", "10", "--pools", "big"], "'big'"),
        (["--blocks", "18", "--timesteps", "10", "--measure"], "--measure goes with --plan"),
        (["--blocks", "18", "--timesteps", "10", "--row-block", "100"], "power of two, got 100"),
        (["--blocks", "18", "--timesteps", "10", "--limit", "0"], "--limit must be at least 1"),
        (["--blocks", "18", "--timesteps", "10", "--seed", "x"], "--seed"),
        (["--blocks", "18", "--timesteps", "10", "--noise", "some"], "gaussian"),
        (["--blocks", "18", "--timesteps", "10", "--dtype", "float64"], "bfloat16"),
        (["--blocks", "18", "--timesteps", "10", "--store-dtype", "float8"], "float16"),
        (["--blocks", "18", "--timesteps", "10", "--checkpoint", "a.pt"], "go together"),
        (["--blocks", "18", "--timesteps", "10", "--noise", "none", "--draws", "2"], "--draws 2"),
        (["--blocks", "18", "--timesteps", "10", "--nonsense"], "--nonsense"),
        (["18"], "18"),
    ],
    ids=str,
)
def test_bad_options(
    run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(*options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("Error: ") == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_timesteps_wants_some(run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the images are listed."""
    monkeypatch.chdir(tmp_path)
    code, _, err = run_main("--blocks", "18", "--data", "nowhere")
    assert code == 1
    assert err == f"Error: --timesteps is needed, such as --timesteps 10,90: {BUNDLED} has 0 to 999\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--blocks", "38"], f"{BUNDLED} has no block 38; its blocks are 1-37"),
        (["--timesteps", "10,1000"], "its timesteps are 0 to 999"),
        (["--data", "nowhere"], "nowhere: there is no such folder or tar"),
        (["--model", "adm-256"], "there is no model 'adm-256'; known are"),
        (["--model", "adm256"], "choose --condition"),
        (["--model", "adm256-uncond"], "http://127.0.0.1:1/256x256_diffusion_uncond.pt"),
        (["--checkpoint", "a.pt", "--model-config", "a.json"], "a.pt: there is no such checkpoint file"),
        (["--device", "cuda:77"], "--device cuda:77 cannot be used here"),
        (["--condition", "5"], "not class-conditional"),
        (["--condition", "²"], "not class-conditional"),
        (["--labels", "mine.csv"], "--labels"),
        (["--only", "nowhere.txt"], "--only nowhere.txt: cannot be read"),
        (["--only", "thesis.txt"], "--only thesis.txt: 1 of 1 lines are no id in all, such as 'x'"),
        (["--batch-size", "32", "--row-block", "16"], "--batch-size 32"),
        (["--noise", "none", "--seed", "4"], "--seed 4"),
        (["--store", "thesis.txt"], "thesis.txt"),
        (["--store", "."], "not empty"),
    ],
    ids=str,
)
def test_errors_are_one_message(
    run_main: RunMain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFSSL_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    (tmp_path / "thesis.txt").write_text("x")
    defaults = {"--blocks": "18", "--timesteps": "10", "--limit": "1"}
    given = [word for name, value in defaults.items() if name not in options for word in (name, value)]
    code, _, err = run_main(*given, *options)
    assert code == 1
    assert err.startswith("Error: ")
    assert err.count("Error: ") == 1
    assert message in err
    assert "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


def test_unknown_models_list_the_known(run_main: RunMain) -> None:
    for options in (["--blocks", "1", "--timesteps", "1"], ["--list-blocks"]):
        code, _, err = run_main(*options, "--model", "stable-diffusion")
        assert code == 1
        assert all(name in err for name in [BUNDLED, *PUBLISHED])


def test_too_many_bad_images(small: list[str], run_main: RunMain, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "x/cat").mkdir(parents=True)
    for i in range(4):
        (tmp_path / f"x/cat/{i}.png").write_bytes((photos / "bridge/00.png").read_bytes() if i else b"")
    options = [*small[:-1], "x"]
    code, out, err = run_main(*options, "--max-bad", "0")
    assert code == 1
    assert "1 of 4 images could not be decoded" in err
    assert "diffssl-store info feats.zarr" in err
    code, out, err = run_main(*options)
    assert code == 0
    assert "1 of 4 images could not be decoded" in out.splitlines()[-1]


def test_another_identity(small: list[str], run_main: RunMain) -> None:
    run_main(*small)
    code, _, err = run_main(*small, "--seed", "3")
    assert code == 1
    assert err.splitlines()[0].startswith("Error: feats.zarr: ")
    assert "  noise.seed: store has 0, now 3" in err.splitlines()


def test_a_bug_keeps_its_traceback(small: list[str], run_main: RunMain, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("diffssl.extract.cli.prepare", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_main(*small, "--plan")


# --- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_signals_lose_nothing_that_is_committed(
    start: Start, tmp_path: Path, run_main: RunMain, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Exit code 130, and the message names the command that goes on; it does."""
    arguments = ["--blocks", "8,24", "--timesteps", "10,90", "--limit", "256", "--row-block", "16", "--store", "my feats.zarr"]
    process = start(*arguments)
    journal = tmp_path / "my feats.zarr/journal/all"
    deadline = time.monotonic() + 120
    while not (journal.is_dir() and len(list(journal.iterdir())) >= 2):
        assert process.poll() is None, (tmp_path / "run.err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == 130
    err = (tmp_path / "run.err").read_text()
    assert "Traceback" not in err
    message = err[err.index("Error: ") :].rstrip("\n").splitlines()
    assert message[0].startswith("Error: stopped; everything committed is kept")
    words = shlex.split(message[-1])
    assert words == ["diffssl-extract", *arguments]
    commits = {path.name: path.read_bytes() for path in journal.iterdir()}
    assert 2 <= len(commits) < 32
    store = FeatureStore.open(tmp_path / "my feats.zarr")
    assert list(verify(store)) == []
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(*words[1:])
    assert code == 0
    assert "Error" not in err
    assert f"{len(commits)} of 32 units are there" in out
    assert {name: (journal / name).read_bytes() for name in commits} == commits
    store = FeatureStore.open(tmp_path / "my feats.zarr")
    assert len(store.keys("all")) == 4
    assert store.missing(store.keys("all"), "all", 256) == []
    assert list(verify(store)) == []
