import errno
import hashlib
import json
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import manifest_fields, tiny_parts

from limbeck.errors import BundleError, OptionError, OutputError
from limbeck.runtime.bundle import BandsEntry, NeighborhoodEntry, open_bundle, write_bundle


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change ``limbeck.json`` and seal it anew, as someone who knows the format could."""
    document = json.loads((bundle / "limbeck.json").read_text(encoding="utf-8"))
    del document["sha256"]
    change(document)
    body = json.dumps(document, indent=2).removesuffix("\n}").encode()
    seal = f',\n  "sha256": "{hashlib.sha256(body).hexdigest()}"\n}}\n'
    (bundle / "limbeck.json").write_bytes(body + seal.encode())


# ---------------------------------------------------------------- round trip


def test_round_trip(write_tiny: Callable[..., Path]) -> None:
    opened = open_bundle(write_tiny())
    fields = manifest_fields()
    assert opened.manifest.format == 2
    assert opened.manifest.classes == ("art", "maths")
    assert opened.manifest.inputs[0].width == 3
    assert opened.manifest.temperature == 2.0
    assert opened.manifest.graph.counts == {"nodes": 4, "edges": 3}
    for name in ("limbeck", "method", "student", "teacher", "setting", "scores", "versions"):
        assert getattr(opened.manifest, name) == fields[name]
    assert opened.file("model.onnx").read_bytes() == tiny_parts()["model"]
    assert opened.array("logits").shape == (4, 2)
    assert not opened.array("logits").flags.writeable


def test_checksums_are_those_of_sha256sum(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny()
    files = open_bundle(bundle).manifest.files
    assert set(files) | {"limbeck.json"} == set(everything_below(bundle))
    for name, entry in files.items():
        content = (bundle / name).read_bytes()
        assert (entry.sha256, entry.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    raw = (bundle / "limbeck.json").read_bytes()
    # the recipe of docs/bundle.md: all but the last 83 bytes
    assert json.loads(raw)["sha256"] == hashlib.sha256(raw[:-83]).hexdigest()


def test_same_parts_give_the_same_bytes(write_tiny: Callable[..., Path]) -> None:
    assert everything_below(write_tiny("one")) == everything_below(write_tiny("two"))


def test_permissions_follow_the_umask(write_tiny: Callable[..., Path], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(write_tiny().stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scores": {"student": float("nan")}}, "JSON"),
        ({"teacher": {"module": object()}}, "JSON"),
        ({"classes": ["art", "art"]}, "classes"),
        ({"calibration": {"temperature": 0}}, "calibration.temperature"),
        ({"calibration": {"temperature": 10**400}}, "calibration.temperature"),
        ({"graph": {"name": "tiny"}}, "graph.dataset"),
    ],
)
def test_writer_refuses_a_manifest_that_no_reader_would_take(
    write_tiny: Callable[..., Path], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        write_tiny(manifest=manifest_fields(**change))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- whole or not at all


def test_a_bundle_is_replaced(write_tiny: Callable[..., Path], tmp_path: Path) -> None:
    write_tiny()
    write_tiny(manifest=manifest_fields(method="krd"))
    assert open_bundle(tmp_path / "tiny").manifest.method == "krd"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_damaged_bundle_can_be_replaced(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny()
    (bundle / "model.onnx").unlink()
    open_bundle(write_tiny())


@pytest.mark.parametrize("kind", ["folder", "empty", "file", "json", "link"])
def test_what_is_not_a_bundle_is_left_alone(
    write_tiny: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "tiny"
    if kind == "file":
        target.write_text("precious")
    elif kind == "link":
        target.symlink_to(tmp_path / "nowhere" / "at-all")
    else:
        target.mkdir()
    if kind == "folder":
        (target / "thesis.tex").write_text("precious")
    if kind == "json":
        (target / "limbeck.json").write_text("[]")
    before = everything_below(tmp_path)
    with pytest.raises(OutputError, match=r"tiny|nowhere"):
        write_tiny()
    assert everything_below(tmp_path) == before


def test_a_file_of_the_user_inside_a_bundle_is_not_deleted(
    write_tiny: Callable[..., Path],
) -> None:
    bundle = write_tiny()
    (bundle / "notes.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"notes\.txt"):
        write_tiny()
    assert (bundle / "notes.txt").read_text() == "precious"


def test_no_parent_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_bundle(tmp_path / "no" / "where", **tiny_parts())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["fsync", "write", "save", "rename"])
@pytest.mark.parametrize("replacing", [False, True])
def test_a_full_disk_leaves_things_as_they_were(
    write_tiny: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
    replacing: bool,
) -> None:
    if replacing:
        write_tiny()
    before = everything_below(tmp_path)
    calls = 0

    def no_space(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        # the second rename of a replacement is the one that puts the new bundle in place
        if fails == "rename" and replacing and calls != 2:
            return real_rename(*args, **kwargs)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real_rename = os.rename
    target = {
        "fsync": "os.fsync",
        "write": "limbeck.runtime.bundle.writing._HashedFile.write",
        "save": "numpy.save",
        "rename": "os.rename",
    }[fails]
    monkeypatch.setattr(target, no_space)
    with pytest.raises(OutputError, match="No space left on device"):
        write_tiny(manifest=manifest_fields(method="krd"))
    assert everything_below(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == int(replacing)


@pytest.fixture
def _files_of_64_kib() -> Iterator[None]:
    """The system itself refuses files beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("_files_of_64_kib")
