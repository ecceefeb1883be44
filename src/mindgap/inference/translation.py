"""A trained network as an OpenVINO graph, in floating point or quantised to int8."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mindgap.errors import MindgapError
from mindgap.inference.openvino_engine import import_quietly
from mindgap.networks.card import Trained
from mindgap.shapes import BACKGROUND, STRIDE

Sample = tuple[NDArray[np.float32], NDArray[np.bool_]]
"""Image (1, J, i, j, k) and presence (1, J)."""
_MODULE = r"__module\.network(\.members\.\d+)?"
_IN_FLOAT = {
    "": (r".*encoders.*", r".*encode1.*", r".*head.*"),
    "fused_unet": (rf"{_MODULE}/.*", rf"{_MODULE}\.norm/.*", r".*head.*", r"aten::.*"),
}
"""What stays in floating point when a network is quantised, by its architecture, as expressions for names of layers."""


def translate(model: Trained) -> Any:
    """The OpenVINO graph of a network: image (1, J, i, j, k) and presence (1, J) -> WT, TC, ET (1, R, i, j, k).

    It is traced with all sequences present. Where one is absent its voxels are background, and the latent of background
    is 0 whichever way it is computed, so that the same graph answers for every subset.

    Raises:
        MindgapError: OpenVINO cannot translate it.
    """
    openvino = import_quietly()
    count = len(model.card.sequences)
    network = copy.deepcopy(model.network).cpu().eval()
    for parameter in network.parameters():  # channel after channel: what hands maps over from layout to layout is idle
        parameter.data = parameter.data.contiguous()
    example = torch.full((1, count, *[2 * STRIDE] * 3), BACKGROUND)
    example[:, :, 8:-8, 8:-8, 8:-8] = 0.0
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of branches on presence, which are meant (see above)
            inputs = (example, torch.ones(1, count, dtype=torch.bool))
            traced = torch.jit.trace(_Regions(network), inputs, check_trace=False)
            graph: Any = openvino.convert_model(traced, example_input=inputs)
    except Exception as error:
        raise MindgapError(
            f"OpenVINO cannot translate {model.card.architecture} in {model.folder} ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}): use --engine torch."
        ) from error
    shapes = ([1, count, -1, -1, -1], [1, count])
    graph.reshape({place: openvino.PartialShape(shape) for place, shape in zip(graph.inputs, shapes, strict=True)})
    return graph


def quantise(graph: Any, samples: Iterable[Sample], *, architecture: str) -> Any:
    """Quantise a graph to int8 after training, with the ranges its maps take on samples.

    Args:
        graph: From :func:`translate`.
        samples: image (1, J, i, j, k) and presence (1, J) of training cases.
        architecture: Of the network, or of the members of an ensemble.

    Reference:
        NNCF post-training quantisation, https://github.com/openvinotoolkit/nncf. We differ: what turns images into
        latents, the first layer of a VNet behind them, which takes means and variances of unlike range, and the head
        stay in floating point; they are a small part of the work.
    """
    import_quietly()
    import nncf

    nncf.set_log_level(logging.ERROR)  # else a line for every layer that is not quantised

    items = list(samples)
    return nncf.quantize(
        graph,
        nncf.Dataset(items, list),
        subset_size=len(items),
        preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=False,
        ignored_scope=nncf.IgnoredScope(patterns=list(_IN_FLOAT.get(architecture, _IN_FLOAT[""])), validate=False),
    )


class _Regions(nn.Module):
    """A network whose output is nothing but its probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, present: Tensor) -> Tensor:
        regions: Tensor = self.network(image, present).region_probabilities()
        return regions
