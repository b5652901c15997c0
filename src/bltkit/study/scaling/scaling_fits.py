"""Fits of loss over size and data, and of the best size of a budget.

parametric  L(N, D) = E + A / N^a + B / D^b by the Huber loss of log residuals, from a grid of starts (Hoffmann et al.
            2022, arXiv 2203.15556, approach 3)
isoflop     a parabola in log N through the best size of one budget and its neighbours, and its minimum (approach 2;
            through more sizes a parabola need not fit)

Points that do not determine a fit are refused with a reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HUBER = 1e-3
"""Log residual beyond which the loss grows linearly."""
_LOWER, _UPPER = (-40.0, -40.0, -40.0, 0.02, 0.02), (40.0, 40.0, 40.0, 3.0, 3.0)
"""Bounds of log E, log A, log B, a and b; the points do not determine an exponent that ends at one."""
_TOLERANCE = 1e-12


class TooFew(ValueError):
    """The points do not determine the fit; the message gives the reason."""


@dataclass(frozen=True)
class Parametric:
    """L(N, D) = e + a / N^alpha + b / D^beta. error: root of the mean squared log residual.

    determined: False where an exponent, or E, ended at its bound: only predictions between the points are meaningful.
    """

    e: float
    a: float
    alpha: float
    b: float
    beta: float
    error: float
    points: int
    determined: bool

    def predict(self, params: npt.ArrayLike, num_bytes: npt.ArrayLike) -> Floats:
        """Loss of models of `params` parameters after `num_bytes` bytes of text."""
        n, d = np.asarray(params, float), np.asarray(num_bytes, float)
        return np.asarray(self.e + self.a / n**self.alpha + self.b / d**self.beta)

    def size_exponent(self, cost_exponent: float = 1.0) -> float:
        """Exponent of a budget's best size: N ~ C^(beta / (alpha + g beta)), where a byte costs as N^g."""
        return self.beta / (self.alpha + cost_exponent * self.beta)


@dataclass(frozen=True)
class Isoflop:
    """Parabola of a budget: loss = lowest + curvature (ln N - ln best)^2.

    inside: whether its minimum lies between the smallest and the largest size.
    """

    budget: float
    best: float
    lowest: float
    curvature: float
    inside: bool

    def predict(self, params: npt.ArrayLike) -> Floats:
        """Loss over N."""
        return np.asarray(self.lowest + self.curvature * np.log(np.asarray(params, float) / self.best) ** 2)


