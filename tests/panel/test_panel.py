"""The panel: what it refuses, and what it keeps."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from camwatch.errors import InputError, PanelError, RegionError
from camwatch.panel import Panel
from camwatch.regions import Regions

IMAGES = torch.rand(3, 3, 6, 8)


def test_panel_keeps_the_images_as_given_and_fills_in_the_rest() -> None:
    panel = Panel(IMAGES, np.array([2, 0, 1]), regions=[[(0, 0, 4, 3)], None, [(2, 2, 8, 6)]], ids=[7, "b", "c"])
    assert torch.equal(panel.images, IMAGES) and panel.images.data_ptr() != IMAGES.data_ptr()
    assert panel.labels is not None and panel.labels.dtype == torch.int64
    assert panel.ids == ("7", "b", "c") and Panel(IMAGES).ids == ("0", "1", "2")
    assert panel.size == (6, 8) and len(panel) == 3
    assert panel.regions is not None and panel.regions.annotated.tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.rand(3, 6, 8)}, r"images \(N, C, H, W\).*got \(3, 6, 8\)"),
        ({"images": torch.rand(0, 3, 6, 8)}, r"at least one, got \(0, 3, 6, 8\)"),
        ({"images": torch.zeros(3, 3, 6, 8, dtype=torch.uint8)}, "floating point.*got torch.uint8"),
        ({"images": torch.stack([IMAGES[0], IMAGES[1] * torch.nan])}, "NaN or infinite.*first is image 1"),
        ({"images": "cat.jpg"}, "expected images as a tensor or array, got str"),
        ({"labels": [0, 1]}, r"one label per image, 3 in all, got shape \(2,\)"),
        ({"labels": torch.zeros(3, 5, dtype=torch.int64)}, r"one label per image.*got shape \(3, 5\)"),
        ({"labels": [0, -1, 1]}, "image 1 has the label -1; valid is 0 and above"),
        ({"labels": [0.0, 1.0, 1.0]}, "labels that are integers.*got torch.float32"),
        ({"labels": [True, False, True]}, "got torch.bool"),
        ({"labels": ["cat", "dog", "cat"]}, "expected labels as a tensor or array, got list"),
        ({"labels": [0, 2, 1], "class_names": ["cat", "dog"]}, "image 1 has the label 2; valid is 0 to 1"),
        ({"ids": ["a"]}, "one id per image, 3 in all, got 1"),
        ({"denormalize": ([0.5] * 2, [0.5] * 2)}, "each of 3 bands, got 2 and 2"),
        ({"denormalize": 0.5}, r"expected denormalize=\(mean, std\), got 0.5"),
        ({"denormalize": (0.5, 0)}, "standard deviation of 0"),
        ({"rgb": (0, 1, 3)}, r"band indices from 0 to 2, got \(0, 1, 3\)"),
        ({"rgb": (0, 1)}, "three band indices"),
    ],
    ids=str,
)
def test_panel_refuses_what_does_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Panel(**{"images": IMAGES, **arguments})  # type: ignore[arg-type]


def test_panel_refuses_regions_of_another_size() -> None:
    with pytest.raises(RegionError, match="does not fit an image of 6 x 8"):
        Panel(IMAGES, regions=torch.ones(3, 12, 16, dtype=torch.bool))


def test_denormalize_takes_one_number_for_all_bands() -> None:
    assert Panel(IMAGES, denormalize=(0.5, [0.25])).denormalize == ((0.5,) * 3, (0.25,) * 3)


def test_rgb_images_undo_the_normalization() -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    panel = Panel(v2.functional.normalize(IMAGES, mean.tolist(), std.tolist()), denormalize=(mean, std))
    assert torch.allclose(panel.rgb_images(), IMAGES, atol=1e-6)


@pytest.mark.parametrize("bands", [1, 5])
def test_rgb_images_show_three_bands(bands: int) -> None:
    images = torch.rand(2, bands, 4, 4)
    panel = Panel(images, denormalize=(0, 1), rgb=(4, 2, 0) if bands == 5 else (0, 1, 2))
    expected = images[:, [4, 2, 0]] if bands == 5 else images.expand(-1, 3, -1, -1)
    assert torch.allclose(panel.rgb_images(), expected)


def test_coerce_takes_panels_and_tuples() -> None:
    panel = Panel(IMAGES, [0, 1, 2])
    assert Panel.coerce(panel) is panel
    assert len(Panel.coerce((IMAGES, [0, 1, 2], [None, None, [(0, 0, 4, 4)]]))) == 3
    for wrong in (IMAGES, (IMAGES,), 64, "val"):
        with pytest.raises(PanelError, match=r"expected a Panel or \(images, labels\[, regions\]\)"):
            Panel.coerce(wrong)


def test_state_survives_a_weights_only_file() -> None:
    panel = Panel(IMAGES, [0, 1, 1], [[(0, 0, 4, 3)], None, None], ["a", "b"], denormalize=(0.5, 0.25))
    file = io.BytesIO()
    torch.save(panel.state_dict(), file)
    file.seek(0)
    again = Panel.from_state(torch.load(file, weights_only=True))
    assert torch.equal(again.images, panel.images) and torch.equal(again.labels, panel.labels)
    assert again.regions is not None and torch.equal(again.regions.allowed, panel.regions.allowed)
    for name in ("class_names", "ids", "denormalize", "rgb"):
        assert getattr(again, name) == getattr(panel, name)
    assert Panel.from_state(Panel(IMAGES).state_dict()).regions is None


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_panel_is_not_changed_by_what_a_caller_does_to_theirs(kind: type) -> None:
    zones = torch.zeros(3, 6, 8, dtype=torch.bool)
    zones[:, :3] = True
    given = [IMAGES.clone(), torch.tensor([0, 1, 2]), zones]
    if kind is np.ndarray:
        given = [tensor.numpy() for tensor in given]
    before, after = Panel(*(tensor.copy() if kind is np.ndarray else tensor.clone() for tensor in given)), Panel(*given)
    for values in given:
        values[...] = 0
    assert after.describe() == before.describe()


def test_panel_copies_regions_and_leaves_theirs_alone() -> None:
    allowed, forbidden, ignore = (torch.zeros(3, 6, 8, dtype=torch.bool) for _ in range(3))
    allowed[:, :3], forbidden[:, 4], ignore[:, 5] = True, True, True
    regions = Regions(allowed, forbidden, ignore)
    panel = Panel(IMAGES, regions=regions)
    before = panel.describe()
    for zone in regions.state_dict().values():
        zone.zero_()
    assert panel.describe() == before and panel.regions.forbidden.any()


def test_description_tells_images_labels_and_regions_apart() -> None:
    plain = Panel(IMAGES).describe()
    assert list(plain) == ["images", "labels", "regions"] and plain["labels"] is plain["regions"] is None
    boxes = [[(0, 0, 4, 3)], None, None]
    panel = Panel(IMAGES, [0, 1, 2], boxes).describe()
    assert panel == Panel(IMAGES.numpy(), np.array([0, 1, 2]), boxes, ids=["a", "b", "c"]).describe()
    for changed, key in (
        (Panel(IMAGES + 1, [0, 1, 2], boxes), "images"),
        (Panel(IMAGES, [0, 1, 1], boxes), "labels"),
        (Panel(IMAGES, [0, 1, 2], [None, *boxes[:2]]), "regions"),
    ):
        assert [one for one, value in changed.describe().items() if value != panel[one]] == [key]
