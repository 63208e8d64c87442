"""Verification sets: every form the public ones have is read, nothing in one is executed, broken ones are named."""

import io
import os
import pickle
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest

from data.bin_set import BinError, read_bin, write_bin
from data.images import fit


def random_image(seed, height=112, width=112):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(image):
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


IMAGES = [random_image(seed) for seed in range(4)]
ENCODED = [png(image) for image in IMAGES]
IS_SAME = [True, False]


def python_2_protocol_0(encoded, is_same):
    strings = [
        b"S'" + b"".join(b"\\x%02x" % byte for byte in image) + b"'\np%d\na" % i for i, image in enumerate(encoded)
    ]
    flags = [b"I01\na" if flag else b"I00\na" for flag in is_same]
    return b"((lp100\n" + b"".join(strings) + b"(lp101\n" + b"".join(flags) + b"tp102\n."


def python_2_protocol_2(encoded, is_same, integers=False):
    strings = [b"T" + struct.pack("<i", len(image)) + image + b"q" + bytes([i]) for i, image in enumerate(encoded)]
    if integers:
        flags = [b"K\x01" if flag else b"K\x00" for flag in is_same]
    else:
        flags = [b"\x88" if flag else b"\x89" for flag in is_same]
    return b"\x80\x02](" + b"".join(strings) + b"e](" + b"".join(flags) + b"e\x86."


