"""Every optimizer of the package is an option of a labml experiment."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labml import experiment
from labml.configs import BaseConfigs, option
from torch import nn

import optimizers
from optimizers import SGD, AdaBelief, Adam, AdamW, AdamWarmup, WeightDecay
from optimizers.configs import CONFIG_OF, OPTIONS, OptimizerConfigs
from tests.helpers import same

CLASSES = {
    name
    for name in optimizers.__all__
    if isinstance(getattr(optimizers, name), type)
    and issubclass(getattr(optimizers, name), torch.optim.Optimizer)
    and getattr(optimizers, name) is not optimizers.GenericAdaptiveOptimizer
}
#: Each config with a value that is not its default.
OTHER = {
    "learning_rate": 0.02,
    "betas": (0.8, 0.95),
    "eps": 1e-3,
    "optimized_adam_update": False,
    "amsgrad": True,
    "momentum": 0.7,
    "weight_decay": 0.1,
    "warmup": 3,
    "total_steps": 4_000,
    "d_model": 16,
    "degenerate_to_sgd": False,
    "rectify": False,
    "rho": 0.5,
}
all_options = pytest.mark.parametrize("name", sorted(CLASSES))


def made(name=None, parameters=None, **values):
    """The optimizer that the configs make."""
    conf = OptimizerConfigs()
    conf.parameters = [matrix()] if parameters is None else parameters
    if name is not None:
        conf.optimizer = name
    for key, value in {"d_model": 64, **values}.items():
        setattr(conf, key, value)
    return conf.optimizer


def matrix():
    return torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()


def trained(optimizer, steps=4):
    """The parameter, and the loss of each step."""
    (theta,) = optimizer.param_groups[0]["params"]
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (theta - 3).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return theta, losses


def test_every_optimizer_of_the_package_has_an_option_and_no_option_is_of_another():
    assert set(OPTIONS) == CLASSES


@all_options
def test_option_makes_an_optimizer_that_trains(name):
    optimizer = made(name)
    assert type(optimizer) is getattr(optimizers, name)
    _, losses = trained(optimizer)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@all_options
def test_option_takes_every_config_of_its_row_and_no_other(name):
    usual = made(name).defaults
    taken = {CONFIG_OF.get(argument, argument) for argument in ("lr", *OPTIONS[name])}
    for config, value in OTHER.items():
        changed = made(name, **{config: value}).defaults
        through = "weight_decay_obj" if config == "weight_decay" else config
        assert (changed != usual) == (through in taken), config


@all_options
def test_option_trains_as_the_optimizer_made_by_hand(name):
    arguments = {
        "weight_decay": WeightDecay(0.1),
        **{
            argument: OTHER[CONFIG_OF.get(argument, argument)]
            for argument in OPTIONS[name]
            if argument != "weight_decay"
        },
    }
    if "weight_decay" not in OPTIONS[name]:
        del arguments["weight_decay"]
    by_hand = getattr(optimizers, name)([matrix()], lr=0.02, **arguments)
    assert same(trained(made(name, **OTHER))[0], trained(by_hand)[0])


def test_adamw_is_adamw_and_not_a_warm_up():
    optimizer = made("AdamW", warmup=100)
    assert type(optimizer) is AdamW
    assert "warmup" not in optimizer.defaults
    assert type(made("AdamWarmup")) is AdamWarmup


@given(
    lr=st.floats(0, 10),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    eps=st.floats(0, 1),
    decay=st.builds(WeightDecay, st.floats(0, 1), st.booleans(), st.booleans()),
)
def test_values_reach_the_group_as_they_are(lr, betas, eps, decay):
    numbers = {"weight_decay": decay.weight_decay, "weight_decouple": decay.weight_decouple}
    optimizer = made("Adam", learning_rate=lr, betas=betas, eps=eps, weight_decay_absolute=decay.absolute, **numbers)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (lr, betas, eps)
    assert {key: group[key] for key in decay.defaults()} == decay.defaults()


@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam"])
def test_decay_is_decoupled_or_not_as_the_config_says_in_every_optimizer(name):
    for decouple in (True, False):
        assert made(name, weight_decay=0.1, weight_decouple=decouple).defaults["decoupled_weight_decay"] is decouple


def test_values_out_of_range_are_refused_as_by_the_optimizer():
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        made("Adam", learning_rate=-1)
    with pytest.raises(ValueError, match="AdamW decouples its weight decay"):
        made("AdamW", weight_decouple=False)


def test_first_option_is_labmls_default():
    assert type(made()) is SGD
    assert made().defaults["momentum"] == 0.5


def test_weight_decay_and_the_optimizer_may_be_given_ready_made():
    assert made("Adam", weight_decay_obj=WeightDecay(0.3, absolute=True)).defaults["absolute_weight_decay"]
    ready = Adam([matrix()])
    assert made(ready) is ready


def test_what_has_no_default_must_be_given():
    conf = OptimizerConfigs()
    conf.optimizer = "Adam"
    with pytest.raises(AttributeError, match="parameters"):
        _ = conf.optimizer
    conf = OptimizerConfigs()
    conf.parameters, conf.optimizer = [matrix()], "Noam"
    with pytest.raises(AttributeError, match="d_model"):
        _ = conf.optimizer


class Configs(BaseConfigs):
    model: nn.Module
    optimizer: torch.optim.Optimizer


@option(Configs.model)
def _model(c: Configs):
    return nn.Linear(3, 1)


@option(Configs.optimizer)
def _optimizer(c: Configs):
    conf = OptimizerConfigs()
    conf.parameters = c.model.parameters()
    return conf


@pytest.mark.parametrize(
    ("values", "cls", "group"),
    [
        ({"optimizer": "AdamW", "learning_rate": 3e-4, "weight_decay": 0.1}, AdamW, {"lr": 3e-4, "weight_decay": 0.1}),
        ({"optimizer": "SGD", "momentum": 0.9}, SGD, {"lr": 0.01, "momentum": 0.9}),
        ({"optimizer": "AdaBelief", "rectify": False}, AdaBelief, {"rectify": False}),
    ],
    ids=["AdamW", "SGD", "AdaBelief"],
)
def test_experiment_chooses_the_optimizer_and_its_numbers_by_name(values, cls, group):
    conf = Configs()
    # An experiment that records nothing.
    experiment.evaluate()
    experiment.configs(conf, {f"optimizer.{key}": value for key, value in values.items()})
    assert type(conf.optimizer) is cls
    assert {key: conf.optimizer.param_groups[0][key] for key in group} == group
    before = conf.model.weight.detach().clone()
    conf.model(torch.ones(2, 3)).sum().backward()
    conf.optimizer.step()
    assert not same(conf.model.weight, before)


def test_parameters_are_no_hyper_parameter_of_the_experiment():
    conf = OptimizerConfigs()
    conf.parameters = [matrix()]
    assert conf._to_json()["parameters"]["is_meta"]


def test_package_does_not_import_labml():
    code = "import sys, optimizers; sys.exit(any(name.split('.')[0] == 'labml' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
