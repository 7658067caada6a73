"""The judge of identification: it learns what is plain to see, and averages over views."""

import numpy as np
import pytest
import torch

from neurodiff.core.training import TrainingSettings, train
from neurodiff.features.view_classifier import ViewClassifier


def pictures(label, n, seed):
    """A dark square (0) or two thin bars (1) somewhere on white, four views."""
    rng = np.random.default_rng(seed)
    out = np.full((n, 4, 64, 64), 255, np.uint8)
    for image in out.reshape(-1, 64, 64):
        y, x = rng.integers(12, 28, 2)
        if label == 0:
            image[y : y + 20, x : x + 20] = 80
        else:
            image[y : y + 24, x : x + 4] = 80
            image[y : y + 24, x + 16 : x + 20] = 80
    return out


@pytest.fixture(scope="module")
def learned():
    views = np.concatenate([pictures(label, 24, label) for label in (0, 1)])
    labels = np.repeat([0, 1], 24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = ViewClassifier(("square", "bars"), width=4)
    return train(
        classifier,
        lambda model, rows, generator: {"loss": model.loss(views[rows], labels[rows], generator)},
        n_items=48,
        settings=TrainingSettings(steps=40, batch_size=12, learning_rate=1e-2, warmup=4),
        seed=0,
        stage="classifier",
    )


def test_two_plain_classes_are_learned(learned):
    views = np.concatenate([pictures(label, 20, 10 + label) for label in (0, 1)])
    p = learned.probabilities(views)
    assert p.shape == (40, 2)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    assert (p.argmax(axis=1) == np.repeat([0, 1], 20)).mean() >= 0.95


def test_probabilities_are_means_over_views(learned):
    views = pictures(1, 3, 5)
    with torch.no_grad():
        single = learned(torch.from_numpy(views[1]).float() / 255).softmax(-1).numpy()
    np.testing.assert_allclose(learned.probabilities(views)[1], single.mean(axis=0), atol=1e-6)
    turned = learned.probabilities(views[:, ::-1])
    np.testing.assert_allclose(turned, learned.probabilities(views), atol=1e-6)


def test_objects_do_not_depend_on_their_batch(learned):
    views = pictures(0, 150, 6)  # 600 views: more than one part
    np.testing.assert_allclose(
        learned.probabilities(views)[140:], learned.probabilities(views[140:]), atol=1e-5
    )


def test_loss_of_a_network_that_knows_nothing_is_log_classes():
    classifier = ViewClassifier(("a", "b", "c"), width=4)
    torch.nn.init.zeros_(classifier.head.weight)
    torch.nn.init.zeros_(classifier.head.bias)
    loss = classifier.loss(
        pictures(0, 5, 0), np.array([0, 1, 2, 0, 1]), torch.Generator().manual_seed(0)
    )
    assert float(loss.detach()) == pytest.approx(np.log(3))


def test_loss_pairs_each_view_with_its_objects_label(learned):
    views = np.concatenate([pictures(0, 6, 20), pictures(1, 6, 21)])
    labels = np.repeat([0, 1], 6)
    with torch.no_grad():
        right, wrong = (
            float(learned.loss(views, y, torch.Generator().manual_seed(1)))
            for y in (labels, 1 - labels)
        )
    assert right < 0.3
    assert wrong > 1.0
