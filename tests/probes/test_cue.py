"""The cue is named on an alarm: where it lies, and what it looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camwatch import Finding, Panel, Watcher, load_archive
from camwatch.errors import InputError
from camwatch.probes.cue import cue_sentence, find_cue
from tests.support.nets import SmallNet


class ReadsTheCorner(nn.Module):
    """Its scores are what its convolution sees in the upper left corner, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]).reshape(2, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.features(images - 0.5)[:, :, :2, :2].mean((2, 3))


def tagged(n: int = 16) -> Panel:
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(n) % 2
    images[:, 0, :2, :2] = labels[:, None, None].float()
    return Panel(images, labels, regions=[[(6, 6, 14, 14)]] * n, class_names=["no", "yes"])


def always(snapshot: Any) -> Finding:
    return Finding("always", snapshot.epoch, snapshot.global_step, "Something.", {"effect": 1})


def test_an_alarm_says_where_the_cue_lies(tmp_path: Path) -> None:
    watcher = Watcher(
        ReadsTheCorner(), tagged(), layer="features", detectors=[always], on_alarm=[], directory=tmp_path
    )  # fmt: skip
    watcher.snapshot(0, 10)
    watcher.close()
    [alarm] = watcher.alarms
    assert alarm.evidence["cue"]["box"] == [0, 0, 2, 2] and alarm.evidence["effect"] == 1
    assert alarm.evidence["cue"]["rate"] == 1 and alarm.evidence["cue"]["next_rate"] == 0
    assert alarm.message.startswith("Something. The cue lies at x 0 to 2, y 0 to 2")
    assert load_archive(tmp_path).alarms[0].evidence["cue"]["box"] == [0, 0, 2, 2]


def test_no_place_is_named_where_no_single_patch_decides() -> None:
    labels = torch.arange(16) % 2
    images = 0.2 + 0.4 * labels[:, None, None, None].float().expand(16, 3, 16, 16)

    def brightness(given: Tensor) -> Tensor:
        mean = given.mean((1, 2, 3))
        return torch.stack([0.4 - mean, mean - 0.4], dim=1)

    assert torch.equal(brightness(images).argmax(1), labels)
    found = find_cue(brightness, Panel(images, labels))
    assert found.box is None and "No single place" in cue_sentence(found.evidence)


def test_naming_the_cue_needs_labels() -> None:
    watcher = Watcher(SmallNet(), Panel(torch.rand(4, 3, 16, 16)), target="predicted", detectors=[])
    with pytest.raises(InputError, match="needs a panel with labels"):
        watcher.name_cue()


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 4), (4, 1), (2, 8), (16, 16)])
def test_any_grid_that_fits_the_images_finds_the_corner(grid: tuple[int, int]) -> None:
    panel = tagged()
    watcher = Watcher(ReadsTheCorner(), Panel(panel.images, panel.labels), layer="features", detectors=[])
    cue = watcher.name_cue(grid)
    assert cue.box is not None and cue.box[:2] == (0, 0) and cue.box[2] <= 16 and cue.box[3] <= 16
    assert cue.rates.shape == (max(grid[0] - 1, 1), max(grid[1] - 1, 1)) and 0 <= cue.next_rate <= cue.rate


@pytest.mark.parametrize("grid", [(0, 2), (17, 1), (2,), (2, 2, 2), 2, (2.0, 2.0), None, "ab"])
def test_a_grid_that_does_not_fit_is_named_with_what_does(grid: Any) -> None:
    match = r"a grid \(rows, columns\) between \(1, 1\) and the image's \(16, 16\), got "
    with pytest.raises(InputError, match=match):
        find_cue(ReadsTheCorner(), tagged(), grid)
