"""The scale that a regress head learns in: where it is from, and that the unit of scores does not matter."""

from __future__ import annotations

from statistics import fmean, pstdev

import numpy as np
import pytest
import torch

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.data.task_data import TaskData
from mtnlp.runs.folder import spec_from_json, spec_to_json
from mtnlp.tasks.spec import TaskSpec

SCORES = [3.0, 4.5, 4.0, 9.5, 6.0, 3.5]


def opened(scores=SCORES, **more):
    train = [{"text": f"text {i}", "score": score} for i, score in enumerate(scores)]
    source = {"train": train, "validation": [{"text": "far out", "score": 1.0}], "test": train[:1]}
    return TaskData.open(TaskSpec("rating", "regress", source, **more)).spec


def test_open_scores_are_learned_around_the_mean_of_train_in_standard_deviations():
    assert opened().score_scale == pytest.approx((fmean(SCORES), pstdev(SCORES)))
    assert opened([2.0, 2.0]).score_scale == (2.0, 1.0)  # nothing to divide by


def test_scores_with_a_range_are_learned_from_its_middle_in_half_widths():
    assert opened(score_range=(0.0, 10.0)).score_scale == (5.0, 5.0)


def test_a_scale_that_is_given_stays():
    assert opened(score_range=(0.0, 10.0), score_scale=(4.0, 2.0)).score_scale == (4.0, 2.0)


def test_only_scores_have_a_scale():
    rows = [{"text": "a", "label": "0"}, {"text": "b", "label": "1"}]

    data = TaskData.open(TaskSpec("topic", "classify", {"train": rows, "validation": rows}))

    assert data.spec.score_scale is None


def test_a_run_folder_keeps_the_scale():
    spec = opened()

    assert spec_from_json(spec_to_json(spec)).score_scale == spec.score_scale


def test_another_unit_changes_predictions_by_that_unit_and_the_loss_not_at_all():
    hidden, mask = torch.randn(len(SCORES), 4, 16), torch.ones(len(SCORES), 4, dtype=torch.long)
    losses, values = [], []
    for scale, shift in ((1.0, 0.0), (250.0, -40.0)):
        scores = [scale * score + shift for score in SCORES]
        torch.manual_seed(0)
        head = heads.for_kind("regress")(16, opened(scores), dropout=0.0)
        rows = np.arange(len(scores))
        part = TaskSlice(0, 0, len(scores), rows, torch.ones(len(scores)), torch.tensor(scores))
        losses.append(head.loss(hidden, mask, part))
        values.append(torch.tensor([answer["value"] for answer in head.predict(hidden, mask, part)]))

    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values[0] * 250.0 - 40.0, values[1], atol=1e-3, rtol=1e-5)
