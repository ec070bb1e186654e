"""Files that are broken or lie, and hypothesis strategies that draw such."""

import gzip
import io
import json
import struct
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from aigc_jax.core.errors import UserError

# Numbers at which headers go wrong.
EXTREMES = [0, 1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def refusal(call, *args, **kwargs):
    """The one sentence with which the call is refused."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    return message


# Bytes ---------------------------------------------------------------------------------------


@st.composite
def damaged(draw, seeds):
    """One of the byte strings `seeds`, changed in up to four places."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        n = len(data)
        # Headers lie at the start, zip's and array_record's at the end.
        start, near, anywhere = (st.integers(0, min(n, size)) for size in (64, 4096, n))
        at = draw(st.one_of(start, near, anywhere, st.integers(max(n - 64, 0), n)))
        end = min(n, at + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(["flip", "set", "field", "cut", "drop", "repeat", "splice"]))
        if kind == "flip" and at < n:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and at < n:
            data[at] = draw(st.sampled_from([0, 1, 127, 128, 255]))
        elif kind == "field":
            form = draw(st.sampled_from(["<H", ">H", "<I", ">I", "<Q", ">Q"]))
            number = draw(st.sampled_from(EXTREMES)) % 2 ** (8 * struct.calcsize(form))
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at:end]
        elif kind == "repeat":
            data[at:at] = data[at:end] * draw(st.integers(1, 8))
        else:
            other = draw(st.sampled_from(seeds))
            data[at:end] = other[at : at + draw(st.integers(0, 100))]
    return bytes(data)


def files(*seeds):
    """Damaged ones of these files, and now and then bytes of no sense."""
    return st.one_of(damaged(list(seeds)), damaged(list(seeds)), st.binary(max_size=80))


# Images --------------------------------------------------------------------------------------


def encoded(form, mode, **options):
    size = (5, 4)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 4)).astype(np.uint8)
    image = Image.fromarray(pixels, "RGBA") if mode == "RGBA" else None
    image = image or Image.fromarray(pixels[..., :3].copy()).convert(mode).resize(size)
    out = io.BytesIO()
    if options.pop("frames", False):
        options |= dict(save_all=True, append_images=[image.rotate(180)])
    image.save(out, form, **options)
    return out.getvalue()


def image_seeds():
    """Small files of every format that is read, in their variants."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            *(encoded("PNG", m) for m in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16")),
            encoded("PNG", "RGB", frames=True),
            encoded("PNG", "RGB", exif=exif, pnginfo=None),
            *(encoded("JPEG", m) for m in ("L", "RGB", "CMYK")),
            encoded("JPEG", "RGB", progressive=True, exif=exif),
            encoded("MPO", "RGB", frames=True),
            encoded("GIF", "P"),
            encoded("GIF", "P", frames=True),
            *(encoded("BMP", m) for m in ("1", "L", "P", "RGB")),
            rle_bitmap(),
            encoded("WEBP", "RGB"),
            encoded("WEBP", "RGBA", lossless=True),
            encoded("WEBP", "RGB", frames=True, exif=exif),
            *(encoded("TIFF", m) for m in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "F")),
            *(encoded("TIFF", "RGB", compression=c) for c in ("tiff_lzw", "jpeg")),
            encoded("TIFF", "I;16", compression="tiff_adobe_deflate"),
            encoded("TIFF", "1", compression="group4"),
            encoded("TIFF", "L", compression="packbits", frames=True),
            encoded("EPS", "RGB"),
            encoded("TGA", "RGB"),
        ]  # fmt: skip


def png(width, height):
    data = bytearray(encoded("PNG", "L"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def rle_bitmap():
    """A run-length encoded BMP, which Pillow reads and does not write."""
    data = bytes([5, 7, 0, 0, 0, 2, 1, 1, 0, 3, 9, 8, 7, 0, 0, 0, 5, 1, 0, 1])
    palette = bytes(4 * 256)
    start = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, 5, 4, 1, 8, 1, len(data), 0, 0, 256, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(data), 0, 0, start) + info + palette + data


def png_chunks(data):
    """`[(kind, payload), …]` of a valid PNG."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


