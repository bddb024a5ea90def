"""Which rows train, select and test: roles, hold-outs, exclusions, and what is said about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import pytest
from diffssl.probe import NothingToProbe, Protocol, TooFewRows, make_protocol
from diffssl.probe.protocol import scored_rows, scored_split, size, used_splits
from diffssl.probe.subsets import Subset
from diffssl.probe.targets import Targets, store_targets
from diffssl.store import FeatureKey, FeatureStore, IncompleteFeatures
from numpy.typing import NDArray

MakeStore = Callable[..., FeatureStore]
RowSet = Mapping[str, NDArray[np.int64]]

KEY, OTHER = FeatureKey(1, 10, 1), FeatureKey(2, 10, 1)
ROLES = ("fit", "select", "test")
N = 400

SPLITS: dict[str, dict[str, int]] = {
    "train, test": {"train": N, "test": 150},
    "train, val, test": {"train": N, "val": 120, "test": 150},
    "train, val": {"train": N, "val": 120},
    "all": {"all": N},
    "train, test, all": {"train": N, "test": 150, "all": 90},
    "train, test and others": {"train": N, "test": 150, "extra": 90},
    "all and test": {"all": N, "test": 150},
}


def assign(
    store: FeatureStore, keys: Sequence[FeatureKey], limit: int | None, refit: bool = True, subset: Subset | None = None
) -> Protocol:
    """Roles for settings that are read of every split, by the store's own classes."""
    splits = used_splits(store)
    return make_protocol(store, dict.fromkeys(splits, keys), store_targets(store, splits), limit, refit, subset)


def pairs(rows: RowSet) -> set[tuple[str, int]]:
    return {(split, int(row)) for split, numbers in rows.items() for row in numbers}


def roles_by_id(store: FeatureStore, protocol: Protocol) -> dict[str, str]:
    ids = {split: store.ids(split) for split in protocol.splits}
    return {ids[split][row]: role for role in ROLES for split, row in pairs(getattr(protocol, role))}


def fraction(one: str, salt: str) -> float:
    """The salted hash of an id as a number in [0, 1), written out."""
    word = int.from_bytes(blake2b(one.encode(), digest_size=8, person=salt.encode()).digest(), "little")
    return (word >> 11) / 2**53


