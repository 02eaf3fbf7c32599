"""
What each of several processes does in the tests of `test_distributed.py`.

A topic is one way of distributing a small network. Every process goes through all rules and saves what came of each;
the tests compare that with one process. All is in float64, so that only roundings of no consequence are between them.
"""

import faulthandler
import functools
import itertools
import os
import traceback
import warnings
from datetime import timedelta
from inspect import signature

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from optimizers import WeightDecay
from tests import helpers
from tests.helpers import same, values
from tests.rules import CLASSES

#: Seconds that a process may take, and seconds that it waits for another.
LIMIT, PATIENCE = 240, 120
STEPS = 4

DECAYS = {"as it is": None, "decoupled": WeightDecay(0.1), "absolute": WeightDecay(0.1, absolute=True)}

#: Forms of an optimizer's state dict: the options with which it is asked for, and with which it is given back.
FORMS = {
    "native": ({}, {}),
    "flattened": ({"flatten_optimizer_state_dict": True}, {"flatten_optimizer_state_dict": True}),
    "full": (
        {"full_state_dict": True, "cpu_offload": True},
        {"full_state_dict": True, "broadcast_from_rank0": True},
    ),
}

#: Shapes with the placements of the parameter and of its gradients, which take turns. Some are cut unevenly, some have
#: nothing for some processes; a gradient may be a sum yet to be done, or lie in another way than its parameter.
LAYOUTS = {
    "rows": ((3, 5), Shard(0), [Shard(0)]),
    "columns": ((2, 7), Shard(1), [Shard(1)]),
    "one element": ((1,), Shard(0), [Shard(0)]),
    "whole": ((), Replicate(), [Replicate()]),
    "partial gradient": ((4, 2), Replicate(), [Partial()]),
    "whole gradient": ((5, 2), Shard(0), [Replicate()]),
    "changing gradient": ((3, 4), Replicate(), [Replicate(), Partial()]),
}
DTYPES = [torch.float32, torch.bfloat16]


# ## What is trained


class Net(nn.Module):
    """Over 4 processes some of its parameters are cut evenly, some are not, and of some a process gets nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.up, self.down, self.norm = nn.Linear(5, 14), nn.Linear(14, 3), nn.LayerNorm(3)
        self.gather, self.head = nn.Identity(), nn.Linear(3, 1)
        self.double()

    def forward(self, x):
        hidden = self.down(self.up(x).tanh()).tanh()
        return self.head(self.gather(self.norm(hidden)))


def train(model, optimizer, steps=range(STEPS), rows=slice(None), complete=lambda: None):
    """Steps on `rows` of the whole batch; `complete` does what is missing at the gradients."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (5, 1))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        complete()
        optimizer.step()


def options(rule):
    """A large ε, so that no rounding is divided by next to nothing."""
    return {"eps": 1e-3} if "eps" in signature(rule.cls).parameters else {}


def build(rule, model, decay=None):
    decay = {} if decay is None else {"weight_decay": decay}
    return rule.build(model.parameters(), "default", **options(rule), **decay)


def build_twin(rule, model):
    return rule.build_twin(model.parameters(), **options(rule))


def decays(rule):
    """The names of the decays that a rule can have."""
    return list(DECAYS) if "weight_decay" in signature(rule.cls).parameters else ["as it is"]


# ## What is seen of it


def parameters(model):
    """The whole parameters, whoever has their parts."""
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in values(model.parameters())]


def parts(model):
    """What this process has of the parameters."""
    return [p.to_local() if isinstance(p, DTensor) else p for p in values(model.parameters())]


def forms(model, optimizer):
    """For each parameter what the entries of its state are, in words."""
    return [{n: form(v, p) for n, v in optimizer.state[p].items()} for p in model.parameters()]


def form(value, param):
    if type(value) is torch.Tensor and value.dim() == 0 and value.dtype == torch.float32 and value.is_cpu:
        return "number"
    if type(value) is DTensor and (value.device_mesh, value.placements) == (param.device_mesh, param.placements):
        return "like its parameter" if value.to_local().shape == param.to_local().shape else "of another shape"
    return repr(value)


