"""A run keeps what it computes with: a resume, a score and an answer later do not measure it again."""

from __future__ import annotations

import shutil

import pytest
import tiny_tasks
import torch
from safetensors.torch import load_file

import mtnlp
from mtnlp import strict_yaml
from mtnlp.runs import saved
from mtnlp.train import timings


def measured(monkeypatch, *, bf16, eager, medium=1.0):
    monkeypatch.setattr(timings, "medium_gain", lambda: (medium, 3e-7))
    monkeypatch.setattr(timings, "bf16_gain", lambda device, how: bf16)
    monkeypatch.setattr(timings, "eager_gain", lambda bf16, how, length: eager)


def chosen(run):
    kept = strict_yaml.read(run / "recipe.yaml")
    return kept["model"]["attention"], kept["train"]["precision"], kept["train"]["matmul"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Everything that can be measured is left open."""
    path = tiny_tasks.backbone("minilm", tmp_path_factory.mktemp("lab") / "backbone", dropout=0.1)
    tasks = [tiny_tasks.task("mood", "classify"), tiny_tasks.task("rating", "regress")]
    made = tiny_tasks.recipe(path, tasks, steps=4, examples_per_step=4, checkpoint_every=2)
    made["model"].pop("attention")
    for name in ("precision", "matmul"):
        made["train"].pop(name)
    return made


@pytest.fixture
def whole(recipe, tmp_path, monkeypatch):
    """A run that was measured to be faster in bfloat16 with medium products and written-out attention."""
    measured(monkeypatch, bf16=3.0, eager=3.0, medium=3.0)
    mtnlp.finetune(recipe, out=tmp_path / "whole")
    return tmp_path / "whole"


def test_a_resumed_run_goes_on_as_it_began_whatever_is_measured_now(
    recipe, whole, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    for name in ("model.safetensors", "results.json"):
        (run / name).unlink()
    measured(monkeypatch, bf16=0.1, eager=0.1)
    capsys.readouterr()

    mtnlp.finetune(recipe, out=run, resume=True)

    assert chosen(whole) == chosen(run) == ("eager", "bf16", "medium")
    assert "engine: bf16, fp32 matmul medium, attention eager, " in capsys.readouterr().out
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, run))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(mtnlp.MtnlpError, match=r"another recipe; it differs in train\.precision\."):
        mtnlp.finetune(recipe, "train.precision=fp32", out=run, resume=True)


def test_scores_and_answers_are_computed_as_the_run_was(whole, monkeypatch):
    measured(monkeypatch, bf16=0.1, eager=0.1)

    model = saved.load(whole)

    assert model.predictor.model.backbone.net.config._attn_implementation == "eager"
    with model.predictor.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == "highest"


def test_what_the_recipe_says_counts_and_the_line_is_shown_before_anything_is_written(
    recipe, tmp_path, monkeypatch, capsys
):
    measured(monkeypatch, bf16=3.0, eager=3.0)
    says = ["model.attention=sdpa", "train.precision=fp32", "train.threads=1"]

    mtnlp.finetune(recipe, *says, out=tmp_path / "run", dry_run=True)

    line = "engine: fp32, fp32 matmul highest (medium 1.0x, error 3e-07), attention sdpa, 1 thread"
    assert line in capsys.readouterr().out and not (tmp_path / "run").exists()
