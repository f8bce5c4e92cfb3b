"""CTranslate2, as its own pages on performance and parallelism advise for much data on a CPU.

Many rows are given at once, sorted by length, so that batches run side by side; the Dolly prefix is its
`static_prompt`, computed once; prompts are forwarded, not decoded (`include_prompt_in_result=False`). Of a batch's
prompts it forwards only as many tokens as the shortest has and decodes the rest one by one; so beside its own cutting
of batches (`spread` None) there is a cutting into calls of prompts that differ by at most `spread` tokens. A row is
stopped by its end token or, where rows have lengths of their own, by a callback; finished rows leave their batch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import ctranslate2
from transformers import AutoTokenizer

from benchmarks.contest.work import Row


def load(setup: dict[str, Any]) -> Callable[[list[Row]], Any]:
    """`setup`: converted (folders by compute type), compute_type, batch_size, batch_type, spread, threads, and more."""
    generator = ctranslate2.Generator(
        setup["converted"][setup["compute_type"]],
        device="cpu",
        compute_type=setup["compute_type"],
        inter_threads=setup["processes"],
        intra_threads=setup["threads"],
        max_queued_batches=-1,
    )
    tokenizer = AutoTokenizer.from_pretrained(setup["model"])

    def answer(rows: list[Row]) -> Any:
        shared = _num_common([row.prompt_ids for row in rows])
        asked = []
        for group in _groups(rows, setup["spread"], setup["batch_size"]):
            asked += [*zip(group, _ask(generator, tokenizer, group, shared, setup), strict=True)]
        return [(row.key, result.result().sequences_ids[0]) for row, result in asked], {}

    return answer


def _ask(generator: Any, tokenizer: Any, rows: list[Row], shared: int, setup: dict[str, Any]) -> Any:
    """Begin to answer rows; what comes back is waited for later."""
    open_tokens = [row.num_new_tokens for row in rows]

    def is_last(result: Any) -> bool:
        open_tokens[result.batch_id] -= 1
        return open_tokens[result.batch_id] <= 0

    has_one_limit = len({*open_tokens}) == 1
    return generator.generate_batch(
        [tokenizer.convert_ids_to_tokens(list(row.prompt_ids[shared:])) for row in rows],
        static_prompt=tokenizer.convert_ids_to_tokens(list(rows[0].prompt_ids[:shared])) or None,
        max_batch_size=setup["batch_size"],
        batch_type=setup["batch_type"],
        max_length=max(open_tokens),
        sampling_topk=1,
        include_prompt_in_result=False,
        asynchronous=True,
        callback=None if has_one_limit else is_last,
        end_token=setup["stop_ids"] or None,
    )


def _groups(rows: list[Row], spread: int | None, batch_size: int) -> Iterator[list[Row]]:
    """The rows as they are given to a call, longest prompts first."""
    if spread is None:
        yield rows
        return
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: -len(row.prompt_ids)):
        if group and (len(group[0].prompt_ids) - len(row.prompt_ids) > spread or len(group) == batch_size):
            yield group
            group = []
        group.append(row)
    yield group


def _num_common(prompts: list[tuple[int, ...]]) -> int:
    """Tokens that all prompts begin with, leaving each one at least."""
    first, last = min(prompts), max(prompts)
    limit = min(len(prompt) for prompt in prompts) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)
