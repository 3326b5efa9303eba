"""Written texts against one-at-a-time generation by transformers, and against plain loops and counts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers as tr
from tokenizers import Tokenizer, models, pre_tokenizers

from mtnlp.data.collate import eval_batches
from mtnlp.data.encode import Columns
from mtnlp.data.store import TokenStore
from mtnlp.data.stream import lay_out
from mtnlp.errors import MtnlpError
from mtnlp.models.backbone import Backbone
from mtnlp.models.generation import Draw, Generation, Stop, before

BART = {
    **tiny._IDS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "dropout": 0.0,
    "forced_eos_token_id": None,
}  # fmt: skip
NETS = {
    **tiny.NETS,
    "bart": ("encoder-decoder", lambda: tr.BartForConditionalGeneration(tr.BartConfig(**BART))),
}
WRITERS = [kind for kind, (family, _) in NETS.items() if family != "encoder"]
LENGTHS = [9, 3, 6, 1, 9, 5]


def tokenizer() -> tr.PreTrainedTokenizerFast:
    """One word for every token."""
    words = {word: i for i, word in enumerate(["[PAD]", "[BOS]", "[EOS]", *(f"w{i}" for i in range(3, 60))])}
    made = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return tr.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", eos_token="[EOS]", model_max_length=64
    )


def writer(kind: str, *, seed: int = 0) -> Backbone:
    """A network whose next tokens differ by what it has read: with large weights, and an untied output."""
    family, make = NETS[kind]
    torch.manual_seed(seed)
    net = make()
    net.set_attn_implementation("eager")
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(4 if weight.dim() > 1 else 1)
        head = net.get_output_embeddings()
        head.weight = torch.nn.Parameter(torch.randn_like(head.weight))
    made = Backbone(net.eval(), tokenizer(), family, name=f"tiny-{kind}")
    made.runs_flat = True
    return made


def prompts(family: str, order=range(6), *, wide: int = 0):
    """Rows of LENGTHS in any order, with at least `wide` columns; padded on the left for a decoder."""
    draw = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, 60, (length,), generator=draw) for length in LENGTHS]
    width = max(wide, max(LENGTHS[i] for i in order))
    ids, mask = (
        torch.zeros(len(order), width, dtype=torch.long),
        torch.zeros(len(order), width, dtype=torch.long),
    )
    for place, i in enumerate(order):
        here = slice(width - LENGTHS[i], None) if family == "decoder" else slice(0, LENGTHS[i])
        ids[place, here], mask[place, here] = rows[i], 1
    return tiny.assemble(ids, mask, None, torch.zeros(len(order)), [0] * len(order))


def alone(backbone: Backbone, **options) -> list[list[int]]:
    """New tokens of every row of `prompts` by itself, by the network's own generate."""
    found = []
    for row in range(len(LENGTHS)):
        batch = prompts(backbone.family, [row])
        (tokens,) = backbone.net.generate(
            batch.input_ids, attention_mask=batch.attention_mask, pad_token_id=0, eos_token_id=2, **options
        )
        first = LENGTHS[row] if backbone.family == "decoder" else 1
        found.append(tokens[first:].tolist())
    return found


def words(backbone: Backbone, rows: list[list[int]]) -> list[str]:
    return [backbone.tokenizer.decode(row, skip_special_tokens=True) for row in rows]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_writes_what_each_prompt_gets_alone(kind, beams):
    backbone = writer(kind)
    expected = words(backbone, alone(backbone, max_new_tokens=12, do_sample=False, num_beams=beams))
    how = Generation(12, beams=beams)

    texts = backbone.generate(prompts(backbone.family), how)

    assert texts == expected and len(set(texts)) > 2
    shuffled = [3, 0, 5, 4, 1, 2]
    wide = backbone.generate(prompts(backbone.family, shuffled, wide=14), how)
    assert wide == [expected[row] for row in shuffled]


@pytest.mark.parametrize("kind", WRITERS)
def test_an_answer_has_exactly_as_many_tokens_as_asked_for_unless_it_ends(kind):
    backbone = writer(kind)
    steps = []
    backbone.net.get_output_embeddings().register_forward_hook(lambda *_: steps.append(1))
    rows = alone(backbone, max_new_tokens=7, do_sample=False)
    steps.clear()

    texts = backbone.generate(prompts(backbone.family), Generation(7))

    assert texts == words(backbone, rows)
    assert len(steps) == max(map(len, rows)) == 7


