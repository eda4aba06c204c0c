#!/bin/sh
# Serves this directory; takes further options of trtllm-serve.
cd "$(dirname "$0")" || exit
exec trtllm-serve serve . --backend pytorch --extra_llm_api_options trtllm.yaml "$@"
