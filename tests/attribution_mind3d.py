"""A MinD-3D of 64 features and 5 frames for tests, of one subject or of several."""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from neurodiff.analysis.attribution_decoders import MinD3DDecoder
from neurodiff.analysis.attribution_problem import Problem
from neurodiff.bridges.ridge import MultiTargetRidge
from neurodiff.core.recording import Recording
from neurodiff.models.mind3d import BrainNetworks
from neurodiff.pipelines.brain_input import BrainInput
from neurodiff.pipelines.mind3d import MinD3D
from neurodiff.pipelines.subject_layers import SubjectLayers, fit_layer

COURSE = np.array([0.1, 0.3, 1, 0.8, 0.4], np.float32)
ROIS = {f"Q{k}": np.repeat(np.arange(4) == k, 16) for k in range(4)}


def tiny_problem(people=("sub-01",), *, layered=False, test_people=None):
    """The pipeline at random weights: the harder case, for the networks say as much as the anchor.

    people : each has 48 training and 12 test trials; the last quarter of features is noise alone.
    layered : each is read through an input layer of their own.
    test_people : only these are tested.
    """
    rng = np.random.default_rng(0)
    patch = 2 if layered else 4
    pipe = MinD3D.from_recipe(
        "mind3d_tiny",
        [f"bridge.encoder.patch_size={patch}", "bridge.candidates=2", "bridge.steps=4"],
    )
    hidden = rng.standard_normal((60, 16)).astype(np.float32)
    whole = []
    for name in people:
        mixing = rng.standard_normal((16, 64)).astype(np.float32)
        mixing[:, 48:] = 0
        data = (hidden @ mixing)[:, None] * COURSE[:, None]
        data = data + 0.5 * rng.standard_normal(data.shape).astype(np.float32)
        table = {"stimulus": [f"s{k:02d}" for k in range(60)], "subject": name, "split": "test"}
        whole.append(Recording.from_arrays(data, pd.DataFrame(table)))
    trains = [one.select(np.arange(48)) for one in whole]
    train = joined(trains)
    tests = [one.select(np.arange(48, 60)) for one in whole]
    test = joined([t for t, name in zip(tests, people, strict=True)
                   if test_people is None or name in test_people])  # fmt: skip
    read, layers = train, None
    if layered:
        fitted = {name: fit_layer(one, hidden[:48])[0]
                  for name, one in zip(people, trains, strict=True)}  # fmt: skip
        layers = SubjectLayers(fitted, tuple(people))
        read = layers.to_latent(train)
    pipe.brain = BrainInput.fit(read, patch_size=patch, image_size=8)
    target = np.concatenate([hidden[:48]] * len(people))
    pipe.ridge = MultiTargetRidge().fit(pipe.brain.betas(read), target)
    pipe.brain = replace(pipe.brain, layers=layers)
    settings = pipe.recipe.bridge
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe.networks = BrainNetworks(
            settings.encoder_for(pipe.brain.image_size),
            settings.network,
            patches=torch.from_numpy(pipe.brain.kept),
            aggregated_tokens=settings.aggregated_tokens,
        ).eval()
    embeddings = {f"s{k:02d}": row for k, row in enumerate(hidden)}
    decoder = MinD3DDecoder(pipe, embeddings, test)
    return Problem(
        decoder=decoder,
        test=test,
        train=train,
        truth=decoder.truth(list(test.trials["stimulus"])),
        rois=ROIS,
        draws=100,
    )


def joined(recordings):
    """Trials of several people in one recording."""
    trials = pd.concat([one.trials for one in recordings], ignore_index=True)
    data = np.concatenate([one.array() for one in recordings])
    return Recording.from_arrays(data, trials, ROIS)
