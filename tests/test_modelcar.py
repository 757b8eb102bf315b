"""What becomes of an image's layers; the registry's part is in test_oci.py."""

import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from steps.base_model.modelcar import extract
from steps.errors import DataError
from tests.servers.registry import member, tar

MODEL = {"models/config.json": "{}", "models/model.safetensors": "weights"}


def unpack(folder: Path, *layers: bytes) -> dict[str, str]:
    """The text of all files that the layers leave, by path."""
    paths = [folder / f"layer-{number}" for number in range(len(layers))]
    for path, content in zip(paths, layers, strict=True):
        path.write_bytes(content)
    target = folder / "model"
    target.mkdir()
    extract("oci://registry.example.com/acme/tiny:1", paths, target)
    return {
        path.relative_to(target).as_posix(): path.read_text()
        for path in target.rglob("*")
        if path.is_file()
    }


def test_only_the_files_of_the_model_are_taken(tmp_path: Path) -> None:
    system = tar({"etc/passwd": "root", "root/.docker/config.json": "{}", "usr/lib/x.bin": "x"})
    found = unpack(tmp_path, system, tar(MODEL | {"models/templates/more.jinja": "more"}))
    assert found == {
        "config.json": "{}",
        "model.safetensors": "weights",
        "templates/more.jinja": "more",
    }


@pytest.mark.parametrize("folder", ["", "srv/tiny/", "models/acme/tiny/", "./models/", "/models/"])
def test_the_model_is_found_where_the_image_holds_it(tmp_path: Path, folder: str) -> None:
    layer = {f"{folder}config.json": "{}", f"{folder}model.safetensors": "weights"}
    assert unpack(tmp_path, tar(layer)) == {"config.json": "{}", "model.safetensors": "weights"}


def test_a_model_under_models_wins_over_one_elsewhere(tmp_path: Path) -> None:
    elsewhere = {"config.json": "other", "model.safetensors": "other"}
    assert unpack(tmp_path, tar(elsewhere | MODEL))["config.json"] == "{}"


def test_a_later_layer_replaces_and_removes_files(tmp_path: Path) -> None:
    lower = MODEL | {"models/old.txt": "old", "models/more/a.txt": "a", "models/notes/b.txt": "b"}
    upper = {
        "models/model.safetensors": "newer weights",
        "models/.wh.old.txt": "",
        "models/.wh.more": "",
        "models/notes/.wh..wh..opq": "",
        "models/notes/c.txt": "c",
    }
    assert unpack(tmp_path, tar(lower), tar(upper)) == {
        "config.json": "{}",
        "model.safetensors": "newer weights",
        "notes/c.txt": "c",
    }


def test_a_file_replaces_a_folder_of_a_layer_below(tmp_path: Path) -> None:
    found = unpack(tmp_path, tar(MODEL | {"models/x/a": "a"}), tar({"models/x": "file"}))
    assert found["x"] == "file"


def test_links_inside_the_image_are_followed_without_a_copy(tmp_path: Path) -> None:
    layer = {"models/config.json": "{}", "models/blobs/w": "weights"}
    links = [
        member("models/model.safetensors", kind=tarfile.SYMTYPE, link="blobs/w"),
        member("models/same.safetensors", kind=tarfile.SYMTYPE, link="/models/model.safetensors"),
        member("models/hard.safetensors", kind=tarfile.LNKTYPE, link="models/blobs/w"),
    ]
    found = unpack(tmp_path, tar(layer, links))
    assert set(found.values()) == {"{}", "weights"}
    assert len(found) == 5
    model = tmp_path / "model"
    assert (model / "model.safetensors").samefile(model / "blobs" / "w")
    assert (model / "hard.safetensors").samefile(model / "blobs" / "w")
    assert not any(path.is_symlink() for path in model.rglob("*"))


ESCAPES: dict[str, Iterable[tarfile.TarInfo]] = {
    "which leads out of the image": [member("models/../../../../tmp/escaped")],
    "leads to no file of the image": [
        member("models/out", kind=tarfile.SYMTYPE, link="../../../../etc/passwd")
    ],
    "-> '/etc/passwd' leads to no file": [
        member("models/out", kind=tarfile.SYMTYPE, link="/etc/passwd")
    ],
    "-> 'ring' leads to no file": [member("models/ring", kind=tarfile.SYMTYPE, link="ring")],
    "leads to no file of its layer": [
        member("models/out", kind=tarfile.LNKTYPE, link="/etc/passwd")
    ],
    "is neither a file nor a link": [member("models/null", kind=tarfile.CHRTYPE)],
    "is both a file and a folder": [member("models/config.json/inside")],
}


@pytest.mark.parametrize("told", ESCAPES)
def test_a_member_that_escapes_or_is_no_file_is_refused(tmp_path: Path, told: str) -> None:
    with pytest.raises(DataError) as refused:
        unpack(tmp_path, tar(MODEL, ESCAPES[told]))
    assert told in str(refused.value)


def test_a_file_that_is_larger_than_its_layer_is_refused(tmp_path: Path) -> None:
    sparse = member("models/zeros.safetensors")
    sparse.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": f"{1 << 20},0",
        "GNU.sparse.size": str(1 << 20),
    }
    with pytest.raises(DataError, match="is sparse"):
        unpack(tmp_path, tar(MODEL, [sparse]))


def test_more_files_than_any_model_has_are_refused(tmp_path: Path) -> None:
    header = member("etc/x").tobuf()
    with pytest.raises(DataError, match="hold more than 200,000 files"):
        unpack(tmp_path, header * 200_001 + tar(MODEL))


def test_an_image_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder of the image has"):
        unpack(tmp_path, tar({"etc/config.json": "{}", "models/README.md": "later"}))


def test_a_layer_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a layer cannot be read"):
        unpack(tmp_path, b"not a tar at all" * 100)