def test_a_file_that_the_system_cuts_short(tmp_path: Path) -> None:
    parts = tiny_parts()
    parts["store"]["logits"] = np.zeros((100_000, 2), dtype=np.float32)
    with pytest.raises(OutputError, match="File too large"):
        write_bundle(tmp_path / "tiny", **parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_device_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, mode: real_open(Path("/dev/full"), mode.replace("x", "w"))
    )
    with pytest.raises(OutputError, match="No space left on device"):
        write_bundle(tmp_path / "tiny", **tiny_parts())
    assert list(tmp_path.iterdir()) == []


def test_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(OutputError, match="Read-only file system"):
        write_bundle(tmp_path / "tiny", **tiny_parts())


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_read_only_parent(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            write_bundle(tmp_path / "tiny", **tiny_parts())
    finally:
        tmp_path.chmod(0o700)


# ---------------------------------------------------------------- what readers refuse


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle at"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"it has no limbeck\.json"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", ["model.onnx", "README.md", "store/ids.npy", "store/logits.npy"])
def test_each_listed_file_is_checked_and_named(write_tiny: Callable[..., Path], name: str) -> None:
    path = write_tiny() / name
    bundle = path.parents[name.count("/")]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{name} has .* bytes"):
        open_bundle(bundle)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} does not match its checksum"):
        open_bundle(bundle)
    assert open_bundle(bundle, verify=False)
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(bundle, verify=False)
    os.mkfifo(path)
    with pytest.raises(BundleError, match=f"{name} is not a plain file"):
        open_bundle(bundle)


@pytest.mark.parametrize("number", [0, 4, "2", True, None, 2.0])
def test_unknown_format(write_tiny: Callable[..., Path], number: Any) -> None:
    bundle = write_tiny()
    edit_manifest(bundle, lambda document: document.update(format=number))
    with pytest.raises(BundleError, match=r"limbeck\.json is of format .* reads formats 1, 2, 3"):
        open_bundle(bundle)


@pytest.mark.parametrize("task", [None, "both", 1])
def test_format_3_says_its_task(write_tiny: Callable[..., Path], task: Any) -> None:
    bundle = write_tiny()
    edit_manifest(bundle, lambda document: document.update(format=3, task=task))
    with pytest.raises(BundleError, match="the field 'task' must be"):
        open_bundle(bundle)
    edit_manifest(bundle, lambda document: document.update(task="labels"))
    assert open_bundle(bundle).manifest.several_labels
    edit_manifest(bundle, lambda document: document.update(format=2))
    assert not open_bundle(bundle).manifest.several_labels


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"format": NaN}', "\udcff", "nul"])
def test_manifest_that_is_not_json(write_tiny: Callable[..., Path], text: str) -> None:
    bundle = write_tiny()
    (bundle / "limbeck.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError, match=r"limbeck\.json is not valid JSON"):
        open_bundle(bundle)


def test_manifest_edited_by_hand(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny()
    text = (bundle / "limbeck.json").read_text(encoding="utf-8")
    (bundle / "limbeck.json").write_text(text.replace("0.75", "0.99"), encoding="utf-8")
    with pytest.raises(BundleError, match="does not match its own checksum"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "store/../../secret", "store/a/b", "..", "", "a\\b", ".x"]
)
def test_names_that_lead_out_of_the_bundle(write_tiny: Callable[..., Path], name: str) -> None:
    bundle = write_tiny()
    (bundle.parent / "secret").write_text("secret")
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "bytes": 6}
    edit_manifest(bundle, lambda document: document["files"].update({name: entry}))
    with pytest.raises(BundleError, match="no name of a file in a bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", []),
        ("classes", ["art", 3]),
        ("inputs", [{"name": "position", "dtype": "float32", "width": 3}]),
        ("inputs", [{"name": "x", "dtype": "float32", "width": 0}]),
        ("inputs", {}),
        ("preprocessing", []),
        ("method", None),
        ("calibration", {"temperature": True}),
        ("calibration", {"temperature": 1e999}),
        ("graph", {"name": "", "dataset": "", "source": "", "fingerprint": "", "counts": {}}),
        (
            "graph",
            {"name": "", "dataset": "", "source": "", "fingerprint": "", "counts": {"nodes": -1}},
        ),
        ("files", {}),
        ("files", {"model.onnx": {"sha256": "0", "bytes": 1}}),
        ("files", {"model.onnx": {"sha256": "0" * 64, "bytes": -1}}),
    ],
)
def test_sealed_but_wrong_fields(write_tiny: Callable[..., Path], field: str, value: Any) -> None:
    bundle = write_tiny()
    edit_manifest(bundle, lambda document: document.update({field: value}))
    with pytest.raises(BundleError, match=r"limbeck\.json"):
        open_bundle(bundle)


