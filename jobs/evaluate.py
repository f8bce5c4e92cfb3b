"""Score a model, measure finished tables: spark-submit jobs/evaluate.py conf/EVAL.yaml [--set a.b=value ...]."""

from dolly_batch.command import run_script

if __name__ == "__main__":
    run_script("evaluate")
