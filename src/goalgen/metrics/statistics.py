"""Distances between two sets of feature vectors, and neighbours within them.

Every function takes matrices of shape (N, D), one row per image, as tensors or NumPy arrays, computes
in float64, draws no random numbers and holds at most a few tens of megabytes besides its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from goalgen.errors import GoalgenError

Matrix = Tensor | np.ndarray
"""A feature matrix, (N, D)."""

PAIRS_PER_CHUNK = 1 << 22
"""Pairs of rows compared at once: a float64 matrix of 32 MiB."""
QUERIES_PER_CHUNK = 1024
ROUNDING = 1e-12
"""Relative error allowed in a squared distance: the dot products of float64 rows are better than this."""


@dataclass(frozen=True)
class PrecisionRecall:
    """Improved precision (share of fakes that look real) and recall (share of reals that are covered), 0..1."""

    precision: float
    recall: float


@dataclass(frozen=True)
class DensityCoverage:
    """Density (0 and up, 1 expected of a perfect model) and coverage (0..1)."""

    density: float
    coverage: float


@dataclass(frozen=True)
class Nearest:
    """For every query its distance to the nearest reference row, (N,) float64, and that row's index, (N,) int64."""

    distance: Tensor
    index: Tensor


class FeatureMoments:
    """Count, mean and covariance of feature vectors that arrive in batches, in memory O(D^2).

    Batches are merged pairwise (Chan, Golub and LeVeque 1983), which keeps float64 accuracy where the
    difference of sums of squares would lose it.

    Attributes:
        count: number of rows seen.
        mean: their mean, (D,) float64.
    """

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64)
        self._scatter = torch.zeros(dimension, dimension, dtype=torch.float64)

    @classmethod
    def of(cls, features: Matrix, name: str = "features") -> FeatureMoments:
        """Return the moments of a whole matrix (N, D).

        Raises:
            GoalgenError: not a matrix, or not finite; the message calls the matrix ``name``.
        """
        rows = _rows(features, name)
        moments = cls(rows.shape[1])
        for chunk in rows.split(max(1, PAIRS_PER_CHUNK // max(1, rows.shape[1]))):
            moments.update(chunk, name)
        return moments

    def update(self, batch: Matrix, name: str = "features") -> None:
        """Add the rows of ``batch`` (N, D), N >= 0.

        Raises:
            GoalgenError: not a matrix, another D, or not finite.
        """
        rows = _rows(batch, name)
        _same_dimension(rows.shape[1], self.mean.numel())
        if len(rows) == 0:
            return
        x = _float64(rows, name)
        mean = x.mean(0)
        centred = x - mean
        self._add(len(x), mean, centred.T @ centred)

    def merge(self, other: FeatureMoments) -> None:
        """Add all that ``other`` has seen, as if its rows had been given to :meth:`update`.

        Raises:
            GoalgenError: ``other`` has another D.
        """
        _same_dimension(other.mean.numel(), self.mean.numel())
        if other.count:
            self._add(other.count, other.mean, other._scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, (D, D) float64.

        Raises:
            GoalgenError: fewer than two rows have been seen.
        """
        if self.count < 2:
            raise GoalgenError(f"a covariance: at least 2 rows are needed, not {self.count}; give more images")
        return self._scatter / (self.count - 1)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total


def frechet_distance(a: Matrix, b: Matrix) -> float:
    """Return the Frechet distance between Gaussians fitted to ``a`` (N, D) and ``b`` (M, D).

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    2017. The result is a squared distance, in squared units of the features, and is biased upwards when
    N or M is small: compare only numbers measured with the same counts.

    Raises:
        GoalgenError: not matrices of the same D, fewer than two rows, or not finite.
    """
    return frechet_from_moments(FeatureMoments.of(a, "first features"), FeatureMoments.of(b, "second features"))


def frechet_from_moments(a: FeatureMoments, b: FeatureMoments) -> float:
    """Return :func:`frechet_distance` from two sets of moments.

    The trace of (S_a S_b)^(1/2) is computed as the sum of the singular values of F_a^T F_b with
    S = F F^T. No root of a nearly singular product is taken, so fewer rows than dimensions are no problem.

    Raises:
        GoalgenError: the moments differ in D, or hold fewer than two rows.
    """
    _same_dimension(a.mean.numel(), b.mean.numel())
    cov_a, cov_b = a.covariance, b.covariance
    overlap = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    # The exact value is never negative; equal sets may come out at -1e-13 of their variance.
    return max(0.0, float(distance))


def _factor(covariance: Tensor) -> Tensor:
    """Return F, (D, rank), with F F^T = covariance up to rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    keep = values > floor
    return vectors[:, keep] * values[keep].sqrt()


def kernel_mean(rows: Matrix) -> float:
    """Return the mean of the kernel (x.y / D + 1)^3 over all pairs of different rows of a matrix (N, D).

    Raises:
        GoalgenError: not a matrix, fewer than two rows, or not finite.
    """
    x = _rows(rows, "features")
    _at_least(2, x, "features")
    x = _float64(x, "features")
    return _kernel_sum(x, x, skip_diagonal=True) / (len(x) * (len(x) - 1))


def kernel_distance(a: Matrix, b: Matrix, b_mean: float | None = None) -> float:
    """Return the unbiased squared MMD between ``a`` (N, D) and ``b`` (M, D) with the kernel (x.y / D + 1)^3.

    Binkowski et al., "Demystifying MMD GANs", 2018 (KID, where the features are Inception's), over all
    pairs rather than a mean over random subsets. Its expectation does not depend on N and M, and it may
    be slightly negative for equal distributions.

    Args:
        b_mean: :func:`kernel_mean` of ``b``, where it is known already.

    Raises:
        GoalgenError: not matrices of the same D, fewer than two rows, or not finite.
    """
    x, y = _pair(a, b, ("first features", "second features"), least=2)
    within = kernel_mean(x) + (kernel_mean(y) if b_mean is None else b_mean)
    return within - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: Tensor, y: Tensor, skip_diagonal: bool = False) -> float:
    """Return the sum of (x_i.y_j / D + 1)^3 over all pairs, or over i != j."""
    total = torch.zeros((), dtype=torch.float64)
    for rows in _row_chunks(len(x), len(y)):
        kernel = (x[rows] @ y.T).div_(x.shape[1]).add_(1)
        kernel = kernel * kernel * kernel
        if skip_diagonal:
            kernel.diagonal(rows.start).zero_()
        total += kernel.sum()
    return float(total)


def squared_radii(rows: Matrix, k: int) -> Tensor:
    """Return the squared distance of each row of a matrix (N, D) to its k-th nearest other row, (N,) float64.

    Raises:
        GoalgenError: not a matrix, fewer than k+1 rows, not finite, or k < 1.
    """
    x, _ = _manifolds(rows, rows, k)
    return _squared_radii(x, k)


def precision_recall(real: Matrix, fake: Matrix, k: int = 3, real_radii: Tensor | None = None) -> PrecisionRecall:
    """Return improved precision and recall of ``fake`` (M, D) with respect to ``real`` (N, D).

    Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019:
    precision is the share of fakes inside a ball around some real image that reaches to its k-th nearest
    real neighbour; recall is the same with the roles exchanged. Balls are closed.

    Args:
        real_radii: :func:`squared_radii` of ``real``, where they are known already.

    Raises:
        GoalgenError: not matrices of the same D, fewer than k+1 rows, not finite, or k < 1.
    """
    x, y = _manifolds(real, fake, k)
    precision = _covering_counts(y, x, _squared_radii(x, k) if real_radii is None else real_radii) > 0
    recall = _covering_counts(x, y, _squared_radii(y, k)) > 0
    return PrecisionRecall(float(precision.double().mean()), float(recall.double().mean()))


def density_coverage(real: Matrix, fake: Matrix, k: int = 5, real_radii: Tensor | None = None) -> DensityCoverage:
    """Return density and coverage of ``fake`` (M, D) with respect to ``real`` (N, D).

    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020: density is the
    mean number of real balls (reaching to the k-th nearest real neighbour) that hold a fake, over k;
    coverage is the share of real balls that hold at least one fake. Balls are closed.

    Args:
        real_radii: :func:`squared_radii` of ``real``, where they are known already.

    Raises:
        GoalgenError: not matrices of the same D, fewer than k+1 rows, not finite, or k < 1.
    """
    x, y = _manifolds(real, fake, k)
    radii = _squared_radii(x, k) if real_radii is None else real_radii
    density = _covering_counts(y, x, radii).double().mean() / k
    covered = torch.cat([_inside(x[rows], y, radii[rows, None]).any(1) for rows in _row_chunks(len(x), len(y))])
    return DensityCoverage(float(density), float(covered.double().mean()))


def nearest_distance(queries: Matrix, reference: Matrix) -> Nearest:
    """Return for each row of ``queries`` (N, D) the Euclidean distance to its nearest row of ``reference`` (M, D).

    Rows are converted to float64 piece by piece, so uint8 pixels of a whole training set are a good
    reference; between integers the search is exact, and an identical row is at distance 0 for all types.

    Raises:
        GoalgenError: not matrices of the same D, no rows, or not finite.
    """
    q, r = _rows(queries, "queries"), _rows(reference, "reference")
    _same_dimension(q.shape[1], r.shape[1])
    for rows, name in ((q, "queries"), (r, "reference")):
        _at_least(1, rows, name)
    found = [_nearest_of_chunk(chunk, r) for chunk in q.split(QUERIES_PER_CHUNK)]
    return Nearest(torch.cat([d for d, _ in found]), torch.cat([i for _, i in found]))


def _nearest_of_chunk(queries: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances and indices, (N,) each, of the nearest reference rows of few queries."""
    q = _float64(queries, "queries")
    best = torch.full((len(q),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(q), dtype=torch.int64)
    for rows in _row_chunks(len(reference), max(len(q), reference.shape[1])):
        squared, at = _squared_distances(q, _float64(reference[rows], "reference")).min(1)
        closer = squared < best
        best = torch.where(closer, squared, best)
        index = torch.where(closer, at + rows.start, index)
    # Dot products cancel for rows that are almost equal; the difference itself does not.
    return torch.linalg.vector_norm(q - _float64(reference[index], "reference"), dim=1), index


def class_histogram(labels: Matrix, num_classes: int) -> Tensor:
    """Return the share of each class among ``labels`` (N,) integers, as (num_classes,) float64 that sum to 1.

    Raises:
        GoalgenError: no labels, not one-dimensional integers, or a label outside 0..num_classes-1.
    """
    values = torch.as_tensor(labels)
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise GoalgenError(f"labels must be integers of shape (N,), not {values.dtype} {tuple(values.shape)}")
    if len(values) == 0:
        raise GoalgenError("a class histogram needs at least one label; there are none")
    values = values.to(torch.int64)
    if int(values.min()) < 0 or int(values.max()) >= num_classes:
        raise GoalgenError(
            f"labels must be 0..{num_classes - 1}, found {int(values.min())}..{int(values.max())}; raise num_classes"
        )
    return torch.bincount(values, minlength=num_classes).double() / len(values)


# Neighbourhoods ------------------------------------------------------------------------------------


def _manifolds(real: Matrix, fake: Matrix, k: int) -> tuple[Tensor, Tensor]:
    """Return both matrices in float64, moved so that the mean of the real rows is 0."""
    if k < 1:
        raise GoalgenError(f"the number of neighbours k must be at least 1, not {k}")
    x, y = _pair(real, fake, ("real features", "fake features"), least=k + 1)
    centre = x.mean(0)  # distances do not change, but their rounding errors grow with the norms
    return x - centre, y - centre


def _squared_radii(x: Tensor, k: int) -> Tensor:
    """Return the squared distance of each row to its k-th nearest other row, (N,)."""
    radii = []
    for rows in _row_chunks(len(x), len(x)):
        squared = _squared_distances(x[rows], x)
        squared.diagonal(rows.start).fill_(torch.inf)  # a row is not its own neighbour; its copies are
        radii.append(squared.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def _covering_counts(points: Tensor, centres: Tensor, squared_radii: Tensor) -> Tensor:
    """Return in how many of the balls each point lies, (N,) int64."""
    chunks = _row_chunks(len(points), len(centres))
    return torch.cat([_inside(points[rows], centres, squared_radii).sum(1) for rows in chunks])


def _inside(x: Tensor, y: Tensor, squared_radii: Tensor) -> Tensor:
    """Return whether rows of x and y are within the radii (broadcast over (N, M)), rounding apart."""
    # Without the slack, copies of a neighbour on the rim would count or not by the rounding of a matrix product.
    slack = ROUNDING * (x.square().sum(1)[:, None] + y.square().sum(1))
    return _squared_distances(x, y) <= slack.add_(squared_radii)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return squared Euclidean distances of all pairs, (N, M)."""
    squared = torch.addmm(y.square().sum(1).expand(len(x), -1), x, y.T, alpha=-2)
    return squared.add_(x.square().sum(1)[:, None]).clamp_(min=0)


def _row_chunks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, PAIRS_PER_CHUNK // columns)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


# Validation ----------------------------------------------------------------------------------------


def _pair(a: Matrix, b: Matrix, names: tuple[str, str], least: int) -> tuple[Tensor, Tensor]:
    x, y = _rows(a, names[0]), _rows(b, names[1])
    _same_dimension(x.shape[1], y.shape[1])
    _at_least(least, x, names[0])
    _at_least(least, y, names[1])
    return _float64(x, names[0]), _float64(y, names[1])


def _rows(features: Matrix, name: str) -> Tensor:
    """Return the matrix as a detached CPU tensor of its own type."""
    try:
        # PyTorch warns of read-only arrays and refuses reversed ones; those are copied.
        array = np.require(features, requirements=["C", "W"]) if isinstance(features, np.ndarray) else features
        rows = torch.as_tensor(array).detach().cpu()
    except (TypeError, ValueError) as error:
        raise GoalgenError(f"{name} cannot be read as a matrix of numbers: {error}") from None
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise GoalgenError(f"{name} must be a matrix (images, features), not of shape {tuple(rows.shape)}; reshape it")
    return rows


def _float64(rows: Tensor, name: str) -> Tensor:
    x = rows.to(torch.float64)
    if rows.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).any(1).sum())
        raise GoalgenError(f"{name}: {bad} of {len(x)} rows hold NaN or infinity; check the images they come from")
    return x


def _at_least(least: int, rows: Tensor, name: str) -> None:
    if len(rows) < least:
        raise GoalgenError(f"{name}: at least {least} rows are needed, not {len(rows)}; give more images")


def _same_dimension(a: int, b: int) -> None:
    if a != b:
        raise GoalgenError(f"feature matrices differ in dimension, {a} and {b}; use the same features for both")