@pytest.mark.parametrize("field", sorted({*manifest_fields(), "files"}))
def test_missing_field_is_named(write_tiny: Callable[..., Path], field: str) -> None:
    bundle = write_tiny()
    edit_manifest(bundle, lambda document: document.pop(field))
    with pytest.raises(BundleError, match=field):
        open_bundle(bundle)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole bundle, and the place where its damaged copies go."""
    folder = tmp_path_factory.mktemp("fuzz")
    return write_bundle(folder / "whole", **tiny_parts()), folder / "damaged"


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_damage_goes_unnoticed(damaged: tuple[Path, Path], data: st.DataObject) -> None:
    whole, copy = damaged
    files = everything_below(whole)
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[position:]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        open_bundle(copy)


# ---------------------------------------------------------------- students that read more


def edges_of(width: int = 4) -> dict[str, Any]:
    inputs = [
        {"name": "x", "dtype": "float32", "width": 3},
        {"name": "graph", "dtype": "int64", "width": width},
    ]
    return {
        "inputs": inputs,
        "neighborhood": {"hops": 2, "weights": "mean", "undirected": True},
    }


def bands_of(width: int = 4) -> dict[str, Any]:
    inputs = [
        {"name": "x", "dtype": "float32", "width": 3},
        {"name": "bands", "dtype": "float32", "width": width},
    ]
    return {"inputs": inputs, "bands": {"count": 2, "layers": 1}}


def test_fields_of_bands_and_neighborhoods(write_tiny: Callable[..., Path]) -> None:
    bundle = write_tiny("bands", manifest=manifest_fields(**bands_of()), cold_model=b"cold")
    manifest = open_bundle(bundle).manifest
    assert (manifest.bands_width, manifest.bands) == (4, BandsEntry(count=2, layers=1))
    assert (bundle / "cold.onnx").read_bytes() == b"cold"
    manifest = open_bundle(write_tiny("gnn", manifest=manifest_fields(**edges_of()))).manifest
    assert manifest.neighborhood == NeighborhoodEntry(2, "mean", undirected=True)
    assert (manifest.format, manifest.bands, manifest.structure) == (2, None, None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (bands_of(), r"does not list the file 'cold\.onnx'"),
        (bands_of(0), "inputs.name"),
        (edges_of() | {"neighborhood": None}, "neighborhood"),
        (edges_of() | {"neighborhood": {"hops": 0}}, "neighborhood.weights"),
        (
            edges_of() | {"neighborhood": {"hops": 0, "weights": "mean", "undirected": True}},
            "neighborhood.hops",
        ),
        (
            edges_of() | {"neighborhood": {"hops": 1, "weights": "mean", "undirected": 1}},
            "neighborhood.undirected' must be true or false",
        ),
        (
            edges_of() | {"neighborhood": {"hops": 1, "weights": "sum", "undirected": True}},
            "must be 'symmetric' or 'mean' or 'neighbor-mean' or 'attention'",
        ),
        ({"inputs": bands_of()["inputs"] + edges_of()["inputs"][1:]}, "x, then nothing or one of"),
    ],
)
def test_wrong_fields_of_bands_and_neighborhoods(
    write_tiny: Callable[..., Path], fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        write_tiny(manifest=manifest_fields(**fields))
