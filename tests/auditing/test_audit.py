"""An audit as a whole: faults, interruptions, several processes, the user's own hooks."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from camwatch.auditing.unfinished import Parts
from camwatch.errors import CamwatchError, InputError, LayerError, TargetError, UnsupportedError
from tests.support.audits import SCRIPT, Faulty, audit, rows_of, together
from tests.support.nets import SmallNet, data, loader, trainer


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_samples_are_marked_and_the_audit_goes_on(net: SmallNet, tmp_path: Path, workers: int) -> None:
    given = DataLoader(Faulty(), 4, collate_fn=together, num_workers=workers)
    found = audit(net, given, tmp_path)
    rows, sound = rows_of(found.table), rows_of(audit(net, DataLoader(data(20), 4), tmp_path).table)
    notes = {row["index"]: row["note"] for row in rows if row["note"]}
    assert notes[3].startswith("UnidentifiedImageError: cannot identify image file")
    assert notes[5].startswith("it does not fit its batch: tuple of 3 (Tensor (1, 16, 16)")
    assert notes[9] == "ValueError: the data set returned None"
    assert notes[12] == "the model's scores are not finite"
    assert "(7, 16) does not fit an image of 16 x 16" in notes[14]
    assert [row["index"] for row in rows if row["verdict"] == "unreadable"] == [3, 5, 9, 12]
    assert found.total.verdicts["unreadable"] == 4 and found.total.images == len(rows) == 20
    for row, other in zip(rows, sound, strict=True):
        if row["index"] not in (3, 5, 9, 12, 14):
            assert row["verdict"] == other["verdict"]
            assert row["map_mass"] == pytest.approx(other["map_mass"], rel=1e-4)


def test_nothing_readable_is_an_error_that_says_why(net: SmallNet, tmp_path: Path) -> None:
    class Broken(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            raise OSError("the disk is gone")

    with pytest.raises(InputError, match="none of the 3 samples can be read; the last one: OSError: the disk is gone"):
        audit(net, DataLoader(Broken(), 2), tmp_path)


def test_collate_that_never_works_is_an_error_that_says_why(net: SmallNet, tmp_path: Path) -> None:
    def refuse(samples: list[Any]) -> Any:
        raise ValueError("no")

    with pytest.raises(InputError, match=r"collate_fn cannot make a batch of samples like tuple of 3 .*ValueError: no"):
        audit(net, DataLoader(data(4), 2, collate_fn=refuse), tmp_path)


def test_collate_that_drops_samples_is_refused(net: SmallNet, tmp_path: Path) -> None:
    given = DataLoader(data(4), 4, collate_fn=lambda samples: together(samples[:3] if len(samples) > 1 else samples))
    with pytest.raises(InputError, match="made 3 images of 4 samples"):
        audit(net, given, tmp_path)


# Interrupted and resumed, on several processes: the same table.
class Stops(SmallNet):
    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Stops.calls += 1
        if Stops.calls == 3:
            raise RuntimeError("out of luck")
        return super().forward(images)


def test_interrupted_audit_goes_on_and_skips_what_is_done(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stops()
    Stops.calls = 0
    with pytest.raises(RuntimeError, match="out of luck"):  # the dry pass, one batch, and the second fails
        audit(model, loader(data(30)), tmp_path)
    assert not (tmp_path / "audit.csv").exists()
    resumed = audit(model, loader(data(30)), tmp_path, worst=8).table.read_bytes()
    assert Stops.calls == 3 + 3 + 1  # three batches that were left, and the sheet
    assert audit(model, loader(data(30)), tmp_path).table.read_bytes() == resumed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.classes.csv", "audit.csv", "audit.worst.png"]


class Interrupting(SmallNet):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Stops.calls += 1
        if Stops.calls == 3:
            raise KeyboardInterrupt
        return super().forward(images)


def test_keyboard_interrupt_says_that_the_audit_can_go_on(tmp_path: Path) -> None:
    Stops.calls, before = 0, signal.getsignal(signal.SIGINT)
    with pytest.raises(CamwatchError, match=r"interrupted after 1 batches of 4.*audit\.csv\.parts.*same call goes on"):
        audit(Interrupting(), loader(data(30)), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before, "the next Ctrl-C is heard"


def test_unfinished_audit_with_other_settings_is_not_mixed_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stops()
    Stops.calls = 0
    with pytest.raises(RuntimeError, match="out of luck"):
        audit(model, loader(data(30)), tmp_path)
    with pytest.raises(InputError, match=r"other settings \(method 'gradcam', now 'hirescam'\).*--no-resume"):
        audit(model, loader(data(30)), tmp_path, method="hirescam")
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(InputError, match=r"other settings \(other weights"):
        audit(model, loader(data(30)), tmp_path)
    assert audit(model, loader(data(30)), tmp_path, resume=False).total.images == 30


def test_torn_line_is_done_again(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "audit.csv")
    parts.open({}, resume=True)
    parts.append(1, [["b"]])
    other = Parts(tmp_path / "audit.csv")
    other.append(0, [["a"]])
    other.append(2, [["c"]])
    parts.append(2, [["c"]])
    with open(next(parts.folder.glob("*.rows")), "ab") as file:
        file.write(b'3\t[["d')
    assert parts.done() == [0, 1, 2]
    assert list(parts.rows()) == [["a"], ["b"], ["c"]]


def test_killed_audit_resumes_to_the_same_table(tmp_path: Path) -> None:
    from tests.support.audit_script import Slow, network

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, SCRIPT, "kill", tmp_path], env=environment, stderr=subprocess.DEVNULL)
    folder, finished = tmp_path / "audit.csv.parts", 0
    deadline = time.monotonic() + 90
    while finished < 3 and process.poll() is None and time.monotonic() < deadline:
        finished = sum(path.read_bytes().count(b"\n") for path in folder.glob("*.rows"))
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished >= 3 and folder.exists() and not (tmp_path / "audit.csv").exists()
    done = set(Parts(tmp_path / "audit.csv").done())
    resumed = Slow(0)
    found = audit(network(), DataLoader(resumed, 4), tmp_path)
    assert not resumed.read & {i for number in done for i in range(4 * number, 4 * number + 4)} - set(
        row["index"] for row in found.worst
    ) - {0}
    whole = audit(network(), DataLoader(Slow(0), 4), tmp_path, output=tmp_path / "whole.csv")
    assert found.table.read_bytes() == whole.table.read_bytes()
    assert (tmp_path / "audit.classes.csv").read_bytes() == (tmp_path / "whole.classes.csv").read_bytes()
    assert (tmp_path / "audit.worst.png").read_bytes() == (tmp_path / "whole.worst.png").read_bytes()


def test_two_processes_give_the_table_of_one(tmp_path: Path) -> None:
    from tests.support.audit_script import SIZES, network

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, SCRIPT, "ddp", tmp_path], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for n in SIZES:
        alone = audit(network(), DataLoader(data(n), 4), tmp_path, output=tmp_path / "alone.csv")
        assert (tmp_path / f"two{n}.csv").read_bytes() == alone.table.read_bytes(), n
        assert (tmp_path / f"two{n}.classes.csv").read_bytes() == (tmp_path / "alone.classes.csv").read_bytes()
        told = {(tmp_path / f"rank{rank}_{n}.txt").read_text() for rank in (0, 1)}
        assert len(told) == 1 and f"audit of {n} images" in told.pop()
    assert not list(tmp_path.glob("*.parts"))


# The surroundings.
def test_audit_leaves_the_model_and_the_process_as_they_were(net: SmallNet, tmp_path: Path) -> None:
    net.train()
    net.pool.eval()
    given = trainer(max_epochs=1)
    given.fit(net, loader(data(8)))
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    audit(net, loader(data(20), shuffle=True), tmp_path)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert all(
        g is None if p.grad is None else torch.equal(g, p.grad)
        for g, p in zip(gradients, net.parameters(), strict=True)
    )
    assert net.trainer is given and not any(module._forward_hooks for module in net.modules())


class Hooked(SmallNet):
    """Normalizes on the device, as one does with kornia."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0].float() / 255, *batch[1:])


