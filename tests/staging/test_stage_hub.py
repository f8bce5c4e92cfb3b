"""Models of a hub, through the hub's real client and a real server on this machine."""

import json
import os
from pathlib import Path

import pytest

from dolly_batch.models.folder import inspect_folder, verify_hashes
from tests.staging.hub_server import HubServer
from tests.staging.small_repository import COMMIT, REPO_ID, start

STAGED_NAMES = {"config.json", "tokenizer.json", "model.safetensors.index.json", "manifest.json"}


def test_a_hub_id_becomes_a_checked_folder_pinned_to_its_commit(pickle_hub, in_process, tmp_path):
    done = in_process("stage_under", REPO_ID, tmp_path / "models", "main", endpoint=pickle_hub.endpoint)
    assert done.error == ""
    assert done.folder == tmp_path / "models" / f"databricks-dolly-v2-small-{COMMIT[:12]}"
    folder = inspect_folder(done.folder)
    verify_hashes(folder)
    assert (folder.source, folder.revision, folder.sha256) == (REPO_ID, COMMIT, done.result["identity"])
    names = {path.name for path in done.folder.iterdir()}
    assert names == STAGED_NAMES | {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    assert os.listdir(tmp_path / "models") == [done.folder.name]
    assert "converting shard 3 of 3" in done.log
    assert "%|" not in done.stderr, "a progress bar, though standard error is no terminal"


def test_only_what_is_needed_is_downloaded_and_only_once(hub, in_process, tmp_path):
    in_process("stage_under", REPO_ID, tmp_path / "models", None, endpoint=hub.endpoint)
    weights = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    needed = {"config.json", "tokenizer.json", "model.safetensors.index.json", *weights}
    assert hub.downloads() == dict.fromkeys(needed, 1)
    again = in_process("stage_under", REPO_ID, tmp_path / "models", None, endpoint=hub.endpoint)
    assert again.result["already_there"] is True
    assert hub.downloads() == dict.fromkeys(needed, 1)
    assert not (tmp_path / "home" / "hub").exists(), "weights must not fill the client's cache as well"


def test_stage_to_twice_says_so_and_another_model_is_refused(hub, in_process, tmp_path):
    dest = tmp_path / "models" / "dolly"
    first = in_process("stage_to", REPO_ID, dest, None, endpoint=hub.endpoint)
    second = in_process("stage_to", REPO_ID, dest, None, endpoint=hub.endpoint)
    assert (first.result["already_there"], second.result["already_there"]) == (False, True)
    hub.commit = "f" * 40
    third = in_process("stage_to", REPO_ID, dest, None, endpoint=hub.endpoint)
    assert third.error.startswith(f"ModelError: {dest} holds another model")
    assert COMMIT in third.error
    assert hub.commit in third.error
    assert inspect_folder(dest).revision == COMMIT


def test_safetensors_are_preferred_to_pickles(plain, pickled, in_process, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    for path in [*plain.iterdir(), *pickled.iterdir()]:
        (both / path.name).write_bytes(path.read_bytes())
    with HubServer(both, REPO_ID, COMMIT) as other:
        done = in_process("stage_to", REPO_ID, tmp_path / "dolly", None, endpoint=other.endpoint)
        assert not any(name.endswith((".bin", ".py")) for name in other.downloads())
    assert inspect_folder(done.folder).weight_files == tuple(f"model-0000{n}-of-00002.safetensors" for n in (1, 2))


def test_a_broken_connection_is_tried_again(hub, in_process, tmp_path):
    hub.cut_after["model-00001-of-00002.safetensors"] = 1000
    done = in_process("stage_to", REPO_ID, tmp_path / "dolly", None, endpoint=hub.endpoint)
    assert done.error == ""
    assert hub.downloads()["model-00001-of-00002.safetensors"] == 2
    verify_hashes(inspect_folder(done.folder))


def test_a_disk_that_fills_while_downloading_is_not_blamed_on_the_hub(hub, in_process, tmp_path):
    models = tmp_path / "models"
    done = in_process("stage_to", REPO_ID, models / "dolly", None, endpoint=hub.endpoint, LARGEST_FILE="20000")
    assert done.error.startswith(f"ModelError: staging {REPO_ID} in {models / 'dolly'} failed: File too large")
    assert os.listdir(models) == []


def test_weights_that_differ_from_the_hubs_hash_are_refused(hub, in_process, tmp_path):
    hub.corrupt.add("model-00002-of-00002.safetensors")
    done = in_process("stage_to", REPO_ID, tmp_path / "models" / "dolly", None, endpoint=hub.endpoint)
    assert "model-00002-of-00002.safetensors arrived with another sha256" in done.error
    assert os.listdir(tmp_path / "models") == []


def test_a_model_we_cannot_run_is_refused_before_its_weights_are_fetched(hub, in_process, tmp_path):
    mamba = tmp_path / "mamba"
    mamba.mkdir()
    for path in hub.folder.iterdir():
        (mamba / path.name).write_bytes(path.read_bytes())
    (mamba / "config.json").write_text(json.dumps({"model_type": "mamba", "vocab_size": 10}))
    with HubServer(mamba, REPO_ID, COMMIT) as other:
        done = in_process("stage_to", REPO_ID, tmp_path / "models" / "dolly", None, endpoint=other.endpoint)
        assert not any(name.endswith(".safetensors") for name in other.downloads())
    assert "model_type is 'mamba'" in done.error
    assert os.listdir(tmp_path / "models") == []


def test_an_unknown_model_or_revision_is_named(hub, in_process, tmp_path):
    no_model = in_process("stage_under", "nobody/nothing", tmp_path, None, endpoint=hub.endpoint)
    assert no_model.error.startswith("ModelError: model nobody/nothing: the hub has no such model (404)")
    no_revision = in_process("stage_under", REPO_ID, tmp_path, "v9", endpoint=hub.endpoint)
    assert no_revision.error.startswith(f"ModelError: model {REPO_ID}: the hub has no revision 'v9'")


def test_a_gated_model_asks_for_a_token_and_never_shows_it(hub, in_process, tmp_path):
    hub.token = "hf_right"
    refused = in_process("stage_under", REPO_ID, tmp_path / "a", None, endpoint=hub.endpoint, HF_TOKEN="hf_secret")
    assert "set HF_TOKEN" in refused.error
    assert REPO_ID in refused.error
    assert "hf_secret" not in refused.error + refused.stderr + str(refused.log)
    allowed = in_process("stage_under", REPO_ID, tmp_path / "a", None, endpoint=hub.endpoint, HF_TOKEN="hf_right")
    assert allowed.error == ""
    assert hub.tokens_at_cdn == []
    written = b"".join(path.read_bytes() for path in allowed.folder.glob("*.json"))
    assert b"hf_right" not in written
    assert "hf_right" not in allowed.stderr + str(allowed.log)


@pytest.fixture(scope="module")
def staged(plain, tmp_path_factory):
    """A stage folder that holds one commit of the model. Not to be changed by a test."""
    stage_dir = tmp_path_factory.mktemp("models")
    with HubServer(plain, REPO_ID, COMMIT) as hub:
        child = start("stage_under", REPO_ID, stage_dir, None, home=stage_dir / ".home", endpoint=hub.endpoint)
        stdout, stderr = child.communicate(timeout=60)
    assert json.loads(stdout)["error"] == "", stderr
    return stage_dir


@pytest.mark.parametrize("fault", ["down", "status 503", "offline mode", "not a hub"])
def test_without_the_hub_the_staged_copy_serves(hub, staged, in_process, fault):
    hub.status = {"status 503": 503, "not a hub": 200}.get(fault)
    endpoint = "http://127.0.0.1:9" if fault == "down" else hub.endpoint
    env = {"HF_HUB_OFFLINE": "1"} if fault == "offline mode" else {}
    reused = in_process("stage_under", REPO_ID, staged, None, endpoint=endpoint, **env)
    assert reused.error == ""
    assert reused.result["already_there"] is True
    assert str(reused.folder) in reused.result["warning"]
    assert inspect_folder(reused.folder).revision == COMMIT


def test_a_staged_commit_is_used_without_asking(staged, in_process):
    pinned = in_process("stage_under", REPO_ID, staged, COMMIT)
    assert (pinned.error, pinned.result["warning"], pinned.result["revision"]) == ("", None, COMMIT)


@pytest.mark.parametrize(("source", "revision"), [(REPO_ID, "e" * 40), (REPO_ID, "main"), ("other/model", None)])
def test_without_the_hub_another_model_or_revision_is_refused_with_advice(staged, in_process, source, revision):
    refused = in_process("stage_under", source, staged, revision)
    assert refused.error.startswith(f"ModelError: model {source}: the hub could not be reached (ConnectError)")
    assert "dolly-batch stage-model" in refused.error


def test_without_the_hub_two_staged_revisions_are_not_guessed_between(hub, in_process, tmp_path):
    in_process("stage_under", REPO_ID, tmp_path, None, endpoint=hub.endpoint)
    hub.commit = "f" * 40
    in_process("stage_under", REPO_ID, tmp_path, None, endpoint=hub.endpoint)
    unsure = in_process("stage_under", REPO_ID, tmp_path, None)
    assert COMMIT in unsure.error
    assert "f" * 40 in unsure.error
    chosen = in_process("stage_under", REPO_ID, tmp_path, COMMIT[:10])
    assert inspect_folder(chosen.folder).revision == COMMIT


def test_a_repository_with_an_adapter_or_gguf_is_refused_by_its_list_of_files(plain, in_process, tmp_path):
    adapter, gguf = tmp_path / "adapter", tmp_path / "gguf"
    for folder, files in ((adapter, [*plain.iterdir(), "adapter_config.json"]), (gguf, ["dolly.gguf"])):
        folder.mkdir()
        for file in files:
            (folder / Path(file).name).write_bytes(file.read_bytes() if isinstance(file, Path) else b"{}")
        with HubServer(folder, REPO_ID, COMMIT) as other:
            done = in_process("stage_to", REPO_ID, tmp_path / "models" / "dolly", None, endpoint=other.endpoint)
            assert other.downloads() == {}
        assert done.error.startswith(f"ModelError: model {REPO_ID}: ")
        assert ("adapter_config.json" if folder == adapter else "GGUF") in done.error
