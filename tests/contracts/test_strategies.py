"""What every strategy promises. A new file in mtnlp/strategies is tested here by itself.

Batches have rows of three tasks, a, b and c; `live` lists them in another order than the batch does.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

from mtnlp import strategies
from mtnlp.errors import MtnlpError
from mtnlp.models.backbone import Backbone

TASKS, LIVE, ROWS = ("a", "b", "c"), (2, 0, 1), (0, 0, 1, 2, 2, 2)
PAIRS = [
    (name, kind)
    for name in strategies.names()
    for kind in ("bert", "t5", "llama")
    if tiny.NETS[kind][0] in strategies.get(name).families
]
every = pytest.mark.parametrize(("name", "kind"), PAIRS)


def outputs(model, batch):
    """Hidden states of an encoder, logits at every position of the others; with gradients off."""
    with torch.no_grad():
        model.begin(sorted({p.task for p in batch.slices}, reverse=True))
        model._select(batch)
        net, inputs = (
            model.backbone.net,
            {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask},
        )
        if model.backbone.family == "encoder-decoder":
            inputs["decoder_input_ids"] = net.prepare_decoder_input_ids_from_labels(batch.labels)
        result = net(**inputs)
    return result.last_hidden_state if model.backbone.family == "encoder" else result.logits


def gradients(model, batches, live=LIVE, *, aux=False):
    """Name -> gradient of the summed losses, over micro-batches that share one `begin`; bank rows by task."""
    model.zero_grad()
    model.begin(live)
    for batch in batches:
        out = model(batch)
        (out.sums.sum() + (out.aux if aux and out.aux is not None else 0)).backward()
    found = {
        f"{kind}/{name}": p.grad
        for kind, module in (("shared", model.backbone), ("head", model.heads))
        for name, p in module.named_parameters()
        if p.grad is not None
    }
    bank = model.strategy.bank
    if bank is not None:
        found |= {f"bank/{TASKS[task]}": row for task, row in zip(bank.live, bank.leaf.grad, strict=True)}
    return {name: grad.clone() for name, grad in found.items()}


def train(model, batch, live, steps=1, lr=0.1):
    """Plain gradient descent; the live rows of the bank are updated as the train room does, in place."""
    model.train()
    for _ in range(steps):
        model.zero_grad()
        model.begin(live)
        out = model(batch)
        (out.sums.sum() + (0 if out.aux is None else out.aux)).backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p -= lr * p.grad
            if model.strategy.bank is not None:
                for task, grad in zip(live, model.strategy.bank.leaf.grad, strict=True):
                    model.strategy.bank.rows[task] -= lr * grad
    model.eval()


def same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@every
@pytest.mark.parametrize("rows", [ROWS, (1, 1, 1)], ids=["mixed", "one task"])
def test_starts_as_the_backbone_to_the_last_bit(name, kind, rows):
    plain, model = tiny.model("full", kind, TASKS), tiny.model(name, kind, TASKS)
    batch = tiny.batch(model.backbone.family, rows)

    assert torch.equal(outputs(model, batch), outputs(plain, batch))


@every
def test_a_mixed_batch_equals_batches_of_one_task(name, kind):
    model = tiny.disturb(tiny.model(name, kind, TASKS))
    batch = tiny.batch(model.backbone.family, ROWS)
    apart = [tiny.part(batch, slice(*rows)) for rows in ((0, 2), (2, 3), (3, 6))]

    together = outputs(model, batch)
    assert (
        not torch.allclose(together, outputs(tiny.model("full", kind, TASKS), batch), atol=1e-3)
        or name == "heads"
    )
    torch.testing.assert_close(together, torch.cat([outputs(model, p) for p in apart]), atol=1e-6, rtol=1e-5)
    same(gradients(model, [batch]), gradients(model, apart), atol=2e-5, rtol=1e-4)


@every
def test_the_order_of_the_tasks_changes_nothing(name, kind):
    model, turned = (tiny.disturb(tiny.model(name, kind, tasks)) for tasks in (TASKS, ("c", "a", "b")))
    batch = tiny.batch(model.backbone.family, (0, 0, 1, 1, 2, 2))
    by_new_ids = [2, 3, 4, 5, 0, 1]  # c is task 0 now, a 1, b 2: the same rows, sorted anew
    moved = tiny.assemble(
        batch.input_ids[[4, 5, 0, 1, 2, 3]],
        batch.attention_mask[[4, 5, 0, 1, 2, 3]],
        None if batch.labels is None else batch.labels[[4, 5, 0, 1, 2, 3]],
        torch.cat([p.target for p in batch.slices])[[4, 5, 0, 1, 2, 3]],
        (0, 0, 1, 1, 2, 2),
    )

    torch.testing.assert_close(
        outputs(turned, moved)[by_new_ids], outputs(model, batch), atol=1e-6, rtol=1e-5
    )


@every
def test_training_one_task_leaves_what_others_own_bit_equal(name, kind):
    model = tiny.model(name, kind, TASKS)
    before = copy.deepcopy(model.trainable_state())

    train(model, tiny.batch(model.backbone.family, (0, 0, 0)), (0,), steps=2)

    moved = {key for key, tensor in model.trainable_state().items() if not torch.equal(tensor, before[key])}
    assert moved
    assert not [key for key in moved if key.startswith(("bank/b", "bank/c", "head/b", "head/c"))]


@every
def test_shared_and_owned_parameters_are_all_that_is_trainable(name, kind):
    model = tiny.disturb(tiny.model(name, kind, TASKS))
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    shared = {id(p) for p in model.shared_parameters().values()}
    owned = [{id(p) for p in model.head_parameters(task).values()} for task in range(3)]

    assert sum(map(len, owned), len(shared)) == len(trainable)
    assert shared.union(*owned) == trainable
    found = gradients(model.train(), [tiny.batch(model.backbone.family, ROWS, length=30)], aux=True)
    still = [key for key, grad in found.items() if not grad.abs().sum() > 0]
    assert len(found) == len(model.trainable_state())
    assert not still


@every
def test_the_frozen_backbone_has_no_gradient_and_stays_as_it_was(name, kind):
    model = tiny.model(name, kind, TASKS)
    frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}

    train(model, tiny.batch(model.backbone.family, ROWS), LIVE, steps=3)

    now = dict(model.named_parameters())
    assert frozen or name == "full"
    assert all(now[key].grad is None and torch.equal(now[key], value) for key, value in frozen.items())


@every
def test_its_state_makes_a_fresh_model_the_same(name, kind):
    model, fresh = tiny.model(name, kind, TASKS), tiny.model(name, kind, TASKS, seed=99)
    batch = tiny.batch(model.backbone.family, ROWS)
    train(model, batch, LIVE, steps=2)
    state = copy.deepcopy(model.trainable_state())

    fresh.load_trainable_state(state)

    assert torch.equal(outputs(fresh, batch), outputs(model, batch))
    name_of_one = next(iter(state))
    with pytest.raises(MtnlpError, match="no " + name_of_one):
        fresh.load_trainable_state({"other": state.pop(name_of_one), **state})


@every
def test_gradient_checkpointing_gives_the_same_gradients(name, kind):
    model = tiny.disturb(tiny.model(name, kind, TASKS, **no_dropout(name))).train()
    batch = tiny.batch(model.backbone.family, ROWS)
    plain = gradients(model, [batch], aux=True)

    model.backbone.checkpoint_activations()

    same(gradients(model, [batch], aux=True), plain, atol=1e-6, rtol=1e-5)


@every
def test_bf16_autocast_trains_float32_parameters(name, kind):
    model = tiny.disturb(tiny.model(name, kind, TASKS, **no_dropout(name)))
    batch = tiny.batch(model.backbone.family, ROWS)
    pieces = [tiny.part(batch, slice(0, 3)), tiny.part(batch, slice(3, 6))]
    exact = gradients(model, pieces)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = gradients(model, pieces)

    assert {grad.dtype for grad in rough.values()} == {torch.float32}
    assert rough.keys() == exact.keys()
    whole = torch.cat([exact[key].flatten() for key in exact])
    error = torch.cat([(rough[key] - exact[key]).flatten() for key in exact])
    assert error.norm() < 0.15 * whole.norm()


@every
def test_weights_that_no_checkpoint_gave_are_trained_with_the_rest(name, kind):
    backbone = tiny.backbone(kind)
    new = [key for key, _ in backbone.net.named_parameters() if "norm" in key.lower()][:2]
    backbone.fresh = frozenset(new)

    strategies.get(name)().attach(backbone, TASKS, 0)

    trained = [key for key, p in backbone.net.named_parameters() if p.requires_grad]
    assert set(new) <= set(trained)


@pytest.mark.parametrize("name", strategies.names())
def test_a_backbone_without_layers_to_adapt_is_an_error_that_names_the_pattern(name):
    net = nn.ModuleDict({"words": nn.Embedding(9, 4), "mixer": nn.ModuleList([nn.Conv2d(4, 4, 1)])})
    net.config = SimpleNamespace(hidden_size=4)
    before = str(net)

    if name in ("full", "heads"):  # these edit no module
        strategies.get(name)().attach(Backbone(net, None, "encoder"), TASKS, 0)
    else:
        with pytest.raises(MtnlpError, match=r"(?s)linear layer|nn\.Linear"):
            strategies.get(name)().attach(Backbone(net, None, "encoder"), TASKS, 0)

    assert str(net) == before


def no_dropout(name):
    return {"dropout": 0.0} if hasattr(strategies.get(name)(), "dropout") else {}
