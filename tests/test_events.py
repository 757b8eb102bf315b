"""Runs that events start: which event starts one, with which parameters, and what it may not set."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from steps.errors import UsageError
from tests.cluster_settings import EVENTS, cluster
from tests.conftest import ROOT
from workflows import events
from workflows.settings import Events, Webhook

MINIO = {"endpoint": "minio:9000", "bucket": "datasets"}
SQS = {"queue": "landed", "region": "eu-west-1"}
GIVEN = {"data_uri": "hf://org/chats", "on_conflict": "increment"}


def objects(name: str = "defaults", /, **sources: Any) -> dict[str, list[dict[str, Any]]]:
    given = {"parameters": {"on_conflict": "increment"}, **sources}
    found: dict[str, list[dict[str, Any]]] = {}
    for each in events.objects(cluster(name), Events.model_validate(given)):
        found.setdefault(each["kind"], []).append(each)
    return found


def sensor(**sources: Any) -> dict[str, Any]:
    (made,) = objects(**sources)["Sensor"]
    spec: dict[str, Any] = made["spec"]
    return spec


def value_at(event: Any, path: str) -> Any:
    """gjson, as far as we use it; KeyError where nothing is there."""
    for name in path.split("."):
        if isinstance(event, list) and name.isdecimal() and int(name) < len(event):
            event = event[int(name)]
        elif isinstance(event, dict) and name in event:
            event = event[name]
        else:
            raise KeyError(path)
    return event


def passes(spec: Mapping[str, Any], event: Any, dependency: str = "") -> bool:
    """Whether the dependency's data filters let the event through; any error means no."""
    (one,) = (each for each in spec["dependencies"] if dependency in ("", each["name"]))
    for data in one["filters"]["data"]:
        try:
            value = value_at(event, data["path"])
        except KeyError:
            return False
        assert data["type"] == "string"
        # Go's $ is the end of the text, Python's may be before a last line break.
        patterns = [re.sub(r"\$$", r"\\Z", pattern) for pattern in data["value"]]
        if not isinstance(value, str) or not any(re.search(each, value) for each in patterns):
            return False
    return True


def minio_event(key: str) -> dict[str, Any]:
    return {
        "notification": [
            {
                "eventName": "s3:ObjectCreated:Put",
                "s3": {"bucket": {"name": "datasets"}, "object": {"key": key, "sequencer": "1"}},
            }
        ]
    }


def sqs_event(key: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    return {
        "body": {
            "Records": [
                {"eventName": name, "s3": {"bucket": {"name": "b"}, "object": {"key": key}}}
            ]
        }
    }


def webhook_event(**body: Any) -> dict[str, Any]:
    return {"header": {"Content-Type": ["application/json"]}, "body": body}


# Webhook


@pytest.mark.parametrize(
    "uri",
    [
        *("hf://org/name:config@main", "s3://bucket/a b/*.jsonl", "https://host/x?y=z&a=%20"),
        *("http://host/x", "pvc://claim/a.jsonl", "/claims/x/é 😀.jsonl"),
    ],
)
def test_an_address_starts_a_run(uri: str) -> None:
    assert passes(sensor(webhook={}), webhook_event(data_uri=uri))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data_uri": ""},
        {"data_uri": None},
        {"data_uri": 5},
        {"data_uri": ["/x"]},
        {"data_uri": {"a": "/x"}},
        {"data-uri": "/x"},
        {"data_uri": "ftp://x"},
        {"data_uri": "chats.jsonl"},
        {"data_uri": "/x{{workflow.uid}}"},
        {"data_uri": "https://evil/$(AWS_SECRET_ACCESS_KEY)"},
        {"data_uri": "/x$$"},
        {"data_uri": "/x\x07"},
        {"data_uri": "/x\n"},
    ],
)
def test_a_malformed_body_starts_nothing(body: dict[str, Any]) -> None:
    spec = sensor(webhook={})
    assert not passes(spec, webhook_event(**body))
    assert not passes(spec, {"header": {}, "body": [body]})
    assert not passes(spec, {"header": {}, "body": "text"})


