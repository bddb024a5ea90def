from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffssl.extract import ExtractError, ExtractSpec, UnknownBlock
from diffssl.extract.choose import pick_model
from diffssl.extract.noise import SCHEME
from diffssl.extract.settings import (
    check_settings,
    describe_blocks,
    make_header,
    pick_device,
    timesteps_of,
    torch_dtype,
)
from diffssl.extract.sources import DataSet, SplitData
from diffssl.extract.zoo import BUNDLED, find_model
from diffssl.store import Block, Identity, StoreHeader

MINIMAL: dict[str, Any] = {"blocks": {18: set()}, "timesteps": [10], "device": "cpu"}


def data(rows: Mapping[str, int], classes: tuple[str, ...] = ("cat", "dog")) -> DataSet:
    """Splits of so many rows; nothing reads their images."""
    splits = {
        name: SplitData(np.array([f"cat/{i}" for i in range(n)], dtype=object), np.zeros(n, dtype=np.int32), lambda _: b"")
        for name, n in rows.items()
    }
    return DataSet(splits, list(classes))


@pytest.fixture(scope="module")
def header() -> StoreHeader:
    """Header of a store of the bundled model."""
    return make_header(ExtractSpec(**MINIMAL), find_model(None, None, None), data({"all": 1797}), None)


def test_defaults_of_a_new_store(header: StoreHeader) -> None:
    fields = header.identity.fields
    source = find_model(None, None, None)
    assert fields["weights_sha256"] == source.sha256()
    assert fields["model_config"] == source.identity()
    assert fields["condition"] == "none"
    assert fields["preprocessing"]["size"] == 32
    assert fields["noise"] == {"scheme": SCHEME, "seed": 0}
    assert fields["compute_dtype"] == "float32"
    assert list(header.classes) == ["cat", "dog"]
    assert (header.row_block, header.dtype, header.memory_format, header.model) == (128, "float16", "channels_last", BUNDLED)
    assert 1 <= header.batch_size <= header.row_block
    assert len(header.blocks) == 37


@pytest.mark.parametrize(
    ("rows", "limit", "row_block"),
    [
        ({"all": 1797}, None, 128),
        ({"train": 50_000, "test": 10_000}, None, 512),
        ({"train": 1_281_167, "val": 50_000}, None, 2048),
        ({"train": 1_281_167}, 5000, 512),
        ({"all": 10}, None, 64),
        ({"all": 50_000}, 100, 64),
    ],
    ids=str,
)
def test_row_block_by_the_number_of_rows(rows: dict[str, int], limit: int | None, row_block: int) -> None:
    """A power of two near rows / 64, between 64 and 2048; of a pilot at most an eighth."""
    spec = ExtractSpec(**MINIMAL, limit=limit)
    assert make_header(spec, find_model(None, None, None), data(rows), None).row_block == row_block


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"seed": 5}, "noise", {"scheme": SCHEME, "seed": 5}),
        ({"noise": "none"}, "noise", {"scheme": "none"}),
        ({"dtype": "bfloat16"}, "compute_dtype", "bfloat16"),
        ({"store_dtype": "float32"}, None, ("dtype", "float32")),
        ({"row_block": 16}, None, ("row_block", 16)),
        ({"batch_size": 7}, None, ("batch_size", 7)),
        ({"memory_format": "contiguous"}, None, ("memory_format", "contiguous")),
    ],
    ids=str,
)
def test_options_are_in_the_header(header: StoreHeader, change: dict[str, Any], field: str | None, value: Any) -> None:
    changed = make_header(ExtractSpec(**MINIMAL, **change), find_model(None, None, None), data({"all": 1797}), None)
    if field is None:
        assert getattr(changed, value[0]) == value[1]
        assert changed.identity == header.identity
    else:
        assert changed.identity.fields[field] == value
        assert changed.identity.feature_id != header.identity.feature_id


def test_a_small_row_block_makes_small_batches() -> None:
    spec = ExtractSpec(**MINIMAL, row_block=8)
    assert make_header(spec, find_model(None, None, None), data({"all": 1797}), None).batch_size == 8


