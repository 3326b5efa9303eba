"""Plain models of transformers, made ready to be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtnlp import assemble, strategies
from mtnlp.errors import MtnlpError

if TYPE_CHECKING:
    from mtnlp.bench.classifiers import Classifier
    from mtnlp.bench.predict import Predictor
    from mtnlp.bench.similar import Similarity
    from mtnlp.data.batch import Batch
    from mtnlp.strategies._peft_files import Adapter

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
            raise MtnlpError(
                f"--adapter: {name} is an encoder, and {next(iter(adapters))} has no head for it: expected "
                "SEQ_CLS or TOKEN_CLS as task_type in its adapter_config.json."
            )
        return Similarity(Embedder(backbone.to(device).eval()))
    if adapters:
        strategy = _peft_files.attach(backbone, {key: _text_adapter(path) for key, path in adapters.items()})
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


def _text_adapter(path: Path) -> Adapter:
    from mtnlp.strategies import _peft_files

    found = _peft_files.read(path)
    if found.saved:
        raise MtnlpError(
            f"--adapter {path}: it holds whole modules ({', '.join(found.saved)}). They are read where "
            "task_type in adapter_config.json is SEQ_CLS or TOKEN_CLS, and nowhere else."
        )
    return found


def build_classifier(
    name: str,
    configs: Sequence[Mapping[str, Any]],
    adapters: Mapping[str, Adapter] | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Classifier:
    """What asks a plain network with a head of its own, in float32; or with adapters that have heads, each of
    them a row of one bank.

    Args:
        name: folder or hub id.
        configs: its config.json; of adapters one for each, alike in their `architectures`.

    Raises:
        MtnlpError: it cannot be loaded, or an adapter does not fit it.
    """
    from mtnlp.bench.classifiers import Classifier
    from mtnlp.data.encode import Encoder
    from mtnlp.models import _load

    given = [
        {f"{module}.{key}" for module, tensors in adapter.saved.items() for key in tensors}
        for adapter in (adapters or {}).values()
    ]
    common = set.intersection(*given) if given else ()
    net, tokenizer, longest = _load.with_head(name, configs[0], revision, trust_remote_code, common)
    choose = _attached(net, tokenizer, name, adapters) if adapters else (lambda batch: None)
    encoder = Encoder(tokenizer, "encoder", min(512, longest))
    return Classifier(net, encoder, configs, choose=choose, device=_device())


def _attached(
    net: Any, tokenizer: Any, name: str, adapters: Mapping[str, Adapter]
) -> Callable[[Batch], None]:
    """Put adapters into a network; what then chooses that of a batch."""
    from mtnlp.models.backbone import Backbone
    from mtnlp.strategies import _peft_files

    strategy = _peft_files.attach(Backbone(net, tokenizer, "encoder", name=name), adapters).to(_device())
    strategy.requires_grad_(False)

    def choose(batch: Batch) -> None:
        tasks = [part.task for part in batch.slices]
        if not strategy.holds(tasks):
            strategy.begin(tasks)
        strategy.select(batch.task_ids, batch.attention_mask, tasks=tasks)

    return choose


def _device() -> str:
    import torch

    return "cpu" if assemble.on_cpu() else torch.accelerator.current_accelerator().type
