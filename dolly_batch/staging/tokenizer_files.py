"""A `tokenizer.json` for a folder without one: `python -m dolly_batch.staging.tokenizer_files SRC DST`.

GPT-J's older repositories hold `vocab.json`, `merges.txt` and lists of added tokens. transformers turns them into the
one-file format; it is imported in this process only, and no code of the repository is run.
"""

import sys
from pathlib import Path

from transformers import GPT2Tokenizer

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import TOKENIZER, read_json
from dolly_batch.staging.isolated import serve
from dolly_batch.staging.layout import SLOW_TOKENIZER_FILES

KNOWN_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "GPTNeoXTokenizerFast", "GPTNeoXTokenizer")


def convert_tokenizer(src: Path, dst: Path) -> None:
    """Write `dst/tokenizer.json` from the byte-level BPE files of `src`, added and special tokens included.

    Raises ModelError for another kind of tokenizer, and where an added token did not keep its id.
    """
    _check_class(src)
    tokenizer = GPT2Tokenizer.from_pretrained(str(src), local_files_only=True)
    added = src / "added_tokens.json"
    expected = read_json(added) if added.is_file() else {}
    vocabulary = tokenizer.get_vocab()
    for token, number in expected.items():
        if vocabulary.get(token) != number:
            raise ModelError(
                f"{added}: {token!r} has id {number}, but the converted tokenizer gives {vocabulary.get(token)}; "
                f"add a {TOKENIZER} to the model"
            )
    tokenizer.backend_tokenizer.save(str(dst / TOKENIZER))


def _check_class(src: Path) -> None:
    config = src / SLOW_TOKENIZER_FILES[-1]
    if not config.is_file():
        return
    found = read_json(config).get("tokenizer_class")
    if found is not None and found not in KNOWN_CLASSES:
        raise ModelError(
            f"{config}: found tokenizer_class {found!r}, expected one of {', '.join(KNOWN_CLASSES)}; "
            f"add a {TOKENIZER} to the model"
        )


def main(arguments: list[str]) -> None:
    """Convert from the first argument's folder into the second's."""
    src, dst = arguments
    convert_tokenizer(Path(src), Path(dst))


if __name__ == "__main__":
    sys.exit(serve(main, sys.argv[1:]))
