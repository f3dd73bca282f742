"""Layouts by round trip, and the layer that is found on small networks of every kind."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from camwatch import explain, layers
from camwatch.cam.model.layout import Layout, lay_out, token_grid
from camwatch.errors import LayerError

GRIDS = st.lists(st.integers(2, 6), min_size=1, max_size=3).map(tuple)


@settings(deadline=None, max_examples=50)
@given(grid=GRIDS, channels=st.integers(1, 5), axis=st.sampled_from([1, -1]), prefix=st.none() | st.integers(0, 5))
def test_layout_invert_undoes_apply(grid: Any, channels: int, axis: int, prefix: int | None) -> None:
    layout = Layout(grid, channels, axis, prefix)
    cells = grid if prefix is None else (prefix + math.prod(grid) + 2,)
    output = torch.randn(2, channels, *cells) if axis == 1 else torch.randn(2, *cells, channels)
    laid_out = layout.apply(output)
    assert laid_out.shape == (2, channels, *grid)
    torch.testing.assert_close(layout.invert(laid_out, output), output, rtol=0, atol=0)
    torch.testing.assert_close(layout.apply(layout.invert(laid_out * 2, output)), laid_out * 2, rtol=0, atol=0)


@settings(deadline=None, max_examples=50)
@given(
    patch=st.sampled_from([8, 14, 16, 32]),
    rows=st.integers(4, 24),
    columns=st.integers(4, 24),
    prefix=st.sampled_from([0, 1, 2, 5]),
)
def test_token_grid_finds_patches_behind_extra_tokens(patch: int, rows: int, columns: int, prefix: int) -> None:
    size = (rows * patch, columns * patch)
    found = token_grid(prefix + rows * columns, size, known=[(rows, columns)])
    assert found == ((rows, columns), prefix)


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        (196, (224, 224), ((14, 14), 0)),
        (197, (224, 224), ((14, 14), 1)),
        (198, (224, 224), ((14, 14), 2)),
        (257, (224, 224), ((16, 16), 1)),
        (261, (224, 224), ((16, 16), 5)),
        (433, (384, 288), ((24, 18), 1)),
        (578, (384, 384), ((24, 24), 2)),
        (768, (224, 224), None),
        (1000, (224, 224), None),
    ],
)
def test_token_grid_of_known_transformers(tokens: int, size: tuple[int, int], expected: Any) -> None:
    assert token_grid(tokens, size) == expected


@pytest.mark.parametrize(
    ("shape", "size", "grid", "axis"),
    [
        ((2, 512, 7, 7), (224, 224), (7, 7), 1),
        ((2, 7, 7, 512), (224, 224), (7, 7), -1),
        ((2, 64, 5, 9), (160, 288), (5, 9), 1),
        ((2, 5, 9, 64), (160, 288), (5, 9), -1),
        ((2, 8, 40), (160,), (40,), 1),
        ((2, 8, 4, 6, 6), (16, 24, 24), (4, 6, 6), 1),
        ((2, 197, 64), (224, 224), (14, 14), -1),
    ],
)
def test_lay_out_reads_shapes(shape: Any, size: Any, grid: Any, axis: int) -> None:
    layout = lay_out(shape, size, 2)
    assert layout is not None and (layout.grid, layout.channel_axis) == (grid, axis)


@pytest.mark.parametrize("shape", [(2, 1000), (2, 512, 1, 1), (2, 1024, 1), (2, 1, 1024), (8, 49, 64), (2, 3, 900, 2)])
def test_lay_out_finds_no_grid(shape: Any) -> None:
    assert lay_out(shape, (224, 224), 2) is None


class Attention(nn.Module):
    """One head, written out, so that its projections are modules of their own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        scores = self.query(query) @ self.key(tokens).transpose(1, 2) / 4
        return scores.softmax(-1) @ self.value(tokens)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = nn.LayerNorm(width), Attention(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed)
        return x + self.mlp(x)


def signed(activations: Tensor, gradients: Tensor) -> Tensor:
    return (activations * gradients).sum(1)


class Transformer(nn.Module):
    """A ViT with any number of tokens in front, read from the first one or from the mean of the patches."""

    def __init__(self, extra: int, read: str, patch: int = 8) -> None:
        super().__init__()
        self.extra, self.read = extra, read
        self.embed = nn.Conv2d(3, 16, patch, patch)
        self.tokens = nn.Parameter(torch.randn(1, extra, 16))
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.last = Attention(16)
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = self.blocks(torch.cat([self.tokens.expand(len(x), -1, -1), x], 1))
        if self.read == "class attention":
            return self.head(self.last(x[:, :1], x)[:, 0])
        return self.head(x[:, 0] if self.read == "class" else x[:, self.extra :].mean(1))


