"""The engine against plain loops: whatever is fused, gathered, cut or dealt out, the gradient is that of one
example at a time through the network alone, with its task's update merged into the weights."""

from __future__ import annotations

import itertools

import pytest
import tiny
import tiny_tasks
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from mtnlp.models.backbone import Backbone
from mtnlp.train.loop import steps

RANK, ALPHA = 3, 5
NAMES = ("a", "b", "c", "d", "e", "f")
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0, 1.5])  # of the tasks' losses
ROWS = {"mixed": (0, 0, 1, 4, 4, 4), "one task": (2,) * 6, "all differ": (0, 1, 2, 3, 4, 5)}
KINDS = ("bert", "t5", "llama", "gpt2", "bert2bert")


@pytest.fixture(params=KINDS)
def pair(request):
    """(a model with an update per task, all of them away from their start; the same network without)."""
    model = tiny.disturb(tiny.model("lora-per-task", request.param, NAMES, rank=RANK, alpha=ALPHA))
    return model.train(), tiny.backbone(request.param)


class Alone:
    """The plain network for one example, with the update of its task merged: W + (alpha / rank) B A."""

    def __init__(self, model, plain: Backbone) -> None:
        self.plain, self.layout = plain, model.strategy.bank.layout
        self.rows = model.strategy.bank.rows.detach().clone().requires_grad_()

    def _weights(self, task: int) -> dict[str, Tensor]:
        pieces = {
            name: self.rows[task, first : first + torch.Size(shape).numel()].view(shape)
            for name, (first, shape) in self.layout.items()
        }
        layers = {name.rpartition(".")[0] for name in pieces}
        merged = {}
        for layer in layers:
            module = self.plain.net.get_submodule(layer)
            update = (ALPHA / RANK) * pieces[f"{layer}.down"].T @ pieces[f"{layer}.up"]  # (I, O)
            merged[f"{layer}.weight"] = module.weight + (update if isinstance(module, Conv1D) else update.T)
        return merged

    def __call__(self, batch, i: int) -> Tensor:
        """(L, D) hidden states of an encoder, (L, V) logits of the others, at the real tokens of row i."""
        length = int(batch.attention_mask[i].sum())
        inputs = {"input_ids": batch.input_ids[i : i + 1, :length]}
        if self.plain.family == "encoder-decoder":
            target = labels_of(batch, i)
            start = target.new_tensor([self.plain.net.config.decoder_start_token_id])
            inputs["decoder_input_ids"] = torch.cat([start, target[:-1]])[None]
        weights = self._weights(int(batch.task_ids[i]))
        out = functional_call(self.plain.net, weights, (), inputs | {"attention_mask": torch.ones(1, length)})
        return (out.last_hidden_state if self.plain.family == "encoder" else out.logits)[0]


def labels_of(batch, i: int) -> Tensor:
    return batch.labels[i][batch.labels[i] != -100]


def states(model, batch) -> list[Tensor]:
    """What Alone gives, of every row, from the mixed batch."""
    model._select(batch)
    if model.backbone.family == "encoder":
        found = model.backbone.hidden(batch)
        return [found[i, :length] for i, length in enumerate(batch.attention_mask.sum(1))]
    net, inputs = model.backbone.net, {}
    lengths = batch.attention_mask.sum(1)
    if model.backbone.family == "encoder-decoder":
        inputs["decoder_input_ids"] = net.prepare_decoder_input_ids_from_labels(batch.labels)
        lengths = (batch.labels != -100).sum(1)
    logits = net(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **inputs).logits
    return [logits[i, :length] for i, length in enumerate(lengths)]


def worst(found: Tensor, expected: Tensor) -> float:
    """Largest difference of an element, over the largest element of its row."""
    return float(((found - expected).abs().amax(1) / expected.abs().amax(1)).max())


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_in_float64_gradients_equal_those_of_one_example_at_a_time(pair, rows):
    model, plain = (part.double() for part in pair)
    batch, live = tiny.batch(plain.family, rows), sorted(set(rows), reverse=True)
    alone = Alone(model, plain)
    weigh = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(found: list[Tensor]) -> Tensor:
        each = [(x.tanh() * weigh[: x.shape[1]]).sum() for x in found]
        return sum(WEIGHTS[task] * part for task, part in zip(rows, each, strict=True))

    loss([alone(batch, i) for i in range(len(rows))]).backward()
    model.begin(live)
    loss(states(model, batch)).backward()

    assert model.strategy.bank.leaf.grad.dtype == torch.float64
    gap = worst(model.strategy.bank.leaf.grad, alone.rows.grad[live])
    print(f"\n{plain.name}, {len(live)} live tasks, float64: gradients differ by {gap:.0e} at most")
    assert gap < 1e-10


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_in_float32_gradients_of_the_training_loss_equal_those_of_one_example_at_a_time(pair, rows):
    model, plain = pair
    batch, live = tiny.batch(plain.family, rows), sorted(set(rows), reverse=True)
    alone, expected = Alone(model, plain), torch.zeros(())
    for i, task in enumerate(rows):
        found = alone(batch, i)
        expected = expected + WEIGHTS[task] * plain_loss(model, batch, i, task, found)

    expected.backward()
    model.begin(live)
    for part in (slice(0, 2), slice(2, 6)):  # in two micro-batches
        out = model(tiny.part(batch, part))
        (WEIGHTS[list(out.tasks)] * out.sums).sum().backward()

    gap = worst(model.strategy.bank.leaf.grad, alone.rows.grad[live])
    print(f"\n{plain.name}, {len(live)} live tasks, float32: gradients differ by {gap:.0e} at most")
    assert gap < 1e-5


