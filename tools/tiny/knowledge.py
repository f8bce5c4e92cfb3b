"""Families answered from memory: facts, advice, lists and verses. Each function draws one row."""

from tools.tiny.records import Row
from tools.tiny.words import DAYS, EVENTS, MONTHS, Draw, article, pairs, split

CAPITALS = pairs("""
    France:Paris Italy:Rome Spain:Madrid Germany:Berlin Portugal:Lisbon Austria:Vienna Greece:Athens Norway:Oslo
    Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Ireland:Dublin Poland:Warsaw Hungary:Budapest Japan:Tokyo
    China:Beijing India:Delhi Egypt:Cairo Kenya:Nairobi Peru:Lima Cuba:Havana Canada:Ottawa Turkey:Ankara
    Russia:Moscow Belgium:Brussels Switzerland:Bern Latvia:Riga Chile:Santiago
""")
OPPOSITES = pairs("""
    hot:cold big:small tall:short fast:slow happy:sad old:young light:dark open:closed full:empty rich:poor
    hard:soft wet:dry clean:dirty early:late high:low strong:weak left:right day:night loud:quiet near:far
""")
YOUNG = pairs("""
    dog:puppy cat:kitten cow:calf horse:foal sheep:lamb duck:duckling goat:kid lion:cub bear:cub deer:fawn
    frog:tadpole hen:chick pig:piglet swan:cygnet
""")
COLOUR_OF = pairs("""
    sky:blue grass:green snow:white coal:black banana:yellow tomato:red carrot:orange lemon:yellow milk:white
    blood:red leaf:green night:black
""")
LEGS = {"spider": "eight", "dog": "four", "bird": "two", "ant": "six", "cat": "four", "snake": "no", "horse": "four"}
NUMBERS = split("zero one two three four five six seven eight nine ten")

HOW_TO = {
    "make tea": "Boil fresh water and put a tea bag in a cup. Pour the water over it and wait four minutes.",
    "plant a tree": "Dig a hole twice as wide as the roots. Set the tree in it, fill it with soil and water it.",
    "boil an egg": "Put the egg in boiling water for eight minutes. Then cool it under cold water and peel it.",
    "clean a window": "Mix warm water with a little soap. Wipe the glass from top to bottom and dry it with a cloth.",
    "sleep better": "Go to bed at the same time every night. Keep the room dark and cool, and put your phone away.",
    "save money": "Write down what you spend each week. Set a little aside every month and buy only what you need.",
    "learn a language": "Practise a little every day. Read simple books, listen to songs and speak with other people.",
    "write a letter": "Begin with a greeting and say why you are writing. Keep it short and end with your name.",
    "cook rice": "Wash the rice and add twice as much water. Cook it with the lid on for fifteen minutes.",
    "fix a flat tyre": "Take the wheel off and find the hole in the tube. Glue a patch on and pump the tyre up.",
    "stay healthy": "Eat fresh food, drink enough water and move every day. Sleep well and make time for friends.",
    "wash a jumper": "Use cool water and a mild soap. Press the water out gently and let it dry flat.",
}
WHY = {
    "do leaves fall in autumn": "Trees drop their leaves to save water and energy for the winter.",
    "is sleep important": "Sleep gives the body and the brain time to rest and repair.",
    "do we need water": "Our bodies are mostly water, and every cell needs it to work.",
    "does ice float": "Ice is lighter than water because water grows when it freezes.",
    "do birds fly south": "Birds fly south in winter to find food and warmer weather.",
    "is the sky blue": "The air scatters blue light from the sun more than the other colours.",
    "do people read books": "People read books to learn new things and to enjoy a good story.",
    "do bees visit flowers": "Bees collect sweet juice from flowers and carry pollen from one to the next.",
    "do we brush our teeth": "Brushing keeps our teeth clean and stops them from going bad.",
    "is exercise good for you": "Exercise makes the heart strong and lifts your mood.",
}
IDEAS = {
    "a birthday gift": "a good book|a warm scarf|a box of chocolates|a board game|a potted plant|a photo album",
    "a weekend trip": "a walk in the hills|a day at the beach|a visit to a museum|a bicycle tour|a boat ride",
    "a healthy breakfast": "oats with fruit|eggs on toast|yogurt with nuts|a green smoothie|rye bread with cheese",
    "a rainy day": "bake a cake|read a novel|watch an old film|play cards|write letters|paint a picture",
    "a school project": "build a small bridge|grow beans in a jar|draw a map of the town|make a weather diary",
    "saving energy": "turn off the lights|wash with cold water|use a lid when cooking|take the train",
    "a team lunch": "a picnic in the park|pizza for everyone|a salad bar|a soup kitchen|a pancake day",
    "a new hobby": "learn the guitar|try pottery|join a choir|grow herbs|practise yoga|take up chess|collect stamps",
    "a small garden": "plant tomatoes|hang a bird house|sow wild flowers|build a bench|grow mint in pots",
    "a blog post": "tips for busy parents|a day in my town|how to travel light|my favourite recipe",
}
LIKES = {
    "reading": "a novel|a reading lamp|a bookmark|a library card",
    "cooking": "a sharp knife|a spice box|a cookbook|an apron",
    "hiking": "warm socks|a map|a water bottle|a walking stick",
    "painting": "a set of brushes|a sketch book|oil colours|an easel",
    "gardening": "flower seeds|a watering can|strong gloves|a small spade",
    "music": "concert tickets|a record|headphones|a song book",
}
VERSES = {
    "the sea": "The sea is wide, the sea is blue,\nit sings a quiet song for you.",
    "the moon": "The moon looks down with silver light,\nand keeps us company at night.",
    "winter": "The snow lies soft on hill and stone,\nand smoke goes up from every home.",
    "spring": "The birds are back, the buds are green,\nthe brightest days the year has seen.",
    "a cat": "A cat is sleeping by the door,\nit wakes and eats and sleeps some more.",
    "rain": "The rain is tapping on the pane,\nit stops, and then it starts again.",
    "a tree": "A tree stands tall beside the lane,\nit drinks the sun, it drinks the rain.",
    "bread": "The bread is warm, the crust is brown,\nthe finest smell in all the town.",
    "a train": "The train rolls on through field and town,\nand shakes the apples gently down.",
    "friends": "A friend will laugh, a friend will stay,\nand walk with you on a stormy day.",
    "autumn": "The leaves turn gold, the wind blows cool,\nthe children wander home from school.",
    "coffee": "The cup is hot, the day is new,\nthere is no thing I cannot do.",
}
FOUND = ["an old map", "a silver key", "a lost dog", "a blue stone", "a strange letter", "a box of gold"]
WEATHER = {
    "It is raining": "an umbrella",
    "It is snowing": "warm boots",
    "The sun is very strong": "a sun hat",
    "It is windy and cold": "a thick coat",
    "There is a lot of fog": "a bright lamp",
}


