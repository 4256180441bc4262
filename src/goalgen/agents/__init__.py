"""The two agents, and the pair of them in an environment."""

from goalgen.agents.bridge import BridgeGCAgent, BridgeSAgent, FixedBridgeGCAgent, LearnedBridgeGCAgent
from goalgen.agents.gc_agent import (
    GCAgent,
    GreedyGCAgent,
    LookaheadGCAgent,
    PosteriorGCAgent,
    Potential,
    ValueGCAgent,
    View,
    gc_agent_kinds,
    make_gc_agent,
    register_gc_agent,
)
from goalgen.agents.latent import EncoderGCAgent, LatentSAgent
from goalgen.agents.pair import Agents, environment_of, make_agents
from goalgen.agents.s_agent import Decision, ProposalsSAgent, SAgent

__all__ = [
    "Agents",
    "BridgeGCAgent",
    "BridgeSAgent",
    "Decision",
    "EncoderGCAgent",
    "FixedBridgeGCAgent",
    "GCAgent",
    "GreedyGCAgent",
    "LatentSAgent",
    "LearnedBridgeGCAgent",
    "LookaheadGCAgent",
    "PosteriorGCAgent",
    "Potential",
    "ProposalsSAgent",
    "SAgent",
    "ValueGCAgent",
    "View",
    "environment_of",
    "gc_agent_kinds",
    "make_agents",
    "make_gc_agent",
    "register_gc_agent",
]
