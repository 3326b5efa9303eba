"""Adapters with heads, as peft saves them, in one network with a bank, against peft and transformers."""

from __future__ import annotations

import pytest
import tiny
import torch
import transformers as tr

from mtnlp.errors import MtnlpError
from mtnlp.models.backbone import Backbone
from mtnlp.strategies import _peft_files

SIZES = {**tiny._IDS, **tiny._BLOCKS, "max_position_embeddings": 64}
ATTENTION = ["query", "value"]
# Network -> configuration, adapted layers, modules that hold its head. peft itself adds classifier and score.
NETS = {
    "bert": (lambda: tr.BertConfig(**SIZES), [*ATTENTION, "pooler.dense"], []),
    "bert, pooler whole": (lambda: tr.BertConfig(**SIZES), ATTENTION, ["pooler"]),
    "roberta": (lambda: tr.RobertaConfig(**SIZES), ATTENTION, []),
    "distilbert": (
        lambda: tr.DistilBertConfig(vocab_size=60, dim=32, n_layers=2, n_heads=4, hidden_dim=48),
        ["q_lin", "v_lin"],
        ["pre_classifier"],
    ),
    "electra": (lambda: tr.ElectraConfig(**SIZES, embedding_size=32), ATTENTION, []),
    "deberta": (lambda: tr.DebertaV2Config(**SIZES, pooler_hidden_size=32), ["query_proj"], ["pooler"]),
    "modernbert": (
        lambda: tr.ModernBertConfig(**SIZES, cls_token_id=1, sep_token_id=2, classifier_pooling="mean"),
        ["Wqkv"],
        ["head"],
    ),
    "llama": (lambda: tr.LlamaConfig(**SIZES), ["q_proj", "v_proj"], []),
}
TAGGERS = ("bert", "roberta", "distilbert", "modernbert", "llama")
CLASSES = {"SEQ_CLS": tr.AutoModelForSequenceClassification, "TOKEN_CLS": tr.AutoModelForTokenClassification}


def network(name, task_type, count=2):
    """The same random weights for all counts of labels, but for the last layer."""
    torch.manual_seed(1)
    config = NETS[name][0]()
    net = CLASSES[task_type].from_config(config, attn_implementation="eager")
    if count == 2:
        return net.eval()
    config.num_labels = count
    other, state = CLASSES[task_type].from_config(config, attn_implementation="eager"), net.state_dict()
    own = other.state_dict()
    other.load_state_dict(
        {key: state[key] if state[key].shape == own[key].shape else own[key] for key in own}
    )
    return other.eval()


def adapter(name, task_type, folder, count, rank):
    """Saved by peft, with random factors and a random head of `count` labels; and the network with it."""
    peft = pytest.importorskip("peft")
    _, targets, whole = NETS[name]
    net = network(name, task_type, count)
    settings = {"r": rank, "lora_alpha": 5, "modules_to_save": whole or None, "task_type": task_type}
    targets = [target for target in targets if task_type == "SEQ_CLS" or target != "pooler.dense"]
    made = peft.get_peft_model(net, peft.LoraConfig(target_modules=targets, **settings))
    torch.manual_seed(rank)
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(folder)
    return made.eval()


@pytest.mark.parametrize(
    ("name", "task_type"), [*((name, "SEQ_CLS") for name in NETS), *((name, "TOKEN_CLS") for name in TAGGERS)]
)
def test_adapters_with_heads_of_several_sizes_give_the_logits_that_each_gives_in_peft(
    name, task_type, tmp_path
):
    counts = {"two": (2, 3), "five": (5, 2), "one": (1, 4)}
    nets = {key: adapter(name, task_type, tmp_path / key, *sizes) for key, sizes in counts.items()}
    net = network(name, task_type)
    read = {key: _peft_files.read(tmp_path / key) for key in counts}
    strategy = _peft_files.attach(Backbone(net, None, "encoder", name=name), read)
    batch = tiny.batch("encoder", (0, 0, 0, 0))
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}

    for index, key in enumerate(counts):
        strategy.begin([0, 1, 2] if index else [index])
        strategy.select(torch.full((4,), index), batch.attention_mask)
        with torch.no_grad():
            found, expected = net(**inputs).logits, nets[key](**inputs).logits
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_modules_that_do_not_fit_are_refused_by_name(tmp_path):
    adapter("roberta", "SEQ_CLS", tmp_path / "a", 3, 2)
    read = _peft_files.read(tmp_path / "a")
    head = read.saved["classifier"]
    for saved, message in [
        ({"score": {"weight": torch.zeros(2, 32)}}, "a: it holds score, and RobertaFor.* has no such module"),
        ({"classifier": {**head, "more.weight": torch.zeros(2)}}, r"a: classifier.more.weight is \(2,\)"),
        ({"classifier": {**head, "dense.bias": torch.zeros(9)}}, r"dense.bias is \(9,\), expected \(32,\)"),
        ({"classifier": {"dense.bias": head["dense.bias"]}}, "dense.weight is missing"),
        ({"roberta.encoder": {}}, "holds roberta.encoder whole, and an adapter beside it changes layers"),
    ]:
        wrong = _peft_files.Adapter(read.rows, saved)
        backbone = Backbone(network("roberta", "SEQ_CLS"), None, "encoder", name="it")
        with pytest.raises(MtnlpError, match=message):
            _peft_files.attach(backbone, {"a": wrong})
