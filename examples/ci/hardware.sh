#!/bin/sh
# Profile the machine this runs on: the first time as a baseline, from then on against it.
#
#   BASELINE   profile to compare with, written if there is none     hardware-baseline/profile.yaml
#   REPORTS    directory of the new profile and of the JUnit report  hardware-report
#   TOLERANCE  how much longer a figure may take                     25%
#   PLANNER    the command                                           planner
#
# Arguments are handed on, as --backend transformers or --flash DIR. Ends with exit code 5 if a figure got slower, with 1
# if the baseline is of another machine.
set -eu

baseline=${BASELINE:-hardware-baseline/profile.yaml}
reports=${REPORTS:-hardware-report}
planner=${PLANNER:-planner}

mkdir -p "$reports" "$(dirname "$baseline")"
if [ ! -e "$baseline" ]; then
    # shellcheck disable=SC2086  # a command may be several words
    $planner profile hardware --quick --out "$baseline" "$@" >/dev/null
    echo "wrote $baseline: the next run is compared with it"
    exit 0
fi
# shellcheck disable=SC2086
exec $planner profile hardware --quick --out "$reports/profile.yaml" --check "$baseline" \
    --tolerance "${TOLERANCE:-25%}" --junit "$reports/report.xml" "$@"
