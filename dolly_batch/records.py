"""Frozen records that pass between Spark tasks, the engine host and the engine, standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]
EngineName = Literal["auto", "fast", "plain", "echo"]
"""Values of `engine.kind`: the names in `engine.load.ENGINES`, and `auto`."""

# The statuses of output rows; the share of those in ERROR_STATUSES is what `limits.max_error_share` limits.
ERROR_STATUSES = ("too_long", "bad_encoding", "duplicate_id", "out_of_memory", "model_error", "invalid_output")
STATUSES = ("ok", "truncated", "empty_response", "null_instruction", "empty_instruction", *ERROR_STATUSES)


def count_errors(by_status: Mapping[str, int]) -> int:
    """How many of the rows that are counted by status are errors."""
    return sum(by_status.get(status, 0) for status in ERROR_STATUSES)


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How to decode. The defaults are those of Dolly's reference pipeline.

    `top_k` 0, `top_p` 1.0 and `repetition_penalty` 1.0 switch those off. With `do_sample` false decoding is greedy, and
    temperature, top-p and top-k are ignored.
    """

    max_new_tokens: int = 256
    do_sample: bool = True
    temperature: float = 1.0
    top_p: float = 0.92
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class PartialAnswer:
    """An answer that `max_new_tokens` has cut off: its text, stripped as answers are, and the number of its tokens."""

    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for the engine. `key` is opaque and comes back with the completion; `seed` is the row's own.

    `grammar` is the text of a JSON schema that the answer must follow, token by token, or None. `partial_ids` are the
    tokens of an earlier answer to the same request that was cut off: the engine resumes from them if the first token
    that it draws is their first.
    """

    key: str
    prompt_ids: tuple[int, ...]
    params: GenerationParams
    seed: int = 0
    grammar: str | None = None
    partial_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One prompt and the continuations to be scored after it; ids of prompt and continuation are joined as they are."""

    key: str
    prompt_ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one request got no answer. `status` is a row status: `too_long`, `out_of_memory` or `model_error`."""

    status: Literal["too_long", "out_of_memory", "model_error"]
    message: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The engine's answer to one request.

    `token_ids` holds the generated ids without the end marker; `text` is their decoding, stripped of white space
    at both ends as the reference does. `finish_reason` is `stop` when the model ended the answer itself, `length` when
    `max_new_tokens` ran out, and None exactly when `failure` is set. The first `num_partial_tokens` of the ids were not
    generated but taken over from `partial_ids`.
    """

    key: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    num_prompt_tokens: int
    failure: Failure | None = None
    num_partial_tokens: int = 0

    @property
    def num_completion_tokens(self) -> int:
        """Generated tokens, the end marker not counted."""
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Scores:
    """The engine's answer to one score request.

    `log_probs` holds, per continuation and in their order, the sum of its tokens' natural log-probabilities after the
    prompt, log-softmax in float32 or better; empty when `failure` is set.
    """

    key: str
    log_probs: tuple[float, ...]
    failure: Failure | None = None
    num_prompt_tokens: int = 0


RowFormat = Literal["model", "plain"]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One row to be answered. `key` is opaque and comes back with the completion; `context` None means none.

    `format` "plain" takes the instruction as the whole prompt, without the model's prompt format. `grammar` is the
    text of a JSON schema that the answer has to follow. `partial` is an answer to resume. `system` is a system prompt.
    """

    key: str
    instruction: str
    context: str | None
    params: GenerationParams
    seed: int = 0
    format: RowFormat = "model"
    grammar: str | None = None
    partial: PartialAnswer | None = None
    system: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """One row whose continuations are scored, each on its own after the prompt.

    In the format "model" a continuation is a response, scored with its end marker as the training text has it unless
    `with_end` is false. In "plain" the instruction is the whole prompt, and is cut from the left where it and the
    longest continuation exceed the model's positions.
    """

    key: str
    instruction: str
    context: str | None
    continuations: tuple[str, ...]
    with_end: bool = True
    format: RowFormat = "model"
    system: str | None = None


Row = PromptRow | ScoreRow


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything an engine host needs to start. Two equal specs are served by one host; it crosses to executors.

    `model_folder` is a folder of safetensors, a tokenizer and a config; `model_sha256` the identity the plan was
    made with, or None to accept what is there. `dtype` is `auto`, `float32`, `bfloat16`, `float16` or `float64`.
    `prompt_format` "none" loads base models, which have none, for scoring plain prompts.
    `kind` auto is fast where that runs, else plain. `max_batch_tokens` bounds rows x (prompt + new tokens) of what runs
    at once; None lets the engine choose by device. Of the fast engine alone: `processes` share a host's rows, None for
    one per core where memory allows; `max_cores` bounds processes x threads where those are left open, None for all
    cores of the machine; `kv_bytes` bounds the keys and values of all of them, None for
    `memory_fraction` of the memory that is free; of that None is half on a CPU, and nearly all on a GPU once weights
    and activations have theirs. `kv_dtype` is what they are stored in: `auto` for the model's own dtype, or on a GPU
    `int8` or `fp8`. `gpus` share one model, each with some of its layers. `max_positions` is the window in use, None
    for the model's own. `local_dir` is a folder on the node's own disk to copy the model to, `metrics_dir`
    one for counts of the host.
    """

    kind: EngineName
    model_folder: str
    model_sha256: str | None = None
    dtype: str = "auto"
    quantization: str = "none"
    max_batch_tokens: int | None = None
    num_threads: int | None = None
    step_timeout_s: float = 600.0
    idle_timeout_s: float = 600.0
    load_timeout_s: float = 1800.0
    local_dir: str | None = None
    echo_delay_s: float = 0.0
    prompt_format: Literal["model", "none"] = "model"
    processes: int | None = None
    memory_fraction: float | None = None
    kv_bytes: int | None = None
    prefix_sharing: bool = True
    max_cores: int | None = None
    gpus: int = 1
    max_positions: int | None = None
    metrics_dir: str | None = None
    kv_dtype: str = "auto"
