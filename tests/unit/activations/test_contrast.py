"""Reading contrast rows: which token of which prompt, through templates, and what the model has there."""

from pathlib import Path

import pytest
import torch

from featurewatch.workers.activations.contrast import Row, open_prompts, prompts, read_prompts
from featurewatch.workers.activations.models.hooks import capture, choose_hook_points
from featurewatch.workers.activations.models.loading import load_model
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import byte_level, save_checkpoint

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)
HOOKS = ["resid_post.1", "mlp_out.0"]


def decode(prompt: object, tokenizer: object) -> str:
    return tokenizer.decode(prompt.ids[prompt.first : prompt.last + 1])  # type: ignore[attr-defined]


def test_the_last_token_is_where_the_answer_would_begin() -> None:
    tokenizer = byte_level()
    plain = prompts([Row("The quick fox.", None)], tokenizer, "last", template=True, limit=None)[0]
    assert (decode(plain, tokenizer), plain.last) == (".", len(plain.ids) - 1)
    tokenizer.chat_template = TEMPLATE
    chat = prompts([Row("The quick fox.", None)], tokenizer, "last", template=True, limit=None)[0]
    assert tokenizer.decode(chat.ids) == "<user>The quick fox.</user><bot>"
    assert decode(chat, tokenizer) == ">"
    bare = prompts([Row("The quick fox.", None)], tokenizer, "last", template=False, limit=None)[0]
    assert bare == plain


def test_the_answer_is_read_at_its_first_token() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    answers = (" Naïve yes", "def add")
    first = [tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids[:1]) for text in answers]
    rows = [Row(text, answer) for text, answer in zip(("The quick fox?", "Short."), answers, strict=True)]
    for template in (True, False):
        found = prompts(rows, tokenizer, "answer", template=template, limit=None)
        assert [decode(one, tokenizer) for one in found] == first


def test_the_mean_is_over_the_text_alone() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = TEMPLATE
    found = prompts([Row("The quick fox.", None)], tokenizer, "mean", template=True, limit=None)[0]
    assert decode(found, tokenizer) == "The quick fox."


def test_what_cannot_be_read_is_named() -> None:
    tokenizer = byte_level()
    with pytest.raises(RunError, match="row 2 has") as fault:
        prompts([Row("Short.", None), Row("The lazy dog. " * 50, None)], tokenizer, "last", template=False, limit=20)
    assert fault.value.code == "contrast-too-long"
    tokenizer.chat_template = "{{ 'nothing' }}"
    with pytest.raises(RunError, match="does not show") as fault:
        prompts([Row("Short.", None)], tokenizer, "last", template=True, limit=None)
    assert fault.value.code == "chat-template"


@pytest.mark.parametrize("position", ["last", "mean"])
def test_rows_are_read_as_each_by_itself(tmp_path: Path, position: str) -> None:
    """Padding, batches and their order change nothing; layers behind the last hook point are not run."""
    folder = save_checkpoint(tmp_path / "llama")
    rows = [Row("The quick brown fox jumps over the lazy dog. " * n, None) for n in (1, 5, 2, 9, 3)]

    def load() -> tuple[torch.nn.Module, object]:
        return load_model(folder.as_uri(), None, roots=(tmp_path.resolve(),), device="cpu", dtype=torch.float32,
                          cache_dir=tmp_path / "cache")  # fmt: skip

    model, tokenizer = load()
    found = open_prompts(model, tokenizer, rows, position, template=True)  # type: ignore[arg-type]
    got = read_prompts(model, HOOKS, found)
    whole, _ = load()
    points = choose_hook_points(whole, HOOKS)
    for row, prompt in enumerate(found):
        with capture(points) as seen, torch.no_grad():
            whole(input_ids=torch.tensor([prompt.ids]))
        for hook in HOOKS:
            expected = seen[hook][0, prompt.first : prompt.last + 1].mean(0)
            assert torch.allclose(got[hook][row], expected, atol=1e-4)
