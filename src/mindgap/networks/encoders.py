"""Front ends that give every sequence a latent of its own at full resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mindgap.batch import brain_of, fill_absent
from mindgap.networks.layout import take_back
from mindgap.shapes import Bool, Float


class BrainNorm(nn.Module):
    r"""Normalise latents over brain voxels with one mean and one variance per channel, shared by all sequences.

    $\hat Z_j = (Z_j - \mu_c) / \sqrt{\sigma_c^2 + \epsilon}$ inside the brain of sequence $j$ and 0 outside, with
    $\mu_c, \sigma_c$ over the brain voxels of all present sequences of the batch; running averages at evaluation.

    Why: with a free convolution at the end an alignment loss is met by shrinking the latents; BatchNorm does not
    prevent it, because the background is the same in all sequences and carries the variance. Statistics per
    sequence remove the gap between centroids by construction, so that nothing of it is left to align; where nothing is
    aligned they spare a network that a lone sequence is normalised by the statistics of others. There is no affine
    part, so the spread of a latent inside the brain stays 1, and because running averages are used at evaluation the
    latent of a sequence never depends on which other sequences a case has, unless ``own_share`` says so.

    Args:
        channels: Channels of one latent.
        momentum: Share of the newest batch in the running averages.
        epsilon: Added to the variance; small, so that latents cannot become small by hiding below it.
        own_share: At evaluation, the weight of the case's own statistics against the running averages. Trained in
            batches of B rows a row meets statistics of which it is 1/B: with few rows, averages alone are another
            normalisation than that of the training, which shows most where a single sequence lies far from the others.
        sequences: With a number J every sequence has statistics of its own, and averages (J, C); averages (C,) of a
            network with shared ones are taken for each. None: shared.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        channels: int,
        *,
        momentum: float = 0.1,
        epsilon: float = 1e-8,
        own_share: float = 0.0,
        sequences: int | None = None,
    ) -> None:
        super().__init__()
        self.momentum, self.epsilon, self.own_share, self.shared = momentum, epsilon, own_share, sequences is None
        shape = (channels,) if sequences is None else (sequences, channels)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))

    def forward(
        self, latents: Float[Tensor, "B JC i j k"], brains: Bool[Tensor, "B J i j k"]
    ) -> Float[Tensor, "B JC i j k"]:
        """Normalise the latents of all sequences together; ``brains`` is False everywhere where one is absent.

        What comes out lies channel after channel in memory, so that one sequence's latent can be passed over alone.
        """
        with torch.autocast(latents.device.type, enabled=False):
            values = take_back(latents)
            mask = brains.to(torch.float32, memory_format=torch.contiguous_format)
            return self._by_batch(values, mask) if self.training else self._by_averages(values, mask)

    def _by_batch(self, values: Tensor, mask: Tensor) -> Tensor:
        """By the statistics of the batch, which also move the running averages."""
        batch, count, voxels = len(values), mask.shape[1], values.shape[2:].numel()
        normalised, mean, variance = _brain_normalise(
            values.view(batch, count, -1, voxels),
            mask.view(batch, count, 1, voxels),
            self.mean,
            self.variance,
            self.epsilon,
            self.shared,
        )
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance, self.momentum)
        result: Tensor = normalised.view(values.shape)
        return result

    def _by_averages(self, values: Tensor, mask: Tensor) -> Tensor:
        """By the running averages; no size of the maps is written down, so that an exported network takes any."""
        if self.own_share:
            return self._by_mixture(values, mask)
        scale = torch.rsqrt(self.variance + self.epsilon)[..., None, None, None]
        apart = values.unflatten(1, (mask.shape[1], -1))  # B J C i j k
        normalised: Tensor = ((apart - self.mean[..., None, None, None]) * scale * mask[:, :, None]).flatten(1, 2)
        return normalised

    def _by_mixture(self, values: Tensor, mask: Tensor) -> Tensor:
        """By the statistics of the row's own brain mixed with the running averages, as of one set of voxels."""
        apart, inside, w = values.unflatten(1, (mask.shape[1], -1)), mask[:, :, None], self.own_share  # B J C i j k
        over = (1, 3, 4, 5) if self.shared else (3, 4, 5)
        count = inside.sum(over, keepdim=True).clamp_min(1)
        own_mean = (apart * inside).sum(over, keepdim=True) / count  # B J C 1 1 1, J = 1 where it is shared
        own_variance = ((apart - own_mean) * inside).square().sum(over, keepdim=True) / count
        known_mean, known_variance = self.mean[..., None, None, None], self.variance[..., None, None, None]
        between = w * (1 - w) * (own_mean - known_mean).square()
        scale = torch.rsqrt(w * own_variance + (1 - w) * known_variance + between + self.epsilon)
        shifted = apart - (w * own_mean + (1 - w) * known_mean)
        normalised: Tensor = (shifted * scale * inside).flatten(1, 2)
        return normalised

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take shared averages for those of every sequence."""
        for name in ("mean", "variance"):
            known, here = state_dict.get(prefix + name), getattr(self, name)
            if known is not None and known.ndim < here.ndim:
                state_dict[prefix + name] = known.expand_as(here).clone()
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _BrainNormalise(torch.autograd.Function):
    r"""Normalise by the statistics of the masked values, in few passes over memory.

    Written out, the same steps took ten passes forward and fifteen backward, a third of a training step. The gradient
    is that of a batch normalisation, $dx = \frac{m}{\sigma}(g - \overline{g} - y\,\overline{g y})$ with means over the
    mask.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        mask: Tensor,
        running_mean: Tensor,
        running_variance: Tensor,
        epsilon: float,
        shared: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values (B, J, C, V), mask (B, J, 1, V) of 0 and 1 -> normalised values, mean and variance (C,) or (J, C)."""
        over = (0, 1, 3) if shared else (0, 3)
        count = mask.sum(over)  # 1, or J 1
        some = (count > 1).to(values.dtype)  # a crop without brain keeps the running averages
        safe = count.clamp_min(1)
        inside = values * mask
        mean = some * inside.sum(over) / safe + (1 - some) * running_mean
        inside.addcmul_(mask, mean[..., None], value=-1)  # centred inside, 0 outside
        square = torch.linalg.vector_norm(inside, dim=over).square()
        variance = some * square / safe + (1 - some) * running_variance
        scale = torch.rsqrt(variance + epsilon)
        inside.mul_(scale[..., None])
        ctx.over = over
        ctx.save_for_backward(inside, mask, scale, some / safe)
        ctx.mark_non_differentiable(mean, variance)
        return inside, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        normalised, mask, scale, share = ctx.saved_tensors
        inside = gradient * mask
        mean = inside.sum(ctx.over) * share
        along = (inside * normalised).sum(ctx.over) * share  # einsum turns this into a slow product of vectors
        inside.addcmul_(mask, mean[..., None], value=-1)
        inside.addcmul_(normalised, along[..., None], value=-1)
        return inside.mul_(scale[..., None]), None, None, None, None, None


_brain_normalise: Callable[..., tuple[Tensor, Tensor, Tensor]] = _BrainNormalise.apply


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
        self.norm = nn.BatchNorm3d(sequences * channels, affine=False)

    def forward(
        self, latents: Float[Tensor, "B JC i j k"], brains: Bool[Tensor, "B J i j k"]
    ) -> Float[Tensor, "B JC i j k"]:
        """Normalise each sequence by itself; ``brains`` plays no part."""
        with torch.autocast(latents.device.type, enabled=False):
            normalised: Tensor = self.norm(latents.float().contiguous())
        return normalised


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
