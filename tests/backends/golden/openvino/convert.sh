#!/bin/sh
# Converts this directory into the folder openvino beside it, which openvino.json is for.
cd "$(dirname "$0")" || exit
exec optimum-cli export openvino --model . --task text-generation-with-past --weight-format fp16 openvino