class Call:
    """Pickles as a call of a function by name, with arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def call_by_name(module, name, argument):
    """Protocol 2 by hand: a call of any name, importable here or not."""
    text = argument.encode()
    return f"\x80\x02c{module}\n{name}\n".encode("latin1") + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


def write(path, data):
    path.write_bytes(data)
    return path


def check_is_the_set(verification_set):
    assert len(verification_set) == 4
    assert verification_set.is_same.dtype == bool
    assert verification_set.is_same.tolist() == IS_SAME
    images = verification_set[range(4)]
    assert images.shape == (4, 112, 112, 3)
    assert np.array_equal(images.numpy(), np.stack(IMAGES))
    assert np.array_equal(verification_set[[2]].numpy()[0], IMAGES[2])


def test_the_set_of_real_faces_is_read(face_data):
    verification_set = read_bin(face_data / "lfw" / "lfw_heldout.bin")
    assert len(verification_set) == 2400
    assert len(verification_set.is_same) == 1200
    assert 0 < verification_set.is_same.sum() < 1200
    for position in (0, 1, 1234, 2399):
        expected = cv2.imdecode(np.frombuffer(verification_set.encoded[position], np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(verification_set[[position]].numpy()[0], expected[..., ::-1])


@pytest.mark.parametrize(
    "data",
    [
        python_2_protocol_0(ENCODED, IS_SAME),
        python_2_protocol_2(ENCODED, IS_SAME),
        python_2_protocol_2(ENCODED, IS_SAME, True),
    ],
    ids=["protocol 0", "protocol 2", "flags 0 and 1"],
)
def test_a_set_that_python_2_wrote_is_read(tmp_path, data):
    check_is_the_set(read_bin(write(tmp_path / "set.bin", data)))


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("container", [tuple, list])
def test_a_set_that_python_3_wrote_is_read(tmp_path, protocol, container):
    data = pickle.dumps(container((ENCODED, IS_SAME)), protocol)
    check_is_the_set(read_bin(write(tmp_path / "set.bin", data)))


@pytest.mark.parametrize(("protocol", "package"), [(2, b"numpy._core"), (2, b"numpy.core"), (4, None), (5, None)])
@pytest.mark.parametrize("flags", [IS_SAME, np.array(IS_SAME), [np.bool_(flag) for flag in IS_SAME], np.array([1, 0])])
def test_a_set_of_uint8_arrays_is_read(tmp_path, protocol, package, flags):
    arrays = [np.frombuffer(image, dtype=np.uint8).copy() for image in ENCODED]
    arrays[1] = arrays[1][:, None]  # as cv2.imencode once gave them
    data = pickle.dumps((arrays, flags), protocol)
    if package is not None:  # as NumPy 2 and NumPy 1 name it
        data = data.replace(b"cnumpy._core.", b"c" + package + b".")
    check_is_the_set(read_bin(write(tmp_path / "set.bin", data)))


def test_what_is_written_is_read_by_any_python(tmp_path):
    write_bin(tmp_path / "set.bin", ENCODED, np.array(IS_SAME))
    check_is_the_set(read_bin(tmp_path / "set.bin"))
    data = (tmp_path / "set.bin").read_bytes()
    assert data[:2] == b"\x80\x02"
    assert pickle.loads(data) == (ENCODED, IS_SAME)  # noqa: S301 (our own)


def test_a_set_without_two_images_a_pair_is_not_written(tmp_path):
    with pytest.raises(BinError, match=r"set\.bin: 3 images for 2 pairs"):
        write_bin(tmp_path / "set.bin", ENCODED[:3], IS_SAME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_is_refused_and_does_not_call(tmp_path, protocol):
    marker = tmp_path / "executed"
    calls = [
        Call(os.system, f"touch {marker}"),
        Call(eval, f"open({str(marker)!r}, 'w')"),
        Call(open, str(marker), "w"),
    ]
    for call in calls:
        path = write(tmp_path / "evil.bin", pickle.dumps((ENCODED, IS_SAME, call), protocol))
        with pytest.raises(BinError, match=r"evil\.bin: refused: the pickle asks for \w+\.\w+") as error:
            read_bin(path)
        assert "cut short" not in str(error.value)
        assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins exec",
        "builtins getattr",
        "__builtin__ eval",
        "__builtin__ file",
        "copy_reg _reconstructor",
        "os system",
        "posix system",
        "subprocess check_output",
        "numpy load",
        "numpy fromfile",
        "numpy memmap",
        "numpy.core.multiarray fromfile",
        "numpy.testing._private.utils runstring",
        "numpy.testing runstring",
        "numpy.distutils.exec_command exec_command",
        "numpy.f2py.diagnose run_command",
        "numpy.ctypeslib load_library",
        "numpy ndarray.tofile",
        "numpy.core.numeric _frombuffer.__globals__",
        "torch load",
    ],
)
def test_any_other_name_is_refused_unexecuted(tmp_path, name):
    marker = tmp_path / "executed"
    path = write(tmp_path / "evil.bin", call_by_name(*name.split(), f"open({str(marker)!r}, 'w')"))
    with pytest.raises(BinError, match=rf"evil\.bin: refused: the pickle asks for {name.replace(' ', '.')},"):
        read_bin(path)
    assert not marker.exists()


def test_another_codec_is_refused(tmp_path):
    data = pickle.dumps((ENCODED, IS_SAME), 2).replace(b"latin1", b"rot_13")
    with pytest.raises(BinError, match=r"refused.*rot_13"):
        read_bin(write(tmp_path / "evil.bin", data))


class WithState:
    """Pickles as a call and a state for what it gives."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    ("kind", "state"),
    [
        ("O8", (3, "|", None, None, None, -1, -1, 0)),
        ("O8", (3, "|", None, None, None, -1, -1, 63)),
        ("u8", (3, "<", None, None, None, -1, -1, 1)),
        ("V8", (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)),
    ],
)
def test_an_array_that_would_take_numbers_for_addresses_is_refused(tmp_path, kind, state):
    dtype = WithState(np.dtype, (kind, False, True), state)
    array = WithState(np.ndarray, ((2,), dtype, b"AAAAAAAABBBBBBBB"))
    path = write(tmp_path / "evil.bin", pickle.dumps((array, [True]), 4))
    # In a process of its own: a reader that is fooled dies of it.
    code = "import sys; from data.bin_set import read_bin; read_bin(sys.argv[1])"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "evil.bin: refused" in done.stderr.splitlines()[-1]


