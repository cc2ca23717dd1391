"""The command line of scripts/slurm-cluster."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import boxes, site_files
from .boxes import ClusterError
from .cluster import Cluster, default_folder, why_not
from .inside import init
from .site_files import USERS, Settings

_ABOUT = """\
A real Slurm with several nodes on this machine, in seconds: to rehearse a submission, and to see what preemption, a
dead node or a silent controller do to it. Controller and nodes live in namespaces of their own, each with its host
name, address, processes and /dev/shm; they share all files with this machine, /tmp included. Needs root.
"""
_EXAMPLES = """\
partitions:
  main (default), low, high; a job in a higher one takes nodes from lower ones, and what ran there is requeued

examples:
  scripts/slurm-cluster up 2 --gpus 4                     two nodes with 4 pretended GPUs each
  scripts/slurm-cluster run sinfo
  scripts/slurm-cluster run launcher submit experiment=quickstart cluster=slurm cluster.device=cpu
  scripts/slurm-cluster run sbatch -p high -N2 --exclusive --wrap 'sleep 60'     preempts what runs in main or low
  scripts/slurm-cluster node down n2                      pulls the plug
  scripts/slurm-cluster down

SLURM_CLUSTER_DIR names the folder of a cluster's state and logs (default: ~/.cache/slurm-cluster); clusters in
different folders do not see each other. docs/local-cluster.md tells more.
"""
_NODE = {
    "up": "switch on, plug in and start slurmd, whatever of it is needed; waits until Slurm takes jobs to it",
    "down": "pull the plug: all its processes are gone at once",
    "cut": "unplug the network cable; what runs there goes on",
    "join": "plug the network cable in again",
    "kill-slurmd": "kill its Slurm daemon only; what runs there goes on",
}
_CONTROLLER = {
    "stop": "end slurmctld in an orderly way",
    "kill": "kill slurmctld",
    "freeze": "stop slurmctld where it is: connections to it hang",
    "start": "start slurmctld with the state it left, or wake a frozen one; waits until it answers",
}


def main() -> int:
    """Exit codes: 0 done, 1 not possible here or as asked, 2 wrong arguments; `run` gives the command's own."""
    if sys.argv[1:2] == ["_init"]:
        init(Path(sys.argv[2]), sys.argv[3])
    arguments = _parser().parse_args()
    try:
        return _act(arguments, Cluster(default_folder()))
    except ClusterError as error:
        print(f"slurm-cluster: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="slurm-cluster", description=_ABOUT, epilog=_EXAMPLES, formatter_class=raw)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    up = verbs.add_parser("up", help="start a new cluster, in place of the one that may run")
    up.add_argument("num_nodes", type=_number(1, 200), metavar="NODES", help="nodes n1, n2, ...")
    up.add_argument("--gpus", type=_number(0, 64), default=0, help="pretended GPUs of a node (default 0)")
    up.add_argument("--cpus", type=_number(1, 1024), default=8, help="cores Slurm gives out on a node (default 8)")
    up.add_argument("--memory-mib", type=_number(1, 1 << 30), default=16000, help="memory of a node (default 16000)")
    up.add_argument("--accounting", action="store_true", help="with a database, so that sacct works; starts slower")
    up.add_argument(
        "--kill-wait-s", type=_number(1, 3600), default=30, help="time between TERM and KILL for a job (default 30)"
    )
    up.add_argument(
        "--node-timeout-s", type=_number(3, 3600), default=5, help="silence after which a node is down (default 5)"
    )

    verbs.add_parser("down", help="end every process of the cluster")
    status = verbs.add_parser("status", help="what runs")
    status.add_argument("--json", action="store_true", help="for programs, with the processes of each node")
    verbs.add_parser("check", help="say whether a cluster can run here, and if not, why")

    run = verbs.add_parser("run", help="run a command inside: on the controller's machine, which is the login node too")
    run.add_argument("-n", "--node", metavar="NODE", help="on this node")
    run.add_argument("-u", "--user", choices=sorted(USERS), help="as this user instead of root")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD...")

    node = verbs.add_parser("node", help=" | ".join(_NODE), formatter_class=raw, epilog=_table(_NODE))
    node.add_argument("deed", choices=_NODE, metavar="DEED")
    node.add_argument("name", metavar="NODE")
    controller = verbs.add_parser(
        "controller", help=" | ".join(_CONTROLLER), formatter_class=raw, epilog=_table(_CONTROLLER)
    )
    controller.add_argument("deed", choices=_CONTROLLER, metavar="DEED")
    return parser


def _act(arguments: argparse.Namespace, cluster: Cluster) -> int:
    if arguments.verb == "up":
        _up(arguments, cluster)
    elif arguments.verb == "down":
        print("down" if cluster.down() else "nothing to stop")
    elif arguments.verb == "status":
        _status(cluster, as_json=arguments.json)
    elif arguments.verb == "check":
        if problems := why_not():
            raise ClusterError("\n".join(problems))
        print("A cluster can run here.")
    elif arguments.verb == "run":
        _run(arguments, cluster)
    elif arguments.verb == "node":
        getattr(cluster, f"node_{arguments.deed.replace('-', '_')}")(arguments.name)
    else:
        getattr(cluster, f"controller_{arguments.deed}")()
    return 0


def _up(arguments: argparse.Namespace, cluster: Cluster) -> None:
    start = time.monotonic()
    settings = Settings(
        num_nodes=arguments.num_nodes,
        gpus=arguments.gpus,
        cpus=arguments.cpus,
        memory_mib=arguments.memory_mib,
        accounting=arguments.accounting,
        kill_wait_s=arguments.kill_wait_s,
        node_timeout_s=arguments.node_timeout_s,
    )
    cluster.up(settings)
    names = " ".join(site_files.node_names(settings))
    print(f"up after {time.monotonic() - start:.1f} s: {names} (state and logs in {cluster.folder})")
    print("Try: scripts/slurm-cluster run sinfo")


def _run(arguments: argparse.Namespace, cluster: Cluster) -> None:
    """Becomes the command."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise ClusterError("run: no command given. For a shell: scripts/slurm-cluster run bash")
    argv = boxes.command_in(cluster.box(arguments.node), command, user=arguments.user, directory=str(Path.cwd()))
    os.execvpe(argv[0], argv, boxes.user_environment(arguments.user, dict(os.environ)))


def _status(cluster: Cluster, *, as_json: bool) -> None:
    status = cluster.status()
    if as_json:
        print(json.dumps(status))
        return
    if not status["running"]:
        print(f"down ({status['folder']})")
        return
    print(f"controller  slurmctld {status['controller']['slurmctld']}  ({status['folder']})")
    for node in status["nodes"]:
        jobs = len(node["processes"])
        print(
            f"{node['name']:<11} power {node['power']}, cable {node['cable']}, slurmd {node['slurmd']}, "
            f"Slurm says {node['slurm_state']}, {jobs} process{'' if jobs == 1 else 'es'} of jobs"
        )


def _number(least: int, most: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return whole_number


def _table(meanings: dict[str, str]) -> str:
    return "\n".join(f"  {deed:<12} {meaning}" for deed, meaning in meanings.items())
