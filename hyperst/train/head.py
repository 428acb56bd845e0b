"""The closed-form head of a run, fitted when its network is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from hyperst.checkpoint import MIXTURE, load_checkpoint
from hyperst.closed_form import Mixture, fit_head, fit_mixture, head_features
from hyperst.data import Section
from hyperst.data.dataset import block_ids
from hyperst.data.kept_crops import KeptCrops
from hyperst.evaluation import measured_expression
from hyperst.run import RunFolder, load_run, section_indices
from hyperst.spot_values import encode, over_spots
from hyperst.train.checkpoints import AtomicCheckpoints

__all__ = ["add_closed_form"]

_MOST = (3000, 1000)  # training and validation spots: the kernel of all pairs is decomposed


def add_closed_form(
    place: RunFolder,
    sections: Sequence[Section],
    validation_sections: Sequence[Section],
    device: str | None,
    kept: KeptCrops,
) -> tuple[Mixture, list[dict[str, np.ndarray]]]:
    """Fit the head to the best checkpoint's features and store it there. Of very many spots 3000 and 1000 for validation are drawn.

    It is fitted to the spots that the network was trained on and mixed with the network as the validation spots say. Spots held out
    of the training sections are then fitted too; those of validation sections are not.

    Args:
        sections, validation_sections: those of the run, without the spots that have too few counts.
        kept: what has been read of them.

    Returns:
        The mixture before the held-out spots are fitted, for what is to be measured on them, and what
        :func:`hyperst.spot_values.encode` gave of each section and validation section.
    """
    run = load_run(place.path, device=device, first_alone=True)
    groups = (*sections, *validation_sections)
    found = [over_spots(run, section, partial(encode, run), lambda _: None, kept=kept) for section in groups]
    features = [
        head_features(section, each["features"], run.model.levels, run.model.head_levels)
        for section, each in zip(groups, found, strict=True)
    ]
    held_out = section_indices(groups, run.split.validation_spots, inside=True)
    starts = np.cumsum([0, *(section.n_spots for section in groups)])
    validation = np.arange(starts[-1]) >= starts[len(sections)]
    validation[[starts[number] + spot for number, spot in held_out]] = True
    random = np.random.default_rng(run.config.training.seed)
    sides = zip((~validation, validation), _MOST, strict=True)
    chosen = np.sort(np.concatenate([random.permutation(np.flatnonzero(side))[:most] for side, most in sides]))
    seen = np.concatenate(features)[chosen]
    network = np.concatenate([each["prediction"] for each in found])[chosen]
    targets = np.concatenate([measured_expression(run, section) for section in groups])[chosen]
    blocks = np.concatenate([block_ids(section, number, pitches=3) for number, section in enumerate(groups)])[chosen]
    alone = run.config.model.head == "closed-form"
    mixture = fit_mixture(seen, network, targets, blocks, validation[chosen], alone=alone)
    final = mixture if validation_sections else replace(mixture, head=fit_head(seen, targets, blocks))
    checkpoint = load_checkpoint(place.best)
    checkpoint[MIXTURE] = final.as_tensors()
    AtomicCheckpoints().save_checkpoint(checkpoint, place.best)
    return mixture, found
