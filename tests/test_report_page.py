"""The page of a report: one file, all texts escaped, and the worst errors with their images."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np

from data.images import encode_png
from eval.protocol import PairError
from eval.report import Table
from eval.report.page import write_page

ONE_PIXEL = encode_png(np.zeros((1, 1, 3), dtype=np.uint8))


class _Page(HTMLParser):
    """Tags with their attributes; tags must be closed in the right order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"[{self.open[-1]}] {data}\n" if self.open else ""

    def attributes(self, tag: str, name: str) -> list[str]:
        return [attributes[name] for one, attributes in self.tags if one == tag and name in attributes]


def test_the_page_is_one_file_and_escapes_all_texts(tmp_path):
    evil = '<script>alert("1")</script>&'
    red = np.zeros((112, 112, 3), dtype=np.uint8)
    red[..., 0] = 255
    errors = {evil: [PairError(17, red, red, 0.25, 0.3125, True)], "agedb_30": []}
    table = Table(evil, ["checkpoint", evil], [[evil, "99.1"], ["two", "99.2"]], {(1, 1)})
    plots = [(f"{evil}: scores", ONE_PIXEL), ("TAR over steps", ONE_PIXEL), ("a new caption", ONE_PIXEL)]
    write_page(tmp_path / "report.html", evil, {evil: evil}, [table], plots, errors, [evil])

    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert raw.startswith("<!DOCTYPE html>") and "<script" not in raw
    assert not re.search(r"https?:|url\(|@import", raw)
    page = _Page(tmp_path / "report.html")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    # The title twice, a name and its value, a note, a table's title, column and row, a set of errors.
    assert page.text.count(evil) == 9
    assert page.attributes("img", "alt")[:3] == [caption for caption, _ in plots]
    assert "[strong] 99.2" in page.text and page.text.count("[strong]") == 1
    links, ids = page.attributes("a", "href"), page.attributes("section", "id")
    assert links == [f"#{name}" for name in ids] == ["#about", "#notes", "#results", "#plots", "#errors"]

    images = page.attributes("img", "src")
    assert len(images) == len([alt for alt in page.attributes("img", "alt") if alt]) == 5
    data = [base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True) for image in images]
    assert data[:3] == [ONE_PIXEL] * 3
    face = cv2.imdecode(np.frombuffer(data[3], dtype=np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(face[..., ::-1], red)  # OpenCV decodes to BGR


def test_the_page_labels_errors_and_names_sets_without_errors(tmp_path):
    face = np.zeros((112, 112, 3), dtype=np.uint8)
    errors = {"lfw": [PairError(5, face, face, 0.75, 0.5, False)], "agedb_30": []}
    write_page(tmp_path / "report.html", "t", {}, [], {}, errors, [])
    page = _Page(tmp_path / "report.html")
    assert page.attributes("section", "id") == ["errors"]
    assert "[h4] Different people, accepted" in page.text and "cosine 0.750, threshold 0.500" in page.text
    assert page.text.count("The same person, rejected: none.") == 2
    assert page.text.count("Different people, accepted: none.") == 1
    assert page.attributes("img", "alt")[0] == "pair 5, first image: different people, accepted"
