"""What the audit promises besides its verdicts: it leaves no trace, finds its input, and refuses in one line."""

import copy
import random

import numpy
import pytest
import torch
from torch import nn

import smdtrack.invariance.audit_model as audit_model
from smdtrack.invariance import audit
from smdtrack.invariance.evidence import Proposal
from smdtrack.notices import SmdtrackError


def small(**options):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8, **options),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


class Wrapped(nn.Module):
    def __init__(self, wrap, model=None):
        super().__init__()
        self.model, self.wrap = model or small(), wrap

    def forward(self, x):
        return self.wrap(self.model(x))


def state_of(model):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return tensors, modes, [getattr(module, "eps", None) for module in model.modules()]


def test_the_model_and_the_random_states_are_bitwise_untouched():
    model = small()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    model[3].eval()
    before, grads = state_of(model), [parameter.grad.clone() for parameter in model.parameters()]
    versions = [parameter._version for parameter in model.parameters()]
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    audit(model)
    assert states[0] == random.getstate()
    assert states[1] == numpy.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    after = state_of(model)
    assert before[1:] == after[1:]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    assert all(torch.equal(grad, parameter.grad) for grad, parameter in zip(grads, model.parameters(), strict=True))
    assert versions == [parameter._version for parameter in model.parameters()]


def test_no_hook_of_the_user_fires():
    model, fired = small(), []

    class Uncopyable:
        def __deepcopy__(self, memo):
            raise AssertionError("the hooks must not be copied")

        def __call__(self, *args):
            fired.append("module")

    model.register_forward_hook(Uncopyable())
    model[0].register_forward_pre_hook(Uncopyable())
    model[0].register_full_backward_hook(Uncopyable())
    model[0].weight.register_hook(lambda grad: fired.append("parameter"))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: fired.append("accumulated"))
    handle = nn.modules.module.register_module_forward_hook(lambda *args: fired.append("global"))
    try:
        assert audit(model).invariant == ("0.weight",)
        assert fired == []
        nn.Linear(1, 1)(torch.zeros(1, 1))
        assert fired == ["global"]
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.enable_grad],
)
def test_the_contexts_around_it_do_not_matter(context):
    model = small()
    expected = audit(model).weights
    with context():
        assert audit(model).weights == expected


def test_it_is_deterministic_in_its_seed():
    model = small()
    torch.manual_seed(3)
    first = audit(model, seed=5)
    torch.manual_seed(4)
    assert audit(model, seed=5).weights == first.weights
    assert audit(model, seed=6)["0.weight"].cosine != first["0.weight"].cosine


def test_a_model_wholly_in_eval_mode_is_judged_as_it_will_train():
    model = small().eval()
    assert audit(model).invariant == ("0.weight",)
    assert not any(module.training for module in model.modules())


def test_a_model_whose_train_keeps_its_batch_norm_frozen_is_judged_frozen():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].training = False
            return self

    model = Frozen(*small())
    assert audit(model.eval()).invariant == ()
    assert audit(model.train()).invariant == ()


def test_parameters_that_do_not_train_are_judged_too():
    model = small()
    model[0].weight.requires_grad_(False)
    assert audit(model).invariant == ("0.weight",)
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: (y, [y * 2]),
        lambda y: {"logits": y, "loss": None, "name": "x"},
        lambda y: y.square().sum(),
        lambda y: (y.argmax(1), y),
    ],
    ids=["tuple", "dict", "scalar", "integers beside"],
)
def test_outputs_in_containers(wrap):
    assert audit(Wrapped(wrap)).invariant == ("model.0.weight",)


def test_an_example_gives_shapes_and_integers():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(7, 6)
            self.linear, self.bn, self.out = nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 2)

        def forward(self, tokens, scale=None):
            x = self.bn(self.linear(self.embedding(tokens).mean(1))).tanh()
            return self.out(x if scale is None else x * scale)

    tokens, model = torch.arange(7).view(1, 7), Embedded()
    assert audit(model, tokens).invariant == ("embedding.weight", "linear.weight")
    assert audit(model, (tokens, torch.rand(1, 5))).invariant == ("embedding.weight", "linear.weight")
    result = audit(model, {"tokens": tokens, "scale": torch.rand(1, 5)})
    assert result.invariant == ("embedding.weight", "linear.weight")
    assert result.input_size == (7,)
    with pytest.raises(SmdtrackError, match="give example_input or input_size"):
        audit(model)


