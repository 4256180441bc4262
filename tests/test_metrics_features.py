"""Feature extractors, their cache, and the quality of samples measured with them."""

from __future__ import annotations

import importlib.util
import io
import sys
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from goalgen.cache import cache_folder, fingerprint, load_or_make
from goalgen.errors import GoalgenError
from goalgen.metrics import features as features_module
from goalgen.metrics import quality
from goalgen.metrics.features import (
    ClassifierFeatures,
    InceptionFeatures,
    PixelFeatures,
    make_features,
)
from goalgen.metrics.images import network_input

FASHION = Path(__file__).resolve().parents[2] / "shared" / "data" / "fashion_mnist"
Split = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOALGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits() -> tuple[Split, Split]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = torch.from_numpy(data.images[order]).to(torch.uint8)[:, None]
    labels = torch.from_numpy(data.target[order])
    return (images[:1400], labels[:1400]), (images[1400:], labels[1400:])


@pytest.fixture(scope="module")
def trained(digits: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> tuple[ClassifierFeatures, Path]:
    """The classifier of the digits, and the folder where it was cached."""
    folder = tmp_path_factory.mktemp("cache")
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOALGEN_CACHE", str(folder))
        features = ClassifierFeatures(*digits[0], 17, "digits", "train")
    assert torch.equal(before, torch.random.get_rng_state()), "training changed the global generator"
    return features, folder


@pytest.fixture
def tiny() -> Split:
    """80 small images of two classes, dark and light, that are classified in no time."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2 * 4 + 3  # the classes are 3 and 7
    images = torch.randint(0, 128, (80, 1, 4, 5), generator=rng) + 128 * (labels == 7)[:, None, None, None]
    return images.to(torch.uint8), labels


def classifier(images: torch.Tensor, labels: torch.Tensor, levels: int = 256) -> ClassifierFeatures:
    return ClassifierFeatures(images, labels, levels, "data", fingerprint({"images": images, "labels": labels}))


def pixels(images: torch.Tensor, levels: int = 256, kind: type[PixelFeatures] = PixelFeatures) -> PixelFeatures:
    return kind(images, levels, "data", fingerprint({"images": images}))


def sample_quality(
    samples: torch.Tensor, train: torch.Tensor, held_out: torch.Tensor, levels: int, features: Any
) -> dict[str, float | str | int]:
    """The quality of samples that come in a fixed order, all at once."""
    chosen, about = [quality.choose(samples, len(held_out))], fingerprint({"images": train})
    return quality.sample_quality(
        chosen, train, held_out, levels, features, train_fingerprint=about, num_samples=len(samples)
    )


def no_training(*_: object) -> None:
    raise AssertionError("the classifier was trained although the cache has it")


def predict(features: ClassifierFeatures, images: torch.Tensor, levels: int) -> torch.Tensor:
    """The position of the most likely class among the classes."""
    with torch.no_grad():
        return features._network(network_input(images, levels), lambda x, _: x).argmax(1)


# The classifier


def test_digits_are_classified(trained: tuple[ClassifierFeatures, Path], digits: tuple[Split, Split]) -> None:
    images, labels = digits[1]
    features, _ = trained
    assert features.name == "classifier-64 (goalgen, digits)"
    assert (predict(features, images, 17) == labels).double().mean() >= 0.97


def test_features_are_standardised(trained: tuple[ClassifierFeatures, Path], digits: tuple[Split, Split]) -> None:
    values = trained[0](digits[0][0], 17)
    assert values.shape == (1400, 64)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.mean(0), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(64), atol=1e-3, rtol=0)


def test_a_cached_classifier_is_not_trained_again(
    trained: tuple[ClassifierFeatures, Path], digits: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = trained
    (file,) = folder.glob("classifier-*.safetensors")
    stamp, content = file.stat().st_mtime_ns, file.read_bytes()
    monkeypatch.setattr(features_module, "train_classifier", no_training)
    monkeypatch.setenv("GOALGEN_CACHE", str(folder))
    again = ClassifierFeatures(*digits[0], 17, "digits", "train")
    assert again.key == first.key
    assert torch.equal(first(digits[1][0], 17), again(digits[1][0], 17))
    assert (file.stat().st_mtime_ns, file.read_bytes()) == (stamp, content)
    assert list(folder.iterdir()) == [file], "a temporary file was left behind"


def test_training_again_gives_the_same_weights(tiny: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = classifier(*tiny)(tiny[0], 256)
    monkeypatch.setenv("GOALGEN_CACHE", str(tmp_path / "another"))
    assert torch.equal(one, classifier(*tiny)(tiny[0], 256))


def test_other_data_do_not_share_a_cache_entry(tiny: Split) -> None:
    images, labels = tiny
    keys = {
        classifier(images, labels).key,
        classifier(images, labels.flip(0)).key,
        classifier(images.flip(3), labels).key,
        ClassifierFeatures(images, labels, 256, "data", "named").key,
    }
    assert len(keys) == len(list(cache_folder().iterdir())) == 4


@pytest.mark.parametrize("damage", ["truncated", "garbage", "bit", "other tensors", "empty"])
def test_a_damaged_cache_is_made_anew(damage: str, tiny: Split) -> None:
    images, labels = tiny
    expected = classifier(images, labels)(images, 256)
    (file,) = cache_folder().iterdir()
    good = file.read_bytes()
    flipped = good[:-100] + bytes([good[-100] ^ 1]) + good[-99:]
    other = safetensors.torch.save({"x": torch.zeros(3)})
    damaged = {"truncated": good[:1000], "garbage": b"\xff" * 500, "bit": flipped, "other tensors": other, "empty": b""}
    file.write_bytes(damaged[damage])
    with pytest.warns(UserWarning, match="is damaged"):
        again = classifier(images, labels)(images, 256)
    assert torch.equal(expected, again)
    assert file.read_bytes() == good


def test_training_inside_inference_mode(tiny: Split) -> None:
    images, labels = tiny
    with torch.inference_mode():
        features = classifier(images, labels)
    assert (3 + 4 * predict(features, images, 256)).tolist() == labels.tolist()


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 32), (1, 28, 28), (3, 40, 7), (2, 5, 100)])
def test_any_shape_of_at_least_four_pixels(shape: tuple[int, int, int]) -> None:
    images = torch.randint(0, 256, (12, *shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    values = classifier(images, torch.arange(12) % 2)(images, 256)
    assert values.shape == (12, 64)
    assert torch.isfinite(values).all()


def test_features_do_not_depend_on_the_batch(
    trained: tuple[ClassifierFeatures, Path], digits: tuple[Split, Split]
) -> None:
    images, features = digits[1][0][:300], trained[0]
    alone = torch.cat([features(image[None], 17) for image in images[250:260]])
    torch.testing.assert_close(features(images, 17)[250:260], alone, atol=1e-4, rtol=1e-4)


def test_bad_images_and_labels(trained: tuple[ClassifierFeatures, Path], tiny: Split) -> None:
    images, labels = tiny
    for bad, levels, message in [
        (images.float(), 256, "must be uint8"),
        (images[0], 256, "must be uint8"),
        (images[:0], 256, "must be uint8"),
        (images, 17, "hold 0..16, found"),
        (images, 1, "must be 2..256"),
        (images[:, :, :3], 256, "at least 4x4, not 3x5"),
    ]:
        with pytest.raises(GoalgenError, match=message):
            classifier(bad, labels, levels)
    with pytest.raises(GoalgenError, match="two classes"):
        classifier(images, labels * 0)
    with pytest.raises(GoalgenError, match=r"are of images \(1, 8, 8\), not \(1, 4, 5\)"):
        trained[0](images // 16, 17)


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.is_dir(), reason="Fashion-MNIST is not beside the checkout")
def test_fashion_mnist_is_classified() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    def load(split: str) -> Split:
        table = parquet.read_table(FASHION / f"{split}.parquet")
        pictures = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
        return torch.from_numpy(np.stack(pictures))[:, None], torch.tensor(table["label"].to_pylist())

    features = ClassifierFeatures(*load("train"), 256, "fashion_mnist", "train")
    images, labels = load("test")
    assert (predict(features, images, 256) == labels).double().mean() >= 0.90


# Pixels, Inception, choice


def test_principal_components_agree_with_sklearn(digits: tuple[Split, Split]) -> None:
    (train, _), (test, _) = digits
    features = PixelFeatures(train[:, :, 1:7, 1:7], 17, "digits", "cut")
    assert features.name == "pixel-pca-36 (goalgen, digits)"
    values = features(test[:, :, 1:7, 1:7], 17)[:, :10]
    flat = (train[:, :, 1:7, 1:7].flatten(1).double() / 8 - 1).numpy()
    expected = PCA(10).fit(flat).transform((test[:, :, 1:7, 1:7].flatten(1).double() / 8 - 1).numpy())
    np.testing.assert_allclose(values.abs(), np.abs(expected), atol=1e-4)


def test_large_images_are_averaged_down() -> None:
    images = torch.randint(0, 256, (10, 3, 96, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    features = pixels(images)
    assert features._components.shape == (3 * 32 * 21, 64)
    assert features(images, 256).shape == (10, 64)


def test_auto_picks_by_what_the_data_have(tiny: Split) -> None:
    images, labels = tiny
    about = {"levels": 256, "data": "data", "fingerprint": "tiny"}
    assert make_features("auto", images, labels, **about).name == "classifier-64 (goalgen, data)"
    assert make_features("auto", images, None, **about).name == "pixel-pca-20 (goalgen, data)"
    assert make_features("auto", images, labels * 0, **about).name.startswith("pixel-pca")
    with pytest.raises(GoalgenError, match="need labels"):
        make_features("classifier", images, None, **about)
    with pytest.raises(GoalgenError, match="no features are called 'vgg'; there are: auto"):
        make_features("vgg", images, None, **about)


@pytest.fixture
def torch_fidelity(monkeypatch: pytest.MonkeyPatch) -> object:
    """The real extractor's module; where torchvision is missing, without the package's other parts."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    if importlib.util.find_spec("torchvision") is None:
        # The package's __init__ imports extractors that need torchvision; Inception's does not.
        for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
            monkeypatch.delitem(sys.modules, name)
        bare = types.ModuleType("torch_fidelity")
        bare.__path__ = list(spec.submodule_search_locations or [])
        monkeypatch.setitem(sys.modules, "torch_fidelity", bare)
    return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")


def test_inception_runs_on_local_weights(torch_fidelity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Untrained(torch_fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object) -> None:
            """Keep the random initial weights."""

    torch.save({}, tmp_path / "empty.pth")
    network = Untrained("untrained", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "random.safetensors")
    torch.save(state, tmp_path / "random.pth")

    monkeypatch.setenv("GOALGEN_INCEPTION", str(tmp_path / "random.pth"))
    before = torch.random.get_rng_state()
    features = InceptionFeatures()
    assert torch.equal(before, torch.random.get_rng_state())
    assert features.name == "inception-2048 (weights random.pth)"
    monkeypatch.setenv("GOALGEN_INCEPTION", str(tmp_path / "random.safetensors"))
    assert features.key == InceptionFeatures().key
    grey = torch.tensor([[0, 16], [8, 4]], dtype=torch.uint8).reshape(1, 1, 2, 2)
    as_bytes = torch.tensor([[0, 255], [128, 64]], dtype=torch.uint8).expand(1, 3, 2, 2)
    values = features(grey, 17)
    assert values.shape == (1, 2048)
    torch.testing.assert_close(values, network(as_bytes)[0])
    with pytest.raises(GoalgenError, match="grey or RGB"):
        features(torch.zeros(1, 2, 8, 8, dtype=torch.uint8), 256)
    monkeypatch.setenv("GOALGEN_INCEPTION", str(tmp_path / "empty.pth"))
    with pytest.raises(GoalgenError, match="not weights of the FID's Inception"):
        InceptionFeatures()


def test_inception_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    with pytest.raises(GoalgenError, match=r"pip install torch-fidelity torchvision"):
        InceptionFeatures()


@pytest.mark.parametrize(("name", "message"), [("evil", "cannot be read as weights"), ("missing", "does not exist")])
def test_weights_are_not_unpickled(
    name: str, message: str, torch_fidelity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weights": Path("anything that is no tensor")}, tmp_path / "evil.pth")
    monkeypatch.setenv("GOALGEN_INCEPTION", str(tmp_path / f"{name}.pth"))
    with pytest.raises(GoalgenError, match=message):
        InceptionFeatures()


# The cache


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GOALGEN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"cannot be written: .*; set GOALGEN_CACHE"):
        made = load_or_make("kind", "key", lambda: {"x": torch.ones(2)})
    assert made["x"].tolist() == [1.0, 1.0]


def test_the_environment_moves_the_cache(tmp_path: Path, tiny: Split) -> None:
    assert cache_folder() == tmp_path / "cache"
    pixels(tiny[0])
    assert [path.name.split("-")[0] for path in cache_folder().iterdir()] == ["pixel"]


# The quality of samples


def test_quality_of_copies_noise_and_fresh_images(
    trained: tuple[ClassifierFeatures, Path], digits: tuple[Split, Split]
) -> None:
    (train, _), (test, _) = digits
    half, held_out = test[:190], test[190:380]
    noise = torch.randint(0, 17, half.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    features = trained[0]
    fresh = sample_quality(half, train, held_out, 17, features)
    bad = sample_quality(noise, train, held_out, 17, features)
    copies = sample_quality(train[:300], train, held_out, 17, features)

    metrics = ["precision", "recall", "density", "coverage"]
    pairs = [("frechet_distance", "frechet_reference"), ("kernel_distance", "kernel_reference")]
    pairs += [(m, f"{m}_reference") for m in metrics] + [("nearest_train_distance", "nearest_train_reference")]
    assert set(fresh) == {key for pair in pairs for key in pair} | {"features", "num_samples", "num_reference"}
    assert (fresh["features"], fresh["num_samples"], fresh["num_reference"]) == (features.name, 190, 1400)
    for _, reference in pairs:  # a reference depends on held-out images alone when the counts agree
        assert bad[reference] == pytest.approx(fresh[reference], rel=1e-9)

    assert fresh["frechet_distance"] < 2 * fresh["frechet_reference"] < bad["frechet_distance"]
    assert abs(fresh["kernel_distance"]) < 0.1 * bad["kernel_distance"]
    assert bad["coverage"] < 0.1 < 0.25 < fresh["coverage"]
    assert fresh["precision"] > 0.7 > bad["recall"]
    assert copies["nearest_train_distance"] == 0.0 < 0.5 * copies["nearest_train_reference"]
    assert copies["precision"] == 1.0


def test_nearest_distance_is_in_pixel_units() -> None:
    train = torch.zeros(8, 3, 4, 4, dtype=torch.uint8)
    train[4:] = 255
    samples = torch.full((6, 3, 4, 4), 51, dtype=torch.uint8)
    features = pixels(train)
    found = sample_quality(samples, train, train[[0] * 6], 256, features)
    assert found["nearest_train_distance"] == pytest.approx(0.2)
    assert found["nearest_train_reference"] == 0.0


def test_quality_refuses_too_few_or_other_images(tiny: Split) -> None:
    images, _ = tiny
    features = pixels(images)
    with pytest.raises(GoalgenError, match="at least 6 samples, not 5"):
        sample_quality(images[:5], images, images, 256, features)
    with pytest.raises(GoalgenError, match="these features are of images"):
        sample_quality(images, images, images[..., :4], 256, features)


def test_the_second_measurement_computes_only_what_is_new(
    tiny: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = tiny
    held_out = torch.randint(0, 256, (30, 1, 4, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)

    class Counting(PixelFeatures):
        seen = 0

        def __call__(self, images: torch.Tensor, levels: int) -> torch.Tensor:
            Counting.seen += len(images)
            return super().__call__(images, levels)

    features = pixels(train, kind=Counting)

    def measure(samples: torch.Tensor) -> dict[str, float | str | int]:
        return sample_quality(samples, train, held_out, 256, features)

    first = measure(train[:30])
    assert {p.name.split("-")[0] for p in cache_folder().iterdir()} == {"pixel", "reference", "neighbours", "held"}
    before = Counting.seen
    assert measure(train[:30]) == first
    assert Counting.seen - before == 30  # the samples
    monkeypatch.setenv("GOALGEN_CACHE", str(tmp_path / "another"))
    assert measure(train[:30]) == first  # what the cache holds is what is computed without it
    assert Counting.seen - before == 30 + 30 + 30 + len(train)
    held_out[0] += 1
    assert measure(train[:30])["frechet_reference"] != first["frechet_reference"]


def test_batches_are_measured_and_let_go(tiny: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = tiny
    features, about = pixels(train), {"train_fingerprint": "train", "num_samples": 60}
    samples = torch.randint(0, 256, (60, 1, 4, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    whole = quality.sample_quality([samples], train, train, 256, features, **about)
    batched = quality.sample_quality(samples.split(7), train, train, 256, features, **about)
    assert batched == pytest.approx(whole)
    with pytest.raises(GoalgenError, match="60 samples were to come, and only 59 did"):
        quality.sample_quality([samples[1:]], train, train, 256, features, **about)

    monkeypatch.setattr(quality, "MANIFOLD_ROWS", 20)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def batches() -> Iterator[torch.Tensor]:
        nonlocal most
        for part in train.split(10):
            batch = part.clone()
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            most = max(most, sum(ref() is not None for ref in alive))

    quality.sample_quality(batches(), train, train, 256, features, train_fingerprint="again", num_samples=len(train))
    assert len(alive) == 8
    assert most <= 3  # the 20 rows that neighbours are looked for among, and the batch in hand
