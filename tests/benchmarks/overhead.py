"""What tracking costs, as ratios, everything in one process in turn.

    python -m tests.benchmarks.overhead [--models resnet18 resnet50] [--rounds 30] [--threads 1] [--training-steps 60]

Printed per model: the extra time of a sampled step over the traffic floor (one copy of the tracked bytes, one pass over
three arrays of them), the same for Nesterov's SGD, of which the momentum buffer is read, too; how many times dearer the
usual per-tensor logger (clone, cosine_similarity, acos) and `wandb.watch(log="all")` are; the time of a step that is
not sampled; and how much slower training is at `--every 10`. Where there is a GPU: training of resnet50 on it, batches
of 128 in bf16 and channels_last. Medians of interleaved rounds: machines have moods.
"""

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from timm import create_model
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from smdtrack.tracking import Options
from smdtrack.tracking.attach.step_hooks import add_listener, remove_listener
from smdtrack.tracking.attach.tracker import Tracker
from smdtrack.tracking.attach.weight_selection import SelectedWeight, Selection


def convolutions(model: nn.Module) -> Selection:
    """The weights that the audit finds in a ResNet, without waiting for it: all convolutions."""
    modules = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    found = [(f"{name}.weight", module.weight) for name, module in modules]
    chosen = tuple(SelectedWeight(name, name[:-7], tuple(weight.shape), "tensor", None, None) for name, weight in found)
    return Selection("resnet", chosen, tuple(weight for _, weight in found), 1.0, len(found))


def tracker_for(model: nn.Module, optimizer: SGD, every: int, folder: str) -> Tracker:
    return Tracker(optimizer, convolutions(model), Options(every=every, sinks=["local"], folder=folder))


def attach(tracker: Tracker) -> None:
    """Lets a tracker measure steps again."""
    for sampler in tracker._samplers:
        add_listener(sampler)


def detach(tracker: Tracker) -> None:
    """Stops a tracker from measuring steps, without ending it."""
    for sampler in tracker._samplers:
        remove_listener(sampler)


def has_waiting_samples(tracker: Tracker) -> bool:
    """Returns whether the writer's thread still has samples to write."""
    writer = tracker._recording._writer if tracker._recording is not None else None
    return writer is not None and not writer._queue.empty()


class UsualLogger:
    """What research code does: a clone of each weight, then cosine similarity and acos, one tensor at a time."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self._weights = weights

    def before(self) -> None:
        self._old = [weight.detach().clone() for weight in self._weights]

    def after(self) -> list[float]:
        readings = []
        for old, new in zip(self._old, self._weights, strict=True):
            cosine = F.cosine_similarity(old.flatten(), new.detach().flatten(), dim=0)
            readings += [torch.acos(cosine.clamp(-1, 1)).item(), new.detach().norm().item(), new.grad.norm().item()]
        return readings


class Arrays:
    """Three arrays as large as the tracked weights together, and room for a copy."""

    def __init__(self, elements: int) -> None:
        self._arrays = [torch.randn(elements) for _ in range(3)]
        self._copy = torch.empty(elements)

    def pass_over(self) -> None:
        self._copy.copy_(self._arrays[0])
        for array in self._arrays:
            array.sum()


#: The wall clock; on a machine that is busy with other things (`--clock cpu`), processor time of this thread, or of the
#: process with its writer thread.
clock: Callable[[], float] = time.perf_counter
whole_clock: Callable[[], float] = time.perf_counter


def timed(work: Callable[[], Any], by: Callable[[], float] | None = None) -> float:
    by = by or clock
    start = by()
    work()
    return by() - start


def stepping(name: str, rounds: int, folder: str, nesterov: bool = False) -> dict[str, float]:
    """Median seconds of each kind of step, on weights with gradients, without forward and backward."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=10)
    optimizer = SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, nesterov=nesterov)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    weights = list(convolutions(model).parameters)
    arrays, usual = Arrays(sum(weight.numel() for weight in weights)), UsualLogger(weights)
    times: dict[str, list[float]] = {key: [] for key in ("floor", "plain", "sampled", "unsampled", "usual")}
    sampled, unsampled = (tracker_for(model, optimizer, every, folder) for every in (1, 10**9))

    def logged() -> None:
        usual.before()
        optimizer.step()
        usual.after()

    for tracker in (sampled, unsampled):
        detach(tracker)
    for _ in range(rounds + 3):
        times["floor"].append(timed(arrays.pass_over))
        times["plain"].append(timed(optimizer.step))
        for key, tracker in (("sampled", sampled), ("unsampled", unsampled)):
            attach(tracker)
            times[key].append(timed(optimizer.step))
            detach(tracker)
            while has_waiting_samples(sampled):
                time.sleep(0.002)  # the writer's turn, not ours
            time.sleep(0.01)
        times["usual"].append(timed(logged))
    # A step too short to see against a whole one: the hooks alone.
    attach(unsampled)
    hooks = [timed(lambda: _hooks_alone(optimizer)) / 100 for _ in range(30)]
    for tracker in (sampled, unsampled):
        tracker.finish()
    result = {key: statistics.median(values[3:]) for key, values in times.items()}
    extra = [sample - plain for sample, plain in zip(times["sampled"][3:], times["plain"][3:], strict=True)]
    result["extra"] = statistics.median(extra)
    result["ratio"] = statistics.median(e / f for e, f in zip(extra, times["floor"][3:], strict=True))
    result["least"] = (min(times["sampled"][3:]) - min(times["plain"][3:])) / min(times["floor"][3:])
    result["usual_extra"] = statistics.median(
        logged - plain for logged, plain in zip(times["usual"][3:], times["plain"][3:], strict=True)
    )
    result["hooks"] = statistics.median(hooks)
    result["usual_ratio"] = result["usual_extra"] / result["floor"]
    result["elements"] = sum(weight.numel() for weight in weights)
    return result


