"""The text that shows how large a model's channels get before it goes into int8, the same for all models."""

from dolly_batch.tokenizer import TextEncoder

_MAX_TOKENS = 512

TEXT = """\
Below is a question that somebody wrote, and an answer that does what it asks.

What should I look at before I buy a used bicycle?
Look at the frame first: cracks near the welds cannot be repaired cheaply. Then turn both wheels and see whether they
run true, pull the brakes, and shift through all gears. A worn chain costs about 20 euros; a worn gearbox costs 150 or
more, so ask for a lower price, or walk away.

List four things that float on water, and say why.
1. Ice, because it is 9 % lighter than the water it is made of.
2. Cork: its cells are full of air.
3. A steel ship; it pushes aside more water than it weighs.
4. Oil.

Summarize this in one sentence: The river Amber rises in the hills of the north, passes the old mills at Harrow, where
paper was made until 1931, and reaches the sea after 212 kilometres. In spring it floods the meadows; in August children
walk across it. Its name has nothing to do with the stone (the word meant "water" to those who lived there before).
The Amber is a river of 212 km from the northern hills to the sea, high in spring and shallow in late summer.

Is the following review positive or negative? "Arrived late, the box was torn, and the lamp flickers. Never again!!!"
negative

Write a function that counts the words in a file.
```python
import sys
from collections import Counter

def count_words(path: str, lower: bool = True) -> Counter[str]:
    with open(path, encoding="utf-8") as file:
        text = file.read()
    return Counter((text.lower() if lower else text).split())

if __name__ == "__main__":
    for word, number in count_words(sys.argv[1]).most_common(10):
        print(f"{number:6d}  {word}")
```

{"name": "Maria Keller", "age": 41, "city": "Graz", "languages": ["German", "Slovene"], "member": true, "fee": null}
"""


def calibration_ids(encoder: TextEncoder) -> list[int]:
    """The text's token ids, no more than 512; as many for any window, so that a window changes no weights."""
    return encoder.encode_text(TEXT)[:_MAX_TOKENS]
