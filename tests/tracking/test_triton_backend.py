"""The CUDA backend. Without a GPU its kernels run in Triton's interpreter and are compiled; the rest needs a GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import smdtrack
from smdtrack.record import read_run
from smdtrack.tracking.interpret.step_values import step_values
from smdtrack.tracking.measure import backends
from smdtrack.tracking.measure.probe import Probe
from smdtrack.tracking.measure.table import Row
from tests.tracking.test_probe import weights_of
from tests.tracking.witness import Witness

ROOT = Path(__file__).parents[2]
CASES = ["fp32", "fp32, gradients scaled in fp16", "bf16", "bf16 with fp32 gradients, late", "float64"]

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "tests.tracking.triton_interpreter"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_sums_equal_float64(case: str, interpreted: dict[str, Any]) -> None:
    assert list(interpreted) == CASES
    np.testing.assert_allclose(interpreted[case]["measured"], interpreted[case]["expected"], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("capability", [75, 90])
@pytest.mark.parametrize(("weight", "vector"), [("float32", "float32"), ("bfloat16", "float32")])
def test_the_kernels_compile(
    capability: int,
    weight: str,
    vector: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from smdtrack.tracking.measure.backends import triton_kernels as kernels

    types = dict.fromkeys(("programs", "chunks", "addresses", "elements", "bounds"), "*i64")
    types |= {"sums": "*fp64", "table": "*fp64", "tensors": "i32", "all_chunks": "i32"}
    constants = {"WEIGHT": getattr(tl, weight), "VECTOR": getattr(tl, vector)}
    for kernel in (kernels.read, kernels.compare, kernels.total):
        given = {name: value for name, value in constants.items() if name in kernel.arg_names}
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=given)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert f".target sm_{capability}" in compiled.asm["ptx"]
        assert "fma.rn.f64" in compiled.asm["ptx"] or kernel is kernels.total
        assert compiled.asm["cubin"]


def test_the_foreach_backend_is_used_where_triton_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from smdtrack.tracking.measure.backends import triton_backend

    def no_compiler(*args: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton_backend.TritonBackend, "begin", no_compiler)
    triton_backend.works_on.cache_clear()
    # This needs no GPU: the check of the backend fails before it uses one.
    assert isinstance(backends.backend_for(torch.device("cuda")), backends.ForeachBackend)
    triton_backend.works_on.cache_clear()


def test_triton_with_wrong_sums_counts_as_not_working(monkeypatch: pytest.MonkeyPatch) -> None:
    from smdtrack.tracking.measure.backends import triton_backend

    class Exact:
        factor = 1.0

        def begin(self, weights: Any, gradients: Any, scale: None) -> None:
            self.before, self.gradient = weights[0].double(), gradients[0].double()

        def end(self, weights: Any, vectors: Any) -> torch.Tensor:
            w, g, d, v = self.before, self.gradient, weights[0].double() - self.before, vectors[0].double()
            pairs = ((w, w), (w, g), (g, g), (w, d), (d, d), (d, v))
            return self.factor * torch.stack([(a * b).sum() for a, b in pairs]).view(6, 1)

    monkeypatch.setattr(triton_backend, "TritonBackend", Exact)
    for factor, works in ((1.0, True), (1 + 1e-6, False)):
        monkeypatch.setattr(Exact, "factor", factor)
        triton_backend.works_on.cache_clear()
        assert triton_backend.works_on(torch.device("cpu")) == works
    triton_backend.works_on.cache_clear()


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device("cuda")


@pytest.fixture(params=["triton", "foreach"])
def backend(request: pytest.FixtureRequest, cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> str:
    """Chooses the backend of the GPU; the Triton backend must have passed its own check."""
    if request.param == "foreach":
        monkeypatch.setattr(backends, "backend_for", lambda device: backends.ForeachBackend())
    else:
        from smdtrack.tracking.measure.backends import triton_backend

        assert triton_backend.works_on(cuda)
        assert isinstance(backends.backend_for(cuda), triton_backend.TritonBackend)
    name: str = request.param
    return name


def without_waiting(work: Callable[[], Any]) -> Any:
    """Runs work; torch raises an error if the host waits for the device meanwhile."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        return work()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu_the_sums_equal_float64(dtype: torch.dtype, backend: str, cuda: torch.device) -> None:
    shapes = [(512, 512, 3, 3), (64, 3, 7, 7), (1000, 2048), (5,)]
    before = {column: torch.randn(shape, device=cuda).to(dtype) for column, shape in enumerate(shapes)}
    before[0] = before[0].to(memory_format=torch.channels_last)
    gradients, vectors = ({c: torch.randn_like(w) for c, w in before.items()} for _ in range(2))
    after = {column: weight + 0.01 * torch.randn_like(weight) for column, weight in before.items()}
    probe = Probe(len(shapes))
    probe.prepare([cuda])
    for _ in range(2):
        without_waiting(lambda: probe.begin(before, gradients))
        reading = without_waiting(lambda: probe.end(after, momentum=vectors))
    found = [getattr(step_values(reading), row.name.lower()) for row in list(Row)[:6]]
    for column, weight in before.items():
        w, g, v = weight.double(), gradients[column].double(), vectors[column].double()
        d = after[column].double() - w
        for row, (left, right) in enumerate(((w, w), (w, g), (g, g), (w, d), (d, d), (d, v))):
            size = float(left.norm() * right.norm())
            assert found[row][column] == pytest.approx(float((left * right).sum()), abs=1e-6 * size), (row, column)


