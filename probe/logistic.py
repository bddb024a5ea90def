"""Multinomial logistic regression over streamed rows: a whole path of C, one pass for one step of all of them.

The objective is that of ``sklearn.linear_model.LogisticRegression``, divided by C n so that it is of the size of a loss,

    f(W, b) = 1/n sum_i -log softmax(W' x_i + b)[y_i] + |W|^2 / (2 C n),

with the intercept free. For two classes scikit-learn fits one vector w = w_2 - w_1; of all pairs with that difference
w_2 = -w_1 = w/2 has the smallest norm, |w|^2 / 2 in all, so twice the penalty makes the softmax the same model.

Every C has its own L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5), and the candidates of all of them are
evaluated in one stacked product a pass. The inverse Hessian it starts from is (kappa S + I / (C n))^-1, with S the covariance
of the features by a Nystrom sketch of the first pass (Frangella, Tropp and Udell, arXiv 2110.02820) and kappa the mean of
p (1 - p) at the current point: features of one network are strongly correlated, and this takes most of that out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import TooFewRows
from .linear import LinearFit, Stream, spread

TOLERANCE = 5e-7  # of the predicted decrease, as a part of the objective; the gap to the optimum is measured below 1e-4
MAX_PASSES = 1000
_HISTORY = 10
_MAX_BACKTRACKS = 20
_ROUNDING = 1e-7  # of a loss from float32 products, relative
_SKETCH = 128  # columns of the covariance sketch
_LEAST = 1e-6  # of the largest eigenvalue, below which a sketch of float32 products holds noise
_CHUNK = 1 << 21  # logits that are held at once


@dataclass(frozen=True)
class LogisticFit(LinearFit):
    """The fit of one C.

    Attributes:
        c: inverse strength of the L2 penalty.
        loss: the objective divided by C n.
        passes: over the rows.
        converged: whether the predicted decrease fell below the tolerance.
    """

    c: float
    loss: float
    passes: int
    converged: bool


def fit_path(
    stream: Stream,
    classes: int,
    grid: Sequence[float],
    *,
    device: str = "cpu",
    start: Sequence[LinearFit] | None = None,
    tolerance: float = TOLERANCE,
    max_passes: int = MAX_PASSES,
) -> list[LogisticFit]:
    """Logistic regression for every C of a grid, all together.

    Memory is one piece, and for every C some 25 times D K float64 numbers.

    Args:
        stream: (n, D) features, best standardised, and (n,) class numbers.
        classes: number of classes K; those without rows get the score -inf.
        grid: values of C, each positive.
        device: of the products, as torch names it.
        start: a model to start from for each C, instead of zero.
        tolerance: stop where the predicted decrease is below this part of the objective.
        max_passes: stop anyhow.

    Raises:
        TooFewRows: fewer than two classes have rows.
    """
    if not grid or min(grid) <= 0:
        raise ValueError(f"C must be positive, and there must be one, got {list(grid)}")
    if start is not None and len(start) != len(grid):
        raise ValueError(f"one start for each C: got {len(start)} for {len(grid)}")
    summary = _summarise(stream, classes, device)
    present = summary.present
    decay = (2 if len(present) == 2 else 1) / summary.count
    descents = [_Descent(decay / c, summary, tolerance) for c in grid]
    for descent, begin in zip(descents, start or [], strict=False):
        descent.point = _centred(begin, summary, device)
    rows = torch.full((classes,), -1, device=device)
    rows[torch.from_numpy(present).to(device)] = torch.arange(len(present), device=device)
    for _ in range(max_passes - 1):
        active = [descent for descent in descents if not descent.done]
        if not active:
            break
        losses, gradients, curvatures = _evaluate(stream, summary, rows, [descent.candidate() for descent in active])
        for descent, *values in zip(active, losses.tolist(), gradients, curvatures.tolist(), strict=True):
            descent.tell(*values)
    return [_finished(descent, c, summary, classes) for descent, c in zip(descents, grid, strict=True)]


@dataclass(frozen=True)
class _Summary:
    """What the first pass learns: rows, classes that have some, and the mean and sketched covariance of the features.

    ``basis`` (D, r) and ``variances`` (r,) are its leading eigenvectors and eigenvalues, ``rest`` the mean of the others.
    """

    count: int
    present: NDArray[np.int64]
    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: float

    def precondition(self, gradient: Tensor, curvature: float, decay: float) -> Tensor:
        """(kappa S + decay I)^-1 times a (D + 1, K) gradient, whose last row is the intercept's."""
        inner = self.basis.T @ gradient[:-1]
        rest = curvature * self.rest + decay
        weight = 1 / (curvature * self.variances + decay) - 1 / rest
        return torch.cat([gradient[:-1] / rest + self.basis @ (weight[:, None] * inner), gradient[-1:] / curvature])