def test_the_documented_post_is_one_that_argo_events_reads_as_json() -> None:
    text = (ROOT / "docs/argo.md").read_text().replace("\\\n", " ")
    (command,) = (line for line in text.splitlines() if line.strip().startswith("curl "))
    words = shlex.split(command)
    headers = [words[place + 1] for place, word in enumerate(words) if word == "-H"]
    assert "Content-Type: application/json" in headers  # curl's own would be a form's
    body = json.loads(words[words.index("-d") + 1])
    assert passes(sensor(webhook={}), webhook_event(**body))
    port, path = Webhook().port, Webhook().path
    assert words[-1] == f"http://sft-webhook-eventsource-svc:{port}{path}"


def test_fields_of_the_body_fill_the_parameters_they_are_named_for() -> None:
    fields = {
        "data_uri": "data.uri",
        "epochs": "train.epochs",
        "version": "version",
    }
    spec = sensor(webhook={"fields": fields})
    assert passes(spec, webhook_event(data={"uri": "/x"}, train={"epochs": "2"}, version="1.0.0"))
    assert not passes(spec, webhook_event(data={"uri": "/x"}, train={"epochs": "2"}))
    assert not passes(spec, webhook_event(data={"uri": "/x"}, train={"epochs": 2}, version="1.0.0"))
    assert not passes(
        spec, webhook_event(data={"uri": "/x"}, train={"epochs": "{{x}}"}, version="1.0.0")
    )
    assert not passes(
        spec, webhook_event(data={"uri": "/x"}, train={"epochs": "$(X)"}, version="1.0.0")
    )
    assert filled(spec["triggers"][0]) == {
        "phase_01_dataset_man_data_uri": "body.data.uri",
        "phase_02_train_man_epochs": "body.train.epochs",
        "phase_04_registry_man_version": "body.version",
    }


def filled(trigger: Mapping[str, Any]) -> dict[str, str]:
    """What fills a parameter, by the name of the parameter at the position that it goes to."""
    action = trigger["template"]["k8s"]
    parameters = action["source"]["resource"]["spec"]["arguments"]["parameters"]
    found = {}
    for each in action["parameters"]:
        if each["dest"] == "metadata.name":
            continue
        place = re.fullmatch(r"spec\.arguments\.parameters\.(\d+)\.value", each["dest"])
        assert place
        entry = parameters[int(place[1])]
        assert entry["value"] == ""
        found[entry["name"]] = each["src"].get("dataKey") or each["src"]["dataTemplate"]
    return found


def test_positions_lead_to_the_right_parameter_whatever_else_is_set() -> None:
    own = {"on_conflict": "increment", "epochs": 2, "version": "2.0.0", "data_uri": "/own"}
    spec = sensor(webhook={}, minio={**MINIO, "parameter": "eval_uri"}, sqs={**SQS}, parameters=own)
    by_name = {each["template"]["name"]: each for each in spec["triggers"]}
    assert set(filled(by_name["minio"])) == {"phase_01_dataset_opt_eval_uri"}
    assert set(filled(by_name["sqs"])) == {"phase_01_dataset_man_data_uri"}
    resource = by_name["minio"]["template"]["k8s"]["source"]["resource"]
    given = {each["name"]: each["value"] for each in resource["spec"]["arguments"]["parameters"]}
    assert given == {
        "phase_01_dataset_man_data_uri": "/own",
        "phase_02_train_man_epochs": "2",
        "phase_04_registry_man_version": "2.0.0",
        "phase_04_registry_opt_on_conflict": "increment",
        "phase_01_dataset_opt_eval_uri": "",
    }


# Buckets


@pytest.mark.parametrize("encoded", [quote, quote_plus, lambda key: quote(key, safe="")])
def test_keys_are_passed_on_but_for_tags_variables_wildcards_and_second_addresses(
    encoded: Any,
) -> None:
    spec = sensor(minio=MINIO)
    for key in ("a.jsonl", "in/a b/é 😀 50%.jsonl", "a+b}#&=~:.jsonl", "x(1).jsonl"):
        assert passes(spec, minio_event(encoded(key))), key
    for key in (
        "{{workflow.uid}}.jsonl",
        "$(AWS_SECRET_ACCESS_KEY).jsonl",
        "a$$b",
        "a/*.jsonl",
        "a?.jsonl",
        "[ab].jsonl",
        "x /claims/hr/all.jsonl",
        "x  /claims/hr/all.jsonl",
        "x hf://org/chats",
        "a\x07",
        "a\x7f",
    ):
        assert not passes(spec, minio_event(encoded(key))), key
    assert not passes(spec, minio_event("{raw}"))
    assert not passes(spec, minio_event("$(raw)"))
    assert not passes(spec, {"notification": []})
    assert not passes(spec, {})


