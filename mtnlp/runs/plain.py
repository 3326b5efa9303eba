"""Plain models of transformers, made ready to be asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble, strategies
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.bench.classifiers import Classifier
    from mtnlp.bench.predict import Predictor
    from mtnlp.bench.similar import Similarity

ASKED = 2048  # padded tokens of a batch that a plain model is asked; on a CPU larger ones are slower


def build(
    name: str,
    adapters: Mapping[str, Path],
    *,
    revision: str | None = None,
    longest: int,
    answer: int,
    trust_remote_code: bool = False,
) -> Predictor | Similarity:
    """What asks a plain model, in float32: one that writes text, with a row of a bank for every adapter; or
    an encoder, by the similarity of texts.

    Args:
        name: folder, alias or hub id.
        adapters: name -> folder in peft's format; none = the model as it is, under task index 0.
        longest, answer: most tokens of a prompt (the model itself may take fewer) and of an answer.

    Raises:
        MtnlpError: it cannot be loaded, or an adapter does not fit it.
    """
    from mtnlp.bench.predict import Predictor
    from mtnlp.bench.similar import Similarity
    from mtnlp.data.encode import Encoder
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.embedding import Embedder
    from mtnlp.models.multitask import MultitaskModel
    from mtnlp.strategies import _peft_files
    from mtnlp.train.engine import Wanted, choose

    backbone = Backbone.load(name, revision=revision, trust_remote_code=trust_remote_code)
    device = _device()
    if backbone.family == "encoder":
        if adapters:
            raise MtnlpError(f"--adapter: {name} is an encoder without a head; adapters go with text models.")
        return Similarity(Embedder(backbone.to(device).eval()))
    if adapters:
        rows = {key: _peft_files.read(path) for key, path in adapters.items()}
        strategy = _peft_files.attach(backbone, rows)
    else:
        strategy = strategies.get("full")()
    model = MultitaskModel(backbone, strategy, {}, list(adapters) or [name]).to(device).eval()
    model.requires_grad_(False)
    engine = choose(Wanted("eager", "fp32", "highest"), device=device, length=longest)
    return Predictor(
        model,
        Encoder(backbone.tokenizer, backbone.family, min(longest, backbone.max_length), answer),
        device=device,
        max_tokens=ASKED,
        max_new_tokens=64,
        autocast=partial(assemble.computing, engine, device, bf16=False),
    )


def build_classifier(
    name: str, config: Mapping[str, Any], *, revision: str | None = None, trust_remote_code: bool = False
) -> Classifier:
    """What asks a plain network with a head of its own, in float32.

    Args:
        name: folder or hub id; config: its config.json.

    Raises:
        MtnlpError: it cannot be loaded.
    """
    from mtnlp.bench.classifiers import Classifier
    from mtnlp.data.encode import Encoder
    from mtnlp.models import _load

    net, tokenizer, longest = _load.with_head(name, config, revision, trust_remote_code)
    return Classifier(net, Encoder(tokenizer, "encoder", min(512, longest)), config, device=_device())


def _device() -> str:
    import torch

    return "cpu" if assemble.on_cpu() else torch.accelerator.current_accelerator().type