def plain_loss(model, batch, i: int, task: int, found: Tensor) -> Tensor:
    """The loss of one example, from its own states alone."""
    family = model.backbone.family
    if family == "encoder":
        parameters = sorted(model.head_parameters(task).values(), key=lambda p: -p.ndim)
        target = torch.cat([part.target for part in batch.slices])[i]
        return F.cross_entropy(F.linear(found.mean(0), *(p.detach() for p in parameters)), target)
    if family == "encoder-decoder":
        return F.cross_entropy(found, labels_of(batch, i))
    return F.cross_entropy(found[:-1], batch.labels[i, 1 : len(found)], ignore_index=-100)


# One gradient, whatever the way to it.

# (tokens of a micro-batch, ranks, whether the tasks come in the other order). A row at a time is slowest.
COMBINATIONS = [
    (10**9, 1, False), (10**9, 2, False), (150, 1, False), (150, 3, False), (1, 2, False),
    (10**9, 1, True), (150, 2, True),
]  # fmt: skip
TRAINED = {
    "minilm": ("classify", "pair", "tag", "regress", "choose"),
    "t5": ("generate", "classify", "choose"),
    "SmolLM2": ("generate", "classify", "pair"),
}


@pytest.mark.parametrize("strategy", ["lora-per-task", "mtl-lora"])
@pytest.mark.parametrize("network", TRAINED)
def test_gradients_depend_neither_on_cut_nor_accumulation_nor_ranks_nor_order(network, strategy, tmp_path):
    trunk = Backbone.load(tiny_tasks.backbone(network, tmp_path))
    tasks = [tiny_tasks.task(f"of-{kind}", kind) for kind in TRAINED[network]]
    options = {"strategy": {"name": strategy, "dropout": 0.0}, "examples_per_step": 6 * len(tasks)}
    runs = [
        tiny_tasks.build(tiny_tasks.recipe(network, order, **options), trunk=trunk)
        for order in (tasks, tasks[::-1])
    ]
    for run in runs:
        tiny.disturb(run.model).train()
    (_, expected), *others = (
        gradients(runs[turned], world, budget) for budget, world, turned in COMBINATIONS
    )

    apart = [
        float((grads[name] - expected[name]).norm() / expected[name].norm())
        for _, grads in others
        for name in expected
    ]

    batches = sorted({count for count, _ in others})
    print(
        f"\n{strategy} on {network}: {len(others)} ways in {batches[0]} to {batches[-1]} micro-batches, "
        f"gradients differ by {max(apart):.0e} at most"
    )
    assert batches[-1] == 6 * len(tasks)
    assert all(grads.keys() == expected.keys() for _, grads in others)
    assert max(apart) < 1e-5


def gradients(run, world: int, budget: int) -> tuple[int, dict[str, Tensor]]:
    """Micro-batches of step 0, and its gradient by name: every rank's share, added up."""
    plan, model = run.mixture.plan(0), run.model
    counts, batches = dict(zip(plan.tasks, plan.counts)), 0
    model.zero_grad()
    model.begin(plan.tasks)
    for rank in range(world):
        for batch in run.mixture.batches(plan, rank=rank, world=world, max_tokens=budget):
            out = model(batch)
            (out.sums / torch.tensor([counts[task] for task in out.tasks])).sum().backward()
            batches += 1
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    bank = model.strategy.bank
    rows = zip(bank.live, bank.leaf.grad.clone(), strict=True)
    return batches, found | {f"bank/{run.tasks[task]}": row for task, row in rows}


# What a task's training does to others.


