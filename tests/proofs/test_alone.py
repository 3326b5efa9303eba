"""A task alone in a run is plain single-task training: bit for bit, or to rounding.

The plain side is what one would write by hand for one task: a network of transformers, a low-rank update in
its linear layers, a linear head, one loss, torch's AdamW and transformers' schedule. It shares no code with
mtnlp's strategies, heads, optimizer and loop. Both sides start from the same weights, see the same batches,
and seed dropout in every step from the same three numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import peft
import pytest
import tiny_tasks
import torch
import torch.nn.functional as F
import transformers as tr
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from mtnlp.data.batch import Batch
from mtnlp.kernels.dropout import speed_up
from mtnlp.train.loop import Run, steps

STEPS, EXAMPLES, RANK, ALPHA = 8, 10, 8, 16
DROPOUT, LR, DECAY = 0.1, 5e-3, 0.01
LORA = {"name": "lora-per-task", "rank": RANK, "alpha": ALPHA, "dropout": DROPOUT}
ENCODER_KINDS = ("classify", "pair", "regress", "choose", "tag")
NETWORKS = {  # a name that tiny_hub has a stand-in for -> how transformers loads it
    "minilm": (tr.BertModel, {"add_pooling_layer": False}),
    "t5": (tr.T5ForConditionalGeneration, {}),
    "SmolLM2": (tr.LlamaForCausalLM, {}),
}
CASES = [*((kind, "minilm") for kind in ENCODER_KINDS), ("generate", "t5"), ("generate", "SmolLM2")]


class LowRank(nn.Module):
    """y = x W^T + b + (alpha / rank) dropout(x) A^T B"""

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(DROPOUT)
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())
        self.weight = base.weight  # T5 looks at its dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (ALPHA / RANK) * (F.linear(self.dropout(x), self.down) @ self.up)


class Encoder(nn.Module):
    """A network with one linear head."""

    def __init__(self, net: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.net, self.dropout = net, nn.Dropout(DROPOUT)
        self.out = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        self.out.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})

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
        if kind == "choose":
            scores = pad_sequence(scores.squeeze(-1).split(part.counts.tolist()), True, -torch.inf)
        return F.cross_entropy(scores, part.target, reduction="none")


class Writer(nn.Module):
    """A network that writes text; the vocabulary is scored where a target token stands, not elsewhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Batch, kind: str) -> Tensor:
        """(N,) mean losses of the examples' target tokens."""
        net, labels = self.net, batch.labels
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if net.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = net.prepare_decoder_input_ids_from_labels(labels)
        else:
            labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        hidden: list[Tensor] = []
        hook = net.lm_head.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
        net(**inputs)
        hook.remove()
        there = labels != -100
        losses = F.cross_entropy(net.lm_head(hidden[0][there]), labels[there], reduction="none")
        return torch.stack([own.mean() for own in losses.split(there.sum(1).tolist())])