def _hooks_alone(optimizer: SGD) -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    for _ in range(100):
        for hook in _global_optimizer_pre_hooks.values():
            hook(optimizer, (optimizer,), {})
        for hook in _global_optimizer_post_hooks.values():
            hook(optimizer, (optimizer,), {})


def training(
    name: str,
    steps: int,
    folder: str,
    every: int = 10,
    size: int = 64,
    batch: int = 32,
    device: str = "cpu",
) -> tuple[float, float]:
    """How much slower training is with samples, in turns of ten steps, and the seconds of ten plain ones.

    On a GPU in bf16 and channels_last.
    """
    torch.manual_seed(0)
    model = create_model(name, num_classes=10).to(device)
    images, labels = torch.randn(batch, 3, size, size, device=device), torch.randint(0, 10, (batch,), device=device)
    if device == "cuda":
        model, images = (x.to(memory_format=torch.channels_last) for x in (model, images))
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def ten() -> None:
        for _ in range(10):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    tracker = tracker_for(model, optimizer, every, folder)
    ten()
    detach(tracker)
    ten()
    times: dict[str, list[float]] = {"tracked": [], "plain": []}
    for _ in range(max(steps // 10, 2)):
        times["plain"].append(timed(ten, whole_clock))
        attach(tracker)
        times["tracked"].append(timed(ten, whole_clock))
        detach(tracker)
    tracker.finish()
    slower = statistics.median(tracked / plain for tracked, plain in zip(*times.values(), strict=True)) - 1
    return slower, statistics.median(times["plain"])


def with_wandb(name: str, rounds: int, folder: str) -> float:
    """Median extra seconds of a step with forward and backward under `wandb.watch(log="all", log_freq=1)`, offline."""
    import wandb

    torch.manual_seed(0)
    images, labels = torch.randn(8, 3, 64, 64), torch.randint(0, 10, (8,))
    model = create_model(name, num_classes=10)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True, console="off"))

    def logged() -> None:
        step()
        run.log({"loss": 0.0})

    times: dict[str, list[float]] = {"plain": [], "watched": []}
    step()
    for _ in range(max(rounds // 3, 5)):
        times["plain"].append(timed(step))
        run.watch(model, log="all", log_freq=1)
        times["watched"].append(timed(logged))
        run.unwatch(model)
    run.finish()
    return statistics.median(w - p for w, p in zip(times["watched"], times["plain"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--training-steps", type=int, default=60)
    parser.add_argument("--no-wandb", action="store_true")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: with --threads 1 only")
    options = parser.parse_args()
    global clock, whole_clock
    if options.clock == "cpu":
        clock, whole_clock = time.thread_time, time.process_time
    torch.set_num_threads(options.threads)
    os.environ.setdefault("WANDB_SILENT", "true")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            seen = stepping(name, options.rounds, folder)
            gc.collect()
            print(f"\n{name}: {seen['elements'] / 1e6:.1f} M tracked weights")
            print(f"  traffic floor                               {1e3 * seen['floor']:8.2f} ms")
            print(f"  optimizer step without tracking             {1e3 * seen['plain']:8.2f} ms")
            print(f"  extra time of a sampled step                {1e3 * seen['extra']:8.2f} ms")
            print(
                f"  extra time / traffic floor                  {seen['ratio']:8.2f}   (fastest: {seen['least']:.2f})"
            )
            more = stepping(name, options.rounds, folder, nesterov=True)
            gc.collect()
            print(
                f"  the same with Nesterov momentum             {more['ratio']:8.2f}   (fastest: {more['least']:.2f})"
            )
            print(f"  usual logger / traffic floor                {seen['usual_ratio']:8.2f}")
            print(f"  usual logger / extra time                   {seen['usual_extra'] / seen['extra']:8.2f}")
            print(f"  step that is not sampled                    {1e6 * seen['hooks']:8.2f} us")
            if not options.no_wandb:
                watched = with_wandb(name, options.rounds, folder)
                print(f"  wandb.watch(log='all') / extra time         {watched / seen['extra']:8.2f}")
            if options.training_steps:
                slower, ten = training(name, options.training_steps, folder)
                print(f"  slowdown of training at --every 10          {1e2 * slower:+8.2f} %")
                print(f"  extra time / ten training steps             {1e2 * seen['extra'] / ten:8.2f} %")
        if torch.cuda.is_available() and options.training_steps:
            print(f"\nresnet50 on {torch.cuda.get_device_name()}, 128 x 224 px, bf16, channels_last")
            for every in (1, 10):
                slower, _ = training("resnet50", 10 * options.training_steps, folder, every, 224, 128, "cuda")
                print(f"  slowdown of training at --every {every:<2}          {1e2 * slower:+8.2f} %")


if __name__ == "__main__":
    main()
