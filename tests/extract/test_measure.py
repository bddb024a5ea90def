from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffssl.extract import ExtractSpec
from diffssl.extract.job import prepare
from diffssl.extract.measure import seconds_per_forward
from diffssl.extract.plan import human_tflop
from diffssl.extract.run import show_plan

MakeSpec = Callable[..., ExtractSpec]


def test_time_of_a_forward_pass(tmp_path: Path, make_spec: MakeSpec) -> None:
    """About what the forward pass of the same model takes, and nothing is written."""
    job = prepare(make_spec(blocks={9: {"full"}}), lambda _: None)
    from diffssl.extract.job import load_backbone

    backbone = load_backbone(job)
    x = torch.zeros(8, 3, 16, 16)
    with torch.inference_mode():
        list(backbone.features(x, 90, [9]))
        started = time.perf_counter()
        for _ in range(3):
            list(backbone.features(x, 90, [9]))
        expected = (time.perf_counter() - started) / 3 / 8
    assert expected / 20 < seconds_per_forward(job) < expected * 20
    assert list(tmp_path.iterdir()) == []


def test_deeper_takes_longer(make_spec: MakeSpec) -> None:
    """Block 1 is a small part of the full pass."""
    shallow = min(seconds_per_forward(prepare(make_spec(blocks={1: set()}), lambda _: None)) for _ in range(2))
    deep = min(seconds_per_forward(prepare(make_spec(blocks={9: set()}), lambda _: None)) for _ in range(2))
    assert shallow < deep


def test_in_the_plan(make_spec: MakeSpec) -> None:
    job = prepare(make_spec(), lambda _: None)
    without: list[str] = []
    show_plan(job, False, without.append)
    lines: list[str] = []
    show_plan(job, True, lines.append)
    assert lines[:-1] == without
    assert lines[-1].startswith("time ")
    assert "ms a forward pass of one image" in lines[-1]
    assert lines[-1].endswith("in all")


@pytest.mark.parametrize("measure", [False, True])
def test_nothing_left_to_measure(make_spec: MakeSpec, run_extract: Callable[[ExtractSpec], object], measure: bool) -> None:
    run_extract(make_spec(limit=16))
    lines: list[str] = []
    show_plan(prepare(make_spec(limit=16), lambda _: None), measure, lines.append)
    assert "1 of 1 units" in lines[2]
    assert not [line for line in lines if line.startswith("time")]


def test_for_many_workers(make_spec: MakeSpec) -> None:
    """The worker with the most row blocks is the one to wait for: 5 row blocks for 2 workers take the time of 3."""
    job = prepare(make_spec(), lambda _: None)
    lines: list[str] = []
    show_plan(job, False, lines.append, 2)
    assert lines[-1] == f"workers     5 row blocks for 2: at most 3 each, {human_tflop(0.6 * job.plan.gflop)}"


def test_a_new_store_has_row_blocks_for_its_workers(make_spec: MakeSpec) -> None:
    """At least four each; one that is there keeps its own."""
    spec = make_spec(row_block=None, data=("digits",), limit=1024)
    assert prepare(spec, lambda _: None).header.row_block == 128
    assert prepare(replace(spec, sharing=4), lambda _: None).header.row_block == 64
    assert prepare(replace(spec, part=(3, 4)), lambda _: None).header.row_block == 64
