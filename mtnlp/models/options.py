"""Log-likelihoods of all options of a document in one row, on networks where that is exact.

A network is given its mask, (S, 1, R, R), and the positions of its tokens from outside; BART and kin, which
count positions themselves, and T5 and kin, which make a bias of distances, are told them. Whether a network
follows is found out by running it both ways: `longest`.

Shapes: S contexts, R padded length of rows with options, O options, M scored tokens, P places that score
some, V vocabulary, H heads.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mtnlp.data.encode import Columns
from mtnlp.data.packed import Packed, option_batches
from mtnlp.data.store import TokenStore

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone
    from mtnlp.models.multitask import MultitaskModel

TOLERANCE = 1e-4  # of an option's log-likelihood in float32
WINDOWS = ("sliding_window", "window_size", "attention_chunk_size", "local_attention", "attention_window")
CACHED = 1 << 18  # logits
PROBE = 16  # tokens of the longest row that is tried
ANY = 1 << 30


def scores(backbone: Backbone, packed: Packed) -> tuple[Tensor, Tensor]:
    """(O,) float64 log-likelihood of each option, summed over its tokens, and (O,) int64 their number.

    In main memory: what is summed there comes out the same every time.
    """
    net, dtype = backbone.net, next(backbone.net.parameters()).dtype
    mask = torch.zeros(packed.seen.shape, dtype=dtype, device=packed.seen.device)
    mask = mask.masked_fill_(~packed.seen, torch.finfo(dtype).min).unsqueeze(1)
    with backbone.scoring_only(packed.scored), _placed(net, packed):
        logits_PV = net(**_inputs(net, packed, mask), use_cache=False).logits[0]
    logits_PV = logits_PV.float()
    found_M = logits_PV[packed.places, packed.tokens] - _norms(logits_PV)[packed.places]
    counts_O = torch.zeros(packed.slices[-1].stop, dtype=torch.long)
    counts_O = counts_O.index_add(0, options := packed.options.cpu(), torch.ones_like(options))
    sums_O = torch.zeros(len(counts_O), dtype=torch.float64)
    return sums_O.index_add(0, options, found_M.double().cpu()), counts_O


def _norms(logits_PV: Tensor) -> Tensor:
    """(P,) log of the summed exponentials. A CPU is 3 times as fast with as many at a time as it caches."""
    whole = logits_PV.device.type != "cpu"
    few = len(logits_PV) if whole else max(1, CACHED // logits_PV.shape[1])
    return torch.cat([part.logsumexp(-1) for part in logits_PV.split(few)])


def _inputs(net: nn.Module, packed: Packed, mask: Tensor) -> dict[str, Any]:
    """Arguments of a forward of the network."""
    decoder = net if packed.nodes is None else net.get_decoder()
    found, positions = {"input_ids": packed.contexts.input_ids}, packed.positions + _first(decoder)
    if packed.nodes is None:
        return found | {"attention_mask": mask, "position_ids": positions}
    nodes = packed.nodes.clone()
    nodes[:, 0] = net.prepare_decoder_input_ids_from_labels(nodes[:1, :1])[0, 0]
    found |= {"attention_mask": packed.contexts.attention_mask, "decoder_attention_mask": mask}
    if net.config.model_type == "encoder-decoder":
        found["decoder_position_ids"] = positions
    return found | {"decoder_input_ids": nodes}


def _first(net: nn.Module) -> int:
    """RoBERTa counts positions from the one after its padding index."""
    learned = [m for name, m in net.named_modules() if name.endswith("position_embeddings")]
    padding = [index for m in learned if (index := getattr(m, "padding_idx", None)) is not None]
    return padding[0] + 1 if padding else 0


@contextmanager
def _placed(net: nn.Module, packed: Packed) -> Iterator[None]:
    """Inside, what makes positions or biases by itself in a decoder makes those of `packed`."""
    if packed.nodes is None:
        yield
        return
    positions, modules = packed.positions, list(net.get_decoder().modules())
    embeddings = [m for m in modules if isinstance(m, nn.Embedding) and "position_ids" in _arguments(m)]
    biases = [m for m in modules if getattr(m, "has_relative_attention_bias", False)]

    def flattened(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, {**kwargs, "position_ids": positions.flatten()}

    def unflattened(module: nn.Module, args: tuple, made: Tensor) -> Tensor:
        return made.reshape(*positions.shape, -1)

    with ExitStack() as stack:
        for module in embeddings:
            stack.callback(module.register_forward_pre_hook(flattened, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(unflattened).remove)
        for module in biases:
            module.compute_bias = partial(_bias, module, packed)
            stack.callback(delattr, module, "compute_bias")
        yield


def _bias(module: nn.Module, packed: Packed, *_: Any, **__: Any) -> Tensor:
    """(S, H, R, R) of the distances between the tokens' own positions."""
    learned = type(module).compute_bias(module, packed.farthest, packed.farthest)[0]
    return learned[:, packed.positions[:, :, None], packed.positions[:, None, :]].transpose(0, 1)


