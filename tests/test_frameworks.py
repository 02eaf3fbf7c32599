"""
What holds in Lightning's `Trainer` and in Fabric: a run that is resumed is the uninterrupted one, bit for bit, our
classes move as torch's do in their place, and the wrappers round them show what is ours.
"""

import logging
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import assert_as_torch, same, same_state, values
from tests.rules import CLASSES

pl = pytest.importorskip("pytorch_lightning")
fabrics = pytest.importorskip("lightning_fabric")

pytestmark = [
    pytest.mark.slow,
    # Four batches need no workers.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    # Lightning 2.6 uses torch's pytree in a way of yesterday.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
]
# Whole networks are trained here, which are not matrices alone.
FOR_NETWORKS = [rule for rule in CLASSES if not rule.matrices]
all_classes = pytest.mark.parametrize("rule", FOR_NETWORKS, ids=str)
with_twins = pytest.mark.parametrize("rule", [rule for rule in FOR_NETWORKS if rule.twin], ids=str)
exact_and_chosen = pytest.mark.parametrize("reader", ["single", "default"])
# A scheduler wants to come after a step, also where the scaler has left the step out.
first_steps_may_overflow = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")

BATCHES = 4


@pytest.fixture(autouse=True)
def _only_errors_are_logged(caplog):
    for name in ("pytorch_lightning", "lightning_fabric"):
        caplog.set_level(logging.ERROR, name)


@pytest.fixture(autouse=True, scope="module")
def _waste_no_time():
    """The threads of a busy machine wait for each other, for as long as the work takes or longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network():
    """The same numbers at each call."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def batches():
    x = torch.randn(8 * BATCHES, 4, generator=torch.Generator().manual_seed(2))
    return DataLoader(TensorDataset(x, 3 * x[:, :2].sin()), batch_size=8)


def loss_of(net, batch):
    x, y = batch
    return nn.functional.mse_loss(net(x), y)


def assert_moves_as_torchs(reader, ours, torchs):
    """For two networks that were trained for an epoch."""
    start = values(network().parameters())
    assert_as_torch(reader, list(ours.parameters()), list(torchs.parameters()), start, BATCHES)


# ## The trainer


class Regression(pl.LightningModule):
    """A network with the optimizer that `build` makes for its parameters, and a learning rate that decays."""

    def __init__(self, build):
        super().__init__()
        self.net, self.build = network(), build

    def training_step(self, batch, _):
        return loss_of(self.net, batch)

    def configure_optimizers(self):
        optimizer = self.build(self.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"},
        }


class ByHand(Regression):
    """The same with the step written out."""

    automatic_optimization = False

    def training_step(self, batch, _):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss_of(self.net, batch))
        optimizer.step()
        self.lr_schedulers().step()


class InTurns(ByHand):
    """Two optimizers with a layer each. While one moves, by a closure, the other's layer needs no gradient."""

    def training_step(self, batch, _):
        for optimizer in self.optimizers():
            with optimizer.toggle_model():
                optimizer.step(partial(self.closure, optimizer, batch))

    def closure(self, optimizer, batch):
        optimizer.zero_grad()
        self.manual_backward(loss_of(self.net, batch))

    def configure_optimizers(self):
        return [self.build(self.net[0].parameters()), self.build(self.net[2].parameters())]


def trainer(folder, epochs=1, precision="32-true", **options):
    """A trainer that says nothing and writes nothing."""
    silent = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    # By its name alone a trainer would not take float16 on the CPU.
    plugin = None if precision == "32-true" else pl.plugins.MixedPrecision(precision, "cpu")
    options = {**dict.fromkeys(silent, False), "plugins": plugin, **options}
    return pl.Trainer(accelerator="cpu", max_epochs=epochs, default_root_dir=folder, **options)


def fit(folder, module, **options):
    """The module, trained."""
    trainer(folder, **options).fit(module, batches())
    return module


def ours_of(module):
    """The optimizer that a module was trained by, without its wrapper."""
    return module.optimizers(use_pl_optimizer=False)


@pytest.mark.parametrize(
    ("kind", "precision"), [(Regression, "32-true"), (ByHand, "32-true"), (Regression, "16-mixed")]
)
@first_steps_may_overflow
@all_classes
def test_resumed_fit_is_the_uninterrupted_one(rule, kind, precision, tmp_path):
    whole, half, resumed = (kind(partial(rule.build, reader="default")) for _ in range(3))
    checkpoint = tmp_path / "half.ckpt"
    fit(tmp_path, whole, epochs=2, precision=precision)
    interrupted = trainer(tmp_path, precision=precision)
    interrupted.fit(half, batches())
    interrupted.save_checkpoint(checkpoint)
    trainer(tmp_path, epochs=2, precision=precision).fit(resumed, batches(), ckpt_path=checkpoint, weights_only=True)
    assert not same(values(half.parameters()), values(whole.parameters()))
    assert same(values(resumed.parameters()), values(whole.parameters()))
    assert same_state(ours_of(resumed), ours_of(whole))
    assert ours_of(resumed).param_groups[0]["lr"] == ours_of(whole).param_groups[0]["lr"]


