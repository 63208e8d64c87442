#!/usr/bin/env bash
# Train on all GPUs of this machine, or on those in CUDA_VISIBLE_DEVICES. Arguments (--config FILE, key=value) are
# passed to train/train_AdaDistill.py.
# Several nodes: run NNODES=2 NODE_RANK=0 MASTER_ADDR=host ./run_AdaDistill.sh ... on each node, with its NODE_RANK.
set -euo pipefail
cd "$(dirname "$0")"
VENV=${VENV:-.venv}
if [ -x "$VENV/bin/python" ]; then PYTHON="$VENV/bin/python"; else PYTHON=python; fi
GPUS=$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')
if [ "${NNODES:-1}" -gt 1 ]; then
    PLACE=(--nnodes="$NNODES" --node_rank="${NODE_RANK:?set NODE_RANK, from 0 to NNODES - 1}"
        --master_addr="${MASTER_ADDR:?set MASTER_ADDR to the host name of node 0}" --master_port="${MASTER_PORT:-29500}")
else
    PLACE=(--standalone)
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # torchrun's own default, without its notice
exec "$PYTHON" -m torch.distributed.run "${PLACE[@]}" --nproc_per_node="${NPROC:-$GPUS}" train/train_AdaDistill.py "$@"