def test_tied_weights_are_one_parameter():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[3].weight = model[0].weight
    result = audit(model, input_size=(6,))
    assert [weight.name for weight in result.weights] == ["0.weight", "1.weight", "1.bias"]
    assert result["0.weight"].verdict == "sensitive"


def test_reparametrised_weights():
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    result = audit(nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1)), input_size=(3, 8, 8))
    assert result.invariant == ("0.parametrizations.weight.original1",)
    old = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.Tanh(), nn.AdaptiveAvgPool2d(1))
    old(torch.randn(1, 3, 8, 8))
    result = audit(old, input_size=(3, 8, 8))
    assert (result.invariant, result["0.weight_v"].cause) == (("0.weight_v",), "other")


def test_filters_that_have_decayed_to_zero_do_not_change_the_verdict():
    model = small()
    with torch.no_grad():
        model[0].weight[:3] *= 1e-25
        model[0].weight[4] = 0
    weight = audit(model)["0.weight"]
    assert (weight.verdict, weight.scope) == ("invariant", "filter")
    assert weight.cosine < 1e-12


def test_plain_networks_need_no_forward_pass():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    result = audit(model)
    assert result.input_size is None
    assert {weight.verdict for weight in result.weights} == {"sensitive"}
    assert result.certificate == {"tensor": None, "filter": None}


def test_a_buffer_on_another_device_is_left_where_it_is():
    model = small()
    model.register_buffer("elsewhere", torch.empty(3, device="meta"))
    assert audit(model).invariant == ("0.weight",)


def test_modules_without_parameters_have_an_empty_audit():
    result = audit(nn.ReLU())
    assert (result.weights, result.parameters) == ((), 0)


def test_gradient_checkpointing_inside_the_model():
    class Checkpointed(nn.Module):
        def __init__(self, reentrant):
            super().__init__()
            self.model, self.reentrant = small(), reentrant

        def forward(self, x):
            x = x.requires_grad_()
            return torch.utils.checkpoint.checkpoint(self.model, x, use_reentrant=self.reentrant)

    for reentrant in (False, True):
        result = audit(Checkpointed(reentrant), input_size=(3, 8, 8))
        assert (result.invariant, result["model.0.weight"].norm) == (("model.0.weight",), "model.1")


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (small(), {"input_size": (3, 2, 2)}, "does not take an input of size"),
        (small(), {"input_size": (0, 2)}, "positive integers"),
        (small(), {"input_size": (3, 8, 8), "example_input": torch.zeros(1)}, "not both"),
        (small(), {"example_input": "an image"}, "without a tensor"),
        (small().to("meta"), {}, "meta device"),
        (Wrapped(lambda y: y.argmax(1)), {"input_size": (3, 8, 8)}, "no floating tensor"),
        (Wrapped(lambda y: y / 0), {"input_size": (3, 8, 8)}, "not finite"),
        (nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3)), {}, "lazy"),
    ],
)
def test_wrong_input_is_refused_in_one_line(model, options, message):
    with pytest.raises(SmdtrackError, match=message) as caught:
        audit(model, **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_be_copied_is_refused():
    class Stubborn(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError("cannot pickle this")

    with pytest.raises(SmdtrackError, match="cannot copy Stubborn"):
        audit(Stubborn(*small()))


def test_running_out_of_memory_is_said_in_one_line(monkeypatch):
    def starve(self, mode=None):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr(audit_model.TrialModel, "backward", starve)
    with pytest.raises(SmdtrackError, match="out of memory on cpu"):
        audit(small())


def test_wrong_proposals_are_corrected_by_forward_passes(monkeypatch):
    """If the gradients proposed every parameter, forward passes would still reject those that are not invariant."""

    def propose(evidence, limits):
        for known in evidence.values():
            known.proposal, known.verdict = Proposal.INVARIANT, "invariant"

    monkeypatch.setattr(audit_model, "propose", propose)
    assert audit(small()).invariant == ("0.weight",)


def test_the_same_verdicts_whatever_the_values():
    model = small()
    expected = [weight.verdict for weight in audit(model).weights]
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(100).add_(parameter.mean())
    assert [weight.verdict for weight in audit(scaled).weights] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_verdicts_are_the_same_and_the_generator_is_untouched():
    model = small().cuda()
    before = torch.cuda.get_rng_state()
    result = audit(model)
    assert torch.equal(before, torch.cuda.get_rng_state())
    assert [weight.verdict for weight in result.weights] == [weight.verdict for weight in audit(model.cpu()).weights]