def _arguments(module: nn.Module) -> Any:
    return inspect.signature(module.forward).parameters


def longest(model: MultitaskModel, task: int) -> int:
    """Most tokens of a row in which several options may stand; 0 = the network must see each alone.

    Found by scoring a few made-up documents of the task both ways, in float32. A network that lets tokens
    see only a window of others may count it along the row, so no row may be longer.
    """
    most = min((window for module in model.modules() for window in _windows(module)), default=ANY)
    if most < PROBE:
        return 0
    device, precision = next(model.parameters()).device.type, torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        store, counts = _probe(model.backbone)
        with torch.no_grad(), torch.autocast(device, enabled=False):
            alone, packed = (_scored(model, task, store, counts, tokens) for tokens in (0, most))
    except Exception:  # whatever a network raises that was not made for this
        return 0
    finally:
        torch.set_float32_matmul_precision(precision)
    return most if (alone - packed).abs().max() <= TOLERANCE else 0  # 0 for nan


def _windows(module: nn.Module) -> list[int]:
    found = [getattr(getattr(module, "config", None), name, None) for name in WINDOWS]
    return [window for window in found if type(window) is int]


def _probe(backbone: Backbone) -> tuple[TokenStore, list[int]]:
    """Two documents and the number of their options, some of which begin alike or are the same."""
    documents = [(9, ((4, 5, 6), (4, 7), (8,), (4, 5, 9, 10))), (5, ((11, 4), (11, 4), (6, 4, 5)))]
    vocabulary = backbone.net.get_input_embeddings().num_embeddings
    both = [
        ([(3 + 7 * i) % vocabulary for i in range(n)], [token % vocabulary for token in option])
        for n, options in documents
        for option in options
    ]
    prompts, targets = ([own[side] for own in both] for side in range(2))
    apart = backbone.family == "encoder-decoder"
    sequences = prompts if apart else [prompt + target for prompt, target in both]
    arrays = {"sequences": np.ones(len(both), np.int32), **_column("token", sequences)}
    arrays |= _column("target", targets) if apart else {"prompt_lengths": _lengths(prompts)}
    arrays |= {"length": arrays["token_counts"], "target_length": _lengths(targets)}
    columns = Columns(arrays, "choose", backbone.family, 0, True, ())
    return TokenStore.from_columns(columns), [len(options) for _, options in documents]


def _column(name: str, rows: list[list[int]]) -> dict[str, np.ndarray]:
    flat = np.array([token for row in rows for token in row], np.uint32)
    return {f"{name}_counts": _lengths(rows), "tokens" if name == "token" else f"{name}_tokens": flat}


def _lengths(rows: list[list[int]]) -> np.ndarray:
    return np.array([len(row) for row in rows], np.int32)


def _scored(model: MultitaskModel, task: int, store: TokenStore, counts: list[int], most: int) -> Tensor:
    device, form = next(model.parameters()).device, model.backbone.family
    found = torch.zeros(len(store), dtype=torch.float64)
    batches = option_batches(
        {task: store}, {task: counts}, max_tokens=4096, pad_id=0, form=form, longest=most
    )
    for _, pieces in batches:
        for piece in pieces:
            sums, _ = model.option_scores(piece.to(device))
            found[torch.from_numpy(piece.slices[0].rows)] = sums.double().cpu()
    return found
