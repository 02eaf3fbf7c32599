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
    schedule=None,
):
    """
    Kingma and Ba 2015, Algorithm 1, and the reordered form at the end of its section 2; AMSGrad as in torch.

    With `schedule` the learning rate at step t is `schedule(t)`; a decay follows it.
    """
    beta1, beta2 = betas
    m, v, v_max = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        lr = schedule(t) if schedule else lr
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


def nadam(
    theta,
    grads,
    *,
    lr=2e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decay=L2,
    momentum_decay=4e-3,
    maximize=False,
):
    """Dozat 2016, Algorithm 2, with the schedule of mu at the end of its section 2 as torch has it."""
    beta1, beta2 = betas
    mu = [beta1 * (1 - 0.5 * 0.96 ** (i * momentum_decay)) for i in range(len(grads) + 2)]
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        g_hat = g / (1 - np.prod(mu[1 : t + 1]))
        m_hat = m / (1 - np.prod(mu[1 : t + 2]))
        v_hat = v / (1 - beta2**t)
        theta = theta - lr * ((1 - mu[t]) * g_hat + mu[t + 1] * m_hat) / (np.sqrt(v_hat) + eps)
        path.append(theta)
    return path


def adamax(theta, grads, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decay=L2, maximize=False):
    """Kingma and Ba 2015, Algorithm 2, its maximum written out over all gradients; eps as in the notes of torch."""
    beta1, beta2 = betas
    m = np.zeros_like(theta)
    path, sizes = [], []
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        m = beta1 * m + (1 - beta1) * g
        sizes.append(np.abs(g) + eps)
        u = np.max([beta2 ** (t - i) * size for i, size in enumerate(sizes, 1)], axis=0)
        theta = theta - lr / (1 - beta1**t) * m / u
        path.append(theta)
    return path


def adagrad(
    theta,
    grads,
    *,
    lr=1e-2,
    lr_decay=0.0,
    eps=1e-10,
    initial_accumulator_value=0.0,
    weight_decay=0.0,
    decay=L2,
    maximize=False,
):
    """Duchi, Hazan and Singer 2011, the diagonal form of figure 1 without a projection; lr_decay as in torch."""
    path, seen = [], []
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        seen.append(g)
        size = np.sqrt(initial_accumulator_value + sum(s**2 for s in seen))
        theta = theta - lr / (1 + (t - 1) * lr_decay) * g / (size + eps)
        path.append(theta)
    return path


def adadelta(theta, grads, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, decay=L2, maximize=False):
    """Zeiler 2012, Algorithm 1, with RMS[x] = sqrt(E[x^2] + eps)."""
    mean_g2, mean_x2 = np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for g in grads:
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        mean_g2 = rho * mean_g2 + (1 - rho) * g**2
        x = -np.sqrt(mean_x2 + eps) / np.sqrt(mean_g2 + eps) * g
        mean_x2 = rho * mean_x2 + (1 - rho) * x**2
        theta = theta + lr * x
        path.append(theta)
    return path


def rprop(theta, grads, *, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50), maximize=False):
    """Riedmiller and Braun 1993, without weight backtracking: element by element, as the paper's listing is."""
    eta_minus, eta_plus = etas
    smallest, largest = step_sizes
    theta = theta.copy()
    last, eta = np.zeros_like(theta), np.full_like(theta, lr)
    path = []
    for g in grads:
        g = np.array(-g if maximize else g)
        for i in np.ndindex(theta.shape):
            if last[i] * g[i] > 0:
                eta[i] = min(eta[i] * eta_plus, largest)
            elif last[i] * g[i] < 0:
                eta[i] = max(eta[i] * eta_minus, smallest)
                g[i] = 0
            theta[i] -= np.sign(g[i]) * eta[i]
            last[i] = g[i]
        path.append(theta.copy())
    return path


def asgd(theta, grads, *, lr=1e-2, lambd=1e-4, alpha=0.75, weight_decay=0.0, decay=L2, maximize=False, **averaging):
    """
    Bottou's notes on stochastic gradient descent, section 5: eta_t = eta_0 (1 + lambda eta_0 t)^-a. The average
    (`averaging`) does not change the path.
    """
    path = []
    for t, g in enumerate(grads):
        g = -g if maximize else g
        eta = lr / (1 + lambd * lr * t) ** alpha
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        theta = theta - eta * (g + lambd * theta)
        path.append(theta)
    return path


def radam(
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
    reordered=True,
    degenerated_to_sgd=True,
    belief=False,
    rectify=True,
):
    """
    Liu et al. 2020, Algorithm 2, rectified from rho > 5 on; with `belief`, Zhuang et al. 2020, Algorithm 2, with eps
    added to the variance too.
    """
    beta1, beta2 = betas
    rho_inf = 2 / (1 - beta2) - 1
    m, v, v_max = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for t, g in enumerate(grads, 1):
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g - m if belief else g) ** 2
        v_max = np.maximum(v_max, v)
        second = (v_max if amsgrad else v) + (eps if belief else 0.0)
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        m_hat = m / (1 - beta1**t)
        if reordered:
            length = np.sqrt(1 - beta2**t) / (np.sqrt(second) + eps)
        else:
            length = 1 / (np.sqrt(second / (1 - beta2**t)) + eps)
        if not rectify:
            theta = theta - lr * m_hat * length
        elif rho > 5:
            r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
            theta = theta - lr * r * m_hat * length
        elif degenerated_to_sgd:
            theta = theta - lr * m_hat
        path.append(theta)
    return path


