"""Gradient methods: pure functions (activations, gradients) -> maps.

Activations and gradients are (N, C, *grid) float32 at one layer; maps are (N, *grid), non-negative and
never normalized. A method of your own is such a function, handed to ``explain(method=...)``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _spatial(tensor: Tensor) -> tuple[int, ...]:
    return tuple(range(2, tensor.ndim))


def weighted_sum(activations: Tensor, weights: Tensor) -> Tensor:
    """Returns the positive part of the channels' sum, each times its weight (N, C): the form of most CAMs.

    Example:
        >>> weighted_sum(torch.tensor([[[1.0, 2.0], [3.0, 1.0]]]), torch.tensor([[2.0, -1.0]]))
        tensor([[0., 3.]])
    """
    return (weights.view(*weights.shape, *[1] * (activations.ndim - 2)) * activations).sum(1).relu()


def quotient(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divides; 0 where the denominator is 0, because nothing was there to be weighted."""
    zero = denominator == 0
    return torch.where(zero, torch.zeros_like(numerator), numerator / denominator.masked_fill(zero, 1))


def grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM: channels weighted by their mean gradient.

    Choose it first: cheap, class-specific, and the best studied; it passes the randomization sanity check.
    Averaging over positions can light up places that the score does not use; HiResCAM cannot.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, equations 1 and 2.

    Example:
        >>> a = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
        >>> grad_cam(a, torch.full_like(a, 0.5))
        tensor([[[0.5000, 0.0000],
                 [0.0000, 1.0000]]])
    """
    return weighted_sum(activations, gradients.mean(_spatial(gradients)))


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++: positive gradients, weighted so that each of several objects counts.

    Choose it for several instances of a class in one image, behind a ReLU. Where activations are negative
    its denominator can vanish. Its weights are positive there, so that maps hardly depend on the class: it
    fails the randomization sanity check (tests/benchmarks/randomization.py). The factor exp(score), common to
    all of an image's positions, is left out.

    Peers differ: pytorch-grad-cam adds 1e-6 to the denominator, which outweighs small gradients;
    torch-cam leaves the division out, so that its weights are the sum of the cubed positive gradients.

    Source: Chattopadhay et al., Grad-CAM++, WACV 2018, equations 5 and 19 with Y = exp(S); the squared
    gradient is cancelled, so that nothing underflows.

    Example:
        >>> a = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
        >>> grad_cam_plus_plus(a, torch.full_like(a, 2.0))  # weight 4 * 2 / (2 + 3 * 2) = 1
        tensor([[[1., 0.],
                 [0., 2.]]])
    """
    axes = _spatial(activations)
    weights = quotient(gradients.relu(), 2 + activations.sum(axes, keepdim=True) * gradients)
    return weighted_sum(activations, weights.sum(axes))


def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM: activations times gradients, position by position.

    Choose it where a map must show only places that raised the score; equal to Grad-CAM in front of
    global average pooling and one linear layer.

    Source: Draelos and Carin, arXiv 2011.08891, equation 4.

    Example:
        >>> a = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
        >>> hires_cam(a, torch.tensor([[[[1.0, 0.0], [0.0, -1.0]]]]))
        tensor([[[1., 0.],
                 [0., 0.]]])
    """
    return (activations * gradients).sum(1).relu()


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: activations times positive gradients, position by position.

    Choose it at shallow layers, for fine maps: it does not average over positions.

    Source: Jiang et al., LayerCAM, IEEE TIP 2021, equations 6 to 8.

    Example:
        >>> layer_cam(torch.tensor([[[1.0, 2.0], [1.0, 1.0]]]), torch.tensor([[[1.0, 1.0], [1.0, -9.0]]]))
        tensor([[2., 2.]])
    """
    return (activations * gradients.relu()).sum(1).relu()


def xgrad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM: gradients averaged with the activations as weights.

    Choose it behind a ReLU, where the weights should add up to the score as nearly as they can. A channel
    whose activations sum to zero counts nothing.

    Source: Fu et al., Axiom-based Grad-CAM, BMVC 2020, equation 8.

    Example:
        >>> xgrad_cam(torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[4.0, 0.0]]]))  # weight 4 / 4
        tensor([[1., 3.]])
    """
    axes = _spatial(activations)
    weights = quotient((activations * gradients).sum(axes), activations.sum(axes))
    return weighted_sum(activations, weights)


def elementwise_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Element-wise Grad-CAM: the positive products of activations and gradients.

    Choose it to see everything that speaks for the score; what speaks against it is not set off.

    Source: Pillai and Pirsiavash, Explainable models with consistent interpretations, AAAI 2021, section 3,
    as in pytorch-grad-cam.

    Example:
        >>> elementwise_cam(torch.tensor([[[1.0, 2.0], [1.0, 1.0]]]), torch.tensor([[[1.0, 1.0], [1.0, -9.0]]]))
        tensor([[2., 2.]])
    """
    return (activations * gradients).relu().sum(1)