@dataclass
class Twin:
    """The same model by hand, with what is trained of it under mtnlp's names."""

    model: nn.Module
    trained: dict[str, nn.Parameter]
    owners: list[list[nn.Parameter]] = field(default_factory=list)  # each is clipped by its own norm

    def train(self, batches: list[list[Batch]], kind: str, seed: int, max_norm: float | None) -> list[float]:
        """Losses of all steps."""
        groups = [
            {"params": [p for p in self.trained.values() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in self.trained.values() if p.ndim == 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)
        schedule = tr.get_linear_schedule_with_warmup(optimizer, 1, len(batches))
        losses = []
        speed_up(self.model)  # the same masks on both sides; tests/kernels shows that they are dropout's
        self.model.train()
        for step, micro_batches in enumerate(batches):
            torch.manual_seed(
                int(np.random.SeedSequence([seed, step, 0]).generate_state(1, np.uint64)[0]) >> 1
            )
            losses.append(0.0)
            for batch in micro_batches:
                loss = self.model(batch, kind).sum() / EXAMPLES
                loss.backward()
                losses[-1] += loss.item()
            for owned in self.owners if max_norm else []:
                clip_grad_norm_(owned, max_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return losses


def one_task(folder: str, kind: str, strategy: str, *, max_norm: float = 1e9) -> Run:
    task = tiny_tasks.task("only", kind) | ({"score_scale": [0, 1]} if kind == "regress" else {})
    recipe = tiny_tasks.recipe(
        folder, [task], strategy=LORA if strategy == "lora-per-task" else strategy, lr=LR, steps=STEPS,
        examples_per_step=EXAMPLES, max_norm=max_norm,
    )  # fmt: skip
    recipe["model"]["head_dropout"] = DROPOUT
    run = tiny_tasks.build(recipe)
    run.mixture.flat = False  # the plain side pads; tests/models/test_flat.py has flat against padded
    return run


def loaded(folder: str, network: str) -> nn.Module:
    kind, options = NETWORKS[network]
    return kind.from_pretrained(folder, attn_implementation="eager", **options)


def twin_of(run: Run, folder: str, network: str) -> Twin:
    net = loaded(folder, network)
    start, bank, trained = tiny_tasks.weights(run), run.model.strategy.bank, {}
    if bank is None:
        trained = {f"shared/net.{name}": p for name, p in net.named_parameters()}
    else:
        net.requires_grad_(False)
        pieces = bank.named(0)
        for name in [name.removesuffix(".down") for name in pieces if name.endswith(".down")]:
            layer = LowRank(net.get_submodule(name), pieces[f"{name}.down"], pieces[f"{name}.up"])
            net.set_submodule(name, layer)
            trained |= {f"{name}.down": layer.down, f"{name}.up": layer.up}
    if not run.model.heads:
        return Twin(Writer(net), trained, [list(trained.values())])
    model = Encoder(net, start["head/only/out.weight"], start.get("head/only/out.bias"))
    head = {f"head/only/out.{name}": p for name, p in model.out.named_parameters()}
    shared, own = list(trained.values()), list(head.values())
    return Twin(model, trained | head, [shared, own] if bank is None else [shared + own])


def trained_by(run: Run) -> dict[str, Tensor]:
    """What a run has trained, the row of the bank taken apart."""
    found, bank = tiny_tasks.weights(run), run.model.strategy.bank
    if bank is not None:
        del found["bank/only"]
        found |= {name: piece.clone() for name, piece in bank.named(0).items()}
    return found


def farthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of two tables."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name].detach()).abs().max()) for name in found)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny networks of three families, with dropout."""
    return {
        name: tiny_tasks.backbone(name, tmp_path_factory.mktemp(name), dropout=DROPOUT) for name in NETWORKS
    }


@pytest.mark.parametrize(("kind", "network"), CASES)
@pytest.mark.parametrize("strategy", ["lora-per-task", "full"])
def test_a_task_alone_is_plain_single_task_training(folders, strategy, kind, network):
    """Bit for bit with all weights; a low-rank update adds its gradient inside one product, which rounds once
    less than autograd's sum of two."""
    run = one_task(folders[network], kind, strategy)
    twin, start = twin_of(run, folders[network], network), trained_by(run)
    batches = [tiny_tasks.batches(run, step) for step in range(STEPS)]

    losses = [record.losses["only"] for record in steps(run)]
    expected = twin.train(batches, kind, run.seed, None)

    end = trained_by(run)
    worst = farthest(end, twin.trained)
    moved = min(farthest({name: end[name]}, {name: start[name]}) for name in end)
    print(
        f"\n{strategy}, {kind} on {network}: {STEPS} steps, {sum(map(len, batches))} micro-batches, loss "
        f"{losses[0]:.3f} -> {losses[-1]:.3f}, {len(end)} tensors moved by {moved:.0e} or more; "
        f"largest difference {worst:.1e}"
    )
    assert worst == 0 if strategy == "full" else worst < 5e-6
    assert losses == pytest.approx(expected, abs=1e-6)
    assert moved > 0 and tiny_tasks.dropouts(run.model) <= {DROPOUT}


@pytest.mark.parametrize("strategy", ["lora-per-task", "full"])
def test_clipping_equals_torch_s_by_owner_but_for_the_last_bit_of_a_norm(folders, strategy):
    run = one_task(folders["minilm"], "regress", strategy, max_norm=1.0)
    twin = twin_of(run, folders["minilm"], "minilm")
    batches = [tiny_tasks.batches(run, step) for step in range(STEPS)]

    norms = [record.grad_norm for record in steps(run)]
    twin.train(batches, "regress", run.seed, 1.0)

    worst = farthest(trained_by(run), twin.trained)
    print(
        f"\n{strategy}: norms {min(norms):.0f} to {max(norms):.0f} clipped to 1, "
        f"largest difference {worst:.1e}"
    )
    assert min(norms) > 1
    assert worst < 5e-6


@pytest.mark.parametrize(("kind", "network"), [("classify", "minilm"), ("generate", "t5")])
def test_a_task_alone_is_what_peft_trains_but_for_rounding(folders, kind, network):
    run = one_task(folders[network], kind, "lora-per-task")
    twin, pieces = twin_of(run, folders[network], network), run.model.strategy.bank.named(0)
    layers = [name.removesuffix(".down") for name in pieces if name.endswith(".down")]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=layers)
    twin.model.net = peft.get_peft_model(loaded(folders[network], network), config).base_model.model
    for name in layers:
        layer = twin.model.net.get_submodule(name)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        down.data, up.data = pieces[f"{name}.down"].clone(), pieces[f"{name}.up"].t().clone()
        twin.trained |= {f"{name}.down": down, f"{name}.up": up}
    batches = [tiny_tasks.batches(run, step) for step in range(STEPS)]

    list(steps(run))
    twin.train(batches, kind, run.seed, None)

    expected = {name: p.t() if name.endswith(".up") else p for name, p in twin.trained.items()}
    worst = farthest(trained_by(run), expected)
    print(f"\n{kind} on {network}, {len(layers)} LoRA layers of peft: largest difference {worst:.1e}")
    assert worst < 2e-6
