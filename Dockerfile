# Image for driver and executors of Spark on Kubernetes: Spark's own files and entry point, Python, torch with its CUDA
# libraries, this package. The node brings the NVIDIA driver (the container toolkit mounts it).
#
# NOT BUILT AND NOT RUN YET. It is written from Spark's own image (apache/spark-docker), whose layout it keeps.
#
#     docker build -t REGISTRY/dolly-batch:0.1.0 .        # then docs/deploy.md, "Kubernetes"
#
# Not for Databricks Container Services: there the image starts from a Databricks base for GPUs and takes the wheel
# into Databricks' own Python (docs/deploy.md, "Databricks").

ARG SPARK_VERSION=4.2.0
FROM apache/spark:${SPARK_VERSION} AS spark

# Spark's image has Ubuntu 22.04's Python, 3.10; this package needs 3.11.
FROM python:3.11-slim-bookworm

# tini, gosu, libnss-wrapper and procps are what Spark's entry point calls.
RUN apt-get update \
    && apt-get install -y --no-install-recommends openjdk-17-jre-headless tini gosu libnss-wrapper procps \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid=185 spark \
    && useradd --system --uid=185 --gid=spark --create-home spark

COPY --from=spark --chown=spark:spark /opt/spark /opt/spark
COPY --from=spark /opt/entrypoint.sh /opt/decom.sh /opt/

# torch, pandas and pyarrow by name: pyspark itself is Spark's, in /opt/spark/python.
WORKDIR /opt/dolly-batch
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch pandas pyarrow accelerate transformers
COPY pyproject.toml README.md LICENSE ./
COPY dolly_batch ./dolly_batch
RUN pip install --no-cache-dir -c constraints.txt .
COPY jobs ./jobs
COPY conf ./conf

ENV SPARK_HOME=/opt/spark \
    PATH=/opt/spark/bin:$PATH \
    PYSPARK_PYTHON=/usr/local/bin/python3 \
    PYSPARK_DRIVER_PYTHON=/usr/local/bin/python3

# Spark's Kubernetes backend starts containers in a folder they can write to.
RUN mkdir -p /opt/spark/work-dir && chown spark:spark /opt/spark/work-dir
WORKDIR /opt/spark/work-dir
USER spark
ENTRYPOINT ["/opt/entrypoint.sh"]
