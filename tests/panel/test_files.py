"""Files read with their regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.models import ResNet18_Weights
from torchvision.transforms import v2
from torchvision.transforms import v2 as transforms

from camwatch.errors import CamwatchWarning, PanelError, RegionError
from camwatch.panel import Panel


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three PNGs of 40 x 60 pixels, each with a bright rectangle, which is its region."""
    for i in range(3):
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[8 + i : 20 + i, 20:44] = 255
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def boxes_of(i: int) -> list[list[int]]:
    return [[20, 8 + i, 44, 20 + i]]


SCALED = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


@pytest.mark.parametrize(
    "geometry",
    [
        [],
        [v2.ToImage(), v2.Resize((20, 30), interpolation=v2.InterpolationMode.NEAREST)],
        [v2.CenterCrop(36)],
        [v2.RandomHorizontalFlip(p=1.0)],
        [v2.RandomVerticalFlip(p=1.0), v2.Pad(3)],
        [v2.RandomCrop(30)],
        [v2.RandomRotation((90, 90), expand=True)],
    ],
    ids=str,
)
def test_regions_follow_the_images_through_any_geometry(folder: Path, geometry: list[v2.Transform]) -> None:
    """The rectangle is its own oracle: where the moved image is bright, the moved region has to be."""
    panel = Panel.from_files(
        [folder / f"{i}.png" for i in range(3)],
        transform=v2.Compose([*geometry, *SCALED]),
        regions=[boxes_of(i) for i in range(3)],
    )
    assert panel.regions is not None
    assert torch.equal(panel.regions.allowed, panel.images[:, 0] > 0.5)


def test_regions_equal_the_transform_by_hand(folder: Path) -> None:
    transform = v2.Compose([v2.Resize(24), v2.CenterCrop(20), *SCALED, v2.Normalize([0.5] * 3, [0.25] * 3)])
    panel = Panel.from_files([folder / "1.png"], [0], transform, {"1.png": boxes_of(1)})
    mask = torch.zeros(40, 60, dtype=torch.uint8)
    mask[9:21, 20:44] = 1
    image, moved = transform(Image.open(folder / "1.png"), tv_tensors.Mask(mask))
    assert torch.equal(panel.images[0], image)
    assert torch.equal(panel.regions.allowed[0], moved.bool())
    assert panel.denormalize == ((0.5,) * 3, (0.25,) * 3)
    assert panel.ids == (str(folder / "1.png"),)


def test_presets_of_weights_move_regions_too(folder: Path) -> None:
    preset = ResNet18_Weights.DEFAULT.transforms()
    paths = [folder / f"{i}.png" for i in range(3)]
    panel = Panel.from_files(paths, transform=preset, regions=lambda path: boxes_of(int(path.stem)))
    plain = Panel.from_files(paths, transform=preset)
    assert torch.allclose(panel.images, plain.images, atol=1e-6)
    assert torch.equal(plain.images[0], preset(Image.open(paths[0])))
    bright = panel.rgb_images()[:, 0] > 0.5
    both = (bright & panel.regions.allowed).flatten(1).sum(1)
    assert (both / (bright | panel.regions.allowed).flatten(1).sum(1) > 0.95).all()


def test_zones_move_together(folder: Path) -> None:
    zones = {"allowed": boxes_of(0), "forbidden": [[0, 0, 10, 5]], "ignore": [[50, 30, 60, 40]]}
    flip = v2.Compose([v2.RandomHorizontalFlip(1.0), *SCALED])
    regions = Panel.from_files([folder / "0.png"], transform=flip, regions=[zones]).regions
    assert regions.boxes().tolist() == [[16, 8, 40, 20]]
    assert regions.forbidden[0, :5, 50:].all() and regions.forbidden.sum() == 50
    assert regions.ignore[0, 30:, :10].all() and regions.ignore.sum() == 100


def test_region_names_are_matched_by_ever_shorter_paths(folder: Path) -> None:
    paths = [str(folder / f"{i}.png") for i in range(3)]
    panel = Panel.from_files(paths, regions={f"{folder.name}/0.png": boxes_of(0), "1": boxes_of(1), "x": []})
    assert panel.regions.annotated.tolist() == [True, True, False]
    with pytest.raises(PanelError, match=r"none of 3 files, such as .*0\.png.*such as 'cat\.jpg'"):
        Panel.from_files(paths, regions={"cat.jpg": boxes_of(0)})


def test_region_cropped_away_counts_as_not_annotated(folder: Path) -> None:
    crop = v2.Compose([v2.Lambda(lambda x: v2.functional.crop(x, 30, 0, 10, 60)), *SCALED])
    with pytest.warns(CamwatchWarning, match="1 of 2 panel images have an empty region.*first is image 0"):
        panel = Panel.from_files([folder / "0.png"] * 2, transform=crop, regions=[boxes_of(0), [[0, 20, 60, 40]]])
    assert panel.regions.annotated.tolist() == [False, True]


def test_from_files_refuses_what_cannot_be_aligned(folder: Path) -> None:

    path = folder / "0.png"
    with pytest.raises(PanelError, match=r"torchvision\.transforms\.transforms\.Compose moves images only.*v2"):
        Panel.from_files([path], transform=v1.Compose([v1.ToTensor()]), regions=[boxes_of(0)])
    assert len(Panel.from_files([path], transform=v1.Compose([v1.ToTensor()]))) == 1
    with pytest.raises(RegionError, match=r"image .*0\.png: all of the box"):
        Panel.from_files([path], regions=[[[70, 0, 80, 10]]])
    with pytest.raises(PanelError, match="one region per file, 1 in all, got 2"):
        Panel.from_files([path], regions=[None, None])
    with pytest.raises(PanelError, match="floating point tensor, got Image"):
        Panel.from_files([path], transform=transforms.Resize(8))
    with pytest.raises(PanelError, match="no files"):
        Panel.from_files([])
    Image.new("RGB", (8, 8)).save(folder / "small.png")
    with pytest.raises(PanelError, match=r"one size, got \(C, H, W\) of \[\(3, 8, 8\), \(3, 40, 60\)\]"):
        Panel.from_files([path, folder / "small.png"])
