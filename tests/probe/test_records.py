"""The result line: what decides a fit, seeds from it, and the numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffssl.probe import ProbeSpec, make_protocol
from diffssl.probe.fit import Fit
from diffssl.probe.inputs import FitInput
from diffssl.probe.metrics import classification_metrics
from diffssl.probe.predictions import NO_CLASS, unpack_hits, unpack_missed
from diffssl.probe.records import fit_seed, make_record, scored_record, specifications, stream_seed
from diffssl.probe.results import result_key
from diffssl.probe.targets import Targets, store_targets
from diffssl.store import FeatureKey, FeatureStore
from scipy.special import softmax

MakeStore = Callable[..., FeatureStore]

KEY = FeatureKey(1, 10, 1)
COPIES = FitInput((KEY,), {"train": ((0, 0), (1, 0)), "test": ((0, 0),)})


@pytest.fixture
def store(make_store: MakeStore) -> FeatureStore:
    return make_store({"train": 100, "test": 60})


def specified(store: FeatureStore, one: FitInput = FitInput((KEY,)), **options: Any) -> list[dict[str, Any]]:  # noqa: B008
    spec = ProbeSpec(store.path, ["linear", "mlp", "logreg"], **options)
    targets = store_targets(store, ["train", "test"])
    protocol = make_protocol(store, {"train": [KEY], "test": [KEY]}, targets, spec.limit, spec.refit)
    return specifications(store, spec, targets, protocol, one, None, spec.heads, store)


def test_there_is_one_for_each_head_and_seed(store: FeatureStore) -> None:
    found = specified(store, seeds=3)
    expected = [(head, seed) for head in ("linear", "mlp") for seed in range(3)]
    assert [(one["head"], one["seed"]) for one in found] == [*expected, ("logreg", 0)]
    assert len({result_key(one) for one in found}) == len({fit_seed(one) for one in found}) == 7
    assert json.loads(json.dumps(found)) == found


def test_the_order_of_row_blocks_is_one_for_all_heads_and_seeds_of_an_input(store: FeatureStore) -> None:
    assert len({stream_seed(one) for one in specified(store, seeds=3)}) == 1
    others = [specified(store), specified(store, COPIES), specified(store, limit=50)]
    assert len({stream_seed(one[0]) for one in others}) == 3


def test_copies_and_limits_change_what_a_fit_is(store: FeatureStore) -> None:
    others = [specified(store), specified(store, COPIES), specified(store, limit=50), specified(store, refit=False)]
    assert len({result_key(one[0]) for one in others}) == 4
    assert result_key(specified(store, device="cpu", threads=1)[0]) == result_key(others[0][0])


def test_metrics_of_a_line_are_those_of_its_first_draw_and_of_the_mean_probability(store: FeatureStore) -> None:
    rng = np.random.default_rng(0)
    targets = store_targets(store, ["train", "test"])
    protocol = make_protocol(store, {"train": [KEY], "test": [KEY]}, targets, None)
    labels = targets.values["test"]
    draws = [rng.normal(size=(60, 4)) + 2 * np.eye(4)[labels] for _ in range(3)]
    specification = specified(store)[0]
    record = make_record(specification, FitInput((KEY,)), Fit({"val_top1": 0.5}, draws, labels), protocol, targets, "rows")
    assert record["key"] == result_key(specification)
    top1 = [float((one.argmax(axis=1) == labels).mean()) for one in draws]
    assert record["test_top1_draws"] == pytest.approx(top1)
    assert record["test_top1"] == pytest.approx(top1[0])
    mean = np.mean([softmax(one, axis=1) for one in draws], axis=0)
    assert record["test_top1_ensemble"] == pytest.approx((mean.argmax(axis=1) == labels).mean())
    expected = classification_metrics(draws[0], labels, np.random.default_rng(0), True)
    assert record["test_nll"] == pytest.approx(expected["nll"])
    assert (record["test_rows"], record["n_test"], record["val_top1"]) == ("rows", 60, 0.5)
    assert json.loads(json.dumps(record)) == record
    votes = make_record(specification, FitInput((KEY,)), Fit({}, draws[:1], labels, False), protocol, targets, "rows")
    assert "test_nll" not in votes
    assert "test_top1_ensemble" not in votes


def test_a_line_has_what_was_predicted_for_every_missed_row(store: FeatureStore) -> None:
    targets = store_targets(store, ["train", "test"])
    protocol = make_protocol(store, {"train": [KEY], "test": [KEY]}, targets, None)
    labels = targets.values["test"]
    scores = np.random.default_rng(0).integers(3, size=(60, 4)).astype(float)  # many ties
    scores[7, 2] = np.nan
    record = make_record(specified(store)[0], FitInput((KEY,)), Fit({}, [scores], labels, False), protocol, targets, "rows")
    hit = unpack_hits(record["test_hits"], 60)
    wrong = unpack_missed(record["test_missed"], int((~hit).sum()), record["classes"])
    expected = scores.argmax(axis=1)
    expected[7] = NO_CLASS
    assert wrong.tolist() == expected[~hit].tolist()
    assert (expected[hit] == labels[hit]).all()
    assert not (wrong == labels[~hit]).any()


def test_a_line_of_numbers_has_their_metrics() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(50, 2))
    fitted = Fit({}, [wanted + 0.1 * rng.normal(size=(50, 2))], wanted)
    names = ("key", "head", "seed", "task", "block", "timestep", "pool", "draw", "crop")
    record = scored_record(dict.fromkeys(names, 1), fitted, Targets("regress", ["a", "b"], {}), rng)
    assert record["test_r2_low"] <= record["test_r2"] <= record["test_r2_high"]
    assert record["test_r2"] > 0.9
    assert record["n_test"] == 50
    assert "test_hits" not in record
    assert "test_missed" not in record