def ids_with(salt: str, folder: str, below: float, count: int, wanted: bool) -> list[str]:
    """Ids of a class whose salted hash is, or is not, below a number."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        one = f"{folder}/{number}.png"
        if (fraction(one, salt) < below) == wanted:
            found.append(one)
        number += 1
    return found


# Roles


@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("refit", [True, False])
def test_every_usable_row_has_one_role_and_test_rows_no_other(make_store: MakeStore, splits: str, refit: bool) -> None:
    store = make_store(SPLITS[splits])
    protocol = assign(store, [KEY], None, refit)
    fit, select, test = (pairs(getattr(protocol, role)) for role in ROLES)
    assert not fit & select
    assert not fit & test
    assert not select & test
    assert fit | select | test == {(split, row) for split in used_splits(store) for row in range(store.n_rows(split))}
    assert pairs(protocol.refit) == (fit | select if refit else fit)
    assert protocol.splits == sorted(used_splits(store))
    for role in (*ROLES, "refit", "moments"):
        for rows in getattr(protocol, role).values():
            assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize(
    ("splits", "fit", "select", "test"),
    [
        ("train, test", "train", "train", "test"),
        ("train, val, test", "train", "val", "test"),
        ("train, val", "train", "train", "val"),
        ("all", "all", "all", "all"),
        ("train, test, all", "train", "train", "test"),
        ("train, test and others", "train", "train", "test"),
        ("all and test", "all", "all", "all"),
    ],
)
def test_splits_have_the_role_of_their_name(make_store: MakeStore, splits: str, fit: str, select: str, test: str) -> None:
    protocol = assign(make_store(SPLITS[splits]), [KEY], None)
    assert [list(getattr(protocol, role)) for role in ROLES] == [[fit], [select], [test]]


@pytest.mark.parametrize("splits", SPLITS)
def test_features_are_standardised_with_the_train_rows(make_store: MakeStore, splits: str) -> None:
    store = make_store(SPLITS[splits])
    protocol = assign(store, [KEY], None)
    train = used_splits(store)[0]
    expected = {(train, row) for row in range(store.n_rows(train))} - pairs(protocol.test)
    assert pairs(protocol.moments) == expected


@pytest.mark.parametrize("splits", [{"train": 80}, {"test": 80}, {"val": 80, "test": 80}, {"extra": 80}, {}], ids=str)
def test_splits_that_cannot_train_and_test_are_named(make_store: MakeStore, splits: dict[str, int]) -> None:
    store = make_store(splits)
    with pytest.raises(NothingToProbe, match=f"the store has {', '.join(sorted(splits)) or 'none'}$") as caught:
        assign(store, [KEY], None)
    assert "train and test" in str(caught.value)
    assert store.path in str(caught.value)


# Hold-outs

GOLDEN_TEST = ["c0/34", "c0/6", "c1/11", "c1/15", "c1/17", "c1/21", "c1/29", "c1/3", "c1/39"]
GOLDEN_SELECT = ["c0/32", "c0/38", "c0/8", "c1/31"]


def test_test_rows_of_all_are_a_fifth_by_a_salted_hash_of_the_id(make_store: MakeStore) -> None:
    store = make_store({"all": 1000})
    test = assign(store, [KEY], None).test["all"]
    assert test.tolist() == [row for row, one in enumerate(store.ids("all")) if fraction(one, "diffssl-test") < 0.2]
    assert 160 < len(test) < 240


@pytest.mark.parametrize("split", ["train", "all"])
def test_held_out_rows_are_a_tenth_of_the_training_rows_by_another_hash(make_store: MakeStore, split: str) -> None:
    store = make_store({"all": 1000} if split == "all" else {"train": 1000, "test": 100})
    protocol = assign(store, [KEY], None)
    train = np.sort(np.concatenate([protocol.fit[split], protocol.select[split]]))
    ids = store.ids(split)
    assert protocol.select[split].tolist() == [row for row in train if fraction(ids[row], "diffssl-heldout") < 0.1]
    assert 0.07 * len(train) < len(protocol.select[split]) < 0.13 * len(train)


def test_hold_outs_of_given_ids_are_the_same_for_ever(make_store: MakeStore) -> None:
    store = make_store({"all": [f"c{i % 2}/{i}" for i in range(40)]})
    roles = roles_by_id(store, assign(store, [KEY], None))
    assert sorted(one for one, role in roles.items() if role == "test") == GOLDEN_TEST
    assert sorted(one for one, role in roles.items() if role == "select") == GOLDEN_SELECT


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_row_keeps_its_role_when_samples_are_added(make_store: MakeStore, split: str) -> None:
    rest = {} if split == "all" else {"test": 50}
    few = make_store({split: 300, **rest}, name="few.zarr", seed=1)
    many = make_store({split: 700, **rest}, name="many.zarr", seed=2)
    before, after = (roles_by_id(store, assign(store, [KEY], None)) for store in (few, many))
    assert len(before) < len(after)
    assert {one: after[one] for one in before} == before


@pytest.mark.parametrize("split", ["train", "all"])
def test_a_row_keeps_its_role_when_a_pilot_is_completed(make_store: MakeStore, split: str) -> None:
    rows = {split: 600} if split == "all" else {split: 600, "test": 200}
    pilot = make_store(rows, limit=200)
    before = roles_by_id(pilot, assign(pilot, [KEY], None))
    short = roles_by_id(pilot, assign(pilot, [KEY], 150))
    whole = make_store(rows)
    after = roles_by_id(whole, assign(whole, [KEY], None))
    assert len(short) < len(before) < len(after)
    assert {one: after[one] for one in before} == before
    assert {one: after[one] for one in short} == short


def test_only_rows_moved_for_the_sake_of_their_class_move_back_when_a_pilot_is_completed(make_store: MakeStore) -> None:
    """A class with two rows has one on each side, so a small one may need a row that the hash would not have chosen."""
    rows = {"train": [f"c{i % 40:02d}/{i}.png" for i in range(400)], "test": 40}
    pilot = make_store(rows, limit=128)
    before = roles_by_id(pilot, assign(pilot, [KEY], None))
    whole = make_store(rows)
    after = roles_by_id(whole, assign(whole, [KEY], None))
    by_hash: dict[str, set[str]] = {}
    for one, role in before.items():
        if role != "test":
            side = "select" if fraction(one, "diffssl-heldout") < 0.1 else "fit"
            by_hash.setdefault(one[:3], set()).add(side)
    both = {one for one in before if by_hash.get(one[:3]) == {"fit", "select"}}
    assert len(both) > 20
    assert {one: after[one] for one in both} == {one: before[one] for one in both}


@pytest.mark.parametrize("naturally", [0, 1, 2])
def test_a_class_with_two_rows_has_one_on_each_side(make_store: MakeStore, naturally: int) -> None:
    """Whether the hash holds out none, one or both of them."""
    rare = ids_with("diffssl-heldout", "rare", 0.1, naturally, True) + ids_with(
        "diffssl-heldout", "rare", 0.1, 2 - naturally, False
    )
    store = make_store({"train": [*rare, *(f"common/{i}" for i in range(60))], "test": ["rare/x", "common/x"]})
    roles = roles_by_id(store, assign(store, [KEY], None))
    assert sorted(roles[one] for one in rare) == ["fit", "select"]


@pytest.mark.parametrize("held_out", [True, False])
def test_the_only_row_of_a_class_is_trained_on(make_store: MakeStore, held_out: bool) -> None:
    rare = ids_with("diffssl-heldout", "rare", 0.1, 1, held_out)
    store = make_store({"train": [*rare, *(f"common/{i}" for i in range(60))], "test": ["rare/x", "common/x"]})
    assert roles_by_id(store, assign(store, [KEY], None))[rare[0]] == "fit"


def test_every_class_of_two_rows_or_more_is_on_both_sides(make_store: MakeStore) -> None:
    ids = [f"c{label:02d}/{i}" for label in range(60) for i in range(1 + label % 6)]
    store = make_store({"train": ids, "test": 40})
    protocol = assign(store, [KEY], None)
    labels = store.labels("train")
    fit, select = (set(labels[rows["train"]].tolist()) for rows in (protocol.fit, protocol.select))
    several = {label for label in range(60) if (labels == label).sum() > 1}
    assert len(several) == 50
    assert fit == set(labels.tolist())
    assert select == several


def test_roles_do_not_depend_on_backbone_or_setting(make_store: MakeStore) -> None:
    one = make_store({"all": 300}, [KEY, OTHER], name="one.zarr", seed=1)
    two = make_store({"all": 300}, [OTHER], name="two.zarr", seed=2, row_block=128)
    digests = {assign(store, keys, None).digest for store, keys in ((one, [KEY]), (one, [KEY, OTHER]), (two, [OTHER]))}
    assert len(digests) == 1


# What is left out


def test_rows_without_a_label_are_left_out_and_counted(make_store: MakeStore) -> None:
    unlabelled = [f"{i}.png" for i in range(30)]
    store = make_store({"train": [*unlabelled, *(f"c{i % 3}/{i}" for i in range(100))], "test": 60})
    protocol = assign(store, [KEY], None)
    assert not set(unlabelled) & set(roles_by_id(store, protocol))
    assert size(protocol.refit) == 100
    assert "train: 30 rows without a label are left out" in protocol.notes
    assert not any(note.startswith("test:") and "left out" in note for note in protocol.notes)


def test_rows_that_could_not_be_decoded_are_left_out_of_every_setting_and_counted(make_store: MakeStore) -> None:
    bad = {KEY: ["c00/train-00004.png", "c01/train-00009.png"], OTHER: ["c01/train-00009.png", "c02/test-00002.png"]}
    store = make_store({"train": 100, "test": 60}, [KEY, OTHER], left_out=bad)
    protocol = assign(store, [KEY, OTHER], None)
    roles = roles_by_id(store, protocol)
    assert len(roles) == 157
    assert not {one for own in bad.values() for one in own} & set(roles)
    assert "train: 2 rows that could not be decoded are left out" in protocol.notes
    assert "test: 1 rows that could not be decoded are left out" in protocol.notes


def test_rows_left_out_of_a_setting_that_is_not_selected_are_used(make_store: MakeStore) -> None:
    store = make_store({"train": 100, "test": 60}, [KEY, OTHER], left_out={OTHER: ["c00/train-00004.png"]})
    protocol = assign(store, [KEY], None)
    assert "c00/train-00004.png" in roles_by_id(store, protocol)
    assert not any("decoded" in note for note in protocol.notes)


def test_left_out_rows_beyond_a_pilot_are_not_counted(make_store: MakeStore) -> None:
    store = make_store({"train": 200, "test": 60}, name="clean.zarr")
    last = store.ids("train")[150]
    store = make_store({"train": 200, "test": 60}, left_out={KEY: [last]})
    assert not any("decoded" in note for note in assign(store, [KEY], 100).notes)
    assert any("decoded" in note for note in assign(store, [KEY], 160).notes)


# What is refused


@pytest.mark.parametrize("role", ["train", "test"])
def test_a_split_without_labels_is_refused_with_what_to_do(make_store: MakeStore, role: str) -> None:
    rows: dict[str, int | Sequence[str]] = {"train": 60, "test": 60}
    store = make_store(rows | {role: [f"{i}.png" for i in range(60)]})
    with pytest.raises(TooFewRows, match=r"no labelled rows to (fit|test) on; is the data labelled"):
        assign(store, [KEY], None)


def test_all_without_labels_is_refused_with_what_to_do(make_store: MakeStore) -> None:
    store = make_store({"all": [f"{i}.png" for i in range(60)]})
    with pytest.raises(TooFewRows, match="is the data labelled, and --limit large enough"):
        assign(store, [KEY], None)


def test_one_class_is_refused_with_what_is_needed(make_store: MakeStore) -> None:
    store = make_store({"train": 60, "test": 60}, classes=1)
    with pytest.raises(TooFewRows, match=r"training rows have 1 class; a classifier needs at least two"):
        assign(store, [KEY], None)


def test_a_limit_that_leaves_too_little_is_refused_with_what_to_do(make_store: MakeStore) -> None:
    store = make_store({"train": 60, "test": 60})
    with pytest.raises(TooFewRows, match="--limit large enough"):
        assign(store, [KEY], 1)


def test_rows_that_are_not_committed_are_refused_with_the_command_that_completes_them(make_store: MakeStore) -> None:
    store = make_store({"train": 200, "test": 60}, only_blocks=[0])
    with pytest.raises(IncompleteFeatures, match=r"136 of 200 rows of train.*not committed(.|\n)*diffssl-extract --blocks 1"):
        assign(store, [KEY], None)
    assert size(assign(store, [KEY], 64).refit) == 64


def test_more_rows_than_a_pilot_has_are_refused(make_store: MakeStore) -> None:
    store = make_store({"train": 300, "test": 60}, limit=128)
    with pytest.raises(IncompleteFeatures, match="not committed"):
        assign(store, [KEY], 200)


# What is said


def test_a_pilot_is_announced(make_store: MakeStore) -> None:
    store = make_store({"train": 300, "test": 60}, limit=128)
    protocol = assign(store, [KEY], None)
    assert "train: the first 128 of 300 rows" in protocol.notes
    assert not any(note.startswith("test: the first") for note in protocol.notes)
    assert size(protocol.refit) == 128
    assert "test: the first 20 of 60 rows" in assign(store, [KEY], 20).notes


@pytest.mark.parametrize(
    ("splits", "test", "selection"),
    [
        ("train, test", "the split test", "10 % of the training rows"),
        ("train, val, test", "the split test", "the split val"),
        ("train, val", "the split val, since there is no test", "10 % of the training rows"),
        ("all", "a fifth of all", "10 % of the training rows"),
    ],
)
def test_what_selects_and_what_tests_is_said_with_its_rows(
    make_store: MakeStore, splits: str, test: str, selection: str
) -> None:
    protocol = assign(make_store(SPLITS[splits]), [KEY], None)
    notes = list(protocol.notes)
    assert any(note.startswith(f"test: {test}") and f"({size(protocol.test)} rows)" in note for note in notes)
    assert any(note.startswith(f"selection: {selection}") and f"({size(protocol.select)} rows)" in note for note in notes)
    assert f"train: {size(protocol.fit)} rows, {size(protocol.refit)} for the final fit" in notes


# The digest, part of a result's key


def test_the_digest_changes_with_the_rows(make_store: MakeStore) -> None:
    store = make_store({"train": 300, "test": 128})
    digests = [assign(store, [KEY], limit).digest for limit in (None, 128, 127)]
    digests.append(assign(store, [KEY], None, refit=False).digest)
    assert len(set(digests)) == 4
    assert assign(store, [KEY], 300).digest == digests[0]


def test_the_digest_changes_with_the_labels(make_store: MakeStore) -> None:
    def swapped(split: str, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        if split == "test":
            labels = labels.copy()
            labels[[3, 4]] = (labels[[3, 4]] + 1) % 4
        return labels

    rows = {"train": 300, "test": 128}
    one, two = make_store(rows, name="one.zarr"), make_store(rows, name="two.zarr", relabel=swapped)
    assert assign(one, [KEY], None).digest != assign(two, [KEY], None).digest


def numbers_for(store: FeatureStore, shift: float = 0.0) -> Targets:
    """Two numbers a row; those of every third row are not known, and one of two in every second."""
    values = {}
    for split in store.splits:
        rows = np.arange(store.n_rows(split), dtype=np.float32)
        values[split] = np.stack([rows, rows + shift], axis=1)
        values[split][::3] = np.nan
        values[split][::2, 0] = np.nan
    return Targets("regress", ["a", "b"], values, "file")


def test_the_digest_changes_with_numbers(make_store: MakeStore) -> None:
    store = make_store({"train": 100, "test": 60})
    keys = {"train": [KEY], "test": [KEY]}
    digests = {make_protocol(store, keys, numbers_for(store, shift), None).digest for shift in (0.0, 0.0, 1.0)}
    assert len(digests | {assign(store, [KEY], None).digest}) == 3


# Other answers than the store's classes


def test_rows_with_any_number_have_a_role(make_store: MakeStore) -> None:
    """One class is enough, since there is nothing to classify; the hold-out is by the hash alone."""
    store = make_store({"train": 600, "test": 60}, classes=1)
    protocol = make_protocol(store, {"train": [KEY], "test": [KEY]}, numbers_for(store), None)
    assert pairs(protocol.test) == {("test", row) for row in range(60) if row % 3}
    assert pairs(protocol.refit) == {("train", row) for row in range(600) if row % 3}
    ids = store.ids("train")
    train = [row for row in range(600) if row % 3]
    assert protocol.select["train"].tolist() == [row for row in train if fraction(ids[row], "diffssl-heldout") < 0.1]
    assert "train: 200 rows without a label are left out" in protocol.notes


# Settings of their own for each split


def test_only_settings_that_are_read_of_a_split_leave_its_rows_out(make_store: MakeStore) -> None:
    crop = FeatureKey(1, 10, 1, crop=1)
    bad = {crop: ["c00/train-00004.png"], OTHER: ["c01/test-00001.png"]}
    make_store({"test": 60}, [KEY, OTHER], left_out=bad)
    store = make_store({"train": 100}, [KEY, crop], left_out=bad)
    targets = store_targets(store, ["train", "test"])
    protocol = make_protocol(store, {"train": [KEY, crop], "test": [KEY]}, targets, None)
    assert size(protocol.refit) == 99
    assert size(protocol.test) == 60
    protocol = make_protocol(store, {"train": [KEY], "test": [KEY, OTHER]}, targets, None)
    assert size(protocol.refit) == 100
    assert size(protocol.test) == 59


# Parts of the training rows


@pytest.mark.parametrize("splits", ["train, test", "train, val, test", "all"])
@pytest.mark.parametrize("refit", [True, False])
def test_a_subset_is_of_the_training_rows_alone(make_store: MakeStore, splits: str, refit: bool) -> None:
    store = make_store(SPLITS[splits])
    whole, part = (assign(store, [KEY], None, refit, subset) for subset in (None, Subset(shots=5)))
    train = used_splits(store)[0]
    labels = store.labels(train)
    assert pairs(part.test) == pairs(whole.test)
    chosen = part.moments[train]
    assert np.bincount(labels[chosen]).tolist() == [5, 5, 5, 5]
    assert pairs(part.moments) <= pairs(whole.moments)
    if splits == "train, val, test":
        assert pairs(part.select) == pairs(whole.select)
        assert pairs(part.fit) == pairs(part.moments)
    else:
        assert pairs(part.fit) | pairs(part.select) == pairs(part.moments)
        assert set(labels[part.fit[train]]) == set(labels[part.select[train]]) == {0, 1, 2, 3}
    # A val split chooses among heads for few rows, and would outnumber them in the final fit.
    grows = refit and splits != "train, val, test"
    assert pairs(part.refit) == (pairs(part.fit) | pairs(part.select) if grows else pairs(part.fit))
    assert f"{train}: 5 rows a class, subset 0 (20 rows)" in part.notes
    assert part.digest != whole.digest


def test_one_row_a_class_leaves_nothing_to_choose_on_unless_there_is_a_val_split(make_store: MakeStore) -> None:
    with pytest.raises(TooFewRows, match=r"no row is left to choose hyper-parameters on.*a store with a val split"):
        assign(make_store({"train": 100, "test": 60}), [KEY], None, subset=Subset(shots=1))
    store = make_store(SPLITS["train, val, test"], name="val.zarr")
    assert size(assign(store, [KEY], None, subset=Subset(shots=1)).fit) == 4


# Rows of another store that are scored


@pytest.mark.parametrize(
    ("splits", "scored"),
    [
        ({"train": 60, "val": 60, "test": 60}, "test"),
        ({"test": 60}, "test"),
        ({"train": 60, "val": 60}, "val"),
        ({"train": 60, "all": 60}, "all"),
    ],
)
def test_the_test_split_is_scored_else_val_else_all(make_store: MakeStore, splits: dict[str, int], scored: str) -> None:
    store = make_store(splits)
    assert scored_split(store) == scored
    rows, notes = scored_rows(store, [KEY], store_targets(store, [scored]), None, [])
    assert {split: numbers.tolist() for split, numbers in rows.items()} == {scored: list(range(60))}
    assert notes == [f"test: the split {scored} of {store.path} (60 rows)"]


def test_a_store_without_a_split_to_score_is_refused(make_store: MakeStore) -> None:
    with pytest.raises(NothingToProbe, match=r"a split test, val or all; the store has extra, train$"):
        scored_split(make_store({"train": 60, "extra": 60}))


def test_rows_that_heads_were_trained_on_are_not_scored(make_store: MakeStore) -> None:
    store = make_store({"train": 60, "test": 60})
    trained = [store.data_id("test")]
    with pytest.raises(TooFewRows, match="trained or chosen on the samples of its split test"):
        scored_rows(store, [KEY], store_targets(store, ["test"]), None, trained)
    store = make_store({"all": 300}, name="all.zarr")
    rows, notes = scored_rows(store, [KEY], store_targets(store, ["all"]), None, [store.data_id("all")])
    assert pairs(rows) == pairs(assign(store, [KEY], None).test)
    assert any("the fifth of them that is kept for testing is scored" in note for note in notes)


def test_rows_that_are_scored_are_limited_decoded_and_known(make_store: MakeStore) -> None:
    store = make_store({"test": 100}, left_out={KEY: ["c00/test-00004.png"]})
    labels = store.labels("test").astype(np.int64)
    labels[labels == 3] = -1
    targets = Targets("classify", ["a", "b", "c"], {"test": labels})
    rows, notes = scored_rows(store, [KEY], targets, 80, [])
    bad = store.ids("test").tolist().index("c00/test-00004.png")
    assert rows["test"].tolist() == [row for row in range(80) if labels[row] >= 0 and row != bad]
    assert any("rows without a label are left out" in note for note in notes)
    nothing = Targets("classify", ["z"], {"test": np.full(100, -1)})
    with pytest.raises(TooFewRows, match="no row of test has a label that the heads know; classes are matched by name"):
        scored_rows(store, [KEY], nothing, None, [])