@pytest.mark.parametrize("size", [(32, 32), (40, 64)])
@pytest.mark.parametrize(
    ("extra", "read", "layer"),
    [
        (0, "mean", "blocks"),
        (1, "mean", "blocks"),
        (5, "mean", "blocks"),
        (1, "class", "blocks.1.norm"),
        (5, "class", "blocks.1.norm"),
        (1, "class attention", "blocks"),
    ],
)
def test_layers_of_transformers(extra: int, read: str, layer: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    found = explain(Transformer(extra, read), torch.rand(2, 3, *size), method=signed)
    assert found.layer == layer
    assert found.maps.shape == (2, size[0] // 8, size[1] // 8)


class ChannelsLast(nn.Module):
    """Swin's way: (N, h, w, C) between the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.LayerNorm(12)
        self.merge = nn.Linear(48, 24)
        self.out = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.embed(images).permute(0, 2, 3, 1))
        n, h, w, c = x.shape
        x = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)
        return self.head(self.out(self.merge(x)).mean((1, 2)))


@pytest.mark.parametrize("size", [(96, 96), (64, 96)])
def test_layers_of_channels_last_network(size: tuple[int, int]) -> None:
    default = next(layer for layer in layers(ChannelsLast(), torch.rand(1, 3, *size)) if layer.default)
    assert (default.name, default.grid, default.channels) == ("out", (size[0] // 8, size[1] // 8), 24)


@pytest.mark.parametrize(("axes", "size"), [(1, (40,)), (2, (24, 40)), (3, (12, 16, 8))])
def test_layers_of_one_to_three_axes(axes: int, size: tuple[int, ...]) -> None:
    conv, pool = getattr(nn, f"Conv{axes}d"), getattr(nn, f"AdaptiveAvgPool{axes}d")(1)
    body = [conv(2, 6, 3, 2, 1), nn.ReLU(), conv(6, 8, 3, 2, 1), nn.ReLU()]
    net = nn.Sequential(*body, pool, nn.Flatten(), nn.Linear(8, 3))
    found = explain(net, torch.rand(2, 2, *size), target=0, method=signed)
    assert found.layer == "3"
    assert found.maps.shape == (2, *(extent // 4 for extent in size))


def test_layers_leaves_out_resampling_and_passing_on() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 4), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(16), nn.Flatten(), nn.Linear(6 * 256, 4)
    )
    listed = {layer.name: layer for layer in layers(net, torch.rand(1, 3, 32, 32))}
    assert listed["1"].default and listed["1"].grid == (8, 8)
    assert listed["3"].grid == (16, 16)


def test_layers_leaves_out_score_maps() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    assert [layer.name for layer in layers(net, torch.rand(1, 3, 16, 16) + 1) if layer.default] == ["1"]


class Segmentation(nn.Module):
    def __init__(self, key: str | None) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.key = key

    def forward(self, images: Tensor) -> Any:
        small = self.decoder(self.backbone(images))
        scores = nn.functional.interpolate(small, size=images.shape[2:], mode="bilinear")
        return {self.key: scores, "aux": small} if self.key else scores


@pytest.mark.parametrize("key", [None, "out"])
def test_layers_of_segmentation_is_the_backbone(key: str | None) -> None:
    found = explain(Segmentation(key), torch.rand(2, 3, 32, 48), target=1, method=signed)
    assert found.layer == "backbone"
    assert found.maps.shape == (2, 8, 12)


def test_layers_with_a_head_of_zeros() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    nn.init.zeros_(net[4].weight)
    assert [layer.name for layer in layers(net, torch.rand(1, 3, 16, 16)) if layer.default] == ["1"]
    assert not net[4].weight.any()


def test_layers_without_any_grid() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    with pytest.raises(LayerError, match=r"no layer of Sequential has a spatial grid .* among 0 outputs"):
        layers(net, torch.rand(1, 3, 4, 4))


def test_layers_removes_hooks_after_an_exception() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 4))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        layers(net, torch.rand(1, 3, 16, 16))
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


def test_layers_names_are_usable_and_grids_right() -> None:
    net, images = Transformer(1, "class"), torch.rand(1, 3, 32, 32)
    for layer in layers(net, images):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert explain(net, images, layer=layer.name).maps.shape[1:] == layer.grid, layer


def _zoo(library: str, name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if library == "torchvision":
        models = pytest.importorskip("torchvision").models
        find = models.segmentation if "raspp" in name else models
        options = {"weights_backbone": None} if "raspp" in name else {}
        return getattr(find, name)(**options), torch.randn(1, 3, 96, 128)
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False)
    return model, torch.randn(1, *model.default_cfg["input_size"])


@pytest.mark.parametrize(
    ("library", "name", "layer", "grid"),
    [
        ("torchvision", "squeezenet1_1", "features", (5, 7)),
        ("torchvision", "mobilenet_v3_small", "features", (3, 4)),
        ("torchvision", "alexnet", "features", (2, 3)),
        ("torchvision", "shufflenet_v2_x0_5", "conv5", (3, 4)),
        ("torchvision", "swin_t", "norm", (3, 4)),
        ("torchvision", "lraspp_mobilenet_v3_large", "backbone.16", (6, 8)),
        ("timm", "deit_tiny_distilled_patch16_224", "blocks.11.norm1", (14, 14)),
        ("timm", "cait_xxs24_224", "blocks_token_only.1.norm1", (14, 14)),
        ("timm", "vit_small_patch16_dinov3", "blocks.11", (16, 16)),
    ],
)
def test_layers_of_the_zoo(library: str, name: str, layer: str, grid: tuple[int, int]) -> None:
    model, images = _zoo(library, name)
    default = next(found for found in layers(model, images) if found.default)
    assert (default.name, default.grid) == (layer, grid)
