"""demo/make_demo_data.py as users run it."""

import pickle

from conftest import run_script

from data.bin_set import read_bin
from demo.make_demo_data import encoded_face, make_pairs


def test_the_pairs_name_the_identities_that_were_drawn(tmp_path):
    small = ["--identities", "2", "--images", "1", "--pairs", "4", "--pair-identities", "3"]
    done = run_script("demo/make_demo_data.py", tmp_path, *small)
    assert done.returncode == 0, done.stderr
    faces, is_same = make_pairs(0, 1_000_000, 3, 4, 0.6)
    made = read_bin(tmp_path / "demo.bin")
    assert made.identities.tolist() == [identity for _, identity, _, _ in faces]
    assert set(made.identities) <= {1_000_000, 1_000_001, 1_000_002}
    with open(tmp_path / "demo.bin", "rb") as file:  # what other readers see
        assert pickle.load(file) == ([encoded_face(face) for face in faces], is_same)  # noqa: S301 (our own file)
