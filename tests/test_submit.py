"""`sft submit`: what is checked, what is sent, and what the cluster's answers mean."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.clusters import (
    KINDS,
    TOKEN,
    Cluster,
    argo_server,
    cluster,
    environment,
    kubeconfig,
    template,
)
from tests.servers.tls import self_signed

SCHEMAS = os.environ.get("SFT_SCHEMAS")
DATA = ("--data-uri", "hf://org/chats")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster with the pipeline's template."""
    with cluster(tmp_path) as found:
        found.api.create("workflowtemplates", template(), "team")
        yield found


def parameters(workflow: Any) -> dict[str, str]:
    return {each["name"]: each["value"] for each in workflow["spec"]["arguments"]["parameters"]}


def hold_against_schemas(workflow: Any) -> None:
    """Where Argo's own schemas are at hand, the workflow is one by them."""
    for path in Path(SCHEMAS or "/nowhere").glob("argo/*/schema.json"):
        schema = json.loads(path.read_text())
        reference = {"$ref": "#/definitions/io.argoproj.workflow.v1alpha1.Workflow"}
        jsonschema.validate(workflow, {**schema, "oneOf": [reference]})


def test_a_run_is_sent_as_the_template_and_what_was_given(here: Cluster, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("epochs: 2\nlearning_rate: 1e-6\ntrain_seed: 7\n")
    done = here.sft(
        *("submit", *DATA, "--epochs", 3, "--params", tmp_path / "params.yaml"),
        *("-p", "phase_02_train_opt_learning_rate=5e-6", "-p", "epochs=4", "--tasks", "a,b"),
        *("--label", "team=a"),
    )
    assert done.returncode == 0, done.stderr
    (workflow,) = here.submitted
    assert workflow == {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {
            "generateName": "sft-pipeline-",
            "namespace": "team",
            "labels": {
                "team": "a",
                "workflows.argoproj.io/workflow-template": "sft-pipeline",
            },
        },
        "spec": {
            "workflowTemplateRef": {"name": "sft-pipeline"},
            "arguments": {"parameters": workflow["spec"]["arguments"]["parameters"]},
        },
    }
    assert parameters(workflow) == {
        "phase_01_dataset_man_data_uri": "hf://org/chats",
        "phase_02_train_man_epochs": "3",
        "phase_02_train_opt_learning_rate": "5e-6",
        "phase_02_train_opt_seed": "7",
        "phase_03_eval_man_tasks": '["a", "b"]',
    }
    hold_against_schemas(workflow)
    name = done.stdout.strip()
    assert here.api.get("workflows", name, "team")
    assert f"sft watch {name} -n team, or argo watch {name} -n team" in done.stderr


def test_values_are_sent_as_they_were_given(here: Cluster) -> None:
    text = "a \"b\" 'c'\n\td=e \\ {} é 🎉 #"
    done = here.sft(
        *("submit", *DATA, "-p", f"phase_04_registry_opt_description={text}"),
        *("-p", "phase_04_registry_man_address=", "--gen-kwargs", '{"a": {"b": "c,d"}}'),
    )
    assert done.returncode == 0, done.stderr
    sent = parameters(here.submitted[0])
    assert sent["phase_04_registry_opt_description"] == text
    assert sent["phase_04_registry_man_address"] == ""
    assert json.loads(sent["phase_03_eval_opt_gen_kwargs"]) == {"a": {"b": "c,d"}}


def test_all_mistakes_are_told_at_once_and_nothing_is_sent(here: Cluster, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("epoch: 1\nversion: 2026-01-01\n")
    done = here.sft(
        *(
            "submit",
            "--epochs",
            0,
            "--workers",
            "many",
            "--lr-scheduler",
            "best",
            "--leaning-rate=1",
        ),
        *("--params", tmp_path / "params.yaml", "-p", "seed", "-p", "nothing=1"),
        *("--run-name", "My_Run", "--label", "a b=c", "--entrypoint", "pipeline"),
    )
    assert done.returncode == 64
    for told in (
        "--leaning-rate is not a flag; did you mean --learning-rate?",
        "-p: 'seed' is not NAME=VALUE",
        "epoch is not a parameter; did you mean epochs?",
        "nothing is not a parameter",
        "--epochs: input should be greater than 0, got '0'",
        "--workers: ",
        "--lr-scheduler: ",
        "--version: ",
        "--run-name: 'My_Run' cannot name a workflow",
        "--label: 'a b=c' is not key=value",
        "--data-uri is required",
    ):
        assert told in done.stderr
    assert not here.api.requests


def test_what_argo_or_kubernetes_would_change_is_refused(here: Cluster, tmp_path: Path) -> None:
    values = {
        "phase_04_registry_opt_description": "{{workflow.uid}}",
        "phase_04_registry_man_author": "$(HOME)",
        "phase_04_registry_man_name": "bell \x07",
        "phase_03_eval_opt_model": "flag \U0001f3f4\U000e0067\U000e007f",
        "phase_02_train_opt_labels": "a" * 100_001,
        "phase_03_eval_man_tasks": '["\\u007b{a"]',
    }
    (tmp_path / "params.yaml").write_text(json.dumps(values, ensure_ascii=False))
    done = here.sft("submit", *DATA, "--params", tmp_path / "params.yaml")
    assert done.returncode == 64
    for told in (
        "--description: '{{' would be taken for a tag of Argo",
        "--author: '$(' and '$$' would be expanded",
        "--name: U+0007",
        "--evaluate-model: U+E0067",
        "--labels: longer than 100,000 bytes",
        "--tasks: '{{' would be taken",
    ):
        assert told in done.stderr
    assert not here.api.requests


def test_parameters_that_are_too_long_together_are_refused(here: Cluster, tmp_path: Path) -> None:
    names = "data_uri eval_uri model annotations labels env_vars runtime chat_template description"
    long = dict.fromkeys([*names.split(), "author", "evaluate_model"], "é" * 49_000)
    (tmp_path / "params.yaml").write_text(json.dumps(long))
    done = here.sft("submit", "--params", tmp_path / "params.yaml")
    assert done.returncode == 64
    assert "all parameters together are longer than 1,000,000 bytes" in done.stderr


def test_parameters_that_do_not_go_together_are_refused(here: Cluster) -> None:
    done = here.sft("submit", *DATA, "--data-split", "1.0", "--tasks", "[]")
    assert done.returncode == 64
    assert "nothing would be evaluated" in done.stderr
    assert not here.submitted


def test_one_step_alone_needs_only_its_own_parameters(here: Cluster) -> None:
    done = here.sft(
        *("submit", "--entrypoint", "evaluate", "--evaluate-model", "org/model"),
        *("--run-name", "last-night"),
    )
    assert done.returncode == 0, done.stderr
    (workflow,) = here.submitted
    assert workflow["metadata"]["name"] == "last-night"
    assert "generateName" not in workflow["metadata"]
    assert workflow["spec"]["entrypoint"] == "evaluate"
    assert parameters(workflow) == {
        "phase_03_eval_opt_model": "org/model",
        "phase_01_dataset_man_data_uri": "",
    }
    hold_against_schemas(workflow)


@pytest.mark.parametrize("step", ["train", "evaluate", "register"])
def test_a_step_that_goes_on_with_a_run_needs_the_runs_name(here: Cluster, step: str) -> None:
    done = here.sft("submit", "--entrypoint", step)
    assert done.returncode == 64
    assert f"--entrypoint {step}: goes on with a run's folder: name the run with --run-name" in (
        done.stderr
    )
    assert ("or a model with --evaluate-model" in done.stderr) is (step == "evaluate")
    assert not here.submitted
    named = here.sft("submit", "--entrypoint", step, "--run-name", "last-night")
    assert named.returncode == 0, named.stderr


def test_a_step_that_begins_needs_no_name_of_a_run(here: Cluster) -> None:
    for begins in (("dataset", *DATA), ("evaluate", "--evaluate-model", "org/model")):
        done = here.sft("submit", "--entrypoint", *begins)
        assert done.returncode == 0, done.stderr


def test_of_one_step_alone_no_other_parameter_is_missed(here: Cluster) -> None:
    done = here.sft("submit", "--entrypoint", "evaluate", "--limit", "many")
    assert done.returncode == 64
    assert "--limit: " in done.stderr
    assert "--data-uri" not in done.stderr
    other = here.sft("submit", "--entrypoint", "training")
    assert other.returncode == 64
    assert "there is no 'training'; there are: pipeline, dataset, train" in other.stderr


def test_a_launcher_that_the_pods_were_not_rendered_for_is_refused(here: Cluster) -> None:
    done = here.sft("submit", *DATA, "--launcher", "local")
    assert done.returncode == 64
    assert (
        "--launcher: the pods of WorkflowTemplate sft-pipeline were rendered for 'trainjob'"
        in done.stderr
    )
    # What the template has for its TrainJobs was not asked for here.
    assert "TrainJob" not in done.stderr
    assert not here.submitted
    assert here.sft("submit", *DATA, "--launcher", "trainjob").returncode == 0


def test_a_parameter_that_the_template_does_not_have_is_refused(tmp_path: Path) -> None:
    old = template()
    arguments = old["spec"]["arguments"]
    arguments["parameters"] = [
        each for each in arguments["parameters"] if each["name"] != "phase_03_eval_opt_baseline"
    ]
    old["spec"]["templates"] = [
        each for each in old["spec"]["templates"] if each["name"] != "register"
    ]
    with cluster(tmp_path) as here:
        here.api.create("workflowtemplates", old, "team")
        done = here.sft("submit", "--entrypoint", "register", "--baseline", "all")
        assert done.returncode == 64
        assert "--baseline: WorkflowTemplate sft-pipeline has no such parameter" in done.stderr
        assert (
            "--entrypoint: WorkflowTemplate sft-pipeline has no template 'register'" in done.stderr
        )
        assert not here.submitted


def test_values_of_the_template_count_where_none_is_given(tmp_path: Path) -> None:
    team = template(parameters={"data_uri": "s3://team/chats", "data_split": 1.0})
    with cluster(tmp_path) as here:
        here.api.create("workflowtemplates", team, "team")
        done = here.sft("submit", "--tasks", "[]")
        assert done.returncode == 64
        assert "nothing would be evaluated" in done.stderr
        assert here.sft("submit").returncode == 0
        assert parameters(here.submitted[0]) == {}


def test_a_template_that_is_not_there_is_told_with_those_that_are(here: Cluster) -> None:
    done = here.sft("submit", *DATA, "--template", "sft")
    assert done.returncode == 78
    assert '"sft" not found; there are: sft-pipeline (--template)' in done.stderr
    here.api.forbidden = {("list", "workflowtemplates")}
    again = here.sft("submit", *DATA, "--template", "sft")
    assert again.returncode == 78
    assert '"sft" not found' in again.stderr


def test_who_may_not_read_the_template_may_submit(here: Cluster) -> None:
    here.api.forbidden = {("get", "workflowtemplates")}
    done = here.sft("submit", *DATA)
    assert done.returncode == 0, done.stderr
    assert "the parameters are not compared with the template" in done.stderr
    assert len(here.submitted) == 1


def test_a_cluster_template_is_named_with_its_scope(here: Cluster) -> None:
    shared = template(scope="cluster")
    here.api.create("clusterworkflowtemplates", shared, "")
    done = here.sft("submit", *DATA, "--cluster-template", "sft-pipeline")
    assert done.returncode == 0, done.stderr
    (workflow,) = here.submitted
    assert workflow["spec"]["workflowTemplateRef"] == {"name": "sft-pipeline", "clusterScope": True}
    assert workflow["metadata"]["labels"] == {
        "workflows.argoproj.io/cluster-workflow-template": "sft-pipeline"
    }
    hold_against_schemas(workflow)


def test_a_secret_as_parameter_is_sent_with_a_warning_and_never_shown(here: Cluster) -> None:
    dry = here.sft("submit", *DATA, "--hf-token", "hf_abcdef", "--dry-run")
    assert dry.returncode == 0
    assert "prefer the secret hf-token" in dry.stderr
    assert parameters(yaml.safe_load(dry.stdout))["phase_01_dataset_opt_hf_token"] == "**********"
    done = here.sft("submit", *DATA, "--hf-token", "hf_abcdef", "-o", "json")
    assert parameters(here.submitted[0])["phase_02_train_opt_hf_token"] == "hf_abcdef"
    assert "hf_abcdef" not in dry.stdout + dry.stderr + done.stdout + done.stderr


def test_a_dry_run_needs_no_cluster(tmp_path: Path) -> None:
    alone = Cluster(None, environment(tmp_path))  # type: ignore[arg-type]
    done = alone.sft("submit", *DATA, "--learning-rate", "5e-6", "--dry-run", "-n", "team")
    assert done.returncode == 0, done.stderr
    assert '"5e-6"' in done.stdout
    workflow = yaml.safe_load(done.stdout)
    assert workflow["metadata"]["namespace"] == "team"
    hold_against_schemas(workflow)
    as_json = alone.sft("submit", *DATA, "--dry-run", "-o", "json", "-n", "team")
    assert json.loads(as_json.stdout)["spec"]["workflowTemplateRef"] == {"name": "sft-pipeline"}
    assert alone.sft("submit", "--dry-run").returncode == 64
    wrong = alone.sft("submit", *DATA, "--dry-run", "-n", "Team_A")
    assert wrong.returncode == 64
    assert "--namespace: 'Team_A' is not the name of a namespace" in wrong.stderr


def test_a_dry_run_with_a_cluster_looks_at_the_template_and_sends_nothing(here: Cluster) -> None:
    done = here.sft("submit", *DATA, "--launcher", "local", "--dry-run", "--context", "here")
    assert done.returncode == 64
    assert here.sft("submit", *DATA, "--dry-run", "--context", "here").returncode == 0
    assert not here.submitted


def test_a_flag_that_is_wrong_is_told_once_and_its_value_not_taken_for_a_word(
    here: Cluster,
) -> None:
    done = here.sft("submit", *DATA, "-o", "xml", "--epochs", "0", "stray")
    assert done.returncode == 64
    assert "-o/--output: invalid choice: 'xml'" in done.stderr
    assert "--epochs: input should be greater than 0" in done.stderr
    assert "'stray' belongs to no flag" in done.stderr
    assert "'xml' belongs to no flag" not in done.stderr


def test_what_the_train_step_would_refuse_hours_later_is_told_before_anything_is_sent(
    here: Cluster,
) -> None:
    done = here.sft(
        *("submit", *DATA, "--gpu", 0, "--labels", "x", "--node-selector", "a=b c"),
        *("--env-vars", "WANDB_API_KEY=s3cret", "--lr-scheduler", "constant", "--lr-warmup", 5),
    )
    assert done.returncode == 64
    for told in (
        "--gpu 0: a TrainJob's workers train on GPUs",
        "--labels: ",
        "--node-selector a: 'b c' is no label's value",
        "--env-vars WANDB_API_KEY: would stand in the TrainJob for all to read",
        "--lr-warmup has no effect with --lr-scheduler constant",
    ):
        assert told in done.stderr
    assert "s3cret" not in done.stderr
    assert not here.submitted


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("foo://x", "no source for the scheme 'foo'"),
        ("s3://", "s3://: write s3://<bucket>/<key>"),
        ("hf://", "hf://: write hf://org/name"),
        ("hf://onlyone/two/three/four#a#b", "four#a#b: write hf://org/name"),
        ("pvc://", "'pvc://': not an address on a claim"),
        ("pvc://data/../x", "'..' may not lead out of the claim"),
        ("https:/x", "https:/x: write hf://org/name"),
        ("https:///x", "there is no host in it"),
        ("chats.jsonl", "chats.jsonl: a relative path, which leads nowhere in a pod"),
        ("./chats", "./chats: write hf://org/name"),
        ("pvc://data/a.jsonl", "pvc://data/a.jsonl: the claim 'data' is not mounted"),
    ],
)
def test_an_address_that_no_pod_can_read_is_refused_before_anything_is_sent(
    here: Cluster, tmp_path: Path, uri: str, told: str
) -> None:
    (tmp_path / "chats.jsonl").touch()  # what lies here does not matter
    for given in (("--data-uri", uri), (*DATA, "--eval-uri", uri)):
        done = here.sft("submit", *given)
        assert done.returncode == 64
        assert told in done.stderr
    assert not here.submitted


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://models/base", "'s3://models/base': no models come by s3://"),
        ("oci://tiny", "'oci://tiny': write oci://registry/repository:tag or @sha256:..."),
        ("oci://quay.io/a/b@sha256:12", "write oci://registry/repository:tag or @sha256:..."),
        ("pvc://Models", "'pvc://Models': not an address on a claim"),
        ("pvc://models/../x", "'..' may not lead out of the claim"),
        ("hf://", "'': neither an existing path nor a Hugging Face ID"),
        ("org/name/more", "'org/name/more': neither an existing path nor a Hugging Face ID"),
        ("pvc://models/base", "'models' is not mounted in the pods (those that are: sft-runs)"),
        ("models/base", None),
        ("org/name@main", None),
        ("hf://org/name", None),
        ("oci://quay.io/a/b:1@sha256:" + "0" * 64, None),
        ("pvc://sft-runs/runs/first/model", None),
    ],
)
def test_a_model_that_no_pod_can_read_is_refused_before_anything_is_sent(
    here: Cluster, tmp_path: Path, uri: str, told: str | None
) -> None:
    (tmp_path / "org/name/more").mkdir(parents=True)  # what lies here does not matter
    for flag in ("--model", "--evaluate-model"):
        done = here.sft("submit", *DATA, flag, uri)
        assert done.returncode == (64 if told else 0), done.stderr
        assert not told or (flag in done.stderr and told in done.stderr)
    assert bool(here.submitted) is not bool(told)


