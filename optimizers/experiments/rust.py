r"""
---
title: The Rust baseline
summary: Adam's loop as one writes it in Rust, called as ours is.
---

# The Rust baseline

How fast is a loop that somebody wrote for its purpose? Here is one in Rust: a function of $\alpha$, $\beta_1$,
$\beta_2$, $\epsilon$, a gradient and a point, plain and with the update reordered. It is compiled with all
optimisations for this processor, and is called from Python through ctypes, so that it is timed as ours is.

It needs `rustc` on the path: `apt-get install rustc`, or [rustup](https://rustup.rs).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = """\
pub struct Adam {
    alpha: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
}

/// Walk until a step is shorter than `tolerance`; gives the number of steps.
fn minimize(
    adam: &Adam,
    reordered: bool,
    gradient: impl Fn(&[f64], &mut [f64]),
    theta: &mut [f64],
    steps: usize,
    tolerance: f64,
) -> usize {
    let &Adam { alpha, beta1, beta2, epsilon } = adam;
    assert!((0.0..1.0).contains(&beta1) && (0.0..1.0).contains(&beta2));
    let zeros = || vec![0.0; theta.len()];
    let (mut g, mut m, mut v, mut delta) = (zeros(), zeros(), zeros(), zeros());
    let (mut power1, mut power2) = (1.0, 1.0);
    for step in 1..=steps {
        gradient(theta, &mut g);
        power1 *= beta1;
        power2 *= beta2;
        let (correction1, correction2) = (1.0 - power1, 1.0 - power2);
        let rate = alpha * correction2.sqrt() / correction1;
        for (((delta, g), m), v) in delta.iter_mut().zip(&g).zip(&mut m).zip(&mut v) {
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *delta = if reordered {
                rate * *m / (v.sqrt() + epsilon)
            } else {
                alpha * (*m / correction1) / ((*v / correction2).sqrt() + epsilon)
            };
        }
        theta.iter_mut().zip(&delta).for_each(|(theta, delta)| *theta -= delta);
        if delta.iter().map(|delta| delta * delta).sum::<f64>() < tolerance * tolerance {
            return step;
        }
    }
    steps
}

#[no_mangle]
pub unsafe extern "C" fn descend(
    theta: *mut f64, n: usize, alpha: f64, steps: usize, tolerance: f64, reordered: bool,
) -> usize {
    let adam = Adam { alpha, beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
    let theta = std::slice::from_raw_parts_mut(theta, n);
    let gradient = |theta: &[f64], g: &mut [f64]| theta.iter().zip(g).for_each(|(x, g)| *g = 2.0 * x);
    minimize(&adam, reordered, gradient, theta, steps, tolerance)
}
"""

FLAGS = ("--edition=2021", "--crate-type=cdylib", "-Copt-level=3", "-Ctarget-cpu=native", "-Cpanic=abort")


class Rust:
    """## The baseline, compiled. Raises `RuntimeError` where that can't be done"""

    def __init__(self) -> None:
        compiler = shutil.which("rustc")
        if compiler is None:
            raise RuntimeError("rustc is not on the path")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "adam.so"
            command = [compiler, *FLAGS, "-", "-o", str(library)]
            answer = subprocess.run(command, input=SOURCE, capture_output=True, text=True)
            if answer.returncode != 0:
                raise RuntimeError(f"rustc failed:\n{answer.stderr.strip()}")
            # What is loaded stays when the file goes.
            self._descend = ctypes.CDLL(str(library)).descend
        number, count = ctypes.c_double, ctypes.c_size_t
        self._descend.argtypes = (ctypes.c_void_p, count, number, count, number, ctypes.c_bool)
        self._descend.restype = count

    def minimize(self, x0: Any, lr: float, steps: int, tol: float, reordered: bool) -> tuple[Any, int]:
        """### From `x0`: where it ends, after how many steps"""
        x = np.array(x0)
        return x, self._descend(x.__array_interface__["data"][0], x.size, lr, steps, tol, reordered)
