"""lm-eval tasks, found by name or by the path of a YAML file, and loaded with their data."""

import contextlib
import difflib
import glob
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steps import files
from steps.errors import (
    CredentialsError,
    DataError,
    StepError,
    TransientError,
    UsageError,
    causes,
    volume_error,
)
from steps.evaluate.data_sets import DataSet, offline
from steps.evaluate.params import EvaluateParams
from steps.record import Asset
from steps.secrets import HF_TOKEN

log = logging.getLogger(__name__)

# What `dataset_path` says where the data is files: https://huggingface.co/docs/datasets/loading
_FILE_FORMATS = {"arrow", "csv", "json", "pandas", "parquet", "text", "webdataset", "xml"}
_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_OF_DATA = ("dataset_path", "dataset_name", "dataset_kwargs")
"""Keys of a task's config that say what it asks about."""


def use_cache(folder: Path) -> None:
    """Have the data sets of tasks fetched into the cache; to be called before any import of them."""
    os.environ.setdefault("HF_HUB_CACHE", str(folder / "hub"))
    os.environ.setdefault("HF_DATASETS_CACHE", str(folder / "datasets"))


def check(params: EvaluateParams) -> list[DataSet]:
    """The hub's data sets that the tasks ask about, each once.

    Raises UsageError for names that lm-eval does not know, DataError for files that are no task, and
    for a task's data that is files of this machine and is not there.
    """
    if not params.tasks:
        return []
    known = _manager(params).task_index
    found: dict[tuple[str, str | None], DataSet] = {}
    for task in params.tasks:
        path = Path(task).absolute()
        named = _leaves(_read(path), path, known) if _is_path(task) else _named(task, known)
        for place, config in named:
            _data_files(place, config)
            if (data := _on_hub(task, config)) and params.scores_tasks:
                found.setdefault((data.repository, data.revision), data)
    return list(found.values())


def _named(name: str, known: Mapping[str, Any]) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The files and configs of single tasks that a known task, group or tag consists of."""
    entry = known[name]
    if entry.cfg is None:
        for member in sorted(entry.tags & known.keys()):
            yield from _named(member, known)
    else:
        yield from _leaves(entry.cfg, entry.yaml_path, known)


def _leaves(
    config: Mapping[str, Any], path: Path, known: Mapping[str, Any]
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The same of a config; what a group changes in the data of its members is in theirs."""
    if "group" not in config:
        yield path, config
        return
    members = config.get("task")
    for member in members if isinstance(members, list) else []:
        own = member if isinstance(member, dict) else {"task": member}
        changes = {key: value for key, value in {**config, **own}.items() if key in _OF_DATA}
        name = str(own.get("group") or own.get("task"))
        leaves = _named(name, known) if name in known else _leaves(own, path, known)
        for place, leaf in leaves:
            yield place, {**leaf, **changes}


def _on_hub(task: str, config: Mapping[str, Any]) -> DataSet | None:
    """The hub's data set of a task; None where its data is files, or its own code fetches it."""
    path, options = str(config.get("dataset_path") or ""), config.get("dataset_kwargs") or {}
    is_other = path in _FILE_FORMATS or "class" in config or "custom_dataset" in config
    if is_other or not _REPOSITORY.fullmatch(path) or Path(path).is_dir():
        return None
    return DataSet(task, path, config.get("dataset_name"), options.get("revision"))


def assets(tasks: Sequence[str]) -> dict[str, Asset]:
    """The files that tasks are given by, and those of their data that lie here.

    Raises DataError where a task's file, or one of its data, is not there or is none.
    """
    found = [file for path in _paths(tasks) for file in (path, *_data_files(path, _read(path)))]
    return {f"task {path}": Asset(path=str(path), sha256=files.sha256(path)) for path in found}


def load(params: EvaluateParams, model: Path) -> dict[str, Any]:
    """The tasks with their data, as lm-eval takes them; no model is loaded yet.

    Raises what `check` raises; for data that cannot be had TransientError, CredentialsError or
    DataError, whichever it is.
    """
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    logging.getLogger("lm_eval").setLevel(params.verbosity)
    # Some tasks read the tokenizer's name from the metadata to make their prompts as long as asked.
    manager = _manager(params, {"pretrained": str(model)} | params.model_args)
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in params.tasks:
        log.info("loading the task %s", name)
        with _fault_of(name):
            part = manager.load([_specification(name)])
        for kind, entries in part.items():
            found[kind] |= entries
    for name, task in found["tasks"].items():
        _refuse_what_is_not_for_here(name, task)
        if params.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=params.gen_kwargs, update=True)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return found