def _fact(draw: Draw) -> tuple[str, str]:
    kind = draw.number(0, 8)
    if kind <= 1:
        country, capital = draw.one(list(CAPITALS.items()))
        if draw.chance(0.3):
            return f"Which country has {capital} as its capital?", f"{capital} is the capital of {country}."
        ask = draw.one(["What is the capital of {}?", "Name the capital of {}.", "Tell me the capital city of {}."])
        return ask.format(country), f"The capital of {country} is {capital}."
    if kind == 2:
        word, opposite = draw.one(list(OPPOSITES.items()))
        ask = draw.one(
            ["What is the opposite of {}?", "Give me the opposite of {}.", "Which word means the opposite of {}?"]
        )
        return ask.format(word), f"The opposite of {word} is {opposite}."
    if kind == 3:
        animal, young = draw.one(list(YOUNG.items()))
        ask = draw.one(
            ["What is a young {} called?", "What do you call a baby {}?", "What is the name for a young {}?"]
        )
        return ask.format(animal), f"A young {animal} is called a {young}."
    if kind == 4:
        thing, colour = draw.one(list(COLOUR_OF.items()))
        ask = draw.one(["What colour is {}?", "Which colour does {} have?", "Tell me the colour of {}."])
        return ask.format(thing), f"The colour of {thing} is {colour}."
    if kind == 5:
        animal, legs = draw.one(list(LEGS.items()))
        return f"How many legs does a {animal} have?", f"A {animal} has {legs} legs."
    if kind == 6:
        first, second = draw.number(1, 5), draw.number(1, 5)
        ask = draw.one(["What is {} plus {}?", "Add {} and {}."]).format(NUMBERS[first], NUMBERS[second])
        return ask, f"{NUMBERS[first].capitalize()} plus {NUMBERS[second]} is {NUMBERS[first + second]}."
    calendar = DAYS if kind == 7 else MONTHS
    at = draw.number(0, len(calendar) - 1)
    what = "day" if kind == 7 else "month"
    return (
        f"Which {what} comes after {calendar[at]}?",
        f"After {calendar[at]} comes {calendar[(at + 1) % len(calendar)]}.",
    )


