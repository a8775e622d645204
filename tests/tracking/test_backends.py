"""The sums of all backends against float64: sizes below and above a block, layouts, precisions, radial changes."""

import ctypes
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from smdtrack.geometry import angle_from_moments
from smdtrack.tracking.measure import backends
from smdtrack.tracking.measure.backends import compile_passes, compiled_passes, threads
from tests.tracking.witness import chord_angle

BACKENDS = ["compiled", "numpy", "foreach"]
SHAPES = [(3,), (8, 27), (64, 64, 3, 3), (130, 1024), (512, 512, 3, 3)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The passes, compiled as when the package is installed."""
    path = tmp_path_factory.mktemp("passes") / "passes.so"
    if not compile_passes.compile_passes(path):
        pytest.skip("no C compiler")
    return path


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class of a backend, by name."""
    if request.param == "foreach":
        yield backends.ForeachBackend
        return
    path = request.getfixturevalue("compiled") if request.param == "compiled" else Path("nowhere.so")
    monkeypatch.setattr(compiled_passes, "library_path", lambda: path)
    compiled_passes.library.cache_clear()
    assert (compiled_passes.library() is None) == (request.param == "numpy")
    yield backends.CpuBackend
    compiled_passes.library.cache_clear()


def stepped(shape: tuple[int, ...], angle: float, shrinkage: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, the weight after a step that turns it and shrinks it, and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    before, other, gradient = (torch.randn(shape, generator=generator) for _ in range(3))
    across = other - (other * before).sum() / before.square().sum() * before
    after = (1 - shrinkage) * (before + angle * before.norm() / across.norm() * across)
    return before, after, gradient


def measured(backend: Any, before: Tensor, after: Tensor, gradient: Tensor, scale: Tensor | None = None) -> list[float]:
    weight = before.clone(memory_format=torch.preserve_format)
    with torch.no_grad():
        backend.begin({4: weight}, {4: gradient}, scale)
        weight.copy_(after)
        return [float(row[0]) for row in backend.end({4: weight}, {})][:5]


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("angle", "shrinkage"), [(0.3, 0.1), (1e-2, 1e-4), (1e-4, 0.0), (1e-4, 1e-2)])
def test_the_angle_is_within_a_millionth_of_float64(
    backend: Any, shape: tuple[int, ...], angle: float, shrinkage: float
) -> None:
    before, after, gradient = stepped(shape, angle, shrinkage)
    row = measured(backend(), before, after, gradient)
    moments = [torch.tensor(row[index], dtype=torch.float64) for index in (0, 3, 4)]
    assert float(angle_from_moments(*moments)) == pytest.approx(chord_angle(before.double(), after.double()), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_each_of_the_five_sums_equals_float64(backend: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    before, after, gradient = (tensor.to(dtype) for tensor in stepped(shape, 0.1, 0.01))
    w, g, d = before.double(), gradient.double(), after.double() - before.double()
    size = float(w.norm() * g.norm())
    expected = [
        float(w.square().sum()),
        float((w * g).sum()),
        float(g.square().sum()),
        float((w * d).sum()),
        float(d.square().sum()),
    ]
    row = measured(backend(), before, after, gradient)
    np.testing.assert_allclose(row[:1] + row[2:], expected[:1] + expected[2:], rtol=2e-6)
    assert row[1] == pytest.approx(expected[1], abs=1e-6 * size)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_weight_and_gradient_in_different_layouts(backend: Any) -> None:
    before, after, gradient = stepped((20, 30, 7, 5), 0.1, 0.0)
    plain = measured(backend(), before, after, gradient)
    last = torch.channels_last
    for layouts in ((last, last), (last, torch.contiguous_format), (torch.contiguous_format, last)):
        row = measured(backend(), before.to(memory_format=layouts[0]), after, gradient.to(memory_format=layouts[1]))
        np.testing.assert_allclose(row, plain, rtol=1e-6, atol=1e-8 * plain[0])


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_gradients_are_divided_by_the_loss_scale(backend: Any) -> None:
    before, after, gradient = stepped((20, 30), 0.1, 0.0)
    plain = measured(backend(), before, after, gradient)
    np.testing.assert_allclose(
        measured(backend(), before, after, gradient * 512, torch.tensor(512.0)), plain, rtol=1e-6
    )


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_a_weight_without_a_gradient_has_zeros_and_one_that_did_not_move_turned_by_zero(backend: Any) -> None:
    weight = torch.randn(40, 50)
    one = backend()
    with torch.no_grad():
        one.begin({0: weight}, {}, None)
        row = [float(cells[0]) for cells in one.end({0: weight}, {})]
    assert row[1:] == pytest.approx([0.0, 0.0, 0.0, 0.0, 0.0], abs=1e-10 * row[0])


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_dot_product_of_change_and_vector(backend: Any, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """Several weights, one of them without a vector; the vectors have another layout than the weights, or the same."""
    shapes = [(64, 64, 3, 3), (8, 3, 5, 5), (30, 20, 1, 1), (7, 5, 3, 3)]
    before = {column: torch.randn(shape).to(dtype) for column, shape in enumerate(shapes)}
    after = {column: (weight + 0.01 * torch.randn_like(weight)) for column, weight in before.items()}
    vectors = {column: torch.randn_like(before[column]).to(memory_format=layout) for column in (0, 1, 3)}
    one = backend()
    with torch.no_grad():
        one.begin(before, {2: before[2]}, None)
        table = one.end(after, vectors)
    assert table.shape == (6, 4)
    assert table.dtype == torch.float64
    for column, weight in before.items():
        d = after[column].double() - weight.double()
        v = vectors[column].double() if column in vectors else torch.zeros_like(d)
        assert float(table[4, column]) == pytest.approx(float(d.square().sum()), rel=1e-6)
        rounding = 1e-6 if dtype == torch.float32 else 1e-4
        assert float(table[5, column]) == pytest.approx(float((d * v).sum()), abs=rounding * float(d.norm() * v.norm()))
    assert table[1].tolist() == pytest.approx([0, 0, float(before[2].double().square().sum()), 0], rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_gradients_that_are_read_after_begin(backend: Any) -> None:
    before, after, gradient = stepped((50, 40), 0.1, 0.0)
    expected = measured(backend(), before, after, gradient)
    one = backend()
    with torch.no_grad():
        one.begin({4: before}, {}, None)
        one.read_gradients({4: gradient})
        found = one.end({4: after}, {})
    np.testing.assert_allclose(found[:5, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_weights_that_are_slices_of_a_larger_tensor(backend: Any) -> None:
    before, after, gradient = stepped((40, 60), 0.1, 0.01)
    expected = measured(backend(), before, after, gradient)
    room = torch.zeros(40, 100)
    weight = room[:, 20:80]
    one = backend()
    with torch.no_grad():
        weight.copy_(before)
        one.begin({4: weight}, {4: gradient}, None)
        weight.copy_(after)
        np.testing.assert_allclose(one.end({4: weight}, {})[:5, 0], expected, rtol=1e-6)
    assert room[:, :20].count_nonzero() == room[:, 80:].count_nonzero() == 0


def test_the_compiled_passes_stay_within_the_given_memory(compiled: Path) -> None:
    """Sizes around a vector's, at any alignment, inside an array of large values that would show in the sums."""
    library = ctypes.CDLL(str(compiled))
    for size in range(40):
        for shift in range(3):
            arrays = [np.full(64, 1e6, dtype=np.float32) for _ in range(4)]
            w, other, copy, now = (array[shift + 8 : shift + 8 + size] for array in arrays)
            w[:], other[:], now[:] = (np.random.randn(size) for _ in range(3))
            for vector in (other, None):
                table = np.zeros((2, 3))
                count = np.array([size], dtype=np.int64)
                at = [np.array([0 if x is None else x.ctypes.data], dtype=np.uint64) for x in (w, vector, copy, now)]
                for function, first, sums_there in (
                    (library.smdtrack_begin, at[0], table[0]),
                    (library.smdtrack_end, at[3], table[1]),
                ):
                    places = (count, first, at[1], at[2], sums_there)
                    function(ctypes.byref(compiled_passes.Job(1, *(array.ctypes.data for array in places), 0)))
                x, d = w.astype(float), now.astype(float) - w.astype(float)
                y = np.zeros(size) if vector is None else other.astype(float)
                expected = [[x @ x, x @ y, y @ y], [x @ d, d @ d, d @ y]]
                np.testing.assert_allclose(table, expected, rtol=1e-10, atol=1e-12)
                assert np.array_equal(copy, w)
            assert np.count_nonzero(arrays[2] == 1e6) == 64 - size


def test_without_a_compiler_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    assert not compile_passes.compile_passes(tmp_path / "passes.so")
    assert list(tmp_path.iterdir()) == []


def test_several_threads_sum_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {column: torch.randn(40 + column, 90, 3, 3) for column in range(9)}
    gradients = {column: torch.randn_like(weight) for column, weight in weights.items()}
    changed = {column: weight + 0.01 * torch.randn_like(weight) for column, weight in weights.items()}
    tables = []
    for count in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        backend = backends.CpuBackend()
        backend.begin(weights, gradients, None)
        tables.append(backend.end(changed, gradients))
    assert torch.equal(*tables)


@pytest.mark.parametrize("count", [1, 3])
def test_pieces_of_tensors_add_up_to_the_whole(count: int, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(threads, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(compiled_passes, "PIECE", 1000)
    monkeypatch.setattr(compiled_passes, "library_path", lambda: compiled)
    compiled_passes.library.cache_clear()
    weights = {column: torch.randn(size) for column, size in enumerate((0, 1, 999, 1000, 1001, 25_017))}
    gradients = {column: torch.randn_like(weight) for column, weight in weights.items() if column != 4}
    changed = {column: weight + 0.01 * torch.randn_like(weight) for column, weight in weights.items()}
    backend = backends.CpuBackend()
    backend.begin(weights, gradients, None)
    table = backend.end(changed, gradients)
    compiled_passes.library.cache_clear()
    for column, weight in weights.items():
        w, g = weight.double(), gradients.get(column, torch.zeros_like(weight)).double()
        d = changed[column].double() - w
        expected = torch.stack([w @ w, w @ g, g @ g, w @ d, d @ d, d @ g])
        torch.testing.assert_close(table[:, column], expected, rtol=1e-12, atol=1e-12)


def test_an_exception_on_another_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads, "MIN_ELEMENTS", 0)
    here, met = threading.get_ident(), threading.Barrier(2)

    def work() -> None:
        met.wait(timeout=60)
        if threading.get_ident() != here:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        threads.run_on_threads(work, 1)


def test_a_pool_that_is_busy_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    begun, ended = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(1)
    pool.submit(lambda: (begun.set(), ended.wait(timeout=60)))
    assert begun.wait(timeout=60)
    monkeypatch.setattr(threads, "_pool", lambda: pool)
    done: list[int] = []
    threads.run_on_threads(lambda: done.append(1), threads.MIN_ELEMENTS)
    assert done == [1]
    ended.set()
    pool.shutdown()
    assert done == [1]
