from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from diffssl.extract import ExtractSpec, noise_for
from diffssl.extract.images import decode
from diffssl.extract.job import Job, load_backbone, open_store, prepare
from diffssl.extract.pipeline import Pipeline
from diffssl.extract.zoo import BUNDLED, find_model
from diffssl.store import FeatureKey, FeatureStore, UnitWriter
from guided_diffusion.script_util import create_model_and_diffusion
from numpy.typing import NDArray
from torch import Tensor, nn

MakeSpec = Callable[..., ExtractSpec]
RunExtract = Callable[[ExtractSpec], tuple[FeatureStore, list[str]]]
SameValues = Callable[[FeatureStore, FeatureStore], None]

# The bundled model on 72 photographs: five row blocks, the last one half as long.
GRID: dict[str, Any] = {
    "model": BUNDLED,
    "blocks": {8: {1, 3, "full"}, 18: set(), 24: {1, 2}},
    "timesteps": [90, 300],
    "memory_format": "contiguous",  # guided_diffusion's own modules: exactly
}
KEYS = [FeatureKey(b, t, p) for b, p in ((8, 1), (8, 3), (8, 8), (18, 1), (24, 1), (24, 2)) for t in (90, 300)]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory, run_extract: RunExtract) -> FeatureStore:
    """The store of :data:`GRID`. Tests leave it as it is."""
    path = tmp_path_factory.mktemp("whole") / "feats.zarr"
    return run_extract(ExtractSpec(**GRID, data=(str(photos),), store=path, row_block=16, batch_size=8, device="cpu"))[0]


@pytest.fixture
def grid(make_spec: MakeSpec) -> MakeSpec:
    """A spec of :data:`GRID` with changes."""
    return lambda **changes: make_spec(**{**GRID, **changes})


# --- against a straight computation


class Straight:
    """What the features are by definition: guided_diffusion's own model and forward, hooks, torch's pooling."""

    def __init__(self, photos: Path, store: FeatureStore) -> None:
        source = find_model(BUNDLED, None, None)
        self.unet, self.diffusion = create_model_and_diffusion(**source.config)
        state = safetensors.torch.load_file(source.weights)
        self.unet.load_state_dict({name: value.float() for name, value in state.items()})
        self.unet.eval()
        self.photos = photos
        assert store.header.memory_format == "contiguous"

    def activations(
        self, ids: list[str], timestep: int, noise: Callable[[str], NDArray[np.float32]] | None
    ) -> dict[int, Tensor]:
        """Float32 activation of every block for one batch."""
        pixels = np.stack([decode((self.photos / name).read_bytes(), 32) for name in ids])
        x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)) / 127.5 - 1
        if noise is not None:
            abar = float(self.diffusion.alphas_cumprod[timestep])
            x = abar**0.5 * x + (1 - abar) ** 0.5 * torch.from_numpy(np.stack([noise(name) for name in ids]))
        x = x.contiguous()
        found: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                found[number] = output

            return hook

        blocks = [*self.unet.input_blocks, self.unet.middle_block, *self.unet.output_blocks]
        handles = [block.register_forward_hook(keep(i)) for i, block in enumerate(blocks, start=1)]
        with torch.no_grad():
            self.unet(x, torch.full((len(ids),), timestep))
        for handle in handles:
            handle.remove()
        return found

    def check(
        self, store: FeatureStore, keys: Collection[FeatureKey], rows: Collection[int], clean: bool = False, seed: int = 0
    ) -> None:
        """Assert that the batches of 8 which start at ``rows`` are exactly that in the store."""
        ids = store.ids("all").tolist()
        for timestep, draw in sorted({(key.timestep, key.draw) for key in keys}):
            assert timestep is not None
            for start in rows:
                own = ids[start : start + 8]

                def noise(name: str, timestep: int = timestep, draw: int = draw) -> NDArray[np.float32]:
                    return noise_for(seed, name, timestep, (3, 32, 32), draw)

                maps = self.activations(own, timestep, None if clean else noise)
                for key in keys:
                    if (key.timestep, key.draw) == (timestep, draw):
                        pooled = F.adaptive_avg_pool2d(maps[key.block], int(key.pool)).numpy()
                        found = store.read(key, "all", slice(start, start + len(own)))
                        assert found.dtype == np.dtype(store.header.dtype)
                        np.testing.assert_array_equal(found, pooled.astype(found.dtype), err_msg=str(key))


