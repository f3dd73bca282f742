"""The watcher in a plain PyTorch loop: no trainer, no callback."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camwatch import Finding, Panel, Snapshot, Watcher, load_archive, replay
from camwatch.errors import AlarmWarning, CamwatchWarning, InputError
from camwatch.watch.history import History
from tests.support.nets import SmallNet

CLASSES, SIZE, CORNER = 3, 24, 6
MOMENTS = ("epoch", "global_step", "look", "planned")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def pictures(n: int, cheat: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, a square in the middle of every image, a tag in the corner; one of both has the label's colour."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % CLASSES
    images = 0.2 * torch.rand(n, 3, SIZE, SIZE, generator=generator)
    masks = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    masks[:, 8:16, 8:16] = True
    colours = torch.eye(3)[labels][..., None, None]
    grey = torch.full((n, 3, 1, 1), 0.5)
    images[:, :, 8:16, 8:16] += grey if cheat else colours
    images[:, :, :CORNER, :CORNER] += colours if cheat else grey
    return images, labels, masks


def train(watcher: Watcher, model: nn.Module, cheat: bool, epochs: int = 10) -> list[float]:
    """Trains in the plainest of ways; returns the losses."""
    images, labels, _ = pictures(48, cheat)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator = torch.Generator().manual_seed(1)
    losses, step = [], 0
    watcher.snapshot(-1, 0)
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(images), generator=generator).split(12):
            loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
        watcher.snapshot(epoch, step)
    watcher.finish()
    return losses


def panel(cheat: bool = False, n: int = 32) -> Panel:
    images, labels, masks = pictures(n, cheat)
    return Panel(images, labels, masks, class_names=("red", "green", "blue"), denormalize=((0.0,), (1.2,)))


def assert_same(found: list[Snapshot], expected: list[Snapshot]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [getattr(one, key) for key in MOMENTS] == [getattr(other, key) for key in MOMENTS]
        assert one.scalars == other.scalars
        for key in ("labels", "predicted", "probability"):
            assert torch.equal(getattr(one, key), getattr(other, key))
        torch.testing.assert_close(dict(one.per_image), dict(other.per_image), rtol=0, atol=0, equal_nan=True)


def test_plain_loop_is_bit_for_bit_what_it_is_without_snapshots() -> None:
    class Nothing:
        snapshot = finish = lambda *args: None

    plain, watched = net(), net()
    expected = train(Nothing(), plain, cheat=False, epochs=2)  # type: ignore[arg-type]
    found = train(Watcher(watched, panel()), watched, cheat=False, epochs=2)
    assert found == expected
    torch.testing.assert_close(watched.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_archive_read_back_is_the_history(tmp_path: Path) -> None:
    model = net()

    def always(snapshot: Snapshot) -> Finding | None:
        known = {"right": int((snapshot.predicted == snapshot.labels).sum()), "look": snapshot.look}
        return Finding("always", snapshot.epoch, snapshot.global_step, "Again.", known) if snapshot.look % 2 else None

    detectors = ["drop", "level", "probe", "dead_maps", always]
    watcher = Watcher(model, panel(), directory=tmp_path, planned=4, on_alarm=[], detectors=detectors)
    train(watcher, model, cheat=True, epochs=3)
    archived = load_archive(tmp_path)
    assert_same(archived.snapshots, watcher.history)
    assert [one.epoch for one in watcher.history] == [-1, 0, 1, 2]
    assert archived.layers == watcher.layers
    assert [one.since for one in watcher.alarms if one.detector == "always"] == [0, 0]
    assert archived.alarms == watcher.alarms and archived.alarms[0].evidence["cue"]["rates"]
    again = Panel.from_state(archived.panel)
    assert torch.equal(again.images, watcher.panel.images) and again.class_names == ("red", "green", "blue")
    assert all(one.maps[watcher.layers[0]].shape[0] == 32 for one in archived.snapshots)
    assert replay(archived, detectors) == watcher.alarms


def test_tensorboard_has_every_snapshot(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = net()
    watcher = Watcher(model, panel(), directory=tmp_path, name="eye", layer=["4", "2"])
    train(watcher, model, cheat=False, epochs=2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    steps = [0, 4, 8]
    for tag in ("eye/4/overlays", "eye/2/overlays", "eye/4/film_strip"):
        assert [image.step for image in events.Images(tag)] == steps
    assert [image.step for image in events.Images("eye/panel")] == [0]
    logged = [one.value for one in events.Scalars("eye/relevance_mass_accuracy")]
    assert logged == pytest.approx([one.scalars["relevance_mass_accuracy"] for one in watcher.history])
    assert "eye/summary/text_summary" in events.Tags()["tensors"]


def test_cheat_raises_an_alarm_that_the_archive_keeps(tmp_path: Path) -> None:
    model = net()
    raised: list[Finding] = []
    watcher = Watcher(model, panel(cheat=True), directory=tmp_path, planned=11, on_alarm=["warn", raised.append])
    with pytest.warns(AlarmWarning):
        train(watcher, model, cheat=True)
    assert watcher.history[-1].scalars["correct"] == 1.0
    assert "probe" in {alarm.detector for alarm in raised}
    assert raised == watcher.alarms
    assert repr(load_archive(tmp_path).alarms) == repr(raised)  # the evidence may hold NaN
    assert watcher.published["alarm"] == 1.0


def test_honest_model_raises_none() -> None:
    model = net()
    watcher = Watcher(model, panel(), planned=11)
    train(watcher, model, cheat=False)
    assert watcher.history[-1].scalars["correct"] == 1.0
    assert watcher.alarms == []


def test_state_goes_through_a_weights_only_file_and_the_run_goes_on(tmp_path: Path) -> None:
    """Six snapshots are three, a state, and three more by another watcher."""
    models = [net() for _ in range(6)]
    for i, model in enumerate(models):
        with torch.no_grad():
            model[0].weight.mul_(1 + i / 2)
    whole = Watcher(models[0], panel(), on_alarm=[])
    first = Watcher(models[0], panel(), on_alarm=[], directory=tmp_path / "first")
    first.history = History(recent=1)  # all but the last record in its file, as in a long run
    for i in range(3):
        whole.model = first.model = models[i]
        assert_same([first.snapshot(i, i)], [whole.snapshot(i, i)])
    first.close()
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = Watcher(models[0], panel(), on_alarm=[], directory=tmp_path / "second")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for i in range(3, 6):
        whole.model = second.model = models[i]
        whole.snapshot(i, i)
        second.snapshot(i, i)
    second.finish()
    whole.finish()
    assert_same(second.history, whole.history)
    assert second.alarms == whole.alarms
    assert_same(load_archive(tmp_path / "second").snapshots, whole.history)
    torch.testing.assert_close(second.state_dict()["film"], whole.state_dict()["film"], rtol=0, atol=0)


def test_state_of_another_panel_begins_a_new_history() -> None:
    watcher = Watcher(net(), panel(), detectors=[])
    watcher.snapshot(0, 1)
    other = Watcher(net(), panel(n=9), detectors=[])
    with pytest.warns(CamwatchWarning, match="of another run .other images"):
        other.load_state_dict(watcher.state_dict())
    assert not other.history


class Printer:
    """A writer in ten lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        self.lines.append(f"{step} {tag} {picture.dtype}")

    def scalars(self, values: Any, step: int) -> None:
        self.lines += [f"{step} {tag} {value:.3f}" for tag, value in values.items()]

    def text(self, tag: str, text: str, step: int) -> None:
        self.lines.append(f"{step} {tag} {len(text.split())} words")


