"""mindgap models: the networks that come with the package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from mindgap.cli.terminal import parse, print_table, say

if TYPE_CHECKING:
    from mindgap.evaluation.statistics import Interval
    from mindgap.inference.shipped import Shipped


@dataclass(frozen=True)
class Models:
    """List the networks that come with mindgap; with a name, print its card and what to expect of every subset.

    `mindgap segment` uses the network "box" where --model names none. Weights are checked against their SHA-256.

    Attributes:
        name: Of a network, such as box.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Models, words, verb="models")
    from mindgap.errors import SettingError
    from mindgap.inference.shipped import DEFAULT, shipped
    from mindgap.networks.card import open_model

    found = shipped()
    if settings.name is None:
        print_list(list(found.values()), DEFAULT)
        return 0
    if settings.name not in found:
        raise SettingError(f"there is no network {settings.name!r} in the box: {', '.join(found) or 'it is empty'}.")
    network = found[settings.name]
    open_model(network.folder)  # refuses weights that are not those of the card
    say(network.text.rstrip())
    say("")
    print_subsets(network)
    say(f"weights {network.folder / 'model.safetensors'}, {network.bytes / 1e6:.1f} MB, sha256 {network.sha256}")
    return 0


def print_list(networks: Sequence[Shipped], default: str) -> None:
    """Print a row per network."""
    rows = []
    for network in networks:
        mean = network.dice(network.complete)["mean"]
        name = f"{network.name} (default)" if network.name == default else network.name
        takes = f"any of {network.complete}" if network.card.any_subset else network.complete
        spacing = network.card.preparation["spacing_mm"]
        rows.append([name, takes, f"{spacing:g} mm" if spacing else "native", f"{network.bytes / 1e6:.1f} MB",
                     _interval(mean), network.sha256[:12]])  # fmt: skip
    print_table(["network", "takes", "works at", "size", "mean Dice, all sequences", "sha256"], rows)
    say("Dice: WT, TC and ET averaged, over cases a network did not learn from, 95 % interval. mindgap models NAME")
    say("prints the card and every subset. Research use only, not a medical device.")


def print_subsets(network: Shipped) -> None:
    """Print what to expect of every subset."""
    from mindgap.regions import REGIONS
    from mindgap.sequences import SUBSETS, format_subset

    rows = []
    for subset in map(format_subset, SUBSETS):
        dice = network.dice(subset)
        if dice["mean"].n:
            rows.append([subset, str(dice["mean"].n), *(_interval(dice[str(region)]) for region in REGIONS)])
    print_table(["sequences", "n", *(f"{region} Dice" for region in REGIONS)], rows)


def _interval(value: Interval) -> str:
    return value.text(2) if value.n else "not measured"