OPTIONS = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "clipped": {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@exact_and_chosen
@with_twins
def test_fit_moves_as_with_torchs_class(rule, reader, options, tmp_path):
    ours = fit(tmp_path, Regression(partial(rule.build, reader=reader)), **options)
    torchs = fit(tmp_path, Regression(rule.build_twin), **options)
    assert_moves_as_torchs(reader, ours, torchs)


@pytest.mark.parametrize("kind", [ByHand, InTurns])
@exact_and_chosen
@with_twins
def test_steps_by_hand_move_as_with_torchs_class(rule, reader, kind, tmp_path):
    ours = fit(tmp_path, kind(partial(rule.build, reader=reader)))
    torchs = fit(tmp_path, kind(rule.build_twin))
    assert_moves_as_torchs(reader, ours, torchs)


@all_classes
def test_steps_by_hand_are_those_of_the_trainer(rule, tmp_path):
    by_hand, by_trainer = (fit(tmp_path, kind(partial(rule.build, reader="default"))) for kind in (ByHand, Regression))
    assert same(values(by_hand.parameters()), values(by_trainer.parameters()))


@first_steps_may_overflow
@with_twins
def test_mixed_precision_moves_as_with_torchs_class(rule, tmp_path):
    # Not the chosen reader: what its last digit does to activations in half precision has no bound.
    options = {"precision": "16-mixed", "gradient_clip_val": 0.1}
    ours = fit(tmp_path, Regression(partial(rule.build, reader="single")), **options)
    torchs = fit(tmp_path, Regression(rule.build_twin), **options)
    assert not same(values(ours.parameters()), values(network().parameters()))
    assert_moves_as_torchs("single", ours, torchs)


@all_classes
def test_trainer_may_not_clip_what_a_fused_step_unscales_by_itself(rule, tmp_path):
    module = Regression(partial(rule.build, reader="fused"))
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(tmp_path, module, precision="16-mixed", gradient_clip_val=0.1)


def assert_shows(wrapper, optimizer):
    """Is a wrapper taken for our optimizer, and does it show what that one has?"""
    assert wrapper is not optimizer
    assert isinstance(wrapper, type(optimizer))
    assert wrapper.param_groups is optimizer.param_groups
    assert wrapper.state is optimizer.state
    assert wrapper.state_dict().keys() == optimizer.state_dict().keys()
    assert same_state(wrapper, optimizer)
    assert wrapper.explain().entries == optimizer.explain().entries
    assert wrapper.kernel_source() == optimizer.kernel_source()


@all_classes
def test_trainers_wrapper_shows_our_optimizer(rule, tmp_path):
    module = fit(tmp_path, ByHand(partial(rule.build, reader="default")))
    assert_shows(module.optimizers(), ours_of(module))


# ## Fabric


def set_up(build):
    """Fabric with its network and optimizer."""
    fabric = fabrics.Fabric(accelerator="cpu", devices=1)
    net = network()
    return fabric, *fabric.setup(net, build(net.parameters()))


def train(fabric, net, optimizer, clip=None):
    """An epoch."""
    for batch in batches():
        optimizer.zero_grad()
        fabric.backward(loss_of(net, batch))
        if clip:
            fabric.clip_gradients(net, optimizer, **clip)
        optimizer.step()


@all_classes
def test_resumed_fabric_run_is_the_uninterrupted_one(rule, tmp_path):
    build, checkpoint = partial(rule.build, reader="default"), tmp_path / "half.ckpt"
    whole, half, resumed = (set_up(build) for _ in range(3))
    train(*whole)
    train(*whole)
    fabric, net, optimizer = half
    train(*half)
    fabric.save(checkpoint, {"net": net, "optimizer": optimizer})
    fabric, net, optimizer = resumed
    fabric.load(checkpoint, {"net": net, "optimizer": optimizer}, weights_only=True)
    train(*resumed)
    assert same(values(net.parameters()), values(whole[1].parameters()))
    assert same_state(optimizer, whole[2])


@pytest.mark.parametrize("clip", [None, {"max_norm": 0.1}, {"clip_val": 0.1}], ids=["plain", "norm", "value"])
@exact_and_chosen
@with_twins
def test_fabric_moves_as_with_torchs_class(rule, reader, clip):
    ours, torchs = set_up(partial(rule.build, reader=reader)), set_up(rule.build_twin)
    train(*ours, clip)
    train(*torchs, clip)
    assert_moves_as_torchs(reader, ours[1], torchs[1])


@all_classes
def test_fabrics_wrapper_shows_our_optimizer(rule):
    fabric, net, wrapper = set_up(partial(rule.build, reader="default"))
    assert [e.reader for e in wrapper.explain().entries] == [e.reader for e in wrapper.optimizer.explain().entries]
    train(fabric, net, wrapper)
    assert_shows(wrapper, wrapper.optimizer)


@all_classes
def test_state_that_is_forgotten_through_a_wrapper_begins_anew(rule):
    ours, fresh = (set_up(partial(rule.build, reader="default")) for _ in range(2))
    train(*ours)
    ours[2].state.clear()
    ours[1].load_state_dict(network().state_dict())
    train(*ours)
    train(*fresh)
    assert same(values(ours[1].parameters()), values(fresh[1].parameters()))
