"""Activations of a network's own forward pass, by hooks, which end it after the deepest wanted unit.

For libraries whose forward passes are many and change from version to version: what is relied on is which modules there
are, not how they call each other. The price is that all wanted activations of a batch are there at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .errors import ExtractError


@dataclass(frozen=True)
class Unit:
    """One block of a network.

    Attributes:
        kind: what it is made of, such as ``Res+Attn``.
        module: the module whose output is the block's.
    """

    kind: str
    module: nn.Module


class _Deepest(Exception):
    """Everything wanted has run. Raised out of a hook, since a forward pass has no other way to end early."""


def activations(forward: Callable[[], object], units: Sequence[Unit], wanted: Collection[int]) -> dict[int, Tensor]:
    """Outputs of units, by their numbers from 1 on.

    Args:
        forward: calls the network. It is left as soon as the deepest wanted unit has run.
        units: in the order they run.
        wanted: numbers.
    """
    found: dict[int, Tensor] = {}
    deepest = max(wanted)

    def note(number: int, output: Tensor) -> None:
        if number in wanted:
            found[number] = output
        if number == deepest:
            raise _Deepest

    _watch(forward, units[:deepest], note)
    return found


def trace(forward: Callable[[], object], units: Sequence[Unit], note: Callable[[str, Tensor], object]) -> None:
    """Run the whole network; ``note(kind, output)`` is called as each unit has run.

    Raises:
        ExtractError: units ran in another order, not at all, or twice: this network is not what it was taken for.
    """
    ran: list[int] = []

    def keep(number: int, output: Tensor) -> None:
        ran.append(number)
        note(units[number - 1].kind, output)

    _watch(forward, units, keep)
    if ran != list(range(1, len(units) + 1)):
        raise ExtractError(f"the network runs its {len(units)} blocks in an order that is not known here: {ran}")


def _watch(forward: Callable[[], object], units: Sequence[Unit], note: Callable[[int, Tensor], object]) -> None:
    def hook(number: int) -> Callable[..., None]:
        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            note(number, output[0] if isinstance(output, tuple) else output)

        return after

    handles = [unit.module.register_forward_hook(hook(number)) for number, unit in enumerate(units, start=1)]
    try:
        forward()
    except _Deepest:
        pass
    finally:
        for handle in handles:
            handle.remove()
