"""Unmodified training loops of Lightning, Accelerate and Hugging Face's Trainer under `smdtrack run`."""

import importlib
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smdtrack.record import read_run
from smdtrack.tracking import Options
from tests.launching import Launched, launch
from tests.tracking.witness import Witness, seed_everything

pytestmark = pytest.mark.slow

NETWORK = """
import torch, witnesses
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )

def loader():
    return DataLoader(TensorDataset(torch.randn(96, 3, 10, 10), torch.randint(0, 5, (96,))), batch_size=8)

torch.manual_seed(0)
"""

LIGHTNING = """
import lightning

class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = network()
    def training_step(self, batch, index):
        return F.cross_entropy(self.model(batch[0]), batch[1])
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        witnesses.attach(self.model, optimizer)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

classifier = Classifier()
trainer = lightning.Trainer(
    max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, accumulate_grad_batches=2, gradient_clip_val=1.0,
)
trainer.fit(classifier, loader())
model = classifier.model
"""

ACCELERATE = """
from accelerate import Accelerator

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision="bf16")
model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
witnesses.attach(model, optimizer)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 6)
prepared, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, loader(), scheduler)
for _ in range(2):
    for images, labels in batches:
        with accelerator.accumulate(prepared):
            accelerator.backward(F.cross_entropy(prepared(images), labels))
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
"""

TRAINER = """
from transformers import Trainer, TrainingArguments

class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        *body, self.head = network()
        self.body = nn.Sequential(*body)
    def forward(self, pixel_values, labels=None):
        logits = self.head(self.body(pixel_values))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}

model = Classifier()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
witnesses.attach(model, optimizer)
arguments = TrainingArguments(
    output_dir="trainer", num_train_epochs=2, per_device_train_batch_size=8, gradient_accumulation_steps=2,
    max_grad_norm=1.0, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=4,
)
images, labels = torch.randn(96, 3, 10, 10), torch.randint(0, 5, (96,))
examples = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels)]
Trainer(
    model=model, args=arguments, train_dataset=examples,
    optimizers=(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 6)),
).train()
"""


def needs(package: str) -> None:
    """Skips the test if the package is missing; in CI it must not be missing."""
    if os.environ.get("CI"):
        importlib.import_module(package)
    else:
        pytest.importorskip(package)


def ended(script: str, monkeypatch: pytest.MonkeyPatch, wrapped: bool) -> tuple[list[Witness], Any, Launched | None]:
    """Runs a script, with smdtrack or without; returns its witnesses, what it saved at its end, and the launch."""
    if "accelerate" in sys.modules:  # both keep one state per process
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
    seen: list[Witness] = []
    monkeypatch.setitem(sys.modules, "witnesses", type(sys)("witnesses"))
    sys.modules["witnesses"].attach = lambda *pair: seen.append(Witness(*pair))  # type: ignore[attr-defined]
    text = NETWORK + textwrap.dedent(script) + "\ntorch.save([model.state_dict(), torch.get_rng_state()], 'end.pt')\n"
    seed_everything(0)
    outcome = None
    if wrapped:
        Path("script.py").write_text(text)
        outcome = launch("script.py", [], Options(every=1, sinks=["local"]))
        assert outcome.exit_code == 0
    else:
        exec(compile(text, "script", "exec"), {"__name__": "__main__"})
    return seen, torch.load("end.pt"), outcome


@pytest.mark.parametrize(
    ("package", "script", "prefix", "first"),
    [
        # The network is a part of the module that Lightning calls, and that one is judged by its next forward pass.
        ("lightning", LIGHTNING, "", 2),
        ("accelerate", ACCELERATE, "", 1),
        # The model takes a dictionary, so that its input is captured in its next forward pass, after the first step.
        ("transformers", TRAINER, "body.", 2),
    ],
)
def test_the_record_equals_float64_and_training_is_unchanged(
    package: str, script: str, prefix: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(package)
    _, alone, _ = ended(script, monkeypatch, wrapped=False)
    (witness,), watched, outcome = ended(script, monkeypatch, wrapped=True)
    assert all(torch.equal(alone[0][key], watched[0][key]) for key in alone[0])
    assert torch.equal(alone[1], watched[1])
    assert outcome is not None
    (tracker,) = outcome.trackers
    run = read_run(tracker.folder)
    assert [weight.name for weight in run.info.weights] == [f"{prefix}0.weight", f"{prefix}4.weight"]
    assert len(witness.steps) == 12
    assert run.steps.tolist() == list(range(first, 13))
    for index, weight in enumerate(run.info.weights):
        for family, reference in (("angle", witness.angle), ("norm", witness.norm)):
            expected = [reference(weight.name, step) for step in range(first, 13)]
            np.testing.assert_allclose(run.values[family][:, index], expected, rtol=1e-6)
    rates = [step.hyper_parameters[f"{prefix}0.weight"]["lr"] for step in witness.steps[first - 1 :]]
    assert len(set(rates)) > 1
    np.testing.assert_allclose(run.values["angle_eq"][:, 0], [(2 * r * 1e-3 / 1.9) ** 0.5 for r in rates], rtol=1e-3)
