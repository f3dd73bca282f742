"""One thread per process, as the tests' tensors are small; children find the helpers in tests.support."""

import os
from pathlib import Path

import torch

torch.set_num_threads(1)
# Tests that start a process of their own import tests.support there.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
