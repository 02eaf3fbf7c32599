r"""
---
title: The base of every optimizer
summary: Parameter groups, state, weight decay and the step, so that a rule is only its maths.
---

# The base of every optimizer

A rule of this package says how *one* parameter moves. Everything else is here, once: parameter groups and
their checks, state and its checkpoints, weight decay, the count of steps, closures and hooks. Who runs the
rule, one tensor at a time or as one kernel over all of them, is decided in the
[engines](engines/index.html). The rule cannot tell, and need not care.

## The contract

A rule overrides two methods:

* `init_state(state, group, param)` fills the state of a new parameter. It gets a real tensor.
* `step_param(state, group, grad, param)` moves the parameter. It may be given a tensor, a list of tensors, or
  a value that only writes down what is done to it. So it must not look at the values of tensors
  (`if grad.sum() > 0`), and it must not write through `grad`. Numbers may be used freely: `state["step"]` is
  the number $t$, and a learning rate in `group` is a number too. Where they meet operators only (`x ** 0.5`, and the
  [functions](engines/functions.html) `cos`, `exp` and `log`), the rule's [equations](equations.html) can be read.

The count is the base's: when a rule runs, `state["step"]` is already $t$. (A rule's own
`state["step"] += 1`, as labml's pages have it, changes nothing.)
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import Optimizer, ParamsT

from optimizers.engines.functions import cos as cos
from optimizers.engines.functions import exp as exp
from optimizers.engines.functions import float32_product as float32_product
from optimizers.engines.functions import log as log
from optimizers.engines.report import Report
from optimizers.engines.state import adopt_state, check_shapes, new_state
from optimizers.engines.stepper import Stepper
from optimizers.weight_decay import WeightDecay

_profiler_enabled: Callable[[], bool] = torch._C._autograd._profiler_enabled
#: What torch.compile has look at each frame that is entered, or None.
_watching_compiler: Callable[[], Any] = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: None)
_global_pre_hooks = torch_optimizer._global_optimizer_pre_hooks
_global_post_hooks = torch_optimizer._global_optimizer_post_hooks


def _observed(step: Callable[..., Any]) -> Callable[..., Any]:
    """
    A step with torch's hooks and profiler range around it. Where one such step calls another, as `super().step()` in
    a subclass does, only the outer one has them.
    """
    with_hooks = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def observed(self: GenericAdaptiveOptimizer, *args: Any, **kwargs: Any) -> Any:
        if self._inside_step:
            return step(self, *args, **kwargs)
        self._inside_step = True
        try:
            return with_hooks(self, *args, **kwargs)
        finally:
            self._inside_step = False

    observed.hooked = True  # type: ignore[attr-defined]
    return observed


class GenericAdaptiveOptimizer(Optimizer):
    r"""
    ## The base class

    * `params` are tensors, named tensors or parameter groups, as for any `torch.optim` optimizer.
    * `defaults` are the hyper-parameters of the rule. The dictionary is copied.
    * `lr` is $\alpha \ge 0$, a number or a tensor of one element; `betas` and `eps` are for the rules that have them.
    """

    #: The entries of a state that are one number per parameter: tensors outside, Python numbers inside a rule.
    scalar_state: ClassVar[tuple[str, ...]] = ("step",)

    #: What to say to a sparse gradient; None where the rule can take one.
    sparse_error: ClassVar[str | None] = "This optimizer does not support sparse gradients"

    #: The mode of a decay is in the group, so one object serves all.
    weight_decay: ClassVar[WeightDecay] = WeightDecay()

    #: The entries of a state that are not made by `init_state` but by a step. They have the parameter's shape.
    lazy_state: ClassVar[tuple[str, ...]] = ()

    #: The letters that a page's maths has for entries of the state and the group, where they are not the usual ones.
    letters: ClassVar[dict[str, str]] = {}

    #: Switches of a group that were on where a checkpoint does not have them. All others were off.
    absent_switches: ClassVar[dict[str, bool]] = {}

    _inside_step = False
    _state_is_known = False
    _loading: dict[str, Any] | None = None

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        lr: float | Tensor,
        betas: tuple[float | Tensor, float | Tensor] | None = None,
        eps: float | None = None,
    ) -> None:
        defaults = {"lr": lr, **self.decay_defaults(0.0), **defaults}
        for option in ("maximize", "capturable", "differentiable"):
            defaults.setdefault(option, False)
        for option in ("foreach", "fused"):
            defaults.setdefault(option, None)
        if betas is not None:
            defaults["betas"] = betas
        if eps is not None:
            defaults["eps"] = eps
        self.check_group(defaults)
        if "betas" in defaults:
            # A pair, whatever was given: OneCycleLR takes it apart.
            defaults["betas"] = tuple(defaults["betas"])
        self._stepper = Stepper()
        super().__init__(params, defaults)
        self._state_is_known = False
        self._step_supports_amp_scaling = bool(defaults["fused"])

    @staticmethod
    def decay_defaults(
        weight_decay: float | Tensor | WeightDecay, decoupled_weight_decay: bool = False
    ) -> dict[str, Any]:
        """### The decay that `weight_decay` stands for, as keys of a group"""
        if isinstance(weight_decay, WeightDecay):
            return weight_decay.defaults()
        return WeightDecay(weight_decay, decoupled_weight_decay).defaults()  # type: ignore[arg-type]

    @classmethod
    def reader_options(cls, options: dict[str, bool | None]) -> dict[str, bool | None]:
        """### The options that every rule has, for a rule that takes them together"""
        unknown = set(options) - {"foreach", "fused", "maximize", "capturable", "differentiable"}
        if unknown:
            raise TypeError(f"{cls.__name__} got an unexpected keyword argument {min(unknown)!r}")
        return options

    # ## State

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """
        ### The state of each parameter

        Whoever asks for it may keep parts of it, and change them at any time. From then on the step looks at
        every tensor in it, which otherwise would be half of its time where the parameters are small.
        """
        states: defaultdict[Tensor, Any] | None = self.__dict__.get("state")
        if states is None:
            # Lightning's wrappers are of our class but have no state. On this error they ask whom they wrap.
            raise AttributeError(f"{type(self).__name__} has no state of its own")
        self._state_is_known = True
        return states

    @state.setter
    def state(self, value: defaultdict[Tensor, Any]) -> None:
        self._state_is_known = True
        self.__dict__["state"] = value

    def fill_state(self) -> None:
        """### Give every parameter its state now, which otherwise is made at its first step"""
        for group in self.param_groups:
            for param in group["params"]:
                if not self.state.get(param):
                    self.state[param] = new_state(self, group, param)

    def state_dict(self) -> dict[str, Any]:
        """### What is saved. The dictionaries are new, the tensors are the state's own, as in torch"""
        saved = super().state_dict()
        saved["state"] = {k: dict(v) if isinstance(v, dict) else v for k, v in saved["state"].items()}
        return saved

    # ## Parameter groups

    def check_group(self, group: dict[str, Any]) -> None:
        """
        ### What the hyper-parameters of a group must satisfy

        A rule adds its own. Raises `ValueError` in torch's words where torch checks the same.
        """
        lr, weight_decay, betas, eps = (group.get(k) for k in ("lr", "weight_decay", "betas", "eps"))
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if lr is None or not 0.0 <= lr:
            raise ValueError(f"Invalid learning rate: {lr}")
        if eps is not None and not 0.0 <= eps:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for name in ("betas", "eps"):
            if name in group and group[name] is None:
                raise ValueError(f"Invalid {name} value: None")
        if betas is not None:
            if not isinstance(betas, (tuple, list)) or len(betas) != 2:
                raise ValueError(f"betas must be a pair of numbers in [0, 1). Received: {betas!r}")
            for index, beta in enumerate(betas):
                if not 0.0 <= beta < 1.0:
                    raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        if isinstance(weight_decay, WeightDecay) or weight_decay is None or not 0.0 <= weight_decay:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        self._check_readers(group)

    @staticmethod
    def check_not_negative(group: dict[str, Any], *names: str) -> None:
        """### Hyper-parameters that must be numbers of at least 0, in torch's words"""
        for name in names:
            if group[name] is None or not 0.0 <= group[name]:
                raise ValueError(f"Invalid {name} value: {group[name]}")

    @staticmethod
    def _check_readers(group: dict[str, Any]) -> None:
        """### Which ways of running a rule exclude each other"""
        if group["fused"] and group["differentiable"]:
            raise RuntimeError("`fused` does not support `differentiable`")
        if group["fused"] and group["foreach"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """
        ### Add a parameter group

        As in torch, but the group's own values are checked too, a [`WeightDecay`](weight_decay.html) may be
        given in it, and the caller's dictionary stays as it is.
        """
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            if isinstance(param_group.get("weight_decay"), WeightDecay):
                param_group.update(param_group["weight_decay"].defaults())
            self.check_group({**self.defaults, **param_group})
            if "betas" in param_group:
                param_group["betas"] = tuple(param_group["betas"])
        super().add_param_group(param_group)

    # ## The rule

    def init_state(self, state: dict[str, Any], group: dict[str, Any], param: Tensor) -> None:
        """### Fill the state of a new parameter. A rule without state leaves this as it is."""

    def step_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### Move a parameter. Every rule overrides this."""
        raise NotImplementedError(f"{type(self).__name__} must override step_param(state, group, grad, param)")

    def get_lr(self, state: dict[str, Any], group: dict[str, Any]) -> float:
        r"""### Learning rate $\alpha$ at this step. A warm-up or a schedule overrides this; a decay follows it"""
        lr: float = group["lr"]
        return lr

    def update_param(self, state: dict[str, Any], group: dict[str, Any], grad: Tensor, param: Tensor) -> None:
        """### What every reader runs: the sign of the objective, the decay, then the rule"""
        if group["maximize"]:
            # $$g_t \leftarrow -g_t$$
            grad = grad.neg()
        if group["weight_decay"] != 0:
            lr = self.get_lr(state, group)
            grad = self.weight_decay(param, grad, group if lr is group["lr"] else {**group, "lr": lr})
        self.step_param(state, group, grad, param)

    # ## The step

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._stepper.step(self)
        return loss

    _observed_step = _observed(_step)

    @functools.wraps(_step)
    def step(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """
        ### Perform a single optimization step

        `closure` reevaluates the model and returns the loss, which is returned. Subclasses don't override this.
        """
        if is_compiling() or _watching_compiler() is not None:
            # A compiled kernel is what a step becomes by itself; the compiler goes round it. It may also run this
            # method as it is and look at all that is called from it.
            return self._uncompiled_step(*args, **kwargs)
        # torch enters a profiler range and looks for hooks at every step, which takes longer than a small step.
        # Look first: without a profiler and without hooks there is nothing to enter.
        if (
            _profiler_enabled()
            or self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_pre_hooks
            or _global_post_hooks
        ):
            return self._observed_step(*args, **kwargs)
        if args or kwargs:
            return self._step(*args, **kwargs)
        return self._stepper.step(self)

    step.hooked = True  # type: ignore[attr-defined]

    _uncompiled_step = torch._disable_dynamo(step)  # type: ignore[attr-defined]

    def _patch_step_function(self) -> None:
        """### Hooks and profiler for a subclass that wraps the step after all"""
        if not getattr(type(self).step, "hooked", False):
            type(self).step = _observed(type(self).step)  # type: ignore[assignment]
        super()._patch_step_function()

    # ## Looking inside

    def explain(self) -> Report:
        """
        ### Which reader runs this optimizer, and why

        A report that prints as a table: the reader, cohorts, tensors, elements, launches and kernel, and what keeps
        them from being fused. Before the first step every parameter counts as having a gradient.
        """
        return self._stepper.explain(self)

    def kernel_source(self) -> str:
        """### The source of the kernels that run this optimizer, or nothing where none does"""
        return self._stepper.kernel_source(self)

    # ## Checkpoints

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """
        ### Load a state dict, of this class or of the torch class of the same name

        State keeps the dtype that it was saved with. (torch casts it to that of the parameter, so float32
        moments of a bfloat16 parameter lose their digits and the resumed run drifts.)
        """
        # Registered last, so it sees what the user's hooks made of the state dict.
        handle = self.register_load_state_dict_pre_hook(type(self)._before_loading)  # type: ignore[arg-type]
        try:
            super().load_state_dict(state_dict)
        finally:
            self._loading = None
            handle.remove()

    def _before_loading(self, state_dict: dict[str, Any]) -> None:
        check_shapes(self, state_dict)
        self._loading = state_dict

    def __setstate__(self, state: dict[str, Any]) -> None:
        """
        ### Take over a loaded state

        Group keys that an older checkpoint lacks are filled in. An absent switch was off.
        """
        super().__setstate__(state)
        for group in self.param_groups:
            for key, default in self.defaults.items():
                if key in ("foreach", "fused"):
                    default = None
                elif isinstance(default, bool):
                    default = self.absent_switches.get(key, False)
                group.setdefault(key, default)
            if "betas" in group:
                group["betas"] = tuple(group["betas"])
        adopt_state(self, self._loading)
        self._loading = None
        self._stepper = Stepper()
        self._state_is_known = False
        self._step_supports_amp_scaling = bool(self.defaults.get("fused"))

    def __getstate__(self) -> dict[str, Any]:
        """### What is pickled and deep-copied: torch's part, and what a subclass keeps in public attributes"""
        # To hand tensors to another process torch moves their memory.
        self._state_is_known = True
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_") and k != "step"}


def check_class(asker: str, rule: Any) -> None:
    """## What makes optimizers, as `asker` wants it: raises `TypeError` for an optimizer that is made already"""
    if not callable(rule) or isinstance(rule, torch.optim.Optimizer):
        raise TypeError(f"{asker} takes the class of an optimizer. Received: {type(rule).__name__}, which is none")


def check_ours(asker: str, optimizer: Any) -> None:
    """## An optimizer that has a rule to be read: raises `TypeError` for any other, as for torch's own"""
    if not isinstance(optimizer, GenericAdaptiveOptimizer):
        kind = type(optimizer)
        raise TypeError(f"{asker} takes the rules of this package. Received: {kind.__module__}.{kind.__qualname__}")
