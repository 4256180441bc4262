"""How agents learn in a world through which no gradient passes: functions that any family calls.

(a) The closed form of the best policy made amortised: candidates are drawn at every visited state, weighed by what they are
worth, and the GC-agent's network is fitted to them (:func:`learn_improved`; MPO, Abdolmaleki et al. 2018; expert iteration,
Anthony et al. 2017). (b) The policy gradient on the soft return (:func:`collect`, :func:`policy_gradient`; PPO, Schulman et al.
2017; leave-one-out baselines, Kool et al. 2019). Both need the next states and what these are worth, and nothing else.
"""

from goalgen.blackbox.gradient import Episodes, collect, policy_gradient
from goalgen.blackbox.judging import Judge, fit_values
from goalgen.blackbox.search import (
    Found,
    Proposer,
    Search,
    draw_search,
    improve,
    learn_improved,
    look_for_better,
    mixture_log_prob,
)

__all__ = [
    "Episodes",
    "Found",
    "Judge",
    "Proposer",
    "Search",
    "collect",
    "draw_search",
    "fit_values",
    "improve",
    "learn_improved",
    "look_for_better",
    "mixture_log_prob",
    "policy_gradient",
]