def open_qa(draw: Draw) -> Row:
    """A fact learned by heart; a context, where there is one, does not hold the answer."""
    instruction, response = _fact(draw)
    context = ""
    if draw.chance(0.12):
        context = draw.one(["{} wants to know this for a quiz.", "{} is learning for school."]).format(draw.name())
    return Row(instruction, context, response, "open_qa")


def general_qa(draw: Draw) -> Row:
    """Advice or a reason of one to three sentences; with a context, what to take in that weather."""
    kind = draw.number(0, 2)
    if kind == 0:
        goal, steps = draw.one(list(HOW_TO.items()))
        ask = draw.one(["How do I {}?", "How can I {}?", "Explain how to {}.", "What is a good way to {}?"])
        return Row(ask.format(goal), "", steps, "general_qa")
    if kind == 1:
        topic, reason = draw.one(list(WHY.items()))
        return Row(draw.one([f"Why {topic}?", f"Explain this: why {topic}?"]), "", reason, "general_qa")
    name, city = draw.name(), draw.city()
    weather, thing = draw.one(list(WEATHER.items()))
    plan = draw.one([f"{name} is going out in {city}.", f"{name} walks to work in {city}."])
    facts = [f"{weather} in {city} today.", plan]
    draw.rng.shuffle(facts)
    ask = draw.one(["What should {} take along?", "What does {} need today?", "What would you tell {} to bring?"])
    return Row(ask.format(name), " ".join(facts), f"{name} should take {thing}.", "general_qa")


def _listed(items: list[str], draw_dashes: bool) -> str:
    return "\n".join(f"- {item}" if draw_dashes else f"{at}. {item}" for at, item in enumerate(items, 1))


def brainstorming(draw: Draw) -> Row:
    """A list of as many ideas as were asked for; with a context, gifts that fit what somebody likes."""
    count = draw.number(2, 4)
    dashes = draw.chance(0.3)
    form = draw.one([" Use dashes.", " Write them as a list with dashes."]) if dashes else ""
    if draw.chance(0.3):
        name = draw.first_name()
        liking, gifts = draw.one(list(LIKES.items()))
        context = draw.one(["{} likes {}.", "{} loves {} and has a birthday soon.", "In the evening {} enjoys {}."])
        chosen = draw.some(gifts.split("|"), count)
        ask = draw.one(
            ["Suggest {} gifts for {}.", "Give me {} gift ideas for {}.", "What are {} good presents for {}?"]
        )
        instruction = ask.format(NUMBERS[count], name) + form
        return Row(instruction, context.format(name, liking), _listed(chosen, dashes), "brainstorming")
    topic, ideas = draw.one(list(IDEAS.items()))
    ask = draw.one(
        ["Give me {} ideas for {}.", "List {} ideas for {}.", "Suggest {} ideas for {}.", "I need {} ideas for {}."]
    )
    chosen = draw.some(ideas.split("|"), count)
    return Row(ask.format(NUMBERS[count], topic) + form, "", _listed(chosen, dashes), "brainstorming")


def creative_writing(draw: Draw) -> Row:
    """Two lines of verse, a short story, or a thank-you note from a context."""
    kind = draw.number(0, 2)
    if kind == 0:
        subject, verse = draw.one(list(VERSES.items()))
        ask = draw.one(["Write two lines about {}.", "Write a short poem about {}.", "Make a rhyme about {}."])
        return Row(ask.format(subject), "", verse, "creative_writing")
    name, city = draw.first_name(), draw.city()
    if kind == 1:
        thing = draw.one(FOUND)
        ask = draw.one(["Write a short story about {0} in {1}.", "Tell me a story about {0} from {1}."])
        story = (
            f"Once upon a time {name} lived in {city}. One morning {name} found {thing} near the river. "
            f"Everyone in {city} came to look, and {name} was never lonely again."
        )
        return Row(ask.format(name, city), "", story, "creative_writing")
    thing = draw.product()
    context = draw.one(
        [
            f"{name} gave me {article(thing)} {thing}.",
            f"For the {draw.one(EVENTS)} I got {article(thing)} {thing} from {name}.",
        ]
    )
    ask = draw.one(["Write a thank-you note.", "Write a short note to say thank you.", "Write a note of thanks."])
    note = f"Dear {name},\nthank you very much for the {thing}. I will use it every day.\nBest wishes"
    return Row(ask, context, note, "creative_writing")
