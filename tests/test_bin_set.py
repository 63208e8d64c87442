"""Verification sets: all forms of the public sets are read, and an error says what is wrong with a broken set."""

import pickle
import struct

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


def write(path, data):
    path.write_bytes(data)
    return path


def assert_is_the_set(verification_set):
    assert len(verification_set) == 4
    assert verification_set.is_same.dtype == bool
    assert verification_set.is_same.tolist() == IS_SAME
    images = verification_set[range(4)]
    assert images.shape == (4, 112, 112, 3)
    assert np.array_equal(images.numpy(), np.stack(IMAGES))
    assert np.array_equal(verification_set[[2]].numpy()[0], IMAGES[2])


def test_a_set_of_real_faces_is_read(face_data):
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
def test_a_set_written_by_python_2_is_read(tmp_path, data):
    assert_is_the_set(read_bin(write(tmp_path / "set.bin", data)))


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
@pytest.mark.parametrize("container", [tuple, list])
def test_a_set_written_by_python_3_is_read(tmp_path, protocol, container):
    data = pickle.dumps(container((ENCODED, IS_SAME)), protocol)
    assert_is_the_set(read_bin(write(tmp_path / "set.bin", data)))


@pytest.mark.parametrize(("protocol", "package"), [(2, b"numpy._core"), (2, b"numpy.core"), (4, None), (5, None)])
@pytest.mark.parametrize("flags", [IS_SAME, np.array(IS_SAME), [np.bool_(flag) for flag in IS_SAME], np.array([1, 0])])
def test_a_set_of_uint8_arrays_is_read(tmp_path, protocol, package, flags):
    arrays = [np.frombuffer(image, dtype=np.uint8).copy() for image in ENCODED]
    arrays[1] = arrays[1][:, None]  # as older versions of cv2.imencode returned them
    data = pickle.dumps((arrays, flags), protocol)
    if package is not None:  # as NumPy 2 and NumPy 1 name it
        data = data.replace(b"cnumpy._core.", b"c" + package + b".")
    assert_is_the_set(read_bin(write(tmp_path / "set.bin", data)))


def test_a_set_that_we_write_can_be_read_by_any_python(tmp_path):
    write_bin(tmp_path / "set.bin", ENCODED, np.array(IS_SAME))
    assert_is_the_set(read_bin(tmp_path / "set.bin"))
    data = (tmp_path / "set.bin").read_bytes()
    assert data[:2] == b"\x80\x02"
    assert pickle.loads(data) == (ENCODED, IS_SAME)  # noqa: S301 (written here)


def test_identities_follow_in_a_second_pickle_that_other_readers_do_not_see(tmp_path):
    path = tmp_path / "set.bin"
    write_bin(path, ENCODED, IS_SAME, [5, 5, 7, -1])
    assert_is_the_set(read_bin(path))
    assert read_bin(path).identities.tolist() == [5, 5, 7, -1]
    assert pickle.loads(path.read_bytes(), encoding="bytes") == (ENCODED, IS_SAME)  # noqa: S301 (written here)
    write_bin(path, ENCODED, IS_SAME)
    assert read_bin(path).identities is None


@pytest.mark.parametrize(
    "identities", [[5, 5, 7], [5, 5, 7, "a"], [5, 5, 7, 2**63], 5, [5, 6, 7, 8], [5, 5, 7, 7], (5, 5, 7, 8)]
)
def test_wrong_identities_are_refused(tmp_path, identities):
    data = pickle.dumps((ENCODED, IS_SAME), 2) + pickle.dumps(identities, 2)
    with pytest.raises(BinError, match="identities"):
        read_bin(write(tmp_path / "set.bin", data))
    with pytest.raises(BinError, match="broken or cut short"):
        read_bin(write(tmp_path / "set.bin", data[:-1]))


def test_a_set_without_two_images_per_pair_is_not_written(tmp_path):
    with pytest.raises(BinError, match=r"set\.bin: 3 images for 2 pairs"):
        write_bin(tmp_path / "set.bin", ENCODED[:3], IS_SAME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", [0.3, 0.9, 0.9999])
def test_an_error_names_a_set_that_was_cut_short(tmp_path, part):
    data = python_2_protocol_2(ENCODED, IS_SAME)
    with pytest.raises(BinError, match=r"set\.bin: broken or cut short"):
        read_bin(write(tmp_path / "set.bin", data[: int(part * len(data))]))


@pytest.mark.parametrize("data", [b"\x00" * 50, b"PK\x03\x04zip"])
def test_an_error_names_a_file_that_is_not_a_pickle(tmp_path, data):
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
def test_an_error_names_a_pickle_that_is_not_a_verification_set(tmp_path, content):
    with pytest.raises(BinError, match=r"set\.bin: "):
        read_bin(write(tmp_path / "set.bin", pickle.dumps(content, 4)))


@pytest.mark.parametrize("image", [None, 5, [1, 2], np.zeros(9, dtype=np.int64)], ids=repr)
def test_an_error_names_an_image_that_is_not_bytes(tmp_path, image):
    data = pickle.dumps(([*ENCODED[:3], image], IS_SAME), 4)
    with pytest.raises(BinError, match=rf"set\.bin: image 3 is {type(image).__name__}"):
        read_bin(write(tmp_path / "set.bin", data))


@pytest.mark.parametrize(
    "pixels",
    [IMAGES, np.stack(IMAGES), [image.reshape(-1) for image in IMAGES], [image.tobytes() for image in IMAGES],
     [image[..., 0] for image in IMAGES]],
    ids=["arrays", "one array", "flat", "bytes", "grey"],
)  # fmt: skip
def test_raw_pixels_are_refused_because_their_colours_are_unknown(tmp_path, pixels):
    path = write(tmp_path / "set.bin", pickle.dumps((pixels, IS_SAME), 4))
    with pytest.raises(BinError, match=r"set\.bin: image 0 is raw pixels.* RGB or BGR; encode .*docs/data\.md"):
        read_bin(path)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_an_encoded_image_with_as_many_bytes_as_its_pixels_is_read(tmp_path, suffix):
    encoded = cv2.imencode(suffix, IMAGES[0][:70, :, ::-1])[1].tobytes()
    encoded += bytes(112 * 112 * 3 - len(encoded))  # bytes after an image are ignored
    write_bin(tmp_path / "set.bin", [encoded, ENCODED[1]], [False])
    assert np.array_equal(read_bin(tmp_path / "set.bin")[[0, 1]].numpy(), np.stack([fit(IMAGES[0][:70]), IMAGES[1]]))


def test_an_image_that_cannot_be_decoded_raises_an_error_only_when_it_is_used(tmp_path):
    write_bin(tmp_path / "set.bin", [*ENCODED[:3], b"no image"], IS_SAME)
    verification_set = read_bin(tmp_path / "set.bin")
    assert len(verification_set[range(3)]) == 3
    with pytest.raises(ValueError, match=r"set\.bin: image 3: its 8 bytes are not an image"):
        verification_set[[2, 3]]


@pytest.mark.parametrize(("height", "width"), [(224, 300), (300, 224), (96, 140), (250, 250), (113, 112), (112, 200)])
def test_an_image_of_another_size_is_resized_by_its_short_side_and_its_center_cropped(tmp_path, height, width):
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


def test_an_image_of_the_right_size_is_not_changed():
    assert fit(IMAGES[0]) is IMAGES[0]
