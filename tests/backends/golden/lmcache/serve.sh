#!/bin/sh
# Serves this directory; takes further options of vllm serve.
cd "$(dirname "$0")" || exit
export LMCACHE_CONFIG_FILE="$PWD/lmcache.yaml"
exec vllm serve --config serve.yaml "$@"
