"""Likelihoods of texts against plain loops, one text and one window at a time, in double precision."""

from __future__ import annotations

import math
import random

import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mtnlp.data.encode import Encoder
from mtnlp.data.store import TokenStore
from mtnlp.errors import MtnlpError
from mtnlp.models.likelihood import Likelihood, of_targets, of_texts, windows
from mtnlp.tasks.spec import Example, TaskSpec, Template

TASKS = ("a", "b")
LENGTHS = {0: [3, 0, 41, 12, 1], 1: [13, 12, 30, 24, 5, 60]}  # tokens of the texts of each task
WINDOW = 12


def tokenizer(*, ends: bool) -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["[PAD]", "[BOS]", "[EOS]", *(f"w{i}" for i in range(3, 60))])}
    made = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends:
        made.post_processor = processors.TemplateProcessing(
            single="$A [EOS]", pair="$A [EOS] $B [EOS]", special_tokens=[("[EOS]", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", model_max_length=64
    )


def texts() -> dict[int, list[str]]:
    draw = random.Random(0)
    return {
        task: [" ".join(f"w{draw.randint(3, 59)}" for _ in range(n)) for n in lengths]
        for task, lengths in LENGTHS.items()
    }


def model(kind: str):
    """With a row per task that differs, in double precision."""
    made = tiny.disturb(tiny.model("lora-per-task", kind, TASKS)).double()
    made.begin([0, 1])
    return made


def collected(lists) -> dict[tuple[int, int], Likelihood]:
    found = {}
    for batch in lists:
        for task, row, likelihood in batch:
            assert (task, row) not in found
            found[task, row] = likelihood
    return found


def by_loop(made, task: int, ids: list[int], stride: int) -> float:
    """The log-likelihood of one text: the next `stride` tokens at a time, each with what fits before it."""
    sequence, total, done = [1, *ids], 0.0, 0
    while done < len(ids):
        end = min(done + (stride if done else WINDOW), len(ids))
        read = sequence[max(0, end - WINDOW) : end]
        batch = tiny.assemble(
            torch.tensor([read]), torch.ones(1, len(read), dtype=torch.long), None, torch.zeros(1), [task]
        )
        made._select(batch)
        with torch.no_grad():
            scores = made.backbone.net(input_ids=batch.input_ids).logits[0].log_softmax(-1)
        for place in range(done + 1, end + 1):
            total += float(scores[place - 1 - (end - len(read)), sequence[place]])
        done = end
    return total


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("max_tokens", [24, 400])
def test_rolling_likelihoods_equal_a_loop_over_single_windows(kind, stride, max_tokens):
    made = model(kind)
    encoder = Encoder(tokenizer(ends=False), "decoder", WINDOW, 2)

    found = collected(of_texts(made, encoder, texts(), max_tokens=max_tokens, stride=stride))

    assert found.keys() == {(task, row) for task, own in LENGTHS.items() for row in range(len(own))}
    for (task, row), likelihood in found.items():
        text = texts()[task][row]
        expected = by_loop(made, task, encoder.pieces.ids([text])[0], stride or WINDOW)
        assert likelihood.logprob == pytest.approx(expected, abs=1e-9)
        assert (likelihood.tokens, likelihood.words) == (LENGTHS[task][row],) * 2
        assert likelihood.bytes == len(text)


@pytest.mark.parametrize("stride", range(1, WINDOW + 1))
def test_windows_score_every_token_once_and_read_as_far_back_as_they_can(stride):
    for tokens in range(80):
        found = windows(tokens, WINDOW, stride)

        assert [place for own in found for place in range(own.first, own.stop + 1)] == [*range(1, tokens + 1)]
        assert all(own.stop - own.start == min(WINDOW, own.stop) and own.first > own.start for own in found)
        assert len(found) == (0 if not tokens else 1 + max(0, math.ceil((tokens - WINDOW) / stride)))


def test_what_is_left_after_a_stop_is_scored_in_the_same_batches_with_the_same_bits():
    made, encoder = model("llama").float(), Encoder(tokenizer(ends=False), "decoder", WINDOW, 2)
    own = [text for part in texts().values() for text in part]
    whole = list(of_texts(made, encoder, {0: own}, max_tokens=48))
    for stop in range(1, len(whole)):
        done = {row for batch in whole[:stop] for _, row, _ in batch}
        left = [row for row in range(len(own)) if row not in done]

        again = list(of_texts(made, encoder, {0: [own[row] for row in left]}, max_tokens=48))

        assert [[(left[row], found) for _, row, found in batch] for batch in again] == [
            [(row, found) for _, row, found in batch] for batch in whole[stop:]
        ]


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_targets_given_prompts_equal_single_forwards(kind):
    made = model(kind)
    form = made.backbone.family
    encoder = Encoder(tokenizer(ends=form == "encoder-decoder"), form, 60, 20)
    draw = random.Random(1)
    stores, targets = {}, {}
    for task, name in enumerate(TASKS):
        spec = TaskSpec(name, "generate", {}, templates={"plain": Template("{{ text }}")})
        said = [
            [" ".join(f"w{draw.randint(3, 59)}" for _ in range(draw.randint(1, 15))) for _ in range(2)]
            for _ in range(5)
        ]
        examples = [Example(name, i, {"text": prompt}, target) for i, (prompt, target) in enumerate(said)]
        stores[task] = TokenStore.from_columns(encoder.encode(spec, examples))
        targets[task] = [target for _, target in said]

    found = collected(of_targets(made, stores, targets, max_tokens=60, pad_id=0))

    assert len(found) == 10
    for (task, row), likelihood in found.items():
        store = stores[task]
        ids = torch.from_numpy(store["tokens"][slice(*store.token_offsets[row : row + 2])].astype("int64"))[
            None
        ]
        if form == "decoder":
            first, scored = int(store["prompt_lengths"][row]), ids[0]
            target, extra = scored[first:], {}
        else:
            target = torch.from_numpy(
                store["target_tokens"][slice(*store.target_offsets[row : row + 2])].astype("int64")
            )
            first, extra = 1, {"decoder_input_ids": torch.tensor([[0, *target[:-1].tolist()]])}
        made._select(tiny.assemble(ids, torch.ones_like(ids), None, torch.zeros(1), [task]))
        with torch.no_grad():
            scores = made.backbone.net(input_ids=ids, **extra).logits[0].log_softmax(-1)
        expected = scores[first - 1 :][: len(target)].gather(1, target[:, None]).sum()
        assert likelihood.logprob == pytest.approx(
            float(expected), abs=1e-4
        )  # the losses are summed in float32
        text = targets[task][row]
        assert (likelihood.tokens, likelihood.words) == (len(target), len(text.split()))
        assert target[-1] == 2


def test_bytes_are_those_of_utf8_and_lone_halves_of_characters_count():
    assert Likelihood.of("tëxt\u2028 \ud800x", -1.5, 4) == Likelihood(-1.5, 4, 2, 13)


def test_what_cannot_be_scored_says_why():
    made, encoder = model("llama"), Encoder(tokenizer(ends=False), "decoder", WINDOW, 2)
    with pytest.raises(MtnlpError, match="stride=13 must be 1 to 12"):
        next(of_texts(made, encoder, texts(), max_tokens=99, stride=13))
    with pytest.raises(MtnlpError, match="needs a decoder, and this is an encoder-decoder"):
        next(of_texts(made, Encoder(tokenizer(ends=True), "encoder-decoder", 12, 2), texts(), max_tokens=99))
    encoder.tokenizer.bos_token = encoder.tokenizer.eos_token = None
    with pytest.raises(MtnlpError, match="knows no token for the start or end"):
        next(of_texts(made, encoder, texts(), max_tokens=99))
    assert list(of_texts(made, Encoder(tokenizer(ends=False), "decoder", 12, 2), {0: []}, max_tokens=9)) == []
