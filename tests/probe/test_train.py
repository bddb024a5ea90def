"""Training the torch heads against plain torch, rates against each other, and heads together against heads alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import diffssl.probe.data
import diffssl.probe.train
import numpy as np
import pytest
import torch
from diffssl.probe import ProbeError
from diffssl.probe.data import Batches, ProbeData
from diffssl.probe.heads import Copies, StackedMLP, build_head
from diffssl.probe.targets import store_targets
from diffssl.probe.train import Recipe, Trainer, Trial, copy_losses, pick_device, score_head, train_together
from diffssl.store import FeatureKey, FeatureStore
from numpy.typing import NDArray
from torch import Tensor, nn

MakeStore = Callable[..., FeatureStore]
Head = StackedMLP | Copies

KEY = FeatureKey(1, 10, 1)
ROWS = {"train": np.arange(20, 250)}
DECAY = 0.01
RATES = (1e-3, 1e-2, 1e-1)
CPU = torch.device("cpu")
STREAM = 11  # seed of the order of row blocks
RECIPE = Recipe("adamw", 0.0, 25, 32, "cosine", 0, None, None, 1)
OPTIONS: dict[str, dict[str, Any]] = {"linear": {}, "mlp": {"hidden": [16, 12]}, "own": {}}
HEADS = pytest.mark.parametrize("head", ["linear", "mlp"])
ALL_HEADS = pytest.mark.parametrize("head", ["linear", "mlp", "own"])


class Own(nn.Module):
    """A head of a user's own, which draws from torch's global generator as it is trained."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, maps: list[Tensor]) -> Tensor:
        logits: Tensor = self.layer(self.drop(maps[0].flatten(1)))
        return logits


def make_own(shapes: Sequence[tuple[int, int, int]], outputs: int) -> nn.Module:
    return Own(math.prod(shapes[0]), outputs)


def data_of(store: FeatureStore, **more: Any) -> ProbeData:
    return ProbeData(store, [KEY], store_targets(store, store.splits), **more)


@pytest.fixture
def data(make_store: MakeStore) -> ProbeData:
    return data_of(make_store({"train": 250, "test": 130}))


def make_trainer(
    data: ProbeData,
    head: str,
    rates: Sequence[float] = RATES,
    seed: int = 0,
    judge: Callable[[Head], Tensor] | None = None,
    **changes: Any,
) -> Trainer:
    own = make_own if head == "own" else None
    built = build_head(head, data.shapes, 1, 4, len(rates), OPTIONS[head], seed, own)
    trials = [Trial(rate, DECAY) for rate in rates]
    return Trainer(built, trials, dataclasses.replace(RECIPE, **changes), "classify", seed, judge)


def train(data: ProbeData, *trainers: Trainer) -> list[list[Tensor]]:
    """Weights of each head, trained together."""
    train_together(trainers, data, ROWS, data.moments(ROWS), STREAM, CPU)
    return [[parameter.detach() for parameter in trainer.head.parameters()] for trainer in trainers]


