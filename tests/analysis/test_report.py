"""The whole page, from real fits of a real store, read by a parser and by a browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from diffssl.analysis.cli import main
from diffssl.analysis.report import make_report, read_results_of
from diffssl.analysis.table import NoResults
from diffssl.probe import ProbeSpec, Results
from diffssl.probe.study import probe
from diffssl.store import FeatureKey, FeatureStore, UnknownFeatures

Build = Callable[..., FeatureStore]
AddPictures = Callable[..., Any]

EVIL = "<script>alert(1)</script>"
SECTIONS = [
    "What was run",
    "Which setting to use",
    "Maps",
    "Curves",
    "Comparison",
    "Complements",
    "Confusions",
    "Similarity",
    "Pictures",
    "Neighbours",
    "Statistics",
    "Costs",
    "Identity",
]
KEYS = [FeatureKey(block, timestep, pool) for block in (1, 2) for timestep in (10, 90) for pool in (1, 4)]


class Text(HTMLParser):
    """Headings of second order, and the text outside of script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.words: list[str] = []
        self._tag = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._tag = tag

    def handle_data(self, data: str) -> None:
        if self._tag == "h2" and data.strip():
            self.headings.append(data)
        if self._tag not in ("script", "style"):
            self.words.append(data)


@pytest.fixture
def study(make_store: Build, add_pictures: AddPictures) -> FeatureStore:
    """A store with thumbnails, one of whose classes has a bad name, and fits of two heads."""
    ids = {
        split: [f"{name}/{split}-{i:03d}.png" for name in (EVIL, "cat", "dog") for i in range(n)]
        for split, n in (("train", 60), ("test", 40))
    }
    store = make_store(ids, KEYS, separation=1.5)
    add_pictures(store.path, "test")
    probe(ProbeSpec(Path(store.path), ["logreg", "ridge"], device="cpu", threads=1), lambda _: None)
    return FeatureStore.open(store.path)


def results_of(store: FeatureStore) -> Path:
    return Path(store.path).with_suffix(".results")


def page_of(store: FeatureStore) -> str:
    return make_report([store], read_results_of([store], [results_of(store)]), "the command", 60, 0, lambda _: None)


def test_all_sections_are_made_and_names_from_data_are_text(study: FeatureStore) -> None:
    html = page_of(study)
    read = Text(html)
    assert read.headings == SECTIONS
    assert "Not shown" not in html
    assert "<script>alert" not in html
    assert "".join(read.words).count(EVIL) > 5
    assert "Most confused pairs" in read.words
    assert any("\nthe command" in word for word in read.words)
    lines = Results(results_of(study)).read()
    best = max(float(line["val_top1"]) for line in lines)
    assert f"held-out {100 * best:.2f} %" in html, "cells say their numbers when hovered over"
    assert study.feature_id in html


def test_the_same_stores_and_results_make_the_same_page(study: FeatureStore) -> None:
    assert page_of(study) == page_of(study)


def test_what_cannot_be_shown_says_what_to_do(make_store: Build) -> None:
    store = make_store({"train": 60, "test": 40})
    html = make_report([store], {}, "the command", 60, 0, lambda _: None)
    notes = re.findall(r"Not shown: ([^<]*)", html)
    assert len(notes) == 8, notes
    assert sum("diffssl-probe" in note for note in notes) == 7
    assert sum("--pools full" in note for note in notes) == 1
    assert Text(html).headings == SECTIONS


def test_without_thumbnails_the_rest_is_there(make_store: Build) -> None:
    store = make_store({"train": 90, "test": 60}, KEYS, separation=1.5)
    probe(ProbeSpec(Path(store.path), ["ridge"], device="cpu", threads=1), lambda _: None)
    html = page_of(store)
    assert "diffssl-extract --thumbnails 64" in html
    assert len(re.findall("Not shown", html)) == 2, "pictures and neighbours"


def test_thumbnails_that_are_not_complete_take_nothing_but_pictures(make_store: Build, add_pictures: AddPictures) -> None:
    store = make_store({"train": 90, "test": 150}, KEYS, separation=1.5)
    add_pictures(store.path, "test", row_blocks=[1])
    probe(ProbeSpec(Path(store.path), ["ridge"], device="cpu", threads=1), lambda _: None)
    html = page_of(FeatureStore.open(store.path))
    assert "Most confused pairs" in html
    assert "The first rows of the most confused pairs" not in html
    assert html.count("are not committed yet") == 3, "confusions, pictures, neighbours"


