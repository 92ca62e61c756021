import shlex

import pytest
import yaml


def rendered(launched):
    """The JobSet, its Job, and its pod."""
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.startswith("# | kubectl apply --filename=-\n")
    jobset = yaml.safe_load(launched.stdout)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return jobset, replicated, job, job["template"]["spec"]


@pytest.mark.parametrize("verb", ["tpu", "gpu"])
def test_a_preemption_is_not_counted_and_every_other_failure_is(launch, verb):
    jobset, _, job, pod = rendered(launch("gke", verb, "--dry-run", "MAX_RESTARTS=5", "GRACE_SECONDS=60"))
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 5, "rules": [
        {"name": "preempted", "action": "RestartJobSetAndIgnoreMaxRestarts",
         "onJobFailureReasons": ["PodFailurePolicy"]}]}
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [75]}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"  # what podFailurePolicy requires
    assert pod["terminationGracePeriodSeconds"] == 60


@pytest.mark.parametrize("verb", ["tpu", "gpu"])
def test_pods_run_as_the_images_user_who_may_write_to_the_volume(launch, verb):
    _, _, _, pod = rendered(launch("gke", verb, "--dry-run"))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["fsGroup"] == 1000  # as in the Dockerfile


@pytest.mark.parametrize("verb", ["tpu", "gpu"])
def test_the_command_takes_the_shells_place_on_shared_storage(launch, verb):
    _, _, _, pod = rendered(launch("gke", verb, "--dry-run", 'COMMAND=rlhf-jax sft --a "$(hostname)" --b \'x: {y}\' #',
                                   "VOLUME_CLAIM=lustre", "MOUNT_FOLDER=/data", "RUN_FOLDER=/data/runs/a",
                                   "IMAGE=registry/rlhf:1"))
    (main,) = pod["containers"]
    assert main["image"] == "registry/rlhf:1"
    assert main["command"] == ["bash", "-c"]
    # $$(...) is how Kubernetes is kept from filling in a variable of its own
    assert main["args"] == ['exec env rlhf-jax sft --a "$$(hostname)" --b \'x: {y}\' #']
    assert {"name": "RUN_FOLDER", "value": "/data/runs/a"} in main["env"]
    assert {"name": "shared", "mountPath": "/data"} in main["volumeMounts"]
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "lustre"}} in pod["volumes"]


@pytest.mark.parametrize(("topology", "chips_per_host", "slices", "hosts"), [
    ("4x4", 4, 1, 4), ("2x2x4", 4, 3, 4), ("2x4", 8, 1, 1)])
def test_tpu(launch, topology, chips_per_host, slices, hosts):
    jobset, replicated, job, pod = rendered(launch(
        "gke", "tpu", "--dry-run", f"TOPOLOGY={topology}", f"CHIPS_PER_HOST={chips_per_host}", f"SLICES={slices}",
        "ACCELERATOR=tpu-v5p-slice"))
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert replicated["replicas"] == slices
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (hosts, hosts, "Indexed")
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
                                   "cloud.google.com/gke-tpu-topology": topology}
    (main,) = pod["containers"]
    assert main["resources"]["limits"] == {"google.com/tpu": chips_per_host}
    assert [variable["name"] for variable in main["env"]] == ["RUN_FOLDER"]  # JAX detects GKE's TPUs by itself


def test_gpu(launch):
    _, replicated, job, pod = rendered(launch("gke", "gpu", "--dry-run", "NAME=a-run", "NODES=3", "GPUS_PER_NODE=4",
                                              "ACCELERATOR=nvidia-b200"))
    assert replicated["replicas"] == 1
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (3, 3, "Indexed")
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-b200"}
    (main,) = pod["containers"]
    assert main["resources"]["limits"] == {"nvidia.com/gpu": 4}
    environment = {variable["name"]: variable for variable in main["env"]}
    assert environment["JAX_COORDINATOR_ADDRESS"]["value"] == f"a-run-{replicated['name']}-0-0.a-run:8476"
    assert environment["JAX_NUM_PROCESSES"]["value"] == "3"  # Kubernetes takes no numbers here
    assert environment["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == (
        "metadata.annotations['batch.kubernetes.io/job-completion-index']")


@pytest.mark.parametrize(("given", "words"), [
    ("CHIPS_PER_HOST=3", ["CHIPS_PER_HOST must divide the 16 chips of TOPOLOGY 4x4", "given was 3"]),
    ("TOPOLOGY=16", ["TOPOLOGY must be spelled like 4x4", "'16'"]),
    ("RUN_FOLDER=/elsewhere/run", ["RUN_FOLDER must lie in MOUNT_FOLDER", "'/elsewhere/run'"]),
    ("NODES=2", ["no parameter 'NODES'"]),
])
def test_bad_tpu_parameters(launch, given, words):
    launched = launch("gke", "tpu", "--dry-run", given)
    assert launched.returncode == 2
    assert all(word in launched.stderr for word in words)


def test_xpk(launch):
    launched = launch("gke", "xpk", "--dry-run", "SLICES=2", "CLUSTER=big")
    assert launched.returncode == 0, launched.stderr
    words = shlex.split(launched.stdout)
    assert words[:3] == ["xpk", "workload", "create"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[3:])
    assert flags["command"].startswith("exec env rlhf-jax iterate")
    assert flags["restart-on-exit-codes"] == "75"
    assert flags["env"] == "RUN_FOLDER=/mnt/shared/runs/my-run"
    assert (flags["num-slices"], flags["cluster"], flags["tpu-type"]) == ("2", "big", "v5litepod-16")
