"""The main job: it learns, it compares, it reads MNIST's files, and it says clearly what it can't read."""

from __future__ import annotations

import argparse
import gzip
import math
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import optimizers
from optimizers.experiments import mnist as job
from optimizers.experiments import report
from optimizers.experiments.console import LINES, PlainText, is_shown
from optimizers.experiments.data import DataError, Dataset, digits, mnist, noise, read_idx
from optimizers.experiments.training import Run, index_batches, loader_batches, make_model, suitable_threads, train


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads gain nothing on models this small, and wait long for each other on a busy machine"""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in:\n{text}"
    return float(found[1])


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a refused command line, which ends with code 2 and prints no traceback"""
    with pytest.raises(SystemExit) as stopped:
        job.main(arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message.rpartition("error: ")[2]


def idx(values: bytes, *shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


def mnist_files(rows: int = 40, size: int = 28) -> dict[str, bytes]:
    """The four files, with a bright row of pixels where the label says"""
    files = {}
    for part in ("train", "t10k"):
        labels = bytes(row % 10 for row in range(rows))
        blank = bytes(size)
        images = b"".join(bytes([255] * size) if line == label else blank for label in labels for line in range(size))
        files[f"{part}-images-idx3-ubyte"] = idx(images, rows, size, size)
        files[f"{part}-labels-idx1-ubyte"] = idx(labels, rows)
    return files


def write(folder: Path, files: dict[str, bytes], gz: bool = False) -> Path:
    for name, content in files.items():
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(content) if gz else content)
    return folder


# Training


def test_the_defaults_reach_97_percent_on_digits_not_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([]) == 0
    output = capsys.readouterr().out
    assert number(r"validation accuracy +([\d.]+) %", output) >= 97.0
    assert number(r"training accuracy +([\d.]+) %", output) >= 97.0
    assert 0 < number(r"of which ([\d.]+) % in step", output) < 100


def test_a_run_is_the_same_when_repeated_and_another_with_another_seed() -> None:
    def losses(seed: int) -> list[list[float]]:
        args = argparse.Namespace(
            optimizer="Adam", model="mlp", lr=1e-3, epochs=1, batch_size=64, seed=seed, compare=False
        )
        runs = job.make_runs(args, digits())
        runs[0].train_epoch()
        return runs[0].losses

    torch.manual_seed(1)
    first = losses(seed=3)
    torch.manual_seed(2)
    assert losses(seed=3) == first
    assert losses(seed=4) != first


@pytest.mark.parametrize("name", job.rules())
def test_every_rule_of_the_package_trains(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--optimizer", name, "--epochs", "2"]) == 0
    assert number(r"training accuracy +([\d.]+) %", capsys.readouterr().out) > 50


def test_the_rules_are_found_and_the_base_is_none_of_them() -> None:
    assert {"Adam", "AdamW", "SGD", "RMSprop"} <= set(job.rules())
    assert not {"GenericAdaptiveOptimizer", "WeightDecay"} & set(job.rules())


def test_a_rule_trains_at_the_rate_of_its_signature_and_sgd_at_a_tenth() -> None:
    assert job.default_lr(optimizers.Adam) == 1e-3
    assert job.default_lr(optimizers.RMSprop) == 1e-2
    assert job.default_lr(optimizers.SGD) == 0.1


def test_the_options_that_a_rule_is_given_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--optimizer", "Noam", "--epochs", "1", "--lr", "0.5"]) == 0
    assert "\nNoam, lr 0.5, warmup 9; 1 epochs in batches of 16" in capsys.readouterr().out


def test_rprop_does_not_blow_up_on_mini_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--optimizer", "Rprop", "--epochs", "4"]) == 0
    assert number(r" 4: +loss: +([\d.]+)", capsys.readouterr().out) < 0.5


def test_the_cnn_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main(["--model", "cnn", "--epochs", "2", "--batch-size", "32", "--lr", "0.003"]) == 0
    assert number(r"validation accuracy +([\d.]+) %", capsys.readouterr().out) > 80


def test_index_batches_are_each_row_once_in_another_order_each_epoch() -> None:
    rows = torch.arange(10)
    batches = index_batches(rows, rows, batch_size=4, seed=0)
    first, second = ([images for images, _ in batches()] for _ in range(2))
    assert [len(batch) for batch in first] == [4, 4, 2]
    for epoch in first, second:
        assert torch.cat(epoch).sort().values.equal(rows)
    assert not torch.cat(first).equal(torch.cat(second))


def test_a_dataloader_gives_each_row_once() -> None:
    rows = torch.arange(10)
    assert sorted(row for images, _ in loader_batches(rows, rows, 4, seed=0)() for row in images.tolist()) == [
        *range(10)
    ]


@pytest.mark.parametrize(("data", "threads"), [(digits(), 1), (noise(rows=2), 2)])
def test_tiny_images_are_trained_by_one_thread_and_all_threads_are_there_afterwards(
    data: Dataset, threads: int
) -> None:
    torch.set_num_threads(2)
    with suitable_threads(data):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 2


def test_making_a_model_leaves_the_generator_of_torch_alone() -> None:
    before = torch.get_rng_state()
    make_model("mlp", noise(rows=2), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


# Comparing and plotting


@pytest.mark.parametrize("name", [name for name in job.rules() if hasattr(torch.optim, name)])
def test_compare_reports_both_curves_their_difference_and_the_steps(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.main(["--compare", "--optimizer", name, "--epochs", "2"]) == 0
    output = capsys.readouterr().out
    assert re.search(rf"epoch +{name} +torch\.optim\.{name} +difference", output)
    assert len(re.findall(r"^ +[12] +\d+\.\d+ +\d+\.\d+ +\S+$", output, re.MULTILINE)) == 2
    assert number(r"largest difference of the losses of a mini-batch: (\S+)", output) < 1e-3
    ours, theirs, ratio = map(float, re.findall(r"median step, us +([\d.]+) +([\d.]+) +([\d.]+)", output)[0])
    assert ratio == pytest.approx(ours / theirs, abs=0.01)


def test_compare_without_a_twin_in_torch_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unheard(optimizers.Adam):
        pass

    monkeypatch.setattr(optimizers, "Unheard", Unheard, raising=False)
    monkeypatch.setattr(optimizers, "__all__", [*optimizers.__all__, "Unheard"])
    message = error_of(["--compare", "--optimizer", "Unheard"], capsys)
    assert "torch.optim has no Unheard" in message
    assert "Leave --compare out" in message


def test_the_largest_difference_is_of_single_batches_and_shows_nan() -> None:
    data = noise(rows=4)
    ours, theirs = (
        Run("", make_model("mlp", data, 0), None, list, losses=losses)  # type: ignore[arg-type]
        for losses in ([[1.0, 2.0], [3.0, math.inf]], [[2.0, 1.0], [3.0, math.inf]])
    )
    assert ours.mean_losses[0] == theirs.mean_losses[0]
    assert report.largest_difference(ours, theirs) == 1.0
    theirs.losses[0][0] = math.nan
    assert math.isnan(report.largest_difference(ours, theirs))


@pytest.mark.parametrize("arguments", [["--compare", "--epochs", "2"], ["--epochs", "1"]])
def test_a_plot_is_written_where_it_was_asked_for(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    assert job.main([*arguments, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_a_diverged_run_is_reported_and_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "curves.png"
    arguments = ["--optimizer", "SGD", "--lr", "1e30", "--epochs", "2", "--compare", "--plot", str(path)]
    assert job.main(arguments) == 0
    assert path.exists()
    assert "largest difference of the losses of a mini-batch: nan" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plot", "curves.jpg"], ".png"),
        (["--plot", "no/such/folder/curves.png"], "no folder"),
        (["--lr", "-1"], "positive"),
        (["--lr", "nan"], "positive"),
        (["--epochs", "0"], "at least 1"),
        (["--batch-size", "x"], "whole_number"),
        (["--seed", "-1"], "--seed"),
        (["--optimizer", "Adamm"], "Adamm"),
        (["--preset", "rust-libtorch", "--compare"], "compares anyway"),
    ],
)
def test_wrong_arguments_are_refused_before_the_work(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in error_of(arguments, capsys)


# MNIST's files


@pytest.mark.parametrize("gz", [False, True])
def test_mnist_is_read_plain_and_gzipped(gz: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, mnist_files(), gz)
    data = mnist(tmp_path)
    assert data.train_images.shape == (40, 1, 28, 28)
    assert data.train_labels.tolist() == [row % 10 for row in range(40)]
    assert data.valid_images[3].sum(dim=-1).flatten().tolist() == [28.0 if line == 3 else 0.0 for line in range(28)]
    assert job.main(["--data", str(tmp_path), "--epochs", "1"]) == 0
    assert "MLP 784-128-10 on MNIST: 40 rows to train on" in capsys.readouterr().out


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def damaged(kind: str, folder: Path) -> None:
    files = mnist_files()
    images, labels = files[IMAGES], files[LABELS]
    damages: dict[str, dict[str, bytes]] = {
        "missing": {},
        "cut short": {IMAGES: images[:-100]},
        "no header": {IMAGES: images[:10]},
        "too long": {IMAGES: images + b"\0"},
        "empty": {LABELS: b""},
        "no rows": {LABELS: idx(b"", 0)},
        "a huge promise": {IMAGES: idx(b"", 2**32 - 1, 2**32 - 1, 2**32 - 1)},
        "magic": {IMAGES: b"\0\0\x0d\3" + images[4:]},
        "swapped": {IMAGES: labels},
        "a page of HTML": {LABELS: b"<html>404 not found</html>"},
        "counts": {LABELS: idx(bytes(39), 39)},
        "label": {LABELS: labels[:-1] + b"\x0a"},
        "sizes": {name: content for name, content in mnist_files(size=20).items() if name.startswith("t10k")},
        "not gzip": {IMAGES + ".gz": images},
        "gzip cut short": {IMAGES + ".gz": gzip.compress(images)[:-20]},
        "gzip header only": {IMAGES + ".gz": gzip.compress(images)[:6]},
        "gzip garbled": {IMAGES + ".gz": gzip.compress(images)[:20] + b"\xff" * 60 + gzip.compress(images)[80:]},
        "gzip checksum": {IMAGES + ".gz": gzip.compress(images)[:-8] + bytes(8)},
    }
    files.update(damages[kind])
    if kind == "missing" or "gzip" in kind:
        del files[IMAGES]
    write(folder, files)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", f"neither {IMAGES} nor {IMAGES}.gz"),
        ("cut short", "truncated"),
        ("no header", "truncated"),
        ("too long", "corrupt"),
        ("empty", "truncated"),
        ("no rows", "empty"),
        ("a huge promise", "truncated"),
        ("magic", "starts with 00000d03, not 00000803"),
        ("swapped", "starts with 00000801, not 00000803"),
        ("a page of HTML", "no IDX file"),
        ("counts", "40 images"),
        ("label", "label 10 in row 39"),
        ("sizes", "28 x 28"),
        ("not gzip", "not a sound gzip file"),
        ("gzip cut short", "truncated"),
        ("gzip header only", "truncated"),
        ("gzip garbled", "not a sound gzip file"),
        ("gzip checksum", "not a sound gzip file"),
    ],
)
def test_a_damaged_file_is_named_and_explained(
    kind: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(kind, tmp_path)
    message = error_of(["--data", str(tmp_path)], capsys)
    assert words in message
    assert str(tmp_path) in message


def test_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in error_of(["--data", str(tmp_path / "nowhere")], capsys)
    (tmp_path / "file").touch()
    assert "is not a folder" in error_of(["--data", str(tmp_path / "file")], capsys)


def test_a_file_that_is_a_folder_is_an_error_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        read_idx(tmp_path, dimensions=1)


# The preset


def test_the_preset_times_noise_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "noise", lambda seed: noise(rows=600, seed=seed))
    assert job.main(["--preset", "rust-libtorch", "--epochs", "2"]) == 0
    output = capsys.readouterr().out
    assert "600 rows" in output
    assert "these rows are noise" in output
    assert "accuracy" not in output
    ours, theirs, ratio = map(float, re.findall(r"median epoch, s +([\d.]+) +([\d.]+) +([\d.]+)", output)[0])
    assert 0 < ratio
    assert min(ours, theirs) > 0


def test_the_preset_with_mnist_reports_accuracies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, mnist_files(rows=200))
    assert job.main(["--preset", "rust-libtorch", "--epochs", "30", "--data", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert "noise" not in output
    assert [float(share) for share in re.findall(r"validation accuracy +([\d.]+) %", output)] == [100.0, 100.0]


def test_the_preset_is_the_experiment_it_names() -> None:
    args = job.make_parser().parse_args(["--preset", "rust-libtorch"])
    job.settle(args)
    assert (args.epochs, args.batch_size, args.lr) == (100, 128, 0.3)
    ours, theirs = job.make_preset_runs(args, noise(rows=10))
    assert [tuple(p.shape) for p in ours.model.parameters()] == [(128, 784), (128,), (10, 128), (10,)]
    group = ours.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["moving_average"]) == (0.3, 0.9, True)
    assert type(theirs.optimizer) is torch.optim.SGD


def test_the_velocity_of_the_preset_persists_from_step_to_step() -> None:
    args = job.make_parser().parse_args(["--preset", "rust-libtorch", "--batch-size", "10", "--lr", "0.3"])
    run = job.make_preset_runs(args, noise(rows=10))[0]
    bias = run.model[3].bias  # type: ignore[index]
    run.train_epoch()
    first = bias.grad.clone()
    run.train_epoch()
    torch.testing.assert_close(run.optimizer.state[bias]["momentum_buffer"], 0.9 * 0.1 * first + 0.1 * bias.grad)


# The console


def test_piped_output_is_plain_short_and_leaves_no_files(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    folder.mkdir()
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "optimizers.experiments.mnist", "--epochs", "25"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert not re.search(r"[^\n -~]", done.stdout)
    lines = done.stdout.splitlines()
    assert len(lines) < 12 + LINES
    assert max(map(len, lines)) <= 120
    assert "   25:   loss:" in done.stdout
    assert list(folder.iterdir()) == []
    # A compiled kernel may be kept in the user's cache; nothing else may be there.
    assert {file.name for file in home.iterdir()} <= {".cache"}


def test_nothing_is_sent_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert job.main(["--epochs", "1"]) == 0


def test_plain_text_keeps_what_a_terminal_would_show(capsys: pytest.CaptureFixture[str]) -> None:
    plain = PlainText(sys.stdout)
    plain.write("\r     \r\x1b[1mold\x1b[0m")
    plain.write("\r     \r\x1b[33mnew\x1b[0m  ")
    plain.write("\r\nplain\n\runfinished")
    assert capsys.readouterr().out == "new\nplain\n"
    plain.finish()
    assert capsys.readouterr().out == "unfinished\n"


@pytest.mark.parametrize("epochs", [1, 2, 9, 10, 11, 19, 25, 40, 100, 1000])
def test_about_ten_epochs_are_shown_the_first_and_the_last_among_them(epochs: int) -> None:
    shown = [epoch for epoch in range(1, epochs + 1) if is_shown(epoch, epochs)]
    assert shown[0] == 1
    assert shown[-1] == epochs
    assert min(epochs, LINES // 2) <= len(shown) <= LINES + 1


def test_a_second_run_shows_nothing_of_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    data = noise(rows=20)
    args = argparse.Namespace(optimizer="Adam", model="mlp", lr=1e-3, epochs=1, batch_size=10, seed=0, compare=True)
    train(job.make_runs(args, data), data, epochs=1)
    capsys.readouterr()
    args.compare = False
    train(job.make_runs(args, data), data, epochs=1)
    assert "torch.optim" not in capsys.readouterr().out
