"""Explain a photograph with any vision model, and save the picture: python examples/engine.py IMAGE [MODEL]."""

import sys

import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.models import get_model, get_model_weights

from camwatch import explain


def main(path: str, name: str = "resnet50", pretrained: bool = True) -> None:
    weights = get_model_weights(name).DEFAULT
    model = get_model(name, weights=weights if pretrained else None).eval()
    transform = weights.transforms()
    images = transform(decode_image(path, ImageReadMode.RGB))[None]

    explanation = explain(model, images)  # the predicted class, the layer found, Grad-CAM

    classes, probabilities = explanation.top(5)
    print(f"layer {explanation.layer}, maps {tuple(explanation.maps.shape)}")
    for index, probability in zip(classes[0].tolist(), probabilities[0].tolist(), strict=True):
        print(f"{probability:6.1%}  {weights.meta['categories'][index]}")
    figure = explanation.figure(
        images, class_names=weights.meta["categories"], denormalize=(transform.mean, transform.std)
    )
    figure.savefig("explanation.png", dpi=120)
    print("explanation.png")


if __name__ == "__main__":
    torch.set_grad_enabled(False)  # explain() does not mind
    main(*sys.argv[1:])
