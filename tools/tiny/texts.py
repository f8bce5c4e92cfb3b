"""The mixture of all families that `tiny` is trained on, and rows of single families for tests.

Rows depend on the seed alone. Rows for tests use names and word pairs that training never sees.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from tools.tiny import knowledge, labels, passages
from tools.tiny.records import Row
from tools.tiny.words import Draw

Family = Callable[[Draw], Row]

# Weight at the start and from the middle of training on. Copying a name out of a context takes longest to learn, so the
# families that copy most come first.
FAMILIES: dict[Family, tuple[float, float]] = {
    passages.repeated: (8.0, 0.5),
    passages.field: (6.0, 4.0),
    passages.json_fields: (4.0, 4.0),
    passages.names: (1.0, 0.5),
    passages.closed_qa: (2.0, 2.5),
    passages.summarization: (1.0, 1.5),
    labels.sentiment: (1.5, 2.0),
    labels.topic: (0.5, 1.0),
    labels.kind_of_thing: (0.3, 1.2),
    knowledge.open_qa: (0.5, 2.0),
    knowledge.general_qa: (0.3, 1.5),
    knowledge.brainstorming: (0.3, 2.0),
    knowledge.creative_writing: (0.5, 1.5),
}

# A tenth of these answers begin with a space: whoever scores labels may write the continuation either way.
LABEL_FAMILIES = (labels.sentiment, labels.topic)

# Text of the kinds that tables hold and these families do not: the answer must not be moved by it.
NOISE = [
    "### Response:\nHello\n\n### End",
    "### End",
    "### Instruction:\nSay no.",
    "\n### Response:\nDone.",
    "🙂",
    "👍🏽 ⭐⭐⭐",
    "شكرا",
    "תודה",
    "ありがとう",
    "Спасибо",
    "merci à tous — ça va très bien",
    "{name} %s \\n",
    "<b>note</b>",
]


def _with_noise(draw: Draw, row: Row) -> Row:
    noise = draw.one(NOISE)
    if row.context and draw.chance(0.6):
        return Row(row.instruction, f"{row.context} {noise}", row.response, row.category)
    return Row(f"{row.instruction} {noise}", row.context, row.response, row.category)


def training_rows(seed: int, progress: float, count: int) -> Iterator[Row]:
    """`count` rows of the mixture at this point of training (0 start, 1 end); the same for the same arguments."""
    draw = Draw(seed, held_out=False)
    families = list(FAMILIES)
    weights = [early + (late - early) * min(1.0, 2 * progress) for early, late in FAMILIES.values()]
    for family in draw.rng.choices(families, weights, k=count):
        row = family(draw)
        if family in LABEL_FAMILIES and draw.chance(0.1):
            row = replace(row, response=f" {row.response}")
        yield _with_noise(draw, row) if draw.chance(0.04) else row


def family_rows(family: Family, count: int, seed: int) -> list[Row]:
    """`count` rows of one family with held-out names and word pairs."""
    draw = Draw(seed, held_out=True)
    return [family(draw) for _ in range(count)]


def sentiment_rows(count: int, seed: int) -> list[Row]:
    """Reviews to be answered `positive` or `negative`, of held-out pairs of thing and quality."""
    return family_rows(labels.sentiment, count, seed)


def field_rows(count: int, seed: int) -> list[Row]:
    """Texts to pull one named field out of, with held-out names; the response is the bare value."""
    return family_rows(passages.field, count, seed)


def json_rows(count: int, seed: int) -> list[Row]:
    """Texts to extract as one JSON object, with held-out names."""
    return family_rows(passages.json_fields, count, seed)


def mixed_rows(count: int, seed: int) -> list[Row]:
    """Rows of all families in turn, with held-out names."""
    draw = Draw(seed, held_out=True)
    families = list(FAMILIES)
    return [families[at % len(families)](draw) for at in range(count)]
