"""Gradients released during backward: the same results, one gradient at a time."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from optimizers import SGD, Adam, release_gradients
from optimizers.experiments import memory
from tests.helpers import same, same_state, values
from tests.rules import CLASSES, READERS, pairs

all_classes = pytest.mark.parametrize("rule", CLASSES, ids=str)
SHAPES = [(4, 8), (8, 8), (8, 2)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(*shape), nn.Tanh()) for shape in SHAPES))


def train(model, optimizer, steps=range(6), schedule=None):
    for step in steps:
        optimizer.zero_grad()
        x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        if schedule:
            schedule.step()
    return values(model.parameters())


@pytest.mark.parametrize(("rule", "reader"), pairs(CLASSES, [*READERS, "default"]), ids=str)
def test_released_gradients_move_parameters_as_gradients_that_stay(rule, reader):
    usual, released = network(), network()
    expected, optimizer = rule.build(rule.parameters(usual), reader), rule.build(rule.parameters(released), reader)
    release_gradients(optimizer)
    want = train(usual, expected)
    assert same(train(released, optimizer), want)
    assert same_state(optimizer, expected)
    assert all(p.grad is None for p in rule.parameters(released))


@all_classes
def test_one_optimizer_for_each_parameter_steps_in_its_hook(rule):
    usual, apart = network(), network()
    optimizers = {p: rule.build([p], "default") for p in rule.parameters(apart)}

    def step(param):
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in optimizers:
        param.register_post_accumulate_grad_hook(step)
    for seed in range(3):
        model_input = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
        apart(model_input).square().mean().backward()
    assert same(values(apart.parameters()), train(usual, rule.build(rule.parameters(usual), "default"), range(3)))


def test_one_gradient_is_there_at_a_time():
    model = network()
    optimizer = Adam(model.parameters())
    alive = []
    for param in model.parameters():
        # These hooks come first: they see the gradient that is about to go.
        param.register_post_accumulate_grad_hook(
            lambda _: alive.append([p.grad is not None for p in model.parameters()])
        )
    release_gradients(optimizer)
    train(model, optimizer, range(1))
    assert [sum(row) for row in alive] == [1] * len(list(model.parameters()))


def test_schedule_and_edited_groups_act_on_released_steps():
    results = []
    for release in (False, True):
        model = network()
        first, *others = model.parameters()
        optimizer = Adam([{"params": [first], "weight_decay": 0.1}, {"params": others, "lr": 0.02}], lr=0.01)
        if release:
            release_gradients(optimizer)
        results.append(train(model, optimizer, schedule=schedules.ExponentialLR(optimizer, 0.5)))
    assert same(*results)


@all_classes
def test_checkpoint_loaded_into_a_released_optimizer_continues_bitwise(rule):
    usual = network()
    expected = rule.build(rule.parameters(usual), "default")
    train(usual, expected, range(3))
    file = io.BytesIO()
    torch.save(expected.state_dict(), file)
    file.seek(0)
    released = copy.deepcopy(usual)
    optimizer = rule.build(rule.parameters(released), "default")
    release_gradients(optimizer)
    # Some steps of its own, that the checkpoint makes forgotten.
    train(released, optimizer, range(2))
    released.load_state_dict(usual.state_dict())
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    assert same(train(released, optimizer, range(3, 6)), train(usual, expected, range(3, 6)))
    assert same_state(optimizer, expected)


def test_removed_release_lets_gradients_stay():
    usual, model = network(), network()
    optimizer = Adam(model.parameters())
    handle = release_gradients(optimizer)
    train(model, optimizer, range(3))
    handle.remove()
    assert same(train(model, optimizer, range(3, 6)), train(usual, Adam(usual.parameters())))
    assert all(p.grad is not None for p in model.parameters())


def test_tied_weights_step_once_with_their_whole_gradient():
    def tied():
        torch.manual_seed(0)
        layer = nn.Linear(4, 4)
        return nn.Sequential(layer, nn.Tanh(), layer)

    usual, model = tied(), tied()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    release_gradients(optimizer)
    assert same(train(model, optimizer), train(usual, SGD(usual.parameters(), lr=0.1, momentum=0.9)))


def test_optimizer_of_another_library_is_refused():
    with pytest.raises(TypeError, match="takes an optimizer of this package"):
        release_gradients(torch.optim.Adam(network().parameters()))


def test_differentiable_optimizer_is_refused():
    with pytest.raises(ValueError, match="needs differentiable=False"):
        release_gradients(Adam(network().parameters(), differentiable=True))


@pytest.mark.slow
def test_peak_of_memory_is_lower_by_most_of_the_gradients():
    layers, width = 16, 1024
    usual, released = (memory._elsewhere("SGD", layers, width, release) for release in (False, True))
    gradients = 4 * layers * width**2 / 2**20
    assert usual - released > gradients / 2
