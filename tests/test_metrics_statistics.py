"""Metrics of feature matrices against closed forms, independent implementations and definitions."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from goalgen.errors import GoalgenError
from goalgen.metrics import statistics


def features(seed: int, n: int, d: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (n, d))


def tensors(a: Any, b: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.as_tensor(a), torch.as_tensor(b)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    return statistics.frechet_distance(*map(statistics.FeatureMoments.of, tensors(a, b)))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    x, y = tensors(a, b)
    return statistics.kernel_distance(x, y, statistics.kernel_mean(y))


def precision_recall(a: np.ndarray, b: np.ndarray, k: int = 3) -> tuple[float, float]:
    real, fake = tensors(a, b)
    return statistics.precision_recall(real, fake, k, statistics.squared_radii(real, k))


def density_coverage(a: np.ndarray, b: np.ndarray, k: int = 5) -> tuple[float, float]:
    real, fake = tensors(a, b)
    return statistics.density_coverage(real, fake, k, statistics.squared_radii(real, k))


def nearest_rows(a: np.ndarray, b: np.ndarray, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return statistics.nearest_rows(*tensors(a, b), count)


PAIR_METRICS = [frechet_distance, kernel_distance, precision_recall, density_coverage]


def with_moments(mean: np.ndarray, covariance: np.ndarray, n: int = 40) -> np.ndarray:
    """Return rows whose sample mean and unbiased covariance are exactly those given."""
    d = len(mean)
    x = features(0, n, d)
    x -= x.mean(0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T).reshape(d, d))).T
    return whitened @ np.linalg.cholesky(covariance).T + mean


@pytest.fixture
def torchmetrics_image(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torchmetrics.image, also where torch-fidelity, which it imports, lacks torchvision."""
    if importlib.util.find_spec("torchmetrics") is None:
        pytest.skip("torchmetrics is not installed")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is not None and importlib.util.find_spec("torchvision") is None:
        # The package's __init__ imports extractors that need torchvision; what torchmetrics uses does not.
        bare = types.ModuleType("torch_fidelity")
        bare.__path__ = list(spec.submodule_search_locations or [])
        monkeypatch.setitem(sys.modules, "torch_fidelity", bare)
    return importlib.import_module("torchmetrics.image")


# Frechet distance


def test_frechet_closed_form_of_diagonal_covariances() -> None:
    a = with_moments(np.array([1.0, -2.0, 0.5]), np.diag([1.0, 4.0, 9.0]))
    b = with_moments(np.array([0.0, 1.0, 0.5]), np.diag([4.0, 4.0, 0.25]))
    expected = (1 + 9 + 0) + (1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 0.5) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_frechet_closed_form_of_scaled_covariance() -> None:
    root = features(3, 5, 5)
    covariance = root @ root.T + np.eye(5)
    a, b = with_moments(np.zeros(5), covariance), with_moments(np.ones(5), 4 * covariance)
    assert frechet_distance(a, b) == pytest.approx(5 + np.trace(covariance), rel=1e-10)  # (2-1)^2 tr


def test_frechet_agrees_with_scipy_sqrtm() -> None:
    a, b = features(0, 300, 16) @ features(9, 16, 16), features(1, 200, 16, 0.3) @ features(8, 16, 16)
    ca, cb = np.cov(a.T), np.cov(b.T)
    gap = np.sum((a.mean(0) - b.mean(0)) ** 2)
    expected = gap + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb)))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_frechet_agrees_with_torchmetrics(torchmetrics_image: Any) -> None:
    fid = torchmetrics_image.fid
    a, b = torch.from_numpy(features(0, 400, 12)), torch.from_numpy(features(1, 300, 12, 0.5, 2.0))
    expected = fid._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_frechet_of_fewer_rows_than_dimensions() -> None:
    a, b = features(0, 5, 50), features(1, 7, 50, 0.2)
    xa, xb = (a - a.mean(0)) / 2, (b - b.mean(0)) / 6**0.5
    # tr (A^T A B^T B)^(1/2) is the nuclear norm of A B^T, a 5 x 7 matrix.
    overlap = np.linalg.svd(xa @ xb.T, compute_uv=False).sum()
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.sum(xa**2) + np.sum(xb**2) - 2 * overlap
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("n", "d"), [(100, 8), (5, 30), (2, 3)])
def test_frechet_of_a_set_with_itself_is_zero(n: int, d: int) -> None:
    a = features(2, n, d, 100.0)
    assert 0 <= frechet_distance(a, a) < 1e-9