def test_a_path_from_where_the_user_stands_is_refused_before_anything_is_sent(
    here: Cluster,
) -> None:
    done = here.sft(
        *("submit", *DATA, "--chat-template", "chatml.jinja", "--model", "./base"),
        *("--tasks", "arc_easy,tasks/ours.yaml,/tasks/theirs.yaml"),
        *("--evaluate-model", "../tuned"),
    )
    assert done.returncode == 64
    for told in (
        "--chat-template chatml.jinja: a relative path, which leads nowhere in a pod",
        "--model ./base: a relative path",
        "--tasks tasks/ours.yaml: a relative path",
        "--evaluate-model ../tuned: a relative path",
    ):
        assert told in done.stderr
    assert "arc_easy" not in done.stderr
    assert "theirs.yaml" not in done.stderr
    assert not here.submitted
    there = here.sft(
        *("submit", *DATA, "--chat-template", "/there/chatml.jinja", "--model", "/there/base"),
        *("--evaluate-model", "org/tuned", "--tasks", "arc_easy,/tasks/theirs.yaml"),
    )
    assert there.returncode == 0, there.stderr


@pytest.mark.parametrize("step", ["pipeline", "train"])
def test_a_kubeconfig_which_no_pod_has_is_refused_without_a_look_at_the_template(
    here: Cluster, step: str
) -> None:
    given = ("submit", "--entrypoint", step, *DATA, "--run-name", "one", "--dry-run")
    done = here.sft(*given, "--cluster-auth", "kubeconfig")
    assert done.returncode == 64
    assert "--cluster-auth kubeconfig: there is none in a pod: take secret or" in done.stderr
    taken = here.sft(*given, "--cluster-auth", "service-account")
    assert taken.returncode == 0, taken.stderr


