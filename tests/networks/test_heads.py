import torch

from mindgap.networks.heads import ContrastiveHead


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
