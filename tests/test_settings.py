"""The file of settings: what is wrong with it is told with its place, all at once."""

from pathlib import Path
from typing import Any

import pytest

from steps.errors import UsageError
from tests.cluster_settings import EVENTS, SCHEDULE
from workflows import manifests, settings

FLAT = [
    ("namespace", "Team_A"),
    ("namespace", "x" * 64),
    ("name_prefix", "-x"),
    ("name_prefix", "x" * 31),
    ("scope", "galaxy"),
    ("platform", "nomad"),
    ("argo", "2"),
    ("launcher", "auto"),
    ("user", 0),
    ("user", "root"),
    ("images.registry", "https://quay.io"),
    ("images.tag", "a b"),
    ("images.tag", "a\n"),
    ("images.digests.sft-train", "sha256:1"),
    ("images.pull_policy", "Sometimes"),
    ("images.pull_secrets.0", "A"),
    ("storage.claim", "Runs"),
    ("storage.size", "lots"),
    ("storage.size", "5 Gi"),
    ("storage.storage_class", "A"),
    ("storage.access_mode", "ReadOnlyMany"),
    ("storage.create", "perhaps"),
    ("claims.0", "a/b"),
    ("secrets.hf-token", "A"),
    ("gpu.resource", "gpu"),
    ("gpu.node_selector.gpu", "a b"),
    ("gpu.tolerations.0.effect", "Never"),
    ("gpu.tolerations.0.operator", "Like"),
    ("gpu.shared_memory", "x"),
    ("scratch", "-1Gi"),
    ("retry.limit", -1),
    ("retry.duration", "30"),
    ("retry.factor", 0),
    ("retry.cap", "1 day"),
    ("deadlines.train", "soon"),
    ("deadlines.train", "0s"),
    ("tolerations.0", {"key": "a", "value": "b"}),
    ("tolerations.0", {"value": "b", "operator": "Equal"}),
    ("cleanup.pods", "Always"),
    ("cleanup.failed_after", "1w"),
    ("mutex", "a b"),
    ("mutex", "a" * 254),
    ("priority_class", "A B"),
    ("labels.team", "a b"),
    ("labels.équipe", "a"),
    ("scratch", "٣Gi"),
    ("env.1 x", "y"),
    ("schedule.cron", []),
    ("schedule.timezone", None),
    ("schedule.concurrency", "Queue"),
    ("events.per_hour", 0),
    ("events.bus.replicas", 2),
    ("events.bus.version", ""),
    ("events.minio.bucket", "A"),
    ("events.minio.endpoint", "http://minio"),
    ("events.minio.marker", "a/b"),
    ("events.minio.suffix", "*.jsonl"),
    ("events.minio.prefix", "s3://data/sft/"),
    ("events.minio.marker", '"x'),
    ("events.sqs.region", "EU West"),
    ("events.webhook.port", 0),
    ("events.webhook.path", "runs"),
    ("network.allow_cidrs.0", "10.0.0.0"),
    ("network.allow_cidrs.0", "10.0.0.300/8"),
    ("network.ports.train.0", 70000),
    ("proxy.http", "http://proxy:70000"),
    ("events.webhook.fields.data_uri", "a b"),
    ("events.webhook.fields.data_uri", "a.#(b)|@this"),
    ("artifacts", "maybe"),
    ("parameters", []),
    ("ca_bundle.key", "a/b"),
    ("semaphore.key", "a b"),
]
WHOLE: dict[str, Any] = {
    "schedule": SCHEDULE,
    "events": EVENTS,
    "ca_bundle": {"config_map": "ca"},
    "semaphore": {"config_map": "locks", "key": "runs"},
    "gpu": {"tolerations": [{}]},
}


