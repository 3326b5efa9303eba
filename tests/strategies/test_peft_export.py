"""What `export` writes loads in peft and computes the same."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from safetensors.torch import save_file


@pytest.mark.parametrize("kind", ["bert", "t5", "llama", "gpt2"])
@pytest.mark.parametrize("name", ["lora", "lora-per-task"])
def test_an_exported_task_gives_the_same_logits_in_peft(name, kind, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny.disturb(tiny.model(name, kind, ["a", "b"], rank=3, alpha=5))
    batch = tiny.batch(model.backbone.family, (1, 1, 1))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if kind == "t5":
        inputs["decoder_input_ids"] = batch.labels.clamp(min=0)
    with torch.no_grad():
        model.begin([1])
        model._select(batch)
        expected = model.backbone.net(**inputs)[0]

    config, tensors = model.strategy.export("b")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    other = peft.PeftModel.from_pretrained(tiny.backbone(kind).net, tmp_path).eval()

    with torch.no_grad():
        torch.testing.assert_close(other(**inputs)[0], expected, atol=1e-6, rtol=1e-5)
        with other.disable_adapter():
            assert not torch.allclose(other(**inputs)[0], expected, atol=1e-3)


def test_strategies_without_a_peft_form_say_so():
    assert tiny.model("mixlora", "bert", ["a"]).strategy.export("a") is None