def test_frechet_of_constant_features_is_the_gap_of_means() -> None:
    assert frechet_distance(np.zeros((4, 3)), np.full((5, 3), 2.0)) == pytest.approx(12.0)


def test_frechet_is_accurate_far_from_the_origin() -> None:
    a, b = features(0, 50, 4), features(1, 60, 4, 1.0)
    assert frechet_distance(a + 1e6, b + 1e6) == pytest.approx(frechet_distance(a, b), rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(2, 12), d=st.integers(1, 8), scale=st.floats(0.01, 100))
def test_frechet_is_symmetric_and_scales_with_the_square(seed: int, n: int, d: int, scale: float) -> None:
    a, b = features(seed, n, d), features(seed + 1, n + 3, d, 0.5)
    distance = frechet_distance(a, b)
    assert distance >= 0
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-7, abs=1e-9)
    assert frechet_distance(scale * a, scale * b) == pytest.approx(scale**2 * distance, rel=1e-7, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6).filter(lambda s: sum(s) >= 2))
def test_moments_in_batches_equal_moments_at_once(sizes: list[int]) -> None:
    x = features(sum(sizes), sum(sizes), 4, 10.0)
    moments = statistics.FeatureMoments(4)
    for batch in torch.from_numpy(x).split(sizes):
        moments.update(batch)
    assert moments.count == len(x)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.T), rtol=1e-9, atol=1e-11)


def test_bad_rows_are_counted() -> None:
    bad = torch.from_numpy(features(1, 10, 3))
    bad[4, 1] = torch.nan
    with pytest.raises(GoalgenError, match="mine: 1 of 10 rows hold NaN"):
        statistics.FeatureMoments.of(bad, "mine")


# Kernel distance


def test_kernel_distance_agrees_with_torchmetrics(torchmetrics_image: Any) -> None:
    kid = importlib.import_module("torchmetrics.image.kid")
    a, b = torch.from_numpy(features(0, 150, 10)), torch.from_numpy(features(1, 150, 10, 0.4))
    assert kernel_distance(a, b) == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-9)


