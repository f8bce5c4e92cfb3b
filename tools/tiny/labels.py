"""Families answered with a label: sentiment, topic, the kind of thing a word names. Each function draws one row."""

from tools.tiny.records import Row
from tools.tiny.words import COLOURS, DAYS, JOBS, Draw, article, split

KINDS = {
    "animal": split("dog cat horse cow sheep goat lion bear rabbit duck fox wolf mouse tiger monkey whale"),
    "fruit": split("apple pear banana grape lemon cherry plum peach mango melon orange kiwi fig"),
    "vegetable": split("carrot onion potato cabbage spinach leek pea bean pumpkin celery"),
    "tool": split("hammer saw drill spade wrench chisel screwdriver pliers axe"),
    "vehicle": split("car bus train bicycle ship lorry tram plane boat taxi"),
    "job": JOBS,
    "colour": COLOURS[:10],
    "day": DAYS,
}
TOPICS = {
    "sport": split("match team goal player coach race league stadium score"),
    "food": split("soup bread recipe kitchen cheese salad sauce dinner pasta"),
    "travel": split("hotel flight luggage beach passport tourist airport island"),
    "money": split("bank loan price tax salary budget account market bill"),
    "weather": split("rain storm snow wind cloud sunshine frost thunder fog"),
}
TOPIC_SENTENCES = [
    "The {0} and the {1} were the talk of the day.",
    "{n} wrote about the {0} and the {1}.",
    "We heard a lot about the {0}, and then about the {1}.",
    "First came the {0}, then the {1}.",
]
REVIEWS = [
    "The {t} is {q}.",
    "The {t} was {q}.",
    "This {t} is really {q}.",
    "I think the {t} is {q}.",
    "What a {q} {t}!",
    "We found the {t} {q}.",
    "It is a {q} {t}.",
    "My new {t} turned out to be {q}.",
    "A very {q} {t}.",
]
MORE_GOOD = [
    "I would buy it again.",
    "I love it.",
    "We will come back.",
    "I am very happy with it.",
    "Thank you so much!",
]
MORE_BAD = [
    "I want my money back.",
    "I hate it.",
    "Never again.",
    "I am very unhappy with it.",
    "What a waste of money.",
]
NEUTRAL = ["I got it on {d}.", "{n} was there too.", "We were in {c} at the time.", "It was my first one."]
ASK_SENTIMENT = [
    "Is this review positive or negative?",
    "Is the review positive or negative?",
    "Classify the sentiment of the review as positive or negative.",
    "Classify the text as positive or negative.",
    "Classify the text. Labels: positive, negative.",
    "Classify the text into one of these labels: positive, negative.",
    "Choose the label that fits the text: positive, negative.",
    "What is the sentiment of this text, positive or negative?",
    "Which label fits the text best? positive, negative",
    "Tell me whether this is positive or negative.",
    "Sentiment: positive or negative?",
]


def review(draw: Draw, good: bool) -> str:
    """A review of one to three sentences, all of one opinion."""
    thing, quality = draw.opinion(good)
    sentences = [draw.one(REVIEWS).format(t=thing, q=quality)]
    if draw.chance(0.3):
        _, second = draw.opinion(good)
        sentences = [f"The {thing} is {quality} and {second}."]
    if draw.chance(0.15):
        denied = draw.one(
            ["good", "great", "helpful", "reliable"] if not good else ["bad", "boring", "slow", "expensive"]
        )
        sentences = [draw.one([f"The {thing} is not {denied}.", f"The {thing} was not {denied} at all."])]
    if draw.chance(0.35):
        sentences.append(draw.one(MORE_GOOD if good else MORE_BAD))
    if draw.chance(0.3):
        extra = draw.one(NEUTRAL).format(d=draw.one(DAYS), n=draw.first_name(), c=draw.city())
        sentences.insert(draw.number(0, len(sentences)), extra)
    return " ".join(sentences)


def sentiment(draw: Draw) -> Row:
    """A review, answered `positive` or `negative`."""
    good = draw.chance(0.5)
    text, ask = review(draw, good), draw.one(ASK_SENTIMENT)
    if draw.chance(0.5):
        # The order of the labels must not matter.
        ask = ask.replace("positive", "\0").replace("negative", "positive").replace("\0", "negative")
    label = "positive" if good else "negative"
    if draw.chance(0.15):
        instruction = draw.one([f"{ask} {text}", f"{ask} Review: {text}", f'{ask} "{text}"'])
        return Row(instruction, "", label, "classification")
    return Row(ask, text, label, "classification")


def topic(draw: Draw) -> Row:
    """A sentence about one of two to four topics that the instruction lists."""
    labels = draw.some(list(TOPICS), draw.number(2, 4))
    label = draw.one(labels)
    first, second = draw.some(TOPICS[label], 2)
    text = draw.one(TOPIC_SENTENCES).format(first, second, n=draw.first_name())
    ask = draw.one(
        [
            "Classify the text into one of these labels: {}.",
            "Choose the label that fits the text: {}.",
            "Classify the text. Labels: {}.",
            "Which topic is this about: {}?",
        ]
    )
    return Row(ask.format(", ".join(labels)), text, label, "classification")


def kind_of_thing(draw: Draw) -> Row:
    """What kind of thing one word names, or each of two to four words."""
    first, second = draw.some(list(KINDS), 2)
    if draw.chance(0.5):
        label = draw.one([first, second])
        thing = draw.one(KINDS[label])
        choice = f"{article(first)} {first} or {article(second)} {second}"
        ask = draw.one(["Is {t} {c}?", "Is the word {t} {c}?", "Tell me if {t} is {c}."])
        answer = f"{thing.capitalize()} is {article(label)} {label}."
        return Row(ask.format(t=thing, c=choice), "", answer, "classification")
    pool = [(thing, label) for label in (first, second) for thing in KINDS[label]]
    chosen = draw.some(pool, draw.number(2, 4))
    listed = ", ".join(thing for thing, _ in chosen)
    ask = f"Classify each word as {first} or {second}"
    answer = "\n".join(f"{thing}: {label}" for thing, label in chosen)
    if draw.chance(0.4):
        return Row(ask + ".", listed, answer, "classification")
    return Row(f"{ask}: {listed}", "", answer, "classification")
