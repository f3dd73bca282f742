import copy
import io
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camwatch import CAMMonitor, Finding, load_archive
from camwatch.errors import CamwatchWarning
from camwatch.pictures.colours import heatmaps
from camwatch.pictures.encoding import to_png
from camwatch.watch.background import BackgroundWriter
from camwatch.watch.writers.base import ScalarWriter, Writer, for_logger
from tests.support.nets import SmallNet, data, loader, trainer

TAG = "camwatch/layer4.1/overlays"
TEXT = "**probe**, epoch 3\n\nthe label is still given with the region hidden"


def picture(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=generator)


def pixels(source):
    with Image.open(source) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


# The writer thread.


def test_jobs_run_in_order_on_one_other_thread():
    writer, done = BackgroundWriter(), []
    for i in range(50):
        writer.submit(lambda i=i: done.append((i, threading.current_thread().name)))
    assert writer.flush()
    assert [i for i, _ in done] == list(range(50))
    assert {name for _, name in done} == {"camwatch-writer"}


def test_no_thread_is_started_before_the_first_job_and_none_is_left_after_close():
    before = threading.active_count()
    writer = BackgroundWriter()
    assert threading.active_count() == before
    for _ in range(200):
        writer.submit(torch.rand(64, 64).matmul, torch.rand(64, 64))
        writer.close()
        assert threading.active_count() == before


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_200_writers_leave_neither_native_threads_nor_open_files():
    def cycle():
        writer = BackgroundWriter()
        writer.submit(to_png, torch.zeros(3, 8, 8, dtype=torch.uint8))
        writer.submit(heatmaps, torch.rand(4, 7, 7), (64, 64))
        writer.close()

    def counts():
        return [len(os.listdir(f"/proc/self/{what}")) for what in ("task", "fd")]

    for _ in range(5):
        cycle()
    before = counts()
    for _ in range(200):
        cycle()
    after = counts()
    assert all(now <= then + 1 for now, then in zip(after, before, strict=True))


def fail(message):
    raise OSError(message)


def test_an_error_is_handed_back_once_per_kind_to_the_caller():
    writer, done = BackgroundWriter(), []
    with pytest.warns(CamwatchWarning, match=r"fail failed and training goes on: OSError: disk full") as caught:
        writer.submit(fail, "disk full")
        writer.flush()
    assert caught[0].filename == __file__
    writer.submit(fail, "still full")
    writer.submit(done.append, 1)
    assert writer.flush()
    assert done == [1]
    with pytest.warns(CamwatchWarning, match="ZeroDivisionError"):
        writer.submit(lambda: 1 / 0)
        writer.flush()


def test_a_job_that_exits_does_not_end_the_jobs_behind_it():
    writer, done = BackgroundWriter(), []
    with pytest.warns(CamwatchWarning, match="SystemExit"):
        writer.submit(sys.exit, 1)
        writer.submit(done.append, 1)
        writer.flush()
    assert done == [1]


def test_submitting_never_waits_longer_than_the_patience_and_recovers():
    writer, done, gate = BackgroundWriter(capacity=2, patience=0.2), [], threading.Event()
    writer.submit(gate.wait)
    writer.submit(done.append, 0)
    started = time.monotonic()
    with pytest.warns(CamwatchWarning, match=r"writing is too slow: 2 jobs are pending for 0.2 s, new ones are"):
        writer.submit(done.append, 1)
    assert 0.15 < time.monotonic() - started < 2
    started = time.monotonic()
    for i in range(100):
        writer.submit(done.append, i)
    assert time.monotonic() - started < 0.15
    gate.set()
    assert writer.flush()
    writer.submit(done.append, 7)
    assert writer.flush()
    assert done == [0, 7]


def test_submitting_waits_for_a_place_and_loses_nothing_while_the_worker_keeps_up():
    writer, done = BackgroundWriter(capacity=2), []
    for i in range(30):
        writer.submit(lambda i=i: (time.sleep(0.002), done.append(i)))
    assert writer.flush()
    assert done == list(range(30))


def test_flush_and_close_are_bounded_and_close_drops_what_hangs():
    writer, done, gate = BackgroundWriter(), [], threading.Event()
    writer.submit(gate.wait)
    writer.submit(done.append, 1)
    assert not writer.flush(timeout=0.05)
    with pytest.warns(CamwatchWarning, match=r"did not end within 0.05 s: one job is left running, 1 were dropped"):
        writer.close(timeout=0.05)
    gate.set()
    assert writer.flush()
    assert done == []
    writer.submit(done.append, 2)
    writer.close()
    assert done == [2]


def test_copies_carry_the_settings_only():
    writer, gate = BackgroundWriter(capacity=3, patience=1.5), threading.Event()
    for other in (copy.deepcopy(writer), pickle.loads(pickle.dumps(writer))):
        assert (other.capacity, other.patience) == (3, 1.5)
    writer.submit(gate.wait)
    busy, done = copy.deepcopy(writer), []
    busy.submit(done.append, 1)
    assert busy.flush(timeout=5)
    assert done == [1]
    gate.set()
    writer.close()


