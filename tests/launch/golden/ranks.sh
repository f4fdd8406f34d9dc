#!/bin/bash
#SBATCH --job-name=train-3f2a.0b1c2d3e.001
#SBATCH --chdir="/data"
#SBATCH --output="/data/my runs/demo/jobs/train-3f2a/logs/001-0.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@300
#SBATCH --partition=gpu
#SBATCH --account=lab
#SBATCH --qos=high
#SBATCH --constraint="h100&ib"
#SBATCH --time=1-00:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=264192M
#SBATCH --gres=gpu:h100:4
#SBATCH --mail-type=FAIL
#SBATCH --comment="night run"
# Written by vlmae, attempt 1 of the job in /data/my runs/demo/jobs/train-3f2a.
module load cuda/12.8 || exit
module load gcc || exit
export NCCL_SOCKET_IFNAME=ib0
set -uo pipefail
# The code that was launched, not that of the folder in which the command was given.
export PYTHONSAFEPATH=1
export PYTHONPATH='/data/my runs/demo/jobs/code-77aa'${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=8
# Every rank is started by srun and finds the others at the first node.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

# SLURM tells this shell, and not the task, that time is up or that others need the nodes: passed on.
child=""
stop=""
pass_on() { [ -n "$child" ] && [ -n "$stop" ] && kill -s "$stop" "$child" 2>/dev/null; }
trap 'stop=USR2; pass_on' USR2
trap 'stop=TERM; pass_on' TERM
srun --cpus-per-task=8 --wait=60 --output='/data/my runs/demo/jobs/train-3f2a/logs/001-0-rank-%t.log' --open-mode=append \
  apptainer exec --nv /images/vlmae.sif '/opt/my env/bin/python' -m launch.task '/data/my runs/demo/jobs/train-3f2a' --attempt 1 --task 0 &
child=$!
pass_on
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
wait "$child"
code=$?
# 140: told before it could listen.
if [ "$stop$code" = USR2140 ]; then code=75; fi
if [ "$code" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
  # Stopped, not failed: the same job goes on later. A controller that is away is asked again.
  for _ in {1..20}; do
    if [ "$stop" = TERM ]; then break; fi
    if scontrol requeue "$SLURM_JOB_ID"; then sleep 60; break; fi
    sleep 3
  done
fi
exit "$code"
