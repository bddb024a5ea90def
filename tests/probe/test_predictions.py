"""Hits as bits, misses as class numbers, digests of rows, probabilities in files that appear whole."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffssl.probe.errors import ProbeError
from diffssl.probe.predictions import (
    NO_CLASS,
    pack_hits,
    pack_missed,
    read_probabilities,
    test_rows_digest,
    unpack_hits,
    unpack_missed,
    write_probabilities,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_hits_come_back(hits: list[bool]) -> None:
    text = pack_hits(np.array(hits))
    assert unpack_hits(json.loads(json.dumps(text)), len(hits)).tolist() == hits


def test_hits_are_these_characters_on_disk() -> None:
    assert pack_hits(np.array([True, False, False, False, False, False, False, True, True])) == "gYA="
    assert len(pack_hits(np.zeros(10_000, dtype=bool))) == 1668


def test_hits_of_another_type_or_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        pack_hits(np.zeros(3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        pack_hits(np.zeros((1, 3), dtype=bool))


@pytest.mark.parametrize(
    ("text", "message"), [("gYA=", "17 rows have 3 bytes, got 2"), ("g!A=", "not base64"), ("gY", "not base64")]
)
def test_damaged_hits_say_what_to_do(text: str, message: str) -> None:
    with pytest.raises(ProbeError, match=f"{message}.*run the probe again"):
        unpack_hits(text, 17)


@given(st.data())
def test_missed_rows_come_back(data: st.DataObject) -> None:
    classes = data.draw(st.sampled_from([1, 2, 10, 1000, 65_534, 65_535, 65_536, 2**31]))
    predicted = np.array(data.draw(st.lists(st.integers(NO_CLASS, classes - 1), max_size=50)), dtype=np.int64)
    text = json.loads(json.dumps(pack_missed(predicted, classes)))
    assert unpack_missed(text, len(predicted), classes).tolist() == predicted.tolist()


def test_missed_rows_are_these_bytes_on_disk() -> None:
    def raw(classes: int) -> bytes:
        return zlib.decompress(base64.b64decode(pack_missed(np.array([1, 300, NO_CLASS]), classes)))

    assert raw(65_535) == bytes([1, 0, 44, 1, 255, 255])
    assert raw(65_536) == bytes([1, 0, 0, 0, 44, 1, 0, 0, 255, 255, 255, 255])


@pytest.mark.parametrize("predicted", [np.array([4]), np.array([-2]), np.zeros(2), np.zeros((1, 2), dtype=int)], ids=str)
def test_what_is_no_class_is_not_packed(predicted: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="classes"):
        pack_missed(predicted, 4)


def packed(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw)).decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("g!A=", "cannot be unpacked"),
        ("gYA=", "cannot be unpacked"),
        (packed(bytes(4)), "3 missed rows have 6 bytes"),
        (packed(bytes(1 << 20)), "3 missed rows have 6 bytes"),
        (base64.b64encode(zlib.compress(bytes(6))[:-4]).decode(), "3 missed rows"),
        (packed(bytes([9, 0, 1, 0, 1, 0])), "numbers up to 9"),
    ],
    ids=["base64", "zlib", "fewer", "more", "cut", "class"],
)
def test_damaged_misses_say_what_to_do(text: str, message: str) -> None:
    with pytest.raises(ProbeError, match=f"{message}.*run the probe again"):
        unpack_missed(text, 3, 4)


IDS = ["a/1", "a/2", "b/1"]
LABELS = np.array([0, 0, 1])


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        (["a/2", "a/1", "b/1"], LABELS),
        (["a/1a", "/2", "b/1"], LABELS),
        (IDS, np.array([0, 1, 1])),
        (IDS[:2], LABELS[:2]),
        (IDS, LABELS[:, None]),
        (IDS, LABELS.astype(float)),
    ],
    ids=["order", "borders of ids", "labels", "fewer", "shape", "numbers"],
)
def test_other_rows_have_another_digest(ids: list[str], labels: NDArray[Any]) -> None:
    assert test_rows_digest(ids, labels) != test_rows_digest(IDS, LABELS)


def test_the_digest_is_of_values_not_types() -> None:
    expected = test_rows_digest(IDS, LABELS)
    assert expected == "3f94c5f0a88127ba7a34a058ee110e60"
    assert test_rows_digest(np.array(IDS, dtype=object), LABELS.astype(np.int32)) == expected


def test_rows_without_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 ids and labels \(2,\)"):
        test_rows_digest(IDS, LABELS[:2])


def test_probabilities_come_back_in_half_precision(tmp_path: Path) -> None:
    values = np.random.default_rng(0).dirichlet(np.ones(5), size=40)
    path = write_probabilities(tmp_path / "feats.results", "key", values)
    assert path == tmp_path / "feats.results" / "probabilities" / "key.npy"
    found = read_probabilities(tmp_path / "feats.results", "key")
    assert found.dtype == np.float16
    assert found.shape == (40, 5)
    np.testing.assert_allclose(found, values, atol=2**-12)
    assert [one.name for one in path.parent.iterdir()] == ["key.npy"]


def test_probabilities_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_probabilities(tmp_path, "key", np.full((2, 2), 0.5))

    def fail(file: Any, _values: Any, **_options: Any) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            write_probabilities(tmp_path, "key", np.full((2, 2), 0.25))
    assert read_probabilities(tmp_path, "key").tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert len(list((tmp_path / "probabilities").iterdir())) == 1


@pytest.mark.parametrize("values", [np.full((2, 2), 1.5), np.full((2, 2), -0.1), np.zeros(3)], ids=["above", "below", "shape"])
def test_scores_are_not_probabilities(tmp_path: Path, values: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="probabilities are"):
        write_probabilities(tmp_path, "key", values)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_head_that_diverged_has_no_probabilities_and_that_is_kept(tmp_path: Path) -> None:
    write_probabilities(tmp_path, "key", np.full((2, 2), np.nan))
    assert np.isnan(read_probabilities(tmp_path, "key")).all()


def test_probabilities_that_are_not_there_or_damaged_are_told(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="were not kept"):
        read_probabilities(tmp_path, "key")
    path = write_probabilities(tmp_path, "key", np.full((2, 2), 0.5))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ProbeError, match="cannot be read"):
        read_probabilities(tmp_path, "key")
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ProbeError, match="cannot be read"):
        read_probabilities(tmp_path, "key")
    np.save(path, np.zeros((2, 2)))
    with pytest.raises(ProbeError, match="expected"):
        read_probabilities(tmp_path, "key")
