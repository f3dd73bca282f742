"""One thread per process: the tests' tensors are small, and several may run at once."""

import torch

torch.set_num_threads(1)
