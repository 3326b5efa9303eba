"""The loop's promises: a step is the same however it is computed, and nothing moves that should not."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtnlp.errors import MtnlpError, TrainingError
from mtnlp.train import loop
from mtnlp.train.loop import fit, steps

CALM = {"dropout": 0.0, "eps": 1e-4}  # no randomness; gradients that are only rounding stay small


def gradients(run):
    """The first step's gradients as they are before clipping, by name."""
    found = {}

    def keep(live, norms):
        found.update({name: p.grad.clone() for name, p in run.optimizer.names.items() if p.grad is not None})
        if run.optimizer.bank is not None:
            found["bank"] = run.optimizer.bank.leaf.grad.clone()

    run.optimizer.clip = keep
    next(steps(run))
    return found


@pytest.mark.parametrize("balancer", ["equal", "uncertainty"])
@pytest.mark.parametrize("strategy", ["full", "lora-per-task"])
def test_a_step_is_the_sum_of_task_means_however_it_is_cut(tiny, strategy, balancer):
    run = tiny.make(strategy=strategy, balancer=balancer, **CALM)
    plan = run.mixture.plan(0)
    run.model.begin(plan.tasks)
    loss = 0
    for batch in run.mixture.batches(plan, max_tokens=1):  # one example each
        count = plan.counts[plan.tasks.index(batch.slices[0].task)]
        loss = loss + run.model(batch).sums[0] / count * (0.5 if balancer == "uncertainty" else 1)
    loss.backward()
    expected = {
        name: p.grad.clone()
        for name, p in run.optimizer.names.items()
        if p.grad is not None and not name.startswith("balancer")
    }
    if run.optimizer.bank is not None:
        expected["bank"] = run.optimizer.bank.leaf.grad.clone()

    for max_tokens in (1, 40, 1000):
        found = gradients(tiny.make(strategy=strategy, balancer=balancer, max_tokens=max_tokens, **CALM))
        own = {name: grad for name, grad in found.items() if not name.startswith("balancer")}
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


def test_dropout_is_on_from_the_first_step_though_backbones_are_loaded_in_eval_mode(tiny):
    run = tiny.make(total=2)
    run.model.backbone.eval()

    for _ in steps(run):
        assert all(module.training for module in run.model.modules())


def test_records_say_what_happened(tiny):
    run = tiny.make(total=4)

    records = list(steps(run))

    assert [r.step for r in records] == [1, 2, 3, 4]
    assert [r.lr for r in records] == [run.optimizer.schedule.lr_at(s) for s in range(4)]
    for r in records:
        live = run.mixture.plan(r.step - 1).tasks
        batches = run.mixture.batches(run.mixture.plan(r.step - 1))
        assert list(r.losses) == [run.tasks[t] for t in live]
        assert r.tokens == sum(b.useful_tokens for b in batches)
        assert r.useful_share == pytest.approx(r.tokens / sum(b.padded_tokens for b in batches))
        assert r.grad_norm > 0
        assert r.seconds > 0


@pytest.mark.parametrize("strategy", ["lora-per-task", "lora", "full", "heads"])
@pytest.mark.parametrize("balancer", ["equal", "uncertainty"])
def test_an_absent_task_keeps_every_bit(tiny, strategy, balancer):
    run = tiny.make(strategy=strategy, balancer=balancer, examples=1, total=8)  # one live task a step

    before, moments = tiny.weights(run), {k: v.clone() for k, v in run.optimizer.state().items()}
    for record in steps(run):
        (live,) = record.losses
        after = tiny.weights(run)
        index = run.tasks.index(live)
        for name, tensor in before.items():
            owned = (f"head/{live}/", f"bank/{live}", f"balancer/log_variances.{index}", "shared/")
            assert name.startswith(owned) or torch.equal(tensor, after[name]), name
        if record.step > 1 and "bank.steps" in moments:  # the first step has learning rate 0
            assert not torch.equal(before[f"bank/{live}"], after[f"bank/{live}"])
        before = after


def test_a_task_trains_in_company_as_it_does_alone(tiny):
    tasks = ("topic", "names", "pick", "mood")
    together = tiny.make(tasks=tasks, examples=16, rates=[0.25] * 4, **CALM)
    list(steps(together))
    ends = tiny.weights(together)

    for task in tasks:
        alone = tiny.make(tasks=(task,), examples=4, rates=[1.0], **CALM)
        list(steps(alone))
        for name, tensor in tiny.weights(alone).items():
            torch.testing.assert_close(tensor, ends[name], rtol=0, atol=1e-5)


def test_running_out_of_memory_changes_the_cut_and_nothing_else(tiny):
    expected, end = tiny.outcome({**CALM, "max_tokens": 1000})
    run = tiny.make(max_tokens=1000, **CALM)
    forward, sizes = run.model.forward, []

    def narrow(batch):
        sizes.append(batch.padded_tokens)
        if batch.padded_tokens > 60:
            raise torch.OutOfMemoryError("out of memory")
        return forward(batch)

    run.model.forward = narrow
    records = list(steps(run))

    assert max(sizes) > 60
    assert run.max_tokens <= 60
    for record, (losses, _, _) in zip(records, expected):
        assert record.losses == pytest.approx(losses, abs=1e-5)
    torch.testing.assert_close(tiny.weights(run), end, rtol=0, atol=1e-5)


