"""Runs by the clock: a CronWorkflow made from the template."""

import re
import zoneinfo
from typing import Any

from steps.errors import UsageError
from workflows.objects import kubernetes_object
from workflows.pipeline import SFT, Pipeline
from workflows.settings import Schedule, Settings, seconds
from workflows.unattended import template_label, workflow_spec

_NAMED = re.compile(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)|@every (\d+[hms])+")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_ITEM = re.compile(r"([*?]|(?P<first>\w+)(-(?P<last>\w+))?)(/0*[1-9]\d*)?", re.ASCII)


def cron_workflow(
    settings: Settings, schedule: Schedule, pipeline: Pipeline = SFT
) -> dict[str, Any]:
    """The CronWorkflow; raises UsageError where its times or its parameters cannot be used."""
    problems = [f"cron: {fault}" for cron in schedule.cron if (fault := _fault(cron))]
    if len(set(schedule.cron)) < len(schedule.cron):
        problems.append("cron: one time is there twice, and would start two runs")
    # Where there is no database of zones, none is known.
    if not _is_zone(schedule.timezone) and _is_zone("Europe/Berlin"):
        problems.append(
            f"timezone: {schedule.timezone!r} is no time zone; write one as Europe/Berlin"
        )
    if problems:
        raise UsageError("\n  ".join(f"schedule.{problem}" for problem in problems))
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
            "workflowMetadata": {"labels": template_label(settings, pipeline)},
            "workflowSpec": workflow_spec(
                settings, pipeline, schedule.parameters, "schedule.parameters"
            ),
        },
    )


def _is_zone(name: str) -> bool:
    try:
        zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def _fault(cron: str) -> str | None:
    """What robfig/cron, which Argo reads schedules with, has against it."""
    if _NAMED.fullmatch(cron):
        return None
    fields = cron.split()
    if len(fields) != len(_FIELDS):
        return f"{cron!r} has not five fields (minute, hour, day, month, day of the week)"
    for text, (name, low, high, words) in zip(fields, _FIELDS, strict=True):
        for item in text.split(","):
            found = _ITEM.fullmatch(item)
            ends = (
                [_number(end, low, words) for end in found.groupdict().values() if end]
                if found
                else [-1]
            )
            if ends != sorted(ends) or any(not low <= end <= high for end in ends):
                return f"{cron!r}: {item!r} is no {name} ({low} to {high})"
    return None


def _number(text: str, low: int, words: tuple[str, ...]) -> int:
    """A field's number, or the number of its word; -1 for any other text."""
    if text.isdecimal():
        return int(text)
    return low + words.index(text.lower()) if text.lower() in words else -1
