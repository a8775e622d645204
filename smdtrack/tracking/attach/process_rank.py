"""The rank of this process in a distributed training."""

import os

import torch


def rank() -> int:
    """Returns this process's rank; 0 outside distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return int(os.environ.get("RANK", "0"))
