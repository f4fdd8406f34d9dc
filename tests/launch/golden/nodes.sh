#!/bin/bash
#SBATCH --job-name=train-3f2a.0b1c2d3e.001
#SBATCH --chdir="/data"
#SBATCH --output="/data/my runs/demo/jobs/train-3f2a/logs/001-0.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --time=4
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2048M
#SBATCH --gres=gpu:8
#SBATCH --nodelist=node1,node2
#SBATCH --no-requeue
# Written by vlmae, attempt 1 of the job in /data/my runs/demo/jobs/train-3f2a.
set -uo pipefail
# The code that was launched, not that of the folder in which the command was given.
export PYTHONSAFEPATH=1
export PYTHONPATH='/data/my runs/demo/jobs/code-77aa'${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=1
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
# One srun a node: one that cannot be started ends alone, and says why in a log on this one.
visit() {
  local index=0 node
  for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \
      '/opt/my env/bin/python' -m launch.doctor.node '/data/my runs/demo/jobs/train-3f2a' --rank "$index" >'/data/my runs/demo/jobs/train-3f2a/logs'"/$node.log" 2>&1 &
    index=$((index + 1))
  done
  wait
}
visit &
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
