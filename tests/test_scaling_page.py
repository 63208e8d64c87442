"""The Slurm script and the Kubernetes file in docs/, as far as they can be tried without a cluster."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
import yaml
from conftest import ROOT

from config import load_config
from config.conflicts import DISTILLATION, find_conflict

SLURM, KUBERNETES = ROOT / "docs" / "slurm.sbatch", ROOT / "docs" / "kubernetes.yaml"
# Each writes its name and arguments; torchrun ends as a run does after SIGTERM.
COMMANDS = {
    "srun": 'shift; exec "$@"',
    "torchrun": 'trap "exit 143" TERM; for i in $(seq "$ROUNDS"); do sleep 0.05; done',
    "scontrol": '[ "$1" = show ] && printf "node7\\nnode8\\n"; true',
}


def start(folder, rounds: int) -> subprocess.Popen:
    """Start the Slurm script with replaced commands, which write to calls.txt."""
    for name, action in COMMANDS.items():
        path = folder / name
        path.write_text(f'#!/bin/bash\necho {name} "$@" >> "{folder}/calls.txt"\n{action}\n')
        path.chmod(0o755)
    of_slurm = {"JOB_NODELIST": "node[7-8]", "NNODES": "2", "JOB_ID": "5", "CPUS_PER_TASK": "64"}
    environment = os.environ | {f"SLURM_{name}": value for name, value in of_slurm.items()}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "ROUNDS": str(rounds)}
    return subprocess.Popen(["bash", str(SLURM), "lr=0.2"], env=environment, cwd=ROOT)


def require_settings(command: str) -> None:
    """The arguments after the script are settings that the config allows."""
    settings = command.split(" train/train_AdaDistill.py ")[1].split()
    assert "resume=auto" in settings
    assert find_conflict(load_config(overrides=settings), DISTILLATION) is None


def test_the_slurm_script_starts_torchrun_and_ends_with_its_exit_code(tmp_path):
    assert start(tmp_path, 0).wait(30) == 0
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert not any("requeue" in call for call in calls)
    (command,) = (call for call in calls if call.startswith("torchrun"))
    assert "--nnodes=2 " in command and "--rdzv_endpoint=node7:29500 " in command and command.endswith(" lr=0.2")
    require_settings(command)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SLURM], check=True)


def test_the_slurm_script_passes_sigterm_on_and_queues_the_job_again(tmp_path):
    process = start(tmp_path, 600)
    calls = tmp_path / "calls.txt"
    deadline = time.monotonic() + 30
    while not (calls.exists() and "\ntorchrun" in calls.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)  # until it has set its trap
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert calls.read_text().splitlines()[-1] == "scontrol requeue 5"


def documents() -> list[dict]:
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


def test_the_parts_of_the_kubernetes_file_fit_together():
    service, job = documents()
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name} and service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (command,) = container["args"]
    assert f"--rdzv_endpoint={name}-0.{pod['subdomain']}:29500 " in command
    assert spec["completions"] == spec["parallelism"] == int(re.search(r"--nnodes=(\d+) ", command)[1])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(re.search(r"--nproc_per_node=(\d+) ", command)[1])
    require_settings(command)


def test_kubectl_knows_every_key_of_the_kubernetes_file():
    """kubectl reads the file into its own types, which have no place for other keys, and writes it again."""
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl")
    for document, change in zip(documents(), (["selector", "a=b"], ["env", "A=b"]), strict=True):
        command = ["kubectl", "set", change[0], "--local", "-f", "-", "-o", "json", change[1]]
        done = subprocess.run(command, input=json.dumps(document), capture_output=True, text=True, check=True)
        known = json.loads(done.stdout)
        assert document["kind"] == known["kind"]
        assert set(keys(document)) - {"/spec/selector/job-name"} <= set(keys(known))


def keys(value, path: str = ""):
    """The path of every key in nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    for key, item in items:
        yield f"{path}/{key}"
        yield from keys(item, f"{path}/{key}")
