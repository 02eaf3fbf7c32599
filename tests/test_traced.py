"""Many groups get their numbers from the reading of one, and no group gets wrong ones."""

import math

import pytest
import torch

from optimizers import Adam, AdamW, RMSprop
from optimizers.engines.fused import TRACED_COHORTS
from tests.helpers import same
from tests.rules import RULES

GROUPS = 3 * TRACED_COHORTS


def groups(**options):
    """Groups of one small tensor, each with another learning rate; `options` are functions of the number."""
    made = [torch.linspace(-1, 1, 5).mul(i + 1).requires_grad_() for i in range(GROUPS)]
    return [{"params": [p], "lr": 1e-3 * (i + 1), **{k: f(i) for k, f in options.items()}} for i, p in enumerate(made)]


def steps(optimizer, count=4, change=None):
    """The parameters after some steps."""
    params = [p for g in optimizer.param_groups for p in g["params"]]
    for step in range(count):
        for i, p in enumerate(params):
            p.grad = torch.linspace(0.5, -1, 5) * (i - 3 + step)
        if change:
            change(optimizer, step)
        optimizer.step()
    return [p.detach().clone() for p in params]


def alone(cls, made, count=4, **options):
    """The same, each group with an optimizer of its own, too few to be traced."""
    result = []
    for i, group in enumerate(made):
        optimizer = cls([group], fused=True, **options)
        for step in range(count):
            group["params"][0].grad = torch.linspace(0.5, -1, 5) * (i - 3 + step)
            optimizer.step()
        result.append(group["params"][0].detach().clone())
    return result


def is_traced(optimizer):
    return optimizer._stepper._plan.jobs[0]._traceable


@pytest.mark.parametrize("rule", [rule for rule in RULES if "fused" in rule.readers], ids=str)
def test_groups_that_differ_in_lr_move_as_they_do_alone(rule):
    options = {k: v for k, v in rule.kwargs.items() if k != "lr"}
    optimizer = rule.cls(groups(), fused=True, **options)
    got = steps(optimizer)
    assert same(got, alone(rule.cls, groups(), **options))
    # No calculation can follow numbers that are rounded, as those of a state other than the count, or a logarithm.
    followed = rule.cls.scalar_state == ("step",) and rule.name != "ademamix-warmup-l2"
    assert is_traced(optimizer) == followed or not optimizer.state


def test_a_group_for_which_a_comparison_turns_out_differently_is_read_by_itself():
    def decay(i):
        return 0.1 if i % 3 else 0.0

    optimizer = AdamW(groups(weight_decay=decay), fused=True)
    assert same(steps(optimizer), alone(AdamW, groups(weight_decay=decay)))
    assert is_traced(optimizer)
    assert len(optimizer.explain().entries) == 2


def test_groups_that_differ_in_betas_move_as_they_do_alone():
    def betas(i):
        return 0.5 + 0.01 * i, 0.99 - 0.01 * i

    assert same(steps(Adam(groups(betas=betas), fused=True)), alone(Adam, groups(betas=betas)))


def test_options_that_are_no_numbers_keep_groups_apart():
    def maximize(i):
        return i % 2 == 1

    assert same(steps(RMSprop(groups(maximize=maximize), fused=True)), alone(RMSprop, groups(maximize=maximize)))


def test_tensor_lr_in_one_group_is_its_value():
    def lr(i):
        return torch.tensor(0.25) if i == 5 else 0.25

    assert same(steps(Adam(groups(lr=lr), fused=True)), alone(Adam, groups(lr=lambda i: 0.25)))


class Branching(Adam):
    def get_lr(self, state, group):
        return group["lr"] * (2.0 if group["lr"] > 0.01 and state["step"] > 2 else 1.0)


class NeedsFloats(Adam):
    def get_lr(self, state, group):
        return group["lr"] / math.sqrt(state["step"])


class AsksForTheType(Adam):
    def get_lr(self, state, group):
        return group["lr"] if isinstance(group["lr"], float) else 100.0


class KnowsItsGroups(Adam):
    """The factor is not in the group: the calculation cannot know it."""

    def get_lr(self, state, group):
        return group["lr"] * (7.0 if group["lr"] == 1e-3 * GROUPS else 1.0)


@pytest.mark.parametrize("cls", [Branching, NeedsFloats, AsksForTheType, KnowsItsGroups])
def test_rules_of_any_kind_move_as_they_do_alone(cls):
    optimizer = cls(groups(), fused=True)
    assert same(steps(optimizer), alone(cls, groups()))
    assert is_traced(optimizer) == (cls in (Branching, KnowsItsGroups))


def test_what_a_rule_keeps_on_itself_is_looked_at_anew_at_every_step():
    class Tuned(Adam):
        factor = 1.0

        def get_lr(self, state, group):
            return group["lr"] * self.factor

    def change(optimizer, step):
        optimizer.factor = 1.0 + step

    got = steps(Tuned(groups(), fused=True), change=change)
    want = [steps(Tuned([group], fused=True), change=change)[0] for group in groups()]
    # Alone every group has the gradients of the first: only the first can be compared.
    assert same(got[0], want[0])


def test_a_number_that_is_wrong_for_one_group_is_an_error_of_the_rule():
    class Divides(Adam):
        def get_lr(self, state, group):
            return 1.0 / (group["lr"] - 0.012)

    optimizer = Divides(groups(lr=lambda i: 0.012 if i == 7 else 0.1), fused=True)
    before = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
    with pytest.raises(ZeroDivisionError):
        steps(optimizer, 1)
    assert same([p.detach() for g in optimizer.param_groups for p in g["params"]], before)