def test_minio_listens_to_new_objects_of_the_bucket_by_prefix_and_suffix() -> None:
    found = objects(minio={**MINIO, "prefix": "in/", "suffix": ".parquet", "insecure": True})
    (source,) = found["EventSource"]
    (listened,) = source["spec"]["minio"].values()
    assert listened == {
        "endpoint": "minio:9000",
        "insecure": True,
        "bucket": {"name": "datasets"},
        "events": ["s3:ObjectCreated:*"],
        "filter": {"prefix": "in/", "suffix": ".parquet"},
        "accessKey": {"name": "s3-secret", "key": "AWS_ACCESS_KEY_ID"},
        "secretKey": {"name": "s3-secret", "key": "AWS_SECRET_ACCESS_KEY"},
    }


def test_sqs_takes_new_objects_with_prefix_and_suffix_as_aws_encodes_them() -> None:
    spec = sensor(sqs={**SQS, "prefix": "in (1)/a b", "suffix": ".é.jsonl"})
    for key in ("in (1)/a b/x.é.jsonl", "in (1)/a bc.é.jsonl"):
        assert passes(spec, sqs_event(quote_plus(key, safe="/"))), key
    for key in ("in/a b/x.é.jsonl", "in (1)/a b/x.jsonl", "x/in (1)/a b/x.é.jsonl", "in (1)/a b"):
        assert not passes(spec, sqs_event(quote_plus(key, safe="/"))), key
    good = quote_plus("in (1)/a b.é.jsonl", safe="/")
    assert not passes(spec, sqs_event(good, name="ObjectRemoved:Delete"))
    assert not passes(spec, {"body": {"Event": "s3:TestEvent"}})
    plain = {"body": {"Records": [{"eventName": "ObjectCreated:Put"}]}}
    assert not passes(spec, plain)


@pytest.mark.parametrize(("kind", "event"), [("minio", minio_event), ("sqs", sqs_event)])
def test_a_marker_starts_the_run_on_what_lies_beside_it(kind: str, event: Any) -> None:
    source = {**(MINIO if kind == "minio" else SQS), "marker": "_SUCCESS"}
    spec = sensor(**{kind: source})
    for key in ("_SUCCESS", "in/day 1/_SUCCESS"):
        assert passes(spec, event(quote_plus(key, safe="/")))
        assert passes(spec, event(quote(key, safe="")))
    for key in ("in/NOT_SUCCESS", "in/_SUCCESS/x", "in/x.jsonl"):
        assert not passes(spec, event(quote_plus(key, safe="/")))
    (text,) = filled(spec["triggers"][0]).values()
    assert text.endswith('.path | trimSuffix "_SUCCESS" }}')
    if kind == "minio":
        (made,) = objects(minio=source)["EventSource"]
        assert made["spec"]["minio"]["run"]["filter"]["suffix"] == "_SUCCESS"


def test_a_queue_is_read_by_a_role_or_by_the_keys_of_the_secret() -> None:
    (by_role,) = objects(sqs={**SQS, "role_arn": "arn:aws:iam::1:role/x"})["EventSource"]
    (read,) = by_role["spec"]["sqs"].values()
    assert read["roleARN"] == "arn:aws:iam::1:role/x"
    assert "secretKey" not in read
    (by_key,) = objects("scheduling", sqs=SQS)["EventSource"]
    assert by_key["spec"]["sqs"]["run"]["accessKey"]["name"] == "s3-secret"


# What holds for all of them


def test_an_event_is_delivered_again_until_it_has_made_its_run_and_makes_it_once() -> None:
    spec = sensor(**{name: EVENTS[name] for name in ("minio", "sqs", "webhook")}, per_hour=7)
    for each in spec["triggers"]:
        assert each["atLeastOnce"] is True  # without it the retries count for nothing
        assert each["retryStrategy"]["steps"] > 1
        assert each["rateLimit"] == {"unit": "Hour", "requestsPerUnit": 7}
        assert each["template"]["conditions"] == each["template"]["name"]
        action = each["template"]["k8s"]
        assert action["operation"] == "create"
        assert "generateName" not in action["source"]["resource"]["metadata"]
        (named,) = (one for one in action["parameters"] if one["dest"] == "metadata.name")
        assert re.fullmatch(
            r"sft-\{\{ .+ \| sha256sum \| trunc 20 \}\}", named["src"]["dataTemplate"]
        )
        assert {one["src"]["dependencyName"] for one in action["parameters"]} == {
            each["template"]["name"]
        }
    names = [each["name"] for each in spec["dependencies"]]
    assert names == [each["template"]["name"] for each in spec["triggers"]]


