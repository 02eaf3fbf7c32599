"""
---
title: Workloads
summary: The shapes that the steps are timed on, from one tensor to GPT-2.
---

# Workloads

A step sees of a model only the shapes of its parameters. So these are lists of shapes:

| workload | tensors | elements | what it is about |
|---|---|---|---|
| 1x128 | 1 | 128 | what a step costs before it does anything |
| MLP 784-128-10 | 4 | 101,770 | the handwritten digits |
| 1000x 64x64 | 1000 | 4,096,000 | what each further tensor costs |
| 465 groups | 465 | 4,486,656 | what each further group costs |
| ResNet-50 | 161 | 25,557,032 | convolutions between many small norms |
| GPT-2 124M | 148 | 124,439,808 | large matrices: how fast memory is |
| GPT-2 1.5B | 580 | 1,557,611,200 | the same on a GPU, which has more of it |

The 465 groups are those of a detection model as its trainers set them up: a group for every tensor, each with its
own learning rate. Here they are 155 layers of 256 channels, each a 1x1 convolution from 16, 64 or 256 channels
(4,096 to 65,536 elements) and a norm with weight and bias (256 each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """## Parameters to step: their shapes, and whether each is a group of its own"""

    name: str
    shapes: tuple[Shape, ...]
    one_group_each: bool = False

    @property
    def elements(self) -> int:
        """### How many numbers the parameters have"""
        return sum(map(math.prod, self.shapes))

    def draw(self, seed: int, scale: float, device: str = "cpu") -> list[Tensor]:
        """### Normal random numbers in these shapes, the same for the same seed and kind of device"""
        generator = torch.Generator(device).manual_seed(seed)
        return [torch.empty(s, device=device).normal_(0.0, scale, generator=generator) for s in self.shapes]

    def arrange(self, params: Sequence[Tensor], lr: float) -> list[Any]:
        """### What an optimizer is given: the parameters, or groups with learning rates from `lr` to 2 `lr`"""
        if not self.one_group_each:
            return list(params)
        return [{"params": [p], "lr": lr * (1 + i / len(params))} for i, p in enumerate(params)]


def workloads(device: str = "cpu") -> list[Workload]:
    """## The rows of the table, from small to large; the last is for GPUs only"""
    rows = [
        Workload("1x128", ((128,),)),
        Workload("MLP 784-128-10", ((128, 784), (128,), (10, 128), (10,))),
        Workload("1000x 64x64", ((64, 64),) * 1000),
        Workload("465 groups", detector(), one_group_each=True),
        Workload("ResNet-50", resnet50()),
        Workload("GPT-2 124M", gpt2()),
        Workload("GPT-2 1.5B", gpt2(width=1600, layers=48)),
    ]
    return rows if device == "cuda" else rows[:-1]


def detector() -> tuple[Shape, ...]:
    """### 155 layers, each a convolution to 256 channels and a norm: 465 tensors"""
    shapes: list[Shape] = []
    for layer in range(155):
        shapes += [(256, (16, 64, 256)[layer % 3], 1, 1), (256,), (256,)]
    return tuple(shapes)


def resnet50() -> tuple[Shape, ...]:
    """
    ### The parameters of ResNet-50, in order

    [Deep Residual Learning](https://arxiv.org/abs/1512.03385), table 1: four stages of bottlenecks, of which the first
    in each stage has a projection beside it. Every convolution is followed by a norm.
    """
    shapes = _convolution(3, 64, 7)
    channels = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += (
                _convolution(channels, width, 1) + _convolution(width, width, 3) + _convolution(width, 4 * width, 1)
            )
            if block == 0:
                shapes += _convolution(channels, 4 * width, 1)
            channels = 4 * width
    return (*shapes, (1000, channels), (1000,))


def _convolution(inputs: int, outputs: int, size: int) -> list[Shape]:
    return [(outputs, inputs, size, size), (outputs,), (outputs,)]


def gpt2(width: int = 768, layers: int = 12) -> tuple[Shape, ...]:
    """
    ### The parameters of GPT-2, in order

    The smallest model, unless told otherwise, of
    [Language Models are Unsupervised Multitask Learners](https://openai.com/index/better-language-models/). The output
    layer is the embedding of the tokens, so it isn't there a second time.
    """
    norm: list[Shape] = [(width,), (width,)]
    attention = _linear(width, 3 * width) + _linear(width, width)
    network = _linear(width, 4 * width) + _linear(4 * width, width)
    block = [*norm, *attention, *norm, *network]
    return ((50257, width), (1024, width), *(block * layers), *norm)


def _linear(inputs: int, outputs: int) -> list[Shape]:
    return [(inputs, outputs), (outputs,)]
