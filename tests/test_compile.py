"""torch.compile around a step, or a whole training step: few frames, the same results."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.rules import CLASSES

STEPS = 20


@pytest.fixture(autouse=True)
def _nothing_compiled_before_or_after():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _whole(model, optimizer, x, compiled):
    @compiled
    def train():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    return train


def _in_parts(model, optimizer, x, compiled):
    forward, step = compiled(lambda: model(x).square().mean()), compiled(lambda: optimizer.step())

    def train():
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        step()
        return loss

    return train


def _method(model, optimizer, x, compiled):
    step = compiled(optimizer.step)

    def train():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        step()
        return loss

    return train


def _losses(rule, make, compiled, lr):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    optimizer = rule.build(rule.parameters(model), "default")
    if lr == "tensor":
        optimizer.param_groups[0]["lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
    train = make(model, optimizer, torch.randn(8, 4), compiled)
    seen = []
    for number in range(STEPS):
        if lr == "scheduled":
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + number)
        seen.append(train().item())
    assert seen[-1] < seen[0]
    return seen


WAYS = {"whole": _whole, "in-parts": _in_parts, "method": _method}
LRS = ["constant", "scheduled", "tensor"]


# torch's compiler asks any tensor whether it has a gradient.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("rule", "way", "lr"),
    [(CLASSES[0], way, lr) for way in WAYS for lr in LRS] + [(rule, "whole", "scheduled") for rule in CLASSES[1:]],
    ids=str,
)
def test_compiled_training_steps_as_eager_in_few_frames(rule, way, lr):
    counter = CompileCounter()
    compiled = _losses(rule, WAYS[way], lambda function: torch.compile(function, backend=counter), lr)
    assert counter.frame_count <= 4
    assert compiled == _losses(rule, WAYS[way], lambda function: function, lr)
