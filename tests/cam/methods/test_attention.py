"""Attention rollout and LeGrad: equal to the matrices that models return themselves, and to torch-cam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain
from camwatch.cam.methods.attention import roll_out
from camwatch.errors import InputError, UnsupportedError
from tests.support.cam_nets import ViT

IMAGES = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([2, 0])
WAYS = ["fused", "function", "method", "module"]


def transformer(family: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = getattr(transformers, f"{family}Config")(
        **sizes, image_size=32, patch_size=8, num_labels=4, initializer_range=0.5, **options
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{family}ForImageClassification")(config).eval()


@pytest.mark.parametrize(("family", "prefix"), [("ViT", 1), ("DeiT", 2), ("Dinov2", 1)])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_rollout_equals_the_product_of_the_models_own_attentions(family: str, prefix: int, implementation: str) -> None:
    model, images = transformer(family), torch.randn(2, 3, 32, 32)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = model(images, output_attentions=True).attentions
    expected = []
    for i in range(2):
        total = torch.eye(16 + prefix, dtype=torch.float64)
        for attention in given:
            mixed = attention[i].double().mean(0) + torch.eye(16 + prefix)
            total = (mixed / mixed.sum(1, keepdim=True)) @ total
        expected.append(total[0, prefix:].reshape(4, 4))
    model.set_attn_implementation(implementation)
    maps = explain(model, images, method="rollout").maps
    torch.testing.assert_close(maps.double(), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_rollout_of_identities_is_nothing_and_of_even_attention_even() -> None:
    eye = torch.eye(5).expand(2, 5, 5)
    assert not roll_out([eye, eye], 1).any()
    even = torch.full((2, 5, 5), 0.2)
    torch.testing.assert_close(roll_out([even], 1), torch.full((2, 4), 0.1))
    # Two blocks: 1/4 identity + 3/4 even.
    torch.testing.assert_close(roll_out([even, even], 1), torch.full((2, 4), 0.15))


@pytest.mark.parametrize("method", ["legrad", "rollout"])
@pytest.mark.parametrize("extra", [0, 1, 4])
def test_attention_is_seen_however_it_is_written(method: str, extra: int) -> None:
    plain = ViT(extra, "fused").eval()
    maps = explain(plain, IMAGES, target=LABELS, method=method).maps
    assert maps.shape == (2, 4, 6) and bool((maps.amax((1, 2)) > maps.amin((1, 2))).all())
    for way in WAYS[1:]:
        other = ViT(extra, way).eval()
        renamed = {k.replace(".attention.qkv.", ".attention.inner.in_proj_"): v for k, v in plain.state_dict().items()}
        renamed = {k.replace(".attention.out.", ".attention.inner.out_proj."): v for k, v in renamed.items()}
        other.load_state_dict(renamed if way == "module" else plain.state_dict())
        torch.testing.assert_close(explain(other, IMAGES, target=LABELS, method=method).maps, maps)


@pytest.mark.parametrize("labels", [[3, 7], [0, 9]])
def test_legrad_equals_torch_cam(labels: list[int]) -> None:
    methods, torchvision = pytest.importorskip("torchcam.methods"), pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=10).eval()
    nn.init.normal_(model.heads.head.weight)
    images = torch.randn(2, 3, 32, 32)
    with methods.LeGrad(model, list(model.encoder.layers)) as peer:
        model(images)
        theirs = peer(labels, normalized=False)[0].detach()
    ours = explain(model, images, target=torch.tensor(labels), method="legrad").maps
    assert theirs.amax() > 0
    assert (ours - theirs).abs().amax() <= 1e-4 * theirs.amax()


def test_legrad_tells_classes_apart_and_rollout_does_not() -> None:
    target = torch.tensor([[0, 1]] * 2)
    for method, apart in (("legrad", True), ("rollout", False)):
        maps = explain(ViT().eval(), IMAGES, target=target, method=method).maps
        assert torch.allclose(maps[:, 0], maps[:, 1], rtol=1e-3) != apart


def cut(model: nn.Module, images: Tensor) -> Tensor:
    """The class token of the model's blocks, its other images' rows mixed by a reshape that knows N."""
    return model.head(model.features(images).reshape(2, -1)[:, :8])


@pytest.mark.parametrize("method", ["legrad", "rollout"])
def test_attention_method_says_what_it_needs(method: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    with pytest.raises(UnsupportedError, match="a ViT-type model"):
        explain(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(1232, 3)), IMAGES, method=method)
    swin = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3)
    with pytest.raises(UnsupportedError, match="take 'gradcam'"):
        explain(swin, torch.rand(2, 3, 64, 64), method=method)
    with pytest.raises(InputError, match="explains the image itself, no layer"):
        explain(ViT(), IMAGES, method=method, layer="blocks")


@pytest.mark.parametrize("method", ["legrad", "rollout"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilevit_xxs", "within windows or groups of tokens"),
        ("pvt_v2_b0", "pooled tokens, 3136 to 49"),
        ("levit_128", "tokens, 16, 49, 196 of them, do not span one grid|pooled tokens"),
        ("xcit_nano_12_p16_224", "do not span one grid|in a block of their own"),
    ],
)
def test_attention_that_is_not_between_all_patches_is_refused(method: str, name: str, message: str) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False)
    with pytest.raises(UnsupportedError, match=message):
        explain(model, torch.randn(1, *model.default_cfg["input_size"]), method=method)


def test_legrad_refuses_a_head_that_knows_the_batch() -> None:
    with pytest.raises(UnsupportedError, match="runs the model's head on 3 x 2 images at once"):
        explain(ViT(), IMAGES, method="legrad", forward=cut)