class OutAt(TorchDispatchMode):
    """Memory runs out, once, at the given operation of torch; `count` is of those that were asked for."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            torch.empty(2**50)  # the error of a CPU
        return operation(*args, **(kwargs or {}))


def first_step(tiny, mode, **options):
    """Its losses, the weights after it and the budget of tokens, with `mode` on in forward and backward."""
    run = tiny.make(max_tokens=1000, **CALM, **options)
    forward_backward = loop._forward_backward

    def inside(*args):
        with mode:
            forward_backward(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_forward_backward", inside)
        record = next(steps(run))
    return record.losses, tiny.weights(run), run.max_tokens


WAYS = [{"strategy": "lora-per-task", "flat": True}, {"strategy": "lora", "balancer": "uncertainty"}]


@pytest.mark.parametrize("options", WAYS, ids=lambda options: options["strategy"])
def test_memory_may_run_out_anywhere_in_forward_and_backward(tiny, options):
    whole = OutAt()
    losses, end, _ = first_step(tiny, whole, **options)

    for at in range(1, whole.count, whole.count // 6):
        again, found, budget = first_step(tiny, OutAt(at), **options)
        assert budget < 1000
        assert again == pytest.approx(losses, abs=1e-6)
        torch.testing.assert_close(found, end, rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["begin", "norms", "step"])
def test_memory_that_no_smaller_batch_would_save_is_told(tiny, where, monkeypatch):
    run = tiny.make(max_tokens=1000)
    before, owner = tiny.weights(run), run.model if where == "begin" else run.optimizer
    monkeypatch.setattr(owner, where, lambda *_: torch.empty(2**50))

    with pytest.raises(TrainingError, match=r"Step 1: out of memory with what is trained.*bank_on_cpu"):
        next(steps(run))

    assert run.max_tokens is None
    torch.testing.assert_close(tiny.weights(run), before, rtol=0, atol=0)


def test_one_example_that_does_not_fit_says_what_to_lower(tiny):
    run = tiny.make()

    def never(batch):
        raise torch.OutOfMemoryError("out of memory")

    run.model.forward = never
    with pytest.raises(TrainingError, match=r"Step 1: out of memory with one example of \(\d, \d+\) tokens"):
        next(steps(run))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_before_the_update(tiny, where):
    run = tiny.make(strategy="full", total=6)
    generator = steps(run)
    next(generator)
    before, moments = tiny.weights(run), {k: v.clone() for k, v in run.optimizer.state().items()}
    head = run.model.head(run.tasks.index("names"))
    if where == "loss":
        head.loss = lambda hidden, mask, part: hidden.sum((1, 2)) * torch.inf
    else:
        head.out.weight.register_hook(lambda grad: grad * torch.nan)

    message = r"Step 2: the (loss|gradient) of names.*its rows: \d+.*was updated"
    with pytest.raises(TrainingError, match=message) as error:
        next(generator)

    assert error.value.exit_code == 1
    assert run.step == 1
    torch.testing.assert_close(tiny.weights(run), before, rtol=0, atol=0)
    torch.testing.assert_close(dict(run.optimizer.state()), moments, rtol=0, atol=0)


def test_gradient_surgery_without_shared_parameters_is_refused(tiny):
    with pytest.raises(MtnlpError, match="this strategy shares none"):
        tiny.make(strategy="lora-per-task", balancer="pcgrad")


def test_the_strategys_own_loss_counts_by_the_share_of_examples(tiny):
    # An auxiliary loss that is 1 for every micro-batch has the gradient of 1 in all, however the step is cut.
    expected = gradients(tiny.make(strategy="full", max_tokens=1000, **CALM))

    for max_tokens in (1000, 40):
        run = tiny.make(strategy="full", max_tokens=max_tokens, **CALM)
        bias = run.model.backbone.net.embeddings.LayerNorm.bias
        run.model.strategy.aux_loss = bias.sum
        found = gradients(run)
        for name, grad in found.items():
            extra = 1.0 if name.endswith("net.embeddings.LayerNorm.bias") else 0.0
            torch.testing.assert_close(grad, expected[name] + extra, rtol=1e-4, atol=1e-5)


def test_bfloat16_trains(tiny):
    run = tiny.make(precision="bf16", total=4)

    records = list(steps(run))

    assert all(torch.isfinite(torch.tensor(list(r.losses.values()))).all() for r in records)
    assert all(tensor.dtype == torch.float32 for tensor in tiny.weights(run).values())


def test_dropout_depends_on_seed_and_step_only(tiny):
    first, second = tiny.make(), tiny.make()

    for one, other in zip(steps(first), steps(second)):
        torch.rand(int(other.step) * 7)  # somebody else draws random numbers between the steps
        assert one.losses == other.losses
    assert next(steps(tiny.make(seed=4))).losses != next(steps(tiny.make())).losses


def test_fit_calls_back_in_order_and_stops_when_told(tiny):
    run, seen = tiny.make(total=6), []

    def stop(record):
        seen.append(("second", record.step))
        if record.step == 2:
            run.stopped = "enough"

    fit(run, [lambda record: seen.append(("first", record.step)), stop])

    assert seen == [("first", 1), ("second", 1), ("first", 2), ("second", 2)]
    assert run.step == 2