class Writes(TorchDispatchMode):
    """Notes the operations that write to tensors. A kernel is not among them: it has addresses."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.is_mutable:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


# ## Ways of distributing


def my_rows():
    return slice(dist.get_rank(), None, dist.get_world_size())


def tensor_parallel(model, mesh):
    """`norm` sees some rows of the batch, so its gradients come as sums yet to be done; `head` stays whole."""
    gathered = PrepareModuleInput(input_layouts=Shard(0), desired_input_layouts=Replicate(), use_local_output=True)
    plan = {
        "up": ColwiseParallel(),
        "down": RowwiseParallel(output_layouts=Shard(0)),
        "norm": SequenceParallel(sequence_dim=0),
        "gather": gathered,
    }
    return parallelize_module(model, mesh, plan)


@functools.cache
def mesh(*shape):
    return init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor")[-len(shape) :])


# ## Topics


def ddp(rule, folder):
    model = DistributedDataParallel(Net())
    train(model, build(rule, model), rows=my_rows())
    return {"parameters": parameters(model)}


def fsdp(rule, folder):
    model = fully_shard(Net())
    optimizer = build(rule, model)
    foretold = [e.reader for e in optimizer.explain().entries]
    train(model, optimizer, rows=my_rows())
    result = {"parameters": parameters(model), "sizes": [p.numel() for p in parts(model)], "foretold": foretold}
    result["states"] = forms(model, optimizer)
    with Writes() as writes:
        optimizer.step()
    result["writes"] = writes.names
    result["report"] = [(e.reader, e.tensors, e.kernel, e.reason) for e in optimizer.explain().entries]
    if rule.twin:
        result["twin"] = attempt(fsdp_twin, rule)
    return result


def fsdp_twin(rule):
    model = fully_shard(Net())
    train(model, build_twin(rule, model), rows=my_rows())
    return {"parameters": parameters(model)}


def layouts(rule, folder):
    cases = [(dtype, name) for dtype in DTYPES for name in LAYOUTS]
    return {f"{dtype}, {name}": attempt(layout, rule, dtype, *LAYOUTS[name]) for dtype, name in cases}


def layout(rule, dtype, shape, placement, grad_placements):
    """The same gradients as a whole tensor is given, and the readers that took them."""

    def laid(tensor, placement):
        if isinstance(placement, Partial):
            part = tensor if dist.get_rank() == 0 else torch.zeros_like(tensor)
            return DTensor.from_local(part, everyone, [placement])
        return distribute_tensor(tensor, everyone, [placement], src_data_rank=None)

    everyone = mesh(dist.get_world_size())
    start = helpers.params([shape], dtype)
    param = laid(start[0].detach(), placement).requires_grad_()
    optimizer, readers = rule.build([param], "default"), []
    for (grad,), grad_placement in zip(helpers.gradients(start, STEPS), itertools.cycle(grad_placements)):
        param.grad = laid(grad, grad_placement)
        optimizer.step()
        readers += [e.reader for e in optimizer.explain().entries]
    return {"value": param.detach().full_tensor(), "readers": readers, "version": param._version}


def tensors(rule, folder):
    model = tensor_parallel(Net(), mesh(2))
    optimizer = build(rule, model)
    train(model, optimizer)
    return {"parameters": parameters(model), "meshes": meshes(model)}


def grid(rule, folder):
    """Two ways at once: the data over one dimension of the mesh, tensors over the other, and one bias over neither."""
    both = mesh(2, 2)
    model = tensor_parallel(Net(), both["tensor"])
    whole = model.head.bias
    fully_shard(model, mesh=both["data"], ignored_params={whole})

    def complete():
        dist.all_reduce(whole.grad, group=both["data"].get_group())
        whole.grad /= 2

    rows = slice(both.get_local_rank("data"), None, 2)
    train(model, build(rule, model), rows=rows, complete=complete)
    return {"parameters": parameters(model), "meshes": meshes(model)}


def meshes(model):
    """The dimensions of the meshes that parameters lie over, each once; a plain tensor has none."""
    return sorted({p.device_mesh.ndim if isinstance(p, DTensor) else 0 for p in model.parameters()})


def zero(rule, folder, **kwargs):
    # This import warns, and only a worker can have it ignored.
    from torch.distributed.optim import ZeroRedundancyOptimizer

    def build_zero(model):
        arguments = {**rule.kwargs, **options(rule), **kwargs}
        return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=rule.cls, **arguments)

    file, half = folder / f"{rule.name}.zero", STEPS // 2
    model, again = DistributedDataParallel(Net()), DistributedDataParallel(Net())
    optimizer = build_zero(model)
    train(model, optimizer, range(half), my_rows())
    optimizer.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    dist.barrier()
    saved, resumed = torch.load(file, weights_only=True), build_zero(again)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for m, o in ((model, optimizer), (again, resumed)):
        train(m, o, range(half, STEPS), my_rows())
    owned = len(optimizer.optim.state)
    return {"parameters": parameters(model), "resumed": parameters(again), "owned": owned}


def zero_buckets(rule, folder):
    return zero(rule, folder, parameters_as_bucket_view=True)


def resharded(rule, folder, stage):
    """A third of a run: it begins with the checkpoint of the third before, and ends with its own."""
    model = fully_shard(Net())
    optimizer = build(rule, model)
    file = f"{folder.parent}/{rule.name}-{{}}"
    if stage > 0:
        saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.load(saved, checkpoint_id=file.format(stage - 1))
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"])
    train(model, optimizer, range(2 * stage, 2 * stage + 2), my_rows())
    saved = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    dcp.save(saved, checkpoint_id=file.format(stage))
    return {"parameters": parameters(model)}


def state_dicts(rule, folder):
    cases = [(decay, form) for decay in decays(rule) for form in FORMS]
    result = {f"{decay}, {form}": attempt(state_dict, rule, DECAYS[decay], *FORMS[form]) for decay, form in cases}
    result["asked"] = attempt(asked, rule, build)
    if rule.twin:
        result["twin"] = attempt(asked, rule, build_twin)
    return result


def asked(rule, builder):
    """A run of an optimizer that was asked for its state dict before."""
    model = fully_shard(Net())
    optimizer = builder(rule, model)
    get_optimizer_state_dict(model, optimizer)
    train(model, optimizer, range(2), my_rows())
    return {"parameters": parameters(model)}


def state_dict(rule, decay, getting, setting):
    """Whether the state dict of a fresh optimizer moved anything, and a run goes on with that of a used one."""
    model, again = fully_shard(Net()), fully_shard(Net())
    optimizer, fresh = build(rule, model, decay), build(rule, again, decay)
    start = parts(again)
    get_optimizer_state_dict(again, fresh, options=StateDictOptions(**getting))
    result = {"unmoved by getting": same(parts(again), start)}
    train(model, optimizer, range(2), my_rows())
    set_model_state_dict(again, get_model_state_dict(model))
    fresh, start = build(rule, again, decay), parts(again)
    saved = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(**getting))
    set_optimizer_state_dict(again, fresh, saved, options=StateDictOptions(**setting))
    result["unmoved by setting"] = same(parts(again), start)
    result["state of the same form"] = forms(again, fresh) == forms(model, optimizer)
    for m, o in ((model, optimizer), (again, fresh)):
        train(m, o, range(2, 4), my_rows())
    result["goes on"] = same(parts(model), parts(again))
    return result


TOPICS = {f.__name__: f for f in (ddp, fsdp, layouts, tensors, grid, zero, zero_buckets, resharded, state_dicts)}


# ## A process


def attempt(function, *args):
    """What a function gives, or how it failed, so that the rest is done all the same."""
    try:
        return function(*args)
    except Exception:
        return traceback.format_exc()


def work(topic, rank, world, folder, *args):
    """
    Do a topic for all rules. A process that hangs ends itself after `LIMIT` seconds, and says where it was; what it
    prints is in `folder`.
    """
    log = open(folder / f"{rank}.log", "w")  # noqa: SIM115 - it is open as long as the process lives
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=log)
    warnings.simplefilter("error")
    # torch's own optimizers for TorchScript, which come with ZeroRedundancyOptimizer.
    warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=PATIENCE))
    for rule in CLASSES:
        torch.save(attempt(TOPICS[topic], rule, folder, *args), folder / f"{rule.name}.{rank}")
    dist.destroy_process_group()
