"""Adapters that peft wrote, read into rows of one bank, against peft itself."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from mtnlp.errors import MtnlpError
from mtnlp.models.multitask import MultitaskModel
from mtnlp.strategies import _peft_files

SETTINGS = {  # what may differ between adapters
    "plain": {"r": 3, "lora_alpha": 5},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {"r": 2, "lora_alpha": 4, "rank_pattern": {"q": 5}, "alpha_pattern": {"q": 7}},
}
TARGETS = {"t5": ["q", "v"], "llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"]}


def made(kind, name, folder):
    """An adapter with random weights as peft saves it, and the network with it."""
    peft = pytest.importorskip("peft")
    settings = dict(SETTINGS[name])
    for key in ("rank_pattern", "alpha_pattern"):
        if key in settings:
            settings[key] = dict.fromkeys([TARGETS[kind][0]], settings[key]["q"])
    config = peft.LoraConfig(target_modules=TARGETS[kind], fan_in_fan_out=kind == "gpt2", **settings)
    net = peft.get_peft_model(tiny.backbone(kind).net, config)
    torch.manual_seed(len(name))
    for key, value in net.named_parameters():
        if "lora_" in key:
            torch.nn.init.normal_(value, std=0.3)
    net.save_pretrained(folder)
    return net.eval()


@pytest.mark.parametrize("kind", TARGETS)
def test_several_adapters_in_one_batch_give_the_logits_that_each_gives_in_peft(kind, tmp_path):
    nets = {name: made(kind, name, tmp_path / name) for name in SETTINGS}
    backbone = tiny.backbone(kind)
    rows = {name: _peft_files.read(tmp_path / name) for name in SETTINGS}
    model = MultitaskModel(backbone, _peft_files.attach(backbone, rows), {}, list(SETTINGS)).eval()
    batch = tiny.batch(backbone.family, (0, 1, 1, 2))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if kind == "t5":
        inputs["decoder_input_ids"] = batch.labels.clamp(min=0)

    with torch.no_grad():
        model.begin([0, 1, 2])
        model._select(batch)
        found = backbone.net(**inputs)[0]
        for row, task in enumerate((0, 1, 1, 2)):
            expected = nets[list(SETTINGS)[task]](**inputs)[0][row]
            torch.testing.assert_close(found[row], expected, atol=2e-5, rtol=1e-4)


def test_an_adapter_that_cannot_be_read_as_it_is_meant_is_refused_by_name(tmp_path):
    made("t5", "plain", folder := tmp_path / "plain")
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    first = next(iter(tensors))
    nan = {**tensors, first: tensors[first] * float("nan")}
    cases = [
        ({**config, "use_dora": True}, tensors, "use_dora is set"),
        ({**config, "peft_type": "IA3"}, tensors, "peft_type is 'IA3'"),
        ({**config, "bias": "all"}, tensors, "bias is 'all'"),
        ({**config, "init_lora_weights": "pissa_niter_4"}, tensors, "changes the backbone's own weights"),
        ({**config, "alpha_pattern": {"(a+)+$": 4}}, tensors, "is not a simple pattern"),
        (config, nan, "holds values that are no numbers"),
        (config, {"x": tensors[first]}, "'x' is no LoRA weight"),
        (config, {first: tensors[first]}, "but not both"),
        (config, {**tensors, first: tensors[first][:2]}, r"lora_A is \(2, 32\) and lora_B \(\d+, 3\)"),
        (config, {}, "holds no LoRA weight"),
        ({**config, "modules_to_save": "q"}, tensors, "modules_to_save: expected a list, found 'q'"),
        ({**config, "lora_alpha": "8"}, tensors, "lora_alpha: expected a number"),
    ]
    for settings, weights, message in cases:
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        save_file(weights, folder / "adapter_model.safetensors")
        with pytest.raises(MtnlpError, match=message):
            _peft_files.read(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 40)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(MtnlpError, match="damaged"):
        _peft_files.read(folder)
    with pytest.raises(MtnlpError, match="is no adapter"):
        _peft_files.read(tmp_path)


def test_an_adapter_of_another_backbone_is_refused(tmp_path):
    made("t5", "plain", tmp_path / "plain")
    rows = {"plain": _peft_files.read(tmp_path / "plain")}
    with pytest.raises(MtnlpError, match="no linear layer of"):
        _peft_files.attach(tiny.backbone("llama"), rows)
    layer = next(iter(rows["plain"].rows))
    wide = {"plain": _peft_files.Adapter({layer: (torch.zeros(2, 99), torch.zeros(2, 99))}, {})}
    with pytest.raises(MtnlpError, match="99 and 99 in the adapter"):
        _peft_files.attach(tiny.backbone("t5"), wide)
