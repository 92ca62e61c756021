#!/usr/bin/env bash
# On every worker, by `python -m launch.tpu_vm run`: runs COMMAND, or goes back to watching it.
#
# COMMAND runs detached: a connection that breaks must not end a run on a whole pod. A call that finds it running only
# follows its log and waits for its status; so does a repeated call of the same LAUNCH, which gcloud makes by itself
# after a broken connection.
set -euo pipefail
: "${COMMAND:?}" "${RUN_FOLDER:?}" "${MOUNT_FOLDER:?}" "${MOUNT_COMMAND:?}" "${LAUNCH:?}"
cd "$(dirname "$0")/../.."
export PATH="$HOME/rlhf_jax_environment/bin:$PATH"
# JAX asks the machine's metadata for the other workers; this tells rlhf_jax that there are some
export RLHF_JAX_CLUSTER=1

state=$HOME/.rlhf_jax_run/$(cat /proc/sys/kernel/random/boot_id)  # process ids mean nothing after a reboot
mkdir -p "$state"
running() { kill -0 "$(cat "$state/process" 2> /dev/null)" 2> /dev/null; }
ended_already() { [ "$(cat "$state/launch" 2> /dev/null)" = "$LAUNCH" ] && [ -s "$state/status" ]; }

if ! running && ! ended_already; then
  [ -d "$MOUNT_FOLDER" ] || sudo mkdir -p "$MOUNT_FOLDER"
  mountpoint --quiet "$MOUNT_FOLDER" || eval "$MOUNT_COMMAND"
  [ -d "$RUN_FOLDER" ] || sudo install --directory --owner="$(id -un)" "$RUN_FOLDER"
  rm -f "$state/status"
  : > "$state/log"
  echo "$LAUNCH" > "$state/launch"
  setsid nohup bash -c 'bash -c "exec env $COMMAND"; echo $? > "$0"' "$state/status" > "$state/log" 2>&1 < /dev/null &
  echo $! > "$state/process"
fi
tail --lines=+1 --follow --pid="$(cat "$state/process")" "$state/log"
exit "$(cat "$state/status" 2> /dev/null || echo 1)"  # no status: it was killed with all that was around it
