"""The vocabulary of `tiny`'s texts, and random draws from it that keep some names out of training."""

import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def split(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def pairs(text: str) -> dict[str, str]:
    """The pairs of a text such as `hot:cold big:small`."""
    couples = (pair.partition(":") for pair in text.split())
    return {left: right for left, _, right in couples}


def article(noun: str) -> str:
    """`a` or `an`, by the first letter."""
    return "an" if noun[0] in "aeiou" else "a"


FIRST_NAMES = split("""
    Ada Aisha Alma Amir Ana Anton Arne Asha Bela Ben Bruno Carla Carlos Cem Chen Clara Dana Daniel David Diego
    Edith Elena Eli Emil Emma Erik Eva Farah Felix Fiona Frank Greta Hana Hans Hugo Ida Igor Ines Iris Ivan Jack
    Jana Javier John Jonas Julia Kai Karim Kate Kofi Lara Lena Leo Lila Linda Lucas Luis Luna Maria Mark Marta
    Mateo Maya Mei Mia Milan Mina Mira Nadia Nils Nina Noah Nora Olga Omar Oscar Paul Pedro Peter Petra Priya Rami
    Ravi Rosa Ruth Sam Sara Selma Simon Sofia Sven Tara Theo Tina Tom Uma Vera Victor Wei Yara Yusuf Zara Zoe
""")

CITIES = split("""
    Athens Bergen Berlin Bern Bogota Boston Brno Bruges Cairo Chicago Cork Dakar Delhi Denver Dresden Dublin
    Geneva Ghent Graz Hamburg Helsinki Izmir Kyoto Lagos Leeds Leipzig Lima Lisbon London Lyon Madrid Malaga Miami
    Milan Mumbai Munich Nairobi Naples Nice Osaka Oslo Oxford Paris Porto Prague Quito Riga Rome Seoul Seville
    Sofia Split Tallinn Toronto Tunis Turin Utrecht Vienna Vilnius Warsaw York Zagreb Zurich
""")

# Every letter and most pairs of letters have to occur: what training never writes, the model cannot copy.
ONSETS = split("""
    b c d f g h j k l m n p qu r s t v w x y z bl br ch cl cr dr fl fr gh gl gr kl kn kr ph pl pr sch sh sl sm sn
    st sz th tr ts tw zh
""")
VOWELS = split("a a a e e e i i o o u u y aa ae ai au ea ee ei eo ia ie io oa oe oi oo ou ui")
CODAS = split("b c ch ck d f g h k l ll lt m mb n nd ng nk nt p r rd rg rk rn rp rt s ss st t th ts v w x z")
CITY_ENDINGS = split("ton burg ville mouth ford stad field port dale ham")

JOBS = split("""
    baker nurse teacher driver farmer painter doctor cook writer singer gardener plumber lawyer dentist pilot
    waiter tailor librarian carpenter engineer designer photographer mechanic actor
""")
COLOURS = split("red blue green yellow black white brown orange purple pink grey golden")
PETS = split("dog cat rabbit parrot horse goat turtle hamster goldfish duck")
HOBBIES = split("""
    reading swimming cooking painting cycling chess gardening dancing hiking fishing knitting running singing
    football tennis photography
""")
PRODUCTS = split("""
    lamp chair table phone laptop camera kettle toaster jacket backpack bicycle watch radio printer keyboard
    mirror blanket carpet clock bottle guitar helmet tent umbrella scarf sofa vase speaker
""")
MATERIALS = split("wooden glass steel small large leather plastic cotton folding travel kitchen garden")
DAYS = split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split("January February March April May June July August September October November December")
EVENTS = split("concert market race meeting workshop festival lecture party picnic exhibition parade auction")

GOOD = split("""
    good great excellent wonderful lovely perfect amazing fantastic superb brilliant pleasant delightful beautiful
    reliable comfortable helpful friendly fast clean fresh tasty charming impressive outstanding enjoyable
""")
BAD = split("""
    bad terrible awful horrible poor disappointing dreadful useless broken ugly boring unpleasant faulty
    uncomfortable rude slow dirty stale noisy weak painful annoying unreliable worthless cheap
""")
REVIEWED = [
    *PRODUCTS,
    *split("hotel film book meal restaurant room service staff soup coffee show game app train museum"),
]


def is_held_out(words: str) -> bool:
    """Whether these words are kept out of training: a fixed fifth of all names and pairs, by checksum."""
    return zlib.crc32(words.encode()) % 5 == 0


class Draw:
    """Random words by seed; with `held_out`, names and pairs that training never sees, otherwise only the others."""

    def __init__(self, seed: int, held_out: bool):
        self.rng = random.Random(seed)
        self.held_out = held_out

    def one(self, items: Sequence[T]) -> T:
        """One of the items, all equally likely."""
        return self.rng.choice(items)

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different items in random order."""
        return self.rng.sample(items, count)

    def chance(self, share: float) -> bool:
        """True in this share of calls."""
        return self.rng.random() < share

    def number(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return self.rng.randint(low, high)

    def _invented(self, endings: Sequence[str]) -> str:
        syllables = []
        for at in range(self.one([1, 1, 2, 2, 2, 3])):
            onset = "" if at == 0 and self.chance(0.25) else self.one(ONSETS)
            coda = self.one(CODAS) if self.chance(0.35) else ""
            syllables.append(onset + self.one(VOWELS) + coda)
        return ("".join(syllables) + self.one(endings)).capitalize()

    def _allowed(self, listed: Sequence[str], endings: Sequence[str]) -> str:
        while True:
            word = self.one(listed) if self.chance(0.35) else self._invented(endings)
            if 2 < len(word) < 12 and is_held_out(word) == self.held_out:
                return word

    def first_name(self) -> str:
        """A given name, listed or invented."""
        return self._allowed(FIRST_NAMES, ["", "a", "o", "el", "in", "ra", "mi", "us"])

    def name(self) -> str:
        """A given name, in a quarter of cases with a family name."""
        if self.chance(0.25):
            return f"{self.first_name()} {self._allowed(FIRST_NAMES, ['son', 'er', 'ski', 'man', 'ov', 'ez', 'i'])}"
        return self.first_name()

    def city(self) -> str:
        """A town, listed or invented."""
        return self._allowed(CITIES, [*CITY_ENDINGS, "", "a", "o"])

    def product(self) -> str:
        """Something one can buy, such as `green lamp`."""
        return f"{self.one([*COLOURS, *MATERIALS])} {self.one(PRODUCTS)}"

    def price(self) -> str:
        """An amount such as `45.90`."""
        return f"{self.number(2, 99)}.{self.one(['00', '50', '90', '99', '25', '75'])}"

    def order_number(self) -> str:
        """A number such as `KT-4821`, seldom without the letters."""
        letters = "".join(self.one("ABCDEFGHKLMNPRSTX") for _ in range(2)) + "-"
        return f"{letters if self.chance(0.8) else ''}{self.number(1000, 9999)}"

    def date(self) -> str:
        """A day of the year such as `12 May`."""
        return f"{self.number(1, 28)} {self.one(MONTHS)}"

    def opinion(self, good: bool) -> tuple[str, str]:
        """A reviewed thing and what is said of it."""
        while True:
            thing, quality = self.one(REVIEWED), self.one(GOOD if good else BAD)
            if is_held_out(f"{thing} {quality}") == self.held_out:
                return thing, quality
