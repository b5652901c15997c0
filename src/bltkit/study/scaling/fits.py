"""Fits of the study `scaling`: loss as a function of size and data, and the best size of a budget. NumPy alone.

parametric  L(N, D) = E + A / N^a + B / D^b, by Huber's loss of the log residuals from a grid of starts (Hoffmann et al.
            2022, arXiv 2203.15556, approach 3), here by Levenberg-Marquardt, all starts at once
isoflop     a parabola in log N through the best size of one budget and its neighbours, and its lowest point (approach
            2; through more sizes a parabola need not fit)

What too few points cannot say is refused with a reason, not guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

HUBER = 1e-3
"""Where a log residual stops to count by its square."""
_EXPONENTS = (0.02, 3.0)
"""Between which a and b are looked for; one that ends there is not determined by the points."""
_ROUNDS, _ROUNDS_NEAR = 300, 60


class TooFew(ValueError):
    """The points do not determine what was asked. Says why."""


@dataclass(frozen=True)
class Parametric:
    """L(N, D) = e + a / N^alpha + b / D^beta. error: root of the mean squared log residual.

    determined: False where an exponent, or E, ended at the edge of what is allowed: then only predictions between the
    points mean something.
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
        """The loss of models of so many parameters after so much text."""
        n, d = np.asarray(params, float), np.asarray(num_bytes, float)
        return np.asarray(self.e + self.a / n**self.alpha + self.b / d**self.beta)

    def size_exponent(self, cost_exponent: float = 1.0) -> float:
        """Of the best size in a budget: N ~ C^(beta / (alpha + g beta)), where a byte costs as N^g."""
        return self.beta / (self.alpha + cost_exponent * self.beta)


@dataclass(frozen=True)
class Isoflop:
    """The parabola of a budget: loss = lowest + curvature (ln N - ln best)^2.

    inside: does its lowest point lie between the smallest and the largest size.
    """

    budget: float
    best: float
    lowest: float
    curvature: float
    inside: bool

    def predict(self, params: npt.ArrayLike) -> Floats:
        """The loss over N."""
        return np.asarray(self.lowest + self.curvature * np.log(np.asarray(params, float) / self.best) ** 2)


@dataclass(frozen=True)
class Power:
    """y = scale x^exponent."""

    scale: float
    exponent: float


def fit_parametric(
    params: Sequence[float],
    num_bytes: Sequence[float],
    losses: Sequence[float],
    *,
    huber: float = HUBER,
    near: Parametric | None = None,
) -> Parametric:
    """The fit of five numbers. near: one of almost the same points, to begin at beside a few other places.

    Raises TooFew for fewer than six points, three sizes or three amounts of text, and ValueError for losses that are
    not above 0.
    """
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
    # Centred, so that the five numbers are of a size and hardly pull on one another.
    x, y, target = np.log(n), np.log(d), np.log(loss)
    middle_x, middle_y = x.mean(), y.mean()
    starts = _starts(loss)
    if near is not None:
        own = (np.log(near.a) - near.alpha * middle_x, np.log(near.b) - near.beta * middle_y)
        starts = np.vstack([[np.log(near.e), *own, near.alpha, near.beta], starts[::12]])
    rounds = _ROUNDS if near is None else _ROUNDS_NEAR
    found, cost = _descend(starts, x - middle_x, y - middle_y, target, huber, rounds)
    best = found[int(np.argmin(cost))]
    e, a, b, alpha, beta = (float(value) for value in best)
    residual = _predict(best[None], x - middle_x, y - middle_y)[0] - target
    low, high = _EXPONENTS
    ended = any(exponent <= low * 1.001 or exponent >= high * 0.999 for exponent in (alpha, beta))
    return Parametric(
        e=float(np.exp(e)),
        a=float(np.exp(a + alpha * middle_x)),
        alpha=alpha,
        b=float(np.exp(b + beta * middle_y)),
        beta=beta,
        error=float(np.sqrt(np.mean(residual**2))),
        points=int(loss.size),
        determined=not ended and bool(np.exp(e) > 0.01 * loss.min()),
    )


