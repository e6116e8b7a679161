"""A device that learns from its neighbours: what it decides, what it keeps, and how it talks."""

from edge_agent.gossip.node import Node, Shape, step

__all__ = ["Node", "Shape", "step"]
