"""Every network: shapes, what it is told, what it sees."""

from __future__ import annotations

import pytest
import torch

from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.networks import ImageHead, NetworkSpec, default_patch, make_torso, make_trunk
from goalgen.settings import configure
from goalgen.size import count_operations, count_parameters

KINDS = ["mlp", "unet", "transformer"]
SHAPES = [(1, 8, 8), (3, 8, 12), (1, 28, 28)]


def spec(kind: str, shape: tuple[int, int, int] = (1, 8, 8), **changes) -> NetworkSpec:
    values = {"horizon": 4, "width": 16, "depth": 2, "head_width": 12, "dropout": 0.0, "patch": 2} | changes
    return NetworkSpec(kind, shape, **values)


def perturb(module: torch.nn.Module) -> torch.nn.Module:
    """Move every weight off its initial value: some parts begin at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module


def images(shape: tuple[int, int, int], count: int = 3) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_features_draw_images_of_any_shape(kind, shape):
    network = spec(kind, shape)
    torso = make_torso(network)
    features, context = torso(torch.tensor([1]), images(shape))
    assert features.shape[:2] == (3, 12)
    assert context.shape == (3, torso.num_context)
    head = ImageHead(torso, network, 5, 1.0)
    assert head(torso, torch.tensor([1]), features).shape == (3, 5, *shape)


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_channels_comes_in(kind):
    torso = make_torso(spec(kind), 3)
    assert torso(torch.tensor([0]), images((3, 8, 8)))[0].shape[:2] == (3, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_step_and_label_are_told(kind):
    torso = perturb(make_torso(spec(kind, num_labels=3)))
    picture, label = images((1, 8, 8)), torch.tensor([0, 1, 2])
    base = torso(torch.tensor([0]), picture, label)[0]
    assert (torso(torch.tensor([1]), picture, label)[0] - base).abs().amax((1, 2)).min() > 1e-5
    change = (torso(torch.tensor([0]), picture, torch.tensor([0, 1, 0]))[0] - base).abs().amax((1, 2))
    assert change[:2].max() == 0
    assert change[2] > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_a_batch_may_differ(kind):
    torso = perturb(make_torso(spec(kind))).double()
    picture = images((1, 8, 8)).double()
    together = torso(torch.tensor([2, 0, 3]), picture)[0]
    for row, h in enumerate((2, 0, 3)):
        torch.testing.assert_close(together[row], torso(torch.tensor([h]), picture[row : row + 1])[0][0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_feature_sees_the_whole_canvas(kind):
    torso = perturb(make_torso(spec(kind)))
    picture = images((1, 8, 8), 1).requires_grad_()
    features, _ = torso(torch.tensor([0]), picture)
    features[0, :, 0].sum().backward()
    assert (picture.grad.abs() > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_enters_in_the_middle_comes_out(kind):
    torso = make_torso(spec(kind))
    middle = torso.trunk(torch.tensor([0]), images((1, 8, 8)))
    assert middle.tokens.shape == (3, torso.trunk.positions, torso.trunk.width)
    plain, _ = torso.top(middle)
    entered, _ = torso.top(middle, torch.randn_like(middle.tokens))
    assert (plain - entered).abs().amax((1, 2)).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_alone(kind):
    torso = make_torso(spec(kind, dropout=0.5))
    picture, h = images((1, 8, 8)), torch.tensor([0])
    torso.eval()
    assert torch.equal(torso(h, picture)[0], torso(h, picture)[0])
    torso.train()
    assert not torch.equal(torso(h, picture)[0], torso(h, picture)[0])


@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_patch_must_divide_the_image(kind):
    with pytest.raises(GoalgenError, match="--patch 3 does not divide an image of 8x8"):
        make_torso(spec(kind, patch=3))


def test_unknown_network_is_refused():
    with pytest.raises(GoalgenError, match="there are: mlp, transformer, unet"):
        make_trunk(spec("resnet"), 1, 1)


@pytest.mark.parametrize(
    ("side", "patch"),
    [((8, 8), 1), ((16, 16), 1), ((28, 28), 2), ((32, 32), 2), ((24, 48), 3), ((64, 64), 4), ((45, 37), 1)],
)
def test_a_patch_that_nobody_chose_divides_the_image_into_few_positions(side, patch):
    assert default_patch(*side) == patch


def test_sizes_that_nobody_chose_are_those_of_the_network():
    """No width of an mlp for a U-Net: at 32x32 it was trained at 3.5 images/s."""
    family = make(configure(environment="bridge", network="unet"), (3, 32, 32), 256)
    assert family.s_agent.torso.trunk.input.out_channels == 32
    assert count_operations(family)["train"] < 200e6
    assert make(configure(environment="bridge"), (1, 8, 8), 17).s_agent.torso.trunk.input.out_features == 256


# Size


@pytest.mark.parametrize("environment", ["proposals", "latent", "bridge"])
@pytest.mark.parametrize("kind", KINDS)
def test_size_is_counted(environment, kind):
    settings = {"environment": environment, "network": kind, "width": 16, "depth": 2, "head_width": 8, "patch": 2}
    agents = make(configure(**settings, horizon=3), (1, 8, 8), 17)
    weights, operations = count_parameters(agents), count_operations(agents)
    assert weights["generative"] + weights["gc_agent"] == sum(p.numel() for p in agents.parameters())
    assert operations["sample"] > 0
    assert operations["train"] > 0
    deep = make(configure(**settings, horizon=6), (1, 8, 8), 17)
    assert count_operations(deep)["sample"] == 2 * operations["sample"]
    assert (count_operations(deep)["train"] <= operations["train"]) == (environment == "bridge")


def test_operations_of_matrix_products_are_known():
    """An mlp without blocks: pixels to width, width to features, features to pixels, twice that many operations a step."""
    config = configure(environment="bridge", gc_agent="fixed", horizon=2, width=16, depth=0, head_width=8)
    likelihood = 2 * (16 * 64 + 64 * 16)  # its network of scales looks at the one patch
    operations = count_operations(make(config, (1, 4, 4), 17))
    assert operations["sample"] == 2 * 2 * (32 * 16 + 16 * 8 + 8 * 16)
    assert operations["train"] == 2 * (32 * 16 + 16 * 8 + 8 * 16) + likelihood // 2  # one step in two is the last
