"""Checking requests, and running equal ones once. No torch."""

from dataclasses import replace

from dolly_batch.records import Completion, Failure, GenerationParams, Request, ScoreRequest


def num_positions(request: Request) -> int:
    """Tokens that a request may come to hold: prompt and answer."""
    return len(request.prompt_ids) + request.params.max_new_tokens


def too_long(request: Request | ScoreRequest, max_positions: int) -> Failure | None:
    """The failure of a request that exceeds the model's positions, else None."""
    num_prompt_tokens = len(request.prompt_ids)
    if isinstance(request, ScoreRequest):
        num_more = max((len(continuation) for continuation in request.continuations), default=0)
        more = f"{num_more} of the longest continuation"
    else:
        num_more = request.params.max_new_tokens
        more = f"{num_more} new tokens"
    if num_prompt_tokens + num_more <= max_positions:
        return None
    return Failure("too_long", f"{num_prompt_tokens} prompt tokens + {more} exceed {max_positions} positions")


def refuse(request: Request, vocab_size: int, max_positions: int) -> Failure | None:
    """Why a request cannot go into a batch, where it would fail its neighbours too; None when it can."""
    params = request.params
    if not request.prompt_ids:
        return Failure("model_error", "the prompt holds no tokens")
    if not all(0 <= token_id < vocab_size for token_id in (*request.prompt_ids, *request.partial_ids)):
        return Failure("model_error", f"the prompt holds ids outside of 0 to {vocab_size - 1}")
    if not _in_range(params):
        return Failure("model_error", f"generation parameters out of range: {params}")
    if request.partial_ids and (request.grammar is not None or len(request.partial_ids) >= params.max_new_tokens):
        return Failure("model_error", "an answer cannot be resumed under a grammar, or when it is already full")
    return too_long(request, max_positions)


def refuse_score(request: ScoreRequest, vocab_size: int, max_positions: int) -> Failure | None:
    """Why a request cannot be scored; None when it can."""
    if not request.prompt_ids:
        return Failure("model_error", "the prompt holds no tokens")
    failure = too_long(request, max_positions)
    if failure:
        return failure
    ids = (request.prompt_ids, *request.continuations)
    if any(not 0 <= min(part) <= max(part) < vocab_size for part in ids if part):
        return Failure("model_error", f"the request holds ids outside of 0 to {vocab_size - 1}")
    return None


def failed(request: Request, failure: Failure) -> Completion:
    """The completion of a request that got no answer."""
    return Completion(request.key, "", (), None, len(request.prompt_ids), failure)


def _in_range(params: GenerationParams) -> bool:
    return (
        params.max_new_tokens >= 1
        and params.temperature > 0
        and params.top_k >= 0
        and 0 < params.top_p <= 1
        and params.repetition_penalty > 0
    )


_Content = tuple[tuple[int, ...], GenerationParams, str | None, tuple[int, ...]]


class Deduplication:
    """Greedy requests for the same tokens run once: the first is the primary, its duplicates get its completion."""

    def __init__(self) -> None:
        self.num_duplicates = 0
        self._duplicates: dict[_Content, list[str]] = {}
        self._contents: dict[str, _Content] = {}  # by the primary's key

    def is_primary(self, request: Request) -> bool:
        """Whether the request must run. If not, its completion comes with its primary's."""
        if request.params.do_sample:
            return True
        content = (request.prompt_ids, request.params, request.grammar, request.partial_ids)
        duplicates = self._duplicates.get(content)
        if duplicates is None:
            self._duplicates[content] = []
            self._contents[request.key] = content
            return True
        duplicates.append(request.key)
        self.num_duplicates += 1
        return False

    def with_duplicates(self, completion: Completion) -> list[Completion]:
        """The completion, and those of its duplicates."""
        content = self._contents.pop(completion.key, None)
        if content is None:
            return [completion]
        duplicates = self._duplicates.pop(content)
        self.num_duplicates -= len(duplicates)
        return [completion, *(replace(completion, key=key) for key in duplicates)]
