"""A picture of how the proposals of a model are used."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from goalgen.families.proposals.revival import dead_proposals
from goalgen.figures import BLUE, HEAT, VERMILION, heat_figure


def draw_usage(usage: Tensor, revive_below: float) -> Figure:
    """How often each proposal is chosen at each step; ``usage`` is (H, cells, A), rows summing to one."""
    horizon, cells, actions = usage.shape
    figure, left, right = heat_figure(horizon)
    share = 100 * usage.double().mean(1)
    ordered = share[:, share.mean(0).argsort(descending=True)].numpy()
    image = left.imshow(ordered, cmap=HEAT, vmin=0, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=left, pad=0.02, label="share of the choices at a step (%)")
    title = "Proposals chosen by the GC-agent" + (f", mean of {cells} cells" if cells > 1 else "")
    left.set(title=title, xlabel="proposal, the most used over all steps first")
    entropy, most = torch.special.entr(usage.double()).sum(-1).mean(1).tolist(), float(np.log(actions))
    right.barh(np.arange(horizon), entropy, color=BLUE)
    for h, nats in enumerate(entropy):
        right.text(1.1 * most, h, f"{np.exp(nats):.1f}", fontsize=min(9, 540 / horizon), va="center")
    right.axvline(most, color=VERMILION, ls="--", lw=2)
    right.set_xlim(0, 1.3 * most)
    right.set(title=f"Entropy (log {actions} = {most:.2f})", xlabel="nats a choice; right: perplexity")
    dead, limit = len(dead_proposals(usage, revive_below)), f"{100 * revive_below:g} % of an equal share"
    figure.suptitle(f"Use of the proposals: {dead} of {actions} dead (chosen less than {limit})", fontsize=13)
    return figure
