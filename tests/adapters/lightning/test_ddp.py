"""Two processes: the same history as one, no hang whatever fails, one writer, training as without the callback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import IterableDataset

from camwatch import CAMMonitor, Finding, load_archive
from camwatch.errors import UnsupportedError
from tests.support.nets import SmallNet, data, loader, trainer

LIMIT = 240  # seconds; a hang would last for ever


class Still(SmallNet):
    """Trains nothing, so that the weights do not depend on how the batches are divided."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Sharded(SmallNet):
    """Its parameters are divided over the processes, with FSDP2."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for part in (self.features, self.head, self):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


class ShardedStill(Sharded, Still):
    """The same, and nothing is trained."""


class Failing(SmallNet):
    """Raises on one process, in the snapshot of one epoch."""

    error: BaseException | None = None

    def forward(self, images: Tensor) -> Tensor:
        snapshot = not torch.is_inference(images) and not self.training and torch.is_grad_enabled()
        if snapshot and self.trainer.global_rank == 1 and self.trainer.current_epoch == 1 and len(images) > 2:
            raise self.error or RuntimeError("only here")
        return super().forward(images)


class Stream(IterableDataset[Any]):
    """Other images on every process."""

    def __iter__(self) -> Any:
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return iter([data()[i] for i in range(12 * rank, 12 * rank + 12)])


def alarmed(rank: int) -> Any:
    """A detector that speaks on one process only."""

    def mine(snapshot: Any) -> Finding | None:
        here = int(os.environ.get("LOCAL_RANK", 0)) == rank
        return Finding("mine", snapshot.epoch, snapshot.global_step, "x") if here and snapshot.epoch == 0 else None

    return mine


def fit(folder: Path, monitor: CAMMonitor | None, net: Any = None, val: Any = None, **options: Any) -> Any:
    pl.seed_everything(5, verbose=False)
    net = (net or Still)()
    quiet = {"logger": CSVLogger(folder), "log_every_n_steps": 1, "use_distributed_sampler": val is None}
    run = trainer([] if monitor is None else [monitor], **(quiet | options))
    run.fit(net, loader(data(), shuffle=True), loader(data()) if val is None else val)
    return run, net


def whole(state: Any) -> Any:
    """Gathers what is divided."""
    if isinstance(state, dict):
        return {key: whole(held) for key, held in state.items()}
    return state.full_tensor() if hasattr(state, "full_tensor") else state


def report(monitor: CAMMonitor | None, run: Any, net: Any) -> dict[str, Any]:
    metrics = {key: value for key, value in run.callback_metrics.items() if not key.startswith("camwatch/")}
    return {
        "state": {} if monitor is None else monitor.state_dict(),
        "weights": whole(net.state_dict()),
        "optimizers": [whole(optimizer.state_dict()["state"]) for optimizer in run.optimizers],
        "random": torch.get_rng_state(),
        "metrics": metrics,
        "epochs": run.current_epoch,
        "archive": None if monitor is None or monitor.archive is None else str(monitor.archive),
    }


def out_of_memory() -> type[Failing]:
    return type("Short", (Failing,), {"error": torch.OutOfMemoryError("CUDA out of memory")})


def scenarios(folder: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """Everything that is run once by two processes and, where it makes sense, by one."""
    jobs: dict[str, Any] = {
        "even": (CAMMonitor(12), {}),
        "odd": (CAMMonitor(11), {}),
        "without": (None, {"net": SmallNet}),
        "with": (CAMMonitor(11), {"net": SmallNet}),
        "failing": (CAMMonitor(11), {"net": Failing, "max_epochs": 3}),
        "out of memory": (CAMMonitor(11), {"net": out_of_memory(), "max_epochs": 3}),
        "alarm on process 0": (CAMMonitor(11, detectors=[alarmed(0)], on_alarm="stop"), {"max_epochs": 4}),
        "alarm on process 1": (CAMMonitor(11, detectors=[alarmed(1)], on_alarm="stop"), {"max_epochs": 4}),
        "iterable": (CAMMonitor(7), {"val": loader(Stream()), "num_sanity_val_steps": 1}),
        "iterable, late": (CAMMonitor(7), {"val": loader(Stream())}),
    }
    for name, net in {"sharded, still": ShardedStill, "sharded": Sharded, "sharded, without": Sharded}.items():
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        jobs[name] = (None if "without" in name else CAMMonitor(11), {"net": net, "strategy": strategy})
    found = {}
    for name, (monitor, more) in jobs.items():
        found[name] = report(monitor, *fit(folder / name, monitor, **(options | more)))
    return found


if __name__ == "__main__":  # one of the two processes
    torch.set_num_threads(1)
    results = scenarios(Path(sys.argv[1]), devices=2, strategy="ddp")
    torch.save(results, Path(sys.argv[1]) / f"rank{os.environ['LOCAL_RANK']}.pt")
    torch.distributed.destroy_process_group()


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", __file__, str(folder)]
    processes = [
        subprocess.Popen(
            command, env=os.environ | shared | {"LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        texts = [process.communicate(timeout=LIMIT)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(text[-3000:] for text in texts)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def close(a: Any, b: Any, tolerance: float) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
    if isinstance(a, dict):
        return set(a) == set(b) and all(close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return abs(a - b) <= tolerance or a != a if isinstance(a, float) else a == b


@pytest.mark.parametrize("name", ["even", "odd", "sharded, still"])
@pytest.mark.filterwarnings("ignore")
def test_two_processes_have_the_history_of_one(name, two, tmp_path):
    monitor = CAMMonitor(12 if name == "even" else 11)
    fit(tmp_path, monitor)
    one = monitor.state_dict()["history"]
    for rank in two:
        many = rank[name]["state"]["history"]
        assert len(many) == len(one) == 3
        for a, b in zip(one, many, strict=True):
            # Two processes halve the epoch's steps.
            assert close({**a, "global_step": 0}, {**b, "global_step": 0}, 1e-6)


@pytest.mark.parametrize(
    "name", ["even", "odd", "with", "failing", "out of memory", "iterable", "iterable, late", "sharded"]
)
def test_values_are_equal_on_all_processes(name, two):
    first, second = ({**rank[name]["state"], "archive": None} for rank in two)
    for held in (first, second):  # what failed is told from each process's own side
        held["history"] = [{**one, "error": one["error"] is not None} for one in held["history"]]
    assert first["history"] and close(first, second, 0.0)


@pytest.mark.parametrize(("watched", "plain"), [("with", "without"), ("sharded", "sharded, without")])
def test_training_is_that_without_the_callback(watched, plain, two):
    for rank in two:
        assert [one["error"] for one in rank[watched]["state"]["history"]] == [None] * 3
        for key in ("weights", "optimizers", "random", "metrics", "epochs"):
            assert close(rank[watched][key], rank[plain][key], 0.0), key


def test_one_process_writes(two):
    for name in ("even", "odd", "with", "iterable", "sharded"):
        assert two[1][name]["archive"] is None
        run = load_archive(two[0][name]["archive"])
        assert [s.look for s in run.snapshots] == list(range(len(two[0][name]["state"]["history"])))
        files = sorted(path.name for path in Path(two[0][name]["archive"]).parent.rglob("*") if path.suffix == ".csv")
        assert files == ["metrics.csv"]


def test_a_process_that_fails_leaves_none_waiting(two):
    for rank in two:
        errors = [one["error"] for one in rank["failing"]["state"]["history"]]
        assert [error is None for error in errors] == [True, True, False, True]
        assert errors[2].startswith("ShareError: process 1 of 2 failed")
        assert rank["failing"]["epochs"] == 3


def test_a_process_that_lacks_memory_makes_all_take_smaller_batches(two):
    for rank in two:
        assert [one["error"] for one in rank["out of memory"]["state"]["history"]] == [None] * 4


def test_processes_agree_on_alarms_and_on_stopping(two):
    for rank in two:
        assert rank["alarm on process 0"]["epochs"] == 1
        assert [alarm["detector"] for alarm in rank["alarm on process 0"]["state"]["findings"]] == ["mine"]
        assert rank["alarm on process 1"]["epochs"] == 4
        assert rank["alarm on process 1"]["state"]["findings"] == []


def test_late_panels_are_the_same_everywhere(two):
    assert [one["epoch"] for one in two[0]["iterable"]["state"]["history"]] == [-1, 0, 1]
    assert [one["epoch"] for one in two[0]["iterable, late"]["state"]["history"]] == [0, 1]


SPAWN = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from tests.support.nets import SmallNet, data, loader, trainer
from pytorch_lightning.loggers import CSVLogger
from tests.adapters.lightning.test_resume import assert_complete
from camwatch import Finding, CAMMonitor

def certain(snapshot):
    known = {"look": snapshot.look, "labels": snapshot.labels.tolist()}
    return Finding("certain", snapshot.epoch, snapshot.global_step, "as always", known) if snapshot.epoch == 0 else None

if __name__ == "__main__":
    # Random weights may have blank maps or not, so the built-in detectors may speak or not: the archive says which.
    monitor = CAMMonitor(7, detectors=["drop", "level", "probe", "dead_maps", certain])
    spawning = {"strategy": sys.argv[2], "devices": 2, "max_epochs": 1, "logger": CSVLogger(sys.argv[1])}
    trainer(monitor, **spawning, log_every_n_steps=1).fit(SmallNet(), loader(data()), loader(data()))
    assert monitor._watcher is None
    assert [s.epoch for s in monitor.history] == [-1, 0], monitor.history
    assert [a.evidence["look"] for a in monitor.alarms if a.detector == "certain"] == [1], monitor.alarms
    assert_complete(monitor)
    [said] = Path(sys.argv[1]).rglob("texts/camwatch/summary/*.md")  # by the process that trained
    assert said.read_text().replace("\\n\\n", "\\n") == monitor.summary()
    assert monitor.state_dict()["history"]
    assert not monitor._state_file._path.exists()
"""


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork"])
def test_history_and_alarms_are_in_the_parent_after(strategy, tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), str(tmp_path), strategy]
    done = subprocess.run(command, env=environment, timeout=LIMIT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_strategies_that_hide_parameters_are_refused(name):
    strategy = type(name, (SingleDeviceStrategy,), {})(device="cpu", accelerator=pl.accelerators.CPUAccelerator())
    with pytest.raises(UnsupportedError, match=f"{name} shards parameters .* ModelParallelStrategy"):
        trainer(CAMMonitor(4), strategy=strategy, accelerator="auto").fit(SmallNet(), loader(data()), loader(data()))
