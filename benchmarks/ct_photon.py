"""Photon-limited images: diffusion beside Anscombe with non-local means and a U-Net.

    python benchmarks/ct_photon.py [--recipe ct_photon_demo] [--scenes 24] [--seed 0]
        [--set KEY=VALUE ...]

Training and test scenes are simulated by different seeds; the test detector has other hot pixels,
known from its dark frame to every method. PSNR and SSIM (skimage, data range 1) are means over
scenes with their standard error, counts over the photon level as "raw".
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="ct_photon_demo")
    parser.add_argument("--scenes", default=24, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--set", default=[], nargs="*", dest="overrides")
    options = parser.parse_args()
    from neurodiff.core.progress import Progress
    from neurodiff.datasets.simulated.photons import photon_images, photon_scenes
    from neurodiff.pipelines.ct_photon import PhotonDenoiser, without_hot

    pipe = PhotonDenoiser.from_recipe(options.recipe, options.overrides)
    began = time.process_time()
    pipe.fit(seed=options.seed, progress=Progress.to_stdout(every=60))
    print(f"trained in {time.process_time() - began:.0f} CPU s")
    recipe = pipe.recipe
    truth = photon_scenes(options.scenes, recipe.side, seed=options.seed + 1000)
    for level in recipe.levels:
        made = photon_images(
            truth,
            level,
            seed=options.seed + 1000,
            dark=recipe.dark,
            hot_share=recipe.hot_share,
        )
        common: dict[str, Any] = {"hot": made.hot, "dark": recipe.dark, "seed": options.seed}
        print(f"\n{level:g} photons, {options.scenes} scenes of {recipe.side} x {recipe.side}")
        line("raw", (without_hot(made.counts, made.hot) - recipe.dark) / level, truth, 0.0)
        for mode in ("nlm", "unet", "practical", "paper"):
            began = time.perf_counter()
            found = pipe.apply(made.counts, level, mode=mode, **common)
            line(mode, found, truth, time.perf_counter() - began)
        draws = [
            pipe.apply(made.counts, level, mode="practical", sample_number=n, **common)
            for n in range(8)
        ]
        line("practical, mean of 8", np.mean(draws, axis=0), truth, 0.0)


def line(name: str, found: np.ndarray, truth: np.ndarray, seconds: float) -> None:
    from skimage.metrics import structural_similarity

    found = np.clip(found, 0, 1).astype(np.float32)
    errors = ((found - truth) ** 2).mean(axis=(1, 2))
    psnr = -10 * np.log10(np.maximum(errors, 1e-12))
    ssim = [structural_similarity(a, b, data_range=1.0) for a, b in zip(found, truth, strict=True)]
    error = [np.std(v, ddof=1) / np.sqrt(len(v)) for v in (psnr, ssim)]
    print(
        f"  {name:22} PSNR {psnr.mean():5.2f} ± {error[0]:.2f} dB   SSIM {np.mean(ssim):.3f} ± "
        f"{error[1]:.3f}   {seconds:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
