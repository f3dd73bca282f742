"""Fine-tune a pretrained ResNet-18 on your own images, watched by camwatch.

python examples/finetune_torchvision.py DATA              # your folder, laid out as below
python examples/finetune_torchvision.py DATA --pets       # Oxford-IIIT Pet, downloaded to DATA by torchvision

DATA/train/<class>/*.jpg      DATA/val/<class>/*.jpg
DATA/masks/<class>/<name>.png   where the object is (any pixel above 0); as many as you have
DATA/boxes.csv                  or boxes: file,x1,y1,x2,y2 with file = <class>/<name>.jpg, in the photo's pixels
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder, OxfordIIITPet
from torchvision.models import resnet18
from torchvision.transforms import v2

from camwatch import CAMMonitor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(data: Path, pets: bool, epochs: int, size: int, batch_size: int, workers: int, weights: str | None) -> None:
    train = dataset(data, "train", pets, transforms(size, augment=True))
    validation = dataset(data, "val", pets, transforms(size, augment=False))
    model = FineTuned(len(train.classes), weights)
    monitor = CAMMonitor(64)  # draws images, regions, class names and the normalization from the validation set
    trainer = pl.Trainer(max_epochs=epochs, callbacks=[monitor], log_every_n_steps=5)
    trainer.fit(
        model,
        DataLoader(train, batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0),
        DataLoader(validation, batch_size, num_workers=workers, persistent_workers=workers > 0),
    )
    print(monitor.summary())
    print(f"archive: {monitor.archive}\npictures: tensorboard --logdir {trainer.log_dir}")


class FineTuned(pl.LightningModule):
    """ResNet-18 with a new head."""

    def __init__(self, classes: int, weights: str | None = "DEFAULT") -> None:
        super().__init__()
        self.net = resnet18(weights=weights)
        self.net.fc = nn.Linear(self.net.fc.in_features, classes)

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels, _ = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels, _ = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-4)


def transforms(size: int, augment: bool) -> v2.Compose:
    """The same geometry for a photo and its mask: that is what tv_tensors are for."""
    geometry = (
        [v2.RandomResizedCrop(size, scale=(0.6, 1), antialias=True), v2.RandomHorizontalFlip()]
        if augment
        else [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    )
    return v2.Compose([v2.ToImage(), *geometry, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def dataset(data: Path, split: str, pets: bool, transform: v2.Compose) -> "RegionFolder | PetsWithRegions":
    """Samples are (image, label, mask); an empty mask stands for an image without annotation."""
    return PetsWithRegions(data, split, transform) if pets else RegionFolder(data, split, transform)


class PetsWithRegions(OxfordIIITPet):
    """Oxford-IIIT Pet: the trimaps are the regions."""

    def __init__(self, data: Path, split: str, transform: v2.Compose) -> None:
        names = {"train": "trainval", "val": "test"}
        super().__init__(data, names[split], ["category", "segmentation"], download=True)
        self.moved = transform

    def __getitem__(self, index: int):
        photo, (label, trimap) = super().__getitem__(index)
        mask = v2.functional.pil_to_tensor(trimap)[0] != 2  # 1 is the animal, 2 the background, 3 the border
        photo, mask = self.moved(photo.convert("RGB"), tv_tensors.Mask(mask))
        return photo, label, mask


class RegionFolder(ImageFolder):
    """An ImageFolder whose samples carry a third element: the mask of the region."""

    def __init__(self, data: Path, split: str, transform: v2.Compose) -> None:
        super().__init__(str(data / split))
        self.transform, self.masks = transform, data / "masks"
        self.boxes: dict[str, list[list[int]]] = defaultdict(list)
        if (data / "boxes.csv").exists():
            with open(data / "boxes.csv", newline="") as file:
                for row in csv.DictReader(file):
                    self.boxes[row["file"]].append([round(float(row[key])) for key in ("x1", "y1", "x2", "y2")])

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        name, photo = Path(path), Image.open(path).convert("RGB")
        mask = torch.zeros(photo.height, photo.width, dtype=torch.bool)
        drawn = self.masks / name.parent.name / f"{name.stem}.png"
        if drawn.exists():
            mask = v2.functional.pil_to_tensor(Image.open(drawn).convert("L"))[0] > 0
        for x1, y1, x2, y2 in self.boxes[f"{name.parent.name}/{name.name}"]:
            mask[y1:y2, x1:x2] = True
        photo, mask = self.transform(photo, tv_tensors.Mask(mask))
        return photo, label, mask


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pets", action="store_true", help="Oxford-IIIT Pet instead of your own folder")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--weights", default="DEFAULT", type=lambda name: None if name == "none" else name)
    main(**vars(parser.parse_args()))
