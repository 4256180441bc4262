"""A saved model: what it says without being told anything again."""

from __future__ import annotations

import math

import pytest
import torch
from runs import digest, edit_json, tiny_config, write_images

from goalgen import GoalgenError, evaluate, load, load_data
from goalgen.config import DataConfig
from goalgen.data import from_unit, to_bytes, to_unit
from goalgen.model import Model
from goalgen.sampling import BLOCK
from goalgen.starts import blur
from goalgen.training import train


@pytest.fixture(scope="module")
def model(digits_run) -> Model:
    return load(digits_run)


@pytest.fixture(scope="module")
def digits():
    return load_data(DataConfig(limit=64))


@pytest.fixture(scope="module")
def blurred(tmp_path_factory) -> Model:
    """A model whose start is a function of the goal."""
    return load(train(tiny_config(tmp_path_factory.mktemp("blur") / "run", start="blur:1", max_steps=3)).folder)


# Sampling


def test_samples_are_the_same_however_many_are_drawn(model):
    many, few = model.sample(100, seed=3), model.sample(10, seed=3)
    assert torch.equal(many.images[:10], few.images)
    assert torch.equal(many.states[:, :10], few.states)
    assert torch.equal(many.levels[:10], few.levels)


def test_samples_can_be_drawn_from_the_middle(model):
    assert torch.equal(model.sample(100, seed=3).images[70:75], model.sample(5, seed=3, first=70).images)


def test_samples_across_the_edge_of_a_block(model):
    some = model.sample(6, first=BLOCK - 3)
    assert torch.equal(some.images, model.sample(BLOCK + 3).images[BLOCK - 3 :])


def test_random_starts_too_depend_on_the_index_alone(tmp_path):
    noisy = load(train(tiny_config(tmp_path / "run", start="noise:0.5", max_steps=3)).folder)
    many = noisy.sample(100, seed=3)
    assert torch.equal(many.states[:, 70:75], noisy.sample(5, seed=3, first=70).states)
    assert not torch.equal(many.states[0, 0], many.states[0, 1])


def test_another_seed_draws_other_images(model):
    assert not torch.equal(model.sample(10, seed=1).images, model.sample(10, seed=2).images)


def test_shapes_and_ranges_of_samples(model):
    sampled = model.sample(3)
    assert sampled.images.shape == sampled.levels.shape == (3, 1, 8, 8)
    assert sampled.states.shape == (4, 3, 1, 8, 8)
    assert sampled.images.dtype == sampled.states.dtype == sampled.levels.dtype == torch.uint8
    assert sampled.levels.max() <= 16
    assert torch.equal(sampled.states[-1], sampled.images)
    assert torch.equal(sampled.images, (sampled.levels.double() * 255 / 16).round().to(torch.uint8))
    assert sampled.network_evaluations == 3


def test_low_temperature_takes_the_likeliest_actions(model):
    cold = model.sample(20, temperature=1e-6).images
    assert len(torch.unique(cold, dim=0)) == 1
    assert len(torch.unique(model.sample(20).images, dim=0)) > 1


@pytest.mark.parametrize("arguments", [{"num": 0}, {"first": -1}, {"temperature": 0.0}, {"temperature": math.nan}])
def test_numbers_out_of_range_are_refused(model, arguments):
    with pytest.raises(GoalgenError, match="must be"):
        model.sample(**{"num": 2} | arguments)


# The initial state


def test_another_start_is_labelled_with_the_one_trained_with(model):
    assert model.sample(1).start == "mean"
    assert model.sample(1, start="mean").start == "mean"
    assert model.sample(1, start="constant:0").start == "constant:0 (trained with mean)"


def test_another_start_is_where_episodes_begin(model):
    assert (model.sample(2, start="constant:0").states[0] == 0).all()
    assert (model.sample(2, start="constant:1").states[0] == 255).all()


def test_mean_start_needs_no_data(model, digits):
    expected = digits.train.images.double().mean(0) / 16 * 255
    assert (model.sample(1).states[0, 0].double() - expected).abs().max() <= 255 / 16 / 2 + 1


def test_start_tensor_of_one_image_or_of_one_each(model):
    black, white = torch.full((1, 8, 8), -1.0), torch.full((1, 8, 8), 1.0)
    one = model.sample(3, start=black)
    assert one.start == "tensor (trained with mean)"
    assert (one.states[0] == 0).all()
    each = model.sample(3, start=torch.stack([black, white, black])).states
    assert each[0].float().mean((1, 2, 3)).tolist() == [0, 255, 0]
    assert torch.equal(each[:, 0], one.states[:, 0])


