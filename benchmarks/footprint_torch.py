"""The yardstick of benchmarks.footprint: the two-convolution network trained by torch alone, as edge-agent train does.

python -m benchmarks.footprint_torch DATA.npz STEPS
"""

import sys

import numpy as np
import torch
from torch.nn import functional

from benchmarks.networks import cnn_2conv


def main() -> None:
    path, steps = sys.argv[1:]
    torch.set_num_threads(1)
    with np.load(path) as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    module = cnn_2conv().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for number in range(1, int(steps) + 1):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        print(f"step {number:4d}  loss {loss.item():.4f}", flush=True)


if __name__ == "__main__":
    main()
