"""timm's factories, imported without the rest of timm, against the ordinary import, in a process of their own."""

import json
import subprocess
import sys


def run(script):
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_the_short_import_knows_the_same_optimizers_and_leaves_no_trace():
    script = """
import json, sys
import torch
compile_function = torch.compile
from smdtrack.planning import timm_parts
short = timm_parts.optim()
left = [name for name in sys.modules if name.split(".")[0] == "timm" or name == "torch.distributed.tensor"]
compiler = ["torch._dynamo" in sys.modules, "_dynamo" in vars(torch), torch.compile is not compile_function]
import timm.optim
same = short.list_optimizers() == timm.optim.list_optimizers()
apart = short is not timm.optim
rates = []
for optim in (short, timm.optim):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = optim.create_optimizer_v2([weight], "lion", lr=0.1, weight_decay=0.1)
    weight.grad = torch.ones(3)
    optimizer.step()
    rates.append(weight.tolist())
print(json.dumps([left, compiler, same, apart, rates[0] == rates[1], timm.create_model("test_resnet") is not None]))
"""
    assert run(script) == [[], [False, False, False], True, True, True, True]


def test_timm_itself_is_taken_if_it_is_there_already():
    script = """
import json
import timm.optim, timm.scheduler
from smdtrack.planning import timm_parts
print(json.dumps([timm_parts.optim() is timm.optim, timm_parts.scheduler() is timm.scheduler]))
"""
    assert run(script) == [True, True]


def test_another_layout_of_timm_falls_back_to_the_ordinary_import():
    script = """
import json
from smdtrack.planning import timm_parts
def fail():
    raise AttributeError("moved")
timm_parts._import_alone = fail
optim = timm_parts.optim()
import timm.optim
print(json.dumps(optim is timm.optim))
"""
    assert run(script) is True


def test_optimizers_are_constructed_without_the_compiler_and_torch_is_as_before():
    script = """
import json, sys
import torch
wrapper = torch.optim.Optimizer.add_param_group
from smdtrack.planning import timm_parts
with timm_parts.without_compiler():
    torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
print(json.dumps(["torch._dynamo" in sys.modules, torch.optim.Optimizer.add_param_group is wrapper]))
"""
    assert run(script) == [False, True]
