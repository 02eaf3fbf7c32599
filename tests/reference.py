r"""
The rules as their papers print them, one float64 array at a time, with numpy.

Nothing here is shared with the package. Sums are written out instead of updated where the paper allows it, corrected
averages carry their hats, and nothing is reordered to save work. Each function takes the first value of a parameter
and its gradients, and gives its values after each step.
"""

import numpy as np

ABSOLUTE, DECOUPLED, L2 = "absolute", "decoupled", "l2"


def _decay(theta, g, lr, weight_decay, mode):
    """`(theta, g)` after weight decay: Loshchilov and Hutter 2019, Algorithms 1 and 2."""
    if mode == L2:
        return theta, g + weight_decay * theta
    if mode == DECOUPLED:
        return theta - lr * weight_decay * theta, g
    return theta - weight_decay * theta, g


def adam(
    theta,
    grads,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decay=L2,
    amsgrad=False,
    maximize=False,
    reordered=False,
):
    """Kingma and Ba 2015, Algorithm 1, and the reordered form at the end of its section 2; AMSGrad as in torch."""
    beta1, beta2 = betas
    m, v, v_max = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        v_max = np.maximum(v_max, v)
        second = v_max if amsgrad else v
        if reordered:
            alpha_t = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
            theta = theta - alpha_t * m / (np.sqrt(second) + eps)
        else:
            m_hat = m / (1 - beta1**t)
            v_hat = second / (1 - beta2**t)
            theta = theta - lr * m_hat / (np.sqrt(v_hat) + eps)
        path.append(theta)
    return path


def sgd(
    theta,
    grads,
    *,
    lr=1e-3,
    momentum=0.0,
    dampening=0.0,
    weight_decay=0.0,
    decay=L2,
    nesterov=False,
    maximize=False,
):
    """The notes of torch.optim.SGD, where the velocity is made of the first gradient as it is."""
    velocity = None
    path = []
    for g in grads:
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        if momentum:
            velocity = g if velocity is None else momentum * velocity + (1 - dampening) * g
            g = g + momentum * velocity if nesterov else velocity
        theta = theta - lr * g
        path.append(theta)
    return path


def moving_average_sgd(theta, grads, *, lr, momentum):
    """v_t as the sum that it is: (1 - beta) times the sum over i of beta^(t-i) g_i."""
    path, seen = [], []
    for g in grads:
        seen.append(g)
        t = len(seen)
        v = (1 - momentum) * sum(momentum ** (t - i) * g_i for i, g_i in enumerate(seen, 1))
        theta = theta - lr * v
        path.append(theta)
    return path


def rmsprop(
    theta,
    grads,
    *,
    lr=1e-2,
    alpha=0.99,
    eps=1e-8,
    weight_decay=0.0,
    decay=L2,
    momentum=0.0,
    centered=False,
    maximize=False,
):
    """Hinton's lecture 6e; centred as in Graves 2013, equations 38 to 40, with eps outside the root as torch has it."""
    v, g_bar, b = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for g in grads:
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        v = alpha * v + (1 - alpha) * g**2
        g_bar = alpha * g_bar + (1 - alpha) * g
        size = np.sqrt(v - g_bar**2 if centered else v)
        b = momentum * b + g / (size + eps)
        theta = theta - lr * b
        path.append(theta)
    return path
