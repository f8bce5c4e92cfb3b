"""Job files: what is refused, and how it is said."""

import json
from pathlib import Path

import pytest

from dolly_batch.config.job import load_job
from dolly_batch.errors import ConfigError
from dolly_batch.spark.plan.keys import input_settings, stored_input_settings

GOOD = """
name: job
model: {path: tiny}
input: {path: in.jsonl, format: json, id: id}
output: {path: out}
work_dir: work
"""


def load(tmp_path: Path, text: str, *overrides: str):  # type: ignore[no-untyped-def]
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return load_job(path, list(overrides))


def test_defaults_are_those_of_the_reference_pipeline(tmp_path: Path) -> None:
    params = load(tmp_path, GOOD).generation.params
    assert (params.max_new_tokens, params.do_sample, params.top_p, params.top_k, params.temperature) == (
        256, True, 0.92, 0, 1.0,
    )  # fmt: skip


BAD = {
    "typo": (GOOD.replace("{path: tiny}", "{path: tiny, dtyp: x}"), "model.dtyp: unknown key; did you mean `dtype`"),
    "typo at the top": (GOOD + "modle: {}\n", "modle: unknown key; did you mean `model`"),
    "missing": (GOOD.replace("work_dir: work", ""), "work_dir: required, but missing"),
    "twice": (GOOD + "name: other\n", "key `name` is given twice"),
    "twice inside": (GOOD.replace("id: id}", "id: id, id: other}"), "key `id` is given twice"),
    "python object": (GOOD + "x: !!python/object/apply:os.system ['touch pwned']\n", "not readable YAML"),
    "wrong type": (GOOD.replace("{path: out}", '{path: out, target_file_mb: "12"}'), "output.target_file_mb"),
    "number as text": (GOOD.replace("name: job", "name: 12"), 'name: must be text.*quote it: name: "12"'),
    "path and table": (GOOD.replace("{path: out}", "{path: out, table: t}"), "output: give exactly one of"),
    "neither": (GOOD.replace("{path: out}", "{mode: append}"), "output: give exactly one of"),
    "no format": (GOOD.replace(", format: json", ""), "input: `format` is needed"),
    "parquet merge": (GOOD.replace("{path: out}", "{path: out, format: parquet, mode: merge}"), "merge needs"),
    "not a mapping": ("- a\n- b\n", "must hold a mapping"),
    "bad name": (GOOD.replace("name: job", "name: ../../etc"), "name: "),
    "bad top_p": (GOOD + "generation: {top_p: 1.5}\n", "generation.top_p"),
    "a limit of money without a price": (GOOD + "limits: {max_cost: 5.0}\n", "`max_cost` needs `price_per_gpu_hour`"),
    "a tag's name": (GOOD + "tags: {'a b': x}\n", "tags"),
    "a tag of several lines": (GOOD + 'tags: {a: "x\\ny"}\n', "tags.a"),
    "no such task": (GOOD + "task: {kind: clasify}\n", r"task\.kind: no such task `clasify`; did you mean `classify`"),
    "key of a task": (
        GOOD + "task: {kind: classify, labels: [a, b], none_belo: 1}\n",
        "task.none_belo: .*`none_below`",
    ),
    "labels YAML reads as booleans": (
        GOOD + "task: {kind: classify, labels: [yes, No, 'on']}\n",
        r'task.labels: must be text.*quote them: labels: \["yes", "No", "on"\]$',
    ),
    "labels YAML reads as numbers": (
        GOOD + "task: {kind: classify, labels: [1, 0x2]}\n",
        r'task.labels: .*quote them: labels: \["1", "0x2"\]$',
    ),
    "labels YAML reads as null and a date": (
        GOOD + "task: {kind: classify, labels: [null, 2024-01-01]}\n",
        r'task.labels: .*quote them: labels: \["null", "2024-01-01"\]$',
    ),
    "a date that is none": (GOOD + "task: {kind: classify, labels: [2024-13-45, b]}\n", "not readable YAML.*quotes"),
    "label with a number to it": (
        GOOD + "task: {kind: classify, labels: {a: 1, b: x}}\n",
        'task.labels.a: must be text.*quote it: a: "1"$',
    ),
    "label YAML reads as a boolean": (GOOD + "task: {kind: classify, labels: {no: x, b: y}}\n", 'quote it: "no"'),
    "labels as text": (GOOD + "task: {kind: classify, labels: 'a, b'}\n", "task.labels: .*valid list"),
    "nested too deeply": (GOOD + "task: " + "{a: " * 3000 + "}" * 3000 + "\n", "not readable YAML"),
    "an anchor that holds itself": (GOOD + "task: &a {kind: classify, labels: *a}\n", "holds itself"),
    "half a label": (GOOD + 'task: {kind: classify, labels: ["a\\ud83d", b]}\n', r"task\.labels\.0: holds half"),
    "half a label's name": (
        GOOD + 'task: {kind: classify, labels: {"a\\ud83d": x, b: y}}\n',
        r"task\.labels\.a\\ud83d: holds half",
    ),
    "half an enum": (
        GOOD + 'task: {kind: extract, schema: {type: object, properties: {a: {enum: ["\\ude00"]}}}}\n',
        r"task\.schema\.properties\.a\.enum\.0: holds half",
    ),
    "half a template": (GOOD + 'task: {template: "\\ud83d {text}"}\n', r"task\.template: holds half"),
    "half a path": (GOOD.replace("in.jsonl", '"in\\ud83d.jsonl"'), r"input\.path: holds half"),
    "schema by its path": (
        GOOD + "task: {kind: extract, schema: {type: object, properties: {a: {type: string, maxLength: '3'}}}}\n",
        r"task\.schema\.a\.maxLength: must be a whole number",
    ),
    "one label": (GOOD + "task: {kind: classify, labels: [a]}\n", "task.labels: 1 labels; give 2 to 500"),
    "label twice": (GOOD + "task: {kind: classify, labels: [a, b, a]}\n", "label `a` is given twice"),
    "template of no column": (GOOD + "task: {template: 'x {{a}}'}\n", "task.template: names no column"),
    "template with a format": (
        GOOD + "task: {template: '{a:>3}'}\n",
        "task.template: `{a:>3}` must hold .* write {`a:>3`}",
    ),
    "lone brace": (GOOD + "task: {template: '{a} {'}\n", "task.template: .*write {{ and }} for braces"),
    "example": (GOOD + "task: {examples: [{instruction: a, respons: b}]}\n", r"task.examples.0.respons: .*`response`"),
    "unread column": (
        GOOD.replace("id: id}", "id: id, context: c}") + "task: {kind: summarize}\n",
        "input.context is not read: this task .summarize. reads input.text",
    ),
    "quantization": (GOOD.replace("{path: tiny}", "{path: tiny, quantization: int3}"), "model.quantization"),
    "no price": (GOOD + "limits: {price_per_gpu_hour: .inf}\n", "limits.price_per_gpu_hour: .* a finite number"),
    "no temperature": (GOOD + "generation: {temperature: .inf}\n", "generation.temperature: .* a finite number"),
    "no confidence": (
        GOOD + "task: {kind: classify, labels: [a, b], none_below: .nan}\n",
        "task.none_below: .* a finite number",
    ),
    "days beyond the calendar": (GOOD + "work: {keep_days: 1000000000000}\n", "work.keep_days: .* 100000"),
    "a section without keys": (GOOD + "limits:\n", "limits: must be a section: give it keys, or leave it out"),
    "a kind without its key": (GOOD + "task: classify\n", "task: must be a section"),
    "a number for Spark": (GOOD + "spark: {conf: {spark.sql.shuffle.partitions: 4}}\n", "text; put it into quotes"),
    "the root": (GOOD.replace("work_dir: work", "work_dir: file:///tmp/.."), "work_dir: must be a folder of its own"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_job_is_refused_with_the_keys_path(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)
    assert not Path("pwned").exists()


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace("tiny", "tiny, dtyp: 1") + "generation: {top_k: -1}\n")
    assert {"model.dtyp", "generation.top_k"} <= {line.strip().split(":")[0] for line in str(caught.value).splitlines()}


def test_overrides_reach_any_key(tmp_path: Path) -> None:
    job = load(
        tmp_path, GOOD, "generation.max_new_tokens=7", "input.id=[a, b]", "model.revision=null", "output.path=x=y"
    )
    assert (job.generation.max_new_tokens, job.input.id_columns) == (7, ("a", "b"))
    assert (job.model.revision, job.output.path) == (None, "x=y")


def test_overrides_reach_what_is_not_there_yet_and_keys_with_dots(tmp_path: Path) -> None:
    text = GOOD.replace("{path: out}", "{path: out, rejected: null}") + "limits:\n"
    overrides = ["limits.max_rows=3", "output.rejected.path=r", "tags.team.name=ada", "checks.no.dots=response = 'a.b'"]
    job = load(tmp_path, text, *overrides, "spark.conf.spark.sql.shuffle.partitions='4'", "input.options.a.b=c")
    assert (job.limits.max_rows, job.output.rejected.path) == (3, "r")
    assert (job.tags, job.checks) == ({"team.name": "ada"}, {"no.dots": "response = 'a.b'"})
    assert (job.spark.conf, job.input.options) == ({"spark.sql.shuffle.partitions": "4"}, {"a.b": "c"})


@pytest.mark.parametrize("override", ["novalue", "=3", "name.x=3", "model.dtyp=x", "name=[unclosed"])
def test_bad_overrides_are_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError):
        load(tmp_path, GOOD, override)


