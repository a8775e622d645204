"""Runs the CUDA backend on the CPU with Triton's interpreter, and prints its sums and those of float64 as JSON.

TRITON_INTERPRET=1 python -m tests.tracking.triton_interpreter
"""

import json

import torch
from torch import Tensor

from smdtrack.tracking.measure.backends.triton_backend import TritonBackend


def weights(dtype: torch.dtype) -> list[Tensor]:
    """Sizes around a block and a chunk, an empty tensor, channels_last, and a slice of a larger tensor."""
    shapes = [(1,), (3, 5), (1023,), (1024,), (1025,), (16384,), (3, 16385), (0, 4), (8, 6, 3, 3)]
    made = [torch.randn(shape).to(dtype) for shape in shapes]
    last = torch.randn(8, 6, 3, 3).to(dtype).to(memory_format=torch.channels_last)
    return [*made, last, torch.randn(30, 50).to(dtype)[:, 10:40]]


def case(dtype: torch.dtype, gradient_dtype: torch.dtype, scale: float | None, late: bool) -> dict[str, object]:
    torch.manual_seed(0)
    now = dict(enumerate(weights(dtype)))
    old = {column: weight.clone() for column, weight in now.items()}

    def others(missing: int) -> dict[int, Tensor]:
        given = {column: weight.shape for column, weight in now.items() if column % 4 != missing}
        return {column: torch.randn(shape).to(gradient_dtype) * (scale or 1) for column, shape in given.items()}

    gradients, vectors = others(1), others(2)
    backend = TritonBackend()
    measured, expected = [], []
    for _ in range(2):  # the second time reuses the chunk plan, with other numbers in the copies
        backend.begin(now, {} if late else gradients, None if scale is None else torch.tensor(scale))
        if late:
            backend.read_gradients(gradients)
        for weight in now.values():
            weight.add_(0.01 * torch.randn(weight.shape))
        measured.append(backend.end(now, vectors).tolist())
        rows = [[0.0] * len(now) for _ in range(6)]
        for column, weight in now.items():
            w, d = old[column].double(), weight.double() - old[column].double()
            none = torch.zeros_like(w)
            g = gradients.get(column, none).double() / (scale or 1)
            v = vectors.get(column, none).double()
            for row, (left, right) in enumerate(((w, w), (w, g), (g, g), (w, d), (d, d), (d, v))):
                rows[row][column] = float((left * right).sum())
        expected.append(rows)
        old = {column: weight.clone() for column, weight in now.items()}
    return {"measured": measured, "expected": expected}


def main() -> None:
    half, low, single, double = torch.float16, torch.bfloat16, torch.float32, torch.float64
    cases = {
        "fp32": (single, single, None, False),
        "fp32, gradients scaled in fp16": (single, half, 128.0, False),
        "bf16": (low, low, None, False),
        "bf16 with fp32 gradients, late": (low, single, None, True),
        "float64": (double, double, None, False),
    }
    print(json.dumps({name: case(*options) for name, options in cases.items()}))


if __name__ == "__main__":
    main()
