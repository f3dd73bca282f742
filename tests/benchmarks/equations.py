"""The papers' equations, of networks and images in float64: what decides where peers disagree or there is none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from camwatch.cam import LayerCapture
from camwatch.cam.methods.fullgrad import added_bias
from camwatch.cam.methods.further_gradients import NOISY_COPIES
from camwatch.cam.methods.input_gradients import noisy_copies
from camwatch.cam.methods.masking import IS_STEPS, SS_DRAWS, mask_noise


def capture(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with LayerCapture(model, layer) as captured:
        score = model(images)[torch.arange(len(images)), labels].sum()
    return captured.activations, captured.gradients(score)


def grad_cam_plus_plus(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    a, g = (t.double() for t in capture(model, layer, images, labels))
    alpha = torch.where(g == 0, 0, g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3))
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1).relu()


def score_cam(model: nn.Module, layer: str, images: Tensor, labels: Tensor, method: str = "scorecam") -> Tensor:
    """Score-CAM, and with noise on its masks or with masks of growing strength SS-CAM and IS-CAM."""
    activations = capture(model, layer, images, labels)[0].double()
    rounds = {"scorecam": 1, "sscam": SS_DRAWS, "iscam": IS_STEPS}[method]
    maps = []
    with torch.no_grad():
        for n, (image, label, cells) in enumerate(zip(images.double(), labels.tolist(), activations, strict=True)):
            masks = functional.interpolate(cells[:, None], image.shape[1:], mode="bilinear")
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            masks = torch.where(high > low, (masks - low) / (high - low), 0)
            scores = torch.zeros(len(cells), dtype=torch.double)
            for i in range(rounds):
                part = masks
                if method == "sscam":
                    shape = torch.Size((len(images), 1, *image.shape[1:]))
                    part = masks + torch.stack([mask_noise(i, k, shape)[n] for k in range(len(cells))]).double()
                if method == "iscam":
                    part = masks * sum(range(1, i + 2)) / rounds
                scores += torch.cat([model(image * block)[:, label] for block in part.split(8)]) / rounds
            maps.append((scores.softmax(0).view(-1, 1, 1) * cells).sum(0).relu())
    return torch.stack(maps)


@torch.no_grad()
def ablation_cam(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    kept: list[Tensor] = []
    channels: list[Tensor] = []

    def ablate(module: nn.Module, args: object, output: Tensor) -> Tensor:
        kept[:] = [output]
        return output * channels[0].view(-1, output.shape[1], 1, 1) if channels else output

    handle = dict(model.named_modules())[layer].register_forward_hook(ablate)
    maps = []
    for image, label in zip(images.double(), labels.tolist(), strict=True):
        channels.clear()
        whole = model(image[None])[0, label]
        cells = kept[0][0]
        left = []
        for masks in (1 - torch.eye(len(cells), dtype=torch.double)).split(16):
            channels[:] = [masks]
            left.append(model(image.expand(len(masks), *image.shape))[:, label])
        weights = (whole - torch.cat(left)) / whole
        maps.append((weights.view(-1, 1, 1) * cells).sum(0).relu())
    handle.remove()
    return torch.stack(maps)


def smooth_grad_cam_plus_plus(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    a = capture(model, layer, images, labels)[0].double()
    copies = noisy_copies(images, NOISY_COPIES, "")
    g = torch.stack([capture(model, layer, copy, labels)[1].double() for copy in copies])
    below = 2 * (g**2).mean(0) + a.sum((2, 3), keepdim=True) * (g**3).mean(0)
    alpha = torch.where(below == 0, 0, (g**2).mean(0) / below)
    return ((alpha * g.mean(0).relu()).sum((2, 3), keepdim=True) * a).sum(1).relu()


def full_grad(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """Each bias as a tensor of its own that is added at every place, in float64."""
    added: list[tuple[Tensor, Tensor]] = []

    def add(module: nn.Module, args: object, output: Tensor) -> Tensor:
        zero = torch.zeros_like(output, requires_grad=True)
        bias = added_bias(module)
        assert bias is not None
        added.append((zero, bias.view(1, -1, 1, 1)))
        return output + zero

    pixels = images.double().requires_grad_()
    modules = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) and added_bias(m) is not None]
    handles = [module.register_forward_hook(add) for module in modules]
    score = model(pixels)[torch.arange(len(images)), labels].sum()
    first, *rest = torch.autograd.grad(score, [pixels, *(zero for zero, _ in added)])
    for handle in handles:
        handle.remove()
    total = torch.zeros(len(images), *images.shape[2:], dtype=torch.double)
    for part in [pixels.detach() * first, *((b * g).detach() for (_, b), g in zip(added, rest, strict=True))]:
        part = part.abs()
        low, high = part.amin((2, 3), keepdim=True), part.amax((2, 3), keepdim=True)
        scaled = torch.where(high > low, (part - low) / (high - low), 0)
        total += functional.interpolate(scaled, images.shape[2:], mode="bilinear").sum(1)
    return total


def own_attentions(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """Attention rollout in float64, from attention weights that torchvision's blocks are asked for."""
    seen: list[Tensor] = []

    def ask(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> object:
        return args, {**kwargs, "need_weights": True}

    blocks = [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
    handles = [block.register_forward_pre_hook(ask, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(lambda m, a, output: seen.append(output[1])) for block in blocks]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    total = torch.eye(seen[0].shape[-1], dtype=torch.double)
    for attention in seen:
        mixed = attention.double() + torch.eye(attention.shape[-1])
        total = mixed / mixed.sum(-1, keepdim=True) @ total
    side = round((total.shape[-1] - 1) ** 0.5)
    return total[:, 0, 1:].reshape(-1, side, side)