def test_batches_never_cross_a_row_block() -> None:
    with pytest.raises(ExtractError, match="--batch-size 32 is more than its 16 rows"):
        make_header(ExtractSpec(**MINIMAL, row_block=16, batch_size=32), find_model(None, None, None), data({"all": 9}), None)


@pytest.fixture(scope="module")
def there(header: StoreHeader) -> StoreHeader:
    """The header of a store in which nothing is as by default."""
    fields = {
        **header.identity.fields,
        "noise": {"scheme": SCHEME, "seed": 11},
        "compute_dtype": "bfloat16",
    }
    return replace(
        header,
        identity=Identity(fields),
        row_block=32,
        batch_size=4,
        dtype="float32",
        classes=("ant", "cat", "dog"),
        blocks=header.blocks[:3],
    )


def test_options_not_given_are_taken_from_the_store(there: StoreHeader) -> None:
    assert make_header(ExtractSpec(**MINIMAL), find_model(None, None, None), data({"all": 99_999}), there) == there


def test_clean_images_stay_clean(there: StoreHeader) -> None:
    clean = replace(there, identity=Identity({**there.identity.fields, "noise": {"scheme": "none"}}))
    assert make_header(ExtractSpec(**MINIMAL), find_model(None, None, None), data({"all": 9}), clean) == clean


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_the_memory_format_of_the_store_stays(there: StoreHeader, memory_format: str) -> None:
    """A store whose first features are guided_diffusion's own, bit by bit, is not continued with others."""
    old = replace(there, memory_format=memory_format)
    assert make_header(ExtractSpec(**MINIMAL), find_model(None, None, None), data({"all": 9}), old) == old


def test_a_memory_format_that_the_model_does_not_know(there: StoreHeader) -> None:
    strange = replace(there, memory_format="blocked")
    with pytest.raises(ExtractError, match="with --memory-format channels_last or contiguous, not blocked"):
        make_header(ExtractSpec(**MINIMAL), find_model(None, None, None), data({"all": 9}), strange)


def test_tf32_is_for_gpus() -> None:
    with pytest.raises(ExtractError, match="--dtype tf32 is a precision of GPUs"):
        make_header(ExtractSpec(**MINIMAL, dtype="tf32"), find_model(None, None, None), data({"all": 9}), None)


def test_a_seed_for_clean_images_means_nothing() -> None:
    with pytest.raises(ExtractError, match="--seed 3"):
        make_header(ExtractSpec(**MINIMAL, noise="none", seed=3), find_model(None, None, None), data({"all": 9}), None)


def test_classes_of_the_store_stay(there: StoreHeader) -> None:
    """A split with fewer classes fits; one with a new class does not."""
    source = find_model(None, None, None)
    assert make_header(ExtractSpec(**MINIMAL), source, data({"all": 9}, ("cat",)), there).classes == there.classes
    assert list(make_header(ExtractSpec(**MINIMAL), source, data({"all": 9}, ("cat", "zoo")), there).classes) == ["cat", "zoo"]


def test_a_condition_is_needed_where_there_are_classes(tmp_path: Path, save_model: Callable[..., dict[str, Path]]) -> None:
    config = {"image_size": 16, "num_channels": 32, "channel_mult": "1", "num_res_blocks": 1, "attention_resolutions": "4"}
    source = find_model(None, *save_model(tmp_path, {**config, "class_cond": True}).values())
    with pytest.raises(ExtractError, match="--condition"):
        make_header(ExtractSpec(**MINIMAL), source, data({"all": 9}), None)
    given = make_header(ExtractSpec(**MINIMAL, condition="3"), source, data({"all": 9}), None)
    assert given.identity.fields["condition"] == "3"
    again = make_header(ExtractSpec(**MINIMAL), source, data({"all": 9}), given)
    assert again.identity == given.identity


def test_a_condition_for_an_unconditional_model_is_refused() -> None:
    """Else it would stand in the identity of a store whose features know nothing of it."""
    spec, source = ExtractSpec(**MINIMAL, condition="5"), find_model(None, None, None)
    with pytest.raises(ExtractError, match="not class-conditional"):
        check_settings(spec, make_header(spec, source, data({"all": 9}), None), source)


