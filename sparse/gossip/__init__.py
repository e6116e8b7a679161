"""Fleets without a hub, as pure rules: graphs and weights, exact and compressed gossip, relayed sums, consensus."""

from sparse.gossip.choco import Choco, Compressor
from sparse.gossip.consensus import Control, Effort
from sparse.gossip.gamma import Tuned, tune
from sparse.gossip.graph import Graph, parse_edges, parse_topology, spanning_tree
from sparse.gossip.quasi_global import QuasiGlobal
from sparse.gossip.relay import Relay, Relayed
from sparse.gossip.weights import Weights, metropolis_hastings, spectral_gap

__all__ = [
    "Choco",
    "Compressor",
    "Control",
    "Effort",
    "Graph",
    "QuasiGlobal",
    "Relay",
    "Relayed",
    "Tuned",
    "Weights",
    "metropolis_hastings",
    "parse_edges",
    "parse_topology",
    "spanning_tree",
    "spectral_gap",
    "tune",
]
