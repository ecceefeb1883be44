import pytest
import torch

from mindgap.networks.heads import ContrastiveHead, StyleDiscriminator


def test_rows_have_length_one_and_the_head_is_small():
    torch.manual_seed(0)
    head = ContrastiveHead(16)
    embedded = head(torch.randn(4, 16, 16, 32, 48))
    assert embedded.shape == (4, 16)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(4))
    assert sum(p.numel() for p in head.parameters()) == 16 * 8 * 32 + 32 * 16
    assert not any("bias" in name for name, _ in head.named_parameters())


def test_a_feature_of_zeros_gives_no_nan():
    head = ContrastiveHead(2)
    feature = torch.zeros(2, 2, 4, 4, 4, requires_grad=True)
    embedded = head(feature)
    embedded.sum().backward()
    assert bool(embedded.isfinite().all())
    assert bool(feature.grad.isfinite().all())


def test_cases_are_embedded_apart():
    torch.manual_seed(0)
    head = ContrastiveHead(2)
    feature = torch.randn(3, 2, 4, 4, 4)
    torch.testing.assert_close(head(feature)[1:2], head(feature[1:2]))
    assert not torch.allclose(head(feature)[0], head(feature)[1])


@pytest.mark.parametrize("side", [1, 2, 4, 6, 10])
def test_the_discriminator_judges_style_maps_of_every_crop(side):
    """Crops of 80, 48, 32 and 16 voxels have style maps of an eighth."""
    torch.manual_seed(0)
    head = StyleDiscriminator(8, width=4)
    style = torch.randn(3, 8, side, side, side, requires_grad=True)
    verdict = head(style)
    assert verdict.shape == (3,)
    verdict.sum().backward()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in head.parameters())
    assert bool(style.grad.any())


def test_the_discriminator_of_the_published_width_has_a_known_size_and_sees_other_shapes():
    head = StyleDiscriminator(128)
    assert sum(p.numel() for p in head.parameters()) == 3_146_433
    assert head(torch.zeros(1, 128, 20, 24, 16)).shape == (1,)  # the release's crop of 160x192x128


def test_the_discriminator_judges_in_float32():
    torch.manual_seed(0)
    head, style = StyleDiscriminator(8, width=4), torch.randn(2, 8, 4, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        verdict = head(style)
    assert torch.equal(verdict, head(style.float()))
