"""Bring a cluster up and down, and do to it what happens to clusters."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import boxes, site_files
from .boxes import ClusterError, Process
from .inside import READY, slurmctld_argv, slurmd_argv
from .site_files import CONTROLLER, USERS, Settings

_MARK = "slurm-cluster.json"
_FRESH = ("etc", "log", "state", "spool", "munge", "pid", "dev", "db")
_NEEDED = ("slurmctld", "slurmd", "sinfo", "munged", "unshare", "nsenter", "setpriv", "ip")
_PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge iproute2 util-linux"
_NEEDED_FOR_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db")
_PACKAGES_FOR_ACCOUNTING = "slurmdbd slurm-wlm-mysql-plugin mariadb-server"
_READY_S = 60


def default_folder() -> Path:
    """$SLURM_CLUSTER_DIR, else a folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("SLURM_CLUSTER_DIR") or cache / "slurm-cluster").absolute()


def why_not(*, accounting: bool = False) -> list[str]:
    """Everything that keeps a cluster from running here; empty when it can."""
    found = []
    path = f"{os.environ.get('PATH', '')}:{boxes.PATH}"
    missing = [tool for tool in _NEEDED if not shutil.which(tool, path=path)]
    packages = _PACKAGES if missing else ""
    if accounting and (lacks := [tool for tool in _NEEDED_FOR_ACCOUNTING if not shutil.which(tool, path=path)]):
        missing += lacks
        packages = f"{packages} {_PACKAGES_FOR_ACCOUNTING}".strip()
    if missing:
        install = f"sudo apt-get update && sudo apt-get install -y --no-install-recommends {packages}"
        found.append(f"{', '.join(missing)} not found. On Debian or Ubuntu: {install}")
    if os.geteuid() != 0:
        found.append("Not root, and making network and process namespaces takes root. Run it with sudo.")
    elif shutil.which("unshare"):
        trial = subprocess.run([*boxes.NEW_SPACES, "true"], capture_output=True, text=True)
        if trial.returncode != 0:
            found.append(
                f"The kernel gives no namespaces: {trial.stderr.strip()}. "
                "A container needs --privileged, or CAP_SYS_ADMIN, CAP_NET_ADMIN and unshare let through by seccomp."
            )
    return found


