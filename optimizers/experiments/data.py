"""
---
title: The data
summary: Handwritten digits from scikit-learn or from MNIST's own files, and noise for timing.
---

# The data

Three sources give the same `Dataset`, tensors that fit into memory:

* `digits` are the 1,797 images of 8 by 8 pixels that ship inside scikit-learn: nothing is downloaded.
* `mnist` reads the original files of MNIST, by LeCun, Cortes and Burges, plain or gzipped.
* `noise` has the shape of MNIST and nothing to learn. It is for timing where MNIST is not at hand.

## The IDX format

MNIST's files start with two zero bytes, the code of a type (8 for unsigned bytes) and the number of dimensions.
The dimensions follow as big-endian 32-bit integers, then the values, and nothing else. So every byte of a
sound file is accounted for, and a damaged one can be told from it. Whatever is wrong is a `DataError` that
says what, why, and what to do.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

#: What to do about a damaged file.
_FETCH_AGAIN = "Fetch it again, and compare its size with the original's"


class DataError(ValueError):
    """## Data that can't be used: what, why, and what to do"""


@dataclass(frozen=True)
class Dataset:
    r"""
    ## Images and labels, to train on and to validate with

    Images are float32 in $[0, 1]$ of shape `[rows, 1, height, width]`; labels are int64 in $0 \dots 9$ of
    shape `[rows]`. `epochs` and `batch_size` are a recipe that suits the data, used where nothing else is asked for.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    valid_images: Tensor
    valid_labels: Tensor
    epochs: int
    batch_size: int


def digits() -> Dataset:
    """
    ## The digits of scikit-learn

    A fifth of each digit is for validation, always the same rows, so that runs with different seeds compare.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels, dtype=torch.int64)
    train, valid = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    return Dataset(
        "scikit-learn's digits", images[train], targets[train], images[valid], targets[valid], epochs=40, batch_size=16
    )


def mnist(folder: Path) -> Dataset:
    """## MNIST from a folder with its four original files"""
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(f"--data {folder}: {reason}. Give the folder that holds train-images-idx3-ubyte and the like")
    train_images, train_labels = _pair(folder, "train")
    valid_images, valid_labels = _pair(folder, "t10k")
    if train_images.shape[1:] != valid_images.shape[1:]:
        raise DataError(
            f"{folder}: the images to train on have {_times(train_images.shape[2:])} pixels, those of t10k "
            f"{_times(valid_images.shape[2:])}. All must have the same size; take both from one source"
        )
    return Dataset("MNIST", train_images, train_labels, valid_images, valid_labels, epochs=10, batch_size=128)


def noise(rows: int = 60_000, seed: int = 0) -> Dataset:
    """## Rows of 784 random numbers with random labels, for timing only"""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(rows, 1, 28, 28, generator=generator)
    labels = torch.randint(10, (rows,), generator=generator)
    few = min(rows, 1000)
    return Dataset("noise", images, labels, images[:few], labels[:few], epochs=10, batch_size=128)


def _pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """### The images and the labels of one part, checked against each other"""
    image_path, label_path = _find(folder, f"{part}-images-idx3-ubyte"), _find(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(image_path, dimensions=3), read_idx(label_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{image_path.name} holds {len(images):,} images and {label_path.name} {len(labels):,} labels. "
            f"The counts must agree; take both files from one source (folder {folder})"
        )
    if labels.max() > 9:
        row = int((labels > 9).nonzero()[0])
        raise DataError(f"{label_path}: label {int(labels[row])} in row {row}, but digits are 0 to 9. {_FETCH_AGAIN}")
    return images.unsqueeze(1).float().div_(255.0), labels.long()


def _find(folder: Path, name: str) -> Path:
    """### The file of a name, plain or gzipped"""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder}: neither {name} nor {name}.gz is there. MNIST's four files are needed; add the missing")


def read_idx(path: Path, dimensions: int) -> Tensor:
    """
    ## An IDX file of unsigned bytes as a tensor

    The result is uint8 with `dimensions` dimensions, none of them empty. Raises `DataError`.
    """
    content = _read_bytes(path)
    shape = _read_shape(path, content, dimensions)
    start, size = 4 + 4 * dimensions, math.prod(shape)
    there = len(content) - start
    if there != size:
        raise DataError(
            f"{path} is {'truncated' if there < size else 'corrupt'}: its header promises "
            f"{_times(shape)} = {size:,} bytes of values, and {there:,} are there. {_FETCH_AGAIN}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)


def _read_shape(path: Path, content: bytes, dimensions: int) -> tuple[int, ...]:
    """### What the header says"""
    end, expected = 4 + 4 * dimensions, bytes([0, 0, 8, dimensions])
    if len(content) < end:
        raise DataError(f"{path} is truncated: {len(content)} bytes, less than a header. {_FETCH_AGAIN}")
    if content[:4] != expected:
        raise DataError(
            f"{path} is no IDX file of {dimensions}-dimensional bytes: it starts with {content[:4].hex()}, "
            f"not {expected.hex()}. {_FETCH_AGAIN}; a gzipped file must be named .gz"
        )
    shape = struct.unpack(f">{dimensions}I", content[4:end])
    if 0 in shape:
        raise DataError(f"{path} is empty: its header says {_times(shape)} values. {_FETCH_AGAIN}")
    return shape


def _read_bytes(path: Path) -> bytes:
    """### The content of a file, unpacked if it is named .gz"""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except EOFError as error:
        raise DataError(f"{path} is truncated: its gzip stream ends early. {_FETCH_AGAIN}") from error
    except (gzip.BadGzipFile, zlib.error, struct.error) as error:
        raise DataError(f"{path} is corrupt: not a sound gzip file ({error}). {_FETCH_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}. Check the file and its permissions") from error


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(f"{size:,}" for size in shape)