@pytest.fixture(scope="module")
def straight(photos: Path, whole: FeatureStore) -> Straight:
    """The straight computation, in the memory format that the store's header names."""
    return Straight(photos, whole)


def test_features_are_what_they_mean(whole: FeatureStore, straight: Straight) -> None:
    """Decode, noise, diffuse, the model's own forward, pool, cast: exactly the values of the store."""
    assert whole.keys("all") == sorted(KEYS, key=lambda key: key.order)
    straight.check(whole, KEYS, [0, 24, 64])


def test_features_tell_images_apart(whole: FeatureStore) -> None:
    for key in KEYS:
        values = whole.read(key, "all").reshape(72, -1).astype(np.float64)
        assert np.isfinite(values).all()
        assert len(np.unique(values, axis=0)) == 72
        assert values.std(axis=0).max() > 1e-2


def test_clean_images(grid: MakeSpec, run_extract: RunExtract, straight: Straight) -> None:
    """Without noise, x_t is the image itself; the timestep is still what the network is told."""
    store, _ = run_extract(grid(noise="none", blocks={8: set(), 24: {2}}, limit=16))
    keys = store.keys("all")
    assert len(keys) == 4
    straight.check(store, keys, [8], clean=True)
    assert store.identity.fields["noise"] == {"scheme": "none"}
    assert not np.array_equal(store.read(keys[0], "all"), store.read(keys[1], "all"))


def test_draws_and_float32(grid: MakeSpec, run_extract: RunExtract, straight: Straight, whole: FeatureStore) -> None:
    """Each draw has noise of its own; a store in float32 holds what another rounds to float16."""
    store, _ = run_extract(grid(draws=3, blocks={24: {2}}, timesteps=[90], store_dtype="float32", seed=0, limit=16))
    keys = [FeatureKey(24, 90, 2, draw) for draw in range(3)]
    assert store.keys("all") == keys
    straight.check(store, keys, [8])
    values = [store.read(key, "all") for key in keys]
    assert values[0].dtype == np.float32
    np.testing.assert_array_equal(values[0].astype(np.float16), whole.read(FeatureKey(24, 90, 2), "all", slice(16)))
    assert not np.array_equal(values[0], values[0].astype(np.float16).astype(np.float32))
    assert not np.array_equal(values[0], values[1])
    assert not np.array_equal(values[1], values[2])


def test_another_seed(grid: MakeSpec, run_extract: RunExtract, straight: Straight, whole: FeatureStore) -> None:
    store, _ = run_extract(grid(seed=12345, blocks={24: {2}}, timesteps=[90], limit=16))
    key = FeatureKey(24, 90, 2)
    straight.check(store, [key], [0], seed=12345)
    assert not np.array_equal(store.read(key, "all"), whole.read(key, "all", slice(16)))


# --- what must not matter


def test_another_batch_size_is_within_the_designs_tolerance(
    grid: MakeSpec, run_extract: RunExtract, whole: FeatureStore
) -> None:
    """At most 2^-10 of the block's largest magnitude."""
    store, _ = run_extract(grid(batch_size=16, timesteps=[300]))
    keys = [key for key in KEYS if key.timestep == 300]
    assert len(store.keys("all")) == len(keys) == 6
    for key in keys:
        ours, theirs = store.read(key, "all").astype(np.float64), whole.read(key, "all").astype(np.float64)
        assert np.abs(ours - theirs).max() <= 2**-10 * np.abs(theirs).max(), str(key)


