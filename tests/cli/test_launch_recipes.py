"""The files with which SLURM, Kubernetes, Kubeflow and SkyPilot start this program, looked at without them."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.ports import find_free_port
from helpers.verbs import NOTHING_DRAWN
from helpers.waiting import read_errors
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from alexnet_dist.cli.launch import LAUNCHED_VERBS, RECIPES, build_command
from alexnet_dist.cli.main import run
from alexnet_dist.parallel.processes.launcher import LASTING, SAVE_SECONDS

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
KUBERNETES = "1.37"
LOST = (5, 128 + 9, 128 + 15)  # what another start may mend: a machine or a process was lost, or the run was saved


def load(name: str) -> dict[str, Any]:
    """The documents of a file below launch/, by their kind."""
    return {document["kind"]: document for document in yaml.safe_load_all((LAUNCH / name).read_text())}


JOB = load("kubernetes/job.yaml")
KUBEFLOW = load("kubernetes/trainjob.yaml")
SKYPILOT = yaml.safe_load((LAUNCH / "skypilot" / "train.yaml").read_text())


def inner_job(document: dict[str, Any]) -> dict[str, Any]:
    """The Job that Kubeflow makes for its runtime."""
    (replicated,) = document["spec"]["template"]["spec"]["replicatedJobs"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "node"},
        "spec": replicated["template"]["spec"],
    }


JOBS = {"kubernetes": JOB["Job"], "kubeflow": inner_job(KUBEFLOW["TrainingRuntime"])}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]  # type: ignore[no-any-return]


# -- printing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("launch", [name, "--print"]) == 0
    assert capsys.readouterr().out == (ROOT / "/".join(RECIPES[name])).read_text()


def test_every_recipe_can_be_printed() -> None:
    shipped = {path for path in LAUNCH.glob("*/*") if path.is_file() and path.parent.name != "accelerate"}
    assert shipped == {ROOT / folder / file for folder, file in RECIPES.values()}


@pytest.mark.parametrize("words", [[], ["train"], ["--print", "train"]])
def test_a_recipe_starts_nothing_here(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("launch", ["slurm", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("alexnet-dist launch slurm --print writes a file whose first lines say how to start it")


# -- schemas ----------------------------------------------------------------------------------------------------------


def check_kubernetes(document: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    try:
        validate.validate(document, KUBERNETES, strict=True)
    except validate.ValidationError as error:
        raise ValueError(str(error.message)) from error


def check_kubeflow(document: dict[str, Any]) -> None:
    """Its models leave out what they do not know, so that nothing may be missing afterwards."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    kind = getattr(models, f"TrainerV1alpha1{document['kind']}")
    if kind.from_dict(copy.deepcopy(document)).to_dict() != document:
        raise ValueError("a key is unknown")


