"""The GPU's cache: all of its memory reserved once, in pages of 16 tokens that rows take as they grow.

A page holds a few tokens' keys and values in all layers; which pages are whose stands in a table on the device, a line
for each row in work. Rows whose prompts start alike share whole pages, counted, and copy the page in which they part.
A row is admitted by what it will likely come to need: the share of its new tokens that earlier rows used. Where that
was too little, `PagesSpent` asks for a row to be suspended.
"""

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import CacheShape, StepAttention
from dolly_batch.engine.continuous.gpu.attention import (
    Decode,
    PageAttention,
    Prefill,
    Prefiller,
    prefill_by_sdpa,
    reach,
)
from dolly_batch.engine.continuous.sequence import Chunk, Sequence, Step
from dolly_batch.engine.host_device import upload

PAGE_TOKENS = 16
GATHERED_KEYS = 16_384  # at most, or one row's: prompts with a long common start have many more keys than tokens
_PRIOR_ROWS = 16  # rows taken to use all of their new tokens, until others have ended
_ROWS_A_SPARE_PAGE = 4  # for rows that turn out longer than expected


class PagesSpent(MemoryError):
    """The rows in work have outgrown the pages that there are."""


class Holding:
    """What a row holds: a line of the table, its pages in order, and how many more it will likely need."""

    def __init__(self, slot: int, num_outstanding: int) -> None:
        self.slot = slot
        self.pages: list[int] = []
        self.num_outstanding = num_outstanding


