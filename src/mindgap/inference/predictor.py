"""A case in, a segmentation in the case's own grid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mindgap.data.case import Case
from mindgap.data.preparation import orient_back, prepare_case, put_back
from mindgap.data.prepared import Placement, Preparation, PreparedCase, paste
from mindgap.data.volume import Volume, volume_of_voxel_ml
from mindgap.errors import InputError, MemoryShort, SettingError
from mindgap.inference.decision import classes_from_regions, highest_expected_dice
from mindgap.inference.engines import Engine, EnginePrecision, load_engine, memory_gib
from mindgap.inference.estimate import Estimate
from mindgap.inference.tiling import Run, mirrored, pad_to, padded_shape, predict_tiled, predict_whole
from mindgap.networks.card import Decision, Trained, head_of, open_model
from mindgap.processor import available_memory_gib, detect_processor, is_short_of_memory
from mindgap.regions import Region, region_volumes_ml
from mindgap.sequences import SUBSETS, Subset, format_subset, make_subset
from mindgap.shapes import BACKGROUND, STRIDE, Bool, Float

if TYPE_CHECKING:
    from torch import nn

Coverage = Literal["auto", "tiles", "whole"]


@dataclass(frozen=True)
class Segmentation:
    """What was found in a case.

    Attributes:
        case_id: Its name.
        subset: The sequences the network looked at.
        target: Classes on the grid of the files.
        like: The image whose grid it is.
        volumes_ml: Volume of each region.
        maps: Probabilities of WT, TC, ET on the prepared crop (R i j k).
        placement: Where the crop lies.
        coverage: "tiles" or "whole", as it was computed.
        confidence: How far it can be trusted; None where that is not known.
        native: The probabilities on the grid of the files, where they were needed to decide on the mask.
    """

    case_id: str
    subset: Subset
    target: NDArray[np.uint8]
    like: Volume
    volumes_ml: Mapping[Region, float]
    maps: Float[NDArray[np.float32], "R i j k"] = field(repr=False)
    placement: Placement = field(repr=False)
    coverage: Coverage = "tiles"
    confidence: Estimate | None = None
    native: Float[NDArray[np.float32], "R x y z"] | None = field(default=None, repr=False)

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities of WT, TC, ET on the grid of the files (R x y z), made when they are first asked for."""
        return self.native if self.native is not None else put_back(self.maps, self.placement)


