"""Tests run on one thread: small tensors, and the machine is shared with the processes that tests start."""

import torch

torch.set_num_threads(1)
