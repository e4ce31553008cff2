"""SAM and ASAM with SGD momentum or AdamW, written out for flat lists of tensors: what the Trainer is held against."""

import torch


def ascend(weights, gradients, rho, adaptive, eta=0.01):
    scale = [w.abs() + eta if adaptive else torch.ones_like(w) for w in weights]
    norm = sum(((t * g) ** 2).sum() for t, g in zip(scale, gradients, strict=True)).sqrt()
    return [w + rho * t * t * g / norm for w, t, g in zip(weights, scale, gradients, strict=True)]


def sgd(weights, gradients, state, lr, momentum, decay):
    gradients = [g + decay * w for g, w in zip(gradients, weights, strict=True)]
    state["velocity"] = [
        momentum * v + g for v, g in zip(state.get("velocity", [0] * len(weights)), gradients, strict=True)
    ]
    return [w - lr * v for w, v in zip(weights, state["velocity"], strict=True)]


def adamw(weights, gradients, state, lr, decay, betas=(0.9, 0.999), eps=1e-8):
    t = state["t"] = state.get("t", 0) + 1
    zeros = [0] * len(weights)
    old_m, old_v = state.get("m", zeros), state.get("v", zeros)
    state["m"] = [betas[0] * m + (1 - betas[0]) * g for m, g in zip(old_m, gradients, strict=True)]
    state["v"] = [betas[1] * v + (1 - betas[1]) * g * g for v, g in zip(old_v, gradients, strict=True)]
    first, second = ([x / (1 - beta**t) for x in state[key]] for key, beta in zip("mv", betas, strict=True))
    step = [lr * m / (v.sqrt() + eps) for m, v in zip(first, second, strict=True)]
    return [w * (1 - lr * decay) - s for w, s in zip(weights, step, strict=True)]


def clip(gradients, limit):
    norm = sum((g**2).sum() for g in gradients).sqrt()
    return [g * min(1.0, limit / (norm + 1e-6)) for g in gradients]
