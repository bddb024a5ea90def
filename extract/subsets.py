"""Parts of a data set: files of ids, one a line, such as the papers' 1 % and 10 % of ImageNet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .errors import DataError
from .images import SUFFIXES
from .listing import Listing, named_split

_SHOWN = 3


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _bare(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in SUFFIXES else name


# What a line can be: its name, the same of a sample's id, and of a line. A file is of one kind, the first that all lines are.
_Key = Callable[[str], str]
_KINDS: Sequence[tuple[str, _Key, _Key]] = (
    ("id", str, str),
    ("file name", _base, str),
    ("id without suffix", _bare, _bare),
    ("file name without suffix", lambda name: _bare(_base(name)), _bare),
)


def restrict(listings: Mapping[str, Listing], only: Sequence[str]) -> dict[str, Listing]:
    """The images that files of ids name, as if the others were not there.

    Args:
        listings: by split.
        only: ``FILE`` for all splits, or ``split=FILE`` for one of them, several times. All lines of a file are ids, or
            all are file names, each with or without the suffix of an image. Empty lines mean nothing.

    Raises:
        DataError: a file cannot be read, names what is in no split, names more than one image by a line, or would leave
            a split without images.
    """
    restricted = dict(listings)
    given: dict[str, str] = {}
    for text in only:
        split, file = named_split(text)
        if split is not None and split not in listings:
            raise DataError(f"--only {text}: there is no split {split!r}; the splits are {', '.join(listings)}")
        splits = list(listings) if split is None else [split]
        twice = given.keys() & set(splits)
        if twice:
            raise DataError(f"--only {text}: the split {min(twice)!r} is restricted by --only {given[min(twice)]} already")
        given |= dict.fromkeys(splits, text)
        restricted |= _part(text, _lines(Path(file)), {name: listings[name] for name in splits})
    return restricted


def _lines(path: Path) -> Counter[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = Counter(line.rstrip("\n") for line in file if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--only {path}: cannot be read as UTF-8 text ({error})") from error
    if not lines:
        raise DataError(f"--only {path}: names no images; it has one id a line")
    return lines


def _part(text: str, lines: Counter[str], listings: Mapping[str, Listing]) -> dict[str, Listing]:
    """The listings with the images of one file of ids."""
    unknown: list[tuple[list[str], str]] = []
    for kind, of_id, of_line in _KINDS:
        keys = Counter(of_line(line) for line in lines)
        rows = {split: _rows(listing, of_id, keys) for split, listing in listings.items()}
        found = set().union(*rows.values())
        missing = [line for line in lines if of_line(line) not in found or keys[of_line(line)] > 1]
        if not missing:
            return {split: _chosen(text, split, listing, kind, rows[split], lines) for split, listing in listings.items()}
        unknown.append((missing, kind))
    missing, kind = min(unknown, key=lambda item: len(item[0]))
    example = next(iter(listings.values())).ids[:1]
    raise DataError(
        f"--only {text}: {len(missing)} of {len(lines)} lines are no {kind} in {', '.join(listings)}, such as "
        f"{_some(missing)}; all lines must be ids (as {', '.join(map(repr, example))} is one), or all file names"
    )


def _rows(listing: Listing, of_id: _Key, keys: Counter[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(listing.ids):
        key = of_id(name)
        if key in keys:
            rows.setdefault(key, []).append(i)
    return rows


def _chosen(text: str, split: str, listing: Listing, kind: str, rows: Mapping[str, list[int]], lines: Counter[str]) -> Listing:
    unclear = [key for key, places in rows.items() if len(places) > 1]
    if unclear:
        images = [listing.ids[i] for i in rows[unclear[0]]]
        raise DataError(
            f"--only {text}: {len(unclear)} lines name more than one image of {split} by their {kind}, such as "
            f"{unclear[0]!r} ({_some(images)}); write the ids of the images"
        )
    if not rows:
        raise DataError(
            f"--only {text}: leaves no image of the split {split!r}; to restrict another split only, write --only split=FILE"
        )
    chosen = sorted(place for (place,) in rows.values())
    note = f"--only {text}: {len(chosen)} of {len(listing.ids)} images, each named by its {kind}"
    repeated = len([line for line, count in lines.items() if count > 1])
    note += f"; {repeated} lines are there more than once" if repeated else ""
    others = len({_base(name) for name in listing.ids if _base(name) != name and _base(name) in lines}) if kind == "id" else 0
    note += f"; {others} of the ids are also the file names of other images, which are not meant" if others else ""
    return Listing(
        [listing.ids[i] for i in chosen],
        [listing.class_names[i] for i in chosen],
        lambda i: listing.read(chosen[i]),
        [*listing.notes, note],
        listing.in_order,
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(ascii(name) if not name.isprintable() else repr(name) for name in names[:_SHOWN])
