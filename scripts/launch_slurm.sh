#!/usr/bin/env bash
# Submit a jasper command to SLURM on one or more nodes; the job queues itself again when it stopped with all saved.
#
#   scripts/launch_slurm.sh --nodes N --gpus N [options] run RECIPE [key=value ...]
#
# Installs the package into .venv (or $VENV) here, writes the job to runs/slurm/NAME.sh and submits it. The checkout,
# the environment and run_dir have to lie on a file system that the nodes share. The processes find each other.
#
#   --nodes N          how many nodes (default 1)
#   --gpus N           GPUs of each node (default 0: the CPU)
#   --per node|gpu     one process for each node, with all its GPUs, or one for each GPU (default node)
#   --name NAME        of the job (default jasper)
#   --time LIMIT       as SLURM writes it, e.g. 24:00:00 or 2-00:00:00 (default: the partition's)
#   --partition NAME   (default: the cluster's)
#   --account NAME     (default: yours); what else sbatch takes it also reads from the environment, as SBATCH_QOS
#   --cpus N           cores of each process (default: the cluster's)
#   --grace SECONDS    how long before the time limit jasper is asked to save and stop (default 300)
#   --max-restarts N   queues itself again at most so often (default 100)
#   --extra NAME       the extra to install: cuda, or plot for the CPU (default: by --gpus)
#   --dry-run          prints the job and the command that submits it, and does nothing
#
# Queued again is a job whose processes ended with exit code 75, and, by SLURM itself, one that was preempted or lost a
# node. Any other exit code is the job's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/launching.sh
source scripts/launching.sh

options=([nodes]=1 [gpus]=0 [per]=node [name]=jasper [time]='' [partition]='' [account]='' [cpus]='' [grace]=300
  [max-restarts]=100 [extra]='' [dry-run]=false)
parse "$@"
word='[A-Za-z0-9][A-Za-z0-9_.-]*'
need nodes '[1-9][0-9]{0,4}' "a whole number of nodes is needed, 1 or more"
need gpus '0|[1-9][0-9]?' "a whole number of GPUs of each node is needed, 0 to 99"
need per 'node|gpu' "allowed: node, gpu"
need name "$word" "a name of letters, digits, dots, hyphens and underscores is needed"
need time '([0-9]+(-[0-9]+(:[0-9]+){0,2}|(:[0-9]+){0,2}))?' "a time as SLURM writes it is needed, e.g. 24:00:00"
need partition "($word(,$word)*)?" "a partition's name is needed; sinfo shows them"
need account "($word)?" "an account's name is needed"
need cpus '([1-9][0-9]{0,3})?' "a whole number of cores is needed, 1 or more"
need grace '0|[1-9][0-9]{0,3}|[1-5][0-9]{4}' "seconds are needed, 0 to 59999"
need extra '(cuda|plot)?' "allowed: cuda, plot"
need_restarts
need_command
if [ "${options[per]}" = gpu ] && [ "${options[gpus]}" -eq 0 ]; then
  refuse "--per gpu needs --gpus, the number of GPUs of each node"
fi
need_tool sbatch "run this on a machine that submits to SLURM"

tasks=1
if [ "${options[per]}" = gpu ]; then tasks="${options[gpus]}"; fi
if [ -z "${options[extra]}" ]; then
  if [ "${options[gpus]}" -eq 0 ]; then options[extra]=plot; else options[extra]=cuda; fi
fi

directive() {
  if [ -n "$2" ]; then echo "#SBATCH --$1=$2"; fi
}

job() {
  local devices
  echo "#!/usr/bin/env bash"
  directive job-name "${options[name]}"
  directive nodes "${options[nodes]}"
  directive ntasks-per-node "$tasks"
  directive cpus-per-task "${options[cpus]}"
  # Of the node, not of the task: JAX takes a process's GPU by its number among all of the node's.
  if [ "${options[gpus]}" -gt 0 ]; then directive gpus-per-node "${options[gpus]}"; fi
  directive time "${options[time]}"
  directive partition "${options[partition]}"
  directive account "${options[account]}"
  directive output "runs/slurm/%x-%j.log"
  echo "#SBATCH --open-mode=append"
  echo "#SBATCH --requeue"
  if [ "${options[grace]}" -gt 0 ]; then
    # Without B: it goes to the processes, not to this script.
    directive signal "TERM@${options[grace]}"
  fi
  cat << 'END'

# A signal is for the processes; this script lives on to see how they end.
trap : TERM

END
  echo "cd $(quote "$PWD") || exit 2"
  if [ "${options[gpus]}" -gt 0 ] && [ "${options[per]}" = node ]; then
    # JAX would take one GPU for each process of a SLURM job.
    devices="$(seq -s, 0 $((options[gpus] - 1)))"
    echo "export JAX_LOCAL_DEVICE_IDS=$devices"
  fi
  echo "restarts=\${SLURM_RESTART_COUNT:-0}"
  # The first process to end must not take the others along while they save; one that hangs may not hold the job.
  echo "srun --kill-on-bad-exit=0 --wait=600 $(quote "$VENV/bin/jasper" "${jasper[@]}")"
  echo "code=\$?"
  echo "if [ \$code -eq $STOPPED_AND_SAVED ] && [ \$restarts -lt ${options[max-restarts]} ]; then"
  cat << 'END'
  echo "stopped with everything saved; queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
END
}

# shellcheck source=scripts/environment.sh
source scripts/environment.sh
script="runs/slurm/${options[name]}.sh"
if "${options[dry-run]}"; then
  echo "# installs jasper_jax[${options[extra]}] into $VENV unless it is there, writes $script:"
  job
  echo "# and submits it:"
else
  set_up "${options[extra]}"
  mkdir -p runs/slurm
  job > "$script"
fi
do_or_show sbatch "$script"
