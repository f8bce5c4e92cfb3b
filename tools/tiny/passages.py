"""Short texts whose facts are known, and the families that ask for one of them. Each family draws one row."""

import json
from dataclasses import dataclass

from tools.tiny.records import Row
from tools.tiny.words import COLOURS, DAYS, EVENTS, HOBBIES, JOBS, PETS, Draw, article

# Of each field: sentences that state it ({n} is the person, {v} the value), questions, and the answer in a sentence.
PERSON = {
    "city": (
        ["{n} lives in {v}.", "{n} moved to {v} last year.", "The home of {n} is in {v}.", "{n} has a flat in {v}."],
        ["Where does {n} live?", "In which city does {n} live?"],
        "{n} lives in {v}.",
    ),
    "age": (
        [
            "{n} is {v} years old.",
            "{n} turned {v} this year.",
            "The age of {n} is {v}.",
            "{n}, aged {v}, is often here.",
        ],
        ["How old is {n}?", "What is the age of {n}?"],
        "{n} is {v} years old.",
    ),
    "job": (
        ["{n} works as {a} {v}.", "{n} is {a} {v} by trade.", "{n} has a job as {a} {v}."],
        ["What is the job of {n}?", "What work does {n} do?"],
        "{n} works as {a} {v}.",
    ),
    "pet": (
        ["{n} has a {v} at home.", "The pet of {n} is a {v}.", "{n} keeps a {v}."],
        ["What pet does {n} have?", "Which animal does {n} keep?"],
        "{n} has a {v}.",
    ),
    "hobby": (
        ["{n} enjoys {v}.", "The hobby of {n} is {v}.", "In the evening {n} likes {v}."],
        ["What is the hobby of {n}?", "What does {n} like to do?"],
        "{n} enjoys {v}.",
    ),
    "colour": (
        ["The favourite colour of {n} is {v}.", "{n} likes the colour {v} best."],
        ["What is the favourite colour of {n}?", "Which colour does {n} like best?"],
        "The favourite colour of {n} is {v}.",
    ),
}
ORDER = {
    "product": (
        ["{n} ordered {a} {v}.", "{n} bought {a} {v}.", "We sold {a} {v} to {n}."],
        ["What did {n} buy?", "Which product did {n} order?"],
        "{n} bought {a} {v}.",
    ),
    "price": (
        ["The price was {v} euros.", "It cost {v} euros.", "{n} paid {v} euros."],
        ["How much did it cost?", "What did {n} pay?"],
        "It cost {v} euros.",
    ),
    "order number": (
        ["The order number is {v}.", "It has the order number {v}.", "Order number: {v}."],
        ["What is the order number?", "Which order number does it have?"],
        "The order number is {v}.",
    ),
    "day": (
        ["It will arrive on {v}.", "It was delivered on {v}.", "We will send it on {v}."],
        ["On which day is the delivery?", "Which day is the delivery?"],
        "The delivery is on {v}.",
    ),
    "city": (
        ["The parcel goes to {v}.", "It was sent to {v}.", "The shop is in {v}."],
        ["Which city does it go to?", "Where was it sent?"],
        "It was sent to {v}.",
    ),
}
EVENT = {
    "city": (
        ["{n} will hold {a} {e} in {v}.", "{n} is planning {a} {e} in {v}."],
        ["Where is the {e}?", "In which city is the {e}?"],
        "The {e} is in {v}.",
    ),
    "date": (
        ["It takes place on {v}.", "The date is {v}.", "The {e} begins on {v}."],
        ["When is the {e}?", "On which date is the {e}?"],
        "The {e} is on {v}.",
    ),
    "price": (
        ["A ticket costs {v} euros.", "The price of a seat is {v} euros."],
        ["How much is a ticket?", "What does a ticket cost?"],
        "A ticket costs {v} euros.",
    ),
}
UNNAMED = ("It ", "The order", "A ticket")
ASK_VALUE = [
    "Extract the {} from the text.",
    "Find the {} in the text.",
    "What is the {}? Answer with the value only.",
    "Give me only the {}.",
    "Which {} is named in the text?",
    "Extract the {}.",
    "Pull out the {}.",
]
ASK_JSON = [
    "Extract {} as JSON.",
    "Return JSON with the keys {}.",
    "Give me a JSON object with {}.",
    "Read the text and write {} as JSON.",
    "Extract the fields {} and answer with JSON only.",
]
FILLERS = [
    "The weather was fine.",
    "Nobody was late.",
    "It was a busy week.",
    "More news will follow soon.",
    "Many people came by.",
    "The street was quiet.",
]


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, what it states by field name, and how to ask: field -> (question, answer in a sentence)."""

    text: str
    values: dict[str, str]
    questions: dict[str, tuple[str, str]]


def _value(draw: Draw, field: str) -> str:
    match field:
        case "city":
            return draw.city()
        case "age":
            return str(draw.number(18, 89))
        case "product":
            return draw.product()
        case "price":
            return draw.price()
        case "order number":
            return draw.order_number()
        case "date":
            return draw.date()
    return draw.one({"job": JOBS, "pet": PETS, "hobby": HOBBIES, "colour": COLOURS, "day": DAYS}[field])


def passage(draw: Draw, most: int = 4) -> Passage:
    """A text of two to `most` facts about a person, an order or an event, in random order, sometimes with a filler."""
    kind = draw.one([PERSON, PERSON, ORDER, EVENT])
    name, event = draw.name(), draw.one(EVENTS)
    fields = draw.some(list(kind), min(draw.number(2, most), len(kind)))
    if kind is not PERSON and fields[0] != next(iter(kind)):
        # The first sentence has to say who and what; the rest refer to it.
        first = next(iter(kind))
        fields = [first, *(field for field in fields if field != first)]
    values, questions, sentences = {}, {}, []
    for field in fields:
        stated, asked, answer = kind[field]
        value = _value(draw, field)
        words = {"n": name, "v": value, "e": event, "a": article(event if kind is EVENT else value)}
        values[field] = value
        sentences.append(draw.one(stated).format(**words))
        questions[field] = (draw.one(asked).format(**words), answer.format(**words))
    if draw.chance(0.25):
        sentences.insert(draw.number(1, len(sentences)), draw.one(FILLERS))
    text = " ".join(sentences)
    if name in text:
        values["name"] = name
    return Passage(text, values, questions)


def closed_qa(draw: Draw) -> Row:
    """A question about a text, answered in a sentence; at times the text stands in the instruction."""
    told = passage(draw)
    question, answer = told.questions[draw.one(list(told.questions))]
    text = told.text
    if draw.chance(0.2):
        other = passage(draw, most=2).text
        text = f"{other} {text}" if draw.chance(0.5) else f"{text} {other}"
        if sum(opening in text for opening in UNNAMED) > 1:
            # Both texts may be about an order or an event: which one the question means would be a guess.
            text = told.text
    if draw.chance(0.2):
        return Row(f"{text} {question}", "", answer, "closed_qa")
    ask = draw.one(["{}", "{}", "{}", "Read the text and answer: {}", "{} Use the text."])
    return Row(ask.format(question), text, answer, "closed_qa")


def field(draw: Draw) -> Row:
    """One named field out of a text, the bare value."""
    told = passage(draw)
    label = draw.one([*told.values, "name"]) if "name" in told.values else draw.one(list(told.values))
    said = draw.one([label, label, "name of the person"]) if label == "name" else label
    instruction = draw.one(ASK_VALUE).format(said)
    if draw.chance(0.12):
        return Row(f"{instruction} Text: {told.text}", "", told.values[label], "information_extraction")
    return Row(instruction, told.text, told.values[label], "information_extraction")


def _listing(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def json_fields(draw: Draw) -> Row:
    """Several fields as one JSON object, ages and prices as numbers, null for what the text does not hold."""
    told = passage(draw)
    keys = draw.some(list(told.values), draw.number(1, len(told.values)))
    if draw.chance(0.1):
        missing = [key for key in ("age", "city", "job", "price", "day") if key not in told.values]
        keys.insert(draw.number(0, len(keys)), draw.one(missing))
    answer: dict[str, object] = {}
    for key in keys:
        value = told.values.get(key)
        typed: object = value if value is None or key not in ("age", "price") else json.loads(value)
        answer[key.replace(" ", "_")] = typed
    instruction = draw.one(ASK_JSON).format(_listing([key.replace(" ", "_") for key in keys]))
    return Row(instruction, told.text, json.dumps(answer, ensure_ascii=False), "information_extraction")


def repeated(draw: Draw) -> Row:
    """The text again, or its names: nothing teaches copying faster."""
    words = [draw.one([draw.first_name, draw.city, draw.order_number, draw.product, draw.price])() for _ in range(4)]
    text = ", ".join(words) if draw.chance(0.6) else passage(draw, most=2).text
    return Row(draw.one(["Repeat the text.", "Copy the text.", "Write the text again."]), text, text, "closed_qa")


def names(draw: Draw) -> Row:
    """All names of a text, in its order."""
    people = [draw.first_name() for _ in range(draw.number(2, 3))]
    city, event = draw.city(), draw.one(EVENTS)
    text = draw.one(["{} met at the {} in {}.", "{} went to the {} in {}.", "We saw {} at the {} in {}."])
    ask = draw.one(["List the names in the text.", "Extract all names.", "Which people are named in the text?"])
    context = text.format(_listing(people), event, city)
    return Row(ask, context, ", ".join(people), "information_extraction")


def summarization(draw: Draw) -> Row:
    """One sentence that says who did what, where and when, from a text of three to five."""
    name, city, event, day = draw.name(), draw.city(), draw.one(EVENTS), draw.one(DAYS)
    guests = str(draw.number(11, 98))
    sentences = [
        draw.one(
            ["On {d} {n} opened {a} {e} in {c}.", "{n} held {a} {e} in {c} on {d}.", "In {c}, {n} led {a} {e} on {d}."]
        ),
        draw.one(["{g} people came.", "There were {g} guests.", "About {g} visitors took part."]),
        *draw.some(
            [
                "The hall was full and the mood was good.",
                "There was music and food for everyone.",
                "Some guests had come from far away.",
                "The local paper wrote about it.",
                "It went on until late in the evening.",
                "Next year there will be another one.",
            ],
            draw.number(1, 3),
        ),
    ]
    words = {"n": name, "c": city, "e": event, "d": day, "g": guests, "a": article(event)}
    text = " ".join(sentences).format(**words)
    if draw.chance(0.2):
        ask = draw.one(["Summarise the text in two points.", "Summarize this in two points."])
        return Row(ask, text, "- {n} held {a} {e} in {c} on {d}.\n- {g} people came.".format(**words), "summarization")
    answer = "{n} held {a} {e} in {c} on {d}, and {g} people came.".format(**words)
    ask = draw.one(
        [
            "Summarise the text.",
            "Summarize the text in one sentence.",
            "Give a short summary.",
            "What is the text about?",
        ]
    )
    if draw.chance(0.2):
        return Row(f"{ask} {text}", "", answer, "summarization")
    return Row(ask, text, answer, "summarization")
