"""Layers that read a window, or keep a state: alone, in a batch and in a pack it is the same model."""

import pytest
import torch

from tasks.modeling import attention, methods
from tasks.modeling.generation import generate, may_share, reference_nll
from tasks.recipe.methods import Method, PrefixTuningMethod, PromptTuningMethod
from tests.modeling.architectures import ARCHITECTURES, WINDOW, config_of, model_of

START = [token % 290 + 5 for token in range(12)]
PROMPTS = [
    [*START, *[(7 * number + place) % 290 + 5 for place in range(length)]]
    for number, length in enumerate((5, 33, 2, 50))
]


def test_a_list_of_architectures_has_windows_states_and_plain_ones() -> None:
    assert len(ARCHITECTURES) >= 21 and {"llama", "mistral", "gemma3_text", "lfm2", "mamba"} <= set(ARCHITECTURES)
    assert max(map(len, PROMPTS)) > 2 * WINDOW


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "lfm2"])
def test_prompts_longer_than_the_window_are_answered_in_a_batch_as_alone(name: str) -> None:
    model = model_of(name)
    alone = [generate(model, [prompt], frozenset({0}), 12, 1)[0] for prompt in PROMPTS]
    assert generate(model, PROMPTS, frozenset({0}), 12, 4) == alone
    assert len({tuple(answer.token_ids) for answer in alone}) == 4


def test_a_shared_start_is_read_once_where_that_is_exact_and_nowhere_else() -> None:
    assert may_share(config_of("llama"), 100_000)
    assert may_share(config_of("mistral"), WINDOW) and not may_share(config_of("mistral"), WINDOW + 1)
    assert not may_share(config_of("lfm2"), 4)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_text", "gpt_oss"])
def test_a_document_of_a_pack_is_computed_as_the_model_computes_it_alone(name: str) -> None:
    model = model_of(name)
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0] for prompt in PROMPTS]
        ends = torch.tensor([len(prompt) for prompt in PROMPTS]).cumsum(0).tolist()
        positions = [place for prompt in PROMPTS for place in range(len(prompt))]
        pack = {
            "input_ids": torch.tensor([[token for prompt in PROMPTS for token in prompt]]),
            "position_ids": torch.tensor([positions]),
        }
        with attention.documents_apart(model):
            together = model(**pack, document_ends=ends, use_cache=False).logits[0]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    assert model.config._attn_implementation != attention.NAME


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_oss"])
def test_the_likelihood_of_a_reference_does_not_depend_on_its_neighbours(name: str) -> None:
    model = model_of(name)
    rows = [(prompt, [-100] * 8 + prompt[8:]) for prompt in PROMPTS]
    alone = [reference_nll(model, [row])[0] for row in rows]
    assert reference_nll(model, rows) == [(pytest.approx(total, abs=1e-3), count) for total, count in alone]
    with torch.inference_mode():
        ids, labels = (torch.tensor([part]) for part in rows[1])
        assert alone[1][0] / alone[1][1] == pytest.approx(float(model(input_ids=ids, labels=labels).loss), abs=1e-4)


@pytest.mark.parametrize("method", [PromptTuningMethod(virtual_tokens=6), PrefixTuningMethod(virtual_tokens=6)])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_soft_prompt_before_prompts_longer_than_the_window_is_read_in_a_batch_as_alone(
    name: str, method: Method
) -> None:
    model = methods.apply(model_of(name), method).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in methods.trainable(model).values():
            parameter.normal_(std=0.3)
    alone = [generate(model, [prompt], frozenset({0}), 12, 1)[0] for prompt in PROMPTS]
    assert generate(model, PROMPTS, frozenset({0}), 12, 4) == alone
    assert len({tuple(answer.token_ids) for answer in alone}) == 4
