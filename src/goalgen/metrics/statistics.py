"""Distances between two sets of feature vectors, and neighbours within them.

Every function takes matrices of shape (N, D), one row per image, computes in float64, draws no random
numbers and holds at most a few tens of megabytes besides its input.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from goalgen.errors import GoalgenError

PAIRS_PER_CHUNK = 1 << 22
"""Pairs of rows compared at once: a float64 matrix of 32 MiB."""
QUERIES_PER_CHUNK = 1024
ROUNDING = 1e-12
"""Relative error allowed in a squared distance: the dot products of float64 rows are better than this."""


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
    def of(cls, features: Tensor, name: str = "features") -> FeatureMoments:
        """Return the moments of a whole matrix (N, D); see :meth:`update`."""
        moments = cls(features.shape[1])
        for chunk in features.split(max(1, PAIRS_PER_CHUNK // features.shape[1])):
            moments.update(chunk, name)
        return moments

    def update(self, batch: Tensor, name: str = "features") -> None:
        """Add the rows of ``batch`` (N, D).

        Raises:
            GoalgenError: not finite; the message calls them ``name``.
        """
        x = batch.double()
        if not bool(torch.isfinite(x).all()):
            bad = int((~torch.isfinite(x)).any(1).sum())
            raise GoalgenError(f"{name}: {bad} of {len(x)} rows hold NaN or infinity; check the images they come from")
        mean, total = x.mean(0), self.count + len(x)
        centred, delta = x - mean, mean - self.mean
        between = torch.outer(delta, delta) * (self.count * len(x) / total)
        self._scatter = self._scatter + centred.T @ centred + between
        self.mean = self.mean + delta * (len(x) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance of at least two rows, (D, D) float64."""
        return self._scatter / (self.count - 1)


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """Return the Frechet distance between Gaussians of these moments, each of two rows or more.

    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium",
    2017. The result is a squared distance, in squared units of the features, and is biased upwards when
    the counts are small: compare only numbers measured with the same counts.

    The trace of (S_a S_b)^(1/2) is computed as the sum of the singular values of F_a^T F_b with
    S = F F^T. No root of a nearly singular product is taken, so fewer rows than dimensions are no problem.
    """
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


def kernel_mean(rows: Tensor) -> float:
    """Return the mean of the kernel (x.y / D + 1)^3 over all pairs of different rows of a matrix (N, D), N >= 2."""
    x = rows.double()
    return _kernel_sum(x, x, skip_diagonal=True) / (len(x) * (len(x) - 1))


def kernel_distance(a: Tensor, b: Tensor, b_mean: float) -> float:
    """Return the unbiased squared MMD between ``a`` (N, D) and ``b`` (M, D) with the kernel (x.y / D + 1)^3.

    Binkowski et al., "Demystifying MMD GANs", 2018 (KID, where the features are Inception's), over all
    pairs rather than a mean over random subsets. Its expectation does not depend on N and M, and it may
    be slightly negative for equal distributions. ``b_mean`` is the :func:`kernel_mean` of ``b``.
    """
    return kernel_mean(a) + b_mean - 2 * _kernel_sum(a.double(), b.double()) / (len(a) * len(b))


def _kernel_sum(x: Tensor, y: Tensor, skip_diagonal: bool = False) -> float:
    """Return the sum of (x_i.y_j / D + 1)^3 over all pairs, or over i != j."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for rows in _row_chunks(len(x), len(y)):
        kernel = (x[rows] @ y.T).div_(x.shape[1]).add_(1)
        kernel = kernel * kernel * kernel
        if skip_diagonal:
            kernel.diagonal(rows.start).zero_()
        total += kernel.sum()
    return float(total)


def squared_radii(rows: Tensor, k: int) -> Tensor:
    """Return the squared distance of each row of a matrix (N, D), N > k, to its k-th nearest other row, (N,) float64."""
    return _squared_radii(_centre(rows, rows)[0], k)


def precision_recall(real: Tensor, fake: Tensor, k: int, real_radii: Tensor) -> tuple[float, float]:
    """Return improved precision and recall, both 0..1, of ``fake`` (M, D) with respect to ``real`` (N, D).

    Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019:
    precision is the share of fakes inside a ball around some real image that reaches to its k-th nearest
    real neighbour; recall is the same with the roles exchanged. Balls are closed. ``real_radii`` are the
    :func:`squared_radii` of ``real`` for this k.
    """
    x, y = _centre(real, fake)
    precision = _covering_counts(y, x, real_radii) > 0
    recall = _covering_counts(x, y, _squared_radii(y, k)) > 0
    return float(precision.double().mean()), float(recall.double().mean())


def density_coverage(real: Tensor, fake: Tensor, k: int, real_radii: Tensor) -> tuple[float, float]:
    """Return density (0 and up, 1 expected of a perfect model) and coverage (0..1) of ``fake`` (M, D).

    Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020: density is the
    mean number of balls around ``real`` (N, D), reaching to the k-th nearest real neighbour, that hold a
    fake, over k; coverage is the share of real balls that hold at least one fake. Balls are closed.
    ``real_radii`` are the :func:`squared_radii` of ``real`` for this k.
    """
    x, y = _centre(real, fake)
    density = _covering_counts(y, x, real_radii).double().mean() / k
    covered = torch.cat([_inside(x[rows], y, real_radii[rows, None]).any(1) for rows in _row_chunks(len(x), len(y))])
    return float(density), float(covered.double().mean())


def nearest_rows(queries: Tensor, reference: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return the Euclidean distances (N, K) float64 and the indices (N, K) int64 of the nearest rows, nearest first.

    Rows are converted to float64 piece by piece, so uint8 pixels of a whole training set are a good
    reference; between integers the search is exact, and an identical row is at distance 0 for all types.

    Args:
        queries: (N, D) rows.
        reference: (M, D) rows among which neighbours are looked for; on whatever device, and moved to that of the queries in
            pieces.
        count: how many; K = min(count, M).
    """
    found = [_nearest_of_chunk(chunk.double(), reference, count) for chunk in queries.split(QUERIES_PER_CHUNK)]
    return torch.cat([distance for distance, _ in found]), torch.cat([index for _, index in found])


def _nearest_of_chunk(queries: Tensor, reference: Tensor, count: int) -> tuple[Tensor, Tensor]:
    squared, index = [], []
    for rows in _row_chunks(len(reference), max(len(queries), reference.shape[1])):
        part = reference[rows].to(queries.device).double()
        near = _squared_distances(queries, part).topk(min(count, len(part)), largest=False)
        squared.append(near.values)
        index.append(near.indices + rows.start)
    best = torch.cat(squared, 1).topk(min(count, len(reference)), largest=False).indices
    chosen = torch.cat(index, 1).gather(1, best)
    # Dot products cancel for rows that are almost equal; the difference itself does not.
    near_rows = reference[chosen.to(reference.device)].to(queries.device).double()
    return torch.linalg.vector_norm(queries[:, None] - near_rows, dim=2), chosen


def _centre(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return both matrices in float64, moved so that the mean of the real rows is 0."""
    x, y = real.double(), fake.double()
    centre = x.mean(0)  # distances do not change, but their rounding errors grow with the norms
    return x - centre, y - centre


def _squared_radii(x: Tensor, k: int) -> Tensor:
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
