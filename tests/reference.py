"""Every equation once more: slow, obvious, in numpy and loops, from the paper's text alone."""

import math

import numpy as np


def daam_gate(signal: np.ndarray, delta: np.ndarray, nu: np.ndarray) -> np.ndarray:
    """Eq. 1-7 for one signal `(time,)`."""
    epsilon = 1e-3
    mu = sum(signal) / len(signal)  # eq. 1
    variance = max(sum((x - mu) ** 2 for x in signal) / len(signal), 1e-6)  # eq. 2
    sigma = math.sqrt(variance)
    gate = []
    for x in signal:
        total = 0.0
        for d, n in zip(delta, nu, strict=True):
            scale = math.log(1 + math.exp(n)) + epsilon  # eq. 3
            z = (x - (mu + d)) / (sigma * scale + epsilon)  # eq. 4
            total += math.exp(-0.5 * z**2 - math.log(scale) - 0.5 * math.log(2 * math.pi))  # eq. 5
        gate.append(math.exp(math.log(total) - math.log(len(delta))))  # eq. 6 and 7
    return np.array(gate)


def fsq_values(level: int) -> list[float]:
    """Eq. 13."""
    return [(2 * i - level + 1) / level for i in range(level)]


def fsq_index(latent: float, level: int, temperature: float = 1.0) -> int:
    """Eq. 12 and 14."""
    bounded = math.tanh(latent / temperature)
    distances = [abs(bounded - value) for value in fsq_values(level)]
    return distances.index(min(distances))


def pack(indices: list[int], radices: list[int]) -> int:
    """Eq. 16, with its products written out."""
    token = 0
    for k in range(len(indices)):
        product = 1
        for j in range(k + 1, len(radices)):
            product *= radices[j]
        token += indices[k] * product
    return token


def unpack(token: int, radices: list[int]) -> list[int]:
    """Section 3.2.4."""
    indices = []
    for k in range(len(radices)):
        product = math.prod(radices[k + 1 :])
        indices.append(token // product)
        token %= product
    return indices


def snake(x: float, raw_beta: float) -> float:
    """x + sin^2(beta x) / beta."""
    beta = math.log(1 + math.exp(raw_beta)) + 1e-2
    return x + math.sin(beta * x) ** 2 / beta


def masked_prediction_loss(predictions: np.ndarray, targets: np.ndarray, hidden: np.ndarray) -> float:
    """Eq. 10 over `(batch, frames, dimensions)`."""
    total, count = 0.0, 0
    for b in range(predictions.shape[0]):
        for t in range(predictions.shape[1]):
            if hidden[b, t]:
                count += 1
                total += float(np.sum((predictions[b, t] - targets[b, t]) ** 2))
    return total / (count * predictions.shape[2])


def frames(samples: int, hop: int) -> int:
    """How many hops a recording touches, counted."""
    count, start = 0, 0
    while start < samples:
        count, start = count + 1, start + hop
    return count
