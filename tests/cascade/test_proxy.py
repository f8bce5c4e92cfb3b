"""A proxy trained on texts whose words tell the label: what it answers, what is kept of it, when it answers nothing."""

import json
import random

import pytest

from dolly_batch.cascade.proxy import Proxy
from dolly_batch.cascade.training import Example, train
from dolly_batch.errors import Stopped

pytest.importorskip("sklearn")

WORDS = {"billing": ["invoice", "refund", "charge"], "delivery": ["parcel", "courier", "doorstep"]}
FILLERS = ["yesterday", "again", "somehow", "please", "customer", "number", "twice", "evening"]
LABELS = ["billing", "delivery", "other"]


def text_of(label: str, numbers: random.Random) -> str:
    words = [numbers.choice(WORDS[label]), *numbers.sample(FILLERS, 4), f"x{numbers.randrange(10_000)}"]
    numbers.shuffle(words)
    return " ".join(words)


def examples(num_rows: int, seed: int = 1, share_wrong: float = 0.0) -> list[Example]:
    numbers = random.Random(seed)
    found = []
    for _ in range(num_rows):
        label = numbers.choice([*WORDS])
        text = text_of(label, numbers)
        is_wrong = numbers.random() < share_wrong
        found.append(Example(text, "other" if is_wrong else label, label))
    return found


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    return train(examples(600), LABELS, 0.95, 1)


def test_a_proxy_answers_texts_that_it_has_not_seen(proxy: Proxy) -> None:
    others = examples(200, seed=2)
    answers = proxy.answers([example.text for example in others])
    given = [(answer, example) for answer, example in zip(answers, others, strict=True) if answer]
    assert len(given) > 180
    assert all(answer.label == example.answer for answer, example in given)
    assert (proxy.facts["num_training"], proxy.facts["num_checked"]) == (360, 240)
    for answer, _ in given:
        assert set(answer.shares) == set(LABELS)
        assert answer.confidence == max(answer.shares.values())
        assert answer.confidence - answer.margin == pytest.approx(sorted(answer.shares.values())[-2])


def test_an_answer_does_not_depend_on_the_texts_beside_it(proxy: Proxy) -> None:
    texts = [example.text for example in examples(70, seed=3)]
    together = proxy.answers(texts)
    assert together == [proxy.answers([text])[0] for text in texts]
    assert together == proxy.answers(texts[::-1])[::-1]


def test_the_same_rows_make_the_same_proxy_and_another_seed_another_one(proxy: Proxy) -> None:
    assert train(examples(600), LABELS, 0.95, 1).to_text() == proxy.to_text()
    assert train(examples(600), LABELS, 0.95, 2).hash != proxy.hash


def test_what_is_kept_is_read_back_and_holds_no_word(proxy: Proxy) -> None:
    text = proxy.to_text()
    kept = Proxy.from_text(text)
    texts = [example.text for example in examples(50, seed=4)]
    assert (kept.hash, kept.facts, kept.answers(texts)) == (proxy.hash, proxy.facts, proxy.answers(texts))
    words = {word for example in examples(600) for word in example.text.split()}
    assert not {word for word in words if len(word) > 3 and word in text}


def test_a_proxy_that_was_changed_or_cut_off_is_refused(proxy: Proxy) -> None:
    text = proxy.to_text()
    document = json.loads(text)
    bounds = [0.0 for _ in document["bounds"]]
    for spoilt in (text[: len(text) // 2], "{}", json.dumps({**document, "bounds": bounds}), "[]"):
        with pytest.raises(Stopped, match="proxy"):
            Proxy.from_text(spoilt)


def test_rows_that_the_model_gives_no_label_are_left_to_it() -> None:
    rows = [*examples(600), *(Example(f"hm {n} unclear matter {n % 7}", None) for n in range(200))]
    proxy = train(rows, LABELS, 0.95, 1)
    assert proxy.answers_any
    unclear = proxy.answers([f"hm {n} unclear matter {n % 5}" for n in range(300, 350)])
    assert unclear == [None] * 50


def test_a_label_that_is_too_rare_is_never_the_proxys_answer() -> None:
    rows = examples(600)
    rows[5] = Example("strange thing indeed", "other")
    proxy = train(rows, LABELS, 0.95, 1)
    answers = [answer for answer in proxy.answers(["strange thing indeed"] + [row.text for row in rows]) if answer]
    assert answers
    assert {answer.label for answer in answers} == set(WORDS)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_proxy_that_cannot_agree_answers_nothing(seed: int) -> None:
    numbers = random.Random(seed)
    rows = [Example(row.text, numbers.choice(LABELS)) for row in examples(600)]
    assert not train(rows, LABELS, 0.95, seed).answers_any


def test_of_one_label_or_of_few_rows_nothing_is_learnt() -> None:
    assert not train([Example(row.text, "other") for row in examples(600)], LABELS, 0.95, 1).answers_any
    assert not train(examples(60), LABELS, 0.95, 1).answers_any
    assert train([], LABELS, 0.95, 1).answers(["a text"]) == [None]


def test_with_gold_labels_the_check_is_against_them() -> None:
    """The model says `other` in 20 % of the rows, without a reason."""
    rows = examples(800, share_wrong=0.2)
    assert not train(rows, LABELS, 0.95, 1).answers_any
    proxy = train(rows, LABELS, 0.95, 1, against_gold=True)
    assert proxy.answers_any
    some = [Example(row.text, row.answer, row.gold if at % 2 else None) for at, row in enumerate(rows)]
    checked = train(some, LABELS, 0.9, 1, against_gold=True).facts["num_checked"]
    assert checked == 320
    none = [Example(row.text, row.answer) for row in rows]
    assert not train(none, LABELS, 0.95, 1, against_gold=True).answers_any