def test_attributes_of_functions_are_not_set(tmp_path):
    buffer = io.BytesIO()
    buffer.write(b"\x80\x02c_codecs\nencode\n}X\x04\x00\x00\x00evilK\x01sb.")
    with pytest.raises(BinError, match=r"evil\.bin: refused"):
        read_bin(write(tmp_path / "evil.bin", buffer.getvalue()))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9, 0.9999])
def test_a_set_cut_short_is_named(tmp_path, part):
    data = python_2_protocol_2(ENCODED, IS_SAME)
    with pytest.raises(BinError, match=r"set\.bin: broken or cut short"):
        read_bin(write(tmp_path / "set.bin", data[: int(part * len(data))]))


@pytest.mark.parametrize("data", [b"<html>not found</html>", b"\x00" * 50, b"PK\x03\x04zip"])
def test_a_file_that_is_no_pickle_is_named(tmp_path, data):
    with pytest.raises(BinError, match=r"set\.bin: broken or cut short"):
        read_bin(write(tmp_path / "set.bin", data))


@pytest.mark.parametrize(
    "content",
    [
        (ENCODED[:3], IS_SAME),
        (ENCODED, [True]),
        ([], []),
        (ENCODED, ["yes", "no"]),
        (ENCODED, [[True], [False]]),
        (ENCODED, [0.5, 0.1]),
        (ENCODED,),
        (ENCODED, None),
        None,
        "text",
        {"images": ENCODED, "is_same": IS_SAME},
        (ENCODED, IS_SAME, []),
    ],
    ids=range(12),
)
def test_what_is_no_set_of_pairs_is_named(tmp_path, content):
    with pytest.raises(BinError, match=r"set\.bin: "):
        read_bin(write(tmp_path / "set.bin", pickle.dumps(content, 4)))


@pytest.mark.parametrize("image", [None, 5, [1, 2], np.zeros(9, dtype=np.int64)], ids=repr)
def test_an_image_that_is_no_bytes_is_named(tmp_path, image):
    data = pickle.dumps(([*ENCODED[:3], image], IS_SAME), 4)
    with pytest.raises(BinError, match=rf"set\.bin: image 3 is {type(image).__name__}"):
        read_bin(write(tmp_path / "set.bin", data))


def test_an_image_that_cannot_be_decoded_is_named_when_it_is_read(tmp_path):
    write_bin(tmp_path / "set.bin", [*ENCODED[:3], b"no image"], IS_SAME)
    verification_set = read_bin(tmp_path / "set.bin")
    assert len(verification_set[range(3)]) == 3
    with pytest.raises(ValueError, match=r"set\.bin: image 3: .*decode"):
        verification_set[[2, 3]]


@pytest.mark.parametrize(("height", "width"), [(224, 300), (300, 224), (96, 140), (250, 250), (113, 112), (112, 200)])
def test_another_size_has_its_short_side_resized_and_its_center_cropped(tmp_path, height, width):
    image = random_image(9, height, width)
    write_bin(tmp_path / "set.bin", [png(image), ENCODED[0]], [False])
    found = read_bin(tmp_path / "set.bin")[[0, 1]].numpy()
    assert found.shape == (2, 112, 112, 3)
    assert np.array_equal(found[1], IMAGES[0])
    if height > width:
        resized = cv2.resize(image, (112, height * 112 // width), interpolation=cv2.INTER_CUBIC)
        start = (resized.shape[0] - 112) // 2
        expected = resized[start : start + 112]
    else:
        resized = cv2.resize(image, (width * 112 // height, 112), interpolation=cv2.INTER_CUBIC)
        start = (resized.shape[1] - 112) // 2
        expected = resized[:, start : start + 112]
    assert np.array_equal(found[0], expected)
    center = resized[resized.shape[0] // 2, resized.shape[1] // 2]
    assert any(np.array_equal(found[0][row, column], center) for row in (55, 56) for column in (55, 56))


def test_an_image_of_the_right_size_is_left_alone():
    assert fit(IMAGES[0]) is IMAGES[0]
