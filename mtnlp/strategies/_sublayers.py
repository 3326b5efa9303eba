"""Where the attention and feed-forward parts of a transformer block begin and end, by common names.

The structure of a network does not tell an output projection from any other square matrix, so these are
patterns of module names: BERT, RoBERTa, ELECTRA, DeBERTa, ALBERT, DistilBERT, ModernBERT, T5, BART, Llama and
kin, Phi, OPT, GPT-2, GPT-NeoX.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from mtnlp.errors import MtnlpError
from mtnlp.strategies._lora import block_linears, endings

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone

ATTENTION_OUT = (
    r"(attention\.output\.dense|attention\.dense|Attention\.o|attn\.(Wo|c_proj|o)|o_proj|out_proj|out_lin)$"
)
FEED_FORWARD_IN = (
    r"(intermediate\.dense|\bwi(_[01])?|mlp\.Wi|mlp\.c_fc|(gate|up|gate_up)_proj|\bfc(1|_in)|\blin1"
    r"|dense_h_to_4h|\.ffn)$"
)
FEED_FORWARD_OUT = (
    r"((?<!attention\.)output\.dense|\bwo|mlp\.Wo|mlp\.c_proj|down_proj|\bfc(2|_out)|\blin2"
    r"|dense_4h_to_h|ffn_output)$"
)


def matching(linears: Mapping[str, nn.Module], pattern: str) -> dict[str, nn.Module]:
    """The layers whose name the pattern is found in."""
    return {name: module for name, module in linears.items() if re.search(pattern, name)}


def unknown(backbone: Backbone, strategy: str, what: str, pattern: str, fix: str) -> MtnlpError:
    """The error of a backbone whose modules have other names."""
    return MtnlpError(
        f"{strategy}: {backbone.described} has no {what} in its blocks: no linear layer is called "
        f"/{pattern}/. {endings(block_linears(backbone))} {fix}"
    )