@pytest.mark.parametrize("kind", WRITERS)
def test_a_stop_string_cuts_its_row_and_ends_the_loop_when_all_rows_are_done(kind):
    backbone = writer(kind)
    free = backbone.generate(prompts(backbone.family), Generation(30))
    stop = tuple({text.split()[2] for text in free if len(text.split()) > 2})
    steps = []
    backbone.net.get_output_embeddings().register_forward_hook(lambda *_: steps.append(1))

    texts = backbone.generate(prompts(backbone.family), Generation(30, stop=stop))

    assert texts == [before(text, stop) for text in free]
    assert len(steps) <= max(len(text.split()) for text in texts) + 1 <= 3


def test_stop_strings_across_tokens_of_long_texts_are_found_in_the_row_that_has_them():
    spoken = tokenizer()
    row = [spoken.convert_tokens_to_ids(f"w{i}") for i in itertools.islice(itertools.cycle(range(3, 60)), 90)]
    ids = torch.tensor([row, row[1:] + row[:1]])
    stop = Stop(spoken, ("w7 w8",), first=1)

    held = [stop(ids[:, : end + 1], None).tolist() for end in range(1, 90)]

    # Row 0 has both words at places 4 and 5, row 1 a place earlier; again 57 later.
    assert [held.index([False, True]), held.index([True, True])] == [3, 4]
    assert before("a b c b", ("b", "c")) == "a " and before("a", ("x",)) == "a"


def test_settings_of_the_checkpoint_that_change_answers_do_not_leak():
    backbone = writer("t5")
    plain = backbone.generate(prompts(backbone.family), Generation(10))
    first = backbone.tokenizer.convert_tokens_to_ids(plain[0].split()[0])
    own = backbone.net.generation_config
    own.update(
        min_length=9, no_repeat_ngram_size=1, repetition_penalty=5.0, forced_eos_token_id=2, num_beams=4,
        length_penalty=3.0, max_length=3, do_sample=True, temperature=9.0, top_k=5,
    )  # fmt: skip
    before_it = own.to_dict()

    assert backbone.generate(prompts(backbone.family), Generation(10)) == plain
    assert backbone.net.generation_config is own and own.to_dict() == before_it
    own.bad_words_ids = [[first]]  # what is no token of a text stays so
    assert backbone.generate(prompts(backbone.family), Generation(10))[0].split()[0] != plain[0].split()[0]
    own.bad_words_ids, own.forced_bos_token_id = None, 40
    assert all(text.startswith("w40") for text in backbone.generate(prompts(backbone.family), Generation(10)))


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_samples_depend_on_seed_and_key_and_not_on_the_batch(kind):
    backbone = writer(kind)
    keys = [f"doc {row}" for row in range(len(LENGTHS))]
    how = Generation(8, temperature=1.5, top_k=20, top_p=0.95, seed=3)

    texts = backbone.generate(prompts(backbone.family), how, keys=keys)

    torch.manual_seed(99)
    order = [4, 1, 5, 0, 3, 2]
    mixed = backbone.generate(prompts(backbone.family, order, wide=13), how, keys=[keys[i] for i in order])
    assert mixed == [texts[row] for row in order]
    assert backbone.generate(prompts(backbone.family, [2]), how, keys=[keys[2]]) == [texts[2]]
    assert backbone.generate(prompts(backbone.family), replace(how, seed=4), keys=keys) != texts
    same = backbone.generate(prompts(backbone.family, [0, 0]), how, keys=["a", "b"])
    assert same[0] != same[1]
    cold = replace(how, temperature=1e-4)
    assert backbone.generate(prompts(backbone.family), cold, keys=keys) == backbone.generate(
        prompts(backbone.family), Generation(8)
    )


def test_samples_are_as_frequent_as_the_warped_probabilities():
    draws, ids = 20_000, torch.zeros(1, 4, dtype=torch.long)
    scores = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0])
    how = Generation(temperature=0.7, top_k=5, top_p=0.97)
    warped = (scores / 0.7).masked_fill(scores < -2, -torch.inf).softmax(0)
    kept = warped.cumsum(0) - warped < 0.97  # they stand in order
    expected = (warped * kept / (warped * kept).sum()).numpy()

    found = Draw(how, [str(i) for i in range(draws)], first=2)(ids.repeat(draws, 1), scores.repeat(draws, 1))

    counts = np.bincount(found.argmax(1).numpy(), minlength=6)
    there = expected > 0
    assert not counts[~there].any()
    chi = ((counts[there] - draws * expected[there]) ** 2 / (draws * expected[there])).sum()
    assert chi < 20  # 99.9 % of right samplers with 4 degrees of freedom stay below 18.5
    later = Draw(how, ["0", "1"], first=1)(ids.repeat(2, 1), scores.repeat(2, 1))
    assert not torch.equal(later, found[:2])  # another place, other noise


