"""What is wrong with the set-up is said before the first training step: what arrived, and what is valid."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from camwatch import CAMMonitor, Panel, explain
from camwatch.errors import CamwatchError, InputError, LayerError, PanelError, RegionError, TargetError
from tests.support.nets import SmallNet, data, loader, trainer

IMAGES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0])


class Untrained(SmallNet):
    """Fails the test if a training step is taken."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise AssertionError("a training step was taken")


def fit(monitor: CAMMonitor, model: SmallNet | None = None, validation: Any = "default", **options: Any) -> None:
    val = loader(data()) if isinstance(validation, str) else validation
    trainer(monitor, **options).fit(model or Untrained(), loader(data()), val)


def mask(size: tuple[int, int] = (16, 16), filled: bool = True) -> Tensor:
    return torch.full((4, *size), filled)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (InputError, "every_n_epochs must be an integer of 1 or more, got -1", lambda: CAMMonitor(every_n_epochs=-1)),
        (InputError, "every_n_train_steps .* 1 or more, got 0", lambda: CAMMonitor(every_n_train_steps=0)),
        (InputError, "panel must be an integer of 1 or more, got 0", lambda: CAMMonitor(0)),
        (InputError, "unknown method 'gradcm'; did you mean 'gradcam'", lambda: CAMMonitor(method="gradcm")),
        (InputError, "unknown detector 'prob'; did you mean 'probe'", lambda: CAMMonitor(detectors=["prob"])),
        (InputError, "unknown target 'lable'; did you mean 'label'", lambda: CAMMonitor(target="lable")),
        (InputError, "on_alarm is 'halt'; valid are 'warn', 'stop'", lambda: CAMMonitor(on_alarm="halt")),
        (PanelError, r"images \(N, C, H, W\).*got \(3, 16, 16\)", lambda: Panel(IMAGES[0], LABELS)),
        (PanelError, "one label per image, 4 in all, got shape .3,.", lambda: Panel(IMAGES, LABELS[:3])),
        (PanelError, "label 2; valid is 0 to 1", lambda: Panel(IMAGES, LABELS, class_names=["a", "b"])),
        (
            RegionError,
            r"shape .8, 8. does not fit an image of 16 x 16",
            lambda: Panel(IMAGES, LABELS, regions=mask((8, 8))),
        ),
        (RegionError, "image 0.*empty", lambda: Panel(IMAGES, LABELS, regions=mask(filled=False))),
        (
            RegionError,
            "image 0.*outside",
            lambda: Panel(IMAGES, LABELS, regions=[torch.tensor([[20, 20, 30, 30]])] * 4),
        ),
    ],
)
def test_constructor_says_what_is_wrong(error: type[CamwatchError], message: str, make: Any) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("error", "message", "monitor"),
    [
        (LayerError, "unknown layer of Untrained 'feature'; did you mean 'features'", {"layer": "feature"}),
        (LayerError, "layer 'head' has no spatial grid", {"layer": "head"}),
        (TargetError, "target 7 is out of range: the model scores 3 classes, 0 to 2", {"target": 7}),
    ],
)
def test_fit_stops_before_the_first_step(error: type[CamwatchError], message: str, monitor: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        fit(CAMMonitor(8, **monitor))


def test_two_monitors_need_two_names() -> None:
    trainer([CAMMonitor(8), CAMMonitor(8, name="second")])
    with pytest.raises(RuntimeError, match="state_key` must be unique"):  # Lightning's own check
        trainer([CAMMonitor(8), CAMMonitor(8)])


def test_label_beyond_the_models_classes_is_refused() -> None:
    panel = Panel(IMAGES, torch.tensor([0, 1, 2, 9]))
    with pytest.raises(TargetError, match="panel image 3 has label 9, but the model scores 3 classes, 0 to 2"):
        fit(CAMMonitor(panel))


def test_missing_validation_loader_is_refused_only_where_the_panel_is_drawn_from_one(
    recwarn: pytest.WarningsRecorder,
) -> None:
    with pytest.raises(PanelError, match="no validation loader to draw the panel from: pass val_dataloaders"):
        fit(CAMMonitor(8), validation=None)
    monitor = CAMMonitor(Panel(IMAGES, LABELS), detectors=[])
    fit(monitor, SmallNet(), validation=None)
    assert [snapshot.epoch for snapshot in monitor.history] == [-1, 0, 1]


def test_empty_validation_set_is_refused() -> None:
    empty = TensorDataset(torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.int64))
    with pytest.raises(PanelError, match="no panel can be drawn from an empty data set"):
        fit(CAMMonitor(8), validation=loader(empty))


def test_images_of_no_known_batch_are_refused() -> None:
    class Words(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            return {"words": "a cat", "stars": 3}

    with pytest.raises(PanelError, match="words"):
        fit(CAMMonitor(8), validation=loader(Words()))


def test_output_without_a_tensor_is_refused() -> None:
    class Talker(Untrained):
        def forward(self, images: Tensor) -> Any:
            return {"answer": "cat"}

    with pytest.raises(TargetError, match=r"without a floating tensor of class scores.*forward="):
        fit(CAMMonitor(8, layer="features"), Talker())


def test_module_without_forward_is_refused() -> None:
    import pytorch_lightning as pl

    class Formless(pl.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError("a training step was taken")

        def configure_optimizers(self) -> None:
            return None

    with pytest.raises(InputError, match=r"Formless has no forward\(\).*forward=callable"):
        trainer(CAMMonitor(8)).fit(Formless(), loader(data()), loader(data()))


def test_integer_matrix_of_zeros_and_ones_is_ambiguous() -> None:
    torch.manual_seed(0)
    model = SmallNet().eval()
    hot = torch.nn.functional.one_hot(LABELS, 3)
    with pytest.raises(TargetError, match=r"ambiguous for 3 classes: pass \.bool\(\)"):
        explain(model, IMAGES, target=hot)
    signed = partial(explain, model, IMAGES, method=lambda a, g: (a * g).sum(1))
    assert torch.equal(signed(target=hot.bool()).maps, signed(target=LABELS).maps)


def test_target_of_another_length_is_refused() -> None:
    with pytest.raises(TargetError, match=r"shape \(3,\) for 4 images"):
        explain(SmallNet(), IMAGES, target=LABELS[:3])


def test_monitoring_a_missing_key_names_the_available_ones() -> None:
    from pytorch_lightning.callbacks import EarlyStopping

    stopper = EarlyStopping(monitor="camwatch/relevance_mass_accuracy", mode="max")
    monitor = CAMMonitor(Panel(IMAGES, LABELS))  # no regions, so there is no such value
    with pytest.raises(InputError, match=r"EarlyStopping: unknown key to monitor.*camwatch/map_entropy"):
        trainer([monitor, stopper]).fit(Untrained(), loader(data()), loader(data()))


def test_layer_that_is_a_module_of_another_model_is_refused() -> None:
    with pytest.raises(LayerError, match="not part of the model SmallNet"):
        explain(SmallNet(), IMAGES, layer=nn.Conv2d(3, 3, 1))