def test_sources_wait_for_a_token_and_pods_of_argo_events_are_restricted() -> None:
    found = objects(**{name: EVENTS[name] for name in ("minio", "sqs", "webhook")})
    by_name = {each["metadata"]["name"]: each["spec"] for each in found["EventSource"]}
    webhook = by_name["sft-webhook"]["webhook"]["run"]
    assert webhook["authSecret"] == {"name": "sft-webhook", "key": "token"}
    assert webhook["method"] == "POST"
    assert by_name["sft-webhook"]["service"] == {"ports": [{"port": 12000}]}
    (bus,) = (each["spec"]["jetstream"] for each in found["EventBus"])
    pods = [each["template"] for each in by_name.values()]
    pods += [found["Sensor"][0]["spec"]["template"], bus]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        contexts = [
            value["securityContext"]
            for name, value in pod.items()
            if name.lower().endswith(("container", "containertemplate"))
        ]
        assert len(contexts) == (3 if pod is bus else 1)
        for context in contexts:
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
    accounts = {pod["serviceAccountName"] for pod in pods if pod is not bus}
    assert accounts == {"sft-sensor", "sft-event-sources"}


def test_a_bus_of_one_server_keeps_one_copy_and_a_bus_that_is_there_is_used() -> None:
    (bus,) = objects(webhook={}, bus={"replicas": 1})["EventBus"]
    assert bus["spec"]["jetstream"]["streamConfig"] == "replicas: 1\n"
    (five,) = objects(webhook={}, bus={"replicas": 5})["EventBus"]
    assert five["spec"]["jetstream"]["streamConfig"] == "replicas: 3\n"
    assert "EventBus" not in objects(webhook={}, bus={"create": False})


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ({}, "events: name at least one of minio, sqs and webhook"),
        (
            {"webhook": {"fields": {"epoks": "x"}}},
            "events.webhook.fields: epoks is not a parameter; did you mean epochs?",
        ),
        (
            {"webhook": {"fields": {"hf_token": "x"}}},
            "events.webhook.fields: hf_token is not a parameter; did you mean",
        ),
        ({"webhook": {"fields": {"train_hf_token": "x"}}}, "an event may not set it"),
        ({"webhook": {"fields": {"train-gpu": "x"}}}, "an event may not set it"),
        ({"webhook": {"fields": {"phase_02_train_opt_memory": "x"}}}, "an event may not set it"),
        ({"webhook": {"fields": {"env_vars": "x"}}}, "an event may not set it"),
        ({"webhook": {"fields": {"launcher": "x"}}}, "an event may not set it"),
        (
            {"minio": {**MINIO, "parameter": "data"}},
            "events.minio.parameter: data is not a parameter",
        ),
        (
            {"minio": {**MINIO, "parameter": "model"}, "parameters": GIVEN},
            "events.minio.parameter: --model 's3://bucket/key': no models come by s3://",
        ),
        (
            {"minio": {**MINIO, "parameter": "epochs"}},
            "events.minio.parameter: --epochs: input should",
        ),
        (
            {"webhook": {"fields": {"data_uri": "x", "dataset_data_uri": "y"}}},
            "events.webhook.fields: two of them set phase_01_dataset_man_data_uri",
        ),
        ({"webhook": {"fields": {"epochs": "x"}}}, "events.parameters: --data-uri is required"),
        ({"webhook": {}, "parameters": {}}, "every run but the first would fail to register"),
        ({"webhook": {}, "parameters": {"on_conflict": "error"}}, "every run but the first"),
        (
            {"webhook": {}, "parameters": {"on_conflict": "increment", "model": "pvc://x/y"}},
            "events.parameters: --model pvc://x/y: the claim 'x' is not mounted",
        ),
        ({"webhook": {}, "parameters": {"epoks": 2}}, "epoks is not a parameter"),
    ],
)
def test_events_that_could_not_start_a_run_are_refused(sources: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        objects(**sources)
    assert told in str(refused.value)
