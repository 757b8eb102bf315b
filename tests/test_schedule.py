"""Runs by the clock: the CronWorkflow, and what is refused before it would fail every night."""

from typing import Any

import pytest

from steps.errors import UsageError
from tests.cluster_settings import SCHEDULE, cluster
from workflows.schedule import cron_workflow
from workflows.settings import Schedule


def scheduled(**changes: Any) -> dict[str, Any]:
    given = Schedule.model_validate({**SCHEDULE, **changes})
    return cron_workflow(cluster(), given)


def test_it_starts_runs_from_the_template_with_its_own_parameters() -> None:
    spec = scheduled(
        timezone="Europe/Berlin",
        starting_deadline="2h",
        succeeded_kept=1,
        failed_kept=0,
        suspended=True,
        parameters={**SCHEDULE["parameters"], "train-epochs": 3, "tasks": []},
    )["spec"]
    assert spec == {
        "schedules": ["0 2 * * *", "@every 6h"],
        "timezone": "Europe/Berlin",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 7200,
        "successfulJobsHistoryLimit": 1,
        "failedJobsHistoryLimit": 0,
        "suspend": True,
        "workflowMetadata": {"labels": {"workflows.argoproj.io/workflow-template": "sft-pipeline"}},
        "workflowSpec": {
            "workflowTemplateRef": {"name": "sft-pipeline", "clusterScope": None},
            "arguments": {
                "parameters": [
                    {"name": "phase_01_dataset_man_data_uri", "value": "hf://org/chats"},
                    {"name": "phase_02_train_man_epochs", "value": "3"},
                    {"name": "phase_03_eval_man_tasks", "value": "[]"},
                    {"name": "phase_04_registry_opt_on_conflict", "value": "increment"},
                ]
            },
        },
    }


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"on_conflict": "increment"}, "schedule.parameters: --data-uri is required"),
        ({"data_uri": "/x"}, "every run but the first would fail to register"),
        ({"data_uri": "/x", "on_conflict": "error"}, "phase_04_registry_opt_on_conflict"),
        (
            {"data_uri": "/x", "on_conflict": "increment", "data_split": 1.0, "tasks": []},
            "nothing would be evaluated",
        ),
        ({"data_uri": "/x", "on_conflict": "increment", "epoks": 1}, "epoks is not a parameter"),
        ({"data_uri": "/x", "on_conflict": "increment", "epochs": "x"}, "--epochs: "),
        ({"data_uri": "chats.jsonl", "on_conflict": "increment"}, "a relative path, which leads"),
        ({"data_uri": "pvc://x/y", "on_conflict": "increment"}, "the claim 'x' is not mounted"),
        ({"data_uri": "{{x}}", "on_conflict": "increment"}, "a tag of Argo"),
        ({"data_uri": "/x", "on_conflict": "increment", "hf_token": "x"}, "a Kubernetes Secret"),
    ],
)
def test_parameters_that_would_fail_every_night_are_refused(
    parameters: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as refused:
        scheduled(parameters=parameters)
    assert told in str(refused.value)
    assert str(refused.value).startswith("schedule.parameters: ")


def test_a_teams_default_is_enough_and_a_schedules_own_value_wins_over_it() -> None:
    team = {"data_uri": "/team", "on_conflict": "increment"}
    given = Schedule.model_validate({**SCHEDULE, "parameters": {}})
    made = cron_workflow(cluster(parameters=team), given)
    assert made["spec"]["workflowSpec"]["arguments"]["parameters"] == []
    back = Schedule.model_validate({**SCHEDULE, "parameters": {"on_conflict": "error"}})
    with pytest.raises(UsageError, match="every run but the first"):
        cron_workflow(cluster(parameters=team), back)


@pytest.mark.parametrize(
    "cron",
    [
        *("0 2 * * *", "*/5 * * * *", "0-30/10 1,13 1-15 jan-mar MON-FRI", "5/15 * ? * sun"),
        *("59 23 31 12 6", "@daily", "@hourly", "@every 1h30m", "@yearly", "00 02 * * *"),
    ],
)
def test_times_that_argo_reads_are_taken(cron: str) -> None:
    assert scheduled(cron=[cron])["spec"]["schedules"] == [cron]


@pytest.mark.parametrize(
    "cron",
    [
        *("60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * 0 *"),
        *("* * * * 7", "* * * *", "* * * * * *", "foo * * * *", "jan * * * *", "* * mon * *"),
        *("* * * * jan", "*/0 * * * *", "5-1 * * * *", "* * * * fri-mon", "1-2-3 * * * *"),
        *("* * L * *", "* * * * 5#2", "1, * * * *", " ", "@noon", "@every day", "@every 5"),
        *("CRON_TZ=UTC 0 2 * * *", "-1 * * * *", "1.5 * * * *", "*-5 * * * *", "٣ * * * *"),
    ],
)
def test_times_that_argo_would_not_read_are_refused(cron: str) -> None:
    with pytest.raises(UsageError, match=r"schedule[.]cron: "):
        scheduled(cron=["@daily", cron])


def test_one_time_twice_which_would_start_two_runs_is_refused() -> None:
    with pytest.raises(UsageError, match=r"schedule[.]cron: one time is there twice"):
        scheduled(cron=["@daily", "0 2 * * *", "@daily"])


@pytest.mark.parametrize("zone", ["Europe/Bern", "Europe", "", "../etc/passwd", "UTC+1", "a b"])
def test_a_zone_that_there_is_not_is_refused(zone: str) -> None:
    with pytest.raises(
        UsageError, match=r"^schedule[.]timezone: .* is no time zone; write one as Europe/Berlin"
    ):
        scheduled(timezone=zone)


def test_an_unknown_zone_and_a_bad_time_are_told_together() -> None:
    with pytest.raises(UsageError) as refused:
        scheduled(timezone="Europe/Bern", cron=["x"])
    assert "'Europe/Bern' is no time zone" in str(refused.value)
    assert "'x' has not five fields" in str(refused.value)
