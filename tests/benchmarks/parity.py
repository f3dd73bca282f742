"""Each method beside the peers that share it: largest difference of the raw maps, as a share of their maximum.

    python tests/benchmarks/parity.py [--only resnet18] [--fast]

ResNet-18, VGG-16-BN and MobileNetV3-small with random weights, a label per image. pytorch-grad-cam's maps are
taken before its normalization, with a ReLU. The column "equation" is the paper's, evaluated in float64, for
the methods about which the peers disagree. ``--fast`` leaves out the methods that run the model again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings

import numpy as np
import pytorch_grad_cam
import torch
import torchcam.methods
import torchvision
from captum.attr import LayerGradCam
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional

from camwatch import explain
from camwatch.cam import LayerCapture

LAYERS = {"mobilenet_v3_small": "features.12", "resnet18": "layer4", "vgg16_bn": "features.42"}
PIXELS = {"mobilenet_v3_small": 128, "resnet18": 96, "vgg16_bn": 64}
JG = {
    "ablationcam": "AblationCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "elementwise": "GradCAMElementWise",
    "fem": "FEM",
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "kpcacam": "KPCA_CAM",
    "layercam": "LayerCAM",
    "scorecam": "ScoreCAM",
    "xgradcam": "XGradCAM",
}
TORCHCAM = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMpp",
    "layercam": "LayerCAM",
    "scorecam": "ScoreCAM",
    "xgradcam": "XGradCAM",
}
SIGNLESS = {"eigencam", "eigengradcam", "kpcacam"}  # the sign of a principal component is arbitrary
SLOW = {"ablationcam", "scorecam"}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A random network whose normalization has seen data once: fresh, deep activations are almost constant."""
    torch.manual_seed(3)
    model = torchvision.models.get_model(name, weights=None, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, PIXELS[name], PIXELS[name]))
    return model.eval(), torch.randn(2, 3, PIXELS[name], PIXELS[name])


def capture(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    with LayerCapture(model, layer) as captured:
        score = model(images)[torch.arange(len(images)), labels].sum()
    return captured.activations, captured.gradients(score)


def grad_cam_plus_plus(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    a, g = (t.double() for t in capture(model, layer, images, labels))
    alpha = torch.where(g == 0, 0, g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3))
    return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1).relu()


def score_cam(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    activations = capture(model, layer, images, labels)[0].double()
    model.double()
    maps = []
    with torch.no_grad():
        for image, label, cells in zip(images.double(), labels.tolist(), activations, strict=True):
            masks = functional.interpolate(cells[:, None], image.shape[1:], mode="bilinear")
            low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
            masks = torch.where(high > low, (masks - low) / (high - low), 0)
            scores = torch.cat([model(image * part)[:, label] for part in masks.split(8)])
            maps.append((scores.softmax(0).view(-1, 1, 1) * cells).sum(0).relu())
    model.float()
    return torch.stack(maps)


@torch.no_grad()
def ablation_cam(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    kept: list[Tensor] = []
    channels: list[Tensor] = []

    def ablate(module: nn.Module, args: object, output: Tensor) -> Tensor:
        kept[:] = [output]
        return output * channels[0].view(-1, output.shape[1], 1, 1) if channels else output

    model.double()
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
    model.float()
    return torch.stack(maps)


EQUATIONS = {"ablationcam": ablation_cam, "gradcam++": grad_cam_plus_plus, "scorecam": score_cam}


def by_pytorch_grad_cam(method: str, model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    module = dict(model.named_modules())[layer]
    a, g = (t.numpy() for t in capture(model, layer, images, labels))
    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    with contextlib.redirect_stderr(io.StringIO()), getattr(pytorch_grad_cam, JG[method])(model, [module]) as cam:
        return torch.from_numpy(np.asarray(cam.get_cam_image(images, module, targets, a, g, False)))


def by_torch_cam(method: str, model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    with getattr(torchcam.methods, TORCHCAM[method])(model, layer) as extractor:
        scores = model(images)
        found: Tensor = extractor(labels.tolist(), scores, normalized=False)[0]
        return found


def by_captum(method: str, model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    found = LayerGradCam(model, dict(model.named_modules())[layer]).attribute(images, target=labels)
    assert isinstance(found, Tensor)
    return found.detach()[:, 0]


def difference(method: str, ours: Tensor, theirs: Tensor) -> str:
    signs = (1, -1) if method in SIGNLESS else (1,)
    worst = 0.0
    for mine, their in zip(ours.double(), theirs.double(), strict=True):
        gaps = [float((mine - (sign * their).relu()).abs().max() / (sign * their).relu().max()) for sign in signs]
        worst = max(worst, min(gaps))
    return f"{worst:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(LAYERS))
    parser.add_argument("--fast", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| architecture | method | pytorch-grad-cam | torch-cam | Captum | equation |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, layer in LAYERS.items():
        if arguments.only not in (None, name):
            continue
        model, images = build(name)
        with torch.no_grad():
            labels = model(images).argmax(1)  # positive scores: Ablation-CAM's ratio keeps its sign
        for method in sorted(JG):
            if arguments.fast and method in SLOW:
                continue
            ours = explain(model, images, layer=layer, target=labels, method=method).maps
            cells = [difference(method, ours, by_pytorch_grad_cam(method, model, layer, images, labels))]
            known = {"torch-cam": method in TORCHCAM, "Captum": method == "gradcam", "equation": method in EQUATIONS}
            peers = {"torch-cam": by_torch_cam, "Captum": by_captum}
            for column, there in known.items():
                if not there:
                    cells.append("")
                elif column == "equation":
                    cells.append(difference(method, ours, EQUATIONS[method](model, layer, images, labels)))
                else:
                    cells.append(difference(method, ours, peers[column](method, model, layer, images, labels)))
            print(f"| {name} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
