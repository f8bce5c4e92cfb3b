"""The GPU's KV cache: all of its memory reserved once, in pages of 16 tokens that sequences take as they grow.

A page holds a few tokens' keys and values in all layers. Which pages a sequence has is in its block table, a line of a
tensor on the device. Sequences whose prompts start alike share whole pages, counted, and copy the page in which they
part. A sequence is admitted by the pages it is expected to need: the share of its new tokens that earlier answers used.
Where that was too few, `OutOfPages` asks for a sequence to be preempted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dolly_batch.engine.continuous.cache import CacheShape
from dolly_batch.engine.continuous.gpu.attention import (
    Decode,
    PageAttention,
    Prefill,
    Prefiller,
    prefill_by_sdpa,
    round_up_keys,
)
from dolly_batch.engine.continuous.gpu.layer_pages import LayerPages, as_bytes
from dolly_batch.engine.continuous.sequence import CachedSequence, Chunk, Step
from dolly_batch.engine.host_device import upload

PAGE_TOKENS = 16
GATHERED_KEYS = 16_384  # at most, or one sequence's: prompts with a long shared prefix have many more keys than tokens
_LONGEST_SHORT_REACH = 2_048  # programs of parts that no row has cost little, but there must not be hundreds a row
_PRIOR_SEQUENCES = 16  # taken to use all of their new tokens, until others have ended
_SEQUENCES_A_SPARE_PAGE = 4  # for answers that turn out longer than expected


def shortest_reach(max_positions: int) -> int:
    """The keys that all decode steps are laid out for, in a window of so many positions."""
    return round_up_keys(min(max_positions, _LONGEST_SHORT_REACH))


class OutOfPages(MemoryError):
    """The running sequences have outgrown the pages."""


class BlockTable:
    """The pages of a sequence in order, its slot (its line on the device), and how many more pages are expected."""

    def __init__(self, slot: int, num_expected: int) -> None:
        self.slot = slot
        self.pages: list[int] = []
        self.num_expected = num_expected


class Pages:
    """Keys and values of up to `max_sequences` sequences, and of one more that has ended and only shares its prefix.

    `budget_bytes` is taken at once, and at least what one sequence of `max_positions` tokens needs. `prefill` attends
    for chunks; `use_kernel` is whether Triton's kernels store, gather and attend for decoding sequences. Decode steps
    are laid out for `reach` keys a sequence at least, by default the window's.
    """

    def __init__(
        self,
        shape: CacheShape,
        budget_bytes: int,
        *,
        max_sequences: int,
        max_positions: int,
        prefill: Prefiller = prefill_by_sdpa,
        use_kernel: bool = False,
        reach: int | None = None,
    ) -> None:
        self.shape = shape
        self.page_bytes = PAGE_TOKENS * shape.token_bytes
        self.num_bytes = 0
        self.peak_bytes = 0
        table_size = _num_pages(max_positions)
        # Page 0 is the null page, where padding writes.
        self.num_pages = max(table_size, min(budget_bytes // self.page_bytes, (max_sequences + 1) * table_size)) + 1
        # [layers, keys and values, pages, kv heads, tokens, head size]. Nothing is read that was not written before.
        sizes = (shape.num_layers, 2, self.num_pages, shape.num_kv_heads, PAGE_TOKENS)
        self.data = torch.empty((*sizes, shape.head_size), dtype=shape.eight_bits or shape.dtype, device=shape.device)
        self.scales = torch.empty(sizes, device=shape.device) if shape.eight_bits else None
        self.null_slot = max_sequences + 1
        self.block_tables = torch.zeros((max_sequences + 2, table_size), dtype=torch.int32, device=shape.device)
        scales = [None] * shape.num_layers if self.scales is None else self.scales.unbind(0)
        self._layers = [LayerPages(*parts, use_kernel) for parts in zip(self.data.unbind(0), scales, strict=True)]
        self._reach = reach or shortest_reach(max_positions)
        self._prefill = prefill
        self._use_kernel = use_kernel
        self._free_pages = list(range(self.num_pages - 1, 0, -1))
        self._free_slots = list(range(max_sequences, -1, -1))
        self._ref_counts = [0] * self.num_pages
        self._num_sequences = 0
        self._num_expected = 0  # pages that the sequences are expected to take in addition
        self._copies: dict[int, int] = {}  # pages that are to be copied before anything is written, by their targets
        self._sources: set[int] = set()  # of these copies
        self._unwritten: dict[int, int] = {}  # entries of the block tables that the device does not have yet
        self._num_ended, self._share_used = _PRIOR_SEQUENCES, float(_PRIOR_SEQUENCES)

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all pages."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def has_room(self, sequence: CachedSequence) -> bool:
        """Whether there is room for the prompt and the expected answer."""
        if not self._free_slots:
            return False
        num_taken = self.num_pages - 1 - len(self._free_pages)
        spare = self._num_sequences // _SEQUENCES_A_SPARE_PAGE
        num_needed = self._num_expected + self._num_expected_for(sequence) + spare
        return not num_taken or num_taken + num_needed < self.num_pages

    def allocate(self, sequence: CachedSequence, num_tokens: int) -> None:
        """Give the sequence pages for its first `num_tokens` tokens.

        Raises OutOfPages, and takes nothing, where there are too few.
        """
        table: BlockTable | None = sequence.location
        num_held = len(table.pages) if table else 0
        num_new = -(-num_tokens // PAGE_TOKENS) - num_held
        if num_new <= 0:
            return
        if num_new > len(self._free_pages):
            raise OutOfPages(f"{num_new} pages of {PAGE_TOKENS} tokens are needed, {len(self._free_pages)} are free")
        if table is None:
            table = sequence.location = BlockTable(self._free_slots.pop(), self._num_expected_for(sequence))
            self._num_expected += table.num_expected
            self._num_sequences += 1
        expected = min(num_new, table.num_expected)
        table.num_expected -= expected
        self._num_expected -= expected
        line = table.slot * self.block_tables.shape[1]
        for number in range(num_held, num_held + num_new):
            page = self._free_pages.pop()
            self._ref_counts[page] = 1
            table.pages.append(page)
            self._unwritten[line + number] = page
        self.num_bytes += num_new * self.page_bytes
        self.peak_bytes = max(self.peak_bytes, self.num_bytes)

    def share_prefix(self, source: CachedSequence, sequence: CachedSequence, num_tokens: int) -> None:
        """Let an allocated sequence share the full pages of another one's first tokens, and copy the rest."""
        origin, target = source.location, sequence.location
        line = target.slot * self.block_tables.shape[1]
        num_shared, rest = divmod(num_tokens, PAGE_TOKENS)
        for number in range(num_shared):
            self._release_page(target.pages[number])
            page = target.pages[number] = origin.pages[number]
            self._ref_counts[page] += 1
            self._unwritten[line + number] = page
        if rest:
            self._copies[target.pages[num_shared]] = origin.pages[num_shared]
            self._sources.add(origin.pages[num_shared])

    def free(self, sequence: CachedSequence, has_nan: bool = False) -> None:
        """Forget the sequence. NaN need not be wiped out: every position is written before it is read."""
        table: BlockTable | None = sequence.location
        if table is None:
            return
        if sequence.finish_reason is not None:
            self._num_ended += 1
            self._share_used += (len(sequence.token_ids) + 1) / sequence.request.params.max_new_tokens
        for page in table.pages:
            self._release_page(page)
        self._num_sequences -= 1
        self._num_expected -= table.num_expected
        self._free_slots.append(table.slot)
        sequence.location = None

    def plan(self, step: Step) -> tuple[list[CachedSequence], PageAttention]:
        """Return the decoding sequences in their order, and the step's attention."""
        self.write_block_tables()
        parts: list[Decode | Prefill] = []
        num_decoding = len(step.decoding)
        if step.decoding:
            positions = [sequence.num_cached for sequence in step.decoding]
            slots = self.upload_slots(step.decoding)
            reach = self.reach_for(max(positions))  # as recorded steps: no kernel is built for a reach of its own
            parts.append(self._decode(slice(0, num_decoding), slots, self.upload(positions), reach))
        start = num_decoding
        for chunks in _batches(step.chunks):
            parts.append(Prefill.of(self._layers, chunks, start, self._prefill))
            start = parts[-1].tokens.stop
        return list(step.decoding), PageAttention(parts)

    def attend_decoding(self, slots: Tensor, positions: Tensor, max_keys: int) -> PageAttention:
        """Attention of decoding sequences, their newest tokens at `positions`; both [sequences], on the device."""
        return PageAttention([self._decode(slice(0, len(slots)), slots, positions, max_keys)])

    def reach_for(self, position: int) -> int:
        """For how many keys a decode step is laid out that goes up to this position; for most, always the same."""
        return max(self._reach, round_up_keys(position + 1))

    def upload(self, values: Sequence[int]) -> Tensor:
        """The numbers on the cache's device, int64."""
        return upload(values, torch.int64, self.shape.device)

    def upload_slots(self, sequences: Sequence[CachedSequence]) -> Tensor:
        """The sequences' slots, [sequences]."""
        return self.upload([sequence.location.slot for sequence in sequences])

    def write_block_tables(self) -> None:
        """Write new entries of the block tables to the device, and copy pages in which prompts part."""
        self._copy_pages()
        if self._unwritten:
            indices = self.upload(list(self._unwritten))
            pages = upload(list(self._unwritten.values()), torch.int32, self.shape.device)
            self.block_tables.view(-1)[indices] = pages
            self._unwritten.clear()

    def _copy_pages(self) -> None:
        """Whole pages: what lies behind the common tokens is written before it is read."""
        if not self._copies:
            return
        targets, sources = self.upload(list(self._copies)), self.upload(list(self._copies.values()))
        self._copies.clear()
        self._sources.clear()
        if self._use_kernel:
            from dolly_batch.engine.kernels.gpu.copy_pages import copy_pages  # needs triton

            for tensor in self._stored():
                copy_pages(tensor, sources, targets)
            return
        for tensor in self._stored():
            for layer in tensor:
                layer[:, targets] = layer[:, sources]

    def _stored(self) -> list[Tensor]:
        """What a page is in, [layers, 2, pages, ...]."""
        return [self.data] if self.scales is None else [as_bytes(self.data), self.scales]

    def _decode(self, tokens: slice, slots: Tensor, positions: Tensor, max_keys: int) -> Decode:
        return Decode(self._layers, self.block_tables, tokens, slots, positions, max_keys, self._use_kernel)

    def _num_expected_for(self, sequence: CachedSequence) -> int:
        """Pages that the sequence will likely fill."""
        share = min(1.0, self._share_used / self._num_ended)
        num_answer = max(int(share * sequence.request.params.max_new_tokens), len(sequence.token_ids) + PAGE_TOKENS)
        return _num_pages(min(sequence.max_tokens, len(sequence.request.prompt_ids) + num_answer))

    def _release_page(self, page: int) -> None:
        self._ref_counts[page] -= 1
        if not self._ref_counts[page]:
            if page in self._sources:
                self._copy_pages()  # before the page is somebody else's, and perhaps a target
            self._copies.pop(page, None)
            self._free_pages.append(page)
            self.num_bytes -= self.page_bytes


def _num_pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_TOKENS)


def _batches(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Group chunks, in their order, so that the keys of a group can be gathered at once."""
    batches: list[list[Chunk]] = []
    num_keys = 0
    for chunk in chunks:
        num_keys += chunk.stop
        if not batches or num_keys > GATHERED_KEYS:
            batches.append([])
            num_keys = chunk.stop
        batches[-1].append(chunk)
    return batches
