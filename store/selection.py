"""Lists on the command line: ``1-37``, ``10-500:20``, ``19@8,24@full``, ``cls,1``."""

from __future__ import annotations

import re

FULL = "full"
CLASS_TOKEN = "cls"

_ITEM = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?")


def parse_numbers(text: str) -> list[int]:
    """Parse a list of whole numbers and ranges; ranges include both ends.

    ``"18,24"`` gives [18, 24]; ``"1-4"`` gives [1, 2, 3, 4]; ``"10-90:40"`` gives [10, 50, 90]. The result is
    sorted and has no duplicates. Raises ``ValueError`` that quotes the part which is not understood.
    """
    numbers: set[int] = set()
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        if match is None:
            raise ValueError(f"{item.strip()!r} in {text!r} is not a number or a range (such as 24, 1-37 or 10-500:20)")
        first = int(match[1])
        last = int(match[2]) if match[2] else first
        step = int(match[3]) if match[3] else 1
        if last < first or step < 1:
            raise ValueError(f"{item.strip()!r} in {text!r} is an empty range")
        numbers.update(range(first, last + 1, step))
    return sorted(numbers)


def parse_pools(text: str) -> list[int | str]:
    """Parse a list of pool sizes: positive numbers, ranges, ``full`` for the whole map and ``cls`` for the class token."""
    pools: set[int | str] = set()
    for item in (part.strip() for part in text.split(",")):
        pools.update([item] if item in (FULL, CLASS_TOKEN) else parse_numbers(item))
    if 0 in pools:
        raise ValueError(f"a pool must be at least 1, got {text!r}")
    return sorted(pools, key=lambda pool: (isinstance(pool, str), pool))


def parse_blocks(text: str) -> dict[int, set[int | str]]:
    """Parse a list of blocks, each with pools of its own if it says so.

    ``"18,24@2,24@full"`` gives {18: set(), 24: {2, "full"}}; an empty set means the pools given elsewhere.
    The order on the command line does not matter and duplicates are one.
    """
    blocks: dict[int, set[int | str]] = {}
    for item in text.split(","):
        numbers, at, pools = item.strip().partition("@")
        for block in parse_numbers(numbers):
            if block in blocks and bool(blocks[block]) != bool(at):
                raise ValueError(f"block {block} is given with and without pools of its own in {text!r}; name all its pools")
            blocks.setdefault(block, set()).update(parse_pools(pools) if at else ())
    if 0 in blocks:
        raise ValueError(f"blocks are numbered from 1, got {text!r}")
    return dict(sorted(blocks.items()))


def format_numbers(numbers: list[int]) -> str:
    """Write numbers so that :func:`parse_numbers` reads them back, runs of three or more as ranges."""
    parts: list[str] = []
    numbers = sorted(set(numbers))
    start = 0
    for i in range(1, len(numbers) + 1):
        if i < len(numbers) and numbers[i] == numbers[i - 1] + 1:
            continue
        run = numbers[start:i]
        parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(n) for n in run]
        start = i
    return ",".join(parts)