def test_addresses_that_do_not_go_together_are_refused_before_anything_is_sent(
    here: Cluster,
) -> None:
    done = here.sft("submit", "--data-uri", "0.7*hf://a/b hf://c/d")
    assert done.returncode == 64
    assert "hf://c/d has no weight: give one to each address, or to none" in done.stderr
    assert not here.submitted
    sound = (
        "0.5*hf://a/b:c@main#train 0.2*s3://b/k 0.1*pvc://sft-runs/*.jsonl 0.2*/data/chats.jsonl"
    )
    done = here.sft("submit", "--data-uri", sound, "--eval-uri", "https://host/chats.jsonl\na/b")
    assert done.returncode == 0, done.stderr


def test_what_only_a_trainjob_has_is_refused_where_the_template_trains_in_the_pod(
    tmp_path: Path,
) -> None:
    with cluster(tmp_path) as found:
        found.api.create("workflowtemplates", template(launcher="local"), "team")
        done = found.sft("submit", *DATA, "--workers", 2, "--queue", "gpus", "--gpu", 2)
        assert done.returncode == 64
        assert "--workers: only the pods of a TrainJob have it" in done.stderr
        assert "--queue: only the pods of a TrainJob have it" in done.stderr
        assert "--gpu" not in done.stderr
        assert not found.submitted
        assert found.sft("submit", *DATA, "--workers", 4).returncode == 0