class Photos(pl.LightningDataModule):
    def __init__(self, loaders: int = 1) -> None:
        super().__init__()
        self.loaders = loaders

    def setup(self, stage: str) -> None:
        assert stage == "validate"
        images, labels, masks = data(10).tensors
        self.set = TensorDataset((images * 127).to(torch.uint8), labels, masks)

    def val_dataloader(self) -> Any:
        made = [loader(self.set) for _ in range(self.loaders)]
        return made[0] if self.loaders == 1 else made


class HookedPhotos(Photos):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0].float() / 255, *batch[1:])


def test_batch_transfer_hooks_are_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hooked, plain = Hooked(), SmallNet()
    plain.load_state_dict(hooked.state_dict())
    by_model = audit(hooked, Photos(), tmp_path).table.read_bytes()
    by_data = audit(plain, HookedPhotos(), tmp_path).table.read_bytes()
    images, labels, masks = data(10).tensors
    ready = TensorDataset((images * 127).to(torch.uint8).float() / 255, labels, masks)
    assert by_model == by_data == audit(plain, loader(ready), tmp_path).table.read_bytes()
    with pytest.raises(InputError, match="gives 2 loaders"):
        audit(plain, HookedPhotos(2), tmp_path)


def test_trainer_of_the_other_namespace_is_taken(net: SmallNet, tmp_path: Path) -> None:
    other = pytest.importorskip("lightning.pytorch")
    plain = audit(net, loader(data(10)), tmp_path).table.read_bytes()
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = other.Trainer(enable_checkpointing=False, **quiet)
    assert audit(net, loader(data(10)), tmp_path, trainer=given).table.read_bytes() == plain


