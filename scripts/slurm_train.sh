#!/usr/bin/env bash
# Train on two machines with four GPUs each under SLURM: sbatch scripts/slurm_train.sh [key=value ...]
# The job asks to be started again when its time is over; resume=auto goes on from the last checkpoint.
#SBATCH --job-name=stan
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

# Lightning finds the ranks in SLURM's variables. Without SLURM the same is, on each of two machines:
#   torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 \
#       scripts/train.py configs/train/davis_small.yaml trainer.nodes=2 trainer.devices=4 trainer.strategy=ddp
srun --kill-on-bad-exit=1 .venv/bin/python scripts/train.py configs/train/davis_small.yaml \
  trainer.accelerator=gpu trainer.nodes="$SLURM_NNODES" trainer.devices=4 trainer.strategy=ddp \
  resume=auto "$@"
