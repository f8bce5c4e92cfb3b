"""Count what answering a table would take: spark-submit jobs/plan_table.py conf/JOB.yaml [--set a.b=value ...]."""

from dolly_batch.command import run_script

if __name__ == "__main__":
    run_script("plan")