def fit_parametric(
    params: npt.ArrayLike,
    num_bytes: npt.ArrayLike,
    losses: npt.ArrayLike,
    *,
    huber: float = HUBER,
    near: Parametric | None = None,
) -> Parametric:
    """Fit the five numbers. near: a fit of almost the same points, to start from beside a
    few other places; from it alone where it is not determined.

    Raises TooFew for fewer than six points, three sizes or three amounts of text, and ValueError for losses that are
    not above 0.
    """
    from scipy.optimize import least_squares

    n, d, loss = (np.asarray(values, float) for values in (params, num_bytes, losses))
    if not (n.shape == d.shape == loss.shape):
        raise ValueError(f"{n.size} sizes, {d.size} amounts of text and {loss.size} losses do not make points")
    if loss.size < 6 or len(np.unique(n)) < 3 or len(np.unique(d)) < 3:
        raise TooFew(
            f"five numbers need six points of three sizes and three amounts of text; there are {loss.size} points of "
            f"{len(np.unique(n))} sizes and {len(np.unique(d))} amounts"
        )
    if not (loss > 0).all() or not np.isfinite(loss).all():
        raise ValueError("losses have to be numbers above 0")
    # Centred, so that the five numbers are of similar magnitude and nearly uncorrelated.
    middle_x, middle_y = np.log(n).mean(), np.log(d).mean()
    x, y, target = np.log(n) - middle_x, np.log(d) - middle_y, np.log(loss)

    def terms(theta: Floats) -> Floats:
        e, a, b, alpha, beta = theta
        return np.column_stack([np.full_like(x, e), a - alpha * x, b - beta * y])

    def residual(theta: Floats) -> Floats:
        return np.asarray(np.logaddexp.reduce(terms(theta), axis=1) - target)

    def jacobian(theta: Floats) -> Floats:
        logs = terms(theta)
        share = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])
        return np.column_stack([share, -share[:, 1] * x, -share[:, 2] * y])

    if near is None:
        starts = _starts(loss, (0.2, 0.5, 0.8, 0.95), (0.3, 0.8, 1.5))
    else:
        a, b = np.log(near.a) - near.alpha * middle_x, np.log(near.b) - near.beta * middle_y
        starts = [(np.log(near.e), a, b, near.alpha, near.beta)]
        if near.determined:
            # Where one size decides, a second minimum with a large exponent may be the lower one.
            starts += _starts(loss, (0.8,), (0.5, 1.5))
    inner = np.array(_LOWER) + 1e-9, np.array(_UPPER) - 1e-9  # a start has to lie within the bounds
    solutions = [
        least_squares(
            residual,
            np.clip(start, *inner),
            jacobian,
            bounds=(_LOWER, _UPPER),
            loss="huber",
            f_scale=huber,
            x_scale="jac",
            ftol=_TOLERANCE,
            xtol=_TOLERANCE,
            gtol=_TOLERANCE,
        )
        for start in starts
    ]
    best = min(solutions, key=lambda solution: float(solution.cost)).x
    e, a, b, alpha, beta = (float(value) for value in best)
    ended = any(value <= _LOWER[3] * 1.001 or value >= _UPPER[3] * 0.999 for value in (alpha, beta))
    return Parametric(
        e=float(np.exp(e)),
        a=float(np.exp(a + alpha * middle_x)),
        alpha=alpha,
        b=float(np.exp(b + beta * middle_y)),
        beta=beta,
        error=float(np.sqrt(np.mean(residual(best) ** 2))),
        points=int(loss.size),
        determined=not ended and bool(np.exp(e) > 0.01 * loss.min()),
    )


def fit_isoflop(budget: float, params: npt.ArrayLike, losses: npt.ArrayLike) -> Isoflop:
    """Fit the parabola of one budget through its best size and the neighbours (at an end: the three sizes there).

    One loss per size. Raises TooFew for fewer than three sizes, and where there is no minimum.
    """
    order = np.argsort(params)
    x, loss = np.log(np.asarray(params, float))[order], np.asarray(losses, float)[order]
    ends = x[0], x[-1]
    if len(np.unique(x)) < 3:
        raise TooFew(f"a parabola needs three sizes; {budget:.3g} FLOPs have {len(np.unique(x))}")
    first = int(np.clip(np.argmin(loss) - 1, 0, len(x) - 3))
    x, loss = x[first : first + 3], loss[first : first + 3]
    middle = x.mean()
    curvature, slope, level = np.polyfit(x - middle, loss, 2)
    if curvature <= 0:
        raise TooFew(f"at {budget:.3g} FLOPs loss does not curve upwards over size: no best size is to be seen")
    at = -slope / (2 * curvature)
    inside = bool(ends[0] <= at + middle <= ends[1])
    # Far outside the sizes the exponential means nothing and may overflow.
    best = float(np.exp(np.clip(at + middle, ends[0] - 20, ends[1] + 20)))
    return Isoflop(budget, best, float(level - slope**2 / (4 * curvature)), float(curvature), inside)


def _starts(loss: Floats, floors: Sequence[float], alphas: Sequence[float]) -> list[tuple[float, ...]]:
    """log E, log A, log B, a and b, where A and B are the terms' values in the middle of the points."""
    starts: list[tuple[float, ...]] = []
    for floor, alpha, beta in product(floors, alphas, (0.3, 0.8)):
        e = floor * loss.min()
        half = np.log(max(float(loss.mean()) - e, 1e-3 * float(loss.mean())) / 2)
        starts.append((np.log(e), half, half, alpha, beta))
    return starts
