# Environment of a job whose Python lives in a container, with the project's folder mounted. Before sbatch:
#   export HPCTRACK_ENV=slurm/container.sh HPCTRACK_CONTAINER="shifter --image=IMAGE --module=gpu,nccl-plugin"
# Slurm stays outside: srun starts HPCTRACK_CONTAINER, and that starts Python. docs/how-to/nersc.md has other programs.
: "${HPCTRACK_CONTAINER:?says how to run a command in the container; see slurm/container.sh}"
wrappers=$PWD/.container-$(id -un) outside=${PATH//$PWD\/.container-$(id -un):/}
mkdir -p "$wrappers"
for name in python hpctrack; do # each is put in place whole: other jobs may be using it
  printf '#!/bin/sh\nPATH=%q\nexec %s %s "$@"\n' "$outside" "$HPCTRACK_CONTAINER" "$name" >"$wrappers/.$name.$SLURM_JOB_ID"
  chmod +x "$wrappers/.$name.$SLURM_JOB_ID"
  mv "$wrappers/.$name.$SLURM_JOB_ID" "$wrappers/$name"
done
export PATH=$wrappers:$outside