def written_out(recipe: Recipe, step: int) -> float:
    """The schedules as functions of the step."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    part = (step - recipe.warmup) / (recipe.steps - recipe.warmup)
    return {
        "cosine": (1 + math.cos(math.pi * part)) / 2,
        "constant": 1.0,
        "steps": [1.0, 0.1, 0.01, 0.001][int(4 * part)],
    }[recipe.schedule]


def cut(data: ProbeData, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    batches = Batches(batch_size, np.random.default_rng(seed))
    for buffer in data.buffers(ROWS, data.moments(ROWS), np.random.default_rng(STREAM), CPU):
        yield from batches.cut(buffer)


def by_hand(data: ProbeData, head: str, rate: float, seed: int, recipe: Recipe) -> nn.Sequential:
    """The same in plain torch: optimiser, schedule, mean cross-entropy, the same start and batches."""
    widths = (data.dimension, *OPTIONS[head].get("hidden", ()), 4)
    start = StackedMLP(1, widths, torch.Generator().manual_seed(seed))
    layers: list[nn.Module] = []
    for weight, bias in zip(start.weights, start.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        with torch.no_grad():
            linear.weight.copy_(weight[0].T)
            linear.bias.copy_(bias[0, 0])
        layers += [linear, nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    optimiser: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=DECAY)
    if recipe.optimiser == "sgd":
        optimiser = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=DECAY, momentum=recipe.momentum)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: written_out(recipe, min(step, recipe.steps - 1)))
    for features, labels in islice(cut(data, recipe.batch_size, seed), recipe.stop or recipe.steps):
        loss = nn.functional.cross_entropy(model(features), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model


# One head


@HEADS
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stop": 10},
        {"schedule": "steps"},
        {"schedule": "constant", "warmup": 5},
        {"warmup": 7, "batch_size": 230},
        {"optimiser": "sgd"},
        {"optimiser": "sgd", "momentum": 0.9, "schedule": "steps"},
    ],
    ids=["adamw, cosine", "stopped", "steps", "warm-up", "whole batches", "sgd", "momentum"],
)
def test_every_rate_is_trained_as_plain_torch_would(data: ProbeData, head: str, changes: dict[str, Any]) -> None:
    trainer = make_trainer(data, head, seed=3, **changes)
    train(data, trainer)
    assert isinstance(trainer.head, StackedMLP)
    recipe = dataclasses.replace(RECIPE, **changes)
    for copy, rate in enumerate(RATES):
        linears = [layer for layer in by_hand(data, head, rate, 3, recipe) if isinstance(layer, nn.Linear)]
        for weight, bias, linear in zip(trainer.head.weights, trainer.head.biases, linears, strict=True):
            torch.testing.assert_close(weight[copy].T, linear.weight, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(bias[copy, 0], linear.bias, rtol=1e-3, atol=1e-4)


@HEADS
def test_a_rate_alone_is_that_rate_among_others(data: ProbeData, head: str) -> None:
    (together,) = train(data, make_trainer(data, head))
    for copy, rate in enumerate(RATES):
        (alone,) = train(data, make_trainer(data, head, [rate]))
        for parameter, own in zip(together, alone, strict=True):
            torch.testing.assert_close(parameter[copy : copy + 1], own, rtol=1e-3, atol=1e-4)
    assert (together[0][0] - together[0][1]).abs().max() > 1e-2  # which would not be so if the rates were one


@ALL_HEADS
def test_the_same_seed_gives_the_same_weights_bit_for_bit(data: ProbeData, head: str) -> None:
    weights = []
    for seed in (5, 6):  # global generators must not matter
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        weights += train(data, make_trainer(data, head))
    for parameter, same in zip(*weights, strict=True):
        assert torch.equal(parameter, same)


@ALL_HEADS
def test_the_global_generator_is_left_as_it_was(data: ProbeData, head: str) -> None:
    before = torch.random.get_rng_state()
    train(data, make_trainer(data, head))
    assert torch.equal(before, torch.random.get_rng_state())


@ALL_HEADS
def test_another_seed_gives_other_weights(data: ProbeData, head: str) -> None:
    for parameter, other in zip(*train(data, make_trainer(data, head), make_trainer(data, head, seed=1)), strict=True):
        assert not torch.equal(parameter, other)


@ALL_HEADS
def test_rows_that_are_not_asked_for_do_not_matter(make_store: MakeStore, head: str) -> None:
    """Rows outside of the role are poisoned; the weights stay as they were."""
    weights = []
    for poison in (0.0, 1e4):

        def features(_key: FeatureKey, _split: str, labels: NDArray[np.int32], poison: float = poison) -> NDArray[Any]:
            values = np.random.default_rng(0).normal(size=(len(labels), 8, 1, 1))
            values[:20] += poison
            return values

        data = data_of(make_store({"train": 250}, features=features, name=f"{poison}.zarr"))
        weights += train(data, make_trainer(data, head))
    for clean, poisoned in zip(*weights, strict=True):
        assert torch.equal(clean, poisoned)


@HEADS
def test_separable_classes_are_learnt(make_store: MakeStore, head: str) -> None:
    data = data_of(make_store({"train": 250, "test": 130}, separation=12.0))
    trainer = make_trainer(data, head, steps=100)
    moments, rows = data.moments(ROWS), {"test": np.arange(130)}
    logits, labels = score_head(trainer.head, data, rows, moments)
    assert (logits[1].argmax(axis=1) == labels).mean() < 0.8
    train(data, trainer)
    logits, labels = score_head(trainer.head, data, rows, moments)
    assert (logits[1].argmax(axis=1) == labels).mean() > 0.97


# Heads together


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("buffer", [1, 1 << 28], ids=["a block", "everything"])
def test_what_a_head_learns_does_not_depend_on_the_others(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, memory: int, buffer: int
) -> None:
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", buffer)
    data = data_of(make_store({"train": 250}), memory=memory)
    asked: list[tuple[str, int, dict[str, Any]]] = [
        ("linear", 0, {}),
        ("linear", 1, {"steps": 60}),
        ("mlp", 0, {"batch_size": 50}),
        ("mlp", 1, {"optimiser": "sgd", "schedule": "steps", "steps": 9}),
        ("own", 0, {"clip": 1.0}),
        ("own", 1, {"batch_size": 7}),
    ]
    together = train(data, *(make_trainer(data, head, seed=seed, **changes) for head, seed, changes in asked))
    for (head, seed, changes), weights in zip(asked, together, strict=True):
        (alone,) = train(data, make_trainer(data, head, seed=seed, **changes))
        for parameter, own in zip(weights, alone, strict=True):
            assert torch.equal(parameter, own)


def test_all_heads_together_read_the_rows_once(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = FeatureStore.read

    def watch(self: FeatureStore, *rest: Any) -> NDArray[Any]:
        reads.append(rest)
        return read(self, *rest)

    data = data_of(make_store({"train": 250}), memory=0)
    moments = data.moments(ROWS)
    monkeypatch.setattr(FeatureStore, "read", watch)
    monkeypatch.setattr(diffssl.probe.data, "_BUFFER_BYTES", 1)
    for heads in (["linear"], ["linear", "mlp", "mlp"]):
        reads.clear()
        trainers = [make_trainer(data, head, seed=seed, steps=230 * 2 // 32) for seed, head in enumerate(heads)]
        train_together(trainers, data, ROWS, moments, STREAM, CPU)
        assert 8 <= len(reads) <= 8 + 2  # two epochs of four row blocks, and what was read ahead


# Held-out losses


class Judge:
    """Says what it was told to, and keeps the weights that it was shown."""

    def __init__(self, *losses: Sequence[float]) -> None:
        self.losses = iter(losses)
        self.seen: list[list[dict[str, Tensor]]] = []

    def __call__(self, head: Head) -> Tensor:
        self.seen.append([{name: value.clone() for name, value in head.state(copy).items()} for copy in (0, 1)])
        return torch.tensor(next(self.losses))


@ALL_HEADS
def test_the_best_weights_of_each_copy_are_kept_and_training_ends_when_none_gets_better(data: ProbeData, head: str) -> None:
    judge = Judge([3.0, 3.0], [1.0, 2.0], [2.0, 1.0], [2.0, 1.0], [1.0, 5.0])
    trainer = make_trainer(data, head, RATES[1:], judge=judge, steps=100, evaluate_every=5, patience=2)
    train(data, trainer)
    assert trainer.done
    assert len(judge.seen) == 5
    assert trainer.best_steps == [10, 15]
    for copy, best in ((0, 1), (1, 2)):
        for name, value in trainer.head.state(copy).items():
            assert torch.equal(value, judge.seen[best][copy][name])
            assert not torch.equal(value, judge.seen[4][copy][name])


@ALL_HEADS
def test_a_loss_that_is_not_finite_is_never_the_best(data: ProbeData, head: str) -> None:
    nan, inf = math.nan, math.inf
    judge = Judge([nan, 3.0], [inf, nan], [nan, -inf])
    trainer = make_trainer(data, head, RATES[1:], judge=judge, steps=12, evaluate_every=5, patience=9)
    train(data, trainer)
    assert trainer.best_steps == [12, 5]
    for copy, look in ((0, 2), (1, 0)):
        for name, value in trainer.head.state(copy).items():
            assert torch.equal(value, judge.seen[look][copy][name])


@pytest.mark.parametrize(("every", "stop", "looks"), [(5, None, 5), (6, None, 5), (100, None, 1), (5, 12, 3), (None, None, 0)])
def test_losses_are_looked_at_now_and_then_and_at_the_end(
    data: ProbeData, every: int | None, stop: int | None, looks: int
) -> None:
    judge = Judge(*[[float(-look), 1.0] for look in range(9)])
    trainer = make_trainer(data, "linear", RATES[1:], judge=judge, evaluate_every=every, stop=stop, patience=9)
    train(data, trainer)
    assert len(judge.seen) == looks
    assert trainer.best_steps[0] == (stop or 25)


def test_without_a_judge_patience_means_nothing(data: ProbeData) -> None:
    trainer = make_trainer(data, "linear", evaluate_every=5)
    assert trainer.best_steps == [0, 0, 0]
    train(data, trainer)
    assert trainer.best_steps == [25, 25, 25]


@ALL_HEADS
def test_looking_does_not_change_what_is_learnt(data: ProbeData, head: str) -> None:
    looks = iter(range(9))

    def judge(own: Head) -> Tensor:
        score_head(own, data, {"test": np.arange(130)}, data.moments(ROWS))
        return torch.full((3,), -float(next(looks)))  # the last is the best

    watched, alone = train(data, make_trainer(data, head, judge=judge, evaluate_every=10), make_trainer(data, head))
    for parameter, own in zip(watched, alone, strict=True):
        assert torch.equal(parameter, own)
    assert next(looks) == 3


# Recipes


OF = {
    "optimiser": "sgd",
    "momentum": 0.9,
    "batch_size": 64,
    "schedule": "steps",
    "warmup": 3,
    "clip": 1.0,
    "evaluate_every": 10,
    "patience": 4,
}


def test_a_recipe_is_what_the_options_say() -> None:
    recipe = Recipe.of(OF | {"steps": 50, "learning_rates": [0.1], "hidden": [3]}, 1000)
    assert recipe == Recipe("sgd", 0.9, 50, 64, "steps", 3, 1.0, 10, 4)


@pytest.mark.parametrize(
    ("n_rows", "steps", "batch_size"), [(640, 280, 64), (641, 281, 64), (64, 28, 64), (63, 28, 63), (20, 28, 20), (1, 28, 1)]
)
def test_epochs_become_steps_and_a_batch_has_all_rows_if_they_are_fewer(n_rows: int, steps: int, batch_size: int) -> None:
    recipe = Recipe.of(OF | {"epochs": 28}, n_rows)
    assert (recipe.steps, recipe.batch_size) == (steps, batch_size)
    assert Recipe.of(OF | {"epochs": 28, "steps": 5}, n_rows).steps == 5


@pytest.mark.parametrize("schedule", ["cosine", "constant", "steps"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_rates_follow_the_schedule(schedule: str, warmup: int) -> None:
    recipe = dataclasses.replace(RECIPE, schedule=schedule, warmup=warmup, steps=40)
    assert [recipe.factor(step) for step in range(40)] == pytest.approx([written_out(recipe, step) for step in range(40)])
    assert recipe.factor(warmup) == 1
    assert dataclasses.replace(recipe, stop=20).factor(19) == recipe.factor(19)


def test_a_step_schedule_falls_to_a_tenth_after_each_quarter() -> None:
    recipe = dataclasses.replace(RECIPE, schedule="steps", steps=28)
    factors = [recipe.factor(step) for step in range(28)]
    assert factors == pytest.approx([1.0] * 7 + [0.1] * 7 + [0.01] * 7 + [0.001] * 7)


# Losses


def test_losses_of_classes_are_the_mean_cross_entropy_of_each_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(3, 20, 4, generator=generator), torch.arange(20) % 4
    found = copy_losses(outputs, labels, "classify")
    for copy, loss in zip(outputs, found, strict=True):
        torch.testing.assert_close(loss, nn.functional.cross_entropy(copy, labels))


@pytest.mark.parametrize("task", ["multilabel", "regress"])
def test_losses_are_the_mean_over_the_answers_that_are_known(task: str) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(3, 20, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(20, 4, generator=generator) < 0.5).double()
    unknown = torch.rand(20, 4, generator=generator) < 0.3
    targets[unknown] = math.nan
    losses = copy_losses(outputs, targets, task)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    for copy, loss in zip(outputs.detach(), losses, strict=True):
        logits, wanted = copy[~unknown], targets[~unknown]
        likelihood = -(wanted * torch.sigmoid(logits).log() + (1 - wanted) * torch.sigmoid(-logits).log())
        expected = likelihood if task == "multilabel" else (logits - wanted) ** 2
        torch.testing.assert_close(loss, expected.mean())
    assert outputs.grad is not None
    assert not outputs.grad[:, unknown].any()
    assert outputs.grad[:, ~unknown].all()


# Scores


@ALL_HEADS
@pytest.mark.parametrize("at_once", [1, 5, 512])
def test_scores_are_those_of_the_rows_in_order(
    data: ProbeData, monkeypatch: pytest.MonkeyPatch, head: str, at_once: int
) -> None:
    monkeypatch.setattr(diffssl.probe.train, "_SCORED", at_once)
    trainer = make_trainer(data, head)
    train(data, trainer)
    moments = data.moments(ROWS)
    rows = {"test": np.array([3, 5, 63, 64, 100, 129]), "train": np.array([0, 200])}
    logits, labels = score_head(trainer.head, data, rows, moments)
    features, expected = data.load(rows, moments)
    assert logits.shape == (3, 8, 4)
    assert labels.tolist() == expected.tolist()
    with torch.no_grad():
        whole = trainer.head.eval()(torch.from_numpy(features.astype(np.float32)))
    np.testing.assert_allclose(logits, whole.numpy(), rtol=1e-4, atol=1e-5)


def test_scores_are_of_the_copy_of_the_rows_that_is_asked_for(make_store: MakeStore) -> None:
    keys = [FeatureKey(1, 10, 1, draw) for draw in range(2)]
    store = make_store({"train": 250, "test": 130}, keys)
    data = data_of(store, copies={"train": [(0, 0), (1, 0)], "test": [(0, 0), (1, 0)]})
    trainer, moments, rows = make_trainer(data, "linear"), data.moments(ROWS), {"test": np.arange(130)}
    first, zeroth, other = (score_head(trainer.head, data, rows, moments, copy)[0] for copy in (None, (0, 0), (1, 0)))
    assert np.array_equal(first, zeroth)
    assert not np.array_equal(first, other)
    alone = ProbeData(store, [keys[1]], data.targets)
    assert np.array_equal(score_head(trainer.head, alone, rows, moments)[0], other)


# Devices


def test_a_device_is_found_or_refused() -> None:
    assert pick_device("cpu") == CPU
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "cpu:x"):
        with pytest.raises(ProbeError, match=f"--device {name} cannot be used here: "):
            pick_device(name)
