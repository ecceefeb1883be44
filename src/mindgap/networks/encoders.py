"""Front ends that give every sequence a latent of its own at full resolution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindgap.batch import Bool, Float, brain_of, fill_absent


class BrainNorm(nn.Module):
    r"""Normalise latents with one mean and one variance per channel, shared by all sequences, over brain voxels.

    $\hat Z_j = (Z_j - \mu_c) / \sqrt{\sigma_c^2 + \epsilon}$ inside the brain of sequence $j$ and 0 outside, with
    $\mu_c, \sigma_c$ over the brain voxels of all present sequences of the batch; running averages at evaluation.

    Why: with a free convolution at the end an alignment loss is met by shrinking the latents; BatchNorm does not
    prevent it, because the background is the same in all sequences and carries the variance. Statistics per
    sequence would remove the gap between centroids by construction. There is no affine part, so the spread of a
    latent inside the brain stays 1, and because running averages are used at evaluation the latent of a sequence
    never depends on which other sequences a case has.

    Args:
        channels: Channels of one latent.
        momentum: Share of the newest batch in the running averages.
        epsilon: Added to the variance; small, so that latents cannot become small by hiding below it.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, *, momentum: float = 0.1, epsilon: float = 1e-8) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(
        self, latents: Sequence[Float[Tensor, "B C i j k"]], brains: Sequence[Bool[Tensor, "B 1 i j k"]]
    ) -> tuple[Float[Tensor, "B C i j k"], ...]:
        """Normalise the latents of all sequences together; ``brains`` is False everywhere where one is absent."""
        with torch.autocast(latents[0].device.type, enabled=False):
            floats = [latent.float() for latent in latents]
            mean, variance = self._statistics(floats, brains) if self.training else (self.mean, self.variance)
            scale = torch.rsqrt(variance + self.epsilon)
            mean, scale = mean.view(1, -1, 1, 1, 1), scale.view(1, -1, 1, 1, 1)
            zero = floats[0].new_zeros(())
            return tuple(
                torch.where(brain, (latent - mean) * scale, zero) for latent, brain in zip(floats, brains, strict=True)
            )

    def _statistics(self, latents: Sequence[Tensor], brains: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        axes = (0, 2, 3, 4)
        count = torch.stack([brain.sum() for brain in brains]).sum().float()
        some = (count > 1).float()  # a crop without brain keeps the running averages
        safe = count.clamp_min(1.0)
        total = torch.stack([(z * b).sum(axes) for z, b in zip(latents, brains, strict=True)]).sum(0)
        mean = some * total / safe + (1 - some) * self.mean
        centred = [z - mean.view(1, -1, 1, 1, 1) for z in latents]
        square = torch.stack([(z * z * b).sum(axes) for z, b in zip(centred, brains, strict=True)]).sum(0)
        variance = some * square / safe + (1 - some) * self.variance
        with torch.no_grad():
            self.mean.lerp_(mean.detach(), self.momentum)
            self.variance.lerp_(variance.detach(), self.momentum)
        return mean, variance


class LatentBatchNorm(nn.Module):
    """The literal reading of a normalised latent: BatchNorm per channel of each sequence, without affine part.

    It is taken over all voxels. The background, equal in all sequences, carries most of the variance, so that latents
    may shrink inside the brain and still look normal: an ablation, not a default.

    Args:
        sequences: Number of sequences J.
        channels: Channels C of each latent.
    """

    def __init__(self, sequences: int, channels: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm3d(channels, affine=False) for _ in range(sequences))

    def forward(
        self, latents: Sequence[Float[Tensor, "B C i j k"]], brains: Sequence[Bool[Tensor, "B 1 i j k"]]
    ) -> tuple[Float[Tensor, "B C i j k"], ...]:
        """Normalise each sequence by itself; ``brains`` plays no part."""
        with torch.autocast(latents[0].device.type, enabled=False):
            return tuple(norm(latent.float()) for norm, latent in zip(self.norms, latents, strict=True))


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
        brains = brain_of(image).split(1, dim=1)
        if bool(present.all()):
            raw = self.latent(F.relu(self.embed_norm(self.embed(image)))).split(self.channels, dim=1)
        else:
            raw = tuple(self._encode_rows(image, present[:, j], j) for j in range(self.sequences))
        return self.norm(raw, brains), brains

    def _encode_rows(self, image: Tensor, keep: Tensor, j: int) -> Tensor:
        """Run encoder ``j`` on the rows in ``keep`` with its share of the grouped weights; 0 elsewhere."""
        part = slice(j * self.channels, (j + 1) * self.channels)
        empty = image.new_zeros((image.shape[0], self.channels, *image.shape[2:]))
        index = keep.nonzero().flatten().to(image.device)
        if index.numel() == 0:
            return empty
        norm = self.embed_norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        embedded = F.conv3d(image[index, j : j + 1], self.embed.weight[part], padding=1)
        embedded = F.batch_norm(
            embedded,
            norm.running_mean[part],
            norm.running_var[part],
            norm.weight[part],
            norm.bias[part],
            training=self.training,
            momentum=norm.momentum or 0.1,
            eps=norm.eps,
        )
        latent = F.conv3d(F.relu(embedded), self.latent.weight[part], padding=1)
        return empty.to(latent.dtype).index_copy(0, index, latent)


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
        brains = brain_of(image).split(1, dim=1)
        batch, grid = image.shape[0], image.shape[2:]
        stacked = image.transpose(0, 1).reshape(-1, 1, *grid)  # J*B 1 i j k
        keep = present.t().flatten()
        index = keep.nonzero().flatten().to(image.device)
        chosen = stacked if bool(keep.all()) else stacked[index]
        raw = self.latent(F.relu(self.embed_norm(self.embed(chosen))))
        if not bool(keep.all()):
            raw = raw.new_zeros((len(keep), self.channels, *grid)).index_copy(0, index, raw)
        return self.norm(raw.split(batch), brains), brains


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
        brains = brain_of(image).split(1, dim=1)
        raw = self.latent(F.relu(self.embed_norm(self.embed(image)))).split(self.channels, dim=1)
        return self.norm(raw, brains), brains


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
