"""What each of two gloo processes runs: `torchrun --nproc-per-node 2 two_ranks.py MODE FOLDER WATCH [OPTIMIZER]`.

MODE is plain, ddp, fsdp, or late: sharded only when the optimizer is there and watched, as Accelerate does it.
"""

import gc
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import smdtrack


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 9, 3, padding=1, bias=False),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.Conv2d(9, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).double()


def shard(model: nn.Module) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model[3], mesh=mesh)
    fully_shard(model, mesh=mesh)


def main(mode: str, folder: Path, watch: str, optimizer_name: str = "sgd") -> None:
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = network()
    runner: nn.Module = model
    if mode == "ddp":
        runner = DistributedDataParallel(model)
    elif mode == "fsdp":
        shard(model)
    if optimizer_name == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    tracker = None
    if watch != "no":
        tracker = smdtrack.watch(runner, optimizer, every=1, lags=[3], sinks=["local"], folder=folder / "runs")
    if watch == "fault" and dist.get_rank() == 1:
        assert tracker is not None
        tracker._samplers[0]._measurer._probe.begin = None  # type: ignore[assignment,method-assign]
    if mode == "late":
        shard(model)
        optimizer.param_groups[0]["params"] = list(model.parameters())
    for number in range(8):
        # The same batch on both ranks: then sharded, replicated and plain training are the same.
        generator = torch.Generator().manual_seed(number)
        images = torch.randn(16, 3, 10, 10, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 5, (16,), generator=generator)
        F.cross_entropy(runner(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    if tracker is not None:
        tracker.finish()
    whole = {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).clone()
        for name, value in model.state_dict().items()
    }
    if dist.get_rank() == 0:
        torch.save(whole, folder / "end.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
    # If a gloo thread still holds the last step's work when Python ends, the process aborts. The thread ends when
    # nothing refers to the process group any more. DDP refers to it and is part of a reference cycle: collect that.
    gc.collect()
    dist.destroy_process_group()
