"""A page of sections as one HTML file that needs no network: what a section is made of, and how it is rendered."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .chart import Chart
from .plots import hex_colours


@dataclass(frozen=True)
class Words:
    """A paragraph; ``note`` for what is missing and how to get it, ``code`` for what is typed.

    Attributes:
        text: plain, shown as it is.
        kind: how it looks.
    """

    text: str
    kind: Literal["text", "note", "code"] = "text"
    template = "words"


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by any column.

    Attributes:
        caption: above it.
        header: names of the columns.
        rows: words, numbers as numbers, so that they sort as such, and None for nothing.
        digits: decimals of floats.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    digits: int = 4
    template = "table"

    def shown(self, value: Any) -> str:
        """A cell's text."""
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return ""
        return f"{value:.{self.digits}f}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Heat:
    """Values over two axes as coloured cells with their numbers.

    Attributes:
        caption: above it.
        rows: names of the rows.
        columns: names of the columns.
        row_axis: what rows are.
        column_axis: what columns are.
        values: (rows, columns), NaN where there is nothing.
        hover: (rows, columns) words of a cell that the pointer is on.
        low: value of the darkest colour.
        high: value of the brightest one.
        digits: decimals of the numbers in the cells; None for colours alone.
        tags: what a reader may choose it by, such as head and pool.
    """

    caption: str
    rows: Sequence[str]
    columns: Sequence[str]
    row_axis: str
    column_axis: str
    values: NDArray[np.float64]
    hover: Sequence[Sequence[str]]
    low: float
    high: float
    digits: int | None = 1
    tags: Mapping[str, str] = field(default_factory=dict)
    template = "heat"

    def cells(self) -> list[list[tuple[str, str, str, str]]]:
        """Text, colour, colour of the text and hover words of every cell."""
        colours = hex_colours(self.values, self.low, self.high)
        middle = self.low + 0.6 * (self.high - self.low)
        return [
            [
                (
                    "" if np.isnan(value) or self.digits is None else f"{value:.{self.digits}f}",
                    "" if np.isnan(value) else colour,
                    "#000" if value > middle else "#fff",
                    words,
                )
                for value, colour, words in zip(*line, strict=True)
            ]
            for line in zip(self.values, colours, self.hover, strict=True)
        ]


@dataclass(frozen=True)
class Picture:
    """A picture with words.

    Attributes:
        caption: below it.
        pixels: (height, width, 3) uint8.
        framed: whether it has a frame.
    """

    caption: str
    pixels: NDArray[np.uint8]
    framed: bool = False

    @property
    def address(self) -> str:
        """The picture itself, as a PNG, as an address."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class Pictures:
    """Pictures in a table.

    Attributes:
        caption: above it.
        columns: above each column; may be empty.
        rows: name of the row -> its pictures, None where there is none.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture | None]]]
    template = "pictures"


Part = Words | Table | Heat | Chart | Pictures


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        name: the heading.
        parts: what it shows.
        about: one or two sentences that say how to read it.
    """

    name: str
    parts: Sequence[Part]
    about: str = ""

    @property
    def anchor(self) -> str:
        """Where links in the page lead."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())

    def choices(self) -> dict[str, list[str]]:
        """What a reader may choose among the tagged parts: tag -> values, where there are several."""
        found: dict[str, dict[str, None]] = {}
        for part in self.parts:
            for name, value in getattr(part, "tags", {}).items():
                found.setdefault(name, {})[value] = None
        return {name: list(values) for name, values in found.items() if len(values) > 1}


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page. All text is escaped; it loads nothing, and its policy forbids it to.

    Args:
        title: of the page.
        subtitle: under it.
        sections: in order.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("diffssl.analysis"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    template = environment.get_template("page.html")
    return template.render(title=title, subtitle=subtitle, sections=sections, zip=zip)
