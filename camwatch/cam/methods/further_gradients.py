"""Methods at a layer that need a score of their own, further derivatives, or nothing of the model at all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from camwatch.cam.methods.gradients import grad_cam, quotient, weighted_sum
from camwatch.cam.methods.input_gradients import noisy_copies
from camwatch.cam.methods.runner import LayerOutput, ModelRunner
from camwatch.cam.model.targets import class_scores, two_sided
from camwatch.errors import TargetError

NOISY_COPIES = 10
SIMILAR = 3  # classes that Finer-CAM compares with


def finer_cam(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """Finer-CAM: Grad-CAM of the difference between a class and the three most similar ones.

    Choose it for fine-grained classes: it leaves out what similar classes share. Needs class indices as target.

    Source: Zhang et al., Finer-CAM, CVPR 2025, equations 4 and 5, with comparison strength 1; the compared
    classes weighted by their probability, as in pytorch-grad-cam.

    Raises:
        TargetError: The target is no class index.
    """
    if runner.classes is None:
        raise TargetError("Finer-CAM compares classes: its target must be 'predicted', a class index, (N,) or (N, K)")
    with runner.capture(layer) as capture:
        scores = two_sided(class_scores(runner.forward(runner.images)))
        if scores.ndim > 2:
            raise TargetError(f"Finer-CAM compares one score per class and image, got scores {tuple(scores.shape)}")
        activations, maps = capture.activations, []
        for index in runner.classes.unbind(1):
            gradients = capture.gradients(_difference(scores, index[:, None]))
            maps.append(grad_cam(activations, gradients))
    return torch.stack(maps, dim=1)


def _difference(scores: Tensor, index: Tensor) -> Tensor:
    """How far a class's score lies above those of the nearest other classes, weighted by their probability."""
    own = scores.gather(1, index)
    distance = (scores - own).detach().abs().scatter(1, index, torch.inf)
    others = distance.topk(min(SIMILAR, scores.shape[1] - 1), dim=1, largest=False).indices
    weights = scores.softmax(1).gather(1, others)
    return (weights * (own - scores.gather(1, others))).sum(1) / weights.sum(1)


def shapley_cam(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """Shapley-CAM: Grad-CAM with gradients corrected for the score's curvature.

    Choose it where the layers behind the target are not piecewise linear (GELU, attention); behind ReLUs alone
    it is Grad-CAM. Costs a second backward pass.

    Source: Cai, CAMs as Shapley value-based explainers, arXiv 2501.06261: weights are the mean of
    gradient - half of (Hessian times activations).
    """
    with runner.capture(layer) as capture, sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
        columns = runner.score(runner.forward(runner.images)).unbind(1)
        [raw] = capture.raw
        maps = []
        for column in columns:
            [gradient] = torch.autograd.grad(column.sum(), raw, create_graph=True)
            bend = None
            if gradient.requires_grad:
                [bend] = torch.autograd.grad(gradient, raw, raw.detach(), retain_graph=True, allow_unused=True)
            corrected = gradient.detach() if bend is None else gradient.detach() - bend / 2
            weights = layer.layout.apply(corrected).float().flatten(2).mean(2)
            maps.append(weighted_sum(layer.activations, weights))
    return torch.stack(maps, dim=1)


def smooth_grad_cam_plus_plus(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """Smooth Grad-CAM++: Grad-CAM++ with derivatives averaged over ten noisy copies of the image.

    Choose it for several instances of a class where Grad-CAM++ is noisy, at ten times its cost; like that it hardly
    depends on the class. The noise has 0.15 of the image's range, and is the same at every call.

    torch-cam differs: it weights the last copy's activations by the last copy's gradients.

    Source: Omeiza et al., Smooth Grad-CAM++, arXiv 1908.01224, section 3: each derivative of exp(score) replaced by
    its mean, the activations those of the image.
    """
    shape = layer.activations.shape
    sums: Tensor | None = None
    for copy in noisy_copies(runner.images, NOISY_COPIES, "Smooth Grad-CAM++"):
        with runner.capture(layer) as capture:
            columns = runner.score(runner.forward(copy)).unbind(1)
            gradients = torch.stack([capture.gradients(column) for column in columns]).double()
        powers = torch.stack([gradients, gradients**2, gradients**3])
        sums = powers if sums is None else sums + powers
    assert sums is not None
    maps, total = [], layer.activations.double().flatten(2).sum(2).view(*shape[:2], *[1] * (len(shape) - 2))
    for first, second, third in (sums / NOISY_COPIES).unbind(1):
        shares = quotient(second, 2 * second + total * third) * first.relu()
        maps.append(weighted_sum(layer.activations, shares.flatten(2).sum(2).float()))
    return torch.stack(maps, dim=1)


def random_map(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """Random: uniform noise on the layer's grid, from torch's generator.

    Choose it as the baseline that any measure of a map has to beat; it sees neither image nor model.
    """
    targets = runner.scores.shape[1]
    return torch.rand(len(runner.images), targets, *layer.layout.grid, device=runner.images.device)