def put(values: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The values with that one at a dotted place; a number is one of a list."""
    name, _, rest = place.partition(".")
    if not rest:
        return {**values, name: value}
    inner = values.get(name, {})
    if rest.split(".")[0].isdecimal():
        further = rest.partition(".")[2]
        item = put(inner[0] if inner else {}, further, value) if further else value
        return {**values, name: [item]}
    return {**values, name: put(inner, rest, value)}


@pytest.mark.parametrize(("place", "value"), FLAT)
def test_a_wrong_setting_is_told_with_its_dotted_place(place: str, value: Any) -> None:
    with pytest.raises(UsageError) as refused:
        settings.validate(put(WHOLE, place, value), "mine.yaml")
    assert refused.value.exit_code == 64
    told = str(refused.value).split("\n  ")
    assert [line for line in told if line.startswith(f"mine.yaml: {place}")], told


def test_the_values_around_the_wrong_ones_are_right() -> None:
    settings.validate(WHOLE, "mine.yaml")


def test_all_mistakes_are_told_at_once_and_by_their_places(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("namespase: a\nstorage: {size: lots, klass: x}\nuser: 3\n")
    with pytest.raises(UsageError) as refused:
        settings.read(
            path,
            {"retry.limit": "many", "scratch": "-", "network": {"ports": 1}},
            {
                "retry.limit": "--set retry.limit",
                "scratch": "--scratch",
                "network": "--set network",
            },
        )
    told = str(refused.value).split("\n  ")
    for line in (
        f"{path}: namespase is not a setting; did you mean namespace?",
        f"{path}: storage.klass is not a setting",
        f"{path}: storage.size: ",
        f"{path}: user: ",
        "--set retry.limit: ",
        "--scratch: should be a quantity",
        "--set network.ports: ",
    ):
        assert [each for each in told if each.startswith(line)], told


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("storage.clas", "storage.claim"),
        ("registry", "images.registry"),
        ("gpu.resourse", "gpu.resource"),
        ("schedule.timezon", "schedule.timezone"),
        ("cron", "schedule.cron"),
    ],
)
def test_a_misspelt_setting_is_told_with_what_it_may_have_meant(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is not a setting; did you mean {meant}"):
        settings.validate(put({"schedule": {"cron": "@daily"}}, name, "x"), "mine.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- a\n", "not a mapping"),
        ("a: [\n", r"mine\.yaml:2: while parsing a flow"),
        ("a: b\nc: d: e\n", r"mine\.yaml:2: mapping values are not allowed"),
        ("a: b\n\x01", r"mine\.yaml: not YAML: control characters"),
        ("\xff", r"mine\.yaml: not YAML: invalid start byte"),
        ("1: 2\n", "1"),
        ("user: 2000\nlabels: {a: b}\nuser: 3000\n", r"mine\.yaml:3: user is there twice$"),
        ("labels: {a: b, a: c}\n", "a is there twice"),
    ],
)
def test_a_file_that_is_no_settings_is_told(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=told):
        settings.read(path, {})


def test_the_form_of_a_value_is_told_in_words_and_no_password() -> None:
    given = {
        "proxy": {"https": "http://ann:s3cret@proxy:3128"},
        "deadlines": {"train": "soon"},
        "scratch": "lots",
        "claims": ["A"],
    }
    with pytest.raises(UsageError) as refused:
        settings.validate(given, "mine.yaml")
    told = str(refused.value)
    assert "s3cret" not in told
    assert "proxy.https: should be an address without path, user and password" in told
    assert "deadlines.train: should be a whole number above 0 and a unit" in told
    assert "scratch: should be a quantity: 500m, 4, 64Gi, got 'lots'" in told
    assert "claims.0: should be a name: " in told


def test_no_one_is_told_a_regular_expression_or_the_whole_of_what_lacks_a_value() -> None:
    for place, value in FLAT:
        with pytest.raises(UsageError) as refused:
            settings.validate(put(WHOLE, place, value), "mine.yaml")
        assert "match pattern" not in str(refused.value)
    with pytest.raises(UsageError) as refused:
        settings.validate({"events": {"minio": {"bucket": "data"}}}, "mine.yaml")
    assert str(refused.value) == "mine.yaml: events.minio.endpoint is required"


def test_a_version_without_quotes_and_a_lone_cron_line_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("argo: 3.6\nschedule: {cron: 0 2 * * *}\n")
    found = settings.read(path, {})
    assert found.argo == "3.6"
    assert found.schedule
    assert found.schedule.cron == ["0 2 * * *"]


def test_an_empty_file_is_all_defaults_and_given_values_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("")
    assert settings.read(path, {}) == settings.Settings()
    path.write_text("storage: {claim: a, size: 1Ti}\n")
    read = settings.read(path, {"storage.claim": "b", "images.tag": 2})
    assert (read.storage.claim, read.storage.size, read.images.tag) == ("b", "1Ti", "2")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"storage": {"access_mode": "ReadWriteOnce"}},
            "storage.access_mode ReadWriteOnce serves one node, but launcher trainjob trains in pods on "
            "others: take ReadWriteMany, or launcher local",
        ),
        ({"cluster_auth": "service-account"}, "cluster_auth service-account needs a namespace"),
        ({"storage": {"per_run": True, "create": False}}, "storage.create cannot be false"),
        ({"parameters": {"launcher": "local"}}, "parameters.launcher: set launcher itself"),
        ({"parameters": {"train-cluster-auth": "secret"}}, "set cluster_auth itself"),
        (
            {
                "schedule": {
                    **SCHEDULE,
                    "parameters": {**SCHEDULE["parameters"], "launcher": "local"},
                }
            },
            "schedule.parameters.launcher: set launcher itself",
        ),
        (
            {"events": {**EVENTS, "parameters": {"phase_02_train_opt_launcher": "local"}}},
            "events.parameters.phase_02_train_opt_launcher: set launcher itself",
        ),
        ({"claims": ["a", "a"]}, "claims: one is named twice"),
        ({"claims": ["sft-runs"]}, "claims: sft-runs holds the runs"),
        ({"claims": ["x-sft-runs"], "name_prefix": "x-"}, "claims: x-sft-runs holds the runs"),
        ({"deadlines": {"trian": "1h"}}, "deadlines.trian: there is no trian; known: dataset, "),
        ({"network": {"ports": {"trian": [1]}}}, "network.ports.trian: there is no trian"),
        ({"secrets": {"hf-tokn": "x"}}, "secrets.hf-tokn: there is no hf-tokn"),
        (
            {"images": {"digests": {"sft-trian": f"sha256:{'0' * 64}"}}},
            "images.digests.sft-trian: there is no sft-trian",
        ),
        ({"env": {"HF_TOKEN": "x"}}, "env.HF_TOKEN: comes from the secret hf-token"),
        (
            {"launcher": "local", "parameters": {"workers": 2}},
            "parameters.phase_02_train_man_workers: only the pods of a TrainJob have it",
        ),
        (
            {
                "launcher": "local",
                "events": {**EVENTS, "parameters": {"on_conflict": "increment", "queue": "a"}},
            },
            "events.parameters.phase_02_train_opt_queue: only the pods of a TrainJob have it",
        ),
        (
            {"schedule": {**SCHEDULE, "parameters": {**SCHEDULE["parameters"], "train_gpu": 0}}},
            "schedule.parameters: --gpu 0: a TrainJob's workers train on GPUs",
        ),
        (
            {"parameters": {"epoks": 1}},
            "parameters: epoks is not a parameter; did you mean epochs",
        ),
        (
            {"labels": {"app.kubernetes.io/component": "x"}},
            "labels.app.kubernetes.io/component: set by Argo or by the pipeline",
        ),
        (
            {"annotations": {"workflows.argoproj.io/template": "x"}},
            "annotations.workflows.argoproj.io/template: set by Argo",
        ),
        ({"env": {"A": "{{x}}"}}, "{{x}} is no tag that Argo knows, in '{{x}}'"),
        ({"annotations": {"a": "b {{"}}, "begins with {{ and has no end, in 'b {{'"),
        (
            {"parameters": {"epochs": 0}, "schedule": SCHEDULE},
            "parameters: --epochs: input should be greater than 0",
        ),
        (
            {"schedule": {**SCHEDULE, "parameters": {"phase_03_eval_opt_memory": "many"}}},
            "schedule.parameters: --evaluate-memory: not as it must be",
        ),
        (
            {"parameters": {"model": "s3://models/base"}},
            "parameters: --model 's3://models/base': no models come by s3://",
        ),
        (
            {"parameters": {"chat_template": "ours.jinja"}},
            "parameters: --chat-template ours.jinja: ",
        ),
        ({"parameters": {"data_uri": "data/x.jsonl"}}, "parameters: data/x.jsonl: a relative path"),
        (
            {"parameters": {"data_uri": "/x pvc://chats/x"}, "claims": ["models"]},
            "parameters: --data-uri pvc://chats/x: the claim 'chats' is not mounted in the pods "
            "(those that are: models, sft-runs)",
        ),
        (
            {"parameters": {"evaluate-model": "pvc://sft-runs/m"}, "name_prefix": "dev-"},
            "parameters: --evaluate-model pvc://sft-runs/m: the claim 'sft-runs' is not mounted",
        ),
        ({"parameters": {"gpu": 0}}, "parameters: --gpu 0: a TrainJob's workers train on GPUs"),
        ({"parameters": {"lr_scheduler": "none"}}, "parameters: --lr-scheduler: "),
        ({"parameters": {"hf_token": "hf_x"}}, "a secret belongs in a Kubernetes Secret"),
        ({"parameters": {"description": "{{workflow.uid}}"}}, "would be taken for a tag of Argo"),
        ({"parameters": {"description": "\x07"}}, "cannot be passed on by Argo"),
    ],
)
def test_what_fits_in_no_cluster_is_refused(values: dict[str, Any], told: str) -> None:
    given = settings.validate(values, "mine.yaml")
    with pytest.raises(UsageError) as refused:
        manifests.tree(given)
    assert told in str(refused.value)
    with pytest.raises(UsageError) as refused_again:
        manifests.part(given, None)
    assert str(refused_again.value) == str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"parameters": {"data_split": 1.0, "tasks": []}},  # a run may bring an eval set
        {"parameters": {"model": "pvc://models/base"}, "claims": ["models"]},
        {"parameters": {"model": "pvc://sft-runs/runs/first/model"}},
        {"parameters": {"model": "oci://quay.io/a/b:1", "eval_uri": "hf://org/held-out"}},
        {"parameters": {"model": "org/name@main", "chat_template": "/claims/x/t.jinja"}},
    ],
)
def test_defaults_that_a_run_completes_are_taken(values: dict[str, Any]) -> None:
    manifests.refuse_impossible(settings.validate(values, "mine.yaml"))


def test_several_impossible_settings_are_told_together() -> None:
    given = settings.validate(
        {"cluster_auth": "service-account", "storage": {"access_mode": "ReadWriteOnce"}},
        "mine.yaml",
    )
    for overlay in (None, "base", "cluster"):
        with pytest.raises(UsageError) as refused:
            manifests.part(given, overlay)
        assert "serves one node" in str(refused.value)
        assert "needs a namespace" in str(refused.value)


def test_a_pod_that_trains_itself_needs_neither_a_shared_volume_nor_a_namespace() -> None:
    alone = {"launcher": "local", "cluster_auth": "service-account"}
    given = settings.validate(alone | {"storage": {"access_mode": "ReadWriteOnce"}}, "mine.yaml")
    assert manifests.part(given, None)


def test_an_image_is_named_by_registry_tag_or_digest() -> None:
    digest = f"sha256:{'a' * 64}"
    images = settings.Images(registry="quay.io:8443/a/b", digests={"sft-train": digest}, tag="v1")
    assert images.reference("sft-train") == f"quay.io:8443/a/b/sft-train@{digest}"
    assert images.reference("sft-dataset") == "quay.io:8443/a/b/sft-dataset:v1"
    assert settings.Images(tag="v1").reference("x") == "x:v1"


def test_go_gets_no_days() -> None:
    assert [settings.go_duration(text) for text in ("30s", "2d")] == ["30s", "48h"]


def test_durations_are_seconds() -> None:
    assert [settings.seconds(text) for text in ("30s", "10m", "12h", "7d")] == [
        30,
        600,
        43200,
        604800,
    ]
