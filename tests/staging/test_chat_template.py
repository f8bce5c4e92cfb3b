"""Chat templates become data at staging: the same token ids, whatever the text, and nothing that a cell can break."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from dolly_batch.errors import ConfigError, ModelError
from dolly_batch.host.encoding import RowEncoder
from dolly_batch.models.folder import inspect_folder
from dolly_batch.prompt import PromptEncoder
from dolly_batch.prompt_format import PROMPT, PromptFormat
from dolly_batch.records import GenerationParams, PromptRow
from dolly_batch.staging import stage_to
from dolly_batch.staging.chat_template import write_format
from tests.random_models import train_tokenizer, write_random_model

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system_message }}"
    "{{- '<|eot_id|>' }}{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + '[/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
SPECIAL = (*SPECIAL, "[INST]", "[/INST]")
TEMPLATES = {"chatml": CHATML, "llama 3": LLAMA3, "mistral": MISTRAL}
SETTINGS = {"date_string": "26 Jul 2024"}


def write_tokenizer(folder: Path, template: str, **more: object) -> Path:
    """A tokenizer without Dolly's markers, and its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = json.loads(train_tokenizer().to_str())
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] == "<|endoftext|>"]
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "chat_template": template, **more}))
    return folder


@pytest.fixture(scope="module", params=TEMPLATES)
def chat(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptEncoder, Any, str]:
    """The encoder of a folder with that template, and transformers' tokenizer with it."""
    template = TEMPLATES[request.param]
    folder = write_tokenizer(tmp_path_factory.mktemp("chat"), template)
    write_format(folder, folder)
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    return PromptEncoder.from_folder(folder), oracle, template


def expected_ids(oracle: Any, template: str, asked: str, system: str | None = None) -> list[int]:
    turns = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": asked}]
    text = oracle.apply_chat_template(
        turns, chat_template=template, tokenize=False, add_generation_prompt=True, **SETTINGS
    )
    return oracle(text, add_special_tokens=False).input_ids


CLEAN = st.text().filter(lambda text: not any(token in text for token in (*SPECIAL, "<|", "[/", "[I", "</", "<s")))


@settings(max_examples=150)
@given(instruction=CLEAN, context=st.none() | CLEAN)
def test_ids_are_those_of_the_template_on_any_text(
    chat: tuple[PromptEncoder, Any, str], instruction: str, context: str | None
) -> None:
    encoder, oracle, template = chat
    asked = f"{instruction}\n\n{context}" if context else instruction
    assert encoder.encode(instruction, context) == expected_ids(oracle, template, asked)
    assert encoder.count(instruction, context, 10**6).num_tokens == len(encoder.encode(instruction, context))


def test_a_system_prompt_stands_where_the_template_puts_it(chat: tuple[PromptEncoder, Any, str]) -> None:
    encoder, oracle, template = chat
    if template == MISTRAL:
        with pytest.raises(ConfigError, match="no place for a system prompt"):
            encoder.with_system("Be brief.")
        return
    for system in ("Be brief.", " spaces \n"):
        assert encoder.with_system(system).encode("Hi", None) == expected_ids(oracle, template, "Hi", system)


def test_rows_of_jobs_with_other_system_prompts_share_a_host(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model", CHATML)
    write_format(folder, folder)
    encoder = PromptEncoder.from_folder(folder)
    systems = [None, "Be brief.", "Be kind.", None, "Be brief."]
    rows = [PromptRow(str(n), "Hi", None, GenerationParams(), system=system) for n, system in enumerate(systems)]
    found = [request.prompt_ids for request in RowEncoder(encoder, 512).encode(rows)]  # type: ignore[union-attr]
    assert found == [tuple(encoder.with_system(system).encode("Hi", None)) for system in systems]
    assert len(set(found)) == 3


@given(parts=st.lists(st.sampled_from([*SPECIAL, "<|", "im_end|>", " ", "\n", "a"])))
def test_no_cell_can_write_a_special_token(chat: tuple[PromptEncoder, Any, str], parts: list[str]) -> None:
    encoder, _, _ = chat
    special = {encoder._id(token) for token in SPECIAL}
    empty = [token for token in encoder.encode("", None) if token in special]
    found = encoder.encode("".join(parts), "".join(reversed(parts)) or None)
    assert [token for token in found if token in special] == empty


def test_answers_end_as_the_template_and_the_settings_say(tmp_path: Path) -> None:
    for name, first in (("chatml", "<|im_end|>"), ("llama 3", "<|eot_id|>"), ("mistral", "</s>")):
        folder = write_tokenizer(tmp_path / name, TEMPLATES[name])
        (folder / "generation_config.json").write_text('{"eos_token_id": [0]}')
        write_format(folder, folder)
        encoder = PromptEncoder.from_folder(folder)
        assert encoder.format.stop[0] == first
        assert {*encoder.format.stop} == {first, "</s>", "<|endoftext|>"}
        (response,) = encoder.encode_responses(["Paris"])
        assert encoder.decode(response) == (" Paris" if name == "mistral" else "Paris") + first


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0]['content'] | upper }}", "changes the user's text"),
        ("{% for message in messages %}{{ message['content'] * 2 }}{% endfor %}", "more than once"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ nothing.there.at_all }}", "UndefinedError"),
    ],
)
def test_a_template_that_is_no_data_is_refused(tmp_path: Path, template: str, words: str) -> None:
    folder = write_tokenizer(tmp_path / "model", template)
    with pytest.raises(ModelError, match="chat template cannot be used") as refused:
        write_format(folder, folder)
    assert words in str(refused.value)
    assert not (folder / PROMPT).exists()


def test_a_staged_chat_model_keeps_its_format_and_copies_of_it_too(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer", CHATML) / "tokenizer.json"
    source = write_random_model(tmp_path / "source", "llama", tokenizer=tokenizer)
    (source / "chat_template.jinja").write_text(CHATML)
    (source / "generation_config.json").write_text('{"eos_token_id": 0}')
    staged = stage_to(str(source), tmp_path / "staged")
    copy = stage_to(str(staged.folder), tmp_path / "copy")
    assert copy.identity == staged.identity == inspect_folder(copy.folder).sha256
    assert (copy.folder / PROMPT).read_bytes() == (staged.folder / PROMPT).read_bytes()
    assert {path.name for path in staged.folder.iterdir()} == {
        *("config.json", "tokenizer.json", "model.safetensors", "manifest.json", PROMPT)
    }
    (source / "chat_template.jinja").write_text(CHATML.replace("helpful", "terse"))
    assert stage_to(str(source), tmp_path / "other").identity != staged.identity


@pytest.mark.parametrize("change", ["{", '{"format": 2}', '{"format": 1, "parts": [], "stop": ["a"], "name": "x"}'])
def test_a_broken_format_is_named(tmp_path: Path, change: str) -> None:
    folder = write_tokenizer(tmp_path / "model", CHATML)
    (folder / PROMPT).write_text(change)
    with pytest.raises(ModelError, match=PROMPT):
        PromptEncoder.from_folder(folder)


def test_a_format_survives_its_file(chat: tuple[PromptEncoder, Any, str]) -> None:
    assert PromptFormat.from_json(chat[0].format.to_json()) == chat[0].format