def test_mixed_precision_is_the_trainers(net: SmallNet, tmp_path: Path) -> None:
    mixed = rows_of(audit(net, loader(data(10)), tmp_path, trainer=trainer(precision="bf16-mixed")).table)
    full = rows_of(audit(net, loader(data(10)), tmp_path).table)
    assert [row["probability"] for row in mixed] == pytest.approx([row["probability"] for row in full], abs=0.01)
    assert mixed != full


def test_unpack_and_forward_say_how(net: SmallNet, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: dict[str, torch.Tensor]) -> Any:
            return {"logits": self.net(batch["photo"])}

    batches = [{"photo": images, "kind": labels, "drawn": masks} for images, labels, masks in loader(data(10))]
    found = audit(
        Wrapped(),
        batches,
        tmp_path,
        unpack=lambda batch: (batch["photo"], batch["kind"], batch["drawn"]),
        forward=lambda model, images: model({"photo": images}),
    )
    assert found.layer == "net.features"
    assert found.table.read_bytes() == audit(net, loader(data(10)), tmp_path).table.read_bytes()


# Bad input.
def test_empty_loaders_are_refused(net: SmallNet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data loader is empty: its data set, Subset, has no sample"):
        audit(net, loader(Subset(data(4), [])), tmp_path)
    for empty in ([], iter([])):
        with pytest.raises(InputError, match="the data loader is empty"):
            audit(net, empty, tmp_path)
    with pytest.raises(InputError, match="expected a data loader, got int"):
        audit(net, 5, tmp_path)
    assert not (tmp_path / "audit.csv").exists()


def test_output_that_cannot_be_written_is_refused_before_anything_runs(net: SmallNet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for output, reason in (
        (tmp_path / "file" / "audit.csv", "cannot be written.*(Not a directory|File exists)"),
        (tmp_path / "folder.csv", "cannot be written.*it is a folder"),
        (tmp_path / "audit.xlsx", r"must end in \.csv or \.parquet"),
    ):
        with pytest.raises(InputError, match=reason):
            audit(net, None, tmp_path, output=output)


def test_data_of_another_model_is_refused(net: SmallNet, tmp_path: Path) -> None:
    images, _, masks = data(10).tensors
    match = r"sample '7' has label 7, but the model scores 3 classes, 0 to 2: the model and the data do not belong"
    with pytest.raises(TargetError, match=match):
        audit(net, loader(TensorDataset(images, torch.arange(10), masks)), tmp_path, resume=False)
    with pytest.raises(TargetError, match="needs batches with labels, and none were found"):
        audit(net, loader(TensorDataset(images)), tmp_path, resume=False)
    with pytest.raises(TargetError, match=r"one class per image.*float32 of"):
        audit(net, loader(TensorDataset(images, torch.rand(10, 3))), tmp_path, resume=False)


def test_unusable_arguments_are_refused(net: SmallNet, tmp_path: Path) -> None:
    class Headless(pl.LightningModule):
        def training_step(self, batch: Any) -> None: ...

    for model, options, kind, match in (
        (net, {"method": "gradcm"}, InputError, "did you mean 'gradcam'"),
        (net, {"target": "lable"}, InputError, "did you mean 'label'"),
        (net, {"layer": "features.9"}, LayerError, "did you mean 'features.3'|features.0"),
        (net, {"worst": -1}, InputError, "worst must be an integer of 0 or more, got -1"),
        (net, {"threshold": math.nan}, InputError, "threshold must be a finite number, got nan"),
        (net, {"layer": ["features.1", "features.3"]}, LayerError, "a layer is a name or a module.*got list"),
        (net, {"trainer": trainer(fast_dev_run=True)}, InputError, "limit_predict_batches=1"),
        (Headless(), {}, InputError, "Headless has no forward"),
        (lambda images: images, {}, InputError, "expected a model, a torch.nn.Module, got function"),
    ):
        with pytest.raises(kind, match=match):
            audit(model, loader(data(4)), tmp_path, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_stream_on_several_processes_is_refused() -> None:
    from camwatch.adapters.lightning.audit_loop import Work
    from camwatch.auditing.source import IterableSource

    class OfTwo(Work):
        trainer = type("Two", (), {"world_size": 2})

    with pytest.raises(UnsupportedError, match="cannot be shared between 2 processes"):
        OfTwo(None, IterableSource([], None), None, None).predict_dataloader()  # type: ignore[arg-type]


def test_incomplete_audit_writes_no_table(net: SmallNet, tmp_path: Path) -> None:
    given = trainer()
    given.predict = lambda *args, **options: None
    with pytest.raises(CamwatchError, match=r"interrupted after 0 batches of 3.*the same call goes on"):
        audit(net, loader(data(20)), tmp_path, trainer=given)