class _Descent:
    """L-BFGS of one C, driven from outside: where is the function wanted, and what was it there.

    Args:
        decay: factor of |W|^2 / 2.
        summary: of the rows.
        tolerance: as of ``fit_path``.
    """

    def __init__(self, decay: float, summary: _Summary, tolerance: float) -> None:
        self._decay = decay
        self._summary = summary
        self._tolerance = tolerance
        self._history: list[tuple[Tensor, Tensor, Tensor]] = []
        self._step = 0.0
        self._backtracks = 0
        self.point = summary.mean.new_zeros(len(summary.mean) + 1, len(summary.present))
        self._direction = torch.zeros_like(self.point)
        self._slope = 0.0
        self._gradient: Tensor | None = None
        self.loss = float("nan")
        self.evaluations = 0
        self.done = False
        self.converged = False

    def candidate(self) -> Tensor:
        """(D + 1, K) point to evaluate."""
        return self.point + self._step * self._direction

    def tell(self, loss: float, gradient: Tensor, curvature: float) -> None:
        """Take the mean loss, its gradient and the mean p (1 - p) at the candidate."""
        self.evaluations += 1
        point = self.candidate()
        loss += 0.5 * self._decay * float(point[:-1].square().sum())
        gradient[:-1] += self._decay * point[:-1]
        if self._gradient is not None:
            enough = self.loss + 1e-4 * self._step * self._slope + _ROUNDING * self.loss
            if not loss <= enough:
                self._shorten(loss)
                return
            self._remember(point - self.point, gradient - self._gradient)
        self.point, self.loss, self._gradient = point, loss, gradient
        self._direction = -self._inverse_hessian(gradient, curvature)
        self._slope = float((gradient * self._direction).sum())
        self._step, self._backtracks = 1.0, 0
        # Half the slope is the decrease that the quadratic model predicts.
        self.converged = self.done = -0.5 * self._slope <= self._tolerance * loss

    def _shorten(self, loss: float) -> None:
        """To the minimum of the parabola through what is known, within bounds."""
        self._backtracks += 1
        self.done = self._backtracks > _MAX_BACKTRACKS
        excess = loss - self.loss - self._step * self._slope
        parabola = -0.5 * self._slope * self._step / excess if np.isfinite(loss) else 0.1
        self._step *= min(max(parabola, 0.1), 0.5)

    def _remember(self, step: Tensor, change: Tensor) -> None:
        product = (step * change).sum()
        if product > 1e-10 * step.norm() * change.norm():  # else rounding, and no curvature
            self._history = [*self._history[1 - _HISTORY :], (step, change, product)]

    def _inverse_hessian(self, gradient: Tensor, curvature: float) -> Tensor:
        """Times the gradient: the two loops."""
        result = gradient.clone()
        factors = []
        for step, change, product in reversed(self._history):
            factors.append((step * result).sum() / product)
            result -= factors[-1] * change
        result = self._summary.precondition(result, curvature, self._decay)
        if self._history:
            _, change, product = self._history[-1]
            result *= product / (change * self._summary.precondition(change, curvature, self._decay)).sum()
        for (step, change, product), factor in zip(self._history, reversed(factors), strict=True):
            result += (factor - (change * result).sum() / product) * step
        return result


