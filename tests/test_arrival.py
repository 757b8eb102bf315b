"""Every parameter's way: `sft submit`, the template's argument list, the step's command, its record."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from steps import flags
from steps.params import MASKED, is_secret, marked, may_hold_secret
from tests.argo_controller import Controller
from tests.clusters import cluster, template
from tests.conftest import ROOT
from workflows import SFT
from workflows.pipeline import SHAPING, Parameter, parameter_name

AWKWARD = (
    'He said "hi" \\ \'bye\'\n\ttab {"a": {"b": [1, "$x"]}}  é 漢 😀 %s -- `id` $HOME * ; a=b,c  '
)
TOLERATION = {"key": "a/b", "operator": "Equal", "value": "c", "effect": "NoSchedule"}

# None of them is the default.
VALUES: dict[str, Any] = {
    "phase_01_dataset_man_data_uri": "0.7*hf://org/é:All@main#train 0.3*s3://bucket/😀 'a'/*.jsonl",
    "phase_01_dataset_man_data_split": 0.25,
    "phase_01_dataset_opt_hf_token": "hf_dataset",
    "phase_01_dataset_opt_subset": 36,
    "phase_01_dataset_opt_seed": -5,
    "phase_01_dataset_opt_s3_auth": "anonymous",
    "phase_01_dataset_opt_on_invalid": "skip",
    "phase_01_dataset_opt_eval_uri": "https://host/held%20out/é.jsonl",
    "phase_01_dataset_opt_chat_schema": "messages",
    "phase_01_dataset_opt_deduplicate": "none",
    "phase_02_train_man_train_batch": 8,
    "phase_02_train_man_epochs": 2,
    "phase_02_train_man_gpu": 3,
    "phase_02_train_man_model": "oci://quay.io/team/model:1.0",
    "phase_02_train_man_tokens": 2000,
    "phase_02_train_man_workers": 2,
    "phase_02_train_opt_annotations": "team.example/note=a b,c=d",
    "phase_02_train_opt_cpu": "500m",
    "phase_02_train_opt_env_vars": 'A=1,B={"c": "d, e"}',
    "phase_02_train_opt_hf_token": "hf_train",
    "phase_02_train_opt_labels": "team=a,on=true",
    "phase_02_train_opt_learning_rate": 1e-06,
    "phase_02_train_opt_lr_warmup": 1,
    "phase_02_train_opt_lr_scheduler": "linear",
    "phase_02_train_opt_max_seq_len": 400,
    "phase_02_train_opt_memory": "3Gi",
    "phase_02_train_opt_num_procs": "3",
    "phase_02_train_opt_pull_secret": '{"auths": {"quay.io": {"auth": "eA=="}}}',
    "phase_02_train_opt_save_epoch": False,
    "phase_02_train_opt_save_full_state": True,
    "phase_02_train_opt_fsdp_sharding": "HYBRID_SHARD",
    "phase_02_train_opt_save_samples": 8,
    "phase_02_train_opt_seed": 7,
    "phase_02_train_opt_use_liger": True,
    "phase_02_train_opt_runtime": "ours",
    "phase_02_train_opt_chat_template": "/claims/ours/é 'chat'.jinja",
    "phase_02_train_opt_checkpoint_minutes": 5,
    "phase_02_train_opt_trainer_api": "v2.1",
    "phase_02_train_opt_queue": "gpus",
    "phase_02_train_opt_gpu_resource": "amd.com/gpu",
    "phase_02_train_opt_node_selector": "zone=a,on=true",
    "phase_02_train_opt_tolerations": [TOLERATION],
    "phase_02_train_opt_shm_size": "1Gi",
    "phase_02_train_opt_deadline": "12h",
    "phase_03_eval_man_tasks": ["arc_easy", '/claims/ours/é "task" \'s.yaml'],
    "phase_03_eval_opt_hf_token": "hf_evaluate",
    "phase_03_eval_opt_batch": "2",
    "phase_03_eval_opt_gen_kwargs": {"until": ["\n\n", '"', "é 😀"], "do_sample": False},
    "phase_03_eval_opt_limit": 3,
    "phase_03_eval_opt_log_samples": False,
    "phase_03_eval_opt_model_args": {"dtype": "float32", "a": {"b": None}},
    "phase_03_eval_opt_verbosity": "WARNING",
    "phase_03_eval_opt_baseline": "all",
    "phase_03_eval_opt_model": "org/tuned",
    "phase_03_eval_opt_heldout_limit": -1,
    "phase_03_eval_opt_gpu": 2,
    "phase_03_eval_opt_cpu": "1.5",
    "phase_03_eval_opt_memory": "2Gi",
    "phase_04_registry_man_address": "https://registry.example:8443",
    "phase_04_registry_man_author": AWKWARD,
    "phase_04_registry_man_name": AWKWARD,
    "phase_04_registry_man_version": "2.1.0-rc.1",
    "phase_04_registry_opt_description": AWKWARD,
    "phase_04_registry_opt_format_name": AWKWARD,
    "phase_04_registry_opt_format_version": "0x1F",
    "phase_04_registry_opt_port": 8081,
    "phase_04_registry_opt_on_conflict": "increment",
}
APART = ("phase_01_dataset_man_data_split", "phase_01_dataset_opt_eval_uri")
"""They do not go together: each is left out of one run."""
SETTINGS: dict[str, Any] = {
    "launcher": "trainjob",
    "cluster_auth": "service-account",
    "namespace": "team",
}
"""Of the template; they give the parameters that shape its pods, and no run may change them."""


@dataclass
class Arrived:
    shown: Any
    """The value in the step's record."""
    carried: str | None
    """What the pod's environment has of it."""