def fit_isoflop(budget: float, params: Sequence[float], losses: Sequence[float]) -> Isoflop:
    """The parabola of one budget, through the best of its sizes and those beside it (at an end: the three there).

    One loss a size. Raises TooFew for fewer than three sizes, and where it has no lowest point.
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
    # Far away the exponential has no meaning and may have no number either.
    best = float(np.exp(np.clip(at + middle, ends[0] - 20, ends[1] + 20)))
    return Isoflop(budget, best, float(level - slope**2 / (4 * curvature)), float(curvature), inside)


def fit_power(x: Sequence[float], y: Sequence[float]) -> Power:
    """A line through the logarithms. Raises TooFew for fewer than two different x."""
    if len(set(x)) < 2:
        raise TooFew(f"a power law needs two different budgets; there are {len(set(x))}")
    exponent, scale = np.polyfit(np.log(x), np.log(y), 1)
    return Power(float(np.exp(scale)), float(exponent))


def _starts(loss: Floats) -> Floats:
    """[S, 5]: e, a, b, alpha, beta, the first three logarithms of what the terms are in the middle of the points."""
    rows = []
    for floor, share, alpha, beta in product((0.2, 0.5, 0.8, 0.95), (0.3, 0.7), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0)):
        e = floor * loss.min()
        rest = max(float(loss.mean()) - e, 1e-3 * float(loss.mean()))
        rows.append((np.log(e), np.log(share * rest), np.log((1 - share) * rest), alpha, beta))
    return np.array(rows)


def _terms(theta: Floats, x: Floats, y: Floats) -> Floats:
    """[S, P, 3] logarithms of the three terms."""
    e, a, b, alpha, beta = (theta[:, at, None] for at in range(5))
    return np.stack(np.broadcast_arrays(e, a - alpha * x, b - beta * y), -1)


def _predict(theta: Floats, x: Floats, y: Floats) -> Floats:
    """[S, P] logarithms of the loss."""
    return np.asarray(np.logaddexp.reduce(_terms(theta, x, y), axis=-1))


def _cost(residual: Floats, huber: float) -> Floats:
    size = np.abs(residual)
    return np.asarray(np.where(size <= huber, 0.5 * size**2, huber * (size - 0.5 * huber)).sum(-1))


def _descend(theta: Floats, x: Floats, y: Floats, target: Floats, huber: float, rounds: int) -> tuple[Floats, Floats]:
    """Levenberg-Marquardt from all starts side by side; returns where each ended, and its cost."""
    damping = np.full(len(theta), 1e-2)
    cost = _cost(_predict(theta, x, y) - target, huber)
    for _ in range(rounds):
        terms = _terms(theta, x, y)
        whole = np.logaddexp.reduce(terms, axis=-1)
        share = np.exp(terms - whole[..., None])
        jacobian = np.concatenate([share, -share[..., 1:2] * x[:, None], -share[..., 2:3] * y[:, None]], -1)
        residual = whole - target
        weight = np.minimum(1.0, huber / np.maximum(np.abs(residual), 1e-300))
        gradient = np.einsum("spi,sp,sp->si", jacobian, weight, residual)
        hessian = np.einsum("spi,sp,spj->sij", jacobian, weight, jacobian)
        scale = np.einsum("sii->si", hessian) + 1e-12
        hessian = hessian + damping[:, None, None] * scale[:, :, None] * np.eye(5)
        moved = theta - np.linalg.solve(hessian, gradient[..., None])[..., 0]
        moved[:, 3:] = np.clip(moved[:, 3:], *_EXPONENTS)
        moved[:, :3] = np.clip(moved[:, :3], -40, 40)
        better_cost = _cost(_predict(moved, x, y) - target, huber)
        better = better_cost < cost
        gain = np.where(better, cost - better_cost, 0.0)
        theta = np.where(better[:, None], moved, theta)
        cost = np.where(better, better_cost, cost)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        if better.any() and gain.sum() <= 1e-16 * cost.sum():
            break
        if (damping >= 1e10).all():
            break
    return theta, cost
