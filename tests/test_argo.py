"""The rendered WorkflowTemplate, run: its four real steps, its parameters, retries, and outputs."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from steps import flags
from steps.params import POD, is_secret
from steps.train.params import WorkerPod
from tests.argo_controller import ArgoError, Controller, Outcome, again
from tests.cluster_settings import CLUSTERS, cluster
from tests.servers.model_registry import ModelRegistryServer
from tests.test_sft import make_task
from tests.test_training_cpu import write_chats
from tests.tiny import CHATML, make_model
from tests.toy.count import CountParams
from tests.toy.pipeline import TOY
from workflows import SFT, Pipeline, Step
from workflows.argo import RETRY_WHEN, workflow_template

NAME = "sft-x7k2p"
AWKWARD = 'He said "hi" \\ \'bye\'\n\ttab {"a": {"b": [1, "$x"]}}  é 漢 😀 %s -- `id` $HOME * ;  '


def template(name: str = "defaults", pipeline: Pipeline = SFT, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = workflow_template(cluster(name, **more), pipeline).to_dict()
    return found


@cache
def rendered(name: str) -> dict[str, Any]:
    return template(name)


def templates(name: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in rendered(name)["spec"]["templates"]}


def record(folder: Path, step: str, name: str = NAME) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"volume/runs/{name}/{step}.json").read_text())
    return found


# The real steps, once: every parameter that one pod can serve has a value that is not its default.


@dataclass
class Run:
    folder: Path
    given: dict[str, str]
    outcome: Outcome
    registry: ModelRegistryServer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("argo")
    chat_template = folder / "chat.jinja"
    chat_template.write_text(CHATML)
    with ModelRegistryServer() as registry:
        given = {
            "phase_01_dataset_man_data_uri": str(write_chats(folder / "chats.jsonl")),
            "phase_01_dataset_man_data_split": "0.8",
            "phase_01_dataset_opt_hf_token": "hf_dataset",
            "phase_01_dataset_opt_subset": "36",
            "phase_01_dataset_opt_seed": "5",
            "phase_01_dataset_opt_s3_auth": "anonymous",
            "phase_01_dataset_opt_on_invalid": "skip",
            "phase_01_dataset_opt_chat_schema": "messages",
            "phase_01_dataset_opt_deduplicate": "none",
            "phase_02_train_man_train_batch": "8",
            "phase_02_train_man_epochs": "2",
            "phase_02_train_man_gpu": "0",
            "phase_02_train_man_model": str(make_model(folder / "base", "llama")),
            "phase_02_train_man_tokens": "2000",
            "phase_02_train_opt_cpu": "500m",
            "phase_02_train_opt_memory": "3Gi",
            "phase_02_train_opt_env_vars": "TEAM=a",
            "phase_02_train_opt_hf_token": "hf_train",
            "phase_02_train_opt_pull_secret": '{"auths": {"quay.io": {"auth": "eA=="}}}',
            "phase_02_train_opt_learning_rate": "0.01",
            "phase_02_train_opt_lr_warmup": "1",
            "phase_02_train_opt_lr_scheduler": "linear",
            "phase_02_train_opt_max_seq_len": "400",
            "phase_02_train_opt_save_epoch": "false",
            "phase_02_train_opt_save_full_state": "true",
            "phase_02_train_opt_save_samples": "8",
            "phase_02_train_opt_seed": "7",
            "phase_02_train_opt_chat_template": str(chat_template),
            "phase_02_train_opt_checkpoint_minutes": "5",
            "phase_03_eval_man_tasks": json.dumps([str(make_task(folder, "colours"))]),
            "phase_03_eval_opt_hf_token": "hf_evaluate",
            "phase_03_eval_opt_batch": "2",
            "phase_03_eval_opt_gen_kwargs": '{"do_sample": false}',
            "phase_03_eval_opt_limit": "3",
            "phase_03_eval_opt_log_samples": "False",
            "phase_03_eval_opt_model_args": '{"dtype": "float32"}',
            "phase_03_eval_opt_verbosity": "WARNING",
            "phase_03_eval_opt_baseline": "all",
            "phase_03_eval_opt_heldout_limit": "2",
            "phase_03_eval_opt_gpu": "0",
            "phase_03_eval_opt_cpu": "1500m",
            "phase_03_eval_opt_memory": "2Gi",
            "phase_04_registry_man_address": registry.url,
            "phase_04_registry_man_author": 'Ann "the author" O\'Neill',
            "phase_04_registry_man_name": "chat/é 😀",
            "phase_04_registry_man_version": "2.1.0-rc.1",
            "phase_04_registry_opt_description": AWKWARD,
            "phase_04_registry_opt_format_name": "safe tensors",
            "phase_04_registry_opt_format_version": "0x1F",
            "phase_04_registry_opt_port": "8081",
            "phase_04_registry_opt_on_conflict": "increment",
        }
        controller = Controller(template("local"), folder)
        # Its pods are lost twice: once before it begins, once in the midst of training.
        controller.lost["train"] = [(-1, "pod deleted")]
        controller.killed["train"] = ["checkpoint after step 2"]
        outcome = controller.submit(given, NAME)
        yield Run(folder, given, outcome, registry)


def test_the_four_steps_run_and_their_results_are_the_workflows_outputs(run: Run) -> None:
    failed = {name: found[-1].log for name, found in run.outcome.attempts.items()}
    assert run.outcome.phase == "Succeeded", failed
    assert set(run.outcome.nodes.values()) == {"Succeeded"}
    outputs = run.outcome.outputs
    assert outputs["dataset-rows-train"] == "29"
    assert outputs["dataset-rows-eval"] == "7"
    assert outputs["train-model"] == str(run.folder / f"volume/runs/{NAME}/model")
    assert float(outputs["train-loss-last"]) > 0
    scores = record(run.folder, "evaluate")["metrics"]
    assert float(outputs["evaluate-heldout-loss"]) == pytest.approx(scores["heldout_loss"], 1e-4)
    assert float(outputs["evaluate-heldout-loss-base"]) > float(outputs["evaluate-heldout-loss"])
    assert outputs["register-status"] == "registered"
    assert outputs["register-version"] == "2.1.0-rc.1"
    assert outputs["register-uri"] == f"pvc://sft-runs/runs/{NAME}/model"
    assert outputs["register-id"] == run.registry.model_versions[0]["id"]
    assert run.outcome.title == f"Fine-tune {run.folder / 'base'}"


def test_a_train_pod_that_is_lost_and_one_that_is_killed_are_made_again_and_go_on(run: Run) -> None:
    deleted, killed, last = run.outcome.attempts["train"]
    assert (deleted.exit_code, killed.exit_code, last.exit_code) == (-1, 137, 0)
    assert "checkpoint after step 2" in killed.log
    assert "going on after step" in last.log


CLUSTER_ONLY = {
    "phase_02_train_man_workers",
    "phase_02_train_opt_annotations",
    "phase_02_train_opt_cluster_auth",
    "phase_02_train_opt_deadline",
    "phase_02_train_opt_fsdp_sharding",
    "phase_02_train_opt_gpu_resource",
    "phase_02_train_opt_labels",
    "phase_02_train_opt_node_selector",
    "phase_02_train_opt_num_procs",
    "phase_02_train_opt_queue",
    "phase_02_train_opt_runtime",
    "phase_02_train_opt_shm_size",
    "phase_02_train_opt_tolerations",
    "phase_02_train_opt_trainer_api",
    "phase_02_train_opt_use_liger",
}
# The launcher is the settings' to say, for the shape of the pod follows it.
GIVEN_OTHERWISE = {
    "phase_01_dataset_opt_eval_uri",
    "phase_02_train_opt_launcher",
    "phase_03_eval_opt_model",
}


def test_every_parameter_arrives_in_its_steps_record(run: Run) -> None:
    known = {parameter.name for parameter in SFT.parameters()}
    assert known - CLUSTER_ONLY - GIVEN_OTHERWISE == set(run.given)
    for parameter in SFT.parameters():
        if parameter.name not in run.given:
            continue
        shown = record(run.folder, parameter.step.name)["parameters"][parameter.field_name]
        text = run.given[parameter.name]
        if is_secret(parameter.field) or parameter.field_name == "env_vars":
            assert shown == "**********", parameter.name
            assert text not in (run.folder / f"volume/runs/{NAME}/train.json").read_text()
            continue
        assert shown != parameter.field.default, parameter.name
        kind = type(shown)
        assert shown == (text if kind is str else json.loads(text.lower())), parameter.name
    assert record(run.folder, "train")["parameters"]["launcher"] == "local"


def test_resources_of_the_pods_are_those_of_the_parameters(run: Run) -> None:
    for step, phase, memory, cpu in (
        ("train", "phase_02_train", "3Gi", "500m"),
        ("evaluate", "phase_03_eval", "2Gi", "1500m"),
    ):
        patch = run.outcome.attempts[step][-1].patch
        main = {each["name"]: each for each in patch["containers"]}["main"]
        assert main["resources"] == {
            "requests": {"cpu": cpu, "memory": memory},
            "limits": {"memory": memory, "nvidia.com/gpu": "0"},
        }, phase


def test_the_exit_handler_prints_the_scores_and_where_the_model_is(run: Run) -> None:
    (printed,) = run.outcome.attempts["summary"]
    assert printed.log.startswith("Succeeded: ")
    assert "held-out loss" in printed.log
    assert f"pvc://sft-runs/runs/{NAME}/model 2.1.0-rc.1" in printed.log


def test_evaluate_is_an_entrypoint_for_a_model_of_ones_own(run: Run) -> None:
    given = {
        "phase_01_dataset_man_data_uri": "-",
        "phase_03_eval_opt_model": run.given["phase_02_train_man_model"],
        "phase_03_eval_man_tasks": run.given["phase_03_eval_man_tasks"],
    }
    controller = Controller(template("local"), run.folder)
    outcome = controller.submit(given, "scores", entrypoint="evaluate")
    assert outcome.phase == "Succeeded", outcome.attempts["evaluate"][-1].log
    assert set(outcome.nodes) == {"evaluate", "summary"}
    shown = record(run.folder, "evaluate", "scores")
    assert shown["parameters"]["model"] == given["phase_03_eval_opt_model"]
    assert "colours.acc" in shown["metrics"]
    registered = controller.submit(given, "scores", entrypoint="register")
    assert registered.phase == "Succeeded", registered.attempts["register"][-1].log
    assert record(run.folder, "register", "scores")["status"] == "skipped"


def test_parameters_that_only_a_cluster_can_serve_are_refused_by_name_and_not_retried(
    run: Run, tmp_path: Path
) -> None:
    given = {
        "phase_01_dataset_man_data_uri": run.given["phase_01_dataset_man_data_uri"],
        "phase_01_dataset_opt_eval_uri": str(write_chats(tmp_path / "eval.jsonl", 4)),
        "phase_02_train_man_model": run.given["phase_02_train_man_model"],
        "phase_02_train_man_workers": "2",
        "phase_02_train_opt_annotations": "a=b",
        "phase_02_train_opt_cluster_auth": "kubeconfig",
        "phase_02_train_opt_deadline": "1h",
        "phase_02_train_opt_fsdp_sharding": "NO_SHARD",
        "phase_02_train_opt_gpu_resource": "amd.com/gpu",
        "phase_02_train_opt_labels": "a=b",
        "phase_02_train_opt_node_selector": "a=b",
        "phase_02_train_opt_num_procs": "3",
        "phase_02_train_opt_queue": "gpus",
        "phase_02_train_opt_runtime": "mine",
        "phase_02_train_opt_shm_size": "1Gi",
        "phase_02_train_opt_tolerations": '[{"key": "gpu"}]',
        "phase_02_train_opt_trainer_api": "v2.1",
        "phase_02_train_opt_use_liger": "true",
    }
    outcome = Controller(template("local"), tmp_path).submit(given)
    assert (
        record(tmp_path, "dataset")["parameters"]["eval_uri"]
        == given["phase_01_dataset_opt_eval_uri"]
    )
    (refused,) = outcome.attempts["train"]
    assert refused.exit_code == 64
    for name in CLUSTER_ONLY:
        flag = "--" + re.sub(r"phase_02_train_(man|opt)_", "", name).replace("_", "-")
        assert f"{flag} needs" in refused.log, name
    assert outcome.nodes["evaluate"] == outcome.nodes["register"] == "Omitted"
    assert outcome.phase == "Failed"
    (printed,) = outcome.attempts["summary"]
    assert printed.exit_code == 0
    assert "train: Error (exit code 64)" in printed.log


# Retries


@pytest.mark.parametrize(
    ("exit_code", "message", "retried"),
    [
        (75, "Error (exit code 75)", True),
        (-1, "pod deleted", True),
        (-1, "Pod was terminated in response to imminent node shutdown.", True),
        (143, "Error (exit code 143)", True),
        (137, "Error (exit code 137)", True),
        (143, "main: Error (exit code 143): rpc error: context deadline exceeded", True),
        (137, "main: Error (exit code 137): WARN row 12 is invalid, OOMKilled", True),
        (137, "OOMKilled (exit code 137)", False),
        (137, "main: OOMKilled (exit code 137)", False),
        (-1, "Pod was active on the node longer than the specified deadline", False),
        (143, "DeadlineExceeded", False),
        (-1, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', False),
        (-1, 'Pod "x" is invalid: spec.containers[0].resources.limits[memory]', False),
        (-1, "Error applying PodSpecPatch", False),
        (1, "Error (exit code 1)", False),
        (64, "Error (exit code 64)", False),
        (65, "Error (exit code 65)", False),
        (74, "Error (exit code 74)", False),
        (77, "Error (exit code 77)", False),
        (78, "Error (exit code 78)", False),
    ],
)
def test_only_what_may_pass_by_itself_is_retried(
    exit_code: int, message: str, retried: bool
) -> None:
    assert again(RETRY_WHEN, exit_code, message) is retried


def test_retries_are_limited_and_grow_apart_as_the_settings_say() -> None:
    policy = {"limit": 2, "duration": "5s", "factor": 3, "cap": "1d"}
    for version, cap in (("4", {"cap": "24h"}), ("3.6", {})):
        for each in template(retry=policy, argo=version)["spec"]["templates"]:
            if "dag" in each:
                assert "retryStrategy" not in each
                continue
            assert each["retryStrategy"] == {
                "limit": "2",
                "retryPolicy": "Always",
                "expression": RETRY_WHEN,
                "backoff": {"duration": "5s", "factor": "3", **cap},
            }


def test_the_last_lines_of_a_container_that_failed_are_its_nodes_message() -> None:
    ours = {
        name: each["container"]
        for name, each in templates("defaults").items()
        if "container" in each
    }
    assert set(ours) == {*(step.template for step in SFT.steps), "summary", "stop-training"}
    for name, container in ours.items():
        assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", name


def submit_toy(tmp_path: Path, **given: str) -> Outcome:
    values = {"phase_01_count_man_number": "3"}
    values |= {f"phase_01_count_opt_{name}": value for name, value in given.items()}
    return Controller(template(pipeline=TOY, retry={"limit": 2}), tmp_path).submit(values)


def test_exit_code_75_is_tried_again_until_the_limit_and_65_is_not(tmp_path: Path) -> None:
    later = submit_toy(tmp_path, fail="TransientError")
    assert [each.exit_code for each in later.attempts["count"]] == [75, 75, 75]
    assert later.phase == "Failed"
    never = submit_toy(tmp_path, fail="DataError")
    assert [each.exit_code for each in never.attempts["count"]] == [65]
    assert never.nodes["double"] == "Omitted"
    assert "count: Error (exit code 65)" in never.attempts["summary"][0].log


# A pipeline that no engine module knows


def test_another_pipeline_runs_by_its_own_steps_and_defaults(tmp_path: Path) -> None:
    outcome = submit_toy(tmp_path, password="hush-hush")
    assert outcome.phase == "Succeeded", outcome.attempts
    assert outcome.outputs == {"count-number": "3"}
    assert record(tmp_path, "double")["metrics"]["number"] == 6
    assert "hush-hush" not in outcome.attempts["count"][0].log
    assert "hush-hush" not in " ".join(outcome.attempts["count"][0].argv)


def test_a_run_that_is_submitted_again_by_its_name_does_only_what_is_new_to_it_a_fifth_step(
    run: Run,
) -> None:
    fifth = Step(
        params=CountParams,
        phase="phase_05_count",
        image="toy",
        module="tests.toy.count",
        template="count",
        needs=("register",),
        results={"number": "0"},
    )
    pipeline = Pipeline(SFT.name, SFT.description, (*SFT.steps, fifth), title=SFT.title)
    made = template("local", pipeline)
    given = run.given | {"phase_05_count_man_number": "8"}
    before = [record(run.folder, step.name) for step in SFT.steps]
    outcome = Controller(made, run.folder).submit(given, NAME)
    assert outcome.phase == "Succeeded"
    assert outcome.outputs == run.outcome.outputs | {"count-number": "8"}
    assert before == [record(run.folder, step.name) for step in SFT.steps]
    (dag,) = (each["dag"] for each in made["spec"]["templates"] if "dag" in each)
    assert dag["tasks"][-1] == {
        "name": "count",
        "template": "count",
        "depends": "register.Succeeded",
    }


# The template's parameters


def test_a_run_without_its_required_parameter_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ArgoError, match="phase_01_dataset_man_data_uri"):
        Controller(template(), tmp_path).submit({})


def test_all_parameters_have_their_name_order_description_and_a_valid_default() -> None:
    made = template()["spec"]["arguments"]["parameters"]
    assert [each["name"] for each in made] == [each.name for each in SFT.parameters()]
    for each in made:
        assert each["description"]
        assert isinstance(each.get("value", ""), str)
        assert each.get("value") in each.get("enum", [each.get("value")])
    required = [each["name"] for each in made if "value" not in each]
    assert required == ["phase_01_dataset_man_data_uri"]
    by_name = {each["name"]: each for each in made}
    launcher = by_name["phase_02_train_opt_launcher"]
    assert (launcher["value"], launcher["enum"]) == ("trainjob", ["trainjob"])
    assert by_name["phase_02_train_opt_lr_scheduler"]["enum"][:2] == ["linear", "cosine"]
    secrets = [each.name for each in SFT.parameters() if is_secret(each.field)]
    assert {by_name[name]["value"] for name in secrets} == {""}


def test_a_teams_defaults_are_the_templates() -> None:
    own = {"epochs": 3, "train-seed": 9, "phase_03_eval_man_tasks": "a,b", "save_epoch": "no"}
    made = template(parameters=own, launcher="local", cluster_auth="service-account")
    values = {each["name"]: each.get("value") for each in made["spec"]["arguments"]["parameters"]}
    assert values["phase_02_train_man_epochs"] == "3"
    assert values["phase_02_train_opt_seed"] == "9"
    assert values["phase_03_eval_man_tasks"] == "a,b"
    assert values["phase_02_train_opt_save_epoch"] == "False"
    assert values["phase_02_train_opt_launcher"] == "local"
    assert values["phase_02_train_opt_cluster_auth"] == "service-account"


# Security


@pytest.mark.parametrize(
    "value",
    [
        "lots",
        "",
        " 4",
        "1_0",
        "1Gi\n",
        '1Gi"',
        '1Gi"\n      securityContext: {privileged: true}\n    x: "',
        '1Gi"}, "securityContext": {"privileged": true}, "x": {"y": "',
    ],
)
def test_a_parameter_writes_no_more_of_a_pods_patch_than_a_quantity(
    value: str, tmp_path: Path
) -> None:
    controller = Controller(template("local"), tmp_path)
    plain = controller.scope({"phase_01_dataset_man_data_uri": "/x"})
    for step in (SFT.step("train"), SFT.step("evaluate")):
        sizes = {p.name: value for p in SFT.parameters() if p.step is step and p.field_name in POD}
        expected = controller.pod(step.template, plain)[1]
        scope = controller.scope({"phase_01_dataset_man_data_uri": "/x", **sizes})
        patch = controller.pod(step.template, scope)[1]
        assert patch["containers"][0]["resources"] == {
            "requests": {"cpu": "500m", "memory": "512Mi"},
            "limits": {"memory": "512Mi", "nvidia.com/gpu": "0"},
        }
        patch["containers"][0]["resources"] = expected["containers"][0]["resources"]
        assert patch == expected
        # The pod is large enough for the step to refuse them.
        _, told = flags.validate(step.params, dict.fromkeys(POD, value))
        assert {line.partition(":")[0] for line in told} == {"--gpu", "--cpu", "--memory"}


def containers(made: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Template, name and content of all containers of all pods: ours, and Argo's by the patch."""
    for each in made["spec"]["templates"]:
        if "dag" in each:
            continue
        patch = yaml.safe_load(each["podSpecPatch"])
        # The pod of a resource template has no wait container, and Argo's code is its main one.
        expected = {"init", "wait"} if "container" in each else {"init", "main"}
        patched = [*patch["initContainers"], *patch["containers"]]
        found = {one["name"]: one for one in patched}
        assert expected <= set(found)
        assert "securityContext" not in found.get("main", {}) or "resource" in each
        if "container" in each:
            found["main"] = found.get("main", {}) | each["container"]
        for name, content in found.items():
            yield each["name"], name, content


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_container_is_restricted_and_ours_cannot_write_to_their_root(name: str) -> None:
    made = rendered(name)
    pod = made["spec"]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for of, container, content in containers(made):
        context = content["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, (of, container)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        ours = container == "main" and of != "claim"
        assert context.get("readOnlyRootFilesystem", False) is ours
        assert not {"runAsUser", "runAsGroup", "privileged"} & set(context)
    volumes = {key for each in made["spec"]["volumes"] for key in each if key != "name"}
    assert volumes <= {"configMap", "emptyDir", "persistentVolumeClaim"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(made["spec"])


def test_a_user_is_fixed_on_kubernetes_and_not_on_openshift() -> None:
    fixed = template()["spec"]["securityContext"]
    assert fixed["runAsUser"] == fixed["runAsGroup"] == fixed["fsGroup"] == 10001
    free = template("openshift")["spec"]["securityContext"]
    assert set(free) == {"runAsNonRoot", "seccompProfile"}


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_token_is_hidden_from_containers_that_do_not_ask_the_api(name: str) -> None:
    place = "/var/run/secrets/kubernetes.io/serviceaccount"
    hidden = {
        each["name"]
        for each in templates(name).values()
        if "container" in each
        and place in [mount["mountPath"] for mount in each["container"]["volumeMounts"]]
    }
    ours = {each["name"] for each in templates(name).values() if "container" in each}
    asks = {"train", "stop-training"} if name == "the service account" else set()
    assert ours - hidden == asks


@pytest.mark.parametrize("name", CLUSTERS)
def test_secrets_are_optional_keys_under_the_names_of_the_settings(name: str) -> None:
    for step in SFT.steps:
        container = templates(name)[step.template]["container"]
        wanted = {
            (cluster(name).secret(secret.name), key)
            for secret in step.secrets
            for key in secret.keys
        }
        found = set()
        for each in container["env"]:
            if "secretKeyRef" in each.get("valueFrom", {}):
                reference = each["valueFrom"]["secretKeyRef"]
                assert reference["optional"] is True
                assert reference["key"] == each["name"]
                found.add((reference["name"], reference["key"]))
        assert found == wanted
        for source in container.get("envFrom", []):
            assert source["secretRef"]["optional"] is True
        names = [each["name"] for each in container["env"]]
        assert len(set(names)) == len(names)
        secret = [name for name, field in step.params.model_fields.items() if is_secret(field)]
        flags = {word.partition("=")[0] for word in container["args"]}
        assert not flags & {f"--{name.replace('_', '-')}" for name in secret}


def test_a_secret_of_the_cluster_reaches_the_step_and_no_log(tmp_path: Path) -> None:
    secrets = {"http-token": {"HTTP_BEARER_TOKEN": "very-secret"}, "train-env": {"WANDB": "x"}}
    controller = Controller(template("local"), tmp_path, secrets)
    scope = controller.scope({"phase_01_dataset_man_data_uri": "/x"})
    container, _ = controller.pod("dataset-download", scope)
    assert container["variables"]["HTTP_BEARER_TOKEN"] == "very-secret"
    assert "HF_TOKEN" not in container["variables"]
    assert controller.pod("train", scope)[0]["variables"]["WANDB"] == "x"
    submits = Controller(template(), tmp_path, secrets)
    assert submits.pod("train", scope)[0]["variables"]["TRAIN_ENV_WANDB"] == "x"


# What settings change of the pods


def main_resources(name: str, step: str) -> dict[str, Any]:
    made = templates(name)[step]
    patch = {each["name"]: each for each in yaml.safe_load(made["podSpecPatch"])["containers"]}
    return {**made["container"].get("resources", {}), **patch.get("main", {}).get("resources", {})}


def test_a_pod_that_only_submits_a_trainjob_has_no_gpu_and_no_shared_memory() -> None:
    assert set(main_resources("local", "train")["limits"]) == {"memory", "nvidia.com/gpu"}
    assert set(main_resources("defaults", "train")["limits"]) == {"memory"}
    assert "nvidia.com/gpu" in main_resources("defaults", "evaluate")["limits"]
    for name, shared in (("local", True), ("defaults", False)):
        mounts = templates(name)["train"]["container"]["volumeMounts"]
        assert ("/dev/shm" in [each["mountPath"] for each in mounts]) is shared
    assert "tolerations" not in templates("defaults")["train"]
    shm = {each["name"]: each for each in template()["spec"]["volumes"]}["shm"]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}


def test_a_step_that_submits_a_trainjob_knows_its_run_and_the_clusters_ca() -> None:
    container = templates("defaults")["train"]["container"]
    words = dict(word.split("=", 1) for word in container["args"])
    assert words["--namespace"] == "{{workflow.namespace}}"
    assert words["--run-uid"] == "{{workflow.uid}}"
    assert words["--worker-image"].startswith("sft-train:")
    pod = WorkerPod.model_validate_json(words["--worker-pod"])
    assert (pod.service_account, pod.user) == ("sft-train-worker", 10001)
    env = {each["name"]: each for each in container["env"]}
    assert env["POD_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    # Which keys `train-env` has is told, for the TrainJob to refer to; elsewhere they are used.
    assert [each["prefix"] for each in container["envFrom"]] == ["TRAIN_ENV_"]
    assert "prefix" not in templates("local")["train"]["container"]["envFrom"][0]
    places = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in rendered("defaults")["spec"]["volumes"]}
    ca = volumes[places["/var/run/secrets/kubernetes.io/serviceaccount"]]
    assert ca["configMap"] == {"name": "kube-root-ca.crt", "optional": True}
    alone = templates("local")["train"]["container"]
    assert "--worker-pod" not in " ".join(alone["args"])


@pytest.mark.parametrize("name", ["defaults", "the service account"])
def test_a_stopped_run_stops_its_trainjob_too(name: str) -> None:
    assert rendered(name)["spec"]["hooks"]["exit"]["template"] == "end"
    tasks = {each["name"]: each for each in templates(name)["end"]["dag"]["tasks"]}
    assert set(tasks) == {"summary", "stop-training"}
    assert not any("depends" in each for each in tasks.values())
    assert tasks["stop-training"]["when"] == "'{{workflow.status}}' != 'Succeeded'"
    stop, train = templates(name)["stop-training"], templates(name)["train"]
    assert stop["serviceAccountName"] == train["serviceAccountName"]
    # It must come to the name that the train step gave the TrainJob.
    shared = {"--workspace", "--run-name", "--volume-claim", "--volume-path", "--namespace"}
    words = [word for word in stop["container"]["args"] if word.split("=")[0] in shared]
    assert len(words) == len(shared)
    assert set(words) <= set(train["container"]["args"])
    secrets = {
        each["valueFrom"]["secretKeyRef"]["name"]
        for each in stop["container"]["env"]
        if "valueFrom" in each
    }
    assert secrets == {"kubernetes-credentials"}


def test_gpu_pods_keep_the_labels_and_taints_that_hold_for_all_pods() -> None:
    gpu = templates("scheduling")["evaluate"]
    # A template's own stand in place of the workflow's.
    assert gpu["nodeSelector"] == {"zone": "a", "gpu": "mi300"}
    assert [each["key"] for each in gpu["tolerations"]] == ["batch", "nvidia.com/gpu"]
    assert set(main_resources("scheduling", "evaluate")["limits"]) == {"memory", "amd.com/gpu"}
    spec = template("scheduling")["spec"]
    assert spec["nodeSelector"] == {"zone": "a"}
    assert spec["podPriorityClassName"] == "batch"
    assert spec["imagePullSecrets"] == [{"name": "quay"}]
    assert spec["podMetadata"]["annotations"] == {"note": "yes: 5e-06"}
    train = templates("scheduling")["train"]
    assert train["container"]["image"] == f"quay.io/team/sft-train@sha256:{'0' * 64}"
    assert gpu["container"]["image"].startswith("quay.io/team/sft-e")


def test_claims_are_mounted_read_only_under_names_that_kubernetes_takes() -> None:
    made = template("a claim of one's own, and more")
    volumes = {each["name"]: each for each in made["spec"]["volumes"]}
    assert all(len(name) <= 63 for name in volumes)
    for each in made["spec"]["templates"]:
        if each["name"] not in [step.template for step in SFT.steps]:
            continue
        mounts = {one["mountPath"]: one for one in each["container"]["volumeMounts"]}
        for claim in ("datasets", "x" * 63):
            mount = mounts[f"/claims/{claim}"]
            assert mount["readOnly"] is True
            assert volumes[mount["name"]]["persistentVolumeClaim"] == {
                "claimName": claim,
                "readOnly": True,
            }
    assert volumes["runs"]["persistentVolumeClaim"] == {"claimName": "ours"}


def test_a_claim_a_run_is_made_first_by_an_account_of_its_own_and_has_no_owner() -> None:
    made = template("a claim a run")
    found = {each["name"]: each for each in made["spec"]["templates"]}
    claim = found["claim"]
    assert claim["serviceAccountName"] == "sft-claims"
    assert claim["resource"]["action"] == "apply"
    assert not claim["resource"].get("setOwnerReference")
    manifest = yaml.safe_load(claim["resource"]["manifest"])
    assert manifest["metadata"]["name"] == "{{workflow.name}}"
    assert manifest["spec"]["storageClassName"] == "fast.nfs"
    tasks = found["pipeline"]["dag"]["tasks"]
    assert tasks[0]["name"] == "claim"
    assert tasks[1]["depends"] == "claim.Succeeded"
    volumes = {each["name"]: each for each in made["spec"]["volumes"]}
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == "{{workflow.name}}"
    assert "volumeClaimGC" not in made["spec"]


def test_proxy_and_certificates_reach_every_container(tmp_path: Path) -> None:
    controller = Controller(template("proxy and certificates"), tmp_path)
    scope = controller.scope({"phase_01_dataset_man_data_uri": "/x"})
    ours = [name for name, each in controller.templates.items() if "container" in each]
    assert {"train", "summary", "stop-training"} < set(ours)
    for name in ours:
        container, _ = controller.pod(name, scope)
        variables = container["variables"]
        assert variables["HTTPS_PROXY"] == variables["https_proxy"] == "http://proxy:3129"
        assert variables["HTTP_PROXY"] == "http://proxy:3128"
        assert variables["NO_PROXY"] == variables["no_proxy"]
        assert variables["HF_ENDPOINT"] == "https://hub.example"
        assert variables["HOME"] == "/tmp"
        assert variables["USER"]
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        for variable in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
            assert variables[variable].rpartition("/")[0] in mounts
    volumes = [each["name"] for each in template("proxy and certificates")["spec"]["volumes"]]
    assert len(set(volumes)) == len(volumes)


def test_locks_artifacts_deadlines_and_clean_up_are_as_set() -> None:
    assert template("locks")["spec"]["synchronization"] == {
        "mutexes": [{"name": "gpus"}],
        "semaphores": [{"configMapKeyRef": {"name": "locks", "key": "runs"}}],
    }
    assert "synchronization" not in template()["spec"]
    for step in SFT.steps:
        (artifact,) = templates("artifacts")[step.template]["outputs"]["artifacts"]
        assert artifact["path"] == "/volume/runs/{{workflow.name}}/report.html"
        assert artifact["optional"] is True
        assert "artifacts" not in templates("defaults")[step.template]["outputs"]
    found = templates("defaults")
    assert found["dataset-download"]["activeDeadlineSeconds"] == "43200"
    assert "activeDeadlineSeconds" not in found["train"]
    spec = template(cleanup={"failed_after": "2h", "pods_after": "1d"})["spec"]
    assert spec["ttlStrategy"] == {"secondsAfterSuccess": 604800, "secondsAfterFailure": 7200}
    assert spec["podGC"] == {"strategy": "OnPodSuccess", "deleteDelayDuration": "24h"}


def test_metrics_tell_duration_outcome_and_held_out_loss() -> None:
    names = [each["name"] for each in template()["spec"]["metrics"]["prometheus"]]
    assert names == ["sft_pipeline_runs_total", "sft_pipeline_run_duration_seconds"]
    measured = {
        each["name"]: each
        for step in SFT.steps
        for each in templates("defaults")[step.template].get("metrics", {}).get("prometheus", [])
    }
    loss = measured["sft_evaluate_heldout_loss"]
    assert loss["gauge"]["value"] == "{{outputs.parameters.heldout-loss}}"
    assert [each["key"] for each in loss["labels"]] == ["namespace", "pipeline"]
    (of_team, *_) = template("namespace and prefix")["spec"]["metrics"]["prometheus"]
    assert {"key": "pipeline", "value": "dev-sft-pipeline"} in of_team["labels"]
    assert loss["when"] == "'{{outputs.parameters.heldout-loss}}' != ''"


def test_titles_and_descriptions_are_on_the_template_and_its_runs() -> None:
    made = template()
    for place in (made["metadata"]["annotations"], made["spec"]["workflowMetadata"]["annotations"]):
        assert place["workflows.argoproj.io/title"]
        assert place["workflows.argoproj.io/description"] == SFT.description
