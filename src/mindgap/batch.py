"""The waist: what goes into every network (Batch), and what comes out (Output). Axes are named as in `shapes`."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mindgap.regions import Head
from mindgap.sequences import Subset
from mindgap.shapes import BACKGROUND, Bool, Float, Integer, Shaped


@dataclass(frozen=True, eq=False)
class Batch:
    """Cases on their way into a network.

    ``available`` and ``present`` stay in host memory: they steer which parts run, and reading a flag from a
    GPU would make every step wait for it.

    Attributes:
        image: Prepared intensities. Where ``available`` is False the content has no meaning (tests fill it
            with NaN).
        sequences: What the columns of ``image``, ``available`` and ``present`` are, in canonical order.
        available: What the cases have on disk.
        present: What a network may use now; never more than ``available``.
        target: Reference classes (0 background, 1 ET, 2 NCR, 3 ED), or None at prediction.
        case_ids: One name per row.
        chance: A number in [0, 1) per row, drawn with the crops, for what a method decides; empty at prediction.
    """

    image: Float[Tensor, "B J i j k"]
    sequences: Subset
    available: Bool[Tensor, "B J"]
    present: Bool[Tensor, "B J"]
    target: Integer[Tensor, "B i j k"] | None
    case_ids: tuple[str, ...]
    chance: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if bool((self.present & ~self.available).any()):
            raise ValueError("a batch may not present a sequence that is not available")

    def select(self, subset: Subset) -> Batch:
        """The same cases with only the columns of these sequences.

        Raises:
            KeyError: A sequence of ``subset`` has no column.
        """
        if subset == self.sequences:
            return self
        missing = [str(sequence) for sequence in subset if sequence not in self.sequences]
        if missing:
            raise KeyError(f"the batch has no column for {missing}: its columns are {self.sequences}")
        columns = [self.sequences.index(sequence) for sequence in subset]
        return replace(
            self,
            image=self.image[:, columns],
            sequences=subset,
            available=self.available[:, columns],
            present=self.present[:, columns],
        )

    def rows(self, keep: Bool[Tensor, " B"]) -> Batch:
        """Only the cases where ``keep`` (in host memory) is True."""
        if bool(keep.all()):
            return self
        index = keep.nonzero().flatten()
        return replace(
            self,
            image=self.image[index],
            available=self.available[index],
            present=self.present[index],
            target=None if self.target is None else self.target[index],
            case_ids=tuple(self.case_ids[row] for row in index.tolist()),
            chance=tuple(self.chance[row] for row in index.tolist()) if self.chance else (),
        )

    def split(self, count: int) -> list[Batch]:
        """The same cases in ``count`` batches of equal size, in order."""
        if count == 1:
            return [self]
        size = len(self.case_ids) // count
        parts = [slice(k * size, (k + 1) * size) for k in range(count)]
        return [
            replace(
                self,
                image=self.image[part],
                available=self.available[part],
                present=self.present[part],
                target=None if self.target is None else self.target[part],
                case_ids=self.case_ids[part],
                chance=self.chance[part],
            )
            for part in parts
        ]

    def show(self, subset: Subset) -> Batch:
        """The same cases, of which a network may use only these sequences."""
        shown = torch.tensor([sequence in subset for sequence in self.sequences])
        return replace(self, present=self.available & shown)

    def drop(self, full_share: float, single_share: float = 0.0) -> Batch:
        """The same cases with random sequences absent, as ``chance`` decides; none loses all it has.

        Args:
            full_share: Share of rows that keep everything.
            single_share: Share of rows that keep one sequence, each alike; the rest take one of the non-empty subsets
                of what is available, each alike.
        """
        rest = 1 - full_share - single_share
        rows = []
        for has, chance in zip(self.available.tolist(), self.chance, strict=True):
            own = [choice for choice in subsets_of(len(has)) if all(map(operator.le, choice, has))]
            if chance < full_share:
                rows.append(tuple(has))
            elif chance < full_share + single_share or rest <= 0:
                singles = [choice for choice in own if sum(choice) == 1]
                rows.append(_at(singles, (chance - full_share) / single_share) if single_share > 0 else tuple(has))
            else:
                rows.append(_at(own, (chance - full_share - single_share) / rest))
        return replace(self, present=torch.tensor(rows, dtype=torch.bool).reshape(self.available.shape))


def _at(choices: Sequence[tuple[bool, ...]], share: float) -> tuple[bool, ...]:
    """The choice at a place between 0 (the first) and 1."""
    return choices[min(int(share * len(choices)), len(choices) - 1)]


@dataclass(frozen=True, eq=False)
class Output:
    """What a network says about a batch.

    Attributes:
        logits: Scores of the classes, at the resolution of the input.
        features: Named intermediate maps that methods consume ("feature", "bottleneck").
        latents: One map per sequence, in the network's order; empty where there are none.
        head: How logits turn into probabilities: "softmax" over disjoint classes (0 background, 1 ET, 2 NCR, 3 ED), or
            "sigmoid" of each tumour class by itself (channels ET, NCR, ED; SMU-Net's release has ED, NET, ET).
    """

    logits: Float[Tensor, "B C i j k"]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    latents: tuple[Float[Tensor, "B L i j k"], ...] = ()
    head: Head = "softmax"

    def region_probabilities(self) -> Float[Tensor, "B R i j k"]:
        r"""Probabilities of WT, TC and ET, nested by construction, in float32.

        Softmax: $P(ET)=p_1$, $P(TC)=p_1+p_2$, $P(WT)=p_1+p_2+p_3$. Sigmoid: $P(ET)=s_1$, $P(TC)=\max(s_1,s_2)$,
        $P(WT)=\max(s_1,s_2,s_3)$, since the sigmoids of exclusive classes do not add up: a region is likelier than not
        where one of its classes is. Inference, confidence and calibration use only these, whatever the head.
        """
        if self.head == "sigmoid":
            et, ncr, ed = torch.sigmoid(self.logits.float()).unbind(1)
            tc = torch.maximum(et, ncr)
            return torch.stack([torch.maximum(tc, ed), tc, et], dim=1)
        p = torch.softmax(self.logits.float(), dim=1)
        return torch.stack([p[:, 1] + p[:, 2] + p[:, 3], p[:, 1] + p[:, 2], p[:, 1]], dim=1).clamp_(0.0, 1.0)


def subsets_of(count: int) -> list[tuple[bool, ...]]:
    """Every non-empty choice among ``count`` columns."""
    return [choice for choice in itertools.product((False, True), repeat=count) if any(choice)]


def brain_of(image: Shaped[Tensor, "*axes"]) -> Shaped[Tensor, "*axes"]:
    """Brain mask of prepared images (any shape): voxels above :data:`BACKGROUND`; NaN is not brain."""
    return image > BACKGROUND


def fill_absent(image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Float[Tensor, "B J i j k"]:
    """Replace absent sequences by background, whatever stands there (also NaN, which a product would keep)."""
    if bool(present.all()):
        return image
    shown = present.to(image.device, non_blocking=True)[:, :, None, None, None]
    return torch.where(shown, image, torch.full_like(image, BACKGROUND))
