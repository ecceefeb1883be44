import pytest
import torch

from mindgap.networks.build import build_network
from mindgap.networks.card import head_of
from mindgap.networks.smunet import GroupNorm, SmuPath
from mindgap.shapes import BACKGROUND


def make(channels_in=2, **numbers) -> SmuPath:
    torch.manual_seed(0)
    return SmuPath(channels_in, width=2, **numbers)


@pytest.mark.parametrize(("channels_in", "expected"), [(1, 4_776_899), (4, 4_778_195)])
def test_the_published_size_of_a_path(channels_in, expected):
    assert sum(p.numel() for p in SmuPath(channels_in).parameters()) == expected  # 4.78 million


def test_groups_are_eight_where_they_fit():
    norms = [m for m in SmuPath(1).modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {8}
    assert sorted({m.num_groups for m in make().modules() if isinstance(m, torch.nn.GroupNorm)}) == [2, 4, 8]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_group_norm_is_torchs_in_every_layout_and_keeps_it(layout):
    ours, theirs = GroupNorm(2, 4), torch.nn.GroupNorm(2, 4)
    x, y = (torch.randn(2, 4, 3, 4, 5, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    x = x.contiguous(memory_format=layout).requires_grad_()
    y.requires_grad_()
    found, expected = ours(x), theirs(y)
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, expected)
    for output in (found, expected):
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("architecture", "arguments", "head"),
    [
        ("smunet", {"channels_in": 1}, "sigmoid"),
        ("vnet", {"channels_in": 1}, "softmax"),
        ("aligned", {"sequences": 2}, "softmax"),
        ("aligned", {"sequences": 2, "backbone": "smunet"}, "sigmoid"),
        ("masked", {"sequences": 2}, "softmax"),
        ("fused", {"sequences": 2}, "softmax"),
        ("fused_unet", {"sequences": 2}, "softmax"),
        ("dynunet", {"sequences": 2}, "softmax"),
        ("ensemble", {"count": 2, "architecture": "vnet", "arguments": {"channels_in": 1, "width": 2}}, "softmax"),
    ],
)
def test_a_card_tells_the_head_of_its_network(architecture, arguments, head):
    columns = arguments.get("channels_in") or arguments.get("sequences") or 1
    network = build_network(architecture, arguments if architecture == "ensemble" else {**arguments, "width": 2}).eval()
    with torch.no_grad():
        output = network(torch.zeros(1, columns, 32, 32, 32), torch.ones(1, columns, dtype=torch.bool))
    assert output.head == head_of(architecture, arguments) == head


def test_shapes_and_named_features():
    output = make(3).eval()(torch.zeros(2, 3, 32, 16, 48))
    assert output.head == "sigmoid"
    assert output.logits.shape == (2, 3, 32, 16, 48)
    assert {name: tuple(f.shape) for name, f in output.features.items()} == {
        "feature": (2, 2, 32, 16, 48),
        "content": (2, 16, 4, 2, 6),
        "style": (2, 16, 4, 2, 6),
    }


def test_every_parameter_takes_part():
    network = make()
    output = network(torch.randn(2, 2, 16, 16, 16))
    output.logits.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_dropout_is_off_in_eval_mode():
    network, image = make(), torch.randn(1, 2, 16, 16, 16)
    with torch.no_grad():
        assert not torch.equal(network(image).logits, network(image).logits)
        network.eval()
        assert torch.equal(network(image).logits, network(image).logits)


@pytest.mark.parametrize("filling", [float("nan"), 7.0])
def test_what_stands_in_an_absent_channel_changes_nothing(filling):
    image = torch.rand((3, 2, 16, 16, 16), generator=torch.Generator().manual_seed(0)) - 0.5
    present = torch.tensor([[True, True], [False, True], [True, False]])
    results = []
    for value in (BACKGROUND, filling):
        network = make(dropout=0.0)
        output = network(torch.where(present[:, :, None, None, None], image, torch.tensor(value)), present)
        output.logits.square().sum().backward()
        results.append([output.logits.detach(), *(p.grad for p in network.parameters())])
    assert all(torch.equal(a, b) and bool(a.isfinite().all()) for a, b in zip(*results, strict=True))


def test_it_learns_in_bf16_what_it_learns_in_fp32_also_where_maps_have_two_voxels():
    image = torch.randn(2, 2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    gradients = []
    for bf16 in (False, True):
        network = make(dropout=0.0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = network(image)
        output.logits.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 0.05


def test_an_aligned_network_may_have_it_as_its_backbone_and_old_models_have_the_vnet():
    plain = {"sequences": 2, "latent_channels": 2, "width": 2, "weighted": True}  # as in files of version 0.1
    image, present = torch.randn(1, 2, 16, 16, 16), torch.ones(1, 2, dtype=torch.bool)
    old = build_network("aligned", plain).eval()(image, present)
    assert (old.head, "bottleneck" in old.features) == ("softmax", True)
    new = build_network("aligned", {**plain, "backbone": "smunet"}).eval()(image, present)
    assert new.head == "sigmoid"
    assert {"content", "style", "brain"} <= set(new.features)
    assert len(new.latents) == 2
