"""One model over several GPUs, as far as it can be seen without any: the map, the hooks, the refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dolly_batch.engine.load import choose_engine, load_engine
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.weights.device_map import device_map
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.errors import ConfigError
from dolly_batch.models.architectures import ARCHITECTURES
from dolly_batch.records import EngineSpec, GenerationParams
from tests.engine.engines import answer
from tests.engine.questions import dolly, mixed_requests

NEOX = ARCHITECTURES["gpt_neox"]
GPUS = (torch.device("cuda:0"), torch.device("cuda:1"))


@pytest.fixture(params=["gpt_neox", "gptj"])
def folder(request: pytest.FixtureRequest, neox_folder: Path, gptj_folder: Path) -> Path:
    return neox_folder if request.param == "gpt_neox" else gptj_folder


def test_every_weight_has_a_gpu_and_the_ends_are_on_the_first(folder: Path) -> None:
    accelerate = pytest.importorskip("accelerate.utils")
    loaded = load_model(folder, dtype="float32", device="cpu")
    places = device_map(loaded.model, loaded.folder.config, GPUS)
    accelerate.check_device_map(loaded.model, places)  # raises for what has no place
    of_layers = [place for name, place in places.items() if name.rpartition(".")[2].isdecimal()]
    assert len(of_layers) == loaded.folder.config.num_layers
    assert of_layers == sorted(of_layers, key=str)
    assert set(places.values()) == set(GPUS)
    ends = (loaded.model.get_input_embeddings(), loaded.model.get_output_embeddings())
    names = [name for name, module in loaded.model.named_modules() if module in ends]
    assert [places[name] for name in names] == [GPUS[0]] * 2


def test_a_dispatched_model_answers_and_scores_as_the_whole_one(folder: Path) -> None:
    """The parts lie on one device here, but what passes between them goes through accelerate's hooks."""
    accelerate = pytest.importorskip("accelerate")
    loaded = load_model(folder, dtype="float32", device="cpu")
    requests = [
        replace(row, params=GenerationParams(12, do_sample=bool(number % 2)))
        for number, row in enumerate(mixed_requests(dolly(loaded), 9))
    ]
    whole = PlainEngine(loaded)
    expected, prompt = answer(whole, requests), requests[0].prompt_ids
    scores = whole.score(prompt, [(5, 6), (5, 7, 8), (9,)])
    places = dict.fromkeys(device_map(loaded.model, loaded.folder.config, GPUS), "cpu")
    accelerate.dispatch_model(loaded.model, places, main_device="cpu", skip_keys="past_key_values", force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in loaded.model.modules())
    engine = PlainEngine(loaded)
    assert answer(engine, requests) == expected
    assert engine.score(prompt, [(5, 6), (5, 7, 8), (9,)]) == scores


def test_what_cannot_run_over_several_gpus_is_refused_by_name(neox_folder: Path) -> None:
    spec = EngineSpec("auto", str(neox_folder), gpus=4)
    with pytest.raises(ConfigError, match="there are no GPUs"):
        load_engine(spec, "cpu")
    with pytest.raises(ConfigError, match="a model over several GPUs"):
        choose_engine(replace(spec, kind="fast"), NEOX, "cuda")
    with pytest.raises(ConfigError, match="a model over several GPUs cannot have"):
        choose_engine(replace(spec, quantization="int8"), NEOX, "cuda")
    assert choose_engine(spec, NEOX, "cuda") == "plain"
    num_seen = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"the engine sees {num_seen} GPUs"):
        load_model(neox_folder, num_gpus=num_seen + 2)
