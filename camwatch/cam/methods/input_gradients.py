"""Input-gradient methods: which pixels would change the score.

Maps have the image's own resolution. Each is the largest magnitude over the image's channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from camwatch.cam.methods.fusion import INTERPOLATION
from camwatch.cam.methods.gradients import grad_cam
from camwatch.cam.methods.runner import LayerOutput, ModelRunner
from camwatch.cam.model.hooks import UnreachedError
from camwatch.errors import UnsupportedError
from camwatch.progress import progress

RELUS = (functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
SAMPLES = 25
NOISE = 0.15  # of the image's range


def input_gradients(runner: ModelRunner, images: Tensor) -> Tensor:
    """Returns (N, K, C, *size) float32: the gradient of each score with respect to the pixels.

    Raises:
        UnreachedError: The model cuts the graph between pixels and score.
    """
    leaf = images.detach().clone().requires_grad_()
    columns = runner.score(runner.forward(leaf)).unbind(1)
    found = []
    for column in columns:
        gradient = None
        if column.requires_grad:
            [gradient] = torch.autograd.grad(column.sum(), leaf, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise UnreachedError(
                "the score does not depend on the pixels through a differentiable path; take a method that explains "
                "a layer, such as 'gradcam', or 'occlusion'"
            )
        found.append(gradient.float())
    return torch.stack(found, dim=1)


def _strongest(gradients: Tensor) -> Tensor:
    return gradients.abs().amax(2)


def saliency(runner: ModelRunner) -> Tensor:
    """Saliency: the magnitude of the score's gradient at each pixel.

    Choose it to see single pixels that matter at once; it is noisy, and says nothing of larger changes.

    Source: Simonyan et al., Deep inside convolutional networks, ICLR Workshop 2014, section 3.1.
    """
    return _strongest(input_gradients(runner, runner.images))


def smooth_grad(runner: ModelRunner) -> Tensor:
    """SmoothGrad: the magnitude of the gradient's mean over 25 noisy copies of the image.

    Choose it instead of saliency: less noise, at 25 times the cost. The noise has 0.15 of the image's range, and
    is the same at every call.

    Source: Smilkov et al., SmoothGrad, arXiv 1706.03825, section 3.
    """
    total = torch.zeros((), device=runner.images.device)
    for copy in noisy_copies(runner.images, SAMPLES, "SmoothGrad"):
        total = total + input_gradients(runner, copy)
    return _strongest(total / SAMPLES)


def noisy_copies(images: Tensor, count: int, label: str) -> Iterator[Tensor]:
    """Yields copies of the images with noise of 0.15 of each one's range, the same at every call."""
    axes = tuple(range(1, images.ndim))
    low, high = images.amin(axes, keepdim=True), images.amax(axes, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    for _ in progress(range(count), label):
        noise = torch.randn(images.shape, generator=generator).to(images)
        yield images + NOISE * (high - low) * noise


class _Guided(TorchFunctionMode):
    """Lets only positive gradients pass backwards through every ReLU called inside, module or function."""

    def __init__(self) -> None:
        super().__init__()
        self.relus = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in RELUS and output.requires_grad:
            self.relus += 1
            output = output.clone()  # the ReLU may have worked in place
            output.register_hook(torch.relu)
        return output


def _guided_gradients(runner: ModelRunner) -> Tensor:
    with _Guided() as guided:
        gradients = input_gradients(runner, runner.images)
    if not guided.relus:
        raise UnsupportedError(
            "guided backpropagation changes how gradients pass ReLUs, and no ReLU ran in this model; take 'saliency' "
            "or 'smoothgrad'"
        )
    return gradients


def guided_backprop(runner: ModelRunner) -> Tensor:
    """Guided backpropagation: saliency, with negative gradients stopped at every ReLU.

    Choose it for sharp pictures of what the image contains, never to judge a model: it hardly depends on the
    weights and fails the randomization sanity check (Adebayo et al. 2018), because it partly recovers the image.

    Source: Springenberg et al., Striving for simplicity, ICLR Workshop 2015, section 3.4.
    """
    return _strongest(_guided_gradients(runner))


def guided_grad_cam(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """Guided Grad-CAM: guided backpropagation where Grad-CAM sees evidence.

    Choose it for a fine and class-specific picture; the fine part is guided backpropagation's, with its faults.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, section 3.2.
    """
    size = runner.images.shape[2:]
    with runner.capture(layer) as capture:
        columns = runner.score(runner.forward(runner.images)).unbind(1)
        coarse = torch.stack([grad_cam(capture.activations, capture.gradients(c)) for c in columns], dim=1)
    fine = functional.interpolate(coarse, size, mode=INTERPOLATION[len(size)], align_corners=False)
    return _strongest(_guided_gradients(runner)) * fine
