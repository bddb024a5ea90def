from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from diffssl.store import FeatureKey, FeatureStore, StoreError, StoreNotFound, UnknownFeatures
from diffssl.store.cli import group, main, run

Build = Callable[..., FeatureStore]

SHARD = "train/features/b2/p2/t90/c.1.0.0.0"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(group, list(arguments))


def test_info(small: FeatureStore) -> None:
    result = invoke("info", small.path)
    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert lines[0] == f"store       {small.path}"
    assert lines[2] == f"feature_id  {small.feature_id}"
    assert "classes     2: cat, dog" in lines
    assert lines[-1] == "  blocks 2 x timesteps 10,90 x pools 2"


def test_info_of_the_default_store(small: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(small.path).parent)
    result = invoke("info")
    assert result.exit_code == 0
    assert result.output.splitlines()[0] == "store       feats.zarr"


def test_status_of_a_complete_store(small: FeatureStore) -> None:
    result = invoke("status", small.path)
    assert result.exit_code == 0
    assert result.output.splitlines()[4:] == [
        "train: 10 rows",
        "  b1/p1/t10               10 of 10 rows  100.0%  complete",
        "  b2/p2/t10               10 of 10 rows  100.0%  complete",
        "  b2/p2/t90               10 of 10 rows  100.0%  complete",
    ]


def test_status_of_an_incomplete_store(tmp_path: Path, build: Build) -> None:
    store = build(tmp_path / "feats.zarr", splits={"train": 10}, keys=[FeatureKey(2, 90, 2)], row_blocks=[0])
    result = invoke("status", store.path)
    assert result.exit_code == 1
    assert result.output == "train: 10 rows\n  b2/p2/t90                4 of 10 rows   40.0%  2 row blocks missing\n"


def test_verify_of_a_sound_store(small: FeatureStore) -> None:
    result = invoke("verify", small.path)
    assert result.exit_code == 0
    assert result.stdout == "15 shards in 10 commits read: no damaged\n"


def test_verify_of_a_damaged_store(store: FeatureStore) -> None:
    (Path(store.path) / SHARD).unlink()
    file = Path(store.path) / SHARD.replace("t90", "t10")
    file.write_bytes(file.read_bytes()[:100])
    result = invoke("verify", store.path)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "train: row block 1, block 2, timestep 10, pool 2: the file is cut short: 184 bytes wanted, 100 there "
        "(train/features/b2/p2/t10/c.1.0.0.0)",
        "train: row block 1, block 2, timestep 90, pool 2: the file is missing (train/features/b2/p2/t90/c.1.0.0.0)",
        "15 shards in 10 commits read: 2 damaged",
    ]


def test_verify_of_a_store_with_a_damaged_commit(store: FeatureStore) -> None:
    """Which no reader opens."""
    name = min(store.journal.names("train"))
    (Path(store.path) / name).write_bytes(b"{")
    result = invoke("verify", store.path)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].startswith(f"{name}: it cannot be read (")
    assert result.stdout.splitlines()[1] == "13 shards in 10 commits read: 1 damaged"


def test_verify_says_what_is_not_committed(tmp_path: Path, build: Build) -> None:
    """Of what was asked for: a pilot is complete."""
    store = build(tmp_path / "feats.zarr", splits={"train": 10}, keys=[FeatureKey(2, 90, 2)], row_blocks=[0])
    result = invoke("verify", store.path)
    assert (result.exit_code, result.stdout) == (
        0,
        "1 shards in 1 commits read: no damaged\n"
        "not committed, so not read: 2 row blocks of arrays, such as train: row block 1, block 2, timestep 90, pool 2 "
        "(status lists them)\n",
    )
    pilot = build(tmp_path / "pilot.zarr", splits={"train": 10}, limit=4)
    assert invoke("verify", pilot.path).stdout == "3 shards in 2 commits read: no damaged\n"


@pytest.mark.parametrize("left", [None, 0, 1, -1], ids=["removed", "emptied", "cut to a byte", "cut by a byte"])
def test_every_file_that_is_removed_or_cut_is_named(store: FeatureStore, left: int | None) -> None:
    """Files of rows by their column; a commit that is gone by what is not committed any more."""
    root = Path(store.path)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    assert len(files) == 55  # 15 of them shards, 10 commits
    for file in files:
        name, content = file.relative_to(root).as_posix(), file.read_bytes()
        file.unlink()
        if left is not None:
            file.write_bytes(content[:left])
        result = invoke("verify", store.path)
        if name == "zarr.json":
            assert isinstance(result.exception, StoreError)  # main turns it into one line
            assert store.path in str(result.exception)
        elif left is None and name.startswith("journal/") and name != "journal/zarr.json":
            split, unit = name.removeprefix("journal/").split("/")
            assert f"such as {split}: row block {int(unit[:6])}, " in result.stdout
        else:
            assert result.exit_code == 1
            assert name.partition("/c/")[0].removesuffix("/zarr.json") in result.stdout
        file.write_bytes(content)
    assert invoke("verify", store.path).stdout == "15 shards in 10 commits read: no damaged\n"


