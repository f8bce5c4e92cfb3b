"""int8 on the CPU: how far it is from float32, and that its products are exact."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dolly_batch
from dolly_batch.engine.load import load_engine
from dolly_batch.engine.weights.int8_cpu import (
    PACKED,
    PACKED_7_BITS,
    PLAIN,
    Int8Linear,
    Int8Product,
    cpu_product,
    is_exact,
    join,
    quantize,
)
from dolly_batch.engine.weights.loading import LoadedModel, load_model
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import EngineSpec, GenerationParams, Request
from tests.engine.engines import answer

PACKAGE = Path(dolly_batch.__file__).parent
TINY = PACKAGE / "tiny" / "model"


def logits(loaded: LoadedModel, ids: list[int]) -> Tensor:
    with torch.inference_mode():
        return loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()  # type: ignore[no-any-return]


def pair(folder: Path, dtype: str, product: Int8Product | None) -> tuple[LoadedModel, LoadedModel]:
    exact, short = load_model(folder, dtype="float32", device="cpu"), load_model(folder, dtype=dtype, device="cpu")
    quantize(short.model, product=product)
    return exact, short


# The CPU's best, and what CPUs without VNNI are left with: others can do that too.
@pytest.fixture(params=[None, PACKED_7_BITS], ids=["best", "7 bits"])
def product(request: pytest.FixtureRequest) -> Int8Product | None:
    found: Int8Product | None = request.param
    if found is not None and not is_exact(found):
        pytest.skip("oneDNN has no such product here")
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tiny_chooses_as_float32_does(dtype: str, product: Int8Product | None) -> None:
    if not (TINY / "config.json").is_file():
        pytest.skip(f"the small model is not at {TINY}")
    exact, short = pair(TINY, dtype, product)
    assert isinstance(exact.encoder, PromptEncoder)
    lines = (PACKAGE / "samples" / "instructions.jsonl").read_text().splitlines()
    samples = [sample for sample in map(json.loads, lines) if (sample["instruction"] or "").strip()]
    prompts = [tuple(exact.encoder.encode(sample["instruction"], sample.get("context"))) for sample in samples]
    params = GenerationParams(max_new_tokens=60, do_sample=False)
    engine = load_engine(EngineSpec("plain", str(TINY), dtype="float32"), "cpu")
    answers = answer(engine, [Request(str(row), prompt, params) for row, prompt in enumerate(prompts)])
    num_tokens = num_same = 0
    excess_bits = 0.0
    for row, prompt in enumerate(prompts):
        response = [*answers[str(row)].token_ids, exact.encoder.end_id]
        ids = [*prompt, *response[:-1]]
        wanted, found = (logits(model, ids)[len(prompt) - 1 :] for model in (exact, short))
        num_tokens += len(response)
        num_same += int((wanted.argmax(dim=-1) == found.argmax(dim=-1)).sum())
        of_response = torch.tensor(response)[:, None]
        gained = wanted.log_softmax(dim=-1) - found.log_softmax(dim=-1)
        excess_bits += gained.gather(-1, of_response).sum().item() / math.log(2)
    print(f"{num_same} of {num_tokens} tokens the same, {excess_bits / num_tokens:.4f} bits a token more")
    assert num_tokens > 300
    assert num_same >= 0.99 * num_tokens
    assert excess_bits <= 0.01 * num_tokens


def test_random_weights_stay_near_float32(product: Int8Product | None) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
    model = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=5_000, **sizes)).eval()
    ids = torch.randint(0, 5_000, (4, 64))
    with torch.inference_mode():
        wanted = model(input_ids=ids).logits.double().log_softmax(dim=-1)
        quantize(model, product=product)
        found = model(input_ids=ids).logits.double().log_softmax(dim=-1)
    divergence = (wanted.exp() * (wanted - found)).sum(dim=-1).mean().item()
    print(f"KL {divergence:.1e}")
    assert 0 < divergence <= 1e-3


def test_all_layers_are_packed_and_their_originals_gone(neox_folder: Path) -> None:
    loaded = load_model(neox_folder, dtype="float32", device="cpu")
    quantize(loaded.model)
    layers = [module for module in loaded.model.modules() if isinstance(module, Int8Linear)]
    assert len(layers) == 4 * 2 + 1
    assert not any(isinstance(module, torch.nn.Linear) for module in loaded.model.modules())
    left = {name for name, parameter in loaded.model.named_parameters() if parameter.dim() == 2}
    assert left == {"gpt_neox.embed_in.weight"}


@pytest.mark.parametrize("product", [PLAIN, PACKED, PACKED_7_BITS], ids=["plain", "packed", "packed 7 bits"])
def test_exact_products_are_the_same(product: Int8Product) -> None:
    if not is_exact(product):
        assert product is not PLAIN
        pytest.skip("this CPU has no such product")
    numbers = torch.Generator().manual_seed(3)
    largest = product.max_weight
    weight = torch.randint(-largest, largest + 1, (96, 64), generator=numbers, dtype=torch.int8)
    rows = torch.randint(1, 256, (13, 64), generator=numbers, dtype=torch.uint8)
    exact = (rows.long() - 128) @ weight.long().t()
    assert torch.equal(product.make(weight, torch.ones(96))(rows).long(), exact)


def test_a_saturating_product_is_not_exact() -> None:
    def saturating(weight: Tensor, scales: Tensor):  # type: ignore[no-untyped-def]
        """As CPUs without VNNI do it: unsigned times signed, in pairs of 16 bits."""

        def multiply(rows: Tensor) -> Tensor:
            products = rows.to(torch.int32)[:, None] * weight.to(torch.int32)
            pairs = products.view(*products.shape[:2], -1, 2).sum(dim=-1).clamp(-(2**15), 2**15 - 1)
            return (pairs.sum(dim=-1) - 128 * weight.sum(dim=-1)).float()

        return multiply

    assert not is_exact(Int8Product(saturating, 127))
    assert is_exact(Int8Product(saturating, 64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biases", [(False, False, False), (True, True, True), (True, False, True)], ids=str)
def test_joined_layers_have_the_bits_of_layers_of_their_own(dtype: torch.dtype, biases: tuple[bool, ...]) -> None:
    torch.manual_seed(6)
    names, product = ("query", "key", "value"), cpu_product()
    linears = [nn.Linear(96, size, bias=bias).to(dtype) for size, bias in zip((72, 24, 40), biases, strict=True)]
    alone = [Int8Linear(linear, product, dtype) for linear in linears]
    layer = nn.ModuleDict(dict(zip(names, linears, strict=True)))
    join(layer, names, product, dtype)
    layers = [layer.get_submodule(name) for name in names]
    some, others = torch.randn(1, 19, 96).to(dtype), torch.randn(1, 1, 96).to(dtype)
    for inputs in (some, others, some):
        for joined, own in zip(layers, alone, strict=True):
            assert torch.equal(joined(inputs), own(inputs))
    # Inputs that are only equal, and layers called by themselves.
    assert torch.equal(layers[1](others.clone()), alone[1](others))
    assert torch.equal(layers[0](some), alone[0](some))
    assert torch.equal(layers[2](others), alone[2](others))
