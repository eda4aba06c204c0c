#!/bin/sh
# Serves this directory; takes further options of vllm serve.
cd "$(dirname "$0")" || exit
export VLLM_CPU_INT4_W4A8=0
exec vllm serve --config serve.yaml "$@"
