"""Files from anywhere: read, or refused in one sentence; none takes memory by what it claims."""

import gzip
import itertools
import json
import os
import socket
import struct
import subprocess
import sys
import warnings
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from helpers.audited import audit
from helpers.hostile import (
    encoded,
    idx_file,
    npy,
    npy_of,
    pixels,
    png,
    refusal,
    rle_bitmap,
    tensors_file,
    zipped,
)
from PIL import Image

from aigc_jax.core.config import Data
from aigc_jax.core.npz_file import read_npz_file
from aigc_jax.core.safetensors_file import read_safetensors_file
from aigc_jax.data import lines as lines_lib
from aigc_jax.modalities import readers, sources
from aigc_jax.modalities.prepare import prepare


def load(name, folder, **options):
    return sources.load_source(Data(source=f"tfds:{name}", data_dir=str(folder), **options))


# What claims more than there is --------------------------------------------------------------


def jpeg(width, height):
    data = bytearray(encoded("JPEG", "L"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif(width, height):
    data = bytearray(encoded("GIF", "P"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_frame(width, height):
    """A screen of a usual size, and a frame of another."""
    data = bytearray(encoded("GIF", "P"))
    at = data.index(b",\0\0\0\0", 13 + 3 * 2 ** ((data[10] & 7) + 1)) + 5
    data[at : at + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def bmp(width, height):
    data = bytearray(encoded("BMP", "L"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def rle_bmp(width, height):
    data = bytearray(rle_bitmap())
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def webp_extended(width, height):
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunk = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + sizes
    data = encoded("WEBP", "RGB", frames=True)
    return data[:12] + chunk + data[30:]


def webp_lossless(width, height):
    data = bytearray(encoded("WEBP", "RGB", lossless=True))
    (bits,) = struct.unpack_from("<I", data, 21)
    bits = bits >> 28 << 28 | (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14
    data[21:25] = struct.pack("<I", bits)
    return bytes(data)


def webp_lossy(width, height):
    data = bytearray(encoded("WEBP", "RGB"))
    data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    return bytes(data)


def tiff(width, height):
    data = bytearray(encoded("TIFF", "L"))
    at = struct.unpack_from("<I", data, 4)[0] + 2
    while struct.unpack_from("<H", data, at)[0] not in (256, 257):
        at += 12
    for i, number in enumerate((width, height)):
        data[at + 12 * i : at + 12 * i + 12] = struct.pack("<HHII", 256 + i, 4, 1, number)
    return bytes(data)


FORMATS = [png, jpeg, gif, gif_frame, bmp, rle_bmp, webp_extended, webp_lossless, webp_lossy, tiff]


@pytest.mark.parametrize("sides", [(9800, 9800), (16000, 16000)], ids=str)
@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_an_image_of_absurd_size_is_refused(tmp_path, form, sides):
    """The smaller size is one of which Pillow would only warn."""
    (tmp_path / "a.png").write_bytes(form(*sides))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        message = refusal(readers.read_files, f"folder:{tmp_path}")
    assert str(tmp_path / "a.png") in message and "too large" in message


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.__name__)
def test_the_same_header_with_the_right_size_is_read(tmp_path, form):
    (tmp_path / "a.png").write_bytes(form(5, 4))
    assert readers.read_files(f"folder:{tmp_path}").image_shape[:2] == (4, 5)


def absurd_arrays(folder):
    """Files whose headers claim gigabytes, as sources."""
    giga = 2**40
    huge = {"a": {"dtype": "U8", "shape": [giga], "data_offsets": [0, giga]}}
    header = repr({"descr": "|u1", "fortran_order": False, "shape": (giga,)})
    bomb = idx_file([2**14, 2**10, 2**10], bytes(1 << 28))
    files = {
        "safetensors:tensor": tensors_file(huge, bytes(8)),
        "safetensors:header": tensors_file(b"{}", b"", length=2**62),
        "safetensors:count": tensors_file({"a": {**huge["a"], "shape": [2**32] * 9}}, bytes(8)),
        "npz:stored": zipped([("images.npy", npy(header, bytes(8)))]),
        "npz:text": zipped([("images.npy", npy(header.replace("|u1", "<U268435456"), b""))]),
        "npz:length": zipped([("images.npy", b"\x93NUMPY\2\0" + b"\xff" * 4)]),
        "npz:deflated lie": lying_zip(),
        "npz:stored lie": lying_zip(zipfile.ZIP_STORED),
        "idx:plain": idx_file([2**31, 2**10, 2**10], bytes(8)),
        "idx:gzip.gz": gzip.compress(idx_file([2**31, 2**10, 2**10], bytes(8))),
        "idx:bomb.gz": gzip.compress(bomb, 1),
        "idx:more.gz": gzip.compress(idx_file([3, 4, 5], bytes(1 << 28)), 1),
    }
    sources = []
    for source, data in files.items():
        kind, name = source.split(":")
        path = folder / name
        if kind == "idx":
            path.mkdir()
            path /= "train-images-idx3-ubyte" + (".gz" if name.endswith(".gz") else "")
            sources.append(f"idx:{folder / name}")
        else:
            sources.append(f"{kind}:{path}")
        path.write_bytes(data)
    return sources


def lying_zip(method=zipfile.ZIP_DEFLATED):
    """A zip with a member of a few bytes, which claims in every place to be of 4 GB."""
    size = 2**32 - 2
    header = repr({"descr": "|u1", "fortran_order": False, "shape": (size - 128,)})
    data = bytearray(zipped([("images.npy", npy(header.ljust(118), bytes(64)))], method))
    at = data.rindex(b"PK\1\2")
    data[at + 20 : at + 28] = struct.pack("<II", size, size)
    return bytes(data)


LIMITED = """
import resource, sys, tracemalloc
from aigc_jax.modalities import readers
from aigc_jax.core.errors import UserError
import PIL.Image, numpy, safetensors
PIL.Image.init()
with open("/proc/self/statm") as f:
    used = int(f.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)
for source in sys.argv[1:]:
    try:
        readers.read_files(source)
    except UserError as e:
        assert "emory" not in str(e), e
        assert "too large" in str(e) or not source.startswith("folder:"), e
        print(source, "refused")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux")
def test_absurd_claims_take_no_memory(tmp_path):
    """In a process that may take no more than 96 MB."""
    claims = absurd_arrays(tmp_path)
    for form, side in itertools.product(FORMATS, (9000, 16000)):
        folder = tmp_path / f"{form.__name__}_{side}"
        folder.mkdir()
        (folder / "a.png").write_bytes(form(side, side))
        claims.append(f"folder:{folder}")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *claims], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{claim} refused" for claim in claims]


def test_a_file_larger_than_memory_is_refused(tmp_path):
    """A file of one zero after the other, which takes no room on the disk."""
    path, size = tmp_path / "a.txt", 1 << 43
    with open(path, "wb") as f:
        try:
            f.truncate(size)
        except OSError:
            pytest.skip("the file system has no files so large")
    assert "memory" in refusal(readers.read_files, f"text:{path}")
    path.write_bytes(b"")
    with open(path, "r+b") as f:
        f.write(tensors_file({"a": entry([size - 4096])}, b""))
        f.truncate(f.tell() + size - 4096)
    assert "memory" in refusal(read_safetensors_file, str(path))


# Images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "GIF", "WEBP", "TIFF", "MPO"])
def test_the_first_of_several_frames_is_taken(tmp_path, form):
    options = dict(lossless=True) if form == "WEBP" else {}
    mode = "P" if form == "GIF" else "RGB"
    for name, frames in (("one", False), ("two", True)):
        (tmp_path / name).mkdir()
        one = "JPEG" if form == "MPO" and not frames else form
        data = encoded(one, mode, frames=frames, **options)
        (tmp_path / name / "a.png").write_bytes(data)
    one, two = (
        [e()["image"] for e in readers.read_files(f"folder:{tmp_path / n}").splits["train"]]
        for n in ("one", "two")
    )
    assert len(one) == len(two) == 1
    np.testing.assert_array_equal(one, two)


def test_other_formats_than_the_usual_are_refused(tmp_path):
    """Pillow starts Ghostscript for an EPS, whatever the file's name."""
    (tmp_path / "a.png").write_bytes(encoded("EPS", "RGB"))
    events = audit(
        f"""
        from aigc_jax.modalities import readers
        from aigc_jax.core.errors import UserError
        try:
            readers.read_files("folder:{tmp_path}", image_size=2)
        except UserError as e:
            assert "a.png" in str(e)
        else:
            raise AssertionError
        """,
        str(tmp_path),
    )
    assert [e.name for e in events] == []


@pytest.mark.parametrize("mode", ["LAB", "F", "I;16"])
def test_pixels_that_are_not_8_bits_or_no_usual_colours_are_refused(tmp_path, mode):
    (tmp_path / "a.tif").write_bytes(encoded("TIFF", mode))
    assert str(tmp_path / "a.tif") in refusal(readers.read_files, f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["two\nlines", "a\rb", " space", "space ", "\x1b[31m", "\udcff"])
def test_a_class_name_that_tfds_would_change_is_refused(tmp_path, name):
    (tmp_path / "in" / name).mkdir(parents=True)
    (tmp_path / "in" / name / "a.png").write_bytes(encoded("PNG", "L"))
    message = refusal(prepare, f"folder:{tmp_path / 'in'}", "own", str(tmp_path / "data"))
    assert "class folder" in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["..\\x", "'\"<&>", "a  b", "-rf", "%s{0}", "犬\u3000猫"])
def test_an_odd_class_name_round_trips(tmp_path, name):
    for i, folder in enumerate((name, "other")):
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.fromarray(pixels(3, 3 + i)[:, :3]).save(tmp_path / "in" / folder / "a.png")
    prepare(f"folder:{tmp_path / 'in'}", "own", str(tmp_path / "data"))
    names = load("own", tmp_path / "data", validation_fraction=0.5).spec.class_names
    assert sorted(names) == sorted([name, "other"])


# What is no file -----------------------------------------------------------------------------


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path may not be long
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def make_endless(path):
    path.symlink_to("/dev/zero")


def make_circle(path):
    path.symlink_to(path.name)


def make_folder(path):
    path.mkdir()


def make_nothing(path):
    path.symlink_to("gone")


ODD = [make_pipe, make_socket, make_endless, make_circle, make_folder, make_nothing]


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.png", "folder"),
        ("a.txt", "text"),
        ("a.jsonl", "jsonl"),
        ("a.jsonl", "messages"),
        ("a.conll", "conll"),
        ("a.npz", "npz"),
        ("a.safetensors", "safetensors"),
        ("train-images-idx3-ubyte", "idx"),
    ],
)
def test_special_files_are_rejected_without_blocking(tmp_path, make, name, kind):
    make(tmp_path / name)
    named = tmp_path if kind in ("folder", "idx") else tmp_path / name
    assert str(tmp_path) in refusal(readers.read_files, f"{kind}:{named}")


def test_special_files_among_texts_are_skipped(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    for make in ODD:
        make(tmp_path / f"{make.__name__}.txt")
    content = readers.read_files(f"text:{tmp_path}/*.txt")
    assert [e() for e in content.splits["train"]] == [{"text": "good"}]


@pytest.mark.parametrize("pattern", ["**/*.txt", "**/**/*.txt", "**", "*/**/deep/*.txt"])
def test_links_that_lead_in_circles_are_not_followed(tmp_path, pattern):
    deep = tmp_path / "root" / "sub" / "deep"
    deep.mkdir(parents=True)
    (deep / "a.txt").write_text("good")
    (tmp_path / "root" / "sub" / ".hidden").mkdir()
    (tmp_path / "root" / "sub" / ".hidden" / "b.txt").write_text("not asked for")
    for name in ("one", "two", "three"):
        (deep / name).symlink_to(tmp_path / "root")
    content = readers.read_files(f"text:{tmp_path}/root/{pattern}")
    assert [e() for e in content.splits["train"]] == [{"text": "good"}]


def test_a_recursive_pattern_may_be_relative(tmp_path, monkeypatch):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "sub" / "a.txt").write_text("one")
    (tmp_path / "here" / "b.txt").write_text("two")
    for pattern, count in (("**/*.txt", 2), ("**", 2), ("sub/**", 1), ("../*/**/a.txt", 1)):
        assert len(readers.read_files(f"text:{pattern}").splits["train"]) == count


def test_a_link_to_a_folder_among_images_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG", "L"))
    (tmp_path / "in").symlink_to(tmp_path)
    assert str(tmp_path / "in") in refusal(readers.read_files, f"folder:{tmp_path}")


@pytest.mark.parametrize("kind", readers.READERS.names())
@pytest.mark.parametrize(
    "path", ["a\0b", "a\0*/*", "\ud800", "a\nb", "x" * 5000, "/".join("a*" * 999)]
)
def test_invalid_path_is_rejected(kind, path):
    refusal(readers.read_files, f"{kind}:{path}")


def test_invalid_data_path_is_rejected(tmp_path):
    np.savez(tmp_path / "d.npz", images=pixels(3, 4, 4))
    for folder in ("a\0b", "\ud800", str(tmp_path / ("x" * 300))):
        assert "--data_dir" in refusal(prepare, f"npz:{tmp_path / 'd.npz'}", "own", folder)


# Text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, reason",
    [
        (b'{"text": "a", "text": "b"}', "two values"),
        (b'{"a": {"text": 1, "text": 2}}', "two values"),
        (b'{"text": "\\udc00"}', "not Unicode"),
        (b'{"text": "a", "n": ' + b"1" * 5000 + b"}", "not JSON"),
        (b'{"text": ' + b"[" * 100_000, "not JSON"),
        (b'{"text": "a"}\0', "not JSON"),
        (b"\xff\xfe{", "UTF-8"),
        (b'{"text": null}', "--text_field"),
    ],
)
def test_a_line_that_is_no_record_is_refused(tmp_path, line, reason):
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "good"}\n' + line)
    message = refusal(readers.read_files, f"jsonl:{tmp_path / 'd.jsonl'}")
    assert "line 2" in message and reason in message


def test_a_line_without_end_is_read_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_lib, "MAX_LINE", 1000)
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "' + b"a" * 2000)
    assert "1000 bytes" in refusal(readers.read_files, f"jsonl:{tmp_path / 'd.jsonl'}")


def test_byte_order_marks_and_nul_characters_are_accepted(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'\xef\xbb\xbf\n\xef\xbb\xbf{"text": "a\\u0000b"}\n')
    content = readers.read_files(f"jsonl:{tmp_path / 'd.jsonl'}")
    assert [e() for e in content.splits["train"]] == [{"text": "a\0b"}]
    (tmp_path / "d.jsonl").write_bytes(b"\xef\xbb\xbf")
    assert "no text" in refusal(readers.read_files, f"jsonl:{tmp_path / 'd.jsonl'}")


# Arrays --------------------------------------------------------------------------------------


def entry(shape, first=0, dtype="U8"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, first + int(np.prod(shape))]}


