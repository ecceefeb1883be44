"""Normalisations of latents: over the brain of each sequence, and over everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