def test_greedy_decoding_ignores_the_sampling_settings(tmp_path: Path) -> None:
    greedy = load(tmp_path, GOOD, "generation.do_sample=false", "generation.temperature=0.3").generation.params
    assert greedy == load(tmp_path, GOOD, "generation.do_sample=false").generation.params


def test_two_escapes_of_one_character_are_one_character(tmp_path: Path) -> None:
    job = load(tmp_path, GOOD + 'task: {kind: classify, labels: ["a\\ud83d\\ude00", b]}\n')
    assert job.task.labels == ["a\U0001f600", "b"]


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    text = GOOD.replace("tiny}", "~/dolly, stage_dir: ~/models}").replace("in.jsonl", "~/in")
    text = text.replace("{path: out}", '{path: "~"}').replace("work_dir: work", "work_dir: ~/work")
    job = load(tmp_path, text)
    paths = [job.model.path, job.model.stage_dir, job.input.path, job.output.path, job.work_dir]
    assert paths == [f"/home/ada{rest}" for rest in ("/dolly", "/models", "/in", "", "/work")]
    with pytest.raises(ConfigError, match="work_dir: `~` is there no home folder"):
        load(tmp_path, GOOD, "work_dir=~no-such-user/work")


@pytest.mark.parametrize("prefix", ["a`b", "a/b", "a=b", "a\n"])
def test_a_prefix_divides_no_names_and_paths(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(ConfigError, match=r"output\.prefix: may have letters"):
        load(tmp_path, GOOD, f"output.prefix={json.dumps(prefix)}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            GOOD.replace("format: json", "format: json, options: {fs.s3a.secret.key: 5127}"),
            "secret.key: .*not shown",
        ),
        (GOOD.replace("format: json", "format: json, options: {password: 5127}"), "options.password: .*not shown"),
        (GOOD + "spark: {conf: {spark.hadoop.fs.azure.account.key.x: 5127}}\n", "account.key.x: .*not shown"),
        (
            GOOD.replace("in.jsonl", "'s3a://KEY:5EC12E7@bucket/in'"),
            r"input.path: holds a user's password .*\(hidden\)",
        ),
        (
            GOOD + "spark: {conf: {a: 'SECRET}}\n",
            "quoted scalar .line 7, column 19., found unexpected end .* .line 8, column 1.$",
        ),
        (GOOD + "spark: {conf: {a: b}\nx: [SECRET\n", "line 8"),
    ],
)
def test_no_fault_of_a_file_shows_a_credential(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        load(tmp_path, text)
    assert not any(part in str(caught.value) for part in ("SECRET", "5EC12E7", "5127"))


def test_what_is_stored_of_a_job_holds_no_credentials(tmp_path: Path) -> None:
    options = "{sep: ';', header: 'true', fs.s3a.secret.key: SECRET, sasToken: SECRET, fs.s3a.endpoint: here}"
    text = GOOD.replace("format: json", f"format: csv, options: {options}")
    stored = input_settings(load(tmp_path, text), None)
    assert "SECRET" not in stored
    assert '"sep": ";", "header": "true", "fs.s3a.secret.key": "(not kept)"' in stored
    # The same plan goes on with another key, and one of a version that kept keys does too.
    assert input_settings(load(tmp_path, text.replace("SECRET", "NEW")), None) == stored
    earlier = json.dumps({"input": load(tmp_path, text).input.model_dump(by_alias=True), "limit": None})
    assert "SECRET" in earlier
    assert stored_input_settings(earlier) == stored
    assert input_settings(load(tmp_path, text.replace("';'", "'|'")), None) != stored
