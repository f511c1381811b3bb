# What differs from site to site: the only file here to change (or copy it and set ATHANOR_SITE to the copy).
# Sourced by submit.sh on the login node and by every job on its first node; values set before win.
# shellcheck shell=bash disable=SC2034

# The program, as the compute nodes see it.
: "${ATHANOR:=$ATHANOR_HOME/build/athanor}"

# Options of every job: account, partition, time, mail.
sbatch_options=(--time=24:00:00)
#sbatch_options+=(--account=project --partition=batch)

# Seconds before the time limit at which a job is told to save and end: more than its longest step and a save.
: "${ATHANOR_WARNING_S:=300}"

# How ranks are started: srun (needs Slurm's pmix plugin), mpirun, or auto: srun where the plugin is there.
# Heterogeneous jobs need srun.
: "${ATHANOR_LAUNCHER:=auto}"
# --wait: seconds that the other ranks have to end after the first; without it a rank that dies leaves them waiting.
srun_options=(--mpi=pmix --wait=30)
mpirun_options=(--bind-to none)

# Restarts in a row that may bring no new checkpoint before a job gives up.
: "${ATHANOR_MAX_RESTARTS:=3}"

# Runs in the job before anything else.
prepare_site() {
  #module load gcc openmpi hdf5
  export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
  #export OMPI_MCA_btl_tcp_if_include=ib0 UCX_NET_DEVICES=mlx5_0:1
}
