"""Muon: what it moves, and by how much."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_agents
from torch import nn

from goalgen.config import TrainingConfig
from goalgen.errors import GoalgenError
from goalgen.families import make
from goalgen.networks import layer_weights
from goalgen.settings import complete, configure
from goalgen.training.checkpoints import Progress, load_checkpoint, save_checkpoint
from goalgen.training.muon import Muon, orthogonal
from goalgen.training.optimiser import make_optimizer


@pytest.fixture
def family():
    torch.manual_seed(0)
    settings = {"environment": "code:1+bridge:2", "network": "unet", "width": 8, "code_size": 4, "code_modes": 2}
    return make(complete(configure(**settings, data="digits")), (1, 8, 8), 17)


def stepped(optimizer, parameters, seed=0):
    """One step with gradients of noise."""
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 8, 30), (1, 30, 8), (3, 16, 40), (2, 1, 5), (2, 5, 1)])
def test_orthogonal_keeps_directions_and_brings_singular_values_near_to_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    turned = u.mT @ orthogonal(x) @ vt.mT
    values = turned.diagonal(dim1=-2, dim2=-1)
    kept = s > 0.05 * s.max()  # nearly nothing takes more rounds
    assert ((values > 0.6) & (values < 1.3))[kept].all()
    torch.testing.assert_close(turned, torch.diag_embed(values), rtol=0, atol=1e-4)


def test_orthogonal_of_nothing_is_nothing():
    assert (orthogonal(torch.zeros(2, 4, 6)) == 0).all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
def test_matrices_move_as_with_torchs_own():
    generator = torch.Generator().manual_seed(2)
    mine = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((12, 30), (12, 30), (30, 12))]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    given = {"lr": 0.02, "weight_decay": 0.1}
    ours = Muon([{"params": mine}], mine, **given)
    other = torch.optim.Muon(theirs, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw", **given)
    for seed in range(5):
        before = [p.detach().clone() for p in mine]
        stepped(ours, mine, seed)
        stepped(other, theirs, seed)
        for a, b, old in zip(mine, theirs, before, strict=True):
            assert (a - b).norm() < 0.05 * (a - old).norm() * (seed + 1)  # theirs is worked out in bfloat16


def test_what_is_no_weight_of_a_layer_moves_as_with_adamw(family):
    twin = copy.deepcopy(family)
    layers = {name for name, p in family.named_parameters() if any(p is layer for layer in family.layers())}
    moved = []
    for agents, kind in ((family, "muon"), (twin, "adamw")):
        optimizer = make_optimizer(agents, TrainingConfig(optimizer=kind, learning_rate=0.01))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"]
        for seed in range(3):
            stepped(optimizer, [p for p in agents.parameters() if p.requires_grad], seed)
        moved.append({name: p.detach() for name, p in agents.named_parameters() if p.requires_grad})
    same = {name for name, value in moved[0].items() if torch.equal(value, moved[1][name])}
    assert same == moved[0].keys() - layers
    assert layers
    assert same


def test_a_layer_without_a_gradient_stays_where_it_is():
    one, other = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    optimizer = Muon([{"params": [one, other]}], [one, other], lr=0.1)
    stepped(optimizer, [one])
    assert not torch.equal(one, torch.ones(3, 4))
    assert torch.equal(other, torch.ones(3, 4))


def test_a_learning_rate_of_its_own_is_adamws(monkeypatch):
    family = tiny_agents("value")
    layers = family.layers()
    own = layers[:1]
    monkeypatch.setattr(family, "rates", lambda: {own[0]: 0.5})
    groups = make_optimizer(family, TrainingConfig(optimizer="muon")).param_groups
    orthogonal_ones = [p for group in groups if group["orthogonal"] for p in group["params"]]
    assert {id(p) for p in orthogonal_ones} == {id(p) for p in layers} - {id(own[0])}


def test_a_checkpoint_of_the_other_optimiser_is_refused(family, tmp_path):
    optimizer = make_optimizer(family, TrainingConfig(optimizer="muon"))
    stepped(optimizer, [p for p in family.parameters() if p.requires_grad])
    save_checkpoint(tmp_path, family, copy.deepcopy(family), optimizer, Progress(), keep=1)
    path = tmp_path / "checkpoints" / "step-00000000"
    load_checkpoint(path, family, copy.deepcopy(family), make_optimizer(family, TrainingConfig(optimizer="muon")))
    with pytest.raises(GoalgenError, match=r"does not fit this model.*momentum"):
        load_checkpoint(path, family, copy.deepcopy(family), make_optimizer(family, TrainingConfig()))


def test_a_policy_over_codes_is_adamws_and_what_reads_and_draws_them_is_not(family):
    names = {id(p): name for name, p in family.named_parameters()}
    moved = {names[id(p)] for p in family.layers()}
    weights = {names[id(p)] for p in layer_weights(family)}
    assert weights - moved == {f"stages.0.s_agent.{layer}.weight" for layer in ("enter", "inner", "outer")}
    assert {name.split(".")[2] for name in moved} >= {"gc_agent", "s_agent"}
