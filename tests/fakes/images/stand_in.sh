#!/bin/bash
# apptainer and enroot where they cannot be installed: `apptainer pull FILE URI`, `apptainer exec ... FILE.sif COMMAND`,
# `enroot import --output FILE URI`. Calls are recorded in $STAND_IN_DIR/calls; an import writes a half file, waits for
# $STAND_IN_DIR/go, and then completes it, or fails when there is $STAND_IN_DIR/full.
echo "$(basename "$0") $*" >>"$STAND_IN_DIR/calls"
case "$1" in
  pull) file=$2 ;;
  import) file=$3 ;;
  exec) while [[ "$1" != *.sif ]]; do shift; done; shift; exec "$@" ;;
esac
if [ -e "$file" ]; then echo "$file exists already" >&2; exit 2; fi
echo half >"$file"
until [ -e "$STAND_IN_DIR/go" ]; do sleep 0.05; done
if [ -e "$STAND_IN_DIR/full" ]; then echo "write: No space left on device" >&2; exit 1; fi
echo whole >"$file"
