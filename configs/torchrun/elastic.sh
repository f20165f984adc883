#!/usr/bin/env bash
# Elastic training by torchrun: a process or a machine that dies is waited for, and training goes on from the last checkpoint.
#   HOST=node0 NODES=2 PROCESSES=4 configs/torchrun/elastic.sh CONFIG [key=value ...]     the same on every machine
# HOST:PORT is where they meet, an address of the first machine; NODES may be a range (1:2) if n_micro_batches divides by any number of processes;
# ADDRESS is this machine's own, where its name does not lead to it. Corpus and `out` lie on a disk that all machines see.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: HOST=... NODES=... PROCESSES=... $0 CONFIG [key=value ...]" >&2; exit 2; }

# gloo: restarted workers would meet in the store of the attempt that failed
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# which machine keeps the store is told by names, unless addresses are given
who=()
if [ -n "${ADDRESS:-}" ]; then
  who=(--local-addr "$ADDRESS" --rdzv-conf "is_host=$([ "$ADDRESS" = "${HOST:-}" ] && echo 1 || echo 0)")
fi
exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${PROCESSES:-1}" --max-restarts "${RESTARTS:-10}" \
  --rdzv-backend c10d --rdzv-endpoint "${HOST:-localhost}:${PORT:-29400}" --rdzv-id "${RUN:-stofm}" "${who[@]}" \
  --no-python stofm train "$@"
