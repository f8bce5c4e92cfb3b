"""What every engine does with requests: refuse what can't be run, answer equal ones once. No torch."""

from dataclasses import replace

from dolly_batch.engine.protocol import too_long
from dolly_batch.records import Completion, Failure, GenerationParams, Request


def num_positions(request: Request) -> int:
    """Tokens that a request may come to hold: prompt and answer."""
    return len(request.prompt_ids) + request.params.max_new_tokens


def refuse(request: Request, vocab_size: int, max_positions: int) -> Failure | None:
    """Why a request cannot go into a batch, where it would take its neighbours down; None when it can."""
    params = request.params
    if not request.prompt_ids:
        return Failure("model_error", "the prompt holds no tokens")
    if not all(0 <= token_id < vocab_size for token_id in (*request.prompt_ids, *request.partial_ids)):
        return Failure("model_error", f"the prompt holds ids outside of 0 to {vocab_size - 1}")
    if not _in_range(params):
        return Failure("model_error", f"generation parameters out of range: {params}")
    if request.partial_ids and (request.grammar is not None or len(request.partial_ids) >= params.max_new_tokens):
        return Failure("model_error", "an answer cannot be gone on with under a grammar, or where it is full already")
    return too_long(request, max_positions)


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


_Question = tuple[tuple[int, ...], GenerationParams, str | None, tuple[int, ...]]


class EqualRequests:
    """Greedy requests for the same tokens are run once: the first leads, the others get its completion."""

    def __init__(self) -> None:
        self.num_followers = 0
        self._followers: dict[_Question, list[str]] = {}
        self._questions: dict[str, _Question] = {}  # by the leader's key

    def leads(self, request: Request) -> bool:
        """Whether the request is to be run. If not, its completion comes with its leader's."""
        if request.params.do_sample:
            return True
        question = (request.prompt_ids, request.params, request.grammar, request.partial_ids)
        followers = self._followers.get(question)
        if followers is None:
            self._followers[question] = []
            self._questions[request.key] = question
            return True
        followers.append(request.key)
        self.num_followers += 1
        return False

    def answer(self, completion: Completion) -> list[Completion]:
        """The completion, and with it those of its followers."""
        question = self._questions.pop(completion.key, None)
        if question is None:
            return [completion]
        followers = self._followers.pop(question)
        self.num_followers -= len(followers)
        return [completion, *(replace(completion, key=key) for key in followers)]