DOCUMENTS: dict[str, tuple[Callable[[dict[str, Any]], None], dict[str, Any]]] = {
    "Service": (check_kubernetes, JOB["Service"]),
    "Job": (check_kubernetes, JOBS["kubernetes"]),
    "Kubeflow's Job": (check_kubernetes, JOBS["kubeflow"]),
    "TrainingRuntime": (check_kubeflow, KUBEFLOW["TrainingRuntime"]),
    "TrainJob": (check_kubeflow, KUBEFLOW["TrainJob"]),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", DOCUMENTS)
def test_manifests_are_what_the_schemas_ask_for(name: str) -> None:
    check, document = DOCUMENTS[name]
    check(document)
    for key in list(walk(document)):
        slipped = copy.deepcopy(document)
        *way, last = key
        place = slipped
        for part in way:
            place = place[part]
        place[f"{last}z"] = place.pop(last)
        with pytest.raises((ValueError, KeyError)):
            check(slipped)


def walk(document: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each key of a manifest that its schema knows; labels and amounts may have any name."""
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in pairs:
        if isinstance(document, dict):
            yield (*way, key)
        if key not in ("labels", "selector", "requests", "limits"):
            yield from walk(value, (*way, key))


# SkyPilot 0.14's own schemas (sky/utils/schemas.py), as far as they are used here, and all else is refused.
SKYPILOT_FIELDS = {
    "": {"name", "workdir", "setup", "run", "envs", "secrets", "num_nodes", "file_mounts", "volumes", "resources"},
    "resources": {"accelerators", "use_spot", "disk_size", "job_recovery", "infra", "cpus", "memory", "image_id"},
    "job_recovery": {"strategy", "max_restarts_on_errors", "recover_on_exit_codes"},
    "mount": {"name", "source", "mode", "store", "persistent"},
}


def test_skypilot_is_told_nothing_that_it_does_not_know() -> None:
    resources = SKYPILOT["resources"]
    assert set(SKYPILOT) <= SKYPILOT_FIELDS[""]
    assert set(resources) <= SKYPILOT_FIELDS["resources"]
    assert set(resources["job_recovery"]) == SKYPILOT_FIELDS["job_recovery"]
    for mount in SKYPILOT["file_mounts"].values():
        assert set(mount) <= SKYPILOT_FIELDS["mount"]
        assert mount["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED")
    if schemas := pytest.importorskip("sky.utils.schemas", reason="SkyPilot itself brings a hundred packages"):
        import jsonschema

        jsonschema.validate(SKYPILOT, schemas.get_task_schema())
        jsonschema.validate(resources, schemas.get_resources_schema())


# -- words ------------------------------------------------------------------------------------------------------------


def words_of_skypilot() -> list[str]:
    """Its line as a shell would have expanded it."""
    line = re.sub(r"\$\(.*?\)", "10.0.0.1", SKYPILOT["run"].replace("\\\n", ""))
    return shlex.split(re.sub(r"\$SKYPILOT_\w+", "1", line.replace("$CONFIG", SKYPILOT["envs"]["CONFIG"])))[1:]


COMMANDS = {
    "kubernetes": pod_of(JOBS["kubernetes"])["containers"][0]["args"],
    "kubeflow": KUBEFLOW["TrainJob"]["spec"]["trainer"]["args"],
    "skypilot": words_of_skypilot(),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_words_of_each_are_ours(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb, *words = COMMANDS[name]
    assert verb == "launch"
    assert build_command(words)[-len(words) :]
    at = next(i for i, word in enumerate(words) if word in LAUNCHED_VERBS)
    assert run(words[at], [*words[at + 1 :], "--print_config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["data"]["root"], settings["output_dir"]) == ("/data", "/runs/imagenet_subset")


def test_torchruns_own_parser_takes_the_words_of_skypilot() -> None:
    from torch.distributed.run import get_args_parser

    words = words_of_skypilot()[1:]
    options = get_args_parser().parse_args([*words[: words.index("train")], "-m", "alexnet_dist", "train"])
    assert (options.nnodes, options.node_rank, options.nproc_per_node) == ("1", 1, "1")
    assert (options.master_addr, options.rdzv_conf) == ("10.0.0.1", "timeout=900")


# -- what a failure means ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_what_would_come_again_ends_the_job_and_what_was_lost_does_not(name: str) -> None:
    rules = JOBS[name]["spec"]["podFailurePolicy"]["rules"]
    codes = {code: rule["action"] for rule in reversed(rules) for code in rule.get("onExitCodes", {}).get("values", ())}
    assert codes == {**dict.fromkeys(LASTING, "FailJob"), 143: "Ignore"}
    pod = pod_of(JOBS[name])
    assert pod["terminationGracePeriodSeconds"] > int(SAVE_SECONDS)
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    assert set(mounts) == {"/data", "/runs", "/dev/shm"}
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod["volumes"]}


def test_skypilot_recovers_from_what_was_lost() -> None:
    recovery = SKYPILOT["resources"]["job_recovery"]
    assert (recovery["recover_on_exit_codes"], recovery["max_restarts_on_errors"]) == (list(LOST), 0)


def test_slurm_gives_another_turn_to_what_was_lost() -> None:
    script = (LAUNCH / "slurm" / "train.sbatch").read_text()
    assert f"\n{' | '.join(map(str, LOST))})\n" in script


# -- who is who -------------------------------------------------------------------------------------------------------


def variables_of_kubeflow() -> dict[str, str]:
    """What Kubeflow Trainer 2.3 tells a pod (pkg/runtime/framework/plugins/torch/torch.go); the rank is the pod's."""
    name, trainer = KUBEFLOW["TrainJob"]["metadata"]["name"], KUBEFLOW["TrainJob"]["spec"]["trainer"]
    told = {"PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"])}
    told |= {"PET_MASTER_ADDR": f"{name}-node-0-0.{name}", "PET_MASTER_PORT": "29500"}
    return told | {entry["name"]: entry["value"] for entry in trainer["env"]}


