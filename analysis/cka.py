"""Linear centred kernel alignment (CKA) of many feature matrices at once, exact for all their rows, in bounded memory.

For centred features X of one setting and Y of another, with Gram matrices K = X X' and L = Y Y', CKA is
HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al. 2019, arXiv 1905.00414). Up to factors that cancel::

    biased     HSIC_0 = tr(K H L H) = sum_ab K_ab L_ab                                        H = I - 11'/n
    unbiased   HSIC_1 = tr(K~ L~) + 1'K~1 1'L~1 / ((n-1)(n-2)) - 2 1'K~L~1 / (n-2)            K~: K with a diagonal of zeros

(Song et al. 2012, JMLR 13, 1393-1434, as Nguyen et al. 2021, arXiv 2010.15327, use it, but of all rows at once and not
averaged over minibatches.) HSIC_1 does not change when f(a) + f(b) is added to K_ab, so it may be had from centred features
as well, whose K 1 = 0 leaves 1'K~1 = -tr K and K~1 = -diag K. Both therefore come from the same three things: products of
the Gram matrices off their diagonals, summed; their diagonals; and traces. The first are made from tiles: a range of rows
times a range of rows of every setting's Gram matrix at a time, multiplied as one (settings, entries of the tile) matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from ..probe.bootstrap import LEVEL, RESAMPLES, resample_counts
from .rows import Degenerate, Rows, chunks, float64

BIASED, UNBIASED = "biased", "unbiased"
ESTIMATORS = (BIASED, UNBIASED)
MIN_ROWS = 4  # HSIC_1 divides by n (n-3)
TILE_BYTES = 1 << 27  # of the tiles of all settings
_GROUPS = 32  # of rows, for intervals
_SAME = 1e-12  # deviation as a part of the magnitude, below which it is rounding

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Similarity:
    """CKA of all pairs of S feature matrices.

    Attributes:
        value: (S, S) float64, symmetric; exactly 1 on the diagonal. Biased in [0, 1]; unbiased in [-1, 1].
        low: (S, S) lower end of the 95 % interval.
        high: (S, S) its upper end.
    """

    value: Float
    low: Float
    high: Float


def cka(
    features: Sequence[Rows],
    estimator: str = UNBIASED,
    *,
    names: Sequence[str] = (),
    tile_bytes: int = TILE_BYTES,
    seed: int = 0,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> Similarity:
    """Linear CKA of all pairs of feature matrices with the same rows.

    Everything is float64, and the tiles change the result by rounding only. Features are centred before any product
    is formed, so that means which are large beside deviations cost no digits, and scaled, which CKA does not feel. The
    diagonal is exactly 1 because x / sqrt(x * x) is in IEEE arithmetic.

    Memory is about three times ``tile_bytes`` (tiles, a copy of them, two ranges of rows of one setting), 8 bytes a row and
    setting, and 8 x 32 x S^2 bytes. Time is n^2 (sum of d + S^2 / 2) / 2 multiply-adds; where (sum of d)^2 < n (sum of d +
    S^2 / 2), a few narrow settings of many rows, ||X'Y||^2 would be cheaper.

    Intervals are 95 %, over the chance of the rows, for independent rows in random order (a store's are), by bootstrap over
    32 groups of consecutive rows. Drawing rows and forming their Gram matrices is no good here, since a row paired with its
    copy is as similar as can be in all settings; it pushes CKA towards 1. So a resample weights what each row adds to the
    HSICs of the sample, q_a = sum_b K_ab L_ab for row a, summed over a group: no copy meets its row, and a resample costs
    nothing. Moving one row of n moves HSIC twice as far as its q_a says, once as a and once as b, to first order (how the
    centring moves is of second order); so deviations of resamples count twice, on the scale of Fisher's z, which keeps
    intervals below 1. Ends are expanded percentiles for 32 groups (Hesterberg 2015, The American Statistician 69, 371-386).
    They are about the sampling of rows alone: HSIC_0's bias, which is of order d / n, stays in it, and near 0, where the
    first-order effect vanishes, they are a little wide.

    Args:
        features: S times (n, d), with d of their own; arrays, or anything that gives ranges of rows.
        estimator: ``"biased"`` (HSIC_0) or ``"unbiased"`` (HSIC_1).
        names: of the features, for messages; numbers if none.
        tile_bytes: bytes of the tiles of all settings.
        seed: of the resamples.
        progress: called with the number of tiles that are done, and of all.

    Raises:
        ValueError: features of different rows, or no such estimator.
        Degenerate: fewer than 4 rows; features that are the same in all rows or not finite; or, unbiased, a Gram matrix
            without any structure off its diagonal.
    """
    n = _check(features, estimator)
    names = names or [f"features {i}" for i in range(len(features))]
    widest = max(one.shape[1] for one in features)
    panels = list(_panels(n, min(int(np.sqrt(tile_bytes / (8 * len(features)))), tile_bytes // (16 * widest))))
    centred = [_Centred(one, name) for one, name in zip(features, names, strict=True)]
    sums, diagonals = _products(centred, panels, progress)
    traces = diagonals.sum(axis=1)
    for group, rows in _groups(n):
        d = diagonals[:, rows]
        if estimator == BIASED:
            sums[group] += d @ d.T
        else:
            own = np.outer(d.sum(axis=1), traces)
            sums[group] += (own + own.T) / (2 * (n - 1) * (n - 2)) - 2 / (n - 2) * (d @ d.T)
    value = _alignment(sums.sum(axis=0), np.square(traces) / n, names)
    return Similarity(value, *_intervals(value, sums, np.random.default_rng(seed)))


def _check(features: Sequence[Rows], estimator: str) -> int:
    shapes = [one.shape for one in features]
    if not shapes or any(len(shape) != 2 or shape[0] != shapes[0][0] or not shape[1] for shape in shapes):
        raise ValueError(f"CKA is of features (n, d) with the same n, got {shapes}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if shapes[0][0] < MIN_ROWS:
        raise Degenerate(f"CKA needs at least {MIN_ROWS} rows, got {shapes[0][0]}")
    return int(shapes[0][0])


class _Centred:
    """Features less their mean, float64, scaled to a mean square norm of 1; read as they are needed."""

    def __init__(self, features: Rows, name: str) -> None:
        n = features.shape[0]
        self._features = features
        shift = float64(features, slice(0, 1))[0]  # near the mean, so that squares are of deviations
        total, square = np.zeros_like(shift), 0.0
        for rows in chunks(features, features.shape[1]):
            x = float64(features, rows) - shift
            total += x.sum(axis=0)
            square += float(np.square(x).sum())
        self._mean = shift + total / n
        variance = square / n - float(np.square(total / n).sum())
        magnitude = variance + float(np.square(self._mean).sum())
        if not variance > _SAME**2 * magnitude:
            raise Degenerate(f"{name}: the features are the same in all {n} rows, or not finite; leave the setting out")
        self._scale = 1 / np.sqrt(variance)

    def __getitem__(self, rows: slice) -> Float:
        x = float64(self._features, rows)
        x -= self._mean
        x *= self._scale
        return x


def _groups(n: int) -> Iterator[tuple[int, slice]]:
    """Number and rows of the groups."""
    count = min(_GROUPS, n // 2)
    bounds = [n * group // count for group in range(count + 1)]
    for group in range(count):
        yield group, slice(bounds[group], bounds[group + 1])


def _panels(n: int, most: int) -> Iterator[list[tuple[int, slice]]]:
    """Consecutive rows, at most ``most`` (or 1) a panel: (group, its rows in the panel) for each group that has some there."""
    groups = list(_groups(n))
    most = max(most, 1)
    for start in range(0, n, most):
        stop = min(start + most, n)
        within = [(group, slice(max(start, rows.start), min(stop, rows.stop))) for group, rows in groups]
        yield [(group, rows) for group, rows in within if rows.start < rows.stop]


def _products(
    features: Sequence[_Centred], panels: Sequence[Sequence[tuple[int, slice]]], progress: Callable[[int, int], object]
) -> tuple[Float, Float]:
    """Sums of K_ab L_ab over b and the rows a of each group, a = b left out, (groups, S, S); and the diagonals (S, n)."""
    sums = np.zeros((panels[-1][-1][0] + 1, len(features), len(features)))
    diagonals = np.empty((len(features), panels[-1][-1][1].stop))
    done, total = 0, len(panels) * (len(panels) + 1) // 2
    for number, down in enumerate(panels):
        rows = slice(down[0][1].start, down[-1][1].stop)
        for across in panels[number:]:  # the other half is the same
            columns = slice(across[0][1].start, across[-1][1].stop)
            tiles = np.empty((len(features), rows.stop - rows.start, columns.stop - columns.start))
            for one, tile in zip(features, tiles, strict=True):
                x = one[rows]
                np.matmul(x, x.T if across is down else one[columns].T, out=tile)
            if across is down:
                diagonals[:, rows] = np.einsum("saa->sa", tiles)
                np.einsum("saa->sa", tiles)[...] = 0
            for a, own_rows in down:
                for b, own_columns in across:
                    part = tiles[:, _within(own_rows, rows), _within(own_columns, columns)].reshape(len(features), -1)
                    product = part @ part.T
                    sums[a] += product
                    if across is not down:
                        sums[b] += product
            done += 1
            progress(done, total)
    return sums, diagonals


def _within(rows: slice, panel: slice) -> slice:
    return slice(rows.start - panel.start, rows.stop - panel.start)


def _alignment(hsic: Float, sizes: Float, names: Sequence[str]) -> Float:
    """CKA from the (S, S) HSICs; one of a setting with itself that has no digits beside ``sizes`` is refused."""
    own = np.diagonal(hsic)
    for name in [name for name, value, size in zip(names, own, sizes, strict=True) if not value > _SAME * size]:
        raise Degenerate(f"{name}: all rows are equally similar, so that CKA is 0 / 0; leave the setting out")
    value: Float = hsic / np.sqrt(np.outer(own, own))
    return value


def _intervals(value: Float, parts: Float, rng: np.random.Generator) -> tuple[Float, Float]:
    """Ends of the intervals of ``value``, (S, S) each, from (groups, S, S) parts of the HSICs, resampled."""
    groups = len(parts)
    weights = np.concatenate([counts.T for counts in resample_counts(groups, RESAMPLES, rng)])
    tail = ndtr(stdtrit(groups - 1, (1 - LEVEL) / 2) * np.sqrt(groups / (groups - 1)))
    own = weights @ np.einsum("gss->gs", parts)
    scale = np.sqrt(np.where(own > 0, own, np.nan))  # few rows, unbiased: a resample may have no CKA, and does not count
    low, high = value.copy(), value.copy()  # of what is the same but for rounding, and of the diagonal
    for row in range(len(value)):
        others = row + 1 + np.flatnonzero(1 - np.square(value[row, row + 1 :]) > _SAME)
        if not len(others):
            continue
        drawn = _fisher(weights @ parts[:, row, others] / (scale[:, [row]] * scale[:, others]))
        z = _fisher(value[row, others])
        ends = z + 2 * (np.nanquantile(drawn, [tail, 1 - tail], axis=0) - z)
        for end, values in zip((low, high), np.tanh(ends), strict=True):
            end[row, others] = end[others, row] = values
    return low, high


def _fisher(correlation: Float) -> Float:
    """Fisher's z, with what rounding puts at 1 or beyond drawn to just below it."""
    return np.arctanh(np.clip(correlation, -1 + _SAME, 1 - _SAME))
