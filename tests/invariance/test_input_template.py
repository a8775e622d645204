"""How batches are made from an example: which items, which values, in which containers."""

from collections import OrderedDict, namedtuple

import pytest
import torch

from smdtrack.invariance.input_template import BATCH, Sampling, fresh, templates_of_example
from smdtrack.notices import SmdtrackError

Pair = namedtuple("Pair", ["one", "other"])


def samplings(example):
    return [template.sampling for template in templates_of_example(example)]


def sample(template, seed=0):
    return template.sample(torch.Generator().manual_seed(seed), torch.device("cpu"), torch.float64)


def test_a_large_batch_is_sliced_first_and_taken_whole_last():
    expected = [Sampling.SLICE_VARIED, Sampling.SLICE, Sampling.WHOLE_VARIED, Sampling.WHOLE]
    assert samplings(torch.randn(16, 3)) == expected
    assert samplings((torch.randn(30, 6), torch.randint(0, 30, (2, 90)))) == expected[2:]
    assert samplings(torch.randn(4, 3)) == expected[2:]
    assert samplings(torch.randn(1, 3))[0] is Sampling.RANDOM
    assert samplings(torch.zeros(8, 3)) == [Sampling.RANDOM, Sampling.WHOLE_RANDOM, Sampling.WHOLE]


def test_a_slice_has_the_same_items_in_every_tensor_and_others_in_the_next_draw():
    x = torch.arange(1.0, 33.0).view(16, 2)
    template = templates_of_example({"x": x, "ids": torch.arange(16), "pair": Pair(x, [x])})[1]
    (_, one), (_, other) = sample(template, 1), sample(template, 2)
    assert one["x"].shape == (BATCH, 2)
    assert one["x"].dtype == torch.float64
    assert torch.equal(one["x"], x[one["ids"]].double())
    assert torch.equal(one["pair"].one, one["x"])
    assert torch.equal(one["pair"].other[0], one["x"])
    assert not torch.equal(one["ids"], other["ids"])


def test_a_list_of_items_is_sliced_as_a_list():
    images = [torch.randn(8, 5, 5) for _ in range(8)]
    targets = [{"label": torch.tensor(index)} for index in range(8)]
    args, _ = sample(templates_of_example((images, targets))[1])
    assert len(args[0]) == BATCH
    for image, target in zip(*args, strict=True):
        assert torch.equal(image, images[int(target["label"])].double())


def test_varied_values_stay_in_range_and_whole_numbers_and_masks_stay_as_they_are():
    x = torch.rand(8, 100)
    x[0, 0] = -torch.inf
    labels = torch.randint(0, 5, (8, 100)).float()
    args, _ = sample(templates_of_example((x, labels))[2])
    changed = (args[0] != x.double()).float().mean()
    assert changed > 0.9
    assert args[0][0, 0] == -torch.inf
    finite = args[0][args[0].isfinite()]
    assert (float(finite.min()), float(finite.max())) >= (0.0, 0.0)
    assert float(finite.max()) <= 1
    assert torch.equal(args[1], labels.double())


def test_a_mask_of_a_small_batch_is_repeated_not_drawn():
    mask = torch.tensor([[0.0, 0.0, -1e9, 0.0, 0.0]])
    args, _ = sample(templates_of_example((torch.randn(1, 5), mask, mask < 0))[0])
    assert torch.equal(args[1], mask.double().expand(BATCH, -1))
    assert torch.equal(args[2], (mask < 0).expand(BATCH, -1))
    assert len(args[0].unique()) == 5 * BATCH


def test_a_fresh_batch_shares_nothing_and_containers_keep_their_types():
    batch = ((OrderedDict(x=torch.ones(2)), Pair(torch.ones(1), "text")), {"k": [torch.ones(1), 3]})
    args, kwargs = fresh(batch)
    args[0]["x"].zero_()
    kwargs["k"].clear()
    assert float(batch[0][0]["x"].sum()) == 2
    assert len(batch[1]["k"]) == 2
    assert type(args[0]) is OrderedDict
    assert type(args[1]) is Pair
    assert args[1].other == "text"


def test_an_example_without_a_tensor_is_refused():
    with pytest.raises(SmdtrackError, match="example_input is str without a tensor"):
        templates_of_example("an image")