def test_a_subset_has_the_same_features(
    tmp_path: Path, photos: Path, grid: MakeSpec, run_extract: RunExtract, whole: FeatureStore
) -> None:
    """Other neighbours in the batch, another slot, another row block, fewer classes: the same image, exactly."""
    names = [str(path.relative_to(photos)) for path in photos.rglob("*") if path.is_file()]
    chosen = sorted(random.Random(1).sample([name for name in names if not name.startswith("roof")], 19))
    for name in chosen:
        (tmp_path / "subset" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / name, tmp_path / "subset" / name)
    store, _ = run_extract(grid(data=(str(tmp_path / "subset"),), timesteps=[90]))
    assert sorted(store.ids("all").tolist()) == chosen
    assert store.classes == ["bridge", "flower"]
    place = {name: row for row, name in enumerate(whole.ids("all"))}
    rows = [place[name] for name in store.ids("all")]
    assert [row % 8 for row in rows] != [row % 8 for row in range(19)]
    for key in store.keys("all"):
        np.testing.assert_array_equal(store.read(key, "all"), whole.read(key, "all")[rows], err_msg=str(key))


def test_a_tar_in_another_order_is_the_same_store(
    tmp_path: Path,
    photos: Path,
    grid: MakeSpec,
    run_extract: RunExtract,
    make_tar: Callable[..., Path],
    whole: FeatureStore,
    same_values: SameValues,
) -> None:
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*") if path.is_file())
    random.Random(2).shuffle(names)
    tar = make_tar(tmp_path / "photos.tar", photos, names, "./")
    store, _ = run_extract(grid(data=(str(tar),)))
    same_values(store, whole)
    assert store.data_id("all") == whole.data_id("all")
    assert store.feature_id == whole.feature_id


def test_draws_from_no_global_generator(grid: MakeSpec, run_extract: RunExtract) -> None:
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state().tolist(), random.getstate()
    run_extract(grid(limit=8, blocks={8: set()}))
    assert (torch.get_rng_state().tolist(), random.getstate()) == before


# --- the stages


class Recorder:
    """A backbone that remembers every forward pass it was asked for."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.calls: list[tuple[Tensor, int, list[int]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def features(self, x_t: Tensor, timestep: int, blocks: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        self.calls.append((x_t, timestep, sorted(blocks)))
        yield from self.inner.features(x_t, timestep, blocks)


class Rig:
    """A pipeline on a real store, with its backbone, its commits and its reads in view."""

    def __init__(self, spec: ExtractSpec) -> None:
        job: Job = prepare(spec, lambda _: None)
        self.job = job
        self.backbone = Recorder(load_backbone(job))
        self.store = open_store(job, self.backbone.inner)
        self.reads: list[tuple[str, int]] = []
        self.commits: list[str] = []
        self.progress: list[int] = []
        self.splits = {name: replace(split, read=self._counted(name, split.read)) for name, split in job.data.splits.items()}

    def _counted(self, name: str, read: Callable[[int], bytes]) -> Callable[[int], bytes]:
        def counted(row: int) -> bytes:
            self.reads.append((name, row))
            return read(row)

        return counted

    def commit(self, writer: UnitWriter) -> None:
        self.commits.append(writer.commit(self.job.spec.limit, None, {}).name)

    def run(self, commit: Callable[[UnitWriter], object] | None = None, side_by_side: bool = False) -> Pipeline:
        backbone: Any = self.backbone
        seed = self.job.header.identity.fields["noise"].get("seed")
        pipeline = Pipeline(self.store, self.splits, backbone, seed, 2, commit or self.commit, self.progress.append)
        pipeline._side_by_side = side_by_side  # as beside a GPU
        pipeline.run(self.job.plan.work)
        return pipeline


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("diffssl")]


def test_batches_are_full_and_stop_at_the_deepest_block(make_spec: MakeSpec) -> None:
    """72 rows in row blocks of 16: nine batches of 8 for each timestep, none of another size."""
    rig = Rig(make_spec(blocks={3: set(), 5: {1, 2}}, timesteps=[90, 10]))
    rig.run()
    assert {tuple(x.shape) for x, _, _ in rig.backbone.calls} == {(8, 3, 16, 16)}
    assert [timestep for _, timestep, _ in rig.backbone.calls] == (2 * [10] + 2 * [90]) * 4 + [10, 90]
    assert {tuple(blocks) for _, _, blocks in rig.backbone.calls} == {(3, 5)}


def test_the_last_batch_is_padded(tmp_path: Path, make_spec: MakeSpec, write_images: Callable[..., None]) -> None:
    write_images(tmp_path / "x", [f"cat/{i}.png" for i in range(21)])
    rig = Rig(make_spec(data=(str(tmp_path / "x"),)))
    rig.run()
    assert [len(x) for x, _, _ in rig.backbone.calls] == [8, 8, 8]
    assert sum(rig.progress) == 21
    assert rig.store.read(FeatureKey(3, 90, 1), "all").shape[0] == 21


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_activations_have_the_memory_format_of_the_store(make_spec: MakeSpec, memory_format: str) -> None:
    """It is fixed when a store is created, because another one changes values by a few ulp."""
    assert prepare(make_spec(), lambda _: None).header.memory_format == "channels_last"
    first = Rig(make_spec(memory_format=memory_format, limit=8))
    first.run()
    rig = Rig(make_spec(limit=16))  # goes on as the store has it
    assert rig.store.header.memory_format == memory_format
    with torch.inference_mode():
        ((_, activation),) = rig.backbone.features(torch.zeros(2, 3, 16, 16), 90, [3])
    assert activation.is_contiguous() == (memory_format == "contiguous")
    assert activation.is_contiguous(memory_format=torch.channels_last) == (memory_format == "channels_last")


def test_the_default_memory_format_agrees(grid: MakeSpec, run_extract: RunExtract, tmp_path: Path) -> None:
    """The fast forward against guided_diffusion's own, through the whole pipeline, in float32."""
    ours, exact = (
        run_extract(grid(memory_format=name, store_dtype="float32", limit=16, store=tmp_path / f"{name}.zarr"))[0]
        for name in (None, "contiguous")
    )
    assert (ours.header.memory_format, exact.header.memory_format) == ("channels_last", "contiguous")
    for key in KEYS:
        found, expected = ours.read(key, "all"), exact.read(key, "all")
        assert not np.array_equal(found, expected), key
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max(), key