def test_pods_of_a_plain_job_are_told_what_kubeflow_tells_its_own() -> None:
    job, service = JOB["Job"], JOB["Service"]
    (container,) = pod_of(job)["containers"]
    told = {entry["name"]: entry.get("value") for entry in container["env"]}
    name = job["metadata"]["name"]
    (rank,) = (entry["valueFrom"] for entry in container["env"] if entry["name"] == "PET_NODE_RANK")
    assert "job-completion-index" in rank["fieldRef"]["fieldPath"]
    assert told.pop("PET_NODE_RANK") is None
    assert told == variables_of_kubeflow() | {"PET_MASTER_ADDR": f"{name}-0.{service['metadata']['name']}"}
    assert pod_of(job)["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert told["PET_NNODES"] == str(job["spec"]["completions"]) == str(job["spec"]["parallelism"])
    assert told["PET_NPROC_PER_NODE"] == str(container["resources"]["limits"]["nvidia.com/gpu"])


@pytest.mark.slow  # two launchers and two processes
def test_two_pods_train_together(tmp_path: Path) -> None:
    """The environment of two pods, with one process each and no name server, and the manifest's own words."""
    port = str(find_free_port())
    here = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, "PET_NPROC_PER_NODE": "1"}
    mine = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    mine |= {"PYTHONFAULTHANDLER": "1"}
    places = {"imagenet_subset": "smoke", "/runs/imagenet_subset": str(tmp_path / "run"), "/data": str(tmp_path)}
    words = [places.get(word, word) for word in COMMANDS["kubeflow"]]
    quick = ["--train.max_steps", "2", "--data.workers", "0", *NOTHING_DRAWN]
    pods = [
        subprocess.Popen(
            [sys.executable, "-m", "alexnet_dist", *words, *quick],
            env={**os.environ, **variables_of_kubeflow(), **here, **mine, "PET_NODE_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = read_errors(pods, seconds=120)
    assert [pod.returncode for pod in pods] == [0, 0], said
    assert "2 x cpu (ddp)" in said[0]


# -- the image --------------------------------------------------------------------------------------------------------


def test_the_lock_file_has_what_the_package_asks_for_and_each_with_its_digest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    locked = {canonicalize_name(name): version for name, version, _ in entries}
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", "    --hash="))]
    assert len(lines) == len(locked)
    for extra in ("dali", "tensorboard", "wandb"):
        assert f"--extra {extra}" in text
        project["dependencies"] += extras[extra]
    for requirement in map(Requirement, project["dependencies"]):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_the_image_runs_as_the_user_of_the_manifests_and_is_made_of_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)
    for job in JOBS.values():
        context = pod_of(job)["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, int(user))
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for word in line.split()]
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    for name in [*copied, *re.findall(r"source=(\w+\.lock)", text)]:
        assert (ROOT / name).exists()
        assert f"!{name}" in allowed
