"""A closed form with the methods of an LDAE: principal components of volumes.

Latents are the whitened scores, codes the first ``d`` of them, noise the rest. What a perfect
LDAE would do is then known exactly: the encoded walk closes, codes move scans linearly.
"""

from dataclasses import dataclass

import numpy as np
import torch

from neurodiff.pipelines.ldae_sampling import draw_noise, scan_generator, slerp


class LinearLDAE:
    def __init__(self, volumes, components, d, limit=None):
        flat = volumes.reshape(len(volumes), -1).astype(np.float64)
        self.shape, self.d, self.limit = volumes.shape[1:], d, limit
        self.mean = flat.mean(0)
        values, vectors = np.linalg.eigh((flat - self.mean) @ (flat - self.mean).T)
        order = values.argsort()[::-1][:components]
        self.spread = np.sqrt(values[order] / len(flat))
        self.axes = (flat - self.mean).T @ (vectors[:, order] / np.sqrt(values[order]))
        self.directions, self.identity = {}, "linear"

    def latents(self, volumes):
        flat = volumes.reshape(len(volumes), -1).astype(np.float64) - self.mean
        return (flat @ self.axes / self.spread).astype(np.float32)[:, :, None, None, None]

    def images(self, latents):
        flat = (latents[:, :, 0, 0, 0] * self.spread) @ self.axes.T + self.mean
        return flat.reshape(-1, *self.shape).clip(0, 1).astype(np.float32)

    def codes(self, volumes):
        return self.latents(volumes)[:, : self.d, 0, 0, 0]

    def noise(self, latents, codes, *, steps=None):
        noise = latents.copy()
        noise[:, : self.d] = 0
        return noise if self.limit is None else noise * 20  # what a clamp pushes into the noise

    def decode(self, codes, noise, *, steps=None):
        latents = noise.copy()
        latents[:, : self.d, 0, 0, 0] = codes
        if self.limit is not None:
            latents[:, self.d :] = noise[:, self.d :] / 20
            latents[:, : self.d] = latents[:, : self.d].clip(-self.limit, self.limit)
        return latents

    def draw(self, scans, *, seed=0, sample=0):
        generators = [scan_generator(seed, subject=s, scan=c, sample=sample) for s, c in scans]
        return draw_noise(generators, (len(self.spread), 1, 1, 1)).numpy()

    def reconstruct(self, volumes, how, *, scans=None, steps=None, seed=0):
        latents, codes = self.latents(volumes), self.codes(volumes)
        if how == "autoencoder":
            return self.images(latents)
        noise = self.noise(latents, codes) if how == "encoded" else self.draw(scans, seed=seed)
        return self.images(self.decode(codes, noise, steps=steps))

    def move(self, codes, direction, amount):
        direction = self.directions[direction] if isinstance(direction, str) else direction
        return (codes + amount * direction.weight).astype(np.float32)

    def between(self, codes_a, codes_b, noise_a, noise_b, t):
        noise = slerp(torch.from_numpy(noise_a), torch.from_numpy(noise_b), t).numpy()
        return ((1 - t) * codes_a + t * codes_b).astype(np.float32), noise


@dataclass
class LinearDirection:
    weight: np.ndarray

    def score(self, codes):
        return codes @ self.weight
