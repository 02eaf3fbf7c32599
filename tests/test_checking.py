"""`check_optimizer` passes what is right, and names what is wrong with the rest."""

import pytest
import torch

from optimizers import Adam, CheckFailed, GenericAdaptiveOptimizer, check_optimizer
from optimizers.checking import DTYPES, SHAPES
from tests.rules import CLASSES


@pytest.mark.parametrize("rule", CLASSES, ids=str)
def test_our_rules_pass(rule):
    shapes, dtypes = [rule.shape(s) for s in SHAPES], [d for d in DTYPES if rule.takes(d)]
    report = check_optimizer(rule.cls, shapes=shapes, dtypes=dtypes, **rule.kwargs)
    assert len(report.lines) == 7 * 3 * len(dtypes)
    assert rule.cls.__name__ in str(report)
    assert {line.reader for line in report.lines} == {"single", "foreach", "fused"}


def test_factory_is_taken_like_a_class():
    def warm(params, warmup):
        class Warm(Adam):
            def get_lr(self, state, group):
                return group["lr"] * min(1.0, state["step"] / warmup)

        return Warm(params)

    assert check_optimizer(warm, warmup=3).rule == "warm"


def test_rule_that_no_kernel_takes_passes_and_the_report_says_why():
    class Normed(GenericAdaptiveOptimizer):
        def step_param(self, state, group, grad, param):
            param.sub_(grad / (grad.norm() + 1), alpha=group["lr"])

    assert "`norm` is outside the vocabulary" in str(check_optimizer(Normed, defaults={}, lr=0.1))


class MovesAtZero(Adam):
    def get_lr(self, state, group):
        return group["lr"] + 1e-3


class WritesTheGradient(Adam):
    def get_mv(self, state, group, grad):
        grad.mul_(2)
        return super().get_mv(state, group, grad)


class DividesByZero(GenericAdaptiveOptimizer):
    def step_param(self, state, group, grad, param):
        param.sub_(grad / grad.abs(), alpha=group["lr"])


class CountsForAll(GenericAdaptiveOptimizer):
    """Keeps on itself what belongs in the state of each parameter."""

    calls = 0.0

    def step_param(self, state, group, grad, param):
        self.calls += 1
        param.sub_(grad, alpha=group["lr"] / self.calls)


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (MovesAtZero, {}, "a learning rate of 0 moves nothing: parameter 0 differs by"),
        (WritesTheGradient, {}, "leaves the gradient as it is: parameter 0 differs by"),
        (DividesByZero, {"defaults": {}, "lr": 0.1}, "a gradient of 0 gives finite numbers"),
        (CountsForAll, {"defaults": {}, "lr": 0.1}, "differs by"),
    ],
)
def test_what_is_wrong_is_named_with_its_size(cls, kwargs, message):
    with pytest.raises(CheckFailed, match=message):
        check_optimizer(cls, **kwargs)


def test_readers_that_disagree_are_found(monkeypatch):
    from optimizers.engines import c_kernel

    monkeypatch.setitem(c_kernel.FORMULAS, "lerp", "LERP({0}, {1}, {2} * (real)1.0001)")
    with pytest.raises(CheckFailed, match=r"Adam, fused reader, torch.float64: gives what the single reader gives"):
        check_optimizer(Adam, lr=0.5)
    assert torch.get_default_dtype() == torch.float32