class Pages:
    """Keys and values of up to `max_rows` rows, and one more that only lends its prefix.

    `budget_bytes` is taken at once, and at least what one row of `max_positions` tokens needs. `prefill` is what
    attends for chunks, `use_kernel` whether decoding rows are attended to by the Triton kernel.
    """

    def __init__(
        self,
        shape: CacheShape,
        budget_bytes: int,
        *,
        max_rows: int,
        max_positions: int,
        prefill: Prefiller = prefill_by_sdpa,
        use_kernel: bool = False,
    ) -> None:
        self.shape = shape
        self.page_bytes = PAGE_TOKENS * shape.token_bytes
        self.num_bytes = 0
        self.peak_bytes = 0
        row_pages = _num_pages(max_positions)
        # Page 0 is nobody's: what the lines of padding write goes there.
        self.num_pages = max(row_pages, min(budget_bytes // self.page_bytes, (max_rows + 1) * row_pages)) + 1
        # [layers, keys and values, pages, heads, tokens, head size]. Nothing is read that was not written before.
        self.data = torch.empty(
            (shape.num_layers, 2, self.num_pages, shape.num_heads, PAGE_TOKENS, shape.head_size),
            dtype=shape.dtype,
            device=shape.device,
        )
        self.padding_slot = max_rows + 1
        self.tables = torch.zeros((max_rows + 2, row_pages), dtype=torch.int32, device=shape.device)
        self._layers: tuple[Tensor, ...] = self.data.unbind(0)
        self._prefill = prefill
        self._use_kernel = use_kernel
        self._free = list(range(self.num_pages - 1, 0, -1))
        self._free_slots = list(range(max_rows, -1, -1))
        self._num_holders = [0] * self.num_pages
        self._num_rows = 0
        self._num_outstanding = 0
        self._entries: dict[int, int] = {}  # of the table, that the device does not know yet
        self._num_ended, self._share_used = _PRIOR_ROWS, float(_PRIOR_ROWS)

    def has_room(self, row: Sequence) -> bool:
        """Whether there is room for the row's prompt and the answer that it will likely give."""
        if not self._free_slots:
            return False
        num_taken = self.num_pages - 1 - len(self._free)
        spare = self._num_rows // _ROWS_A_SPARE_PAGE
        return not num_taken or num_taken + self._num_outstanding + self._num_expected(row) + spare < self.num_pages

    def place(self, row: Sequence, num_tokens: int) -> None:
        """Give the row pages for its first `num_tokens` tokens.

        Raises PagesSpent, and takes nothing, where there are too few.
        """
        holding: Holding | None = row.place
        num_held = len(holding.pages) if holding else 0
        num_new = -(-num_tokens // PAGE_TOKENS) - num_held
        if num_new <= 0:
            return
        if num_new > len(self._free):
            raise PagesSpent(f"{num_new} pages of {PAGE_TOKENS} tokens are needed, {len(self._free)} are free")
        if holding is None:
            holding = row.place = Holding(self._free_slots.pop(), self._num_expected(row))
            self._num_outstanding += holding.num_outstanding
            self._num_rows += 1
        expected = min(num_new, holding.num_outstanding)
        holding.num_outstanding -= expected
        self._num_outstanding -= expected
        line = holding.slot * self.tables.shape[1]
        for number in range(num_held, num_held + num_new):
            page = self._free.pop()
            self._num_holders[page] = 1
            holding.pages.append(page)
            self._entries[line + number] = page
        self.num_bytes += num_new * self.page_bytes
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)

    def copy_prefix(self, donor: Sequence, row: Sequence, num_tokens: int) -> None:
        """Let a row that is placed share the donor's full pages, and copy the rest of the donor's first tokens."""
        origin, target = donor.place, row.place
        line = target.slot * self.tables.shape[1]
        num_shared, rest = divmod(num_tokens, PAGE_TOKENS)
        for number in range(num_shared):
            self._give_back(target.pages[number])
            page = target.pages[number] = origin.pages[number]
            self._num_holders[page] += 1
            self._entries[line + number] = page
        if rest:
            kept, copy = origin.pages[num_shared], target.pages[num_shared]
            self.data[:, :, copy, :, :rest] = self.data[:, :, kept, :, :rest]

    def release(self, row: Sequence, spoilt: bool = False) -> None:
        """Forget the row. What it leaves need not be wiped out: nobody reads a place before writing there."""
        holding: Holding | None = row.place
        if holding is None:
            return
        if row.finish_reason is not None:
            self._num_ended += 1
            self._share_used += (len(row.token_ids) + 1) / row.request.params.max_new_tokens
        for page in holding.pages:
            self._give_back(page)
        self._num_rows -= 1
        self._num_outstanding -= holding.num_outstanding
        self._free_slots.append(holding.slot)
        row.place = None

    def plan(self, step: Step) -> tuple[list[Sequence], StepAttention]:
        """Return the decoding rows as they come, and the step's attention."""
        self.write_tables()
        parts: list[Decode | Prefill] = []
        num_decoding = len(step.decoding)
        if step.decoding:
            positions = [row.num_cached for row in step.decoding]
            parts.append(
                self._decode(
                    slice(0, num_decoding), self.upload_slots(step.decoding), self.upload(positions), max(positions)
                )
            )
        start = num_decoding
        for chunks in _batches(step.chunks):
            parts.append(Prefill.of(self._layers, chunks, start, self._prefill))
            start = parts[-1].tokens.stop
        return list(step.decoding), PageAttention(parts)

    def attend_decoding(self, slots: Tensor, positions: Tensor, max_position: int) -> StepAttention:
        """Attention of decoding rows at `slots`, their newest tokens at `positions`; both [rows], on the device."""
        return PageAttention([self._decode(slice(0, len(slots)), slots, positions, max_position)])

    def reach(self, position: int) -> int:
        """The furthest position that costs no more than this one."""
        return reach(position) if self._use_kernel else position

    def upload(self, values: SequenceOf[int]) -> Tensor:
        """The numbers on the cache's device, int64."""
        return upload(values, torch.int64, self.shape.device)

    def upload_slots(self, rows: SequenceOf[Sequence]) -> Tensor:
        """The rows' lines of the table, [rows]."""
        return self.upload([row.place.slot for row in rows])

    def write_tables(self) -> None:
        """Let the device know which pages have been given to whom."""
        if self._entries:
            places = self.upload(list(self._entries))
            pages = upload(list(self._entries.values()), torch.int32, self.shape.device)
            self.tables.view(-1)[places] = pages
            self._entries.clear()

    def _decode(self, tokens: slice, slots: Tensor, positions: Tensor, max_position: int) -> Decode:
        return Decode(self._layers, self.tables, tokens, slots, positions, max_position, self._use_kernel)

    def _num_expected(self, row: Sequence) -> int:
        """Pages that the row will likely fill."""
        share = min(1.0, self._share_used / self._num_ended)
        num_answer = max(int(share * row.request.params.max_new_tokens), len(row.token_ids) + PAGE_TOKENS)
        return _num_pages(min(row.max_tokens, len(row.request.prompt_ids) + num_answer))

    def _give_back(self, page: int) -> None:
        self._num_holders[page] -= 1
        if not self._num_holders[page]:
            self._free.append(page)
            self.num_bytes -= self.page_bytes


def _num_pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_TOKENS)


def _batches(chunks: SequenceOf[Chunk]) -> list[list[Chunk]]:
    """Chunks in their order, so many at a time that their keys can be gathered."""
    batches: list[list[Chunk]] = []
    num_keys = 0
    for chunk in chunks:
        num_keys += chunk.stop
        if not batches or num_keys > GATHERED_KEYS:
            batches.append([])
            num_keys = chunk.stop
        batches[-1].append(chunk)
    return batches
