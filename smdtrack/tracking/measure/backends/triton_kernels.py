"""Triton kernels: one pass over memory before a step and one after it, for all tensors at a time.

Tensors are cut into chunks, and one program works on one chunk. It finds the chunk's tensor and first element in
`chunks`, and the tensor's addresses in `addresses`, (3, tensors). Sums are float64 throughout: even on a GPU with slow
float64, reading the memory takes longer. The order of summation is fixed, so that the numbers are the same every time.
"""

# mypy: ignore-errors
# mypy does not know the types of a kernel's parameters.

import triton
import triton.language as tl

#: Number of elements that a program sums over, and number of elements that it holds at a time.
CHUNK: int = 16384
BLOCK: tl.constexpr = tl.constexpr(1024)
_CHUNK: tl.constexpr = tl.constexpr(CHUNK)


@triton.jit(do_not_specialize=["tensors", "all_chunks"])
def read(programs, chunks, addresses, elements, tensors, sums, all_chunks, WEIGHT: tl.constexpr, VECTOR: tl.constexpr):
    """Copies weights, and sums `<w, w>`, `<w, g>`, `<g, g>` of each chunk into `sums`, (3, chunks)."""
    chunk = tl.load(programs + tl.program_id(0))
    tensor = tl.load(chunks + chunk)
    start = tl.load(chunks + all_chunks + chunk)
    size = tl.load(elements + tensor)
    w = tl.load(addresses + tensor).to(tl.pointer_type(WEIGHT))
    before = tl.load(addresses + tensors + tensor).to(tl.pointer_type(WEIGHT))
    g_address = tl.load(addresses + 2 * tensors + tensor)
    g = g_address.to(tl.pointer_type(VECTOR))
    ww = tl.zeros((BLOCK,), tl.float64)
    wg = tl.zeros((BLOCK,), tl.float64)
    gg = tl.zeros((BLOCK,), tl.float64)
    for offset in range(0, _CHUNK, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        inside = at < size
        value = tl.load(w + at, mask=inside, other=0.0)
        tl.store(before + at, value, mask=inside)
        x = value.to(tl.float64)
        y = tl.load(g + at, mask=inside & (g_address != 0), other=0.0).to(tl.float64)
        ww += x * x
        wg += x * y
        gg += y * y
    tl.store(sums + chunk, tl.sum(ww))
    tl.store(sums + all_chunks + chunk, tl.sum(wg))
    tl.store(sums + 2 * all_chunks + chunk, tl.sum(gg))


@triton.jit(do_not_specialize=["tensors", "all_chunks"])
def compare(
    programs, chunks, addresses, elements, tensors, sums, all_chunks, WEIGHT: tl.constexpr, VECTOR: tl.constexpr
):
    """Sums `<w, d>`, `<d, d>`, `<d, v>` of each chunk into `sums`, (3, chunks); d is the change since `read`."""
    chunk = tl.load(programs + tl.program_id(0))
    tensor = tl.load(chunks + chunk)
    start = tl.load(chunks + all_chunks + chunk)
    size = tl.load(elements + tensor)
    now = tl.load(addresses + tensor).to(tl.pointer_type(WEIGHT))
    before = tl.load(addresses + tensors + tensor).to(tl.pointer_type(WEIGHT))
    v_address = tl.load(addresses + 2 * tensors + tensor)
    v = v_address.to(tl.pointer_type(VECTOR))
    wd = tl.zeros((BLOCK,), tl.float64)
    dd = tl.zeros((BLOCK,), tl.float64)
    dv = tl.zeros((BLOCK,), tl.float64)
    for offset in range(0, _CHUNK, BLOCK):
        at = start + offset + tl.arange(0, BLOCK)
        inside = at < size
        x = tl.load(before + at, mask=inside, other=0.0).to(tl.float64)
        d = tl.load(now + at, mask=inside, other=0.0).to(tl.float64) - x
        wd += x * d
        dd += d * d
        dv += d * tl.load(v + at, mask=inside & (v_address != 0), other=0.0).to(tl.float64)
    tl.store(sums + chunk, tl.sum(wd))
    tl.store(sums + all_chunks + chunk, tl.sum(dd))
    tl.store(sums + 2 * all_chunks + chunk, tl.sum(dv))


@triton.jit(do_not_specialize=["tensors", "all_chunks"])
def total(sums, bounds, all_chunks, table, tensors):
    """Adds up the chunks of each tensor, those from `bounds[i]` to `bounds[i + 1]`, into `table`, (3, tensors)."""
    tensor = tl.program_id(0)
    row = tl.program_id(1)
    first = tl.load(bounds + tensor)
    last = tl.load(bounds + tensor + 1)
    result = tl.zeros((BLOCK,), tl.float64)
    for offset in range(first, last, BLOCK):
        at = offset + tl.arange(0, BLOCK)
        result += tl.load(sums + row * all_chunks + at, mask=at < last, other=0.0)
    tl.store(table + row * tensors + tensor, tl.sum(result))