def test_the_condition_of_the_store_is_not_that_of_another_model(there: StoreHeader) -> None:
    """What differs is the model, and that is what the comparison of the headers says."""
    conditional = replace(there, identity=Identity({**there.identity.fields, "condition": "mean"}))
    header = make_header(ExtractSpec(**MINIMAL), find_model(None, None, None), data({"all": 9}), conditional)
    assert header.identity.fields["condition"] == "none"


def test_the_model_of_the_store(there: StoreHeader, tiny: dict[str, Any]) -> None:
    assert pick_model(ExtractSpec(**MINIMAL), None).name == BUNDLED
    assert pick_model(ExtractSpec(**MINIMAL), there).name == BUNDLED
    own = replace(there, model="unet.safetensors")
    assert pick_model(ExtractSpec(**MINIMAL, **tiny), own) == find_model(None, *tiny.values())
    with pytest.raises(ExtractError, match=r"unet\.safetensors; give --checkpoint and --model-config again"):
        pick_model(ExtractSpec(**MINIMAL), own)


@pytest.mark.parametrize(
    ("blocks", "message"), [({38: set()}, "no block 38; its blocks are 1-37"), ({0: set(), 40: set(), 18: set()}, "0,40")]
)
def test_unknown_blocks_list_the_known(header: StoreHeader, blocks: Any, message: str) -> None:
    with pytest.raises(UnknownBlock, match=message):
        check_settings(ExtractSpec(blocks=blocks, timesteps=[10]), header, find_model(None, None, None))


@pytest.mark.parametrize("timesteps", [[1000], [10, -1], [5000, 90]])
def test_unknown_timesteps_list_the_known(header: StoreHeader, timesteps: list[int]) -> None:
    with pytest.raises(UnknownBlock, match="0 to 999"):
        check_settings(ExtractSpec(blocks={18: set()}, timesteps=timesteps), header, find_model(None, None, None))


def test_identities_of_stores_that_exist_already() -> None:
    """As they were when models other than ADMs were not known."""
    source, rows = find_model(None, None, None), data({"all": 1}, ("cat",))
    changes: list[dict[str, Any]] = [{}, {"seed": 3, "dtype": "bfloat16"}]
    made = [make_header(ExtractSpec(**MINIMAL, **own), source, rows, None) for own in changes]
    found = [header.identity.feature_id for header in made]
    assert found == ["1ef343a6803044ef52d0c461216cfbe7", "df4e178bfb22d42b70575ef4d8378a9f"]


def test_a_class_token_where_there_is_none(header: StoreHeader) -> None:
    source = find_model(None, None, None)
    with pytest.raises(UnknownBlock, match=r"no class token at block 18 \(pool cls\); none of its blocks has one"):
        check_settings(ExtractSpec(blocks={18: set()}, timesteps=[10], pools=["cls", 1]), header, source)
    with pytest.raises(UnknownBlock, match="at block 24"):
        check_settings(ExtractSpec(blocks={18: set(), 24: {"cls"}}, timesteps=[10]), header, source)


def test_timesteps_are_needed() -> None:
    source = find_model(None, None, None)
    assert timesteps_of(ExtractSpec(**MINIMAL), source) == [10]
    with pytest.raises(ExtractError, match=r"--timesteps is needed.* has 0 to 999"):
        timesteps_of(ExtractSpec(blocks={18: set()}), source)


def test_known_settings_pass(header: StoreHeader) -> None:
    spec = ExtractSpec(blocks={1: set(), 37: set()}, timesteps=[0, 999])
    check_settings(spec, header, find_model(None, None, None))


def test_the_table_of_blocks() -> None:
    lines = describe_blocks([Block(1, "Conv", 32, 16, 0.5, 0.25), Block(2, "Res+Attn", 64, 8, 2.0, 0.999)])
    assert [line.split() for line in lines] == [
        ["block", "kind", "channels", "size", "GFLOP", "share"],
        ["1", "Conv", "32", "16", "0.5", "25.0%"],
        ["2", "Res+Attn", "64", "8", "2", "99.9%"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(ExtractError, match=f"--device {name}"):
        pick_device(name)


def test_dtypes_by_name() -> None:
    assert [torch_dtype(name) for name in ("float32", "tf32", "float16", "bfloat16")] == [
        torch.float32,
        torch.float32,
        torch.float16,
        torch.bfloat16,
    ]