TWICE = b'{"a": %b, "a": %b}' % (2 * (json.dumps(entry([2])).encode(),))
BAD_TENSORS = {
    "nothing": b"",
    "half a length": b"\0\0\0",
    "no object": tensors_file([], b""),
    "no JSON": tensors_file(b"{'a': 1}", b""),
    "no UTF-8": tensors_file(b'{"\xff": 1}', b""),
    "deep nesting": tensors_file(b"[" * 100_000, b""),
    "a long number": tensors_file(b'{"a": ' + b"1" * 5000 + b"}", b""),
    "a name twice": tensors_file(TWICE, bytes(2)),
    "no tensor": tensors_file({"a": 1}, b""),
    "a key too many": tensors_file({"a": {**entry([2]), "x": 1}}, bytes(2)),
    "a key too few": tensors_file({"a": {"dtype": "U8", "shape": [2]}}, bytes(2)),
    "unknown type": tensors_file({"a": entry([2], dtype="X8")}, bytes(2)),
    "a list for a type": tensors_file({"a": entry([2], dtype=[])}, bytes(2)),
    "float8": tensors_file({"a": entry([2], dtype="F8_E4M3")}, bytes(2)),
    "shape of the wrong size": tensors_file({"a": {**entry([2]), "shape": [3]}}, bytes(2)),
    "negative shape": tensors_file({"a": {**entry([2]), "shape": [-2, -1]}}, bytes(2)),
    "a truth in a shape": tensors_file({"a": {**entry([2]), "shape": [True, 2]}}, bytes(2)),
    "a fraction in a shape": tensors_file({"a": {**entry([2]), "shape": [2.0]}}, bytes(2)),
    "offsets turned round": tensors_file({"a": {**entry([2]), "data_offsets": [2, 0]}}, bytes(2)),
    "negative offsets": tensors_file({"a": {**entry([2]), "data_offsets": [-2, 0]}}, bytes(2)),
    "a gap": tensors_file({"a": entry([2]), "b": entry([2], 3)}, bytes(5)),
    "an overlap": tensors_file({"a": entry([2]), "b": entry([2], 1)}, bytes(3)),
    "data too short": tensors_file({"a": entry([2])}, bytes(1)),
    "data too long": tensors_file({"a": entry([2])}, bytes(3)),
    "header too long": tensors_file({"a": entry([2])}, bytes(2), length=1 << 20),
    "metadata of numbers": tensors_file({"a": entry([2]), "__metadata__": {"x": 1}}, bytes(2)),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_a_bad_safetensors_file_is_refused(tmp_path, monkeypatch, name):
    """All but one before the library sees it."""
    seen, open_tensors = [], safetensors.safe_open

    def watched(*args, **options):
        seen.append(args)
        return open_tensors(*args, **options)

    monkeypatch.setattr(safetensors, "safe_open", watched)
    (tmp_path / "a").write_bytes(BAD_TENSORS[name])
    message = refusal(read_safetensors_file, str(tmp_path / "a"))
    assert message.startswith(f"{tmp_path / 'a'} is not a safetensors file (")
    assert bool(seen) == (name == "metadata of numbers")


def test_safetensors_round_trip(tmp_path):
    kinds = [
        "uint8",
        "int8",
        "uint16",
        "int64",
        "float16",
        "float32",
        "float64",
        "bool",
        "complex64",
    ]
    arrays = {k: np.arange(6).reshape(2, 3).astype(k) for k in kinds}
    arrays |= {"scalar": np.array(3), "none": np.zeros((0, 5))}
    arrays["bfloat16"] = np.arange(4).astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file(arrays, tmp_path / "a", metadata={"made": "here"})
    got = read_safetensors_file(str(tmp_path / "a"))
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_images_from_safetensors_round_trip(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arrays = dict(x_train=pixels(6, 4, 3), y_train=np.arange(6) % 3, x_test=pixels(2, 4, 3))
    arrays["y_test"] = np.array([0, 2])
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    prepare("safetensors:~/a.safetensors", "own", str(tmp_path / "data"))
    data = load("own", tmp_path / "data")
    assert (len(data.train), len(data.validation), data.spec.num_classes) == (6, 2, 3)
    rows = sorted((data.train[i]["image"].tobytes(), int(data.train[i]["label"])) for i in range(6))
    assert rows == sorted(
        (x.tobytes(), y) for x, y in zip(arrays["x_train"], [0, 1, 2, 0, 1, 2], strict=True)
    )


def npz_of(**headers):
    return zipped(
        [(f"{k}.npy", npy(*v) if isinstance(v, tuple) else v) for k, v in headers.items()]
    )


def header_of(shape, descr="|u1", order=False):
    return repr({"descr": descr, "fortran_order": order, "shape": shape})


BAD_NPZ = {
    "more than follows": npz_of(images=(header_of((3, 4, 5)), bytes(59))),
    "less than follows": npz_of(images=(header_of((3, 4, 5)), bytes(61))),
    "a negative shape": npz_of(images=(header_of((-3, -4, 5)), bytes(60))),
    "a huge shape of nothing": npz_of(images=(header_of((0, 2**62, 2**62)), b"")),
    "elements of no size": npz_of(images=(header_of((2**40,), "|V0"), b"")),
    "a shape of truths": npz_of(images=(header_of((True, True)), bytes(1))),
    "objects": npz_of(images=(header_of((1,), "|O"), b"\x80\x04N.")),
    "objects in fields": npz_of(images=(header_of((1,), [("a", "|O")]), bytes(8))),
    "times": npz_of(images=(header_of((1,), "<M8[s]"), bytes(8))),
    "a call for a header": npz_of(images=("__import__('os').abort()", b"")),
    "a nested header": npz_of(images=("(" * 9000, b"")),
    "no .npy": npz_of(images=b"\0" * 100),
    "an empty member": npz_of(images=b""),
    "version 3": npz_of(images=(header_of((1,)), bytes(1), 3)),
    "a name twice": zipped([("a.npy", npy_of(np.zeros(2)))] * 2),
    "a zip of zips": zipped([("images.npy", zipped([("a", b"")]))]),
    "a lie about a size": lying_zip(),
    "no zip": npy_of(np.zeros(2)),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_a_bad_npz_is_refused(tmp_path, name):
    (tmp_path / "a").write_bytes(BAD_NPZ[name])
    message = refusal(read_npz_file, str(tmp_path / "a"))
    assert message.startswith(f"{tmp_path / 'a'} is not an npz of plain arrays (")


def test_npz_of_all_kinds(tmp_path):
    arrays = {
        k: np.arange(6).reshape(2, 3).astype(k) for k in ("u1", "<i4", ">i4", "f8", "?", "U3")
    }
    arrays |= {
        "fortran": np.asfortranarray(pixels(3, 4)),
        "scalar": np.array(3),
        "none": pixels(0, 5),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        got = read_npz_file(str(tmp_path / "a.npz"))
        assert got.keys() == arrays.keys()
        for name, array in arrays.items():
            assert got[name].dtype == array.dtype
            np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("shape", [(0, 2**31, 2**32 - 1), (0, 0, 0), (3, 0, 5)])
def test_an_idx_file_of_nothing_is_refused(tmp_path, shape):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_file(shape, b""))
    assert "empty" in refusal(readers.read_files, f"idx:{tmp_path}")