class Predictor:
    """A trained network with everything needed to apply it.

    Args:
        model: The network and its card.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or "int8".
        coverage: "tiles" averages half-overlapping windows of the training crop's size, as the paper's base
            does; "whole" takes the brain in one pass; "auto" does so where the card asks for it, or where the model
            folder says that it was measured to be as good, and where memory suffices, else in tiles; None does what
            the card asks for, whatever memory there is.
        engine: "torch", "openvino", or "auto" (:func:`mindgap.inference.engines.choose_engine`).
        tta: Average over the eight mirror images of the brain: eight times the work.
        decision: How probabilities become a mask; as the model's card says when None.
    """

    def __init__(
        self,
        model: Trained,
        *,
        device: str = "auto",
        precision: str = "auto",
        coverage: Coverage | None = "tiles",
        engine: str = "torch",
        tta: bool = False,
        decision: Decision | None = None,
    ) -> None:
        self.processor = detect_processor(device)
        self.model, self.card = model, model.card
        self.sha256, self.folder = model.sha256, model.folder
        self.coverage: Coverage = coverage or model.card.coverage
        self.tta = tta
        self.preparation = Preparation.from_plain(model.card.preparation)
        self.engine, self.choice, self.exported = load_engine(model, self.processor, engine=engine, precision=precision)
        self.head = head_of(model.card.architecture, model.card.arguments)
        self.decision: Decision = decision or model.card.decision
        self._fitted_gib = 0.0

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "auto",
        precision: str = "auto",
        coverage: Coverage | None = "tiles",
        engine: str = "torch",
        tta: bool = False,
        decision: Decision | None = None,
    ) -> Predictor:
        """Load a model folder."""
        return cls(
            open_model(folder),
            device=device,
            precision=precision,
            coverage=coverage,
            engine=engine,
            tta=tta,
            decision=decision,
        )

    @property
    def network(self) -> nn.Module:
        """The network itself, which an engine other than torch may not need."""
        return self.model.network

    @property
    def precision(self) -> EnginePrecision:
        """What the engine computes in."""
        return self.choice.precision

    @property
    def subsets(self) -> tuple[Subset, ...]:
        """Every subset the network takes: its own sequences, or also all subsets of them."""
        own = self.card.sequences
        return tuple(s for s in SUBSETS if set(s) <= set(own)) if self.card.any_subset else (own,)

    def check(self, subset: Subset) -> None:
        """Refuse a subset the network does not take.

        Raises:
            SettingError: It takes no such subset.
        """
        if subset in self.subsets:
            return
        own = format_subset(self.card.sequences)
        takes = f"{own} and subsets of it" if self.card.any_subset else f"{own} and no other subset"
        raise SettingError(
            f"the network in {self.folder} takes {takes}, not {format_subset(subset)}: leave the subset out, or name "
            "a model trained for it."
        )

    def serve(self, case_id: str, available: Subset, subset: Subset | None = None) -> Subset:
        """The sequences of a case that the network will look at.

        Args:
            case_id: Name for the message.
            available: What the case has.
            subset: What it has to be; None for as much as the network takes.

        Raises:
            InputError: The case lacks one that is needed.
        """
        wanted = subset or self.card.sequences
        chosen = tuple(sequence for sequence in wanted if sequence in available)
        if chosen == wanted or (subset is None and self.card.any_subset and chosen):
            return chosen
        missing = format_subset(sequence for sequence in wanted if sequence not in available)
        some = "any of " if self.card.any_subset and subset is None else ""
        raise InputError(
            case=case_id,
            expected=f"{some}{format_subset(wanted)}, which the network in {self.folder} needs",
            found=format_subset(available),
            mend=f"add {missing}, or name a model trained for {format_subset(available)} or less",
        )

    def segment(
        self, case: Case, subset: Subset | None = None, *, prepared: PreparedCase | None = None
    ) -> Segmentation:
        """Segment a case on its own grid.

        The probabilities, not labels, are resampled back; the most probable class wins, so that
        ET lies within TC within WT.

        Args:
            case: The loaded sequences.
            subset: What to look at; as much of the case as the network takes when None.
            prepared: These sequences as the network takes them, where they were prepared before.
        """
        if subset is not None:
            subset = make_subset(subset)
            self.check(subset)
        used = self.serve(case.case_id, case.sequences, subset)
        chosen = case.only(used)
        prepared = prepare_case(chosen, self.preparation) if prepared is None else prepared
        maps, coverage = self.maps(case.case_id, prepared)
        target, native = self._classes_at_home(maps, prepared.placement)
        return Segmentation(
            case_id=case.case_id,
            subset=used,
            target=target,
            like=chosen.reference,
            volumes_ml=region_volumes_ml(target, volume_of_voxel_ml(chosen.reference.affine)),
            maps=maps,
            placement=prepared.placement,
            coverage=coverage,
            native=native,
        )

    def maps(self, case_id: str, prepared: PreparedCase) -> tuple[Float[NDArray[np.float32], "R i j k"], Coverage]:
        """Probabilities and how they were computed: in tiles after all where one pass turns out not to fit.

        Args:
            case_id: Name for the message.
            prepared: The crop.

        Raises:
            MemoryShort: It does not fit as it was asked for, or not even in tiles.
        """
        coverage = self.coverage_of(prepared)  # once: computing changes how much memory is free
        try:
            return self.probabilities(prepared, coverage=coverage), coverage
        except (RuntimeError, MemoryError) as error:
            if not is_short_of_memory(error):
                raise
            if coverage == "tiles" or self.coverage != "auto":
                device = "--device cpu, or " if self.processor.device == "cuda" else ""
                helps = "a machine with more of it" if coverage == "tiles" else "--coverage tiles"
                raise MemoryShort(f"{case_id}: memory ran out while segmenting it: take {device}{helps}.") from error
        return self.probabilities(prepared, coverage="tiles"), "tiles"

    def classes(self, probabilities: Float[NDArray[np.float32], "R i j k"]) -> NDArray[np.uint8]:
        """The mask that region probabilities stand for, by the rule of the model folder and of the network's head."""
        if self.decision == "expected_dice":
            return highest_expected_dice(probabilities)
        return classes_from_regions(probabilities, self.head)

    def probabilities(
        self, prepared: PreparedCase, *, engine: Engine | None = None, coverage: Coverage | None = None
    ) -> Float[NDArray[np.float32], "R i j k"]:
        """Probabilities of WT, TC, ET on the prepared crop; what the crop lacks is absent.

        Args:
            prepared: The crop.
            engine: Another one than the predictor's.
            coverage: Another one than the predictor's.
        """
        image, present = self.columns(prepared)
        run: Run = partial(engine or self.engine, present=present)
        if self.tta:
            run = mirrored(run)
        if (coverage or self.coverage_of(prepared)) == "tiles":
            return predict_tiled(image, run, window=self.card.crop)
        return predict_whole(image, run, multiple=STRIDE)

    @property
    def planned_coverage(self) -> Coverage:
        """Tiles, or the whole brain in one pass where memory suffices: as the card asks, or an export has measured."""
        if self.coverage != "auto":
            return self.coverage
        passed = self.exported is not None and self.exported.whole is not None and self.exported.whole.passed
        return "whole" if passed else self.card.coverage

    def coverage_of(self, prepared: PreparedCase) -> Coverage:
        """Tiles, or the whole brain in one pass, for this case.

        What has fitted once fits again: a process keeps memory that it freed, which then counts as taken.
        """
        if self.coverage != "auto" or self.planned_coverage == "tiles":
            return self.planned_coverage
        shape = padded_shape(prepared.image.shape[1:], STRIDE)
        needed_gib = memory_gib(self._outputs_per_voxel, shape, self.precision)
        if needed_gib > self._fitted_gib and needed_gib >= available_memory_gib(self.processor.device):
            return "tiles"
        self._fitted_gib = max(self._fitted_gib, needed_gib)
        return "whole"

    @cached_property
    def _outputs_per_voxel(self) -> float:
        if self.exported is not None and self.exported.outputs_per_voxel is not None:
            return self.exported.outputs_per_voxel
        from mindgap.inference.torch_engine import outputs_per_voxel

        return outputs_per_voxel(self.network, len(self.card.sequences))

    def _classes_at_home(
        self, maps: Float[NDArray[np.float32], "R i j k"], placement: Placement
    ) -> tuple[NDArray[np.uint8], Float[NDArray[np.float32], "R x y z"] | None]:
        """The mask on the grid of the files, and the probabilities that it was decided by, if not on the crop.

        It is decided on the crop where that grid was not resampled.
        """
        native_shape = tuple(placement.native_shape[axis] for axis in placement.permutation)
        if native_shape != placement.working_shape:
            native = put_back(maps, placement)
            return self.classes(native), native
        mask: NDArray[np.uint8] = orient_back(paste(self.classes(maps)[None], placement), placement)[0]
        return mask, None

    def latents(
        self, prepared: PreparedCase
    ) -> tuple[Float[NDArray[np.float32], "J C i j k"], Bool[NDArray[np.bool_], "i j k"]]:
        """Latents of every sequence in one pass over the prepared crop, and the voxels that are brain in all of them.

        Raises:
            SettingError: The network has no latents.
        """
        from mindgap.inference.torch_engine import TorchEngine

        if not isinstance(self.engine, TorchEngine):
            raise SettingError("latents are computed by the engine torch.")
        image, present = self.columns(prepared)
        padded, (x, y, z) = pad_to(image, padded_shape(image.shape[1:], STRIDE))
        found = self.engine.latents(padded[None], present)
        if found is None:
            raise SettingError(
                f"the network in {self.folder} ({self.card.architecture}) has no latents: name a teacher."
            )
        latents, brain = found
        return latents[:, :, x, y, z], brain[x, y, z]

    def columns(
        self, prepared: PreparedCase
    ) -> tuple[Float[NDArray[np.float32], "J i j k"], Bool[NDArray[np.bool_], " J"]]:
        """The image in the network's order of sequences, and which of them the case has."""
        columns = dict(zip(prepared.sequences, prepared.image, strict=True))
        absent = np.full_like(prepared.image[0], BACKGROUND)
        image = np.stack([columns.get(sequence, absent) for sequence in self.card.sequences])
        return image, np.array([s in columns for s in self.card.sequences])
