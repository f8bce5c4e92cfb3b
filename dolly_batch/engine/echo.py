"""An engine without a model: it answers each prompt with the prompt's own instruction. For tests and dry runs.

Everything around it is as real as with a model: token ids, limits, finish reasons, failures, time per request.
"""

import time
from collections import deque
from collections.abc import Callable

from dolly_batch.engine.protocol import no_heartbeat
from dolly_batch.engine.requests import too_long
from dolly_batch.models.architectures import Architecture
from dolly_batch.models.config import ModelConfig
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, EngineSpec, Request, ScoreRequest, Scores


def runs(spec: EngineSpec, architecture: Architecture, device: str) -> str | None:
    """None: without a model it runs with every one."""
    return None


def load(spec: EngineSpec, config: ModelConfig, device: str, heartbeat: Callable[[], None]) -> "EchoEngine":
    """Return the engine; of the model it reads the tokenizer alone."""
    encoder = PromptEncoder.from_folder(spec.model_folder)
    return EchoEngine(encoder, spec.echo_delay_s, config.max_positions, heartbeat)


class EchoEngine:
    """Answers with the ids between the instruction and the response markers, cut to `max_new_tokens`.

    A continuation's score is -1 for each of its tokens that the prompt does not hold, and -0.25 for each that it does.
    Takes `delay_s` seconds per request, without a heartbeat in it; with no delay one step answers all that wait.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        delay_s: float = 0.0,
        max_positions: int = 2048,
        heartbeat: Callable[[], None] = no_heartbeat,
    ) -> None:
        self.encoder = encoder
        self.max_positions = max_positions
        self._delay_s = delay_s
        self._heartbeat = heartbeat
        self._waiting: deque[Request | ScoreRequest] = deque()

    @property
    def num_unfinished(self) -> int:
        """Requests submitted whose answer has not come out."""
        return len(self._waiting)

    def submit(self, request: Request | ScoreRequest) -> None:
        """Take a request."""
        self._waiting.append(request)

    def step(self) -> list[Completion | Scores]:
        """Answer the oldest request, or all of them when there is no delay; in the order of submission."""
        num_answers = min(1, len(self._waiting)) if self._delay_s else len(self._waiting)
        return [self._answer(self._waiting.popleft()) for _ in range(num_answers)]

    def _answer(self, request: Request | ScoreRequest) -> Completion | Scores:
        self._heartbeat()
        time.sleep(self._delay_s)
        if isinstance(request, ScoreRequest):
            return self._score(request)
        num_prompt_tokens = len(request.prompt_ids)
        failure = too_long(request, self.max_positions)
        if failure:
            return Completion(request.key, "", (), None, num_prompt_tokens, failure)
        ids = tuple(self.encoder.instruction_ids(request.prompt_ids))
        kept = ids[: request.params.max_new_tokens]
        text = self.encoder.decode(kept).strip()
        return Completion(request.key, text, kept, "stop" if kept == ids else "length", num_prompt_tokens)

    def _score(self, request: ScoreRequest) -> Scores:
        failure = too_long(request, self.max_positions)
        if failure:
            return Scores(request.key, (), failure, len(request.prompt_ids))
        held = set(request.prompt_ids)
        log_probs = [
            -sum(0.25 if token_id in held else 1.0 for token_id in continuation)
            for continuation in request.continuations
        ]
        return Scores(request.key, tuple(log_probs), None, len(request.prompt_ids))