@pytest.mark.gpu
def test_on_a_gpu_the_number_of_kernels_does_not_grow_with_the_weights(backend: str, cuda: torch.device) -> None:
    def kernels(count: int) -> int:
        given = [{c: x.to(cuda) for c, x in tensors.items()} for tensors in weights_of(count)]
        weights, gradients, changed, vectors = given
        probe = Probe(count)
        for _ in range(2):
            probe.begin(weights, gradients)
            probe.end(changed, momentum=vectors)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            probe.begin(weights, gradients)
            probe.end(changed, momentum=vectors)
            torch.cuda.synchronize()
        names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not name.startswith(("Memcpy", "Memset")) for name in names)

    few, many = kernels(10), kernels(100)
    if backend == "triton":
        assert few == many == 4
    else:
        # Torch limits the number of tensors per kernel, so that there are a few more.
        assert many <= 3 * few <= 150


@pytest.mark.gpu
def test_on_a_gpu_the_only_extra_memory_is_one_copy_of_the_weights(cuda: torch.device) -> None:
    weights = {column: torch.randn(512, 512, 3, 3, device=cuda) for column in range(4)}
    gradients = {column: torch.randn_like(weight) for column, weight in weights.items()}
    probe = Probe(4)
    probe.prepare([cuda])
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    probe.begin(weights, gradients)
    step_values(probe.end(weights, momentum=gradients))
    size = sum(weight.nbytes for weight in weights.values())
    assert torch.cuda.max_memory_allocated() - held <= size + 2**20


@pytest.mark.gpu
def test_on_a_gpu_no_step_waits_and_the_angles_equal_float64(backend: str, cuda: torch.device, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).to(cuda, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)
    witness = Witness(model, optimizer)
    tracker = smdtrack.watch(model, optimizer, every=2, sinks=["local"], folder=str(tmp_path), lags=[2])
    images = torch.randn(8, 3, 16, 16, device=cuda).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (8,), device=cuda)
    for _ in range(12):
        F.cross_entropy(model(images), labels).backward()
        without_waiting(optimizer.step)
        optimizer.zero_grad()
    tracker.finish()
    run = read_run(tracker.folder)
    for weight in run.info.weights:
        steps, values = run.series(f"angle/{weight.key}")
        assert len(steps) == 6
        expected = [witness.angle(weight.name, step) for step in steps.tolist()]
        np.testing.assert_allclose(values, expected, rtol=1e-6)
