"""A task alone in a run is plain single-task training, bit for bit.

The plain side below is what one would write by hand for one task: the network of transformers, a low-rank update in
every linear layer, a linear head, one loss, torch's AdamW and transformers' schedule. It shares no code with
mtnlp's strategies, heads, optimizer and loop. Both sides start from the same weights, see the same batches and seed
dropout alike in every step.
"""

from __future__ import annotations

import numpy as np
import pytest
import tiny_tasks
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, get_linear_schedule_with_warmup

from mtnlp.data.batch import Batch
from mtnlp.train.loop import Run, steps

STEPS, EXAMPLES, RANK, ALPHA = 8, 10, 8, 16
DROPOUT, LR, DECAY = 0.1, 5e-3, 0.01
LORA = {"name": "lora-per-task", "rank": RANK, "alpha": ALPHA, "dropout": DROPOUT}


class LowRank(nn.Module):
    """y = x W^T + b + (alpha / rank) dropout(x) A^T B"""

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base, self.dropout = base.requires_grad_(False), nn.Dropout(DROPOUT)
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (ALPHA / RANK) * (F.linear(self.dropout(x), self.down) @ self.up)


class Plain(nn.Module):
    """A transformers encoder with one linear head."""

    def __init__(self, folder: str, outputs: int) -> None:
        super().__init__()
        self.net = AutoModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
        self.dropout, self.out = nn.Dropout(DROPOUT), nn.Linear(self.net.config.hidden_size, outputs)

    def forward(self, batch: Batch, kind: str) -> Tensor:
        """(N,) losses of the examples."""
        mask, (part,) = batch.attention_mask, batch.slices
        hidden = self.net(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        if kind == "tag":
            scores = self.out(self.dropout(hidden)).transpose(1, 2)
            losses = F.cross_entropy(scores, part.target, reduction="none", ignore_index=-100)
            return losses.sum(1) / (part.target != -100).sum(1)
        real = mask.unsqueeze(-1).float()
        scores = self.out(self.dropout((hidden * real).sum(1) / real.sum(1)))
        if kind == "regress":
            return (scores.squeeze(-1) - part.target) ** 2
        if kind == "multilabel":
            return F.binary_cross_entropy_with_logits(scores, part.target, reduction="none").mean(1)
        if kind == "choose":
            scores = pad_sequence(scores.squeeze(-1).split(part.counts.tolist()), True, -torch.inf)
        return F.cross_entropy(scores, part.target, reduction="none")


def train_plainly(model: Plain, parameters: list[nn.Parameter], batches: list[list[Batch]], kind: str, seed: int):
    """Losses of all steps."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, len(batches))
    losses = []
    model.train()
    for step, micro_batches in enumerate(batches):
        words = np.random.SeedSequence([seed, step, 0]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]) >> 1)
        losses.append(0.0)
        for batch in micro_batches:
            loss = model(batch, kind).sum() / EXAMPLES
            loss.backward()
            losses[-1] += loss.item()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return losses


def one_task(folder, kind, strategy, **train) -> Run:
    task = tiny_tasks.task("only", kind) | ({"score_scale": [0, 1]} if kind == "regress" else {})
    recipe = tiny_tasks.recipe(
        folder, [task], strategy=strategy, lr=LR, steps=STEPS, examples_per_step=EXAMPLES, **train
    )
    recipe["model"]["head_dropout"] = DROPOUT
    return tiny_tasks.build(recipe)


def plain_twin(run: Run, folder: str) -> tuple[Plain, dict[str, nn.Parameter]]:
    """The same model by hand, and what is trained of it under the names of mtnlp."""
    start = tiny_tasks.weights(run)
    plain = Plain(folder, len(start["head/only/out.bias"]))
    plain.out.weight.data, plain.out.bias.data = start["head/only/out.weight"], start["head/only/out.bias"]
    trained = {"head/only/out.weight": plain.out.weight, "head/only/out.bias": plain.out.bias}
    if run.model.strategy.bank is None:
        return plain, trained | {f"shared/net.{name}": p for name, p in plain.net.named_parameters()}
    pieces = run.model.strategy.bank.named(0)
    plain.net.requires_grad_(False)
    for name, module in list(plain.net.named_modules()):
        if f"{name}.down" in pieces:
            layer = LowRank(module, pieces[f"{name}.down"], pieces[f"{name}.up"])
            plain.net.set_submodule(name, layer)
            trained |= {f"{name}.down": layer.down, f"{name}.up": layer.up}
    return plain, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_tasks.backbone("minilm", tmp_path_factory.mktemp("backbone"), dropout=DROPOUT)


@pytest.mark.parametrize("kind", ["classify", "pair", "multilabel", "regress", "choose", "tag"])
@pytest.mark.parametrize("strategy", ["lora-per-task", "full"])
def test_a_task_alone_is_plain_single_task_training_bit_for_bit(folder, strategy, kind):
    run = one_task(folder, kind, LORA if strategy == "lora-per-task" else strategy)
    plain, trained = plain_twin(run, folder)
    start = {name: p.detach().clone() for name, p in trained.items()}
    batches = [tiny_tasks.batches(run, step) for step in range(STEPS)]

    found = [record.losses["only"] for record in steps(run)]
    expected = train_plainly(plain, list(trained.values()), batches, kind, run.seed)

    end = tiny_tasks.weights(run)
    if (bank := run.model.strategy.bank) is not None:
        end = {name: tensor for name, tensor in end.items() if not name.startswith("bank/")} | bank.named(0)
    assert end.keys() == trained.keys()
    worst = max(float((end[name] - p).detach().abs().max()) for name, p in trained.items())
    moved = min(float((start[name] - p).detach().abs().max()) for name, p in trained.items())
    print(f"{strategy}, {kind}: {len(trained)} tensors, loss {found[0]:.4f} -> {found[-1]:.4f}; every tensor moved by "
          f"{moved:.1e} or more; largest difference {worst:.1e}; losses {max(abs(a-b) for a,b in zip(found,expected))}")
    assert tiny_tasks.dropouts(run.model) == {DROPOUT}
    assert all(torch.equal(end[name], p) for name, p in trained.items())
