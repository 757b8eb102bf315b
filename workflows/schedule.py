"""Runs by the clock: a CronWorkflow made from the template."""

import re
import zoneinfo
from typing import Any

from steps.errors import UsageError
from workflows.objects import kubernetes_object
from workflows.pipeline import SFT, Pipeline
from workflows.settings import Schedule, Settings, seconds
from workflows.unattended import workflow_spec

_NAMED = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)|@every (\d+[hms])+")
_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of the month", 1, 31),
    ("month", 1, 12),
    ("day of the week", 0, 6),
)
_ITEM = re.compile(r"(\*|\?|\w+(-\w+)?)(/\d+)?")


def cron_workflow(
    settings: Settings, schedule: Schedule, pipeline: Pipeline = SFT
) -> dict[str, Any]:
    """The CronWorkflow; raises UsageError where its times or its parameters cannot be used."""
    problems = [fault for cron in schedule.cron if (fault := _fault(cron))]
    known = zoneinfo.available_timezones()
    if known and schedule.timezone not in known:
        problems.append(f"{schedule.timezone!r} is no time zone; write one as Europe/Berlin")
    if problems:
        raise UsageError("\n  ".join(f"schedule: {problem}" for problem in problems))
    return kubernetes_object(
        "CronWorkflow",
        pipeline.name,
        settings,
        version="argoproj.io/v1alpha1",
        spec={
            "schedules": schedule.cron,
            "timezone": schedule.timezone,
            "concurrencyPolicy": schedule.concurrency,
            "startingDeadlineSeconds": seconds(schedule.starting_deadline),
            "successfulJobsHistoryLimit": schedule.succeeded_kept,
            "failedJobsHistoryLimit": schedule.failed_kept,
            "suspend": schedule.suspended,
            "workflowSpec": workflow_spec(
                settings, pipeline, schedule.parameters, "schedule.parameters"
            ),
        },
    )


def _fault(cron: str) -> str | None:
    """What robfig/cron, which Argo reads schedules with, has against it."""
    if _NAMED.fullmatch(cron):
        return None
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        return f"cron: {cron!r} has not five fields (minute, hour, day, month, day of the week)"
    for text, (name, low, high) in zip(fields, _FIELDS, strict=True):
        for item in text.split(","):
            numbers = [int(number) for number in re.findall(r"\d+", item.partition("/")[0])]
            if not _ITEM.fullmatch(item) or any(not low <= number <= high for number in numbers):
                return f"cron: {cron!r}: {item!r} is no {name}"
    return None
