# Environment of a job on Perlmutter, and an example for other sites:   export HPCTRACK_ENV=slurm/perlmutter.sh
# From NERSC's and HPE's documentation; see docs/how-to/nersc.md.   HPCTRACK_MODULES=pytorch takes NERSC's own torch
module load ${HPCTRACK_MODULES:-python cudatoolkit nccl}
[ ! -e .venv/bin/activate ] || source .venv/bin/activate
# NCCL over Slingshot: libfabric or an error, never sockets
export NCCL_NET="AWS Libfabric" NCCL_SOCKET_IFNAME=hsn NCCL_CROSS_NIC=1 NCCL_NET_GDR_LEVEL=PHB
export FI_CXI_DISABLE_HOST_REGISTER=1 FI_MR_CACHE_MONITOR=userfaultfd FI_CXI_DEFAULT_CQ_SIZE=131072
export GLOO_SOCKET_IFNAME=hsn0
