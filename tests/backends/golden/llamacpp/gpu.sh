#!/bin/sh
# Serve this model with llama.cpp: sh run.sh --port 8080. LLAMA names the program: LLAMA=llama-cli sh run.sh -p "Hello"
# Threads are llama.cpp's own choice; -t sets them.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
exec "${LLAMA:-llama-server}" -m "$here/model.gguf" -c 2048 -np 1 -ctk q8_0 -ctv q4_1 -fa on -b 256 -ub 256 --no-context-shift -fit off -ngl 999 -ot '^blk\.(0|1|2)\.ffn_down\.weight$=CPU,^blk\.(1)\.ffn_gate\.weight$=CPU,^blk\.(1)\.ffn_up\.weight$=CPU' "$@"
