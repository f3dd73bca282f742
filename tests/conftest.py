"""One thread per process, as the tests' tensors are small; children find the helpers; what takes long is marked."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# Tests that start a process of their own import tests.support there.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])

# Parts of the ids of tests that take seconds each: whole trainings, several processes, large networks, peers.
SLOW = (
    "adapters/lightning/test_ddp.py",
    "adapters/lightning/test_identity.py",
    "adapters/lightning/test_resume.py",
    "adapters/test_transformers.py",
    "auditing/test_audit.py",
    "cam/test_contexts.py",
    "cam/test_keras.py",
    "cam/test_peers.py",
    "cli/",
    "metrics/test_peers.py",
    "over_two_processes",
    "test_default_detectors_keep_silent",
    "test_extending.py",
    "test_import_cost.py",
    "test_drift_benchmark.py",
    "test_examples.py",
    "test_readme.py::test_documented_command",
    "test_readme.py::test_readme_python",
    "test_history.py::test_reads_as_the_list",
    "test_watcher.py::test_cheat_raises",
    "test_watcher.py::test_honest_model",
    "test_watcher.py::test_state_goes_through",
    "survives_kills",
    "mlflow",
    "of_the_zoo",
    "equals_pytorch_grad_cam",
    "equals_torch_cam",
    "mobilevit",
    "resnet18",
    "vgg16_bn",
    "wandb",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(part in item.nodeid for part in SLOW):
            item.add_marker(pytest.mark.slow)