def test_a_name_that_is_taken_is_told_with_the_ways_on(here: Cluster) -> None:
    assert here.sft("submit", *DATA, "--run-name", "one").returncode == 0
    done = here.sft("submit", *DATA, "--run-name", "one")
    assert done.returncode == 65
    assert 'workflows.argoproj.io "one" already exists: choose another --run-name' in done.stderr
    assert "argo retry one -n team" in done.stderr


def test_a_lost_answer_is_told_to_be_looked_after_and_the_run_is_not_sent_twice(
    here: Cluster,
) -> None:
    here.api.fail("POST", "workflows", 0)
    done = here.sft("submit", *DATA)
    assert done.returncode == 75
    assert "look at sft list -n team first" in done.stderr
    assert here.api.asked("POST", "workflows") == 1


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        ("token", 77, "not logged in (401)"),
        ("forbidden", 77, "not allowed to create workflows in namespace team: ask for a Role"),
        ("namespace", 65, 'namespaces "elsewhere" not found'),
        ("busy", 75, "cannot create workflows in namespace team for now (503)"),
        ("throttled", 75, "cannot create workflows in namespace team for now (429)"),
        ("field", 64, 'strict decoding error: unknown field "spec.arguments"'),
        ("not installed", 78, "Argo Workflows is not installed there"),
        ("unreachable", 75, "does not answer"),
        ("certificate", 78, "the server's certificate is not trusted"),
        ("context", 78, "no way to a cluster"),
        ("no kubeconfig", 78, "no way to a cluster"),
        ("server", 64, "an Argo server needs to know the namespace"),
    ],
)
def test_each_failure_of_the_cluster_is_told_with_its_exit_code(
    tmp_path: Path, fault: str, code: int, told: str
) -> None:
    options: dict[str, Any] = {}
    if fault == "certificate":
        options["tls"] = self_signed(tmp_path)[0]
    if fault == "not installed":
        options["kinds"] = ()
    if fault == "field":
        spec: Any = {"properties": {"spec": {"properties": {"workflowTemplateRef": {}}}}}
        options["kinds"] = (replace(KINDS[0], schema=spec), *KINDS[1:])
    with cluster(tmp_path, **options) as here:
        more: list[str] = []
        path = tmp_path / "kubeconfig"
        if fault != "not installed":
            for namespace in ("team", "elsewhere"):
                # It is there, but a run cannot be.
                here.api.namespaces = ("team", "elsewhere")
                here.api.create("workflowtemplates", template(), namespace)
                here.api.namespaces = ("team",)
        match fault:
            case "token":
                path.write_text(json.dumps(kubeconfig(here.api.url, "another")))
            case "forbidden":
                here.api.forbidden = {("create", "workflows")}
            case "namespace":
                more = ["-n", "elsewhere"]
            case "busy":
                here.api.fail("POST", "workflows", 503)
            case "throttled":
                here.api.fail("POST", "workflows", 429)
            case "unreachable":
                path.write_text(json.dumps(kubeconfig("http://127.0.0.1:9")))
            case "context":
                more = ["--context", "nowhere"]
            case "no kubeconfig":
                path.unlink()
            case "server":
                more = ["--server", "127.0.0.1:9"]
        done = here.sft("submit", *DATA, *more)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_an_argo_server_takes_the_same_run(here: Cluster) -> None:
    with argo_server(here) as (server, way):
        done = here.sft("submit", *DATA, "--run-name", "one", **way)
        assert done.returncode == 0, done.stderr
        (workflow,) = here.submitted
        assert parameters(workflow) == {"phase_01_dataset_man_data_uri": "hf://org/chats"}
        assert f"http://{server.address}/workflows/team/one" in done.stderr
        again = here.sft("submit", *DATA, "--run-name", "one", **way)
        assert again.returncode == 65
        missing = here.sft("submit", *DATA, "--template", "sft", **way)
        assert missing.returncode == 78
        assert "there are: sft-pipeline" in missing.stderr
        stranger = here.sft("submit", *DATA, **way | {"ARGO_TOKEN": "another"})
        assert stranger.returncode == 77
        assert "ARGO_TOKEN" in stranger.stderr
        here.api.fail("POST", "workflows", 503)
        assert here.sft("submit", *DATA, **way).returncode == 75
    gone = here.sft("submit", *DATA, **way)
    assert gone.returncode == 75, gone.stderr


