"""mindgap models: the networks that come with the package."""

from __future__ import annotations

import importlib.metadata
import re
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
    """List the networks that come with mindgap; with a name, print what to expect of every subset, and a few facts.

    `mindgap segment` uses the network "box" where --model names none. Weights are checked against their SHA-256.

    Attributes:
        name: Of a network, such as box.
        card: Print its whole model card, too: intended use, known failures, how it was made and judged.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    card: bool = False


def run(words: Sequence[str]) -> int:
    """Run the verb."""
    settings = parse(Models, words, verb="models")
    from mindgap.errors import SettingError
    from mindgap.inference.shipped import DEFAULT, shipped
    from mindgap.networks.card import open_model

    found = shipped()
    if settings.name is None and settings.card:
        raise SettingError("--card says nothing without the name of a network, such as `mindgap models box --card`.")
    if settings.name is None:
        print_list(list(found.values()), DEFAULT)
        return 0
    if settings.name not in found:
        raise SettingError(f"there is no network {settings.name!r} in the box: {', '.join(found) or 'it is empty'}.")
    network = found[settings.name]
    open_model(network.folder)  # refuses weights that are not those of the card
    print_subsets(network)
    print_facts(network)
    if settings.card:
        say("")
        say(network.text.rstrip())
    else:
        say(f"known failures, what it was trained on and how it was judged: mindgap models {network.name} --card")
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
    say("prints every subset, with --card the model card. Research use only, not a medical device.")


def print_subsets(network: Shipped) -> None:
    """Print what to expect of every subset."""
    from mindgap.regions import REGIONS
    from mindgap.sequences import SUBSETS, format_subset

    rows = []
    for subset in map(format_subset, SUBSETS):
        dice = network.dice(subset)
        if dice["mean"].n:
            rows.append([subset, str(dice["mean"].n), *(_interval(dice[str(region)]) for region in REGIONS)])
    say("Dice to expect, over n cases the network (or its member) did not learn from, 95 % interval")
    print_table(["sequences", "n", *(f"{region} Dice" for region in REGIONS)], rows)
    say("")


def print_facts(network: Shipped) -> None:
    """Print what the network is, in a few lines."""
    card, arguments = network.card, network.card.arguments
    built = card.architecture if "count" not in arguments else f"{arguments['count']} x {arguments['architecture']}"
    spacing = card.preparation["spacing_mm"]
    grid = f"{spacing:g} mm" if spacing else "that of the files"
    licence = importlib.metadata.metadata("mindgap").json.get("license_expression", "not said")
    facts = {
        "network": f"{network.name}: {built}, {network.bytes / 1e6:.1f} MB",
        "takes": f"any of {network.complete}" if card.any_subset else network.complete,
        "works at": f"{grid}, {'the whole brain at once' if card.coverage == 'whole' else 'tile by tile'}",
        "decides by": "the highest expected Dice" if card.decision == "expected_dice" else "the most probable class",
        "trained on": said_of("Data", network.text) or "not said",
        "licence": f"{licence}, as the package; research use only, not a medical device",
        "weights": f"{network.folder / 'model.safetensors'}, sha256 {network.sha256}",
    }
    for name, fact in facts.items():
        say(f"{name:<12}{fact}")


def said_of(point: str, card: str) -> str:
    """The first clause of a point of a model card, on one line; empty where it has none."""
    found = re.search(rf"^- \*\*{point}\*\*: (.*?)(?:, used|\. |\n- |\n\n)", card, flags=re.MULTILINE | re.DOTALL)
    return "" if found is None else " ".join(found[1].split())


def _interval(value: Interval) -> str:
    return value.text(2) if value.n else "not measured"