def test_kernel_distance_of_unequal_counts_follows_the_definition() -> None:
    a, b = features(0, 7, 3), features(1, 4, 3, 1.0)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return (x @ y / 3 + 1) ** 3

    aa = np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    bb = np.mean([kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    ab = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(aa + bb - 2 * ab, rel=1e-10)


def test_kernel_distance_is_unbiased() -> None:
    values = [kernel_distance(features(i, 20, 4), features(1000 + i, 30, 4)) for i in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0 < max(values)


# Neighbours


def prdc_by_definition(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float, float, float]:
    def radii(x: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x).kneighbors()[0][:, -1]

    real_radii, fake_radii, d = radii(real), radii(fake), cdist(real, fake)
    inside_real = [[d[i, j] <= real_radii[i] for j in range(len(fake))] for i in range(len(real))]
    inside_fake = [[d[i, j] <= fake_radii[j] for j in range(len(fake))] for i in range(len(real))]
    precision = sum(any(row[j] for row in inside_real) for j in range(len(fake))) / len(fake)
    recall = sum(any(row) for row in inside_fake) / len(real)
    density = sum(map(sum, inside_real)) / (k * len(fake))
    return precision, recall, density, sum(map(any, inside_real)) / len(real)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_manifold_metrics_follow_their_definitions(k: int, shift: float) -> None:
    real, fake = features(k, 60, 5), features(k + 10, 45, 5, shift / 2, 0.7)
    found = (*precision_recall(real, fake, k), *density_coverage(real, fake, k))
    assert found == pytest.approx(prdc_by_definition(real, fake, k), abs=1e-12)


def test_manifold_metrics_agree_with_prdc() -> None:
    prdc = pytest.importorskip("prdc", reason="the authors' own package prdc is not installed")
    real, fake = features(0, 120, 6), features(1, 100, 6, 0.4)
    expected = prdc.compute_prdc(real, fake, nearest_k=5)
    found = (*precision_recall(real, fake, 5), *density_coverage(real, fake, 5))
    assert found == pytest.approx([expected[name] for name in ("precision", "recall", "density", "coverage")])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), offset=st.floats(-1e3, 1e3))
def test_copies_of_the_data_are_precise_and_complete(seed: int, offset: float) -> None:
    real = features(seed, 30, 4) + offset
    fake = real[np.random.default_rng(seed).permutation(30)]
    assert precision_recall(real, fake) == (1.0, 1.0)
    # Each image is in its own ball and in k others on average: on the rim, where rounding must not decide.
    assert density_coverage(real, fake, 5) == (pytest.approx(6 / 5), 1.0)


def test_collapse_and_distance() -> None:
    real = features(0, 50, 3)
    collapsed = np.repeat(real[:1], 20, 0)
    assert precision_recall(real, collapsed) == (1.0, 1 / 50)
    assert density_coverage(real, collapsed)[1] < 0.5
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    assert density_coverage(real, real + 100) == (0.0, 0.0)


@pytest.mark.parametrize("count", [1, 4])
def test_nearest_rows_agree_with_scipy(count: int) -> None:
    queries, reference = features(0, 50, 7), features(1, 300, 7)
    distance, index = nearest_rows(queries, reference, count)
    all_pairs = cdist(queries, reference)
    np.testing.assert_array_equal(index, all_pairs.argsort(1)[:, :count])
    np.testing.assert_allclose(distance, np.sort(all_pairs, 1)[:, :count], rtol=1e-12)
    assert nearest_rows(queries, reference[:3], 4)[1].shape == (50, 3)


def test_nearest_rows_of_bytes_are_exact_and_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    reference, others = torch.randint(0, 17, (5006, 9), dtype=torch.uint8, generator=generator).split([5000, 6])
    queries = torch.cat([reference[4500:4501], others])
    distance, index = statistics.nearest_rows(queries, reference, 4)
    everything = torch.linalg.vector_norm(queries.double()[:, None] - reference.double()[None], dim=2)
    assert torch.allclose(distance, everything.sort(1).values[:, :4])
    assert torch.allclose(everything.gather(1, index), distance)
    assert distance[0, 0] == 0


def test_the_nearest_row_of_a_copy_is_at_no_distance() -> None:
    reference = torch.from_numpy(features(1, 200, 5) + 1e4).float()
    distance, index = statistics.nearest_rows(reference[[3, 150]], reference)
    assert distance.tolist() == [[0.0], [0.0]]
    assert index.tolist() == [[3], [150]]


def test_nearest_rows_of_bytes_do_not_overflow() -> None:
    reference = torch.full((2, 4), 255, dtype=torch.uint8)
    assert statistics.nearest_rows(torch.zeros(1, 4, dtype=torch.uint8), reference)[0].item() == 510.0


# All of them


@pytest.mark.parametrize("metric", [*PAIR_METRICS, nearest_rows])
def test_chunks_do_not_change_the_result(metric, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = features(0, 60, 4), features(1, 50, 4, 0.5)
    whole = metric(a, b)
    monkeypatch.setattr(statistics, "PAIRS_PER_CHUNK", 70)
    monkeypatch.setattr(statistics, "QUERIES_PER_CHUNK", 7)
    pieces = metric(a, b)
    if metric is nearest_rows:
        assert all(map(torch.equal, whole, pieces))
    else:
        assert pieces == (pytest.approx(whole, rel=1e-10) if isinstance(whole, float) else whole)


@pytest.mark.parametrize("metric", PAIR_METRICS)
def test_order_of_rows_does_not_matter(metric) -> None:
    a, b = features(0, 60, 4), features(1, 50, 4, 0.5)
    rng = np.random.default_rng(5)
    assert metric(rng.permutation(a), rng.permutation(b)) == pytest.approx(metric(a, b))
