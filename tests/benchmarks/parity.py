"""Each method beside the peers that share it: largest difference of the raw maps, as a share of their maximum.

    python tests/benchmarks/parity.py [--only resnet18] [--fast]

ResNet-18, VGG-16-BN and MobileNetV3-small with random weights, a label per image; three small ViTs for the
attention methods. pytorch-grad-cam's maps are taken before its normalization, with a ReLU. The column "equation" is
the paper's, for the methods about which the peers disagree or that no peer has; there both sides run the network in
float64, because in float32 max pooling chooses other pixels, and gradients differ by percents. Where a method draws
noise, the peer is given the same. What runs the model once per channel runs on the same networks cut to eight
channels. ``--fast`` leaves out the methods that run the model again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytorch_grad_cam
import torch
import torchcam.methods
import torchvision
from captum import attr
from equations import (
    ablation_cam,
    capture,
    full_grad,
    grad_cam_plus_plus,
    own_attentions,
    score_cam,
    smooth_grad_cam_plus_plus,
)
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional

from camwatch import explain, layers
from camwatch.cam.methods.further_gradients import NOISY_COPIES
from camwatch.cam.methods.input_gradients import noisy_copies
from camwatch.cam.methods.masking import IS_STEPS, SS_DRAWS, mask_noise
from camwatch.cam.methods.registry import needs_layer
from camwatch.errors import UnsupportedError

LAYERS = {"mobilenet_v3_small": "features.12", "resnet18": "layer4", "vgg16_bn": "features.42"}
PIXELS = {"mobilenet_v3_small": 128, "resnet18": 96, "vgg16_bn": 64}
WIDTHS = {"mobilenet_v3_small": 576, "resnet18": 512, "vgg16_bn": 512}
COLUMNS = ("pytorch-grad-cam", "torch-cam", "Captum", "equation")
SIGNLESS = {"eigencam", "eigengradcam", "kpcacam"}  # the sign of a principal component is arbitrary
BY_CHANNEL = {"ablationcam", "iscam", "scorecam", "sscam"}  # run the model once per channel
Peer = Callable[[nn.Module, str, Tensor, Tensor], Tensor]


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


def by_pytorch_grad_cam(peer: str, model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    module = dict(model.named_modules())[layer]
    targets = [ClassifierOutputTarget(int(label)) for label in labels]
    with contextlib.redirect_stderr(io.StringIO()), getattr(pytorch_grad_cam, peer)(model, [module]) as cam:
        a, g = (t.numpy() for t in capture(model, layer, images, labels))
        return torch.from_numpy(np.asarray(cam.get_cam_image(images, module, targets, a, g, False)))


def by_pytorch_grad_cam_whole(peer: str, model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """The peers that take derivatives or scores of their own, their maps caught on the way."""
    kept: list[np.ndarray] = []
    with contextlib.redirect_stdout(io.StringIO()):
        cam = getattr(pytorch_grad_cam, peer)(model, [dict(model.named_modules())[layer]])
    base = getattr(cam, "base_cam", cam)
    if peer == "FullGrad":
        base.aggregate_multi_layers = lambda parts: kept.append(parts[:, 0]) or parts[:, 0]
    else:
        original = base.get_cam_image
        base.get_cam_image = lambda *given: kept.append(original(*given)) or kept[-1]
    targets = None if peer == "FinerCAM" else [ClassifierOutputTarget(int(label)) for label in labels]
    cam(images.clone(), targets)
    base.activations_and_grads.release()
    model.zero_grad(set_to_none=True)
    return torch.from_numpy(kept[0])


class Drawn:
    """Stands in for torch-cam's noise: camwatch's, draw by draw."""

    def __init__(self, images: Tensor) -> None:
        self.draw, self.images = -1, images
        self.copies = [copy - images for copy in noisy_copies(images, NOISY_COPIES, "")]

    def sample(self, size: torch.Size) -> Tensor:
        self.draw += 1
        if size == self.images.shape:
            return self.copies[self.draw]
        shape = torch.Size((size[0], 1, *size[2:]))
        return torch.cat([mask_noise(self.draw, channel, shape) for channel in range(size[1])], 1)


def by_torch_cam(peer: str, model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    samples = {"SSCAM": SS_DRAWS, "ISCAM": IS_STEPS, "SmoothGradCAMpp": NOISY_COPIES}
    options = {"num_samples": samples[peer]} if peer in samples else {}
    with getattr(torchcam.methods, peer)(model, layer, **options) as extractor:
        extractor._distrib = Drawn(images)
        scores = model(images)
        found: Tensor = extractor(labels.tolist(), scores, normalized=False)[0]
        return found.detach()


def by_torch_cam_refine(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """torch-cam's refinement of the equation's Grad-CAM++, because its own leaves the division out."""
    found = layers(model, images)
    down = found[: [one.default for one in found].index(True) + 1]
    last = {one.grid: one.name for one in down}
    parts = [grad_cam_plus_plus(model, name, images, labels).float() for name in last.values()]
    return torchcam.methods.RefineCAM.fuse_cams(parts, normalized=False)


def by_torch_cam_legrad(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    with torchcam.methods.LeGrad(model, list(model.encoder.layers)) as extractor:
        model(images)
        return extractor(labels.tolist(), normalized=False)[0].detach()


def by_captum(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    found = attr.LayerGradCam(model, dict(model.named_modules())[layer]).attribute(images, target=labels)
    assert isinstance(found, Tensor)
    return found.detach()[:, 0]


def by_captum_pixels(peer: str, model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    if peer == "Occlusion":  # a seventh of the image, by half of that
        width = round(images.shape[2] / 7)
        window = {"sliding_window_shapes": (3, width, width), "strides": (3, width, width)}
        return attr.Occlusion(model).attribute(images, target=labels, **window)[:, 0, ::width, ::width].relu()
    if peer == "SmoothGrad":
        oracle = attr.Saliency(model)
        copies = list(noisy_copies(images, 25, ""))
        found = sum(oracle.attribute(copy.clone(), target=labels, abs=False) for copy in copies) / len(copies)
    elif peer == "GuidedGradCam":
        oracle = attr.GuidedGradCam(model, dict(model.named_modules())[layer])
        found = oracle.attribute(images.clone(), target=labels, interpolate_mode="bilinear")
    else:
        found = getattr(attr, peer)(model).attribute(images.clone(), target=labels)
    return found.detach().abs().amax(1)


def of(function: Callable[..., Tensor], *names: str) -> Peer:
    return partial(function, *names)


JG = {
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
    "elementwise": "GradCAMElementWise",
    "fem": "FEM",
    "hirescam": "HiResCAM",
    "kpcacam": "KPCA_CAM",
}
PEERS: dict[str, dict[str, Peer]] = {
    **{name: {"pytorch-grad-cam": of(by_pytorch_grad_cam, peer)} for name, peer in JG.items()},
    "ablationcam": {"pytorch-grad-cam": of(by_pytorch_grad_cam, "AblationCAM"), "equation": ablation_cam},
    "cam": {"torch-cam": of(by_torch_cam, "CAM")},
    "finercam": {
        "pytorch-grad-cam": of(by_pytorch_grad_cam_whole, "FinerCAM"),
        "torch-cam": of(by_torch_cam, "FinerCAM"),
    },
    "fullgrad": {"pytorch-grad-cam": of(by_pytorch_grad_cam_whole, "FullGrad"), "equation": full_grad},
    "gradcam": {
        "pytorch-grad-cam": of(by_pytorch_grad_cam, "GradCAM"),
        "torch-cam": of(by_torch_cam, "GradCAM"),
        "Captum": by_captum,
    },
    "gradcam++": {
        "pytorch-grad-cam": of(by_pytorch_grad_cam, "GradCAMPlusPlus"),
        "torch-cam": of(by_torch_cam, "GradCAMpp"),
        "equation": grad_cam_plus_plus,
    },
    "guidedbackprop": {"Captum": of(by_captum_pixels, "GuidedBackprop")},
    "guidedgradcam": {"Captum": of(by_captum_pixels, "GuidedGradCam")},
    "iscam": {"torch-cam": of(by_torch_cam, "ISCAM"), "equation": partial(score_cam, method="iscam")},
    "layercam": {
        "pytorch-grad-cam": of(by_pytorch_grad_cam, "LayerCAM"),
        "torch-cam": of(by_torch_cam, "LayerCAM"),
    },
    "legrad": {"torch-cam": by_torch_cam_legrad},
    "occlusion": {"Captum": of(by_captum_pixels, "Occlusion")},
    "refinecam": {"torch-cam": by_torch_cam_refine},
    "rollout": {"equation": own_attentions},
    "saliency": {"Captum": of(by_captum_pixels, "Saliency")},
    "scorecam": {
        "pytorch-grad-cam": of(by_pytorch_grad_cam, "ScoreCAM"),
        "torch-cam": of(by_torch_cam, "ScoreCAM"),
        "equation": score_cam,
    },
    "shapleycam": {"pytorch-grad-cam": of(by_pytorch_grad_cam_whole, "ShapleyCAM")},
    "smoothgrad": {"Captum": of(by_captum_pixels, "SmoothGrad")},
    "smoothgradcam++": {
        "torch-cam": of(by_torch_cam, "SmoothGradCAMpp"),
        "equation": smooth_grad_cam_plus_plus,
    },
    "sscam": {"torch-cam": of(by_torch_cam, "SSCAM"), "equation": partial(score_cam, method="sscam")},
    "xgradcam": {
        "pytorch-grad-cam": of(by_pytorch_grad_cam, "XGradCAM"),
        "torch-cam": of(by_torch_cam, "XGradCAM"),
    },
}


def cut(name: str) -> tuple[nn.Module, Tensor]:
    """A random network cut behind eight of its last layer's channels, for methods that run it once per channel."""
    full, images = build(name)
    trunk = nn.Sequential(*list(full.children())[:-2]) if name == "resnet18" else full.features
    squeeze = nn.Sequential(nn.Conv2d(WIDTHS[name], 8, 1), nn.BatchNorm2d(8, momentum=1.0), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 10))
    model = nn.Sequential(trunk, squeeze, head)
    with torch.no_grad():
        model.train()(torch.randn(8, *images.shape[1:]))
    return model.eval(), images


