#!/bin/sh
# Serve this model with llama.cpp: sh run.sh --port 8080. LLAMA names the program: LLAMA=llama-cli sh run.sh -p "Hello"
# Threads are llama.cpp's own choice; -t sets them.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
exec "${LLAMA:-llama-server}" -m "$here/model.gguf" -c 2048 -np 1 -ctk f16 -ctv q8_0 -fa on -b 256 -ub 256 --no-context-shift "$@"