def lion(theta, grads, *, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, decay=DECOUPLED, maximize=False):
    """Chen et al. 2023, Algorithm 2."""
    beta1, beta2 = betas
    m = np.zeros_like(theta)
    path = []
    for g in grads:
        g = -g if maximize else g
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        theta = theta - lr * np.sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g
        path.append(theta)
    return path


def ademamix(
    theta,
    grads,
    *,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    beta3=0.9999,
    alpha=5.0,
    warmup=0,
    weight_decay=0.0,
    decay=L2,
):
    """Pagliardini et al. 2024, Algorithm 1, with the schedulers of its section 3."""
    beta1, beta2 = betas
    m, n, v = np.zeros_like(theta), np.zeros_like(theta), np.zeros_like(theta)
    path = []
    for t, g in enumerate(grads, 1):
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        slow, weight = beta3, alpha
        if t < warmup:
            # Half-lives, in steps, go evenly from one to the other.
            life = (1 - t / warmup) / np.log(beta1) + t / warmup / np.log(beta3)
            slow, weight = np.exp(1 / life), alpha * t / warmup
        m = beta1 * m + (1 - beta1) * g
        n = slow * n + (1 - slow) * g
        v = beta2 * v + (1 - beta2) * g**2
        theta = theta - lr * (m / (1 - beta1**t) + weight * n) / (np.sqrt(v / (1 - beta2**t)) + eps)
        path.append(theta)
    return path


def sophia(theta, grads, *, lr=1e-4, betas=(0.9, 0.95), eps=1e-12, rho=0.03, weight_decay=0.0, decay=DECOUPLED):
    """Liu et al. 2023, Algorithm 3, with a curvature of 0 because none was estimated."""
    m = np.zeros_like(theta)
    path = []
    for g in grads:
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        m = betas[0] * m + (1 - betas[0]) * g
        theta = theta - lr / rho * np.clip(m / (0 + eps), -rho, rho)
        path.append(theta)
    return path


def best_quintics(turns):
    """
    Amsel et al. 2025, Algorithm 1: for each turn the odd polynomial of degree 5 that is nearest to 1 wherever singular
    values, from 0.001 on at first, may lie by then. No interval is taken to begin below a share of its end, the paper's
    cushion, and all turns but those at the limit are damped by its safety factor.
    """
    low, high = 1e-3, 1.0
    for turn in range(turns):
        if turn >= 7:
            yield 15 / 8, -10 / 8, 3 / 8
            continue
        # Remez: the error is the same at the ends and at the turning points between them, with signs in turn.
        x = np.linspace(max(low, 0.02407327424182761 * high), high, 4)
        for _ in range(30):
            a, b, c, _ = np.linalg.solve(np.column_stack([x, x**3, x**5, [1, -1, 1, -1]]), np.ones(4))
            x[1:3] = np.sqrt(np.sort(np.roots([5 * c, 3 * b, a])))
        # Without the cushion the least value would be as far below 1 as the largest is above.
        at_low, at_high = (a * end + b * end**3 + c * end**5 for end in (low, high))
        middle = (at_low + at_high) / 2
        low, high = at_low / middle, at_high / middle
        yield a / middle / 1.01, b / middle / 1.01**3, c / middle / 1.01**5


def muon(
    theta,
    grads,
    *,
    lr=1e-3,
    weight_decay=0.1,
    momentum=0.95,
    nesterov=True,
    ns_coefficients=(3.4445, -4.775, 2.0315),
    eps=1e-7,
    ns_steps=5,
    adjust_lr_fn="original",
    polar_express=False,
    decay=DECOUPLED,
):
    """
    Jordan's post of 2024, its products of matrices written as what they do to the singular values; the scale of Liu et
    al. 2025, section 2.2, as `match_rms_adamw`.
    """
    rows, columns = theta.shape
    scale = 0.2 * max(rows, columns) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1, rows / columns) ** 0.5
    turns = list(best_quintics(ns_steps)) if polar_express else [ns_coefficients] * ns_steps
    m = np.zeros_like(theta)
    path = []
    for g in grads:
        theta, g = _decay(theta, g, lr, weight_decay, decay)
        m = momentum * m + (1 - momentum) * g
        direction = momentum * m + (1 - momentum) * g if nesterov else m
        u, x, v = np.linalg.svd(direction, full_matrices=False)
        x = x / max(np.linalg.norm(direction), eps) / (1.01 if polar_express else 1)
        for a, b, c in turns:
            x = a * x + b * x**3 + c * x**5
        theta = theta - lr * scale * (u * x) @ v
        path.append(theta)
    return path
