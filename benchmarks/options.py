"""Scoring options by likelihood: ours against lm-evaluation-harness, in one process.

Run:     python benchmarks/options.py [--json options.json], in an environment of its own:
         pip install lm_eval==0.4.13 torch==2.13.0, then mtnlp (`pip install -e .`)
Cost:    fifteen minutes on one core; a minute with --quick
A T5 shape (width 256, 4 + 4 layers) and a Llama shape (width 256, 8 layers), both in float32 with random
weights and 32,128 tokens, read contexts of about 130 tokens (log-normal, 30 to 400) and score K options of
one to three words: drawn anew for each document at K = 4, the same list for all at K = 20 and 77. Times are
from texts to log-likelihoods, tokenisation included. lm-eval gets its requests ready made and is measured at
batch sizes 16 and 1; the faster one counts. Both sides score the same tokens, so ours puts no end token
behind an option here; "with ends" is ours as it is otherwise. Before timing: every log-likelihood must be
within 1e-4 of lm-eval's, the choices the same, and no context read twice, else exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _kit import Row, arguments, compared, doing, report, rounds

from mtnlp.bench.predict import Predictor
from mtnlp.bench.questions import Questions
from mtnlp.runs import plain
from mtnlp.tasks.spec import Example, TaskSpec, Template

VOCABULARY, WORDS = 32128, 24_000
PAD, END, UNKNOWN = 0, 1, 2
TOLERANCE = 1e-4
# (shape, options) -> documents, how many times faster than lm-eval ours is to be
CASES = {
    ("t5", 4): (96, 3.4),
    ("t5", 20): (40, 8.0),
    ("t5", 77): (16, None),
    ("llama", 4): (40, 6.0),
    ("llama", 20): (24, 12.0),
}


@dataclass(frozen=True)
class Document:
    context: str
    options: list[str]


def words() -> list[str]:
    """Made-up words, the more usual ones first."""
    draw = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    made = ("".join(draw.choice(syllables, draw.integers(1, 4))) for _ in range(4 * WORDS))
    return list(dict.fromkeys(made))[: WORDS + WORDS // 4]


def documents(count: int, options: int, seed: int = 1) -> list[Document]:
    draw, known = np.random.default_rng(seed), words()

    def text(n: int) -> str:
        return " ".join(known[int(i)] for i in len(known) * draw.random(n) ** 2)

    def several() -> list[str]:
        return [text(int(draw.integers(1, 4))) for _ in range(options)]

    fixed = None if options == 4 else several()
    lengths = np.clip(draw.lognormal(4.68, 0.45, count), 30, 400).astype(int)
    return [Document(f"{text(n)} question which one answer", fixed or several()) for n in lengths]


def tokenizer(shape: str) -> Any:
    """Sentence pieces, one for most words; a text ends in </s> for a T5."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -100.0), ("▁", -20.0)]
    pieces += [(letter, -20.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces += [(f"▁{word}", -10.0) for word in [*words()[:WORDS], "question", "which", "one", "answer"]]
    pieces = list(dict(pieces).items())
    made = Tokenizer(models.Unigram(pieces, unk_id=UNKNOWN))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    if shape == "t5":
        made.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", END)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def network(shape: str) -> Any:
    """The network, with spread logits, so that options differ."""
    import transformers as tr

    torch.manual_seed(0)
    ids = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "tie_word_embeddings": False}
    if shape == "t5":
        net = tr.T5ForConditionalGeneration(
            tr.T5Config(
                **ids,
                d_model=256,
                d_kv=64,
                d_ff=1024,
                num_layers=4,
                num_decoder_layers=4,
                num_heads=4,
                decoder_start_token_id=PAD,
                dropout_rate=0.0,
            )
        )
    else:
        net = tr.LlamaForCausalLM(
            tr.LlamaConfig(
                **ids,
                bos_token_id=None,
                hidden_size=256,
                intermediate_size=1024,
                num_hidden_layers=8,
                num_attention_heads=4,
                max_position_embeddings=1024,
            )
        )
    net.lm_head.weight.data.normal_(0, 0.3)
    return net


def lm_eval_side(folder: Path, rows: list[Document], batch_size: int) -> Callable[[], list[list[float]]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(str(folder), device="cpu", dtype="float32", batch_size=batch_size, max_length=512)
    requests = [
        Instance("loglikelihood", {}, (row.context, f" {option}"), i)
        for row in rows
        for i, option in enumerate(row.options)
    ]

    def run() -> list[list[float]]:
        found = iter(model.loglikelihood(requests, disable_tqdm=True))
        return [[next(found)[0] for _ in row.options] for row in rows]

    return run


def our_side(folder: Path, rows: list[Document], *, ends: bool) -> tuple[Callable[[], Any], Predictor]:
    predictor = plain.build(str(folder), {}, longest=512, answer=64)
    if not ends:
        predictor.encoder.pieces.tokenizer.eos_token = None
    spec = TaskSpec("bench", "choose", {}, templates={"plain": Template("{{ question }}")})
    examples = [
        Example("bench", i, {"question": row.context, "choices": tuple(row.options)}, None)
        for i, row in enumerate(rows)
    ]
    return lambda: [answer["logprobs"] for answer in predictor({0: Questions(spec, examples)})[0]], predictor


def encoder_rows(run: Callable[[], Any], predictor: Predictor) -> int:
    """Contexts that the network encodes in one run."""
    net, seen = predictor.model.backbone.net, []
    encoder = net.get_encoder() if predictor.model.backbone.family == "encoder-decoder" else net
    handle = encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    run()
    handle.remove()
    return sum(seen)


def measure(
    shape: str, options: int, count: int, target: float | None, choices: Any
) -> tuple[list[Row], bool]:
    rows = documents(count, options)
    with TemporaryDirectory() as folder:
        network(shape).save_pretrained(folder)
        tokenizer(shape).save_pretrained(folder)
        theirs = {f"lm-eval, batch {n}": lm_eval_side(Path(folder), rows, n) for n in (16, 1)}
        ours, predictor = our_side(Path(folder), rows, ends=False)
        ended, _ = our_side(Path(folder), rows, ends=True)
    found, expected = np.array(ours()), np.array(next(iter(theirs.values()))())
    worst = float(np.abs(found - expected).max())
    same = float((found.argmax(1) == expected.argmax(1)).mean())
    seen = encoder_rows(ours, predictor) / count
    times = rounds(
        {**theirs, "mtnlp": ours, "mtnlp, with ends": ended}, count=choices.rounds, threads=choices.threads
    )
    best = min(theirs, key=lambda name: median(times[name]))
    speeds = ", ".join(f"{name} {count / median(own):.1f}" for name, own in times.items())
    table = [
        compared(
            times,
            best,
            "mtnlp",
            name=f"{best} / mtnlp",
            target=target,
            most=False,
            note=f"documents/s: {speeds}",
        ),
        compared(times, best, "mtnlp, with ends", name=f"{best} / mtnlp, with ends"),
        Row(
            "largest difference of a log-likelihood",
            "lm-eval",
            *[worst] * 3,
            TOLERANCE,
            note=f"{worst:.1e} nats",
        ),
        Row("same choice", "lm-eval", same, same, same, 1.0, most=False),
        Row("rows with a context, per document", "", seen, seen, seen, 1.0),
    ]
    return table, worst <= TOLERANCE and same == 1 and seen <= 1


def main() -> int:
    choices = arguments(__doc__).parse_args()
    choices.rounds = choices.rounds or (1 if choices.quick else 5)
    torch.set_num_threads(choices.threads)
    groups, right = {}, True
    for (shape, options), (count, target) in CASES.items():
        doing(f"{shape}, {options} options")
        count = 4 if choices.quick else count
        table, fine = measure(shape, options, count, target, choices)
        groups[f"{shape}, K = {options}, {count} documents"] = table
        right &= fine
    report("Options by likelihood", groups, choices, agrees=right)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
