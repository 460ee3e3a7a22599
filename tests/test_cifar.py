"""CIFAR-10 from its published files: what is read, and that nothing in a pickle or an archive is run or followed."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from cifar_files import BATCHES, LABELS, META, batch, cifar_files, python2, random_pictures, write_archive, write_folder

from eqm_video.cli import main
from eqm_video.data import cifar, unpickle
from eqm_video.data.datasets import open_data
from eqm_video.data.unpickle import read_plain
from eqm_video.errors import UserError
from eqm_video.sampling.loading import load_pipeline


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return cifar_files(*random_pictures(36), tests=6)


def open_cifar(root: Path, **options):
    return open_data("images", root, **{"frames": 1, "size": 32, **options})


# ---- pickles as data -------------------------------------------------------------------------------------------------


def test_the_test_files_are_written_as_the_published_ones() -> None:
    assert hashlib.md5(python2(META)).hexdigest() == "5ff9c542aee3614f3951f8cda6e48888"  # of the published batches.meta


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_reads_what_python_reads_from_both_pythons() -> None:
    pictures, labels = random_pictures(300)  # more values than a short reference can count, and lists of several parts
    held = batch("data_batch_1", pictures, labels * 4)
    for content, key in ((python2(held), "bytes"), (pickle.dumps(held, protocol=2), "ASCII")):
        expected = pickle.loads(content, encoding=key)
        found = read_plain(content, "file")
        assert list(found) == [key.decode() for key in expected]
        for (name, value), theirs in zip(found.items(), expected.values(), strict=True):
            assert np.array_equal(value, theirs) if name == "data" else value == theirs
    assert found["data"].dtype == np.uint8 and found["data"].shape == (300, 3072)
    assert read_plain(pickle.dumps({"a": np.asfortranarray(held[b"data"][:3])}, 2), "f")["a"].shape == (3, 3072)
    assert np.array_equal(
        read_plain(pickle.dumps({"a": np.asfortranarray(held[b"data"][:3])}, 2), "f")["a"], held[b"data"][:3]
    )


class Runs:
    """A value whose pickle runs a function when Python reads it."""

    def __init__(self, *what) -> None:
        self.what = what

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_malicious_pickles_are_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    for function, arguments in ((os.system, (f"touch '{marker}'",)), (os.mkdir, (str(marker),)), (eval, ("1",))):
        content = pickle.dumps({"data": Runs(function, arguments)}, protocol)
        with pytest.raises(UserError, match=r"evil\.bin.*nothing in the file was run"):
            read_plain(content, "evil.bin")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Runs(os.mkdir, (str(marker),)), protocol))  # Python's own reader does run it
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x80\x02cposix\nsystem\nU\x02lsq\x01\x85R.", r"GLOBAL \(byte 2\): it names 'posix.system'"),
        (b"\x80\x02}U\x01acos\ngetcwd\n)Rs.", r"GLOBAL .*'os.getcwd'"),
        (b"\x80\x02(U\x02lsios\nsystem\n.", r"INST \(byte 7\): data do not need this opcode"),
        (b"\x80\x02c__builtin__\neval\n.", r"'__builtin__.eval'"),
        (b"\x80\x02cnumpy\nndarray\n(K\x01t\x81.", "NEWOBJ"),
        (b"\x80\x02U\x01aQ.", "BINPERSID"),
        (b"\x80\x02}\x82\x01.", "EXT1"),
        (b"\x80\x04}.", "protocol 4, not 2"),
        (b"\x80\x02ccopy_reg\n_reconstructor\n.", r"'copy_reg._reconstructor'"),
        (b"\x80\x02cnumpy\ndtype\nU\x01OK\x00K\x01\x87R.", "arguments that data do not need"),
        (b"\x80\x02cnumpy\nndarray\nK\x05\x85R.", "arguments that data do not need"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x06\x00\x00\x00base64\x86R.", "arguments that data do not"),
        (b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R.", "stand for bytes"),
        (b"\x80\x02K\x01K\x02R.", "arguments that data do not need"),
        (b"\x80\x02}}b.", "sets the state"),
        (b"\x80\x02R.", "the stack is too short"),
        (b"\x80\x02]u.", "there is no mark"),
        (b"\x80\x02](K\x01K\x02u.", "there is no dict"),
        (b"\x80\x02}(K\x01K\x02u.", "keys must be text"),
        (b"\x80\x02}(U\x01au.", "keys must be text"),
        (b"\x80\x02}h\x05.", "number 5 that is not there"),
        (b"\x80\x02K\x01.", "not one dictionary"),
        (b"\x80\x02}}.", "not one dictionary"),
        (b"\x80\x02q\x01.", "there is no object"),
        (b"", "not a whole pickle"),
        (b"\x80\x02}\xff.", "not a whole pickle.*unknown"),
        (b"plain text", "not a whole pickle|refused"),
    ],
)
def test_opcodes_beyond_data_are_refused_by_name(content: bytes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_plain(content, "file")


def test_arrays_must_have_the_bytes_of_their_shape() -> None:
    content = python2({b"data": np.zeros((2, 5), np.uint8)})
    read_plain(content, "file")
    for wrong in (b"K\x03K\x05\x86", b"J\xff\xff\xff\xffK\x05\x86", b"K\x02N\x86"):
        with pytest.raises(UserError, match=r"BUILD.*does not have 10 bytes"):
            read_plain(content.replace(b"K\x02K\x05\x86", wrong), "file")
    for array in (np.zeros((2, 5), np.float32), np.array([{}], dtype=object), np.zeros(3, "U1")):
        with pytest.raises(UserError, match=r"refused at the opcode"):
            read_plain(pickle.dumps({"data": array}, 2), "file")


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
def test_cut_and_damaged_pickles_are_refused_whatever_they_became() -> None:
    content = python2(batch("b", *random_pictures(2)))
    for end in range(len(content)):
        if end < 400 or end % 97 == 0 or end > len(content) - 120:
            with pytest.raises(UserError):
                read_plain(content[:end], "file")
    chance = random.Random(0)
    head = content[:120] + content[-90:]
    for _ in range(3000):
        damaged = bytearray(head if chance.random() < 0.5 else content[:60] + content[-200:])
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            assert isinstance(read_plain(bytes(damaged), "file"), dict)
        except UserError:
            continue


def test_the_number_of_opcodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "MOST", 1000)
    with pytest.raises(UserError, match="more than 1000 opcodes"):
        read_plain(b"\x80\x02" + b"]" * 2000 + b".", "file")


# ---- the set ---------------------------------------------------------------------------------------------------------


def test_archive_and_folder_give_the_pictures(files: dict[str, bytes], tmp_path: Path) -> None:
    pictures, labels = random_pictures(36)
    folder = write_folder(tmp_path, files)
    archive = write_archive(tmp_path / "cifar-10-python.tar.gz", files)
    for root in (archive, folder, tmp_path):
        train, test, every = (open_cifar(root, split=split) for split in ("train", "test", None))
        assert (len(train), len(test), len(every)) == (30, 6, 36)
        assert train.labels == test.labels == list(LABELS)
        for data, first in ((train, 0), (test, 30), (every, 0)):
            for index in range(len(data)):
                clip = data.clip(index)
                assert np.array_equal(clip.pixels.permute(0, 2, 3, 1)[0].numpy(), pictures[first + index])
                assert clip.label == labels[first + index]
        assert train.clip(6).name == "data_batch_2/data_batch_2_s_000000.png"
        assert train.report.used == train.report.found == 30 and "30 of 30" in train.report.summary()
        assert train.length(0) == 1 and train.windows()[:2] == [(0, 0), (1, 0)] and train.clip(0).times.tolist() == [0]


def test_options_work_as_for_other_images(files: dict[str, bytes], tmp_path: Path) -> None:
    root = write_folder(tmp_path, files)
    plain, flipping = open_cifar(root, split="test"), open_cifar(root, split="test", flip=True)
    seen = set()
    for seed in range(12):
        straight, clip = plain[(2, seed)].pixels, flipping[(2, seed)].pixels
        seen.add(torch.equal(clip, straight))
        assert torch.equal(clip, straight) or torch.equal(clip, straight.flip(-1))
    assert seen == {True, False}
    assert open_cifar(root, size=16).clip(0).pixels.shape == (1, 3, 16, 16)
    unlabelled = open_cifar(root, labelled=False)
    assert unlabelled.labels == [] and {unlabelled.clip(index).label for index in range(36)} == {-1}
    open_cifar(root, report_path=tmp_path / "report.json")
    assert '"used": 36' in (tmp_path / "report.json").read_text()
    assert torch.equal(pickle.loads(pickle.dumps(plain)).clip(1).pixels, plain.clip(1).pixels)
    with pytest.raises(UserError, match=r"CIFAR-10's images, not videos: type data.kind=images data.frames=1"):
        open_data("videos", root)
    with pytest.raises(UserError, match=r"data.split is 'val'"):
        open_cifar(root, split="val")


def test_class_folders_can_forget_their_labels(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
    data = open_data("images", tmp_path, frames=1, size=8, labelled=False, flip=True)  # no label, no wrong mirror image
    assert data.labels == [] and [data.clip(index).label for index in range(2)] == [-1, -1]


def changed(name: str = "data_batch_3", **values) -> dict[str, bytes]:
    """The seven files, one of them with other values; None leaves a key out."""
    made = cifar_files(*random_pictures(12), tests=2)
    content = META if name == "batches.meta" else batch(name, *random_pictures(2))
    content = {**content, **{key.encode(): value for key, value in values.items()}}
    made[name] = python2({key: value for key, value in content.items() if value is not None})
    return made


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (changed(data=np.zeros((2, 300), np.uint8)), r"data_batch_3: data are \(2, 300\), not \(N, 3072\)"),
        (changed(data=np.zeros((2, 3, 1024), np.uint8)), r"data are \(2, 3, 1024\)"),
        (changed(data=np.zeros((0, 3072), np.uint8)), r"data are \(0, 3072\)"),
        (changed(data=b"x" * 3072), "data are bytes"),
        (changed(labels=[1, 10]), "labels are not numbers from 0 to 9"),
        (changed(labels=[b"1", b"2"]), "labels are not numbers"),
        (changed(labels=[1]), "not as many labels"),
        (changed(filenames=[b"a.png", b"b.png", b"c.png"]), "not as many labels and filenames"),
        (changed(filenames=[b"a.png", 3]), "type int is not a printable name"),
        (changed(filenames=[b"a.png", b"\x1b[31m"]), "is not a printable name"),
        (
            changed(labels=None, fine_labels=[1, 2]),
            r"holds batch_label, data, filenames, fine_labels, but not CIFAR-10's data",
        ),
        (changed("batches.meta", label_names=None), r"batches.meta holds no label_names but num_cases_per_batch"),
        (changed("batches.meta", label_names=[b"cat", b"cat"]), "names a class twice"),
        (changed("batches.meta", label_names=[]), "holds no label_names"),
    ],
)
def test_other_contents_are_refused(made: dict[str, bytes], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        open_cifar(write_folder(tmp_path, made))


def test_missing_files_are_named(files: dict[str, bytes], tmp_path: Path) -> None:
    fewer = {name: content for name, content in files.items() if name not in ("data_batch_2", "data_batch_5")}
    root = write_folder(tmp_path, fewer)
    with pytest.raises(UserError, match=r"lacks data_batch_2, data_batch_5: give cifar-10-python.tar.gz"):
        open_cifar(root, split="train")
    assert len(open_cifar(root, split="test")) == 6
    archive = write_archive(tmp_path / "a.tar.gz", fewer)
    with pytest.raises(UserError, match=r"lacks data_batch_2, data_batch_5 \(in cifar-10-batches-py/\)"):
        open_cifar(archive)
    with pytest.raises(UserError, match=r"does not exist(.*\n)+.*cifar-10-python.tar.gz"):
        open_cifar(tmp_path / "none")


@pytest.mark.parametrize("inside", ["", "../cifar-10-batches-py/", "/cifar-10-batches-py/", "x/cifar-10-batches-py/"])
def test_members_elsewhere_in_an_archive_are_not_read(files: dict[str, bytes], tmp_path: Path, inside: str) -> None:
    with pytest.raises(UserError, match=r"lacks batches.meta, data_batch_1"):
        open_cifar(write_archive(tmp_path / "a.tar.gz", files, inside))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz"]  # nothing was unpacked


def test_links_in_an_archive_are_not_followed(files: dict[str, bytes], tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(files["test_batch"])
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./cifar-10-batches-py/{name}")
            if name == "test_batch":
                member.type, member.linkname = tarfile.SYMTYPE, str(secret)
                content = b""
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match="lacks test_batch"):
        open_cifar(path, split="test")
    assert len(open_cifar(path, split="train")) == 30


def test_damaged_and_oversized_archives(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_archive(tmp_path / "a.tar.gz", files).read_bytes()
    chance = random.Random(1)
    for trial in range(60):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if trial % 2 else whole)
        for _ in range(0 if trial % 2 else 3):
            damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        (tmp_path / "b.tar.gz").write_bytes(damaged)
        try:
            assert len(open_cifar(tmp_path / "b.tar.gz")) == 36  # a flipped bit that no check covers
        except UserError as error:
            assert "b.tar.gz" in str(error)
    for limit, says in (("LARGEST", "^[^(]*a file of CIFAR-10 at most"), ("UNPACKED", "^[^(]*unpacks to more than")):
        with monkeypatch.context() as patch:
            patch.setattr(cifar, limit, 5000)
            with pytest.raises(UserError, match=says):
                open_cifar(tmp_path / "a.tar.gz")
    monkeypatch.setattr(cifar, "LARGEST", 5000)
    with pytest.raises(UserError, match="a file of CIFAR-10 at most"):
        open_cifar(write_folder(tmp_path, files))


def test_names_of_all_batches_are_the_published_ones() -> None:
    assert {name for names in cifar.BATCHES.values() for name in names} == set(BATCHES)


# ---- the recipe ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("labelled", [False, True])
def test_the_recipe_trains_and_samples(
    labelled: bool, files: dict[str, bytes], root: Path, tmp_path: Path, capsys, fresh_accelerator
) -> None:
    archive, run, out = write_archive(tmp_path / "cifar-10-python.tar.gz", files), tmp_path / "run", tmp_path / "out"
    words = ["train", "--config", str(root / "configs" / "cifar10_unet.yaml"), f"data.root={archive}", f"run.dir={run}"]
    words += ["model.preset=EqM-UNet-Tiny", "data.size=8", "data.workers=0", "train.steps=3", "train.batch_size=4"]
    words += ["data.latents=online", "run.report=false"]
    words += ["train.mixed_precision=no", "held_out.clips=6", "preview.samples=3", "sampler.steps=2"]
    assert main([*words, f"data.labelled={str(labelled).lower()}"]) == 0
    told = capsys.readouterr().out
    assert f"1.1 M parameters; 30 images with {'10' if labelled else 'no'} labels; images, 8 px" in told
    assert (run / "previews" / "step_00000003.png").is_file() and not (run / "report.html").exists()
    pipeline, _ = load_pipeline(run)
    assert list(pipeline.labels.values()) == (list(LABELS) if labelled else [])
    assert pipeline.transformer.null_label == (10 if labelled else 0)
    AcceleratorState._reset_state(reset_partial_state=True)
    sampling = ["sample", str(run), "--out", str(out), "--num-samples", "5", "--batch-size", "3", "--steps", "2"]
    assert main(sampling) == 0
    with np.load(out / "samples.npz") as made:
        assert made["arr_0"].shape == (5, 8, 8, 3)
        assert made["labels"].tolist() == (list(range(5)) if labelled else [-1] * 5)
    AcceleratorState._reset_state(reset_partial_state=True)
    start = [*words, f"run.dir={tmp_path / 'next'}", f"train.init_from={run}", "train.steps=1", "held_out.split=null"]
    assert main([*start, "data.labelled=true"]) == 0
    assert ("labels start anew" in capsys.readouterr().out) is not labelled
