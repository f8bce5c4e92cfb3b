"""The JVM and Python agree on which rows are blank."""

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dolly_batch.tasks.blank import BLANK_TEXT, is_blank


def test_the_jvm_finds_the_same_texts_blank(spark: SparkSession) -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    blank = [character for character in characters if is_blank(character)]
    code = F.col("id").cast("int")
    # Of every code point as a text of its own; Spark has no function for those beyond \\uffff but decoding UTF-32.
    text = F.decode(F.unhex(F.lpad(F.hex(code), 8, "0")), "UTF-32")
    found = (
        spark.range(0x110000).where("id < 55296 OR id >= 57344").where(text.rlike(BLANK_TEXT)).select("id").collect()
    )
    assert {row.id for row in found} == {ord(character) for character in blank}
    texts = ["", " \n", "a", " a", "a\n", "\n\n", "\u3164", "\u200b.", "\U000e0020 "]
    table = spark.createDataFrame([(text,) for text in texts], "text string")
    assert [row[0] for row in table.select(F.col("text").rlike(BLANK_TEXT)).collect()] == [*map(is_blank, texts)]
