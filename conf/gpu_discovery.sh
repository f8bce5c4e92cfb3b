#!/usr/bin/env bash
# Tells Spark which GPUs this worker, container or executor sees:
#   {"name":"gpu","addresses":["0","1"]}
# Set as spark.worker.resource.gpu.discoveryScript (standalone) or spark.executor.resource.gpu.discoveryScript
# (YARN, Kubernetes). Databricks has its own.
#
# Addresses are nvidia-smi's indices, which follow the PCI bus; CUDA counts the same way only with
# CUDA_DEVICE_ORDER=PCI_BUS_ID, which conf/spark/*.conf set on executors.
set -euo pipefail

if ! command -v nvidia-smi >/dev/null; then
    echo "gpu_discovery.sh: there is no nvidia-smi on $HOSTNAME: install the NVIDIA driver, or run without GPUs" >&2
    exit 1
fi
if ! indices=$(nvidia-smi --query-gpu=index --format=csv,noheader); then
    echo "gpu_discovery.sh: nvidia-smi failed on $HOSTNAME: $indices" >&2  # it explains itself on stdout
    exit 1
fi
addresses=$(printf '%s' "$indices" | awk 'NF { printf "%s\"%s\"", separator, $1; separator = "," }')
printf '{"name":"gpu","addresses":[%s]}\n' "$addresses"
