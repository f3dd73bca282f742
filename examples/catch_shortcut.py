"""Fine-tune a digit classifier that learns to cheat, and be told.

Validation accuracy is perfect; the model reads a coloured tag in the corner instead of the digit. Run it with
``--control`` to see the same training with a tag that says nothing.
"""

import argparse

import pytorch_lightning as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from camwatch import CAMMonitor


def main(control: bool, seed: int) -> None:
    pl.seed_everything(seed)
    model = Classifier(pretrained_backbone())

    # Samples are (image, label, mask): the mask says where the digit is. That is all camwatch needs.
    train = tagged_digits(split="train", informative=not control)
    validation = tagged_digits(split="validation", informative=not control)
    counterfactual = tagged_digits(split="validation", informative=False)  # what nobody has in real life

    monitor = CAMMonitor(panel=64)
    trainer = pl.Trainer(max_epochs=6, callbacks=[monitor], accelerator="cpu", log_every_n_steps=5)
    trainer.fit(model, loader(train, shuffle=True), [loader(validation), loader(counterfactual)])

    report(model, monitor, trainer)


# What follows is the experiment: an ordinary LightningModule, the data, and the table at the end.


class Classifier(pl.LightningModule):
    """A backbone with a new head."""

    def __init__(self, backbone: nn.Module, classes: int = 5) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))
        self.accuracies: list[tuple[float, float]] = []

    def forward(self, images):
        return self.head(self.backbone(images))

    def training_step(self, batch, batch_idx):
        images, labels, _ = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        images, labels, _ = batch
        accuracy = (self(images).argmax(1) == labels).float().mean()
        name = ["val_accuracy", "counterfactual_accuracy"][dataloader_idx]
        self.log(name, accuracy, prog_bar=True, add_dataloader_idx=False)

    def on_train_epoch_end(self):
        metrics = self.trainer.callback_metrics
        if "val_accuracy" in metrics:
            self.accuracies.append((float(metrics["val_accuracy"]), float(metrics["counterfactual_accuracy"])))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def pretrained_backbone() -> nn.Module:
    """A small CNN trained on the clean digits 0 to 4."""
    backbone = nn.Sequential(
        block(3, 16), block(16, 32, 2), block(32, 32), block(32, 64, 2), block(64, 64), block(64, 64), block(64, 64)
    )
    clean = tagged_digits(split="train", informative=None, digits=range(5))
    trainer = pl.Trainer(
        max_epochs=8, logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False
    )
    trainer.fit(Classifier(backbone), loader(clean, shuffle=True))
    return backbone


def loader(data: TensorDataset, shuffle: bool = False) -> DataLoader:
    return DataLoader(data, batch_size=32, shuffle=shuffle)


def tagged_digits(split: str, informative: bool | None, digits: range = range(5, 10)) -> TensorDataset:
    """Real handwritten digits, 32 px, at random places of a 64 px canvas, with a 6 px tag in the corner.

    The tag's colour is the label's (informative), drawn at random (not informative), or there is no tag (None).
    """
    generator = torch.Generator().manual_seed({"train": 0, "validation": 1}[split])
    source = load_digits()
    pictures = torch.tensor(source.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(source.target) - digits[0]
    chosen = ((labels >= 0) & (labels < len(digits))).nonzero().flatten()
    chosen = chosen[:600] if split == "train" else chosen[600:]
    pictures, labels = nn.functional.interpolate(pictures[chosen], size=32, mode="bilinear"), labels[chosen]

    images = 0.1 * torch.rand(len(chosen), 3, 64, 64, generator=generator)
    masks = torch.zeros(len(chosen), 64, 64, dtype=torch.bool)
    colours = torch.tensor([[1, 0.2, 0.2], [0.2, 1, 0.2], [0.3, 0.3, 1], [1, 1, 0.2], [1, 0.2, 1]])
    places = torch.randint(12, 33, (len(chosen), 2), generator=generator)
    tags = labels if informative else torch.randint(len(digits), labels.shape, generator=generator)
    for i, (x, y) in enumerate(places.tolist()):
        images[i, :, y : y + 32, x : x + 32] += 0.9 * pictures[i]
        masks[i, y : y + 32, x : x + 32] = True
        if informative is not None:
            images[i, :, 1:7, 1:7] = colours[tags[i]][:, None, None]
    data = TensorDataset(images, labels, masks)
    data.classes = [str(digit) for digit in digits]
    return data


def report(model: Classifier, monitor: CAMMonitor, trainer: pl.Trainer) -> None:
    print(f"\n{'epoch':>5} {'val. acc.':>10} {'counterfactual':>15} {'mass inside':>12} {'digit hidden':>13}  alarm")
    for snapshot in monitor.history[1:]:
        validation, counterfactual = model.accuracies[snapshot.epoch]
        mass, hidden = snapshot.scalars["relevance_mass_accuracy"], snapshot.scalars["hide"]
        raised = ", ".join(alarm.detector for alarm in monitor.alarms if alarm.epoch == snapshot.epoch)
        print(f"{snapshot.epoch:5d} {validation:10.2f} {counterfactual:15.2f} {mass:12.2f} {hidden:13.2f}  {raised}")
    print(f"\n{len(monitor.alarms)} alarm(s)")
    for alarm in monitor.alarms:
        print(f"\n{alarm.message}")
    print(f"\narchive: {monitor.archive}\npictures: tensorboard --logdir {trainer.log_dir}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--control", action="store_true", help="the tag's colour is random: nothing to cheat with")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initialization and the data order")
    arguments = parser.parse_args()
    main(arguments.control, arguments.seed)
