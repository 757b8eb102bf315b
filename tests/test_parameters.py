"""The workflow parameters: their names are a contract with those who migrate."""

import re
from pathlib import Path

import pytest

from steps.flags import shown_default
from steps.params import type_name
from workflows import SFT
from workflows.readme import DOCUMENTS, README, renewed

# Name, type and default, in the order in which every engine lists them.
CONTRACT = """
phase_01_dataset_man_data_uri | str | required
phase_01_dataset_man_data_split | float | 0.9
phase_02_train_man_train_batch | int | 128
phase_02_train_man_epochs | int | 1
phase_02_train_man_gpu | int | 1
phase_02_train_man_model | str | Qwen/Qwen2.5-1.5B-Instruct
phase_02_train_man_tokens | int | 10000
phase_02_train_man_workers | int | 4
phase_03_eval_man_tasks | list | ["arc_easy"]
phase_04_registry_man_address | str | ""
phase_04_registry_man_author | str | pipeline
phase_04_registry_man_name | str | sft-model
phase_04_registry_man_version | str | 1.0.0
phase_01_dataset_opt_hf_token | str | ""
phase_01_dataset_opt_subset | int | 0
phase_02_train_opt_annotations | str | ""
phase_02_train_opt_cpu | str | 4
phase_02_train_opt_env_vars | str | PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,NCCL_DEBUG=INFO,INSTRUCTLAB_NCCL_TIMEOUT_MS=600000
phase_02_train_opt_hf_token | str | ""
phase_02_train_opt_labels | str | ""
phase_02_train_opt_learning_rate | float | 5e-06
phase_02_train_opt_lr_warmup | int | 0
phase_02_train_opt_lr_scheduler | str | cosine
phase_02_train_opt_max_seq_len | int | 8192
phase_02_train_opt_memory | str | 64Gi
phase_02_train_opt_num_procs | str | auto
phase_02_train_opt_pull_secret | str | ""
phase_02_train_opt_save_epoch | bool | True
phase_02_train_opt_save_full_state | bool | False
phase_02_train_opt_fsdp_sharding | str | FULL_SHARD
phase_02_train_opt_save_samples | int | 0
phase_02_train_opt_seed | int | 42
phase_02_train_opt_use_liger | bool | False
phase_03_eval_opt_batch | str | auto
phase_03_eval_opt_gen_kwargs | dict | {}
phase_03_eval_opt_limit | int | -1
phase_03_eval_opt_log_samples | bool | True
phase_03_eval_opt_model_args | dict | {}
phase_03_eval_opt_verbosity | str | INFO
phase_04_registry_opt_description | str | ""
phase_04_registry_opt_format_name | str | pytorch
phase_04_registry_opt_format_version | str | 1.0
phase_04_registry_opt_port | int | 8080
phase_01_dataset_opt_seed | int | 42
phase_01_dataset_opt_s3_auth | str | secret
phase_01_dataset_opt_on_invalid | str | error
phase_01_dataset_opt_eval_uri | str | ""
phase_01_dataset_opt_chat_schema | str | auto
phase_01_dataset_opt_deduplicate | str | exact
phase_02_train_opt_launcher | str | auto
phase_02_train_opt_cluster_auth | str | secret
phase_02_train_opt_runtime | str | training-hub
phase_02_train_opt_chat_template | str | ""
phase_02_train_opt_checkpoint_minutes | int | 60
phase_02_train_opt_trainer_api | str | auto
phase_02_train_opt_queue | str | ""
phase_02_train_opt_gpu_resource | str | nvidia.com/gpu
phase_02_train_opt_node_selector | str | ""
phase_02_train_opt_tolerations | list | []
phase_02_train_opt_shm_size | str | 16Gi
phase_02_train_opt_deadline | str | ""
phase_03_eval_opt_baseline | str | heldout
phase_03_eval_opt_model | str | ""
phase_03_eval_opt_hf_token | str | ""
phase_03_eval_opt_heldout_limit | int | 200
phase_03_eval_opt_gpu | int | 1
phase_03_eval_opt_cpu | str | 4
phase_03_eval_opt_memory | str | 64Gi
phase_04_registry_opt_on_conflict | str | error
"""

ROWS = [tuple(line.split(" | ")) for line in CONTRACT.strip().splitlines()]


def test_names_types_and_defaults_are_those_of_the_contract() -> None:
    derived = [
        (
            parameter.name,
            type_name(parameter.field),
            "required" if parameter.field.is_required() else shown_default(parameter.field) or '""',
        )
        for parameter in SFT.parameters()
    ]
    assert derived == ROWS


def test_the_readme_shows_the_same_table() -> None:
    text = README.read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(phase_\w+)` \| (\w+) \| `?(.+?)`? \| .+ \|$", text, re.MULTILINE)
    assert shown == ROWS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_of_the_documents_are_up_to_date(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert "<!-- " in text
    assert text == renewed(text), f"run `make format` to renew the tables of {document.name}"
