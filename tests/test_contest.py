"""`benchmarks/contest/`, as far as no engine has to run: what an answer is, the rows, llama.cpp's client, the table."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import work
from benchmarks.contest.contest import Duel
from benchmarks.contest.engines import Engine
from benchmarks.contest.launch import Run
from benchmarks.contest.runners.llama_cpp import ask_with
from benchmarks.contest.tables import Standing, engines_table
from benchmarks.contest.work import MAX_OPEN_TOKENS, Row, is_whole, load_open_work, until_stop
from dolly_batch.prompt import PromptEncoder
from tests.random_models import train_tokenizer


def test_an_answer_ends_before_its_stop_token_whether_an_engine_hands_it_out_or_not() -> None:
    assert until_stop([5, 6, 2, 2, 7], {2}) == until_stop([5, 6], {2}) == [5, 6]
    assert until_stop([2, 5], {2}) == []
    assert until_stop([5, 2], ()) == [5, 2]


def test_an_answer_is_as_long_as_its_row_says_or_ends_by_itself() -> None:
    row = Row("a", (1,), 3)
    assert [is_whole(row, ids, ()) for ids in ([], [5, 6], [5, 6, 7], [5, 6, 7, 8])] == [False, False, True, False]
    assert [is_whole(row, ids, {2}) for ids in ([], [5, 6], [5, 6, 7], [5, 6, 7, 8])] == [True, True, True, False]


def test_open_rows_are_prompts_of_the_table_that_leave_room_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tokenizer().save(str(tmp_path / "tokenizer.json"))
    lines = [{"instruction": f"What is {i}?", "context": "", "response": "It is."} for i in range(9)]
    lines.append({"instruction": "Read.", "context": "a b c " * 4_000, "response": "Done."})
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(work, "TABLE", tmp_path / "table.jsonl")
    encoder = PromptEncoder.from_folder(tmp_path)
    found = load_open_work(tmp_path, 20)
    assert {row.prompt_ids for row in found.rows} == {tuple(encoder.encode(f"What is {i}?", None)) for i in range(9)}
    assert {row.num_new_tokens for row in found.rows} == {MAX_OPEN_TOKENS}
    assert found.stop_ids == encoder.stop_ids
    assert load_open_work(tmp_path, 4).rows == found.rows[:4]


@contextmanager
def completions(asked: list[dict[str, Any]]) -> Iterator[int]:
    """A server that answers a prompt with itself, backwards, or, where it begins with 0, not at all."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(question)
            is_good = question["prompt"][0] != 0
            body = json.dumps({"tokens": question["prompt"][::-1]} if is_good else {"error": "no"}).encode()
            self.send_response(200 if is_good else 400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_llama_cpp_is_asked_longest_first_and_answers_go_to_their_rows() -> None:
    asked: list[dict[str, Any]] = []
    rows = [Row(f"r{i}", tuple(range(1, i + 2)), 5) for i in range(20)]
    with completions(asked) as port, ThreadPoolExecutor(1) as threads:
        answers, _ = ask_with(threads, port, [2])(rows)
        ask_with(threads, port, [])(rows[:1])
        with pytest.raises(RuntimeError, match=r"bad: .*no"):
            ask_with(threads, port, [2])([Row("bad", (0, 1), 5)])
    assert dict(answers) == {row.key: [*row.prompt_ids][::-1] for row in rows}
    assert [len(question["prompt"]) for question in asked[:20]] == [*range(20, 0, -1)]
    assert all(question["n_predict"] == 5 and question["temperature"] == 0 for question in asked)
    assert [question["ignore_eos"] for question in asked[19:21]] == [False, True]


def run(num_tokens: int, seconds: float) -> Run:
    return Run(10, num_tokens, seconds, 1.0, 1_000_000, None, {}, {})


def test_answers_of_other_lengths_make_two_ratios() -> None:
    engine = Engine("theirs", "theirs", {}, (), trial_rows=1, min_rows=1)
    duel = Duel(engine, {"processes": 2, "threads": 1}, [], ours=[run(600, 6.0)], theirs=[run(900, 12.0)])
    assert (duel.ratio, duel.ratio_of_rows) == (100 / 75, 2.0)
    standing = Standing(engine, duel.options, duel.theirs, same_text=0.5)
    header, rule, line, left_out = engines_table([standing], {"theirs": duel}, {"other": "no"}).splitlines()
    assert line.endswith("| 50% | 1.33 | 2.00 |")
    assert len({text.count("|") for text in (header, rule, line, left_out)}) == 1