def _is_path(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _paths(tasks: Sequence[str]) -> list[Path]:
    return [Path(task).absolute() for task in tasks if _is_path(task)]


def _read(path: Path) -> dict[str, Any]:
    """A task's file, its functions unresolved: nothing that it names is run."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        config: dict[str, Any] = load_yaml(path, resolve_func=False)
    except FileNotFoundError as error:
        named = (
            f"{path} includes it" if path.resolve() != Path(error.filename) else "--tasks names it"
        )
        raise DataError(f"{error.filename}: there is no such file; {named}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        raise volume_error(error) or DataError(f"{path}: not an lm-eval task: {told}") from error
    if not config.keys() & {"task", "group"}:
        raise DataError(f"{path}: not an lm-eval task: it has neither `task` nor `group`")
    return config


def _data_files(task: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files of this machine that `dataset_kwargs.data_files` names: a path, some, or by split.

    Raises DataError where one is not there; a data set of the hub has its files there.
    """
    options = config.get("dataset_kwargs") or {}
    named = options.get("data_files") or []
    splits = list(named.values()) if isinstance(named, Mapping) else [named]
    listed = [
        str(entry) for split in splits for entry in (split if isinstance(split, list) else [split])
    ]
    if config.get("dataset_path") not in _FILE_FORMATS:
        return []
    files_here = []
    for entry in listed:
        if "://" in entry:
            continue
        path = Path(options.get("data_dir") or "", entry).expanduser().absolute()
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
        if not found:
            raise DataError(f"{path}: there is no such file; {task} names it for its data")
        files_here += [file for file in found if file.is_file()]
    return files_here


def _members(group: Mapping[str, Any]) -> Iterator[str]:
    """The names of a group's tasks, which may be given with changes to them."""
    entries = group.get("task") if "group" in group else []
    for entry in entries or []:
        yield (
            str(entry.get("task") or entry.get("group")) if isinstance(entry, dict) else str(entry)
        )


def _specification(task: str) -> str:
    """What lm-eval's manager is asked for: a name, or the path of a file with one task."""
    if not _is_path(task):
        return task
    path = Path(task).absolute()
    return str(_read(path).get("group") or path)


def _manager(params: EvaluateParams, metadata: dict[str, Any] | None = None) -> Any:
    """lm-eval's manager, which knows every one of the tasks."""
    from lm_eval.tasks import TaskManager

    if "pretrained" in params.model_args:
        raise UsageError(
            "--model-args: 'pretrained' is not for here: name the model by phase_03_eval_opt_model"
        )
    names = [task for task in params.tasks if not _is_path(task)]
    configs = {path: _read(path) for path in _paths(params.tasks)}
    groups = [path for path, config in configs.items() if "group" in config]
    folders = [path.parent for path in groups]
    # A group's tasks mostly lie beside it. To know lm-eval's own, 14 thousand files are read, for
    # seconds.
    manager = TaskManager(include_path=folders, include_defaults=bool(names), metadata=metadata)
    members = {member for path in groups for member in _members(configs[path])}
    if not names and members - set(manager.all_tasks):
        manager = TaskManager(include_path=folders, metadata=metadata)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise UsageError("\n  ".join(_unknown(name, manager.all_tasks) for name in unknown))
    return manager


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return (
        f"--tasks: lm-eval knows no task {name!r}{meant} (a task of your own is given by the "
        "path of its .yaml file)"
    )


def _refuse_what_is_not_for_here(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"--tasks: {name} runs code that the model writes, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"--tasks: {name} asks about pictures or sound, which is not done here")


@contextlib.contextmanager
def _fault_of(task: str) -> Iterator[None]:
    """Tell whose fault it is that a task cannot be loaded: the network's, the token's, its own."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # a task is others' code: it can raise whatever it likes
        raise _told(task, error) from error


def _told(task: str, error: Exception) -> StepError:
    from datasets.exceptions import DatasetNotFoundError
    from httpx2 import HTTPError
    from huggingface_hub import get_token, is_offline_mode

    known = (DatasetNotFoundError, HTTPError, ConnectionError, TimeoutError)
    cause = next((link for link in causes(error) if isinstance(link, known)), error)
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if volume := volume_error(error):
        return volume
    # Without a token the hub does not say which data sets are private and which do not exist, and
    # datasets tells a gated one apart by its message alone.
    hidden = isinstance(cause, DatasetNotFoundError) and ("gated" in str(cause) or not get_token())
    if hidden or status in (401, 403):
        return CredentialsError(
            f"{task}: its data set cannot be had: {cause} Check its name; if it is private or "
            "gated, accept its licence on the hub, and put a token that may read it into the secret "
            f"{HF_TOKEN.name!r} (key {HF_TOKEN.keys[0]})"
        )
    if isinstance(cause, ConnectionError) and is_offline_mode():
        return offline(f"{task}: its data set")
    may_pass = status is None or status in (408, 429) or status >= 500
    if isinstance(cause, HTTPError | ConnectionError | TimeoutError) and may_pass:
        return TransientError(f"{task}: its data set does not come: {cause}; try again later")
    return DataError(f"{task}: the task cannot be loaded: {type(error).__name__}: {error}")
