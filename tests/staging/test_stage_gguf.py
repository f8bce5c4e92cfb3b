"""GGUF files: one file becomes a checked folder of safetensors, the numbers as transformers reads them."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from dolly_batch.engine.weights.loading import load_model
from dolly_batch.errors import ModelError
from dolly_batch.models.folder import inspect_folder, verify_hashes
from dolly_batch.staging import stage_to
from tests.random_models import train_tokenizer
from tests.staging.test_chat_template import CHATML

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS = 64, 128, 2, 4, 2
CONTROL, NORMAL = 3, 1


def write_gguf(path: Path) -> Path:
    """A random Llama model with blocks of four bits, as llama.cpp lays its files out."""
    layout = json.loads(train_tokenizer().to_str())["model"]
    tokens = sorted(layout["vocab"], key=layout["vocab"].get)
    names = {"### End": "<|im_end|>", "### Instruction:": "<|im_start|>", "### Response:": "<|unused|>"}
    tokens = [names.get(token, token) for token in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([" ".join(pair) for pair in layout["merges"]])
    writer.add_token_types([CONTROL if token.startswith("<|") else NORMAL for token in tokens])
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_chat_template(CHATML)
    numbers = np.random.default_rng(0)
    kv_size = HIDDEN // HEADS * KV_HEADS
    shapes = {"token_embd": (len(tokens), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        own = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (kv_size, HIDDEN), "attn_v": (kv_size, HIDDEN)}
        own |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN)}
        own |= {"ffn_down": (HIDDEN, INNER), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    for name, shape in shapes.items():
        tensor = numbers.normal(size=shape).astype(np.float32) * 0.2
        kind = gguf.GGMLQuantizationType.Q4_1
        if len(shape) == 2 and name != "token_embd":
            writer.add_tensor(f"{name}.weight", gguf.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_becomes_a_folder_that_answers_as_transformers_does(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.Q4_1.gguf")
    staged = stage_to(str(file), tmp_path / "staged")
    again = stage_to(str(file), tmp_path / "staged")
    assert (again.already_there, again.identity) == (True, staged.identity)
    folder = inspect_folder(staged.folder)
    verify_hashes(folder)
    assert folder.config.is_tied
    assert (folder.config.num_kv_heads, folder.max_positions, folder.config.inner_size) == (KV_HEADS, 512, INNER)
    loaded = load_model(staged.folder, dtype="float32", device="cpu")
    assert loaded.encoder.format.stop == ("<|im_end|>",)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    prompt = torch.tensor([loaded.encoder.encode("Name a river.", None)])
    with torch.inference_mode():
        assert torch.equal(loaded.model(prompt).logits, oracle(prompt).logits)


def test_what_is_no_gguf_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, it says, and is not")
    with pytest.raises(ModelError, match=r"model\.gguf: not a GGUF file that can be read"):
        stage_to(str(tmp_path / "model.gguf"), tmp_path / "staged")
    assert not (tmp_path / "staged").exists()