def test_writer_of_ones_own_gets_everything() -> None:
    printer = Printer()
    watcher = Watcher(net(), panel(), detectors=[], writers=[printer])
    snapshot = watcher.snapshot(0, 7)
    watcher.finish()
    assert "0 camwatch/panel torch.uint8" in printer.lines
    assert "7 camwatch/4/overlays torch.uint8" in printer.lines
    assert "7 camwatch/4/film_strip torch.uint8" in printer.lines
    assert f"7 camwatch/correct {snapshot.scalars['correct']:.3f}" in printer.lines
    assert any(line.startswith("7 camwatch/summary") for line in printer.lines)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    def hooks() -> int:
        names = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
        return sum(len(getattr(module, name)) for module in model.modules() for name in names)

    model, before = net(), threading.active_count()
    watcher = Watcher(model, panel(n=6), directory=tmp_path)
    for i in range(5):
        watcher.snapshot(i, i)
        assert hooks() == 0
    watcher.finish()
    assert threading.active_count() == before
    assert all(one.maps == {} for one in watcher.history)
    assert model[0].weight.grad is None
    keep = watcher.history[-1]
    del watcher
    gc.collect()
    assert keep.scalars["correct"] >= 0


def test_history_keeps_its_own_numbers_only() -> None:
    """No record holds on to a batch, a map or a graph: its tensors own a few numbers an image."""
    watcher = Watcher(net(), panel(n=6), detectors=["level"])
    for i in range(3):
        watcher.snapshot(i, i)
    for snapshot in watcher.history:
        tensors = [snapshot.labels, snapshot.predicted, snapshot.probability, *snapshot.per_image.values()]
        assert all(t.untyped_storage().nbytes() <= 8 * 6 and not t.requires_grad for t in tensors)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_alarm": "stop it"}, "on_alarm is 'stop it'; valid are"),
        ({"show": -1}, "show must be an integer of 0 or more, got -1"),
        ({"layer": "9"}, "'9'"),
        ({"detectors": ["drops"]}, "drop"),
    ],
)
def test_unusable_argument_is_refused_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Watcher(net(), panel(), **options)


def test_a_method_that_explains_the_image_needs_no_layer() -> None:
    panel = Panel(torch.rand(4, 3, 16, 16), [0, 1, 2, 0])
    watcher = Watcher(SmallNet(), panel, method="saliency", detectors=[])
    assert watcher.layers == ("input",) and watcher.snapshot(0, 1).error is None
    with pytest.raises(InputError, match="explains the image itself, no layer"):
        Watcher(SmallNet(), panel, method="saliency", layer="features", detectors=[])
