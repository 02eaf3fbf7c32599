"""
What holds in Hugging Face's Accelerate and in the `Trainer` of Transformers: a run that is resumed is the uninterrupted
one, bit for bit, and our classes move as torch's do in their place.
"""

import gc
import logging
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import assert_as_torch, copies, same, same_state, values
from tests.rules import CLASSES

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
# Whole networks are trained here, which are not matrices alone.
FOR_NETWORKS = [rule for rule in CLASSES if not rule.matrices]
all_classes = pytest.mark.parametrize("rule", FOR_NETWORKS, ids=str)
with_twins = pytest.mark.parametrize("rule", [rule for rule in FOR_NETWORKS if rule.twin], ids=str)
exact_and_chosen = pytest.mark.parametrize("reader", ["single", "default"])


def forget():
    """Accelerate keeps its settings for the process. Without them this is as good as a new one."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


@pytest.fixture(autouse=True)
def _leave_no_settings():
    yield
    forget()


@pytest.fixture(autouse=True)
def _say_nothing(caplog):
    caplog.set_level(logging.ERROR, "transformers")
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


@pytest.fixture(autouse=True, scope="module")
def _waste_no_time():
    """The threads of a busy machine wait for each other, and a trainer, before it trains, looks at all there is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)


# ## Accelerate

BATCHES = 4


def network():
    """The same numbers at each call."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def batches():
    x = torch.randn(8 * BATCHES, 4, generator=torch.Generator().manual_seed(2))
    return DataLoader(TensorDataset(x, 3 * x[:, :2].sin()), batch_size=8)


def prepare(build, **options):
    """A new process: an accelerator with the network, optimizer, batches and scheduler that it prepares."""
    forget()
    accelerator = accelerate.Accelerator(cpu=True, **options)
    net = network()
    optimizer = build(net.parameters())
    return accelerator, *accelerator.prepare(net, optimizer, batches(), ExponentialLR(optimizer, 0.9))


def train(accelerator, net, optimizer, loader, scheduler):
    """An epoch."""
    for x, y in loader:
        with accelerator.accumulate(net):
            accelerator.backward(nn.functional.mse_loss(net(x), y))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("precision", ["no", "bf16"])
@all_classes
def test_resumed_accelerated_run_is_the_uninterrupted_one(rule, precision, tmp_path):
    build = partial(rule.build, reader="default")
    whole = prepare(build, mixed_precision=precision)
    train(*whole)
    train(*whole)
    half = prepare(build, mixed_precision=precision)
    train(*half)
    half[0].save_state(tmp_path)
    resumed = prepare(build, mixed_precision=precision)
    resumed[0].load_state(tmp_path)
    train(*resumed)
    assert not same(values(half[1].parameters()), values(whole[1].parameters()))
    assert same(values(resumed[1].parameters()), values(whole[1].parameters()))
    assert same_state(resumed[2], whole[2])
    assert resumed[2].param_groups[0]["lr"] == whole[2].param_groups[0]["lr"]


def train_both(rule, reader, **options):
    """Networks that our class and torch's have trained."""
    for build in (partial(rule.build, reader=reader), rule.build_twin):
        run = prepare(build, **options)
        train(*run)
        yield list(run[1].parameters())


@pytest.mark.parametrize("accumulated", [1, 2])
@exact_and_chosen
@with_twins
def test_accelerated_run_moves_as_with_torchs_class(rule, reader, accumulated):
    ours, torchs = train_both(rule, reader, gradient_accumulation_steps=accumulated)
    assert_as_torch(reader, ours, torchs, values(network().parameters()), BATCHES)


@with_twins
def test_accelerated_run_in_mixed_precision_moves_as_with_torchs_class(rule):
    # Not the chosen reader: what its last digit does to activations in half precision has no bound.
    ours, torchs = train_both(rule, "single", mixed_precision="bf16")
    assert not same(values(ours), values(network().parameters()))
    assert same(values(ours), values(torchs))