def _along_first_component(values: Tensor) -> Tensor:
    """Projects every position's channels on the first principal component, in the direction of their sum."""
    points = values.flatten(2).transpose(1, 2).double()
    finite = points.isfinite().flatten(1).all(1)[:, None]
    centred = torch.where(finite[:, None], points - points.mean(1, keepdim=True), 0.0)
    direction = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0]
    return _oriented(torch.einsum("npc,nc->np", centred, direction), centred.sum(2), finite, values)


def _oriented(projection: Tensor, reference: Tensor, finite: Tensor, values: Tensor) -> Tensor:
    """A component's sign is arbitrary: takes the one that agrees with the reference. Not finite stays so."""
    sign = torch.where((projection * reference).sum(1, keepdim=True) < 0, -1.0, 1.0)
    maps = torch.where(finite, sign * projection, torch.nan)
    return maps.relu().reshape(len(values), *values.shape[2:]).float()


def eigen_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Eigen-CAM: the activations' first principal component; looks at neither gradient nor class.

    Choose it to see what stands out in the features, whatever the class: it cannot tell why one was chosen.

    The channels are centred first, as in pytorch-grad-cam, and the component's sign, which is arbitrary
    there, is the one that agrees with the sum of the channels.

    Source: Muhammad and Yeasin, Eigen-CAM, IJCNN 2020, equations 3 and 4.

    Example:
        >>> a = torch.tensor([[[0.0, 0.0, 3.0], [0.0, 0.0, 4.0]]])
        >>> eigen_cam(a, torch.zeros_like(a))  # 5 along (3, 4), less the mean 5/3
        tensor([[0.0000, 0.0000, 3.3333]])
    """
    return _along_first_component(activations)


def eigen_grad_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Eigen-Grad-CAM: the first principal component of activations times gradients.

    Choose it for a smoother HiResCAM; the price is that places can appear that the score does not use.

    Source: pytorch-grad-cam, after Eigen-CAM (Muhammad and Yeasin, IJCNN 2020); sign as in ``eigen_cam``.

    Example:
        >>> a = torch.tensor([[[0.0, 0.0, 3.0], [0.0, 0.0, 4.0]]])
        >>> eigen_grad_cam(a, torch.ones_like(a))
        tensor([[0.0000, 0.0000, 3.3333]])
    """
    return _along_first_component(activations * gradients)


def kpca_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """KPCA-CAM: the activations' first component under a sigmoid kernel; looks at neither gradient nor class.

    Choose it instead of Eigen-CAM where features depend on each other nonlinearly. The kernel is
    tanh(x·y / C + 1) over centred channels, as in pytorch-grad-cam.

    Source: Karmani et al., KPCA-CAM, arXiv 2410.00267, section 3.

    Example:
        >>> a = torch.tensor([[[0.0, 0.0, 3.0], [0.0, 0.0, 4.0]]])
        >>> kpca_cam(a, torch.zeros_like(a)).argmax()
        tensor(2)
    """
    points = activations.flatten(2).transpose(1, 2).double()
    finite = points.isfinite().flatten(1).all(1)[:, None]
    centred = torch.where(finite[:, None], points - points.mean(1, keepdim=True), 0.0)
    kernel = torch.tanh(centred @ centred.mT / points.shape[2] + 1)
    kernel = kernel - kernel.mean(1, keepdim=True) - kernel.mean(2, keepdim=True) + kernel.mean((1, 2), keepdim=True)
    values, vectors = torch.linalg.eigh(kernel)
    rounding = 1e-12 * points.shape[1]
    projection = vectors[:, :, -1] * values[:, -1:].relu().sqrt() * (values[:, -1:] > rounding)
    return _oriented(projection, centred.sum(2), finite, activations)


def fem_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """FEM: channels weighted by the share of positions where they stand out by two standard deviations.

    Choose it for rare, strong features; looks at neither gradient nor class.

    Source: Fuad et al., Features understanding in 3D CNNs, IPTA 2020, section III, k = 2.

    Example:
        >>> a = torch.zeros(1, 1, 8)
        >>> a[0, 0, 3] = 1
        >>> fem_cam(a, torch.zeros_like(a))[0, 3]
        tensor(0.1250)
    """
    axes = _spatial(activations)
    mean, deviation = activations.mean(axes, keepdim=True), activations.std(axes, correction=0, keepdim=True)
    return weighted_sum(activations, (activations > mean + 2 * deviation).float().mean(axes))