def test_one_fit_has_confusions(make_store: Build) -> None:
    store = make_store({"train": 90, "test": 60}, separation=1.5)
    probe(ProbeSpec(Path(store.path), ["ridge"], device="cpu", threads=1), lambda _: None)
    html = page_of(store)
    assert "Most confused pairs" in html
    assert html.count("comparing needs two settings") == 3


def test_two_stores_are_compared(make_store: Build) -> None:
    rows = {"train": 90, "test": 60}
    stores = [make_store(rows, KEYS, name=f"{name}.zarr", seed=seed, identity={"seed": seed}) for seed, name in enumerate("ab")]
    for store in stores:
        probe(ProbeSpec(Path(store.path), ["ridge"], device="cpu", threads=1), lambda _: None)
    results = read_results_of(stores, [results_of(store) for store in stores])
    html = make_report(stores, results, "the command", 60, 0, lambda _: None)
    assert f"16 settings on the same {60} test rows" in html
    assert "Not shown: " in html, "there are no thumbnails"
    assert '<option value="a">a</option>' in html
    assert html.count("linear CKA, unbiased, 60 rows") == 1


def test_fits_that_maps_cannot_show_are_said(make_store: Build) -> None:
    store = make_store({"train": 120, "test": 60}, KEYS, separation=1.5)
    run: dict[str, Any] = {"device": "cpu", "threads": 1}
    probe(ProbeSpec(Path(store.path), ["ridge"], **run), lambda _: None)
    probe(ProbeSpec(Path(store.path), ["ridge"], shots=[5], repeats=2, **run), lambda _: None)
    labels = Path(store.path).with_suffix(".csv")
    rows = [f"{name},{number % 7}" for split in store.splits for number, name in enumerate(store.ids(split))]
    labels.write_text("\n".join(["id,value", *rows]))
    probe(ProbeSpec(Path(store.path), ["ridge"], labels=labels, task="regress", **run), lambda _: None)
    html = page_of(store)
    assert "8 fits of labels that are not classes are in the table of fits alone" in html
    assert "16 fits on fewer training rows than 120 are left out" in html
    assert "ridge, pool 4: held-out top-1" in html


def test_few_shots_have_maps(make_store: Build) -> None:
    store = make_store({"train": 120, "test": 60}, KEYS, separation=1.5)
    probe(ProbeSpec(Path(store.path), ["ridge"], shots=[5], repeats=2, device="cpu", threads=1), lambda _: None)
    html = page_of(store)
    assert "Not shown: the results mix" not in html
    assert "ridge, pool 4: held-out top-1" in html


def test_a_store_without_features_is_refused(make_store: Build) -> None:
    with pytest.raises(UnknownFeatures, match="run diffssl-extract first"):
        make_report([make_store({"train": 60}, [])], {}, "the command", 60, 0, lambda _: None)


def test_other_samples_of_the_same_features_are_another_store(make_store: Build) -> None:
    store = make_store({"train": 90, "test": 60})
    other = make_store({"train": 80, "test": 50}, name="other.zarr")
    assert store.feature_id == other.feature_id
    probe(ProbeSpec(Path(other.path), ["ridge"], device="cpu", threads=1), lambda _: None)
    with pytest.raises(NoResults, match="features or samples"):
        read_results_of([store], [results_of(other)])
    assert read_results_of([store, other], [results_of(other)])


def test_results_of_another_store_are_refused(make_store: Build) -> None:
    store = make_store({"train": 60, "test": 40})
    other = make_store({"train": 60, "test": 40}, name="other.zarr", identity={"seed": 1})
    probe(ProbeSpec(Path(other.path), ["ridge"], device="cpu", threads=1), lambda _: None)
    with pytest.raises(NoResults, match="name their store too, with --store"):
        read_results_of([store], [results_of(other)])
    assert read_results_of([store], [results_of(store)]) == {}, "none yet"


def test_a_folder_without_results_that_is_named_is_refused(
    make_store: Build, program: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = make_store({"train": 60, "test": 40})
    assert program(main, "report", "--store", store.path, "--results", str(tmp_path / "none.results")) == 1
    assert "none.results: no results; run diffssl-probe first" in capsys.readouterr().err


def test_a_browser_shows_it_without_an_error(study: FeatureStore, tmp_path: Path, program: Callable[..., int]) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: the page was not tried in a browser")
    page = tmp_path / "report.html"
    assert program(main, "report", "--store", study.path, "--out", str(page)) == 0
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    done = subprocess.run(
        [
            chromium,
            *flags.split(),
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert 'aria-sort="none"' in done.stdout, "the page's own script ran"
    assert re.search(r'<figure[^>]* hidden=""', done.stdout), "a choice is made"
    assert "<script>alert" not in done.stdout