@all_classes
def test_pickled_wrapper_goes_on_as_the_one_that_stays(rule):
    run = prepare(partial(rule.build, reader="default"))
    train(*run)
    stays, loaded = run[2], pickle.loads(pickle.dumps(run[2]))
    assert type(loaded.optimizer) is rule.cls
    for optimizer in (stays, loaded):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert same(*(values(optimizer.param_groups[0]["params"]) for optimizer in (stays, loaded)))
    assert same_state(stays, loaded)


def scaled(build):
    """A network and its optimizer, wrapped with a scaler as Accelerate does it for float16 on a GPU."""
    accelerate.Accelerator(cpu=True)
    net = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return net, accelerate.optimizer.AcceleratedOptimizer(build(net.parameters()), scaler=scaler)


@all_classes
def test_wrapper_tells_of_a_step_that_overflows_and_nothing_has_moved(rule):
    net, optimizer = scaled(partial(rule.build, reader="default"))
    plain = copies(net.parameters())
    unscaled = rule.build(plain, "default")
    for x, y in batches():
        for size in (1.0, float("inf")):
            optimizer.zero_grad()
            optimizer.scaler.scale(size * nn.functional.mse_loss(net(x), y)).backward()
            scale = optimizer.scaler.get_scale()
            gradients = [p.grad / scale for p in net.parameters()]
            optimizer.step()
            assert optimizer.step_was_skipped == (size != 1.0)
            if not optimizer.step_was_skipped:
                for p, g in zip(plain, gradients, strict=True):
                    p.grad = g
                unscaled.step()
            assert same(values(net.parameters()), values(plain))
            assert same_state(optimizer, unscaled)


# ## The trainer of Transformers

STEPS = 4


def language_model():
    """The same random weights at each call."""
    torch.manual_seed(1)
    sizes = {
        "vocab_size": 13,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, attention_dropout=0.1))


def sentences():
    tokens = torch.randint(13, (16, 8), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": row, "labels": row} for row in tokens]


def fit(folder, net, resume=None, **options):
    """A trainer, after its training, that says nothing. It saves itself halfway."""
    silent = {"report_to": "none", "logging_strategy": "no", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        folder, use_cpu=True, max_steps=STEPS, save_steps=STEPS // 2, per_device_train_batch_size=4, **silent
    )
    trainer = transformers.Trainer(net, arguments, train_dataset=sentences(), **options)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def scheduled(optimizer):
    return {"optimizers": (optimizer, transformers.get_linear_schedule_with_warmup(optimizer, 1, STEPS))}


def by_object(rule, net):
    return scheduled(rule.build(net.parameters(), "default"))


def by_class(rule, net):
    return {"optimizer_cls_and_kwargs": (rule.cls, rule.kwargs)}


@pytest.mark.parametrize("given", [by_object, by_class])
@all_classes
def test_resumed_trainer_is_the_uninterrupted_one(rule, given, tmp_path):
    whole, resumed = language_model(), language_model()
    first = fit(tmp_path, whole, **given(rule, whole))
    second = fit(tmp_path, resumed, str(tmp_path / f"checkpoint-{STEPS // 2}"), **given(rule, resumed))
    assert type(second.optimizer.optimizer) is rule.cls
    assert not same(values(resumed.parameters()), values(language_model().parameters()))
    assert same(values(resumed.parameters()), values(whole.parameters()))
    assert same_state(second.optimizer, first.optimizer)


@with_twins
def test_trainer_moves_as_with_torchs_class(rule, tmp_path):
    # Not the chosen reader: a model as deep as this makes much of a last digit.
    ours, torchs = language_model(), language_model()
    fit(tmp_path, ours, **scheduled(rule.build(ours.parameters(), "single")))
    fit(tmp_path, torchs, **scheduled(rule.build_twin(torchs.parameters())))
    assert not same(values(ours.parameters()), values(language_model().parameters()))
    assert same(values(ours.parameters()), values(torchs.parameters()))
