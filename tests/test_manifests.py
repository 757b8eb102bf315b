"""The rendered folder: valid to the official schemas and tools, committed as it is rendered now."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps.errors import UsageError
from tests import argo_schemas
from tests.cluster_settings import CLUSTERS, EVENTS, SCHEDULE, cluster
from tests.conftest import ROOT
from tests.toy.pipeline import TOY
from workflows import SFT, Pipeline, Step, cli, documents, lint, manifests, settings


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """`sft render` in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def rendered(*arguments: object) -> Done:
        code = cli.main(["render", *map(str, arguments)])
        return Done(code, *capsys.readouterr())

    return rendered


@cache
def tree(name: str, pipeline: str = "sft") -> dict[str, str]:
    return manifests.tree(cluster(name), {"sft": SFT, "toy": TOY}[pipeline])


def every(name: str = "defaults", pipeline: str = "sft") -> list[dict[str, Any]]:
    """All objects of all folders, as YAML readers see them."""
    found = []
    for path, text in tree(name, pipeline).items():
        if not path.endswith("kustomization.yaml"):
            found += list(yaml.load_all(text, Loader=yaml.CSafeLoader))
    return found


def created(each: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The Workflows that a Sensor makes."""
    if each["kind"] == "Sensor":
        for trigger in each["spec"]["triggers"]:
            yield trigger["template"]["k8s"]["source"]["resource"]


@pytest.mark.parametrize("version", ["v3.7.18", "v4.1.2", "crd"])
@pytest.mark.parametrize("name", CLUSTERS)
def test_every_object_is_valid_to_the_official_schemas(name: str, version: str) -> None:
    for each in every(name):
        for made in (each, *created(each)):
            told = argo_schemas.faults(made, version)
            assert told == [], (made["kind"], made["metadata"]["name"])


@pytest.mark.parametrize("version", ["v3.7.18", "v4.1.2", "crd"])
def test_another_pipeline_is_valid_to_the_official_schemas(version: str) -> None:
    for each in every("defaults", "toy"):
        assert argo_schemas.faults(each, version) == []


def test_a_misspelt_field_and_a_number_for_text_are_not_valid() -> None:
    made = next(each for each in every() if each["kind"] == "WorkflowTemplate")
    made["spec"]["templates"][0]["retryStrategy"]["limits"] = "3"
    made["spec"]["arguments"]["parameters"][1]["value"] = 0.9
    for version in ("v3.7.18", "v4.1.2", "crd"):
        told = " ".join(argo_schemas.faults(made, version))
        assert "limits" in told
        assert "0.9" in told
    bus = next(each for each in every("openshift") if each["kind"] == "EventBus")
    bus["spec"]["jetstream"]["replica"] = 1
    assert "replica" in argo_schemas.faults(bus, "v4.1.2")[0]


def test_argo_lint_finds_nothing(tmp_path: Path) -> None:
    if not shutil.which("argo"):
        pytest.skip("argo is not on the PATH")
    for name in CLUSTERS:
        for path, text in tree(name).items():
            if "workflow" in path:
                (tmp_path / path.replace("/", "-")).write_text(text)
        told = subprocess.run(
            ["argo", "lint", "--offline", tmp_path], capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("name", ["openshift", "cluster scope"])
def test_kustomize_builds_every_folder(name: str, tmp_path: Path) -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on the PATH")
    texts = tree(name)
    manifests.write(tmp_path, texts)
    base = {
        (each["kind"], each["metadata"]["name"])
        for path, text in texts.items()
        if path.startswith("base/") and not path.endswith("kustomization.yaml")
        for each in yaml.safe_load_all(text)
    }
    for path in texts:
        if not path.endswith("kustomization.yaml") or path.startswith("components/"):
            continue
        folder = tmp_path / path.removesuffix("kustomization.yaml")
        built = subprocess.run(
            ["kubectl", "kustomize", folder], capture_output=True, text=True, check=False
        )
        assert built.returncode == 0, built.stderr
        found = {
            (each["kind"], each["metadata"]["name"]) for each in yaml.safe_load_all(built.stdout)
        }
        if path.startswith(("base/", "overlays/")) and "single-node" not in path:
            assert base <= found
            assert (found != base) is path.startswith("overlays/")


def test_the_committed_manifests_are_those_of_the_settings_and_the_code() -> None:
    texts = manifests.tree(settings.read(ROOT / "sft.yaml", {}))
    folder = ROOT / "manifests"
    there = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.yaml")}
    changed = sorted(
        {*texts, *there} - {name for name, text in texts.items() if there.get(name) == text}
    )
    assert not changed, f"run `make manifests` to renew {', '.join(changed)}"


def test_rendering_twice_gives_the_same_bytes() -> None:
    for name in CLUSTERS:
        assert manifests.tree(cluster(name)) == tree(name)


# Access


def roles(name: str) -> dict[str, list[dict[str, Any]]]:
    found = [each for each in every(name) if each["kind"] in ("Role", "ClusterRole")]
    return {each["metadata"]["name"]: each["rules"] for each in found}


EXECUTOR = {
    "apiGroups": ["argoproj.io"],
    "resources": ["workflowtaskresults"],
    "verbs": ["create", "patch"],
}


def test_roles_allow_no_more_than_is_needed() -> None:
    assert roles("local") == {"sft-run": [EXECUTOR]}
    assert roles("defaults")["sft-run"] == [EXECUTOR]
    claims = roles("a claim a run")["sft-claims"]
    assert claims[0] == EXECUTOR
    assert claims[1:] == [
        {
            "apiGroups": [""],
            "resources": ["persistentvolumeclaims"],
            "verbs": ["get", "create", "patch"],
        }
    ]
    assert roles("openshift")["sft-sensor"] == [
        {"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": ["create"]}
    ]
    assert "sft-event-sources" not in roles("openshift")
    for name in CLUSTERS:
        for rules in roles(name).values():
            said = [word for rule in rules for part in rule.values() for word in part]
            assert "*" not in said
            assert not {"secrets", "pods/exec", "roles", "rolebindings"} & set(said)


def test_a_step_that_submits_a_trainjob_may_do_what_following_one_takes() -> None:
    assert {
        (group, resource): rule["verbs"]
        for rule in roles("defaults")["sft-train"][1:]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    } == {
        ("trainer.kubeflow.org", "trainjobs"): ["create", "list", "watch", "delete"],
        ("trainer.kubeflow.org", "trainingruntimes"): ["list"],
        ("", "pods"): ["get", "list"],
        ("", "pods/log"): ["get"],
        ("", "events"): ["list"],
        ("kueue.x-k8s.io", "workloads"): ["list"],
    }
    (role,) = (each for each in every("a namespace") if each["kind"] == "ClusterRole")
    assert role["rules"] == [
        {
            "apiGroups": ["trainer.kubeflow.org"],
            "resources": ["clustertrainingruntimes"],
            "verbs": ["list"],
        },
        {
            "apiGroups": ["apiextensions.k8s.io"],
            "resources": ["customresourcedefinitions"],
            "verbs": ["get"],
            "resourceNames": ["trainjobs.trainer.kubeflow.org"],
        },
    ]
    (worker,) = (
        each
        for each in every()
        if (each["kind"], each["metadata"]["name"]) == ("ServiceAccount", "sft-train-worker")
    )
    assert worker["automountServiceAccountToken"] is False
    assert "sft-train-worker" not in roles("defaults")


def test_without_a_namespace_only_what_would_have_to_name_one_is_left_out() -> None:
    (binding,) = (each for each in every("a namespace") if each["kind"] == "ClusterRoleBinding")
    subject = {"kind": "ServiceAccount", "name": "sft-train", "namespace": "sft"}
    assert binding["subjects"] == [subject]
    there, missing = (
        {(each["kind"], each["metadata"]["name"]) for each in every(name)}
        for name in ("a namespace", "defaults")
    )
    assert there - missing == {
        ("Namespace", "sft"),
        ("ClusterRoleBinding", "sft-training-runtimes-sft"),
    }
    assert "namespace:" not in "".join(tree("defaults").values())


def test_two_teams_of_one_cluster_do_not_take_the_role_from_one_another() -> None:
    for namespace in ("team-a", "b" * 63):
        folder = manifests.cluster(cluster(namespace=namespace))
        role, binding = folder["access.yaml"]
        assert role["metadata"]["name"] == binding["roleRef"]["name"] == "sft-training-runtimes"
        assert binding["metadata"]["name"] == f"sft-training-runtimes-{namespace}"
        assert binding["subjects"][0]["namespace"] == namespace
        lint.check([role, binding])


def test_a_pipeline_that_trains_nothing_may_do_nothing_with_trainjobs() -> None:
    toy = every("a namespace", "toy")
    accounts = [each["metadata"]["name"] for each in toy if each["kind"] == "ServiceAccount"]
    assert set(accounts) == {"sft-run"}
    text = json.dumps(toy)
    assert "trainer.kubeflow.org" not in text
    assert "sft-train-worker" not in text
    assert "kube-root-ca.crt" not in text


@pytest.mark.parametrize("name", ["defaults", "openshift", "scheduling"])
def test_the_runtime_of_trainjobs_ends_all_workers_with_the_first_that_fails(name: str) -> None:
    (made,) = (each for each in every(name) if each["kind"] == "ClusterTrainingRuntime")
    jobset = made["spec"]["template"]["spec"]
    (node,) = jobset["replicatedJobs"]
    job, pod = node["template"]["spec"], node["template"]["spec"]["template"]["spec"]
    assert jobset["failurePolicy"] == {"maxRestarts": 0}
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert "ttlSecondsAfterFinished" not in json.dumps(made)
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "sft-train" in container["image"]
    assert ("fsGroup" in pod["securityContext"]) is (name != "openshift")
    assert made["spec"]["mlPolicy"] == {"numNodes": 1, "torch": {}}
    assert "namespace" not in made["metadata"]


def test_every_account_that_a_pod_names_is_there_with_a_binding_to_its_own_role() -> None:
    for name in CLUSTERS:
        objects = every(name)
        accounts = {
            each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount"
        }
        named = set()
        for each in objects:
            spec = each.get("spec", {})
            named.add(spec.get("serviceAccountName"))
            named.add(spec.get("template", {}).get("serviceAccountName"))
            named |= {one.get("serviceAccountName") for one in spec.get("templates", [])}
            if each["kind"] == "RoleBinding":
                assert each["roleRef"]["name"] == each["metadata"]["name"]
                assert [one["name"] for one in each["subjects"]] == [each["roleRef"]["name"]]
        if cluster(name).launcher == "trainjob":
            # Its name goes to the train step, for the TrainJob's pods.
            (worker,) = accounts - named
            assert worker.endswith("sft-train-worker")
            named.add(worker)
        assert named - {None} == accounts, name


# Networks


def policies(name: str, **more: Any) -> dict[str, dict[str, Any]]:
    objects = manifests.part(cluster(name, **more), "hardened")
    return {
        each["metadata"]["name"]: each["spec"]
        for each in objects
        if each["kind"] == "NetworkPolicy"
    }


def test_workers_of_a_trainjob_reach_one_another_on_any_port() -> None:
    worker = policies("defaults")["sft-train-worker"]
    pods = worker["podSelector"]
    assert pods["matchLabels"]["app.kubernetes.io/component"] == "train-worker"
    assert worker["ingress"] == [{"from": [{"podSelector": pods}]}]
    assert {"to": [{"podSelector": pods}]} in worker["egress"]
    assert "sft-train-worker" not in policies("local")


def opened(policy: dict[str, Any]) -> set[int]:
    return {port["port"] for rule in policy["egress"] for port in rule.get("ports", [])}


def test_pods_of_a_run_reach_nothing_but_what_their_step_needs() -> None:
    found = policies("defaults")
    closed = found.pop("sft-default-deny")
    assert closed["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(closed)
    pods = [*(step.name for step in SFT.steps), "train-worker", "summary"]
    assert set(found) == {f"sft-{name}" for name in pods}
    assert opened(found["sft-dataset"]) == {53, 80, 443, 6443, 9000}
    assert opened(found["sft-summary"]) == {53, 443, 6443}
    for policy in found.values():
        labels = policy["podSelector"]["matchLabels"]
        assert labels["app.kubernetes.io/component"]
        assert labels["app.kubernetes.io/part-of"] == "sft"


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_of_a_run_has_its_policy(name: str) -> None:
    objects = [
        *manifests.part(cluster(name), "hardened"),
        *(each for group in manifests.cluster(cluster(name)).values() for each in group),
    ]
    selected = [
        each["spec"]["podSelector"]["matchLabels"]
        for each in objects
        if each["kind"] == "NetworkPolicy" and "egress" in each["spec"]
    ]
    (spec,) = (each["spec"] for each in objects if each["kind"].endswith("WorkflowTemplate"))
    for template in spec["templates"]:
        if "dag" not in template:
            labels = {**spec["podMetadata"]["labels"], **template["metadata"]["labels"]}
            assert any(each.items() <= labels.items() for each in selected), template["name"]


def test_a_proxy_and_openshifts_dns_are_reached() -> None:
    found = policies("proxy and certificates")
    assert all({3128, 3129} <= opened(p) for n, p in found.items() if n != "sft-default-deny")
    plain = {"proxy": {"http": "http://proxy", "https": "http://proxy"}}
    assert 80 in opened(policies("defaults", **plain)["sft-evaluate"])
    assert 5353 in opened(policies("openshift")["sft-train"])
    network = {
        "ports": {"train": [5000]},
        "allow_cidrs": ["10.0.0.0/8"],
        "api_cidrs": ["192.0.2.1/32"],
    }
    found = policies("defaults", network=network)
    assert 8080 in opened(found["sft-register"])  # what is said of one step closes no other
    own = found["sft-train"]
    assert opened(own) == {53, 443, 5000, 6443}
    _, api, allowed = own["egress"]
    assert {"ipBlock": {"cidr": "192.0.2.1/32"}} in api["to"]
    assert {"ipBlock": {"cidr": "10.0.0.0/8"}} in allowed["to"]
    assert [port["port"] for port in allowed["ports"]] == [5000]


# What is in the folder


def test_what_only_an_administrator_may_apply_is_in_a_folder_of_its_own() -> None:
    texts = tree("cluster scope")
    for path, text in texts.items():
        kinds = {each["kind"] for each in yaml.safe_load_all(text)}
        apart = kinds & {
            "Namespace",
            "ClusterRole",
            "ClusterRoleBinding",
            "ClusterWorkflowTemplate",
        }
        assert not apart or path.startswith("cluster/"), path
    (made,) = yaml.safe_load_all(texts["cluster/workflow-template.yaml"])
    assert made["kind"] == "ClusterWorkflowTemplate"
    assert "namespace" not in made["metadata"]
    (cron,) = yaml.safe_load_all(texts["components/schedule/cron-workflow.yaml"])
    reference = {"name": "sft-pipeline", "clusterScope": True}
    assert cron["spec"]["workflowSpec"]["workflowTemplateRef"] == reference
    (namespace,) = yaml.safe_load_all(texts["cluster/namespace.yaml"])
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert "cluster/kustomization.yaml" not in manifests.tree(cluster("local"))


def test_one_node_without_a_gpu_has_an_overlay_of_its_own() -> None:
    for name in ("defaults", "the service account", "cluster scope"):
        objects = manifests.part(cluster(name), "single-node")
        kinds = {each["kind"]: each for each in objects}
        assert kinds["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteOnce"]
        spec = kinds["WorkflowTemplate"]["spec"]
        values = {each["name"]: each.get("value") for each in spec["arguments"]["parameters"]}
        assert values["phase_02_train_man_gpu"] == values["phase_03_eval_opt_gpu"] == "0"
        assert values["phase_02_train_opt_launcher"] == "local"
        assert not [each for each in spec["templates"] if "tolerations" in each]


def test_one_node_takes_the_teams_parameters_but_not_its_sizes_and_those_of_trainjobs() -> None:
    team = {"train_memory": "128Gi", "workers": 8, "runtime": "training-hub", "epochs": 3}
    objects = manifests.part(cluster(parameters=team), "single-node")
    (spec,) = (each["spec"] for each in objects if each["kind"] == "WorkflowTemplate")
    alone = {each["name"]: each.get("value") for each in spec["arguments"]["parameters"]}
    assert alone["phase_02_train_opt_memory"] == "4Gi"
    assert alone["phase_02_train_man_epochs"] == "3"
    assert alone["phase_02_train_man_workers"] == "4"  # its default, which counts for nothing


def test_a_prefix_is_before_every_name_and_the_namespace_in_every_object() -> None:
    for each in every("namespace and prefix"):
        name = each["metadata"]["name"]
        if each["kind"] == "Namespace":
            assert name == "team-a"
            continue
        if not each["kind"].startswith("Cluster"):  # of no namespace
            assert each["metadata"]["namespace"] == "team-a"
        assert name.startswith("dev-") or (each["kind"], name) == ("EventBus", "default")
        for made in created(each):
            assert made["spec"]["workflowTemplateRef"]["name"] == "dev-sft-pipeline"


def test_parts_of_the_folder_are_printed_as_yaml_or_json(
    tmp_path: Path, render: Callable[..., Done]
) -> None:
    (tmp_path / "sft.yaml").write_text(json.dumps({"schedule": SCHEDULE, "events": EVENTS}))
    text = render("--stdout").stdout
    assert render("--stdout", "--output=json").stdout == documents.to_json(yaml.safe_load_all(text))
    kinds = [each["kind"] for each in yaml.safe_load_all(text)]
    assert {"WorkflowTemplate", "CronWorkflow", "Sensor"} <= set(kinds)
    bare = render("--stdout", "--overlay=base").stdout
    assert "Sensor" not in bare
    assert "WorkflowTemplate" in bare
    assert not list(tmp_path.glob("manifests"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--stdout", "--overlay=none"], "'none' is none of base, cluster, trainer, schedule"),
        (["--stdout", "--overlay=events"], "--overlay events: the settings have no events"),
        (
            ["--stdout", "--overlay=cluster", "--launcher=local", "--namespace="],
            "nothing belongs to",
        ),
        (
            ["--stdout", "--overlay=trainer", "--launcher=local"],
            "--overlay trainer: with these settings there are no TrainJobs",
        ),
        (["--stdout", "-o", "xml"], "--output: 'xml' is neither yaml nor json"),
        (["--overlay=base"], "--overlay: only with --stdout"),
        (["--settings=nowhere.yaml"], "nowhere.yaml: No such file or directory"),
        (["--set", "mutex"], "--set: 'mutex' is not NAME=VALUE"),
        (["--set", "claims=[a"], "--set claims: while parsing a flow sequence, expected"),
        (["--set", "gpu.resourse=x/y"], "sft: --set gpu.resourse is not a setting; did you mean"),
        (["--user", "root", "--set", "scratch=x"], "sft: --user: "),
        (["--set", "labels={a: b c}"], "sft: --set labels.a: should be the value of a label"),
        (["--stdout", "--out", "x"], "--stdout and --out: leave one of them out"),
        (["--namespase", "x"], "--namespase is not a flag; did you mean --namespace?"),
        (["--out", "sft.yaml"], "--out: "),
    ],
)
def test_a_mistake_is_told_with_exit_code_64_and_nothing_is_written(
    arguments: list[str], told: str, tmp_path: Path, render: Callable[..., Done]
) -> None:
    (tmp_path / "sft.yaml").write_text("namespace: team-a\n")
    done = render(*arguments)
    assert done.returncode == 64, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["sft.yaml"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("namespace: team-a", ["cluster", "trainer", "base"]),
        ("{}", ["cluster", "trainer", "base"]),
        ("launcher: local", ["base"]),
    ],
)
def test_what_is_to_be_applied_is_told_in_its_order(
    text: str, parts: list[str], tmp_path: Path, render: Callable[..., Done]
) -> None:
    (tmp_path / "sft.yaml").write_text(text)
    told = render("--out", "a folder").stderr
    commands = [f"kubectl apply --server-side -k 'a folder/{part}'" for part in parts]
    first, more, alone, *rest = told.splitlines()
    assert first == f"sft: a folder is written; {', then '.join(commands)}"
    assert more == "sft: in place of base, the same and more: overlays/hardened"
    way = "after cluster" if "namespace" in text else "nothing but"
    command = "kubectl apply --server-side -k 'a folder/overlays/single-node'"
    assert alone == f"sft: on one node without a GPU, {way}: {command}"
    bound = [line for line in rest if "--serviceaccount=NAMESPACE:sft-train" in line]
    assert len(bound) == len(rest) == (text == "{}")
    folders = {path.parent.name for path in tmp_path.glob("a folder/*/kustomization.yaml")}
    assert folders == set(parts)


def test_the_documented_ways_to_apply_are_among_those_that_are_told(
    tmp_path: Path, render: Callable[..., Done]
) -> None:
    (tmp_path / "sft.yaml").write_bytes((ROOT / "sft.yaml").read_bytes())
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/argo.md").read_text()
    documented = re.findall(r"^kubectl apply --server-side -k (\w+)/(\S+)", text, re.MULTILINE)
    assert {"cluster", "trainer", "base", "overlays/single-node"} <= {
        part for _, part in documented
    }
    told = render().stderr
    for _, part in documented:
        assert re.search(rf"[ /]{part}[,\s]", told), part


def test_refused_settings_leave_the_folder_as_it_was(
    tmp_path: Path, render: Callable[..., Done]
) -> None:
    (tmp_path / "sft.yaml").write_text("namespace: team-a\n")
    assert render().returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    (tmp_path / "sft.yaml").write_text("namespace: team-b\n")
    refused = render("--set", "storage.access_mode=ReadWriteOnce")
    assert refused.returncode == 64
    assert "ReadWriteOnce serves one node" in refused.stderr
    (tmp_path / "sft.yaml").write_bytes(before[tmp_path / "sft.yaml"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")} == before


def test_files_that_are_no_longer_rendered_go_and_those_of_others_stay(
    tmp_path: Path, render: Callable[..., Done]
) -> None:
    (tmp_path / "sft.yaml").write_text(json.dumps({"schedule": SCHEDULE}))
    assert render("--out", "made").returncode == 0
    made = tmp_path / "made"
    assert (made / "overlays/schedule/kustomization.yaml").exists()
    (made / "base/mine.yaml").write_text("kind: Secret\n")
    (made / "base/binary.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "sft.yaml").write_text("{}")
    assert render("--out", "made").returncode == 0
    assert not list(made.rglob("*schedule*"))
    assert (made / "base/mine.yaml").exists()
    assert (made / "base/binary.yaml").exists()


def test_flags_win_over_the_file_and_set_reaches_everything(
    tmp_path: Path, render: Callable[..., Done]
) -> None:
    (tmp_path / "sft.yaml").write_text("namespace: from-file\nimages: {registry: quay.io/file}\n")
    done = render(
        *("--stdout", "--namespace", "from-flag", "--name-prefix=x-"),
        *("--set", "images.tag=1.2", "--set", "claims=[one, two]"),
        *("--set", "storage.create=false", "--set", "parameters={epochs: 3}"),
    )
    assert done.returncode == 0, done.stderr
    template = next(yaml.safe_load_all(done.stdout))
    assert template["metadata"]["namespace"] == "from-flag"
    assert template["metadata"]["name"] == "x-sft-pipeline"
    images = {
        each["container"]["image"] for each in template["spec"]["templates"] if "container" in each
    }
    assert "quay.io/file/sft-train:1.2" in images
    assert "PersistentVolumeClaim" not in done.stdout
    assert "claimName: two" in done.stdout


# The checks that Hera does not make


def dag(made: dict[str, Any]) -> dict[str, Any]:
    templates = {each["name"]: each for each in made["spec"]["templates"]}
    found: dict[str, Any] = templates[made["spec"]["entrypoint"]]["dag"]
    return found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda made: made["metadata"].update(name="A_b"), "not a name of at most 57"),
        (lambda made: made["metadata"].update(name="x" * 58), "not a name of at most 57"),
        (lambda made: made["spec"].update(entrypoint="nowhere"), "there is no template 'nowhere'"),
        (lambda made: made["spec"]["hooks"]["exit"].update(template="gone"), "no template 'gone'"),
        (lambda made: made["spec"]["templates"][0].update(name="1st"), "is not a template's name"),
        (lambda made: made["spec"]["volumes"].pop(0), "mounts runs, which is no volume"),
        (
            lambda made: dag(made)["tasks"].pop(0),
            "train depends on dataset-download, which is no task",
        ),
        (lambda made: made["spec"]["arguments"]["parameters"].pop(0), "there is no parameter"),
        (
            lambda made: made["spec"]["templates"].append(made["spec"]["templates"][0]),
            "two templates have one name",
        ),
        (lambda made: made["spec"].update(big="x" * 1_000_000), "larger than 1,000,000 bytes"),
    ],
)
def test_what_would_fail_in_the_cluster_is_told_before_it_is_written(
    change: Any, told: str
) -> None:
    made = next(one for one in every() if one["kind"] == "WorkflowTemplate")
    lint.check([made])
    change(made)
    with pytest.raises(UsageError, match=told):
        lint.check([made])


def test_a_pipeline_whose_template_is_no_name_is_refused() -> None:
    step = TOY.steps[0]
    wrong = Step(step.params, step.phase, step.image, step.module, template="snake_case")
    with pytest.raises(UsageError, match="'snake_case' is not a template's name"):
        manifests.tree(cluster(), Pipeline("toy", "A toy.", (wrong,)))