@dataclass(frozen=True)
class Cluster:
    """The cluster whose state lies in `folder`; at most one runs there."""

    folder: Path

    def up(self, settings: Settings) -> None:
        """Starts a new cluster, in place of the one that may run; returns when every node takes jobs."""
        if problems := why_not(accounting=settings.accounting):
            raise ClusterError("\n".join(problems))
        self._claim_folder()
        with self._locked():
            self._kill()
            self._write_files(settings)
            try:
                controller = boxes.boot(self.folder, CONTROLLER, inside=None, wire=boxes.wire_controller)
                self._wait_started()
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(lambda name: self._boot_node(controller, name), site_files.node_names(settings)))
                self._wait_ready(settings.num_nodes)
            except BaseException as error:
                logs = self._log_tails()
                self._kill()
                if isinstance(error, ClusterError):
                    raise ClusterError(
                        f"The cluster did not come up: {error}\n{logs}\nAll logs: {self.folder}/log"
                    ) from error
                raise

    def down(self) -> bool:
        """Ends every process of the cluster; False when none ran. Logs and homes stay."""
        if not (self.folder / _MARK).exists():
            return False
        with self._locked():
            return self._kill()

    def settings(self) -> Settings:
        try:
            return Settings(**json.loads((self.folder / _MARK).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ClusterError(f"No cluster in {self.folder}. Start one: scripts/slurm-cluster up 2") from None

    def controller(self) -> Process:
        """The controller's box; ClusterError when the cluster is down."""
        if (box := boxes.find_box(self.folder, CONTROLLER)) is None:
            raise ClusterError(f"No cluster runs in {self.folder}. Start one: scripts/slurm-cluster up 2")
        return box

    def box(self, name: str | None) -> Process:
        """A node's box, or the controller's for None."""
        if name is None or name == CONTROLLER:
            return self.controller()
        self._known(name)
        if (box := boxes.find_box(self.folder, name)) is None:
            raise ClusterError(f"{name} is off. Switch it on: scripts/slurm-cluster node up {name}")
        return box

    # What happens to nodes.

    def node_up(self, name: str) -> None:
        """Power on, cable in, slurmd running, ready for jobs: whatever of it was not so."""
        self._known(name)
        controller = self.controller()
        box = boxes.find_box(self.folder, name)
        if box is None:
            self._boot_node(controller, name)
        else:
            self.node_join(name)
            if self._daemon(name, "slurmd") is None:
                boxes.start_in(box, slurmd_argv(name), self.folder / "log" / f"{name}.boot.log")
        if self._daemon(CONTROLLER, "slurmctld") is not None:
            boxes.wait_for(lambda: self._is_usable(name), _READY_S, f"Slurm to take {name} back")

    def node_down(self, name: str) -> None:
        """Power off: every process of the node is gone when this returns."""
        boxes.kill_box(self.box(name))

    def node_cut(self, name: str) -> None:
        """Unplugs the network cable; what runs on the node goes on."""
        self.box(name)
        boxes.network(self.controller(), f"link set {boxes.cable(name)} down")

    def node_join(self, name: str) -> None:
        """Plugs the cable in again."""
        self.box(name)
        boxes.network(self.controller(), f"link set {boxes.cable(name)} up")

    def node_kill_slurmd(self, name: str) -> None:
        """Kills the node's daemon only; its jobs go on."""
        self.box(name)
        self._kill_daemon(name, "slurmd", signal.SIGKILL)

    # What happens to the controller.

    def controller_stop(self) -> None:
        """An orderly end: slurmctld saves its state first."""
        self._kill_daemon(CONTROLLER, "slurmctld", signal.SIGTERM)

    def controller_kill(self) -> None:
        self._kill_daemon(CONTROLLER, "slurmctld", signal.SIGKILL)

    def controller_freeze(self) -> None:
        """slurmctld neither works nor answers, and connections to it hang."""
        boxes.kill(self._must_run("slurmctld"), signal.SIGSTOP)

    def controller_start(self) -> None:
        """Starts slurmctld with the state it left, or wakes a frozen one; returns when it answers."""
        if (daemon := self._daemon(CONTROLLER, "slurmctld")) is not None:
            boxes.kill(daemon, signal.SIGCONT)
        else:
            boxes.start_in(self.controller(), slurmctld_argv(), self.folder / "log" / f"{CONTROLLER}.boot.log")
        boxes.wait_for(self._answers, _READY_S, "slurmctld to answer", every_s=0.1)

    # What there is.

    def status(self) -> dict[str, Any]:
        """State of controller and nodes, and every process that is no daemon of the cluster."""
        settings = self.settings()
        seen = boxes.processes()
        running = boxes.find_box(self.folder, CONTROLLER, seen) is not None
        daemon = self._daemon(CONTROLLER, "slurmctld", seen) if running else None
        state = "off" if daemon is None else "frozen" if daemon.state == "T" else "running"
        cut = self._cut_cables() if running else ""
        slurm = self._node_states() if state == "running" else {}
        return {
            "folder": str(self.folder),
            "running": running,
            "controller": {"slurmctld": state, "processes": self._guests(CONTROLLER, seen)},
            "nodes": [
                self._node_status(name, slurm.get(name, "?"), cut, seen) for name in site_files.node_names(settings)
            ],
            "settings": asdict(settings),
        }

    def _node_status(self, name: str, slurm_state: str, cut: str, seen: list[Process]) -> dict[str, Any]:
        box = boxes.find_box(self.folder, name, seen)
        return {
            "name": name,
            "power": "off" if box is None else "on",
            "cable": "none" if box is None else "cut" if f" {boxes.cable(name)}@" in cut else "in",
            "slurmd": "off" if self._daemon(name, "slurmd", seen) is None else "running",
            "slurm_state": slurm_state,
            "processes": self._guests(name, seen),
        }

    def _guests(self, name: str, seen: list[Process]) -> list[dict[str, Any]]:
        """Processes in a box that are none of its daemons: jobs, their steps, and what they left behind."""
        box = boxes.find_box(self.folder, name, seen)
        found = [] if box is None else boxes.inhabitants(box, seen)
        daemons = {"munged", "slurmctld", "slurmscriptd", "slurmdbd", "mariadbd", "slurmd", "unshare"}
        return [
            {"pid": p.pid, "command": p.command, "argv": list(p.argv), "state": p.state}
            for p in found
            if p.command not in daemons and not (p.argv and p.argv[0].startswith(": slurmscriptd"))
        ]

    def _cut_cables(self) -> str:
        """What `ip` says of the controller's cards, one a line, without those that are up."""
        links = boxes.call_in(self.controller(), ["ip", "-oneline", "link"]).stdout.splitlines()
        return "\n".join(link for link in links if ",UP" not in link)

    # How it is done.

    def _known(self, name: str) -> None:
        names = site_files.node_names(self.settings())
        if name not in names:
            raise ClusterError(f"No node {name!r} in this cluster. It has: {' '.join(names)}")

    def _daemon(self, box_name: str, command: str, among: list[Process] | None = None) -> Process | None:
        """The oldest process of that name in a box: a step's first moments look like another slurmd."""
        seen = among or boxes.processes()
        box = boxes.find_box(self.folder, box_name, seen)
        found = [p for p in boxes.inhabitants(box, seen) if p.command == command] if box else []
        return min(found, key=lambda p: p.start_ticks, default=None)

    def _must_run(self, daemon: str) -> Process:
        self.controller()
        if (process := self._daemon(CONTROLLER, daemon)) is None:
            raise ClusterError(f"{daemon} does not run. Start it: scripts/slurm-cluster controller start")
        return process

    def _kill_daemon(self, box_name: str, command: str, number: signal.Signals) -> None:
        """Returns when it has ended; nothing to do is fine."""
        if (daemon := self._daemon(box_name, command)) is not None:
            boxes.kill(daemon, number)
            boxes.kill(daemon, signal.SIGCONT)  # a frozen one would not see a TERM
            boxes.wait_for(lambda: not boxes.is_alive(daemon), _READY_S, f"the end of {command}")

    def _boot_node(self, controller: Process, name: str) -> None:
        address = site_files.node_address(name)
        boxes.boot(
            self.folder, name, inside=controller, wire=lambda node: boxes.wire_node(controller, node, name, address)
        )

    def _wait_started(self) -> None:
        ready = self.folder / "pid" / READY
        # A database takes a while when it is made for the first time.
        boxes.wait_for(lambda: ready.exists() or self.controller() is None, 2 * _READY_S, "the controller's daemons")

    def _wait_ready(self, num_nodes: int) -> None:
        def ready() -> bool:
            self.controller()
            states = self._node_states()
            return len(states) == num_nodes and set(states.values()) == {"idle"}

        boxes.wait_for(ready, _READY_S, f"{num_nodes} idle nodes", every_s=0.1)

    def _answers(self) -> bool:
        return boxes.call_in(self.controller(), ["sinfo", "--noheader", "--format=%P"]).returncode == 0

    def _node_states(self) -> dict[str, str]:
        argv = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T"]
        lines = boxes.call_in(self.controller(), argv).stdout.splitlines()
        return dict(line.split(maxsplit=1) for line in lines if " " in line)

    def _is_usable(self, name: str) -> bool:
        """Asks Slurm to take a node back that it gave up or drained."""
        state = self._node_states().get(name, "")
        if state in ("idle", "mixed", "allocated", "completing"):
            return True
        boxes.call_in(self.controller(), ["scontrol", "update", f"nodename={name}", "state=resume"])
        time.sleep(0.2)
        return False

    def _kill(self) -> bool:
        box = boxes.find_box(self.folder, CONTROLLER)
        if box is not None:
            boxes.kill_box(box)
        return box is not None

    def _log_tails(self) -> str:
        files = sorted((self.folder / "log").glob("*"))
        return "\n".join(f"--- {file.name}\n{boxes.tail(file)}" for file in files if file.stat().st_size)

    def _claim_folder(self) -> None:
        """Never clears a folder that is not ours."""
        if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / _MARK).exists():
            raise ClusterError(f"{self.folder} holds other files. Set SLURM_CLUSTER_DIR to a new folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / _MARK).touch()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write_files(self, settings: Settings) -> None:
        for name in _FRESH:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if name != "db":
                (self.folder / name).mkdir(mode=0o755)
        (self.folder / _MARK).write_text(json.dumps(asdict(settings)), encoding="utf-8")
        texts = {
            "slurm.conf": site_files.slurm_conf(settings),
            "gres.conf": site_files.gres_conf(settings),
            "cgroup.conf": site_files.cgroup_conf(),
            "hosts": site_files.hosts(settings),
            "passwd": site_files.passwd(Path("/etc/passwd").read_text(encoding="utf-8")),
            "group": site_files.group(Path("/etc/group").read_text(encoding="utf-8")),
        }
        if settings.accounting:
            texts["slurmdbd.conf"] = site_files.slurmdbd_conf()
        for name, text in texts.items():
            file = self.folder / "etc" / name
            file.write_text(text, encoding="utf-8")
            file.chmod(0o600 if name == "slurmdbd.conf" else 0o644)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        for user, uid in USERS.items():
            home = self.folder / "home" / user
            home.mkdir(parents=True, exist_ok=True)
            os.chown(home, uid, uid)
        for gpu in range(settings.gpus):
            # A second /dev/null: slurmd wants a device and never opens it.
            os.mknod(self.folder / "dev" / f"nvidia{gpu}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
