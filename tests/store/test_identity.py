from __future__ import annotations

import json
from typing import Any

import pytest
from diffssl.store import Identity, canonical_json, digest
from hypothesis import given
from hypothesis import strategies as st

FIELDS = {"weights": "5f1d", "model": {"channels": 32, "layers": 2}, "seed": None, "name": "Größe"}
SCALARS = st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from([0.0, 1.0, 0.5, "", "x"])
NAMES = st.sampled_from(["a", "b", "c"])
MAPPINGS = st.dictionaries(
    NAMES, SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(NAMES, SCALARS, max_size=2), max_size=3
)


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"é","b":[1,2.5,null,true]}'.encode()
    assert canonical_json({"x": 1, "y": 2}) == canonical_json({"y": 2, "x": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_what_json_cannot_say(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": value})


def test_digest_golden() -> None:
    assert digest({"b": [1, 2.5, None, True], "a": "é"}, 8) == "1fcdddce78b5bcd5"
    assert Identity(FIELDS).feature_id == "504cdeb1fc0e0421e6ad5154c6f1b0fe"


def test_identity_does_not_depend_on_order_or_on_the_kind_of_sequence() -> None:
    here = Identity({"shape": (3, 32, 32), "model": {"a": 1, "b": 2}})
    there = Identity({"model": {"b": 2, "a": 1}, "shape": [3, 32, 32]})
    assert here == there
    assert here.feature_id == there.feature_id
    assert here.differences(there) == []


@given(MAPPINGS)
def test_identity_survives_json(fields: dict[str, Any]) -> None:
    identity = Identity(fields)
    again = Identity(json.loads(json.dumps(identity.fields)))
    assert again == identity
    assert again.feature_id == identity.feature_id


def test_identity_does_not_follow_its_argument() -> None:
    fields: dict[str, Any] = {"model": {"channels": 32}}
    identity = Identity(fields)
    fields["model"]["channels"] = 64
    assert identity.fields == {"model": {"channels": 32}}


def test_differences_are_named_and_sorted() -> None:
    here = Identity({"seed": 0, "model": {"channels": 32, "layers": 2}, "dtype": "float16"})
    there = Identity({"seed": 1, "model": {"channels": 64, "layers": 2}, "memory": "nchw"})
    assert here.differences(there) == [
        ("dtype", "float16", None),
        ("memory", None, "nchw"),
        ("model.channels", 32, 64),
        ("seed", 0, 1),
    ]


@given(MAPPINGS, MAPPINGS)
def test_there_are_differences_exactly_if_the_feature_ids_differ(here: dict[str, Any], there: dict[str, Any]) -> None:
    """Otherwise a store could be extended with features of another ``feature_id`` than its own."""
    a, b = Identity(here), Identity(there)
    assert bool(a.differences(b)) == (a.feature_id != b.feature_id)