def test_pending_jobs_are_done_when_the_interpreter_ends(tmp_path):
    code = (
        "import time, pathlib, sys; from camwatch.watch.background import BackgroundWriter\n"
        "w = BackgroundWriter()\n"
        "w.submit(time.sleep, 0.2); w.submit(pathlib.Path(sys.argv[1]).write_text, 'done')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], check=True, timeout=60)
    assert (tmp_path / "file").read_text() == "done"


# The backends.


def write_all(writer):
    """Writes as a run does: scalars here, the rest on the writer thread."""
    background = BackgroundWriter()
    for step in (0, 10):
        writer.scalars({"camwatch/relevance_mass_accuracy": 0.25 + step / 100, "camwatch/alarm": 0.0}, step)
        background.submit(writer.image, TAG, picture(step), step)
    for text in (TEXT, TEXT + " and shown elsewhere"):
        background.submit(writer.text, "camwatch/alarm", text, 10)
    background.close()


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def assert_in_tensorboard(folder):
    read = events(folder)
    images = read.Images(TAG)
    assert [image.step for image in images] == [0, 10]
    assert [(image.width, image.height) for image in images] == [(30, 20)] * 2
    for image in images:  # JPEG
        shown = pixels(io.BytesIO(image.encoded_image_string)).float()
        assert float((shown - picture(image.step).float()).abs().mean()) < 16
    scalars = read.Scalars("camwatch/relevance_mass_accuracy")
    assert [(s.step, round(s.value, 4)) for s in scalars] == [(0, 0.25), (10, 0.35)]
    texts = read.Tensors("camwatch/alarm/text_summary")
    assert texts[0].step == 10
    assert texts[0].tensor_proto.string_val[0].decode() == TEXT


@pytest.mark.parametrize("namespace", ["pytorch_lightning.loggers", "lightning.pytorch.loggers"])
def test_tensorboard_logger_gets_images_scalars_and_text(tmp_path, namespace):
    loggers = pytest.importorskip(namespace)
    logger = loggers.TensorBoardLogger(tmp_path)
    write_all(for_logger(logger))
    logger.finalize("success")
    assert_in_tensorboard(logger.log_dir)


def test_summary_writer_gets_images_scalars_and_text(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    from camwatch.watch.writers.tensorboard import summary_writer

    plain = SummaryWriter(str(tmp_path / "a"))
    write_all(for_logger(plain))
    assert_in_tensorboard(tmp_path / "a")
    plain.close()
    own = summary_writer(tmp_path / "b")
    write_all(own)
    own.close()
    assert_in_tensorboard(tmp_path / "b")


def test_images_and_text_can_be_read_while_the_run_goes_on(tmp_path):
    from camwatch.watch.writers.tensorboard import summary_writer

    writer = summary_writer(tmp_path)
    writer.image(TAG, picture(), 0)
    writer.text("camwatch/alarm", TEXT, 0)
    assert events(tmp_path).Tags()["images"] == [TAG]
    assert events(tmp_path).Tags()["tensors"] == ["camwatch/alarm/text_summary"]
    writer.close()


def test_csv_logger_gets_scalars_and_images_and_texts_as_files(tmp_path):
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    write_all(for_logger(logger))
    logger.save()
    folder = Path(logger.log_dir)
    table = (folder / "metrics.csv").read_text().splitlines()
    header = table[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=True)) for line in table[1:]]
    assert [(r["step"], r["camwatch/relevance_mass_accuracy"]) for r in rows] == [("0", "0.25"), ("10", "0.35")]
    for step in (0, 10):
        file = folder / "images" / "camwatch" / "layer4.1" / "overlays" / f"step_{step:08d}.png"
        assert torch.equal(pixels(file), picture(step))
    texts = sorted(p.read_text() for p in (folder / "texts" / "camwatch" / "alarm").glob("step_00000010_*.md"))
    assert texts == [TEXT, TEXT + " and shown elsewhere"]


def test_wandb_logger_gets_images_scalars_and_text_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from pytorch_lightning.loggers import WandbLogger

    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    write_all(for_logger(logger))
    summary = dict(logger.experiment.summary)
    folder = Path(logger.experiment.dir)
    wandb.finish()
    assert summary["camwatch/relevance_mass_accuracy"] == 0.35
    stored = [pixels(file) for file in sorted(folder.rglob("*.png"))]
    assert len(stored) == 2
    assert all(any(torch.equal(image, picture(step)) for image in stored) for step in (0, 10))
    assert any("region hidden" in file.read_text() for file in folder.rglob("*.table.json"))


