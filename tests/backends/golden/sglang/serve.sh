#!/bin/sh
# Serves this directory; takes further options of sglang.launch_server.
cd "$(dirname "$0")" || exit
exec python3 -m sglang.launch_server --config sglang.yaml "$@"