def transformers() -> dict[str, tuple[nn.Module, Tensor]]:
    """Three ViTs: patch, blocks, heads and width."""
    found = {}
    for patch, depth, heads, width in ((8, 3, 4, 32), (16, 6, 2, 48), (8, 12, 3, 24)):
        torch.manual_seed(3)
        model = torchvision.models.VisionTransformer(64, patch, depth, heads, width, 2 * width, num_classes=10)
        nn.init.normal_(model.heads.head.weight)
        found[f"ViT, {depth} blocks, {patch} px"] = model.eval(), torch.randn(2, 3, 64, 64)
    return found


def difference(method: str, ours: Tensor, theirs: Tensor) -> str:
    signs = (1, -1) if method in SIGNLESS else (1,)
    worst = 0.0
    for mine, their in zip(ours.double(), theirs.double(), strict=True):
        gaps = [float((mine - (sign * their).relu()).abs().max() / (sign * their).relu().max()) for sign in signs]
        worst = max(worst, min(gaps))
    return f"{worst:.0e}"


def row(name: str, model: nn.Module, layer: str, images: Tensor, method: str) -> str:
    if method == "occlusion":  # windows of a seventh that move by half of that
        side = 14 * round(images.shape[2] / 14)
        images = functional.interpolate(images, (side, side))
    with torch.no_grad():
        labels = model(images).argmax(1)  # positive scores: Ablation-CAM's ratio keeps its sign
    where = {"layer": layer} if needs_layer(method) else {}
    try:
        ours = explain(model, images, target=labels, method=method, **where).maps
    except UnsupportedError:
        return f"| {name} | {method} | {' | '.join('unsupported' if c in PEERS[method] else '' for c in COLUMNS)} |"
    ours = ours[:, ::2, ::2] if method == "occlusion" else ours  # every other window of half the step
    cells = []
    for column in COLUMNS:
        peer = PEERS[method].get(column)
        if peer is None:
            cells.append("")
        elif column == "equation":
            exact = explain(model.double(), images.double(), target=labels, method=method, **where).maps
            cells.append(difference(method, exact, peer(model, layer, images.double(), labels)))
            model.float()
        else:
            cells.append(difference(method, ours, peer(model, layer, images, labels)))
    return f"| {name} | {method} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(LAYERS))
    parser.add_argument("--fast", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"| architecture | method | {' | '.join(COLUMNS)} |\n|{' --- |' * 6}")
    for name, layer in LAYERS.items():
        if arguments.only not in (None, name):
            continue
        whole = build(name)
        for method in sorted(PEERS):
            if method in ("legrad", "rollout") or (arguments.fast and method in {*BY_CHANNEL, "occlusion"}):
                continue
            if method in BY_CHANNEL:
                print(row(f"{name}, cut", *_with("1", cut(name)), method), flush=True)
            else:
                print(row(name, *_with(layer, whole), method), flush=True)
    for name, (model, images) in transformers().items() if arguments.only is None else ():
        for method in ("legrad", "rollout"):
            print(row(name, model, "", images, method), flush=True)


def _with(layer: str, built: tuple[nn.Module, Tensor]) -> tuple[nn.Module, str, Tensor]:
    return built[0], layer, built[1]


if __name__ == "__main__":
    main()