class TestRepair:
    def test_nothing(self, small: FeatureStore) -> None:
        result = invoke("repair", small.path)
        assert (result.exit_code, result.stdout) == (0, f"nothing to repair in {small.path}\n")

    def test_damage(self, store: FeatureStore) -> None:
        (Path(store.path) / SHARD).unlink()
        (Path(store.path) / "journal/zarr.json").unlink()
        result = invoke("repair", store.path)
        assert result.exit_code == 0
        assert result.stdout.splitlines() == [
            "written anew: journal/zarr.json: the document is missing",
            f"forgotten: train: row block 1, block 2, timestep 90, pool 2: the file is missing ({SHARD})",
            f"{store.path}: 1 forgotten, 1 written anew, 0 left alone",
            "compute what was forgotten with:",
            "  diffssl-extract --blocks 1,2 --timesteps 10,90",
        ]
        assert invoke("status", store.path).exit_code == 1
        assert invoke("verify", store.path).exit_code == 0

    def test_what_needs_no_extraction(self, store: FeatureStore) -> None:
        (Path(store.path) / "train/zarr.json").unlink()
        assert invoke("repair", store.path).stdout.splitlines()[1:] == [
            f"{store.path}: 0 forgotten, 1 written anew, 0 left alone"
        ]

    def test_bad_samples(self, tmp_path: Path, build: Build) -> None:
        store = build(tmp_path / "feats.zarr", left_out={("train", 90): [5]})
        assert invoke("repair", store.path).stdout == f"nothing to repair in {store.path}\n"
        result = invoke("repair", store.path, "--bad")
        assert result.exit_code == 0
        assert result.stdout.startswith("forgotten: train: row block 1, block 2, timestep 90, pool 2: left out 1, such as ")

    def test_a_disk_that_fails(self, store: FeatureStore) -> None:
        (Path(store.path) / SHARD).unlink()
        (Path(store.path) / SHARD).mkdir()
        result = invoke("repair", store.path)
        assert result.exit_code == 1
        assert result.stdout.splitlines()[1] == f"{store.path}: 0 forgotten, 0 written anew, 1 left alone"


class TestDrop:
    def test_yes(self, store: FeatureStore) -> None:
        result = invoke("drop", store.path, "--blocks", "2", "--timesteps", "10", "--splits", "train, test", "--yes")
        assert (result.exit_code, result.stdout) == (0, f"2 arrays, 5 shards, 920 B removed from {store.path}\n")
        assert FeatureStore.open(store.path).keys("train") == [FeatureKey(1, 10, 1), FeatureKey(2, 90, 2)]

    def test_it_asks_and_says_what_will_go(self, store: FeatureStore) -> None:
        arguments = ["drop", store.path, "--pools", "2"]
        result = CliRunner().invoke(group, arguments, input="n\n")
        assert result.exit_code == 1
        assert result.stdout.splitlines()[:3] == [
            "test: blocks 2 x timesteps 10,90 x pools 2",
            "train: blocks 2 x timesteps 10,90 x pools 2",
            f"4 arrays, 10 shards, 1.8 kB will be removed from {store.path} for good. Go on? [y/N]: n",
        ]
        assert len(FeatureStore.open(store.path).keys("train")) == 3
        assert CliRunner().invoke(group, arguments, input="y\n").exit_code == 0
        assert len(FeatureStore.open(store.path).keys("train")) == 1

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ([], "say what to drop: --splits, --blocks, --timesteps or --pools"),
            (["--yes"], "say what to drop"),
            (["--blocks", "b2"], "Invalid value for '--blocks': 'b2' in 'b2' is not a number or a range"),
            (["--pools", "0"], "a pool must be at least 1"),
        ],
    )
    def test_bad_options(self, store: FeatureStore, options: list[str], text: str) -> None:
        result = invoke("drop", store.path, *options)
        assert result.exit_code == 2
        assert text in result.stderr

    def test_unknown_settings(self, store: FeatureStore) -> None:
        assert isinstance(invoke("drop", store.path, "--blocks", "3", "--yes").exception, UnknownFeatures)


