"""The same as engine.py by hand: what happens inside explain()."""

import torch
from torch import nn

from camwatch import explain, layers
from camwatch.cam import LayerCapture, grad_cam


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip
    images, labels = torch.rand(4, 3, 64, 64), torch.tensor([1, 7, 7, 3])

    # One dry pass over one image lists the layers that have a grid on the image and a gradient on it.
    for layer in layers(model, images):
        print(layer)

    # During the forward pass the hook puts a leaf of the autograd graph in the place of the layer's output.
    with LayerCapture(model, "3") as capture:
        scores = model(images)

    # The gradient runs from the labels' logits back to that leaf, no further.
    gradients = capture.gradients(scores[torch.arange(4), labels].sum())
    maps = grad_cam(capture.activations, gradients)

    assert torch.allclose(maps, explain(model, images, target=labels).maps)
    print(f"maps {tuple(maps.shape)}, the same as explain() gives")


if __name__ == "__main__":
    main()
