"""The rules of a fleet's epochs, from its settings: with gamma as it is set, or tuned for the graph of each epoch."""

import logging

import numpy as np

from coordinator.gossip import Gamma, Rules, fixed, graph_of_fleet
from coordinator.gossip_settings import AUTO, GossipSettings
from coordinator.settings import Settings
from protocol.errors import ConfigurationError
from protocol.manifest import FULL, Manifest
from sparse.codecs import parse_codec
from sparse.gossip import Compressor, Weights, metropolis_hastings, tune

log = logging.getLogger("coordinator")

# Of the vectors that gamma is tried on, and of the exchanges: what a codec keeps of Gaussian noise does not depend on
# the length, and a fleet waits for the choice. Of larger fleets fewer exchanges, so that it takes seconds.
VALUES = 200
MOST_EXCHANGES, FEWEST_EXCHANGES, STEPS = 100, 25, 800
_LAYOUT = bytes(8)


def rules_of(settings: Settings) -> Rules:
    """Raises ConfigurationError where the file of links is amiss."""
    gossip = settings.gossip
    gamma = tuned(gossip) if gossip.gamma == AUTO else fixed(float(gossip.gamma))
    return Rules(
        topology=gossip.topology or "",
        links=gossip.links_text(),
        codec=gossip.codec,
        gamma=gamma,
        local_steps=settings.training.local_steps,
        gossip_rounds=gossip.gossip_rounds,
        first=settings.rounds.devices,
        minimum=gossip.minimum,
        dead_after_s=gossip.dead_after_s,
        target=gossip.target,
        first_phase=gossip.first_phase,
        seed=gossip.seed,
        algorithm=gossip.algorithm,
        patience_s=gossip.patience_s,
    )


def check_first(rules: Rules) -> None:
    """Raises ConfigurationError where no gamma works for the first epoch's graph: a fleet that can never agree is
    refused before it begins. Of a file of links, who is there decides."""
    if not rules.links and rules.algorithm == "choco":
        names = tuple(str(i) for i in range(rules.first))
        try:
            rules.gamma(metropolis_hastings(graph_of_fleet(rules, names, 1)))
        except ValueError as error:
            raise ConfigurationError(f"gossip.{error}") from None


def tuned(gossip: GossipSettings) -> Gamma:
    """The authors' choice (sparse/gossip/gamma.py), the same for the same graph, and made once for each."""
    known: dict[bytes, float] = {}
    codec = Compressor(parse_codec(gossip.codec), _LAYOUT, [(VALUES,)])

    def choose(weights: Weights) -> float:
        key = weights.tobytes()
        if key not in known:
            exchanges = max(FEWEST_EXCHANGES, min(MOST_EXCHANGES, STEPS // len(weights)))
            found = tune(weights, codec, VALUES, np.random.default_rng(gossip.seed), exchanges)
            left = min(trial.error for trial in found.trials)
            said = (gossip.codec, len(weights), found.gamma, exchanges, left)
            log.info("gamma codec=%s devices=%d gamma=%.4g exchanges=%d distance_left=%.2g", *said)
            known[key] = found.gamma
        return known[key]

    return choose


def check_bundle(settings: Settings, manifest: Manifest) -> None:
    """Raises ConfigurationError where a bundle's models cannot be averaged by neighbours."""
    if not settings.gossip.on:
        return
    if manifest.mask is not None:
        raise ConfigurationError(
            "gossip: this bundle's model is pruned, and what devices exchange would not keep its mask; export it "
            "without a mask, or leave [gossip] out"
        )
    if settings.tiers.select != "off" and any(variant.keep for variant in manifest.variants):
        raise ConfigurationError(
            f"gossip: this bundle has width tiers, and neighbours average whole models ({FULL}); set tiers.select = "
            '"off", or leave [gossip] out'
        )
