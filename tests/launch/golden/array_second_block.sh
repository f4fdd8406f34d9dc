#!/bin/bash
#SBATCH --job-name=cache-3f2a.0b1c2d3e.001
#SBATCH --chdir="/data"
#SBATCH --output="/data/my runs/demo/jobs/cache-3f2a/logs/002-%a.log"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR2@120
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --array=0-1,4%4
#SBATCH --dependency=afterok:17:18
#SBATCH --kill-on-invalid-dep=yes
# Written by vlmae, attempt 2 of the job in /data/my runs/demo/jobs/cache-3f2a.
set -uo pipefail
# The code that was launched, not that of the folder in which the command was given.
export PYTHONSAFEPATH=1
export PYTHONPATH='/data/my runs/demo/jobs/code-77aa'${PYTHONPATH:+:$PYTHONPATH}
export OMP_NUM_THREADS=1

# SLURM tells this shell, and not the task, that time is up or that others need the nodes: passed on.
child=""
stop=""
pass_on() { [ -n "$child" ] && [ -n "$stop" ] && kill -s "$stop" "$child" 2>/dev/null; }
trap 'stop=USR2; pass_on' USR2
trap 'stop=TERM; pass_on' TERM
'/opt/my env/bin/python' -m launch.task '/data/my runs/demo/jobs/cache-3f2a' --attempt 2 --task $((SLURM_ARRAY_TASK_ID + 1000)) &
child=$!
pass_on
while kill -0 "$child" 2>/dev/null; do wait "$child"; done
wait "$child"
code=$?
# 140: told before it could listen.
if [ "$stop$code" = USR2140 ]; then code=75; fi
if [ "$code" -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 0 ]; then
  # Stopped, not failed: the same job goes on later. A controller that is away is asked again.
  for _ in {1..20}; do
    if [ "$stop" = TERM ]; then break; fi
    if scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; then sleep 60; break; fi
    sleep 3
  done
fi
exit "$code"