def test_start_tensors_of_another_number_are_refused(model):
    with pytest.raises(GoalgenError, match="2 starts were given for 3 samples"):
        model.sample(3, start=torch.zeros(2, 1, 8, 8))


def test_start_tensor_of_another_size_is_refused(model):
    with pytest.raises(GoalgenError, match="wrong size"):
        model.sample(3, start=torch.zeros(1, 9, 8))


def test_start_that_is_a_function_of_the_goal_needs_goals(blurred):
    with pytest.raises(GoalgenError, match="pass goals"):
        blurred.sample(2)


def test_each_sample_begins_from_its_own_goal(blurred, digits):
    goals = digits.test.images[:70]
    states = blurred.sample(70, goals=goals).states
    assert torch.equal(blurred.sample(3, goals=goals[66:69], first=66).states, states[:, 66:69])
    assert torch.equal(states[0], to_bytes(from_unit(blur(to_unit(goals, 17), 1.0), 17), 17))


def test_goals_of_another_number_are_refused(blurred, digits):
    with pytest.raises(GoalgenError, match="2 goals were given for 3 samples"):
        blurred.sample(3, goals=digits.test.images[:2])


def test_start_image_is_kept_with_the_model(tmp_path):
    image = write_images(tmp_path / "start", 1) / "000.png"
    folder = train(tiny_config(tmp_path / "run", start=str(image), max_steps=3)).folder
    before = load(folder).sample(2)
    image.unlink()
    assert torch.equal(load(folder).sample(2).states, before.states)


# The GC-agent


def test_bound_is_the_sum_of_its_terms(model, digits):
    images = digits.test.images[:70]  # more than are computed together
    terms = model.nll_bound(images)
    assert terms.reconstruction.shape == (70,)
    assert terms.kl.shape == (3, 70)
    torch.testing.assert_close(terms.total, terms.reconstruction + terms.kl[0] + terms.kl[1] + terms.kl[2])
    assert (terms.kl >= -1e-6).all()
    assert torch.isfinite(terms.total).all()
    assert model.bits_per_dim(64 * math.log(2)) == pytest.approx(1.0)


def test_bound_is_the_same_for_the_same_seed(model, digits):
    images = digits.test.images[:20]
    assert torch.equal(model.nll_bound(images, 5).total, model.nll_bound(images, 5).total)
    assert not torch.equal(model.nll_bound(images, 5).total, model.nll_bound(images, 6).total)


def test_more_trajectories_tighten_the_bound(model, digits):
    images = digits.test.images[:40]
    loose, tight = model.iw_bound(images, k=1).mean(), model.iw_bound(images, k=30).mean()
    assert tight < loose
    assert tight < model.nll_bound(images).total.mean()


def test_reconstructions_are_images_nearer_to_the_goal_than_samples(model, digits):
    images = digits.test.images[:30]
    made = model.reconstruct(images)
    assert made.shape == images.shape
    assert made.dtype == torch.uint8
    assert made.max() <= 16
    error = (made.float() - images.float()).square().mean()
    assert error < (model.sample(30).levels.float() - images.float()).square().mean()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            torch.zeros(2, 1, 9, 8, dtype=torch.uint8),
            r"images must be \(N, 1, 8, 8\) or \(N, 8, 8\); these are \(2, 1, 9, 8\)",
        ),
        (torch.zeros(2, 1, 8, 8), "images must be uint8"),
        (torch.full((2, 1, 8, 8), 17, dtype=torch.uint8), "grey levels 0 to 16"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "no images"),
    ],
)
def test_images_that_are_none_of_its_own_are_refused(model, images, message):
    for method in (model.nll_bound, model.reconstruct, model.iw_bound):
        with pytest.raises(GoalgenError, match=message):
            method(images)


# Files


def test_saved_model_is_the_model_to_the_last_bit(model, tmp_path):
    again = load(model.save(tmp_path / "saved"))
    assert again.family.state_dict().keys() == model.family.state_dict().keys()
    for name, tensor in model.family.state_dict().items():
        assert torch.equal(again.family.state_dict()[name], tensor), name
    assert torch.equal(again.sample(4).states, model.sample(4).states)
    assert (again.config, again.facts, again.weights) == (model.config, {**model.facts, "weights": "ema"}, "ema")