def test_mlflow_logger_gets_images_scalars_and_text_in_a_file_store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=(tmp_path / "runs").as_uri())
    write_all(for_logger(logger))
    history = logger.experiment.get_metric_history(logger.run_id, "camwatch/relevance_mass_accuracy")
    assert [(m.step, m.value) for m in history] == [(0, 0.25), (10, 0.35)]
    stored = [pixels(file) for file in tmp_path.rglob("artifacts/**/*.png")]
    assert len(stored) == 2
    assert all(any(torch.equal(image, picture(step)) for image in stored) for step in (0, 10))
    texts = sorted(file.read_text() for file in tmp_path.rglob("camwatch/alarm/*.md"))
    assert texts == [TEXT, TEXT + " and shown elsewhere"]


def certain(snapshot):
    return Finding("certain", snapshot.epoch, snapshot.global_step, "as always") if snapshot.epoch == 1 else None


def train(logger):
    """A run of two epochs with an alarm; its monitor."""
    monitor = CAMMonitor(12, detectors=[certain], on_alarm=[])
    run = trainer(monitor, logger=logger, log_every_n_steps=1)
    run.fit(SmallNet(), loader(data()), loader(data()))
    assert [s.global_step for s in monitor.history] == [0, 4, 8]
    return monitor


@pytest.mark.filterwarnings("ignore:.*images of the panel can be judged")
@pytest.mark.filterwarnings("ignore:.*no normalization")
def test_a_run_arrives_in_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from pytorch_lightning.loggers import WandbLogger

    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    monitor = train(logger)
    summary, folder = dict(logger.experiment.summary), Path(logger.experiment.dir).parent
    wandb.finish()
    last = monitor.history[-1].scalars["relevance_mass_accuracy"]
    assert summary["camwatch/relevance_mass_accuracy"] == pytest.approx(last)
    pictures = [str(path) for path in folder.rglob("*.png")]
    assert [sum(kind in path for path in pictures) for kind in ("panel", "overlays", "film_strip")] == [1, 3, 3]
    assert any("as always" in path.read_text() for path in folder.rglob("*.table.json"))
    assert repr(load_archive(tmp_path).alarms) == repr(monitor.alarms)  # the evidence may hold NaN


@pytest.mark.filterwarnings("ignore:.*images of the panel can be judged")
@pytest.mark.filterwarnings("ignore:.*no normalization")
def test_a_run_arrives_in_mlflow(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from pytorch_lightning.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=(tmp_path / "runs").as_uri())
    monitor = train(logger)
    key = "relevance_mass_accuracy"
    history = logger.experiment.get_metric_history(logger.run_id, f"camwatch/{key}")
    assert [(m.step, m.value) for m in history] == [(s.global_step, s.scalars[key]) for s in monitor.history]
    groups = [f"{key}/{group}" for group in ("right", "wrong") if f"{key}/{group}" in monitor.history[-1].scalars]
    stored = logger.experiment.get_run(logger.run_id).data.metrics
    assert groups
    for group in groups:  # a file store cannot keep a metric below another
        assert stored[f"camwatch/{group.replace('/', '_')}"] == monitor.history[-1].scalars[group]
    pictures = [str(path) for path in tmp_path.rglob("artifacts/**/*.png")]
    assert [sum(kind in path for path in pictures) for kind in ("panel", "overlays", "film_strip")] == [1, 3, 3]
    assert ["as always" in path.read_text() for path in tmp_path.rglob("camwatch/alarm/*.md")] == [True]
    assert repr(load_archive(tmp_path).alarms) == repr(monitor.alarms)  # the evidence may hold NaN


# Which writer a logger gets.


class Own:
    """A writer in ten lines."""

    def __init__(self):
        self.seen = []

    def image(self, tag, picture, step):
        self.seen.append((tag, tuple(picture.shape), step))

    def scalars(self, values, step):
        self.seen.append((dict(values), step))

    def text(self, tag, text, step):
        self.seen.append((tag, text, step))


def test_a_users_own_writer_is_taken_as_it_is():
    own = Own()
    assert for_logger(own) is own
    write_all(own)
    assert len(own.seen) == 6


def test_an_unknown_logger_gets_the_scalars():
    class Unknown:
        def __init__(self):
            self.logged = []

        def log_metrics(self, metrics, step=None):
            self.logged.append((metrics, step))

    logger = Unknown()
    writer = for_logger(logger)
    assert isinstance(writer, ScalarWriter)
    assert isinstance(writer, Writer)
    write_all(writer)
    assert [step for _, step in logger.logged] == [0, 10]


def test_a_subclass_of_a_known_logger_is_known_and_a_stand_in_gets_nothing(tmp_path):
    from pytorch_lightning.loggers import CSVLogger
    from pytorch_lightning.loggers.logger import DummyLogger

    class Mine(CSVLogger):
        pass

    assert type(for_logger(Mine(tmp_path))).__name__ == "CSVWriter"
    assert for_logger(DummyLogger()) is None
    assert for_logger(object()) is None


def test_choosing_a_writer_imports_no_backend():
    code = (
        "import sys, camwatch.watch.writers as w; w.for_logger(object())\n"
        "print([m for m in ('lightning', 'pytorch_lightning', 'tensorboard', 'wandb', 'mlflow') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "[]\n"