def _pieces(stream: Stream, device: str | torch.device, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the stream on a device, at most so many rows each."""
    for features, labels in stream():
        for begin in range(0, len(labels), rows):
            part = slice(begin, begin + rows)
            # torch warns of arrays that it could not write to, though it only reads here.
            x, y = (np.require(values[part], requirements=["C", "W"]) for values in (features, labels))
            yield torch.as_tensor(x, device=device), torch.as_tensor(y, device=device)


def _summarise(stream: Stream, classes: int, device: str) -> _Summary:
    counts = torch.zeros(classes, dtype=torch.int64, device=device)
    shift: Tensor | None = None  # near the mean, so that nothing cancels
    for x, y in _pieces(stream, device, 1 << 14):
        if shift is None:
            shift = x.mean(dim=0)
            # The optimum does not depend on these numbers, only how soon it is found.
            generator = torch.Generator().manual_seed(0)
            probes = torch.randn(len(shift), min(len(shift), _SKETCH), generator=generator).to(device)
            total = torch.zeros_like(shift, dtype=torch.float64)
            sketch = torch.zeros_like(probes, dtype=torch.float64)
            trace = torch.zeros((), dtype=torch.float64, device=device)
        x = x - shift
        counts += torch.bincount(y, minlength=classes)
        total += x.sum(dim=0, dtype=torch.float64)
        sketch += x.T @ (x @ probes)
        trace += x.square().sum(dtype=torch.float64)
    present = counts.nonzero()[:, 0].cpu().numpy()
    if shift is None or len(present) < 2:
        raise TooFewRows(f"logistic regression needs rows of two classes at least, got rows of {len(present)}")
    count = int(counts.sum())
    off = total / count
    sketch = sketch / count - off[:, None] * (off @ probes.double())
    basis, variances = _nystrom(sketch, probes.double())
    others = max(len(shift) - len(variances), 1)
    left = float(trace / count - off.square().sum() - variances.sum()) / others
    return _Summary(count, present, shift + off, basis, variances, max(left, _LEAST * float(variances.max())))


def _nystrom(sketch: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (D, r) and eigenvalues (r,) of S from S times (D, s) probes."""
    core = probes.T @ sketch
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    kept = values > _LEAST * values.max()
    basis, roots, _ = torch.linalg.svd(sketch @ (vectors[:, kept] / values[kept].sqrt()), full_matrices=False)
    return basis, roots.square()


def _evaluate(stream: Stream, summary: _Summary, rows: Tensor, points: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Mean loss, gradient and mean p (1 - p) at each of A points, by one pass.

    Products are float32, sums over pieces float64. The loss and the probability of all other classes are taken from
    differences to the label's logit: near separation 1 - p is all there is, and p in float32 would round it away.

    Args:
        stream: the rows.
        summary: of the rows.
        rows: (classes,) place of a class among those present.
        points: (D + 1, K) each, for centred features.
    """
    stacked = torch.stack(list(points), dim=-1)  # (D + 1, K, A)
    _, k, a = stacked.shape
    weights, intercept = stacked[:-1].flatten(1).float(), stacked[-1].flatten().float()
    mean = summary.mean.float()
    losses, curvatures = stacked.new_zeros(a), stacked.new_zeros(a)
    gradient = torch.zeros_like(stacked)
    for x, y in _pieces(stream, stacked.device, max(256, _CHUNK // (k * a))):
        x = x - mean
        own = (torch.arange(len(y), device=y.device), rows[y])
        logits = torch.addmm(intercept, x, weights).view(-1, k, a)
        logits -= logits[own][:, None]
        top = logits.amax(dim=1)  # >= 0, the label's own
        logits = logits.sub_(top[:, None]).exp_()
        logits[own] = 0.0
        others = logits.sum(dim=1)
        total = others + (-top).exp()
        losses += torch.where(top > 0, top + total.log(), others.log1p()).sum(dim=0, dtype=torch.float64)
        p = logits.div_(total[:, None])
        wrong = others / total
        p[own] = -wrong  # now the derivative: p - 1 for the label
        squares = torch.linalg.vector_norm(p, dim=(0, 1)).double().square()
        curvatures += 2 * wrong.sum(dim=0, dtype=torch.float64) - squares
        gradient[:-1] += (x.T @ p.flatten(1)).view(-1, k, a)
        gradient[-1] += p.sum(dim=0)
    gradient /= summary.count
    curvatures = (curvatures / (summary.count * k)).clamp_(min=1e-12)
    return losses / summary.count, [one.contiguous() for one in gradient.unbind(-1)], curvatures


def _centred(begin: LinearFit, summary: _Summary, device: str) -> Tensor:
    """(D + 1, K) of a model, for centred features; a class that it did not know starts from zero."""
    weights = torch.as_tensor(begin.weights[:, summary.present], device=device)
    intercept = torch.as_tensor(np.nan_to_num(begin.intercept[summary.present], neginf=0.0), device=device)
    return torch.cat([weights, (intercept + summary.mean @ weights)[None]])


def _finished(descent: _Descent, c: float, summary: _Summary, classes: int) -> LogisticFit:
    weights = descent.point[:-1]
    intercept = descent.point[-1] - summary.mean @ weights
    return LogisticFit(
        weights=spread(weights.cpu().numpy(), summary.present, classes, 0.0),
        intercept=spread(intercept.cpu().numpy(), summary.present, classes, -np.inf),
        c=c,
        loss=descent.loss,
        passes=1 + descent.evaluations,
        converged=descent.converged,
    )
