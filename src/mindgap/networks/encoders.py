"""Front ends that give every sequence a latent of its own at full resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindgap.batch import brain_of, fill_absent
from mindgap.networks.norms import BrainNorm
from mindgap.shapes import Bool, Float

Latents = tuple[tuple[Float[Tensor, "B C i j k"], ...], tuple[Bool[Tensor, "B 1 i j k"], ...]]
"""J latents, and the brain of each sequence (False everywhere where the sequence is absent)."""


class SequenceEncoders(nn.Module):
    """One encoder per sequence: [Conv 1->C, BatchNorm, ReLU] -> [Conv C->C] -> :class:`BrainNorm`.

    An encoder runs only on the rows of a batch that have its sequence; the latent of an absent sequence is 0,
    the mean of the brain, and its voxels are never read. The encoders lie side by side as grouped convolutions,
    which keeps a single row off torch's slow path for small convolutions.

    Args:
        sequences: Number of sequences J.
        channels: Channels C of each latent.
        norm: What the latents end in; :class:`BrainNorm` by default.

    Shapes:
        image (B, J, i, j, k), present (B, J) -> J latents of (B, C, i, j, k).

    Reference:
        Liu et al., Mind the Gap, 2024, section III-A, https://arxiv.org/abs/2409.19366.
        We differ: the paper leaves the normalisation of the latents open; see :class:`BrainNorm`.
    """

    def __init__(self, sequences: int, *, channels: int = 4, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.sequences, self.channels = sequences, channels
        total = sequences * channels
        self.embed = nn.Conv3d(sequences, total, kernel_size=3, padding=1, groups=sequences, bias=False)
        self.embed_norm = nn.BatchNorm3d(total)
        self.latent = nn.Conv3d(total, total, kernel_size=3, padding=1, groups=sequences, bias=False)
        self.norm = norm or BrainNorm(channels)

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Latents:
        """Encode what is present."""
        image = fill_absent(image, present)
        if bool(present.all()):
            raw = self._encode_all(image)
        else:
            raw = torch.cat([self._encode_rows(image, present[:, j], j) for j in range(self.sequences)], dim=1)
        return _normalised(self.norm, raw, brain_of(image), self.channels)

    def _encode_all(self, image: Tensor) -> Tensor:
        """Run all encoders as dense convolutions with 0 between sequences.

        Grouped ones are up to five times slower backward in bf16. Only the second in fp32 on a CPU is faster grouped.
        """
        embedded = F.conv3d(image, block_diagonal(self.embed.weight, self.sequences), padding=1)
        embedded = F.relu(self._normalise(embedded, slice(None)))
        if image.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            grouped: Tensor = self.latent(embedded)
            return grouped
        return F.conv3d(embedded, block_diagonal(self.latent.weight, self.sequences), padding=1)

    def _encode_rows(self, image: Tensor, keep: Tensor, j: int) -> Tensor:
        """Run encoder ``j`` on the rows in ``keep`` with its share of the grouped weights; 0 elsewhere."""
        part = slice(j * self.channels, (j + 1) * self.channels)
        empty = image.new_zeros((image.shape[0], self.channels, *image.shape[2:]))
        index = keep.nonzero().flatten().to(image.device, non_blocking=True)
        if index.numel() == 0:
            return empty
        embedded = F.conv3d(image[index, j : j + 1], self.embed.weight[part], padding=1)
        embedded = self._normalise(embedded, part)
        latent = F.conv3d(F.relu(embedded), self.latent.weight[part], padding=1)
        return empty.to(latent.dtype).index_copy(0, index, latent)

    def _normalise(self, maps: Tensor, part: slice) -> Tensor:
        """The batch normalisation of some channels.

        Not by calling the module: several GPUs would turn it into a meeting of all processes, and one whose batch lacks
        a sequence would not come. These statistics are per process, as those of the latents are.
        """
        norm = self.embed_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        return F.batch_norm(
            maps,
            norm.running_mean[part],
            norm.running_var[part],
            norm.weight[part],
            norm.bias[part],
            training=self.training,
            momentum=0.1 if norm.momentum is None else norm.momentum,
            eps=norm.eps,
        )


def _normalised(norm: nn.Module, raw: Tensor, brains: Tensor, channels: int) -> Latents:
    return norm(raw, brains).split(channels, dim=1), brains.split(1, dim=1)


def block_diagonal(weight: Tensor, groups: int) -> Tensor:
    """Weight of a dense convolution that does what a grouped one with ``weight`` (groups * out, in, ...) does."""
    given = weight.shape[1]
    spatial = (0,) * 6
    rows = [F.pad(own, (*spatial, g * given, (groups - 1 - g) * given)) for g, own in enumerate(weight.chunk(groups))]
    return torch.cat(rows).contiguous(memory_format=torch.channels_last_3d)


class SharedEncoder(nn.Module):
    """One encoder for all sequences, the literal reading of "a transformation T with T(X_j) = Z_j".

    Its layers are those of one encoder of :class:`SequenceEncoders`; it runs on the present sequences of each row.

    Args:
        sequences: Number of sequences J.
        channels: Channels C of each latent.
        norm: What the latents end in; :class:`BrainNorm` by default.

    Shapes:
        As :class:`SequenceEncoders`.
    """

    def __init__(self, sequences: int, *, channels: int = 4, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.sequences, self.channels = sequences, channels
        self.embed = nn.Conv3d(1, channels, kernel_size=3, padding=1, bias=False)
        self.embed_norm = nn.BatchNorm3d(channels)
        self.latent = nn.Conv3d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm = norm or BrainNorm(channels)

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Latents:
        """Encode what is present, all sequences side by side along the batch axis."""
        image = fill_absent(image, present)
        batch, grid = image.shape[0], image.shape[2:]
        stacked = image.transpose(0, 1).reshape(-1, 1, *grid)  # J*B 1 i j k
        keep = present.t().flatten()
        index = keep.nonzero().flatten().to(image.device, non_blocking=True)
        chosen = stacked if bool(keep.all()) else stacked[index]
        raw = self.latent(F.relu(self.embed_norm(self.embed(chosen))))
        if not bool(keep.all()):
            raw = raw.new_zeros((len(keep), self.channels, *grid)).index_copy(0, index, raw)
        raw = torch.cat(raw.split(batch), dim=1)  # B JC i j k
        return _normalised(self.norm, raw, brain_of(image), self.channels)


class JointEncoder(nn.Module):
    """The authors' first draft: one ungrouped encoder of all sequences, whose channels are called their latents.

    Every latent then sees every sequence: it cannot be computed from one, and copying channels meets an alignment.
    Kept as a named ablation; it needs complete cases.

    Args:
        sequences: Number of sequences J.
        channels: Channels C of each latent (1 in the draft).
        norm: What the latents end in; :class:`BrainNorm` by default.

    Shapes:
        As :class:`SequenceEncoders`.

    Reference:
        The first public draft of the authors' code (MedMAP, April 2025), in our own words.
    """

    def __init__(self, sequences: int, *, channels: int = 4, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.sequences, self.channels = sequences, channels
        total = sequences * channels
        self.embed = nn.Conv3d(sequences, total, kernel_size=3, padding=1, bias=False)
        self.embed_norm = nn.BatchNorm3d(total)
        self.latent = nn.Conv3d(total, total, kernel_size=3, padding=1, bias=False)
        self.norm = norm or BrainNorm(channels)

    def forward(self, image: Float[Tensor, "B J i j k"], present: Bool[Tensor, "B J"]) -> Latents:
        """Encode; what is absent is background to all latents."""
        image = fill_absent(image, present)
        raw = self.latent(F.relu(self.embed_norm(self.embed(image))))
        return _normalised(self.norm, raw, brain_of(image), self.channels)


class NormalHeads(nn.Module):
    r"""Mean and variance of each latent, and a sample: $Z_j = \mu_j + \sigma_j\,\epsilon$ in training, else $\mu_j$.

    Two 1x1x1 convolutions per sequence (anchor P_N: "obtained by learnable parameters"); $\log\sigma^2$ is clamped to
    [-8, 8]. Outside the brain of a sequence $\mu$ and $Z$ are 0.

    Args:
        sequences: Number of sequences J.
        channels: Channels C of each latent.

    Shapes:
        J latents (B, C, i, j, k) and their brains -> J samples, J means, J log-variances, each (B, C, i, j, k).
    """

    def __init__(self, sequences: int, channels: int) -> None:
        super().__init__()
        total = sequences * channels
        self.channels = channels
        self.mean = nn.Conv3d(total, total, kernel_size=1, groups=sequences)
        self.log_variance = nn.Conv3d(total, total, kernel_size=1, groups=sequences)

    def forward(
        self, latents: Sequence[Tensor], brains: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Sample."""
        with torch.autocast(latents[0].device.type, enabled=False):
            together = torch.cat([latent.float() for latent in latents], dim=1)
            zero = together.new_zeros(())
            means = self.mean(together).split(self.channels, dim=1)
            logs = self.log_variance(together).clamp(-8, 8).split(self.channels, dim=1)
            means = tuple(torch.where(brain, mean, zero) for mean, brain in zip(means, brains, strict=True))
            if not self.training:
                return means, means, logs
            noise = torch.randn_like(together).split(self.channels, dim=1)
            samples = tuple(
                torch.where(brain, mean + (0.5 * log).exp() * eps, zero)
                for mean, log, eps, brain in zip(means, logs, noise, brains, strict=True)
            )
        return samples, means, logs
