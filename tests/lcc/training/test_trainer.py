"""Where an optimisation starts, what moves it, and that it goes on where it was interrupted."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack

import pytest
import torch

import lcc
from lcc.compilers.lora import LoraCompiler
from lcc.data.samples import Sample
from lcc.pipeline.settings import make_settings
from lcc.text.context import build_context
from lcc.training import trainer as optimize
from lcc.training.trainer import Trainer, draw_samples
from tests.support.tiny_models import make_data

RATE, STEPS = 0.01, 5


@pytest.fixture
def start(llama, tokenizer, text):
    """An optimisation before its first step."""
    settings = {"steps": STEPS, "learning_rate": RATE, "buffer_learning_rate": RATE / 2, "self_study_questions": 0}
    # Of a rank below that of the gradients, which Muon needs to move all directions.
    base = make_settings(ratio=8, rank=8, general_queries=6, max_response_tokens=4, **settings)
    context = build_context(llama, tokenizer, text, 8)
    data = make_data(llama, context, base, ["Say: dog.", "Say: goose.", "Say: pony."])
    with ExitStack() as stack:

        def make(**overrides) -> Trainer:
            # The model carries one LoRA at a time.
            stack.close()
            chosen = base.replace(**overrides)
            memory = LoraCompiler().trainable(llama, context, chosen.compiler, chosen.seed)
            return Trainer(stack.enter_context(memory), data, chosen.training, chosen.execution, chosen.seed)

        yield make


def embeddings(optimization) -> torch.Tensor:
    return optimization.memory.model.get_input_embeddings().weight


def test_vocabulary_starts_at_the_mean_embedding(start):
    optimization = start(buffer_init="vocabulary")
    buffer = optimization.memory.buffer
    torch.testing.assert_close(buffer, embeddings(optimization).mean(0).expand(len(buffer), -1))


def test_even_takes_the_middle_of_equal_pieces(start):
    optimization = start(buffer_init="even")
    ids, count = optimization.memory.context.context_ids, optimization.memory.context.buffer
    middles = [ids[int((index + 0.5) * len(ids) / count)] for index in range(count)]
    assert torch.equal(optimization.memory.buffer, embeddings(optimization)[middles])


def test_sampled_depends_on_the_seed_alone(start):
    def sampled(seed):
        return start(buffer_init="sampled", seed=seed).memory.buffer.detach()

    first = sampled(1)
    torch.manual_seed(7)
    assert torch.equal(first, sampled(1))
    assert not torch.equal(first, sampled(2))


def moved(optimization) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """What the first step adds to the buffer, and to those LoRA matrices that it moves."""
    before = [parameter.detach().clone() for parameter in optimization.parameters]
    optimization.advance()
    buffer, *lora = [after.detach() - then for after, then in zip(optimization.parameters, before, strict=True)]
    return buffer, [update for update in lora if update.any()]


def test_adamw_moves_every_number_by_the_learning_rate(start):
    buffer, lora = moved(start(optimizer="adamw"))
    assert buffer.abs().median().item() == pytest.approx(RATE / 2, rel=1e-3)
    assert all(update.abs().median().item() == pytest.approx(RATE, rel=1e-3) for update in lora)


def test_muon_moves_the_lora_evenly_in_all_directions(start):
    buffer, lora = moved(start(optimizer="muon"))
    assert buffer.abs().median().item() == pytest.approx(RATE / 2, rel=1e-3)
    for update in lora:
        # Newton-Schulz leaves singular values around 1; Muon's scale to AdamW's size is 0.2 sqrt(longer side).
        values = torch.linalg.svdvals(update) / (RATE * 0.2 * max(update.shape) ** 0.5)
        assert values.max() < 1.4
        assert values.median() > 0.5


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_learning_rates_decay_linearly_to_zero(start, optimizer):
    optimization = start(optimizer=optimizer)
    seen = []
    for _ in range(STEPS):
        optimization.advance()
        seen.append([group["lr"] for one in optimization.optimizers for group in one.param_groups])
    expected = [[RATE / 2 * left / STEPS, RATE * left / STEPS] for left in range(STEPS, 0, -1)]
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected))


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_momentum_is_of_both_optimizers(start, momentum):
    optimization = start(momentum=momentum)
    optimization.advance()
    buffer, *lora = optimization.parameters
    averages = [(optimization._state_of(buffer)["exp_avg"], buffer)]
    averages += [(optimization._state_of(parameter)["momentum_buffer"], parameter) for parameter in lora]
    for average, parameter in averages:
        torch.testing.assert_close(average, (1 - momentum) * parameter.grad)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_both_optimizers_resume(llama, tokenizer, text, fast, tmp_path, monkeypatch, optimizer):
    def job(**more):
        return lcc.compile(llama, tokenizer, text, **(fast | {"optimizer": optimizer, "buffer_init": "even"} | more))

    whole = job()
    with monkeypatch.context() as patch:
        real, calls = optimize.step_loss, iter(range(10))
        patch.setattr(optimize, "step_loss", lambda *given: real(*given) * (float("nan") if next(calls) == 2 else 1))
        with pytest.raises(lcc.DivergedError, match="step 2"):
            job(checkpoint=tmp_path / "run", checkpoint_every=1)
    resumed = job(checkpoint=tmp_path / "run")
    assert torch.equal(whole.kv.keys, resumed.kv.keys)
    assert torch.equal(whole.kv.values, resumed.kv.values)


def test_paper_recipe_is_the_papers():
    settings = make_settings("paper")
    assert settings.training.steps == 45 * (2000 + 2000) // 64
    assert settings.training.batch == 64 // 2
    assert (settings.compiler.optimizer, settings.compiler.buffer_init) == ("adamw", "vocabulary")
    assert settings.training.learning_rate == settings.compiler.buffer_learning_rate == 2e-5
    assert settings.training.momentum == 0.9


@pytest.mark.parametrize("wrong", [{"optimizer": "sgd"}, {"buffer_init": "zeros"}])
def test_unknown_names_are_refused(wrong):
    with pytest.raises(lcc.InputError, match=next(iter(wrong.values()))):
        make_settings(**wrong)


def test_samples_are_drawn_by_weight():
    pool = [Sample((), (), "self_study", f"{weight}", weight=weight) for weight in (1, 2, 4, 1, 1)]
    rng = random.Random(0)
    drawn = Counter(sample.weight for _ in range(4000) for sample in draw_samples(pool, 1, rng))
    assert [drawn[weight] / 4000 for weight in (1, 2, 4)] == pytest.approx([3 / 9, 2 / 9, 4 / 9], abs=0.03)
    three = draw_samples(pool, 3, rng)
    assert len({id(sample) for sample in three}) == 3
    assert len(draw_samples(pool, 5, rng)) == 5
