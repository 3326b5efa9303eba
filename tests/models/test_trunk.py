"""Kept states of frozen blocks: the same training as without, and the blocks run once per row only."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch

from mtnlp import strategies
from mtnlp.data.batch import Batch
from mtnlp.data.stream import lay_out
from mtnlp.errors import MtnlpError
from mtnlp.models.trunk import TrunkCache, frozen_blocks

CASES = {  # network, strategy, options -> frozen blocks of two
    "heads on bert": ("bert", "heads", {}, 2),
    "one block of bert": ("bert", "lora-per-task", {"targets": r"layer\.1\."}, 1),
    "one block of modernbert": ("modernbert", "lora-per-task", {"targets": r"layers\.1\."}, 1),
    "one block of llama": ("llama", "lora", {"targets": r"layers\.1\."}, 1),
    "one block of gpt2": ("gpt2", "lora-per-task", {"targets": r"h\.1\."}, 1),
}


def flat(batch: Batch) -> Batch:
    lengths = batch.attention_mask.sum(1).numpy()
    return Batch(**{**vars(batch), "layout": lay_out(np.zeros(len(lengths), np.int64), lengths, None)})


def step(model, batch):
    """Losses and all gradients of a batch, in training mode."""
    model.zero_grad()
    model.train()
    model.begin([0, 1])
    out = model(batch)
    out.sums.sum().backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    bank = model.strategy.bank
    return [out.sums.detach(), *grads, *([] if bank is None else [bank.leaf.grad.clone()])]


@pytest.mark.parametrize("laid_out", [lambda batch: batch, flat], ids=["padded", "flat"])
@pytest.mark.parametrize("case", CASES)
def test_the_second_epoch_skips_the_frozen_blocks_and_learns_the_same(case, laid_out, tmp_path):
    network, strategy, options, frozen = CASES[case]
    model = tiny.disturb(tiny.model(strategy, network, ["a", "b"], **options))
    batch = laid_out(tiny.batch(model.backbone.family, (0, 0, 1)))
    expected = step(model, batch)
    cache = TrunkCache(model.backbone, tmp_path / "x" / "trunk", tokens=99, dtype=torch.float32)
    model.trunk = cache

    assert len(cache.blocks) == frozen
    assert cache.bytes == 99 * 32 * 4
    for seen in (False, True):
        assert cache.holds(batch) is seen
        torch.testing.assert_close(step(model, batch), expected, rtol=1e-5, atol=1e-6)
    cache.close()
    assert not (tmp_path / "x" / "trunk").exists()


def test_frozen_blocks_are_not_run_for_rows_that_have_been_seen(tmp_path):
    model = tiny.model("heads", "bert", ["a", "b"])
    batch = tiny.batch("encoder", (0, 0, 1))
    model.trunk = TrunkCache(model.backbone, tmp_path / "trunk", tokens=99, dtype=torch.float32)
    step(model, batch)
    kept = copy.deepcopy(model.backbone.net.state_dict())
    for parameter in model.backbone.net.encoder.parameters():
        parameter.data.fill_(torch.nan)  # whoever uses it has a loss of nan

    assert all(values.isfinite().all() for values in step(model, batch))
    model.backbone.net.load_state_dict(kept)


def test_rows_are_found_again_in_another_batch(tmp_path):
    model = tiny.disturb(tiny.model("lora-per-task", "bert", ["a", "b"], targets=r"layer\.1\."))
    whole = tiny.batch("encoder", (0, 0, 1))
    part = flat(tiny.part(whole, slice(0, 2)))
    expected = step(model, part)
    model.trunk = TrunkCache(model.backbone, tmp_path / "trunk", tokens=99, dtype=torch.float32)

    step(model, whole)

    assert model.trunk.holds(part)
    torch.testing.assert_close(step(model, part), expected, rtol=1e-5, atol=1e-6)


def test_below_the_first_block_that_learns_nothing_is_dropped(tmp_path):
    model = tiny.model("lora-per-task", "bert", ["a"], targets=r"layer\.1\.")
    model.trunk = TrunkCache(model.backbone, tmp_path / "trunk", tokens=9, dtype=torch.float32)

    model.train()

    net = model.backbone.net
    assert not any(m.training for m in (*net.embeddings.modules(), *net.encoder.layer[0].modules()))
    assert all(m.training for m in net.encoder.layer[1].modules())


@pytest.mark.parametrize(
    ("network", "strategy"), [("bert", "full"), ("bert", "lora-per-task"), ("t5", "lora")]
)
def test_where_every_block_learns_the_fix_is_told(network, strategy, tmp_path):
    model = tiny.model(strategy, network, ["a"])

    assert frozen_blocks(model.backbone) == []
    with pytest.raises(MtnlpError, match=r"cache_trunk.*nothing to keep.*targets"):
        TrunkCache(model.backbone, tmp_path / "trunk", tokens=9, dtype=torch.float32)


@pytest.mark.parametrize("strategy", ["lora", "lora-per-task"])
def test_nothing_is_kept_where_a_layer_before_the_blocks_learns(strategy):
    class Widened(torch.nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside, self.widen = inside, torch.nn.Linear(32, 32)

        def forward(self, *args, **options):
            return self.widen(self.inside(*args, **options))

    backbone = tiny.backbone("bert")
    backbone.net.embeddings = Widened(backbone.net.embeddings)
    backbone.net.get_input_embeddings = lambda: backbone.net.embeddings.inside.word_embeddings

    strategies.get(strategy)(targets=r"widen|layer\.1\.").attach(backbone, ["a"], 0)

    assert frozen_blocks(backbone) == []


def test_kept_states_come_back_in_the_type_that_the_network_gave(tmp_path):
    model = tiny.model("heads", "bert", ["a", "b"])
    batch = tiny.batch("encoder", (0, 0, 1))
    model.trunk = TrunkCache(model.backbone, tmp_path / "trunk", tokens=99, dtype=torch.bfloat16)
    model.begin([0, 1])

    types = []
    for _ in range(2):
        with torch.no_grad(), model.trunk.around(batch), torch.autocast("cpu", torch.bfloat16):
            types.append(model.backbone.hidden(batch).dtype)
    assert types == [torch.float32] * 2


def test_a_disk_that_is_too_small_is_told_before_a_file_is_made(tmp_path):
    model = tiny.model("heads", "bert", ["a", "b"])

    with pytest.raises(MtnlpError, match=r"cache_trunk: .* MiB may be needed in .* are free. Leave"):
        TrunkCache(model.backbone, tmp_path / "trunk", tokens=1 << 50, dtype=torch.float32)
    assert not list(tmp_path.iterdir())