@pytest.mark.parametrize("strategy", ["lora-per-task", "adapters"])
@pytest.mark.parametrize("network", ["minilm", "t5"])
def test_training_one_task_leaves_another_as_it_was_in_all_that_it_will_do(network, strategy, tmp_path):
    trunk = Backbone.load(tiny_tasks.backbone(network, tmp_path))
    tasks = [tiny_tasks.task(name, "classify") for name in ("theirs", "mine")]
    both, theirs, mine = {"until": 3}, {"until": 9, "tasks": ["theirs"]}, {"tasks": ["mine"]}

    def trained(phases: list, total: int) -> list[dict[str, Tensor]]:
        """The weights after every step."""
        options = {"steps": total, "schedule": "constant", "max_norm": 1.0, "lr": 1e-2}
        made = tiny_tasks.recipe(network, tasks, strategy=strategy, examples_per_step=8, **options)
        run = tiny_tasks.build(made | {"sampler": {"name": "phased", "phases": phases}}, trunk=trunk)
        return [tiny_tasks.weights(run) for _ in steps(run)]

    between = trained([both, theirs, mine], 13)
    without = trained([both, mine], 7)

    own = [name for name in between[0] if "mine" in name]
    assert len(own) == (3 if network == "minilm" else 1)  # a row, and the head's weight and bias
    for name in own:
        assert torch.equal(between[2][name], between[8][name])  # six steps of the other task
        # Moments and step counts are as they were too: the steps that follow are the same.
        assert all(torch.equal(a[name], b[name]) for a, b in zip(between[9:], without[3:], strict=True))
        assert not torch.equal(between[8][name], between[-1][name])
    assert all(not torch.equal(between[2][name], between[8][name]) for name in between[0] if "theirs" in name)


# Dropout of the updates.

LAYER, PROBABILITY, LENGTH, SEQUENCES = "encoder.layer.0.attention.self.query", 0.4, 30, 12


@pytest.mark.parametrize("rows", [(0,) * 5 + (1,) * 4 + (3,) * 3, (2,) * 12], ids=["mixed", "one task"])
def test_every_row_has_a_dropout_mask_of_its_own_of_the_right_rate_and_scale(rows):
    """An update with A = B = 1 shows its mask: it is alpha / rank * mask * x / (1 - p)."""
    options = {"rank": 32, "alpha": 64, "dropout": PROBABILITY, "targets": f"{LAYER}$"}
    model = tiny.model("lora-per-task", "bert", NAMES, **options).train()
    for piece in (piece for task in range(len(NAMES)) for piece in model.strategy.bank.named(task).values()):
        piece.copy_(torch.eye(32))
    ids = torch.randint(3, tiny.VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(5))
    ids, classes = ids.repeat(SEQUENCES, 1), torch.zeros(SEQUENCES, dtype=torch.long)
    batch = tiny.assemble(ids, torch.ones_like(ids), None, classes, rows)

    def ratios() -> Tensor:
        """(S, L, 32) update over input, of one forward."""
        seen = {}
        layer = model.backbone.net.get_submodule(LAYER)
        handle = layer.register_forward_hook(lambda module, args, out: seen.update(x=args[0], y=out))
        torch.manual_seed(9)
        model.begin(sorted(set(rows)))
        model(batch).sums.sum().backward()
        handle.remove()
        return ((seen["y"] - F.linear(seen["x"], layer.weight, layer.bias)) / seen["x"]).detach()

    found = ratios()

    kept = found > 1
    assert torch.allclose(found[kept], torch.tensor(64 / 32 / (1 - PROBABILITY)), atol=1e-2)
    assert found[~kept].abs().max() < 1e-2
    near(kept.float(), 1 - PROBABILITY)  # all
    near(kept.float().mean((0, 1)), 1 - PROBABILITY, of=SEQUENCES * LENGTH)  # every input
    near(kept.float().mean((1, 2)), 1 - PROBABILITY, of=LENGTH * 32)  # every row
    same = PROBABILITY**2 + (1 - PROBABILITY) ** 2
    for one, other in itertools.combinations(kept, 2):  # equal rows, masks that know nothing of each other
        near((one == other).float(), same)
    near((kept[:, 1:] == kept[:, :-1]).float(), same)  # nor do tokens
    assert torch.equal(found, ratios())  # the seed decides


def near(values: Tensor, expected: float, *, of: int = 1) -> None:
    """Whether the mean of independent draws, each itself a mean `of` so many, is what it should be."""
    count = of * (values.numel() if of == 1 else 1)
    spread = 5 * (expected * (1 - expected) / count) ** 0.5
    means = values.mean() if of == 1 else values
    assert (means - expected).abs().max() < spread


def test_the_gradient_goes_through_the_mask_that_the_forward_took():
    options = {"rank": RANK, "alpha": ALPHA, "dropout": PROBABILITY, "targets": f"{LAYER}$"}
    model = tiny.disturb(tiny.model("lora-per-task", "bert", NAMES, **options)).double().train()
    rows, bank = (0, 0, 1, 4, 4, 4), model.strategy.bank
    batch = tiny.batch("encoder", rows)

    def loss() -> Tensor:
        torch.manual_seed(3)
        model.begin([0, 1, 4])
        return sum(x.tanh().sum() for x in states(model, batch))

    loss().backward()
    grad, direction = bank.leaf.grad.clone(), torch.randn_like(bank.rows)
    moved = []
    for step in (1e-5, -1e-5):
        bank.rows += step * direction
        with torch.no_grad():
            moved.append(loss())
        bank.rows -= step * direction

    slope = (moved[0] - moved[1]) / 2e-5
    assert torch.isclose(slope, (grad * direction[[0, 1, 4]]).sum(), rtol=1e-6)
