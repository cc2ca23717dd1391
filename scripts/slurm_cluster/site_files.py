"""The files of a site, as text: slurm.conf and what goes with it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

CONTROLLER = "ctl"
CONTROLLER_ADDRESS = "10.77.0.1"
HOME = "/var/lib/slurm"
"""Where the state folder is seen inside the cluster: a path every user may walk, whatever it is outside."""
USERS = {"alice": 20001, "bob": 20002}

_CREDENTIAL_S = 5
"""Life of a job credential. A requeued job waits for so long and a second more; Slurm takes nothing shorter."""


@dataclass(frozen=True)
class Settings:
    """What `up` was asked for; memory and cores are what Slurm believes a node has."""

    num_nodes: int
    gpus: int = 0
    cpus: int = 8
    memory_mib: int = 16000
    accounting: bool = False
    kill_wait_s: int = 30
    node_timeout_s: int = 5


def node_names(settings: Settings) -> list[str]:
    return [f"n{number}" for number in range(1, settings.num_nodes + 1)]


def node_address(name: str) -> str:
    """10.77.1.1 for n1; 10.77.1.254 is the last before 10.77.2.0."""
    number = int(name.removeprefix("n"))
    return f"10.77.{1 + number // 250}.{number % 250}"


def slurm_conf(settings: Settings) -> str:
    """One controller, N equal nodes, three partitions; time-outs short, so that trouble is noticed in seconds."""
    gres = f" Gres=gpu:h100:{settings.gpus}" if settings.gpus else ""
    nodes = "\n".join(f"NodeName={name} NodeAddr={node_address(name)}" for name in node_names(settings))
    return f"""\
ClusterName=rehearsal
SlurmctldHost={CONTROLLER}({CONTROLLER_ADDRESS})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={HOME}/munge/munge.socket,cred_expire={_CREDENTIAL_S}
MailProg=/bin/true
MpiDefault=none

StateSaveLocation={HOME}/state
SlurmdSpoolDir={HOME}/spool/%n
SlurmctldPidFile={HOME}/pid/slurmctld
SlurmdPidFile={HOME}/pid/slurmd.%n
SlurmctldLogFile={HOME}/log/slurmctld.log
SlurmdLogFile={HOME}/log/slurmd.%n.log

# No cgroups: they are the machine's, not ours. So nothing limits the memory of a job.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
{_accounting(settings)}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
# Also without any: a site that does not know the word refuses --cpus-per-gpu, even from a job without GPUs.
GresTypes=gpu

SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge=300

SlurmdTimeout={settings.node_timeout_s}
SlurmctldTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait={settings.kill_wait_s}
UnkillableStepTimeout=10
ReturnToService=2

NodeName=DEFAULT CPUs={settings.cpus} CoresPerSocket={settings.cpus} RealMemory={settings.memory_mib}{gres}
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefaultTime=60 State=UP
PartitionName=main Default=YES PriorityTier=10
PartitionName=low PriorityTier=1
PartitionName=high PriorityTier=100 PreemptMode=OFF
"""


def _accounting(settings: Settings) -> str:
    if not settings.accounting:
        return "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none"
    tracked = "AccountingStorageTRES=gres/gpu\n" if settings.gpus else ""
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={CONTROLLER}
AccountingStoragePass={HOME}/munge/munge.socket
{tracked}JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5"""


def slurmdbd_conf() -> str:
    return f"""\
DbdHost={CONTROLLER}
DbdAddr={CONTROLLER_ADDRESS}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={HOME}/munge/munge.socket
LogFile={HOME}/log/slurmdbd.log
PidFile={HOME}/pid/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""


def gres_conf(settings: Settings) -> str:
    """GPUs are device files that slurmd looks at and nobody opens."""
    return "".join(f"Name=gpu Type=h100 File={HOME}/dev/nvidia{gpu}\n" for gpu in range(settings.gpus))


def cgroup_conf() -> str:
    """Unused, but slurmd 22.05 does not start where it finds no cgroups and is not told which kind."""
    return "CgroupPlugin=cgroup/v1\n"


def hosts(settings: Settings) -> str:
    lines = ["127.0.0.1 localhost", f"{CONTROLLER_ADDRESS} {CONTROLLER}"]
    return "\n".join(lines + [f"{node_address(name)} {name}" for name in node_names(settings)]) + "\n"


def passwd(outside: str) -> str:
    """The machine's users, and alice and bob."""
    ours = [f"{name}:x:{uid}:{uid}::{HOME}/home/{name}:/bin/bash" for name, uid in USERS.items()]
    return "\n".join(_without_ours(outside) + ours) + "\n"


def group(outside: str) -> str:
    return "\n".join(_without_ours(outside) + [f"{name}:x:{gid}:" for name, gid in USERS.items()]) + "\n"


def _without_ours(lines: str) -> list[str]:
    return [line for line in lines.splitlines() if line.partition(":")[0] not in USERS]
