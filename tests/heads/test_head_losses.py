"""Every head against plain torch, example by example. Shapes as in mtnlp.heads.base."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mtnlp import heads
from mtnlp.data.batch import TaskSlice
from mtnlp.errors import MtnlpError
from mtnlp.heads.base import pooled
from mtnlp.tasks.spec import TaskSpec

S, L, D, C = 6, 7, 16, 4
LABELS = tuple("abcd")


@pytest.fixture
def hidden():
    return torch.randn(S, L, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask():
    lengths = torch.tensor([7, 3, 5, 1, 6, 4])
    return (torch.arange(L) < lengths.unsqueeze(1)).long()


def make(kind, **changes):
    torch.manual_seed(0)
    spec = TaskSpec(name="t", kind=kind, source={}, **changes)
    return heads.for_kind(kind)(D, spec, pooling="mean", dropout=0.1).eval()


def part(target, counts=None):
    counts = torch.ones(S, dtype=torch.long) if counts is None else torch.tensor(counts)
    return TaskSlice(task=0, start=0, stop=S, rows=np.arange(len(counts)), counts=counts, target=target)


def test_a_kind_without_a_head_says_what_to_do():
    with pytest.raises(MtnlpError, match="encoder-decoder or decoder"):
        heads.for_kind("generate")


@pytest.mark.parametrize("kind", ["classify", "pair"])
def test_classify_is_cross_entropy_of_the_pooled_sequence(hidden, mask, kind):
    head, target = make(kind, labels=LABELS), torch.tensor([0, 3, 1, 1, 2, 0])

    losses = head.loss(hidden, mask, part(target))

    scores = torch.stack([head.out(row[:n].mean(0)) for row, n in zip(hidden, mask.sum(1).tolist())])
    torch.testing.assert_close(losses, -scores.log_softmax(1)[torch.arange(S), target])
    assert [p["value"] for p in head.predict(hidden, mask, part(None))] == scores.argmax(1).tolist()


def test_multilabel_separates_right_from_wrong_labels_at_zero(hidden, mask):
    head, target = make("multilabel", labels=LABELS), torch.randint(0, 2, (S, C)).float()

    losses = head.loss(hidden, mask, part(target))

    scores = head.out(pooled(hidden, mask, "mean"))
    wrong, right = (1 - target) * scores.exp(), target * (-scores).exp()
    torch.testing.assert_close(losses, (1 + wrong.sum(1)).log() + (1 + right.sum(1)).log())
    values = [p["value"] for p in head.predict(hidden, mask, part(None))]
    assert values == [tuple(row.nonzero().flatten().tolist()) for row in scores > 0]


def test_multilabel_with_all_scores_zero_loses_what_the_paper_says(hidden, mask):
    head = make("multilabel", labels=LABELS)
    torch.nn.init.zeros_(head.out.weight)
    target = torch.zeros(S, C)
    target[:, 0] = 1

    losses = head.loss(hidden, mask, part(target))

    torch.testing.assert_close(losses, torch.full((S,), math.log(1 + (C - 1)) + math.log(2)))


def test_regress_is_squared_error_in_units_of_the_scale(hidden, mask):
    plain, ranged = make("regress"), make("regress", score_scale=(2.5, 2.5))
    target = torch.tensor([0.0, 5.0, 2.5, 1.0, 3.0, 4.0])

    free, losses = plain.loss(hidden, mask, part(target)), ranged.loss(hidden, mask, part(target))

    outputs = plain.out(pooled(hidden, mask, "mean")).squeeze(1)
    torch.testing.assert_close(free, (outputs - target) ** 2)
    values = torch.tensor([p["value"] for p in ranged.predict(hidden, mask, part(None))])
    torch.testing.assert_close(losses, ((values - target) / 2.5) ** 2)


def test_ordinal_is_the_likelihood_of_a_monotone_cumulative_link(hidden, mask):
    head, target = make("ordinal", labels=LABELS), torch.tensor([0, 3, 1, 1, 2, 0])
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=3)  # whatever training may do to the thresholds

    losses = head.loss(hidden, mask, part(target))

    score = head.out(pooled(hidden, mask, "mean")).double()
    above = (score - head.thresholds().double()).sigmoid()
    assert (above.diff(dim=1) < 0).all()
    edges = torch.cat([torch.ones(S, 1), above, torch.zeros(S, 1)], 1)
    likelihood = -edges.diff(dim=1)
    expected = -likelihood[torch.arange(S), target].log()
    torch.testing.assert_close(losses.double(), expected, rtol=1e-4, atol=1e-5)
    for found, row, p in zip(head.predict(hidden, mask, part(None)), above, likelihood):
        assert found["value"] == int((row > 0.5).sum())
        assert found["scores"] == pytest.approx(p.tolist(), abs=1e-5)


def test_a_fresh_ordinal_head_finds_all_labels_equally_likely(mask):
    head = make("ordinal", labels=LABELS)

    found = head.predict(torch.zeros(S, L, D), mask, part(None))

    assert found[0]["scores"] == pytest.approx([1 / C] * C, abs=1e-6)


def test_ordinal_gradients_stay_finite_far_out(mask):
    head, target = make("ordinal", labels=LABELS), torch.tensor([0, 3, 1, 1, 2, 0])
    hidden = torch.full((S, L, D), 1e3, requires_grad=True)

    head.loss(hidden, mask, part(target)).sum().backward()

    assert hidden.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_choose_is_cross_entropy_over_each_rows_own_choices(hidden, mask):
    head, counts, target = make("choose"), [3, 1, 2], torch.tensor([2, 0, 1])

    losses = head.loss(hidden, mask, part(target, counts))
    found = head.predict(hidden, mask, part(None, counts))

    scores = head.out(pooled(hidden, mask, "mean")).squeeze(1).split(counts)
    for loss, answer, row, prediction in zip(losses, target, scores, found):
        torch.testing.assert_close(loss, F.cross_entropy(row, answer))
        assert prediction["value"] == int(row.argmax())
        assert prediction["scores"] == pytest.approx(row.softmax(0).tolist())


def test_tag_is_mean_cross_entropy_over_scored_tokens(hidden, mask):
    head = make("tag", labels=LABELS)
    target = torch.randint(0, C, (S, L), generator=torch.Generator().manual_seed(2))
    target[mask == 0] = -100
    target[:, 0] = -100  # special tokens; row 3 then has nothing to score

    losses = head.loss(hidden, mask, part(target))

    for i in (0, 1, 2, 4, 5):
        expected = F.cross_entropy(head.out(hidden[i]), target[i], ignore_index=-100)
        torch.testing.assert_close(losses[i], expected)
    assert losses[3] == 0
    found = head.predict(hidden, mask, part(None))
    assert [len(p["value"]) for p in found] == mask.sum(1).tolist()
    assert found[1]["value"] == head.out(hidden[1, :3]).argmax(1).tolist()


def test_span_is_the_mean_of_first_and_last_over_windows(hidden, mask):
    head, counts = make("span"), [2, 3, 1]
    target = torch.tensor([[1, 3], [0, 0], [2, 2], [0, 0], [0, 0], [1, 2]])

    losses = head.loss(hidden, mask, part(target, counts))

    windows = [
        sum(F.cross_entropy(head.out(row[:n])[:, side], where[side]) for side in (0, 1)) / 2
        for row, n, where in zip(hidden, mask.sum(1).tolist(), target)
    ]
    expected = [torch.stack(ws).mean() for ws in (windows[:2], windows[2:5], windows[5:])]
    torch.testing.assert_close(losses, torch.stack(expected))


def test_span_finds_the_best_pair_by_brute_force(hidden, mask):
    head, counts = make("span"), [2, 3, 1]
    with torch.no_grad():
        head.out.weight.normal_(generator=torch.Generator().manual_seed(3))

    found = head.predict(hidden, mask, part(None, counts))

    scores, start = head.out(hidden), 0
    for prediction, count in zip(found, counts):
        pairs = {}
        nulls = []
        for window in range(count):
            own, length = scores[start + window], int(mask[start + window].sum())
            nulls.append(own[0].sum().item())
            for i in range(1, length):
                for j in range(i, length):
                    pairs[window, i, j] = (own[i, 0] + own[j, 1]).item()
        best = max(pairs, key=pairs.get)
        assert prediction["score"] == pytest.approx(pairs[best] - min(nulls), abs=1e-5)
        assert prediction["value"] == (best if pairs[best] > min(nulls) else None)
        start += count


def test_span_answers_lie_in_the_context_and_are_short(mask):
    head, length = make("span"), 50
    hidden = torch.randn(1, length, D)
    allowed = torch.zeros(1, length, dtype=torch.bool)
    allowed[0, 10:45] = True
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.weight[0, 0] = head.out.weight[1, 1] = 1.0
        hidden[0, :, 0] = torch.linspace(5, 1, length)  # firsts: early is better
        hidden[0, :, 1] = torch.linspace(1, 5, length)  # lasts: late is better
        hidden[0, 0, :2] = -9.0  # null
    slice_ = TaskSlice(0, 0, 1, np.arange(1), torch.ones(1, dtype=torch.long), None, spans_allowed=allowed)

    window, first, last = head.predict(hidden, torch.ones(1, length), slice_)[0]["value"]

    assert window == 0
    assert 10 <= first <= last < 45
    assert last - first == 29


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_pooling_reads_real_tokens_only(hidden, mask, pooling):
    noisy = torch.where(mask.bool().unsqueeze(-1), hidden, torch.tensor(1e6))

    summary = pooled(noisy, mask, pooling)

    for row, own, n in zip(summary, hidden, mask.sum(1).tolist()):
        expected = {"mean": own[:n].mean(0), "first": own[0], "last": own[n - 1]}[pooling]
        torch.testing.assert_close(row, expected)