def test_export_and_import(store: FeatureStore, tmp_path: Path) -> None:
    file, copy = str(tmp_path / "feats.h5"), str(tmp_path / "copy.zarr")
    result = invoke("export", store.path, file, "--timesteps", "90")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"2 arrays of test, train written to {file} (")
    assert isinstance(invoke("export", store.path, file).exception, StoreError)
    assert invoke("export", store.path, file, "--force").stdout.startswith("6 arrays")
    result = invoke("import", file, copy)
    assert (result.exit_code, result.stdout) == (0, f"10 commits written to {copy}\n")
    assert invoke("import", file, copy).stdout == f"nothing to do: {copy} has everything that is in {file}\n"
    assert invoke("verify", copy).stdout == "15 shards in 10 commits read: no damaged\n"
    assert invoke("export", store.path).exit_code == 2


@pytest.mark.parametrize("command", ["info", "status", "verify", "repair", "drop --yes --blocks 1", "export"])
def test_no_store(tmp_path: Path, command: str) -> None:
    name, *options = command.split()
    options += [str(tmp_path / "feats.h5")] if name == "export" else []
    result = invoke(name, str(tmp_path / "none.zarr"), *options)
    assert isinstance(result.exception, StoreNotFound)  # main turns it into one line


def test_help_and_version() -> None:
    assert invoke("--version").output.startswith("group, version ")
    listed = invoke("--help").output
    commands = ("info", "status", "verify", "repair", "drop", "export", "import")
    assert all(f"  {command} " in listed for command in commands)


@pytest.fixture
def _signals() -> Iterator[None]:
    """``run`` is made for a process of its own and takes SIGTERM; give it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_signals")
class TestProgram:
    def test_an_error_of_diffssl_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["diffssl-store", "info", str(tmp_path / "none.zarr")])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == f"Error: {tmp_path}/none.zarr: there is no feature store here; diffssl-extract makes one\n"

    @pytest.mark.parametrize(("damaged", "code"), [(False, 0), (True, 1)])
    def test_exit_code_of_verify(
        self, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damaged: bool, code: int
    ) -> None:
        if damaged:
            (Path(store.path) / SHARD).unlink()
        monkeypatch.setattr(sys, "argv", ["diffssl-store", "verify", store.path])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == code
        assert capsys.readouterr().out.endswith(f"15 shards in 10 commits read: {code or 'no'} damaged\n")

    @pytest.mark.parametrize("arguments", [["drain"], ["drop"], ["info", "a", "b"], ["info", "--deep"]])
    def test_bad_options_exit_2(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["diffssl-store", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        assert "Usage: " in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("raised", "code", "text"),
        [
            (StoreNotFound("a.zarr", "gone"), 1, "Error: a.zarr: gone\n"),
            (click.ClickException("odd"), 1, "Error: odd\n"),
            (PermissionError(errno.EACCES, "Permission denied", "b.png"), 1, "Error: b.png: Permission denied\n"),
            (OSError(errno.ENOSPC, "No space left on device"), 1, "Error: No space left on device\n"),
            (KeyboardInterrupt(), 130, "Error: run it again to go on\n"),
            (click.Abort(), 130, "Error: run it again to go on\n"),
        ],
    )
    def test_ends_of_a_command(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        raised: BaseException,
        code: int,
        text: str,
    ) -> None:
        @click.command()
        def command() -> None:
            raise raised

        monkeypatch.setattr(sys, "argv", ["command"])
        with pytest.raises(SystemExit) as caught:
            run(command, "run it again to go on")
        assert caught.value.code == code
        assert capsys.readouterr().err.lstrip("\n") == text

    @pytest.mark.parametrize("bug", [RuntimeError("a bug"), OSError("a bug that names no file")])
    def test_a_bug_keeps_its_traceback(self, monkeypatch: pytest.MonkeyPatch, bug: Exception) -> None:
        @click.command()
        def command() -> None:
            raise bug

        monkeypatch.setattr(sys, "argv", ["command"])
        with pytest.raises(type(bug), match="a bug"):
            run(command)

    def test_sigterm_stops_as_ctrl_c_does(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        cleaned: list[bool] = []

        @click.command()
        def command() -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            finally:
                cleaned.append(True)

        monkeypatch.setattr(sys, "argv", ["command"])
        with pytest.raises(SystemExit) as caught:
            run(command)
        assert caught.value.code == 130
        assert cleaned == [True]
        assert capsys.readouterr().err.lstrip("\n") == "Error: stopped\n"


def test_the_installed_command(small: FeatureStore) -> None:
    """No torch is needed to look after a store."""
    code = "import sys; from diffssl.store.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "verify", small.path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "15 shards in 10 commits read: no damaged\n")
    assert "Error" not in done.stderr