def test_the_address_of_an_argo_server_may_be_a_flag_and_netrc_does_not_count(
    here: Cluster, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b")
    with argo_server(here) as (server, _):
        url = f"http://{server.address}"
        way = ("--server", url, "-n", "team")
        done = here.sft("submit", *DATA, "--run-name", "one", *way, ARGO_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert f"sft watch one -n team --server {url}" in done.stderr
        both = here.sft("list", *way, "--context", "here")
        assert both.returncode == 64
        named = here.sft("list", "--context", "here", ARGO_SERVER="127.0.0.1:9")
        assert named.returncode == 0, named.stderr


def test_what_is_no_argo_server_is_told(here: Cluster) -> None:
    done = here.sft("list", "--server", here.api.url, "-n", "team", ARGO_TOKEN=TOKEN)
    assert done.returncode == 78
    assert "is not an Argo server" in done.stderr


def test_one_step_alone_is_refused_where_each_run_makes_its_claim(tmp_path: Path) -> None:
    with cluster(tmp_path) as here:
        here.api.create("workflowtemplates", template(storage={"per_run": True}), "team")
        refused = here.sft("submit", "--entrypoint", "evaluate", "--evaluate-model", "org/m")
    assert refused.returncode == 64
    assert "makes a claim for each run" in refused.stderr


def test_claims_that_the_template_mounts_can_be_read_and_the_runs_own_by_its_name(
    tmp_path: Path,
) -> None:
    mounted = template(storage={"per_run": True}, claims=["chats"])
    with cluster(tmp_path) as here:
        here.api.create("workflowtemplates", mounted, "team")
        given = ("submit", "--data-uri", "pvc://chats/a.jsonl", "--model", "pvc://first/model")
        refused = here.sft(*given)
        assert refused.returncode == 64
        assert (
            "the claim 'first' is not mounted in the pods (those that are: chats)" in refused.stderr
        )
        assert here.sft(*given, "--run-name", "first").returncode == 0
        assert (
            here.sft(*given, "--run-name", "second", "--dry-run").returncode == 0
        )  # none is known
    assert len(here.submitted) == 1