def test_prompts_encoded_in_blocks_are_answered_alike():
    model = tiny.disturb(tiny.model("lora-per-task", "t5", ("a", "b")), scale=1.0)
    model.backbone.tokenizer = tokenizer()
    batch = prompts("encoder-decoder")
    batch = tiny.assemble(batch.input_ids, batch.attention_mask, None, torch.zeros(6), [0, 0, 0, 1, 1, 1])
    layout = lay_out(np.array([0, 1, 1, 1, 0, 1]), np.array(LENGTHS))

    texts = model.generate(batch, Generation(9))

    assert model.generate(replace(batch, layout=layout), Generation(9)) == texts
    assert len(set(texts)) > 2


def written(form: str, lengths, targets) -> TokenStore:
    """Rows of these many prompt and target tokens, as a text form encodes them."""
    count, both = len(lengths), lengths + targets
    tokens = np.concatenate([np.arange(3, 3 + n) for n in (both if form == "decoder" else lengths)])
    arrays = {"sequences": np.ones(count, np.int32), "tokens": tokens.astype(np.uint16)}
    if form == "decoder":
        arrays |= {"token_counts": both, "length": both, "prompt_lengths": lengths, "target_length": 0 * both}
    else:
        arrays |= {"token_counts": lengths, "length": lengths, "target_length": targets}
        arrays |= {"target_counts": targets, "target_tokens": np.ones(targets.sum(), np.uint16)}
    return TokenStore.from_columns(Columns(arrays, "generate", form, 0, True, ()))


@pytest.mark.parametrize(
    ("form", "flat"), [("encoder-decoder", False), ("encoder-decoder", True), ("decoder", False)]
)
def test_prompts_are_batched_without_regard_to_targets_and_the_rest_comes_out_the_same(form, flat):
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 90, 120).astype(np.int32)
    stores = [{0: written(form, lengths, draw.integers(1, most, 120).astype(np.int32))} for most in (2, 60)]
    options = {"max_tokens": 900, "pad_id": 0, "form": form, "generate": True, "flat": flat}

    plain, whole = (list(eval_batches(store, {0: np.arange(120)}, **options)) for store in stores)

    rows = [batch.slices[0].rows.tolist() for batch in whole]
    assert [batch.slices[0].rows.tolist() for batch in plain] == rows
    assert sorted(row for own in rows for row in own) == list(range(120))
    assert all(batch.padded_tokens <= 900 and (batch.layout is not None) == flat for batch in whole)
    assert min(lengths[rows[0]]) >= max(lengths[rows[-1]])
    for stop in range(1, len(rows)):
        left = np.array(sorted(row for own in rows[stop:] for row in own))
        again = eval_batches(stores[1], {0: left}, **options)
        for batch, before_it in zip(again, whole[stop:], strict=True):
            assert torch.equal(batch.input_ids, before_it.input_ids)
            assert not flat or torch.equal(batch.layout.source.index, before_it.layout.source.index)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be 1 or more"),
        ({"temperature": 0.0}, "above 0; leave it out for greedy"),
        ({"top_p": 0.5}, "without a temperature nothing is sampled"),
        ({"temperature": 1.0, "beams": 2}, "sample with beams=1"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5 must be in"),
        ({"stop": ("a", "")}, "an empty string would end every text"),
        ({"stop": "ab"}, "must be a list"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, says):
    with pytest.raises(MtnlpError, match=says):
        Generation(**options)


def test_more_tokens_than_the_network_can_take_are_refused_with_the_number_that_fits():
    with pytest.raises(
        MtnlpError, match=r"takes 64 tokens, but a prompt of 9 and max_new_tokens=56 .* at most 55"
    ):
        writer("gpt2").generate(prompts("decoder"), Generation(56))
    with pytest.raises(MtnlpError, match=r"tiny-bart takes 64 tokens, but max_new_tokens=65"):
        writer("bart").generate(prompts("encoder-decoder"), Generation(65))
    writer("t5").generate(prompts("encoder-decoder", [0]), Generation(70))