@st.composite
def rewritten_pngs(draw, seeds):
    """PNGs with damaged chunks whose checksums are right, so that they are read further."""
    chunks = png_chunks(draw(st.sampled_from([s for s in seeds if s.startswith(b"\x89PNG")])))
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(chunks) - 1))
        kind, payload = chunks[i]
        change = draw(st.sampled_from(["damage", "damage", "repeat", "drop", "new"]))
        if change == "damage":
            chunks[i] = kind, draw(damaged([payload or b"\0"]))
        elif change == "repeat":
            chunks.insert(draw(st.integers(0, len(chunks))), chunks[i])
        elif change == "drop" and len(chunks) > 1:
            del chunks[i]
        else:
            kind = draw(
                st.sampled_from([b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fcTL"])
            )
            packed = zlib.compress(b"\0" * draw(st.sampled_from([10, 10**7])))
            payload = draw(st.one_of(st.binary(max_size=30), st.just(b"a\0\0" + packed)))
            chunks.insert(1, (kind, payload))
    body = [
        struct.pack(">I", len(p)) + k + p + struct.pack(">I", zlib.crc32(k + p)) for k, p in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def images():
    seeds = image_seeds()
    return st.one_of(files(*seeds), files(*seeds), rewritten_pngs(seeds))


# JSON and text -------------------------------------------------------------------------------

# What UTF-8 cannot hold is in it too: half surrogate pairs, as file names and JSON may have them.
CHARACTERS = st.characters(codec=None)
WEIRD = st.sampled_from(
    ["\0", "\n", "\r", "\u2028", "\ud800", "\udcff", "\ufeff", "..", "/", "🙂", ""]
)
TEXT = st.one_of(st.text(CHARACTERS, max_size=12), st.lists(WEIRD, max_size=4).map("".join))
NUMBERS = st.one_of(
    st.integers(), st.sampled_from(EXTREMES + [-n for n in EXTREMES] + [2**63, 2**64, 10**30]),
    st.floats(),
)  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def altered(draw, seeds):
    """One of the JSON values `seeds` with up to three of its parts replaced, dropped or added."""
    value = json.loads(json.dumps(draw(st.sampled_from(seeds))))
    for _ in range(draw(st.integers(0, 3))):
        part = value
        while isinstance(part, (dict, list)) and part:
            keys = list(part) if isinstance(part, dict) else list(range(len(part)))
            key = draw(st.sampled_from(keys))
            inner = part[key]
            if isinstance(inner, (dict, list)) and inner and draw(st.integers(0, 3)):
                part = inner
                continue
            change = draw(st.sampled_from(["replace", "replace", "drop", "add"]))
            if change == "replace":
                part[key] = draw(JSON)
            elif change == "drop":
                del part[key]
            elif isinstance(part, dict):
                part[draw(TEXT)] = draw(JSON)
            else:
                part.append(draw(JSON))
            break
    return value


def json_bytes(value):
    return json.dumps(value).encode()


def json_lines():
    """JSONL files: records of all kinds, lines of none, and damaged ones."""
    deep, digits = b'{"text": ' + b"[" * 5000, b'{"text": "a", "n": ' + b"7" * 5000 + b"}"
    line = st.one_of(
        altered([{"text": "one"}, {"text": "two", "id": [1, {"text": 3}]}]).map(json_bytes),
        TEXT.map(lambda t: json_bytes({"text": t})),
        JSON.map(json_bytes),
        st.sampled_from([b"", b"\0", b"\xef\xbb\xbf", b"\xff\xfe{", b"NaN", deep, digits,
                         b'{"text": 1, "text": "a"}', b'{"text": "a"} {"text": "b"}']),
        st.binary(max_size=20),
    )  # fmt: skip
    whole = st.lists(line, max_size=4).map(b"\n".join)
    return st.one_of(whole, whole, damaged([b'{"text": "one"}\n{"text": "zw\\u00f6lf"}\r\n']))


def conversations():
    """JSONL files of messages."""
    talk = {"messages": [{"role": r, "content": "é?"} for r in ("system", "user", "assistant")]}
    line = st.one_of(altered([talk]).map(json_bytes), JSON.map(json_bytes), st.binary(max_size=20))
    return st.one_of(st.lists(line, max_size=4).map(b"\n".join), damaged([json_bytes(talk)] * 2))


def tagged_words():
    """CoNLL files: lines of all kinds, and damaged ones."""
    cells = st.sampled_from(["a", "é", "#", "#b", "-DOCSTART-", "", "\ufeff", "\u2028", "O", "B-x",
                             "I-x", "B-", "S-x", "\0"])  # fmt: skip
    gap = st.sampled_from(["\t", " ", "  ", "\t\t", "\xa0"])
    line = st.builds(lambda a, b, c, g: g.join((a, b, c)), cells, cells, cells, gap)
    line = st.one_of(line, line, st.sampled_from(["a\tO", "b B-x", "", "\t", "\r"]))
    whole = st.lists(line, max_size=6).map(lambda lines: "\n".join(lines).encode())
    return st.one_of(whole, whole, files(b"# c\na\tO\nb\tB-x\n\t\n#c\tI-x\r\n"))


def texts():
    return st.one_of(
        TEXT.map(lambda t: t.encode("utf-8", "surrogatepass")),
        st.binary(max_size=40),
        files("Grüße, 世界 🙂\r\nand more\0".encode(), "half".encode("utf-16"), b"\xef\xbb\xbf"),
    )


# Arrays --------------------------------------------------------------------------------------


def idx_file(fields, data):
    return bytes([0, 0, 8, len(fields)]) + struct.pack(f">{len(fields)}I", *fields) + data


def idx_files():
    """IDX files of images, plain: right ones, lying ones and damaged ones."""
    right = idx_file([3, 4, 5], bytes(range(60)))
    field = st.one_of(st.integers(0, 9), st.sampled_from(EXTREMES))
    lying = st.builds(idx_file, st.lists(field, min_size=3, max_size=3), st.binary(max_size=70))
    return st.one_of(files(right, right[:-1]), lying)


def gzipped_files():
    right = idx_file([3, 4, 5], bytes(range(60)))
    bomb = gzip.compress(idx_file([2**20, 2**10, 2**10], bytes(10**7)))
    claim = gzip.compress(idx_file([100, 100, 1000], bytes(10**7 - 7)))
    return st.one_of(files(gzip.compress(right), bomb, claim), idx_files().map(gzip.compress))


def npy(header, data, version=1):
    header = header.encode("latin-1", "replace")
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def npy_files():
    """.npy files, most of them with a header that says something wrong."""
    dimension = st.one_of(st.integers(-2, 6), st.sampled_from([2**20, 2**31, 2**63, 10**30]))
    shapes = st.one_of(st.just((3, 4, 5)), st.lists(dimension, max_size=5).map(tuple), JSON)
    descr = st.one_of(
        st.sampled_from(["|u1", "|O", "<f4", "<U999999999", "|V0", "|S0", "<M8[s]", "|b1", "<i8",
                         [("a", "|O")], ("|u1", (2**31, 2**31)), "x", "|u1" * 50, 5, None]),
        JSON,
    )  # fmt: skip
    header = st.builds(
        lambda d, f, s: repr({"descr": d, "fortran_order": f, "shape": s}) + "\n",
        descr, st.one_of(st.booleans(), JSON), shapes,
    )  # fmt: skip
    text = st.one_of(header, header, st.text(max_size=30), st.just("(" * 5000))
    built = st.builds(npy, text, st.sampled_from([bytes(60), b"", bytes(7)]), st.integers(1, 3))
    return st.one_of(built, damaged([npy_of(np.zeros((3, 4, 5), np.uint8))]))


def npy_of(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def zipped(members, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def npz_files():
    images, labels = np.zeros((3, 4, 5), np.uint8), np.array([1, 0, 1])
    right = [("images.npy", npy_of(images)), ("labels.npy", npy_of(labels))]
    seeds = [zipped(right), zipped(right, zipfile.ZIP_DEFLATED), zipped(right, zipfile.ZIP_BZIP2)]
    names = st.sampled_from(["images.npy", "labels.npy", "x_train.npy", "../x.npy", "y", "a\n.npy"])
    members = st.lists(st.tuples(names, npy_files()), max_size=3)
    method = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
    return st.one_of(files(*seeds), st.builds(zipped, members, method))


def tensors_file(header, data, length=None):
    header = header if isinstance(header, bytes) else json_bytes(header)
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def safetensors_files():
    plain = {
        "images": {"dtype": "U8", "shape": [3, 4, 5], "data_offsets": [0, 60]},
        "labels": {"dtype": "I32", "shape": [3], "data_offsets": [60, 72]},
        "__metadata__": {"a": "b"},
    }
    other = {"a": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]}}
    data = st.sampled_from([bytes(72), bytes(2), b"", bytes(73)])
    length = st.one_of(
        st.none(), st.none(), st.integers(0, 300), st.sampled_from([2**40, 2**64 - 1])
    )
    built = st.builds(tensors_file, altered([plain, plain, other]), data, length)
    return st.one_of(built, built, files(tensors_file(plain, bytes(72))))


# Command lines and descriptions --------------------------------------------------------------


@st.composite
def overrides(draw, keys):
    """Words after `aigc train`: `--config.key=value` with keys and values of all kinds."""
    key = st.one_of(st.sampled_from(keys), st.sampled_from(keys), TEXT)
    literal = st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3).map(tuple), TEXT, st.booleans())
    special = st.sampled_from(["", "(", "(1,", "1e999", "nan", "-0", "0x10", "1_0", "None", "[[",
                               "__import__('os')", "9" * 5000, "(" * 300, "{}",
                               "a" * 3000])  # fmt: skip
    value = st.one_of(literal.map(str), literal.map(repr), special, TEXT)
    form = st.sampled_from(["--config.{}={}", "--config.{} {}", "--noconfig.{}", "-config.{}={}",
                            "--config.{}[0]={}", "--config.{}", "--{}={}", "{}"])  # fmt: skip
    words = []
    for _ in range(draw(st.integers(1, 3))):
        text = draw(form)
        words += text.replace("{}", draw(key), 1).replace("{}", draw(value), 1).split(" ")
    return words


def specs():
    image = {"modality": "image", "shape": [8, 8, 1], "class_names": ["a", "b"], "levels": 17}
    text = {"modality": "text", "tokenizer": "char", "characters": ["a", "é"], "seq_len": 16}
    text |= {"format": "stream", "class_names": []}
    task = text | {"tokenizer": "byte", "format": "tags", "class_names": ["O", "B-a"]}
    return st.one_of(altered([image, text, task]), JSON)