def test_raw_weights_are_others_and_stay_raw_when_saved(digits_run, model, tmp_path):
    raw = load(digits_run, weights="raw")
    assert (raw.weights, model.weights) == ("raw", "ema")
    assert not torch.equal(raw.family.s_agent.weight, model.family.s_agent.weight)
    again = load(raw.save(tmp_path / "raw"), weights="raw")
    assert torch.equal(again.family.s_agent.weight, raw.family.s_agent.weight)
    assert again.weights == "raw"


def test_last_model_can_be_asked_for(digits_run):
    assert load(digits_run, which="last").facts["step"] == 30


def test_saving_over_something_else_is_refused(model, tmp_path):
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(GoalgenError, match="something else"):
        model.save(tmp_path)
    assert digest(tmp_path).keys() == {"notes.txt"}


def test_loading_does_not_touch_the_run(digits_run):
    before = digest(digits_run)
    load(digits_run).sample(2)
    assert digest(digits_run) == before


def test_model_of_a_newer_format_says_so(model, tmp_path):
    folder = model.save(tmp_path / "saved")
    edit_json(folder / "config.json", format=99)
    with pytest.raises(GoalgenError, match="format 99"):
        load(folder)


def test_hub_folder_round_trip(model, tmp_path):
    model.save_pretrained(tmp_path / "hub")
    assert {"config.json", "model.safetensors"} <= {p.name for p in (tmp_path / "hub").iterdir()}
    for again in (Model.from_pretrained(str(tmp_path / "hub")), load(tmp_path / "hub")):
        assert torch.equal(again.sample(4).states, model.sample(4).states)
        assert again.config == model.config


def test_hub_folder_of_a_run_can_be_read_as_raw_weights(digits_run):
    assert Model.from_pretrained(str(digits_run), weights="raw").weights == "raw"


# Evaluation


CONTRACT = {
    "bits_per_dim", "nll_bound_nats", "reconstruction_nats", "kl_nats", "kl_per_step_nats", "iw_bound_nats",
    "frechet_distance", "frechet_reference", "features", "precision", "recall", "density", "coverage",
    "nearest_train_distance", "nearest_train_reference", "num_samples",
}  # fmt: skip


@pytest.fixture(scope="module")
def numbers(model, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOALGEN_CACHE", str(cache))
        # All of the digits, as the command line evaluates: the classifier in the cache is theirs.
        with pytest.warns(
            UserWarning, match="not the data that the model was made from .1,451 train images now, 64 then"
        ):
            return evaluate(model, load_data(DataConfig()), iw_images=40, iw_k=8, num_samples=60)


def test_evaluation_has_every_number_of_the_contract(numbers):
    assert numbers.keys() >= CONTRACT
    assert numbers["features"].startswith("classifier")
    assert numbers["num_samples"] == 60
    assert len(numbers["kl_per_step_nats"]) == 3
    values = [numbers[k] for k in CONTRACT - {"features", "kl_per_step_nats"}] + numbers["kl_per_step_nats"]
    assert all(math.isfinite(v) for v in values)


def test_numbers_of_an_evaluation_agree_with_each_other(numbers):
    assert numbers["nll_bound_nats"] == pytest.approx(numbers["reconstruction_nats"] + numbers["kl_nats"])
    assert numbers["kl_nats"] == pytest.approx(sum(numbers["kl_per_step_nats"]))
    assert numbers["bits_per_dim"] == pytest.approx(numbers["nll_bound_nats"] / (64 * math.log(2)))
    assert numbers["iw_bound_nats"] <= numbers["nll_bound_nats_on_iw_images"]


def test_hardly_trained_model_scores_worse_than_held_out_images(numbers):
    assert numbers["frechet_distance"] > 2 * numbers["frechet_reference"] > 0
    assert numbers["nearest_train_distance"] > 0
    assert 0.05 < numbers["nearest_train_reference"] < 0.3
    for key in ("recall", "coverage"):
        assert 0 <= numbers[key] < numbers[f"{key}_reference"] <= 1
    assert 0 <= numbers["precision"] <= 1


def test_evaluation_on_images_of_other_levels_is_refused(model, tmp_path):
    data = load_data(DataConfig(data=str(write_images(tmp_path / "images", 40))))
    with pytest.raises(GoalgenError, match="17 grey levels, the data have 256"):
        evaluate(model, data)


@pytest.mark.parametrize(("option", "message"), [("num_samples", "num-samples"), ("iw_images", "iw-images")])
def test_evaluation_of_too_little_is_refused(model, digits, option, message):
    with pytest.raises(GoalgenError, match=message):
        evaluate(model, digits, **{option: -1})
