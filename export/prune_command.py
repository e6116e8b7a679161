"""The options of `fleet-export` that prune, and what it prints of them."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from protocol.bundle import read_mask
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import Manifest
from sparse.distributions import Distribution
from sparse.masks import Mask, sparsity_of, unpack_mask

if TYPE_CHECKING:
    from export.spec import TrainingSpec


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds them to the export's own."""
    parser.add_argument(
        "--keep-channels",
        type=float,
        metavar="SHARE",
        help="remove the least important channels before the export, so that this share of each group is left and "
        "every step is cheaper, as in 0.5",
    )
    parser.add_argument(
        "--leave-whole",
        action="append",
        default=[],
        metavar="PATTERN",
        help="with --keep-channels, remove none from groups of these names, as in 'features.0*'; may be repeated",
    )
    parser.add_argument(
        "--sparsity",
        type=float,
        metavar="SHARE",
        help="set this share of the prunable weights to zero, the smallest ones, and send the mask along, as in 0.9",
    )
    parser.add_argument(
        "--sparsity-distribution",
        choices=get_args(Distribution),
        metavar="NAME",
        help="of --sparsity over the tensors: global (one threshold, default), uniform, or erk (by their shapes)",
    )


def pruned(
    spec: "TrainingSpec", options: argparse.Namespace, report: Callable[[str], None]
) -> "tuple[TrainingSpec, Mask | None, dict[str, Any]]":
    """The spec as the options have it pruned, its mask if it has one, and facts of what was removed.

    Raises ConfigurationError naming the option at fault.
    """
    if options.leave_whole and options.keep_channels is None:
        raise ConfigurationError("--leave-whole: says nothing without --keep-channels; give that too, as 0.5")
    if options.sparsity_distribution and options.sparsity is None:
        raise ConfigurationError("--sparsity-distribution: says nothing without --sparsity; give that too, as 0.9")
    if options.keep_channels is None and options.sparsity is None:
        return spec, None, {}
    # It brings torch-pruning.
    from export.pruning import cost_of, shrunk, sparsified

    mask, facts = None, {}
    if options.keep_channels is not None:
        report("removing channels")
        before = cost_of(spec)
        spec = shrunk(spec, options.keep_channels, options.leave_whole)
        facts["channels"] = {
            "keep": options.keep_channels,
            "before": asdict(before),
            "after": asdict(cost_of(spec)),
        }
    if options.sparsity is not None:
        report("choosing which weights to keep")
        spec, mask = sparsified(spec, options.sparsity, options.sparsity_distribution or "global")
    return spec, mask, facts


def sparsity_facts(root: Path, manifest: Manifest) -> dict[str, Any]:
    """What the bundle's mask leaves, by both denominators; nothing where it has none. Raises BundleError."""
    data = read_mask(root, manifest)
    if data is None:
        return {}
    try:
        mask = unpack_mask(data, manifest.parameters)
    except ValueError as error:
        raise BundleError(f"{manifest.mask}: {error}; export the bundle again") from None
    prunable = np.zeros_like(mask)
    for tensor in manifest.tensors:
        if tensor.kind == "parameter":
            prunable[tensor.offset : tensor.offset + tensor.size] = tensor.prunable
    return {
        "kept": int(np.count_nonzero(mask)),
        "sparsity": sparsity_of(mask, prunable),
        "sparsity_of_all": sparsity_of(mask, np.ones_like(mask)),
    }


def rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts of `pruned` and `sparsity_facts` as rows of a table."""
    if "channels" in facts:
        before, after = facts["channels"]["before"], facts["channels"]["after"]
        yield "channels kept", f"{facts['channels']['keep']:g} of each group"
        for key, what in (("parameters", "parameters"), ("multiply_adds", "multiply-adds of an example, forward")):
            yield what, f"{before[key]:,} before, {after[key]:,} after ({after[key] / before[key]:.1%})"
    if "kept" in facts:
        yield (
            "sparsity",
            (
                f"{facts['sparsity']:.2%} of the prunable, {facts['sparsity_of_all']:.2%} of all parameters; "
                f"{facts['kept']:,} are kept"
            ),
        )