def run(values: dict[str, Any], folder: Path) -> Iterator[tuple[str, Arrived]]:
    """Submit a run with these values, and run its steps' commands: what arrived, by parameter."""
    made = template(**SETTINGS)
    with cluster(folder) as here:
        here.api.create("workflowtemplates", made, "team")
        pairs = [f"{name}={flags.as_text(value)}" for name, value in values.items()]
        done = here.sft("submit", *(word for pair in pairs for word in ("-p", pair)))
        assert done.returncode == 0, done.stderr
        (sent,) = here.submitted
    arguments = {each["name"]: each["value"] for each in sent["spec"]["arguments"]["parameters"]}
    controller = Controller(made, folder)
    scope = controller.scope(arguments)
    for step in SFT.steps:
        pod, _ = controller.pod(step.template, scope)
        variables = {**pod["variables"], "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        words = [word.replace("=/volume/", f"={folder}/volume/") for word in pod["argv"][3:]]
        command = [sys.executable, "-m", "tests.toy.keep", step.name, *words]
        # The last of two flags counts.
        subprocess.run([*command, f"--outputs={folder}/outputs"], env=variables, check=True)
        (record,) = folder.glob(f"volume/runs/*/{step.name}.json")
        shown = json.loads(record.read_text())["parameters"]
        for name, field in step.params.model_fields.items():
            carried = pod["variables"].get(flags.variable(name))
            yield parameter_name(step, name, field), Arrived(shown[name], carried)


@pytest.fixture(scope="module")
def arrived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arrived]:
    found: dict[str, Arrived] = {}
    for left_out in APART:
        values = {name: value for name, value in VALUES.items() if name != left_out}
        every = run(values, tmp_path_factory.mktemp("arrival"))
        found |= {name: each for name, each in every if name != left_out}
    return found


@pytest.mark.parametrize("parameter", SFT.parameters(), ids=lambda parameter: parameter.name)
def test_a_value_that_is_not_the_default_is_what_the_steps_record_shows(
    parameter: Parameter, arrived: dict[str, Arrived]
) -> None:
    name, field = parameter.name, parameter.field
    given = SETTINGS[parameter.field_name] if parameter.field_name in SHAPING else VALUES[name]
    assert given != field.default
    masked = is_secret(field) or marked(field, MASKED)
    assert arrived[name].shown == ("**********" if masked else given)
    assert arrived[name].carried == (given if may_hold_secret(field) else None)
