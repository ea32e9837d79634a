"""The JobSet and the image for Google Kubernetes Engine say what they must."""

import json
import math

import pytest
import yaml

from configs import pretrain
from tests.conftest import ROOT
from tests.launch.world import LAUNCH


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.fixture(scope="module")
def container(job):
    return job["template"]["spec"]["containers"][0]


def test_the_jobset_has_a_pod_for_every_machine_of_the_slice(jobset, job, container):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    assert job["parallelism"] == job["completions"] == chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["completionMode"] == "Indexed"


def test_the_jobset_starts_all_again_together_but_not_after_a_user_s_error(jobset, job, container):
    assert job["backoffLimit"] == 0 and job["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["values"], codes["containerName"]) == ("FailJob", [2], container["name"])
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_the_jobset_has_time_to_save_to_a_folder_that_all_see(job, container):
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= 300
    (mount,), (volume,) = container["volumeMounts"], pod["volumes"]
    assert mount["name"] == volume["name"]
    paths = [arg.partition("=")[2] for arg in container["args"] if "/" in arg and "configs/" not in arg]
    paths += [env["value"] for env in container["env"]]
    assert len(paths) == 3 and all(path.startswith(mount["mountPath"] + "/") for path in paths)
    options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert {"metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0"} <= set(options)
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}


def test_the_image_runs_the_one_line_with_the_jobset_s_flags(container):
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    entry = next(line for line in lines if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT")) == ["python", "-m", "maskvlm_jax.main", "--coordinator=auto"]
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    structure = next(arg for arg in container["args"] if arg.startswith("--config=")).partition(":")[2]
    assert pretrain.get_config(structure).data.source == "array_record"
