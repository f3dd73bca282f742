"""The main job end to end, on what users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from camwatch import CAMMonitor, explain, load_archive
from camwatch.errors import CamwatchWarning
from tests.support.nets import SmallNet, data, loader

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
HEIGHT, WIDTH = 48, 72


def write_photos(folder: Path, each: int = 10) -> None:
    """JPEGs of 60 x 90 px: a bright disc on the left (cats) or on the right (dogs), and its mask as PNG."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:60, :90]
    for name, centre in (("cats", 25), ("dogs", 65)):
        for split in ("train", "val", "masks"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(2 * each):
            y, x = 30 + rng.integers(-8, 9), centre + rng.integers(-8, 9)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < 12**2
            photo = rng.integers(0, 90, (60, 90, 3), dtype=np.uint8)
            photo[disc] += np.array([150, 100, 50], dtype=np.uint8)
            split = "train" if i < each else "val"
            Image.fromarray(photo).save(folder / split / name / f"{i:03d}.jpg", quality=95)
            Image.fromarray(disc.astype(np.uint8) * 255).save(folder / "masks" / name / f"{i:03d}.png")


class Photos(Dataset[dict[str, Any]]):
    """Samples are dictionaries; the mask goes through the same geometry as the photo."""

    def __init__(self, folder: Path, split: str) -> None:
        self.files, self.masks = ImageFolder(str(folder / split)), folder / "masks"
        self.classes, self.samples = self.files.classes, self.files.samples
        self.transform = v2.Compose([
            v2.ToImage(),
            v2.Resize((HEIGHT, WIDTH), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.files.samples[index]
        drawn = Image.open(self.masks / Path(path).parent.name / f"{Path(path).stem}.png")
        image, mask = self.transform(self.files.loader(path), tv_tensors.Mask(np.array(drawn) > 0))
        return {"pixel_values": image, "label": label, "mask": mask}


class DictNet(SmallNet):
    """Takes dictionaries and has a forward that takes no images: ``forward=`` says how they go through."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:  # type: ignore[override]
        return {"logits": super().forward(batch["pixel_values"])}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch)["logits"], batch["label"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch)["logits"], batch["label"]))


def test_training_on_jpeg_folders_is_watched(tmp_path: Path) -> None:
    write_photos(tmp_path)
    torch.manual_seed(0)
    monitor = CAMMonitor(
        16, layer="features", forward=lambda module, images: module({"pixel_values": images}), show=4
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[monitor],
        accelerator="cpu",
        logger=TensorBoardLogger(tmp_path / "logs"),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = [
        DataLoader(Photos(tmp_path, split), 8, shuffle=split == "train", num_workers=2) for split in ("train", "val")
    ]
    trainer.fit(DictNet(classes=2), *loaders)

    run = load_archive(tmp_path / "logs")
    panel = run.panel
    assert [snapshot.epoch for snapshot in monitor.history] == [-1, 0, 1]
    assert panel["images"].shape == (16, 3, HEIGHT, WIDTH)
    assert sorted(panel["labels"].tolist()) == [0] * 8 + [1] * 8, "balanced over the classes"
    assert panel["class_names"] == ["cats", "dogs"]
    np.testing.assert_allclose(panel["denormalize"], (MEAN, STD), rtol=1e-6)
    assert all(path.endswith(".jpg") for path in panel["ids"])

    # The oracle: the same images and masks read by hand, explained with the trained weights.
    photos = Photos(tmp_path, "val")
    rows = [[path for path, _ in photos.files.samples].index(path) for path in panel["ids"]]
    samples = [photos[i] for i in rows]
    images = torch.stack([sample["pixel_values"] for sample in samples])
    masks = torch.stack([sample["mask"] for sample in samples]).bool()
    assert torch.equal(images, panel["images"])
    assert torch.equal(masks, panel["regions"]["allowed"])
    labels = torch.tensor([sample["label"] for sample in samples])
    model = trainer.lightning_module
    found = explain(
        model, images, target=labels, layer="features", forward=lambda module, x: module({"pixel_values": x})
    )  # fmt: skip
    torch.testing.assert_close(run.snapshots[-1].maps["features"], found.maps)
    up = masks.float().reshape(16, 12, 4, 18, 4).mean((2, 4))  # 48 x 72 pixels on a 12 x 18 grid
    share = (found.maps * up).sum((1, 2)) / found.maps.sum((1, 2))
    usable = share.isfinite() & (up.amax((1, 2)) >= 0.5)
    torch.testing.assert_close(monitor.history[-1].scalars["relevance_mass_accuracy"], float(share[usable].mean()))


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def always(snapshot: Any) -> Any:
        from camwatch import Finding

        return (
            Finding("always", snapshot.epoch, snapshot.global_step, "Everything is suspicious.")
            if snapshot.look
            else None
        )

    monitor = CAMMonitor(16, detectors=[always], on_alarm=[], every_n_epochs=2)
    logger = TensorBoardLogger(tmp_path)
    trainer = pl.Trainer(
        max_epochs=4, callbacks=[monitor], accelerator="cpu", logger=logger, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(SmallNet(), loader(data(), shuffle=True), loader(data()))

    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    steps = [0, 8, 16]  # 4 batches an epoch, a snapshot before the first and in every second epoch
    for tag in ("camwatch/features/overlays", "camwatch/features/film_strip"):
        assert [event.step for event in events.Images(tag)] == steps
        assert all(event.encoded_image_string.startswith(b"\xff\xd8") for event in events.Images(tag))
    assert [event.step for event in events.Images("camwatch/panel")] == [0]
    for key in ("relevance_mass_accuracy", "pointing_game", "features/relevance_mass_accuracy"):
        logged = events.Scalars(f"camwatch/{key}")
        assert [event.step for event in logged] == steps
        values = [snapshot.scalars[key.rsplit("/", 1)[-1]] for snapshot in monitor.history]
        np.testing.assert_allclose([event.value for event in logged], values, rtol=1e-6)
    assert [event.value for event in events.Scalars("camwatch/alarm")] == [0, 1, 1]
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("camwatch/alarm/text_summary")]
    assert len(texts) == 2 and all("Everything is suspicious." in text for text in texts)


def test_default_use_needs_no_regions(tmp_path: Path) -> None:
    monitor = CAMMonitor()
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[monitor], accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(CamwatchWarning, match="stretched"):
        trainer.fit(SmallNet(), loader(data(64, regions=False)), loader(data(64, regions=False)))
    first, last = monitor.history
    assert "relevance_mass_accuracy" not in last.scalars and "hide" not in last.scalars
    assert first.scalars["map_similarity"] == pytest.approx(1, abs=1e-5) and last.scalars["map_similarity"] < 1
    assert "camwatch/map_similarity" in trainer.callback_metrics
    assert len(load_archive(tmp_path).snapshots) == 2


def test_images_are_shown_in_their_true_colours(tmp_path: Path) -> None:
    write_photos(tmp_path, each=4)
    photos = Photos(tmp_path, "val")
    from camwatch.panel.drawing import draw

    panel = draw(DataLoader(photos, 4), 8)
    path = panel.ids[0]
    shown = (panel.rgb_images()[0] * 255).round()
    original = v2.functional.resize(v2.functional.pil_to_tensor(Image.open(path)), [HEIGHT, WIDTH], antialias=True)
    assert (shown - original.float()).abs().max() <= 1