def test_each_image_is_read_once(make_spec: MakeSpec) -> None:
    rig = Rig(make_spec(timesteps=[10, 50, 90], draws=2))
    rig.run()
    assert sorted(rig.reads) == [("all", row) for row in range(72)]
    assert len(rig.backbone.calls) == 9 * 3 * 2


def test_units_are_committed_one_after_the_other(make_spec: MakeSpec) -> None:
    rig = Rig(make_spec(timesteps=[90, 10], draws=2))
    rig.run()
    expected = [f"journal/all/{block:06d}-t{timestep}" for block in range(5) for timestep in (10, 90)]
    assert [name.rsplit("-", 1)[0] for name in rig.commits] == expected
    assert sum(rig.progress) == 72 * 2 * 2


def test_only_what_is_missing_is_computed(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    run_extract(make_spec(blocks={5: set()}, timesteps=[10], limit=32))
    rig = Rig(make_spec(blocks={2: set(), 5: set()}, timesteps=[10, 90], limit=48))
    rig.run()
    asked = [(timestep, blocks) for _, timestep, blocks in rig.backbone.calls]
    assert asked == ([(10, [2])] * 2 + [(90, [2, 5])] * 2) * 2 + [(10, [2, 5])] * 2 + [(90, [2, 5])] * 2


def test_what_another_process_has_committed_meanwhile_is_not_computed_again(
    make_spec: MakeSpec, run_extract: RunExtract, files_of: Callable[[Path], dict[str, str]]
) -> None:
    rig = Rig(make_spec(timesteps=[10, 90]))
    run_extract(make_spec(timesteps=[10, 90], limit=48))
    run_extract(make_spec(timesteps=[10]))
    before = files_of(Path(make_spec().store))
    rig.run()
    assert [timestep for _, timestep, _ in rig.backbone.calls] == [90, 90, 90]
    after = files_of(Path(make_spec().store))
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2 * 3  # two row blocks: a commit and two shards each


def test_an_error_of_the_writer_ends_the_run(make_spec: MakeSpec, same_values: SameValues, run_extract: RunExtract) -> None:
    """What was committed stays, nothing else is committed, no thread is left behind, and a second run completes it."""
    rig = Rig(make_spec(timesteps=[10, 90]))

    def commit(writer: UnitWriter) -> None:
        if len(rig.commits) == 3:
            raise OSError(28, "No space left on device")
        rig.commit(writer)

    with pytest.raises(OSError, match="No space left"):
        rig.run(commit)
    assert len(rig.commits) == 3
    assert threads() == []
    opened = FeatureStore.open(Path(make_spec().store))
    keys = [FeatureKey(block, t, 1) for block in (3, 5) for t in (10, 90)]
    assert opened.missing([key for key in keys if key.timestep == 10], "all") == [2, 3, 4]
    assert opened.missing([key for key in keys if key.timestep == 90], "all") == [1, 2, 3, 4]
    store, _ = run_extract(make_spec(timesteps=[10, 90]))
    other, _ = run_extract(make_spec(timesteps=[10, 90], store=Path(make_spec().store).with_name("other.zarr")))
    same_values(store, other)


def test_an_error_of_the_backbone_ends_the_run(make_spec: MakeSpec) -> None:
    rig = Rig(make_spec())
    inner = rig.backbone.features

    def failing(x_t: Tensor, timestep: int, blocks: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        if len(rig.backbone.calls) == 4:
            raise RuntimeError("out of memory")
        return inner(x_t, timestep, blocks)

    rig.backbone.features = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        rig.run()
    assert 1 <= len(rig.commits) <= 2
    assert threads() == []
    assert sorted(FeatureStore.open(Path(make_spec().store)).journal.row_blocks("all", FeatureKey(3, 90, 1))) == list(
        range(len(rig.commits))
    )


def test_no_thread_is_left_after_a_run(make_spec: MakeSpec) -> None:
    Rig(make_spec(limit=16)).run()
    assert threads() == []


def test_nothing_to_do(make_spec: MakeSpec, run_extract: RunExtract) -> None:
    run_extract(make_spec(limit=16))
    rig = Rig(make_spec(limit=16))
    rig.run()
    assert (rig.backbone.calls, rig.reads, rig.commits, rig.progress) == ([], [], [], [])


@pytest.mark.parametrize("side_by_side", [True, False])
def test_decoding_is_ahead_of_a_gpu_and_takes_turns_with_a_cpu(make_spec: MakeSpec, side_by_side: bool) -> None:
    """While a row block is in a GPU, the next one is being decoded, and no more than that."""
    rig = Rig(make_spec())
    seen: list[set[int]] = []
    inner = rig.backbone.features

    def looking(x_t: Tensor, timestep: int, blocks: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        seen.append({row // 16 for _, row in rig.reads})
        return inner(x_t, timestep, blocks)

    rig.backbone.features = looking  # type: ignore[method-assign]
    rig.run(side_by_side=side_by_side)
    ahead = [max(blocks) - call // 2 for call, blocks in enumerate(seen)]
    assert set(ahead) <= ({0, 1} if side_by_side else {0})
    assert max(ahead) == side_by_side


def test_timings_are_shares_of_the_run(make_spec: MakeSpec) -> None:
    timings = Rig(make_spec()).run().timings
    assert timings.backbone > 0
    assert timings.decode > 0


def test_pixels_reach_the_backbone_as_numbers_from_minus_one_to_one(photos: Path, make_spec: MakeSpec) -> None:
    rig = Rig(make_spec(noise="none", limit=8))
    rig.run()
    x = rig.backbone.calls[0][0]
    for i, name in enumerate(rig.splits["all"].ids[:8]):
        pixels = decode((photos / name).read_bytes(), 16).astype(np.float64).transpose(2, 0, 1)
        np.testing.assert_allclose(x[i].numpy(), pixels / 127.5 - 1, atol=1e-6)
    assert -1 <= x.min() < -0.5
    assert 0.5 < x.max() <= 1
