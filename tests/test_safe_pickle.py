"""Pickles from unknown sources: nothing in them is executed."""

import io
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from data.bin_set import BinError, read_bin
from data.safe_pickle import ForbiddenError, load_lists_of_arrays

ENCODED, IS_SAME = [b"an image %d" % number for number in range(4)], [True, False]


class Call:
    """Pickles as a call of a function by name, with arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def call_by_name(module, name, argument):
    """A pickle in protocol 2 that calls a function by its name. The name need not exist here."""
    text = argument.encode()
    return f"\x80\x02c{module}\n{name}\n".encode("latin1") + b"X" + struct.pack("<I", len(text)) + text + b"\x85R."


def write(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_a_function_is_refused_before_the_call(tmp_path, protocol):
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
        "numpy core.multiarray._reconstruct",  # not the function of the module numpy.core.multiarray
        "numpy.core.numeric _frombuffer.__globals__",
        "torch load",
    ],
)
def test_any_other_name_is_refused_and_not_executed(tmp_path, name):
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
    """Pickles as a call, and a state that is set on its result."""

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
def test_an_array_that_uses_numbers_as_addresses_is_refused(tmp_path, kind, state):
    dtype = WithState(np.dtype, (kind, False, True), state)
    array = WithState(np.ndarray, ((2,), dtype, b"AAAAAAAABBBBBBBB"))
    path = write(tmp_path / "evil.bin", pickle.dumps((array, [True]), 4))
    # In another process, because a reader that accepts it crashes.
    code = "import sys; from data.bin_set import read_bin; read_bin(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "evil.bin: refused" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (b"\x80\x02c_codecs\nencode\n", "function"),
        (pickle.dumps(np.arange(4), 5)[:-1], "ndarray"),  # an array that has its data
        (pickle.dumps([b"an image"], 2)[:-1], "list"),
    ],
)
def test_attributes_are_set_only_on_new_arrays(tmp_path, target, kind):
    state = pickle.dumps((1, (2,)), 2)[2:-1]
    with pytest.raises(BinError, match=rf"evil\.bin: refused: the pickle asks for attributes of a {kind}"):
        read_bin(write(tmp_path / "evil.bin", target + state + b"b."))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_integers_and_bool_are_loaded_as_numpy_loads_them(protocol):
    arrays = [np.arange(6, dtype=dtype).reshape(2, 3) for dtype in ("u1", "i2", ">i4", "<u8")]
    arrays += [arrays[1].T, np.asfortranarray(arrays[2]), np.array([True, False]), np.array(7)]
    arrays.append(np.arange(24, dtype="i2").reshape(2, 3, 4).transpose(1, 2, 0))
    data = pickle.dumps([*arrays, np.int64(-5), np.bool_(True)], protocol)
    for loaded, expected in zip(load_lists_of_arrays(io.BytesIO(data)), pickle.loads(data), strict=True):  # noqa: S301 (written here)
        assert loaded.dtype == expected.dtype and np.array_equal(loaded, expected)
        assert isinstance(loaded, type(expected))


@pytest.mark.parametrize(
    "array", [np.zeros(2), np.array(["a"]), np.array([None]), np.zeros(2, "c16"), np.zeros(1, "V3")]
)
def test_arrays_of_other_types_are_refused(array):
    for protocol in (2, 4, 5):
        with pytest.raises(ForbiddenError, match="an array of"):
            load_lists_of_arrays(io.BytesIO(pickle.dumps([array], protocol)))
