"""What a backbone and a tokenizer are, whatever they are called and in whatever files they lie.

An adapter is worth something only on the weights it was trained on, with the token ids it was trained with.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtnlp.models.backbone import Backbone

PROBES = (  # what tokenizers do differently: case, accents, spaces, digits, scripts, what is unknown
    "The quick brown fox jumps over 1,234 lazy dogs!",
    "  two  spaces,\ttabs\nand lines ",
    "Ünïcödé naïve café ﬁ ½ ①",
    "don't re-enter state-of-the-art e.g. U.S.A.",
    "int main(void) { return x_1 += 0xFF; } // https://example.org/a?b=c",
    "日本語のテキスト 中文 한국어 Русский العربية हिन्दी",
    "🙂👍🏽 \u200b\u00a0\u2028 \x00",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "",
)


def weights_digest(backbone: Backbone) -> str:
    """SHA-256 of the names, shapes and float32 values of a backbone's weights, in hexadecimal digits.

    Take it before a strategy has edited the backbone. Weights that no checkpoint gave are left out.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(backbone.net.named_parameters()):
        if name not in backbone.fresh:
            values = parameter.detach().float().cpu().contiguous().numpy()
            digest.update(f"{name} {values.shape}".encode())
            digest.update(memoryview(values.reshape(-1)).cast("B"))
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does: its vocabulary, its special tokens, and the ids of some odd texts,
    alone and in pairs. Files of the same tokenizer may differ, and so may versions of the library."""
    found = [
        sorted(tokenizer.get_vocab().items()),
        sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        [tokenizer(text, verbose=False)["input_ids"] for text in PROBES],
        [tokenizer(*pair, verbose=False)["input_ids"] for pair in itertools.pairwise(PROBES)],
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
