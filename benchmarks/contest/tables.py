"""The tables that are printed, in Markdown, and the one JSON object."""

import json
import statistics
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

from benchmarks.contest.contest import Duel
from benchmarks.contest.engines import Engine, Options
from benchmarks.contest.growth import Growth
from benchmarks.contest.launch import Run
from benchmarks.contest.sharing import Sharing


@dataclass
class Standing:
    """One engine in the first table."""

    engine: Engine
    options: Options
    runs: list[Run]
    same_text: float
    """Share of its rows whose text is that of ours in float32."""

    def as_json(self) -> dict[str, Any]:
        """Its figures, medians over its runs."""
        occupancy = self.runs[-1].occupancy
        return {
            "tokens_per_s": round(median_speed(self.runs), 1),
            "rows_per_s": round(statistics.median(run.rows_per_s for run in self.runs), 2),
            "tokens_per_cpu_s": round(statistics.median(run.num_tokens / run.cpu_s for run in self.runs), 1),
            "peak_bytes": max(run.peak_bytes for run in self.runs),
            "occupancy": None if occupancy is None else round(occupancy, 3),
            "same_text_as_fp32": round(self.same_text, 3),
            "rows": self.runs[-1].num_rows,
            "runs": len(self.runs),
            "setting": self.options,
        }


def median_speed(runs: SequenceOf[Run]) -> float:
    """Answer tokens a second."""
    return statistics.median(run.tokens_per_s for run in runs)


def engines_table(standings: SequenceOf[Standing], duels: dict[str, Duel], left_out: dict[str, str]) -> str:
    """The first table: every engine at its best."""
    lines = [
        "| engine | setting | rows | runs | tokens/s | rows/s | tokens/CPU s | peak GB (PSS) | slots in use "
        "| text as fp32 | ours, times the tokens/s | times the rows/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for standing in standings:
        figures = standing.as_json()
        duel = duels.get(standing.engine.name)
        cells = [
            standing.engine.name,
            _setting(standing.options),
            f"{figures['rows']:,}",
            f"{figures['runs']}",
            f"{figures['tokens_per_s']:,.0f}",
            f"{figures['rows_per_s']:.1f}",
            f"{figures['tokens_per_cpu_s']:,.0f}",
            f"{figures['peak_bytes'] / 1e9:.2f}",
            "" if figures["occupancy"] is None else f"{figures['occupancy']:.0%}",
            f"{figures['same_text_as_fp32']:.0%}",
            "" if duel is None else f"{duel.ratio:.2f}",
            "" if duel is None else f"{duel.ratio_of_rows:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} | not run: {reason} | | | | | | | | | | |" for name, reason in left_out.items()]
    return "\n".join(lines)


def growth_table(growth: Growth) -> str:
    """The second table."""
    bound = f"{growth.bound_bytes / 1e9:.2f}"
    lines = [
        "| | rows | seconds | answer tokens/s | with prompts | peak GB (PSS) | of it keys, values | bound GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = min(growth.by_rows)
    cases = [(f"x{round(count / first)}", run) for count, run in growth.by_rows.items()]
    cases += [(f"prompts of {length:,} tokens", run) for length, run in growth.by_prompt.items()]
    for name, run in cases:
        prompt_tokens = run.stats["num_prompt_tokens"] + run.stats["num_shared_tokens"]
        all_tokens_per_s = (prompt_tokens + run.num_tokens) / run.seconds
        lines.append(
            f"| {name} | {run.num_rows:,} | {run.seconds:.1f} | {run.tokens_per_s:,.0f} | {all_tokens_per_s:,.0f} "
            f"| {run.peak_bytes / 1e9:.2f} | {run.stats['peak_kv_bytes'] / 1e9:.2f} | {bound} |"
        )
    return "\n".join(lines)


def sharing_table(results: SequenceOf[Sharing]) -> str:
    """The third table."""
    lines = [
        "| new tokens | rows | seconds, sharing | seconds, not sharing | times as fast | prompt tokens copied |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        on, off = (statistics.median(run.seconds for run in runs) for runs in (result.on, result.off))
        stats = result.on[-1].stats
        copied = stats["num_shared_tokens"] / (stats["num_shared_tokens"] + stats["num_prompt_tokens"])
        lines.append(
            f"| {result.num_new_tokens} | {result.on[-1].num_rows:,} | {on:.1f} | {off:.1f} | {result.ratio:.2f} "
            f"| {copied:.0%} |"
        )
    return "\n".join(lines)


def json_line(
    standings: SequenceOf[Standing],
    duels: dict[str, Duel],
    left_out: dict[str, str],
    growth: Growth | None,
    sharing: SequenceOf[Sharing],
    notes: dict[str, Any],
) -> str:
    """One object. `ratios`: ours to theirs in answer tokens a second, `ratios_of_rows` in rows a second."""
    return json.dumps(
        {
            "engines": {standing.engine.name: standing.as_json() for standing in standings},
            "ratios": {name: round(duel.ratio, 2) for name, duel in duels.items()},
            "ratios_of_rows": {name: round(duel.ratio_of_rows, 2) for name, duel in duels.items()},
            "prefix_sharing": {str(result.num_new_tokens): round(result.ratio, 2) for result in sharing},
            "growth": None
            if growth is None
            else {
                "bound_bytes": growth.bound_bytes,
                "peak_bytes_by_rows": {str(count): run.peak_bytes for count, run in growth.by_rows.items()},
                "tokens_per_s_by_rows": {
                    str(count): round(run.tokens_per_s, 1) for count, run in growth.by_rows.items()
                },
                "tokens_per_s_by_prompt": {
                    str(length): round(run.tokens_per_s, 1) for length, run in growth.by_prompt.items()
                },
            },
            "not_run": left_out,
            **notes,
        }
    )


def _setting(options: Options) -> str:
    threads = f"{options['processes']} x {options['threads']} threads"
    others = [f"{name} {value}" for name, value in options.items() if name not in ("processes", "threads")]
    return ", ".join([threads, *others])
