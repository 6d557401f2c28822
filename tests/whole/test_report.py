"""The report of an alignment: odd names stay text, the worst comes first, it fits its limit whatever the
images are, and it loads nothing."""
import base64, hashlib
from collections import Counter
from html.parser import HTMLParser

import cv2, numpy as np, pandas as pd, pytest
from helpers import random_image, save_aligner

import cxr_stn.report as reports
from cxr_stn.geometry import MATRIX_ENTRIES
from cxr_stn.data.images import ImageError, write_png
from cxr_stn.phantom.dataset import Phantom
from cxr_stn.sources import load_dataset
from cxr_stn.inference import Aligner
from cxr_stn.aligner.batch import align_dataset
from cxr_stn.report import REASONS, choose_shown, read_transforms, worst_first, write_report

VOID = {"meta", "img", "input"}    # elements of the page without an end tag


class Page(HTMLParser):
    "Elements (name, attributes, text) of a page; fails where an element is not closed in order"
    def __init__(self, data):
        super().__init__()
        self.elements, self.open, self.ids = [], [], Counter()
        self.feed(data.decode("utf-8")); self.close()
        assert self.open == [] and max(self.ids.values()) == 1

    def handle_starttag(self, tag, attributes, closed=False):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, dict(attributes), []))
        self.ids.update([dict(attributes).get("id", len(self.elements))])
        if tag not in VOID and not closed: self.open.append((tag, self.elements[-1]))

    def handle_startendtag(self, tag, attributes): self.handle_starttag(tag, attributes, closed=True)
    def handle_endtag(self, tag): assert self.open.pop()[0] == tag
    def handle_data(self, data):
        for _, element in self.open: element[2].append(data)

    def all(self, tag, **wanted):
        return [(at, "".join(text)) for name, at, text in self.elements
                if name == tag and all(at.get(k.rstrip("_")) == v for k, v in wanted.items())]
    def names(self): return [text for _, text in self.all("h3")]


def table_row(name, confidence=.95, **more):
    matrix = dict(zip(MATRIX_ENTRIES, (1, 0, 4, 0, 1, 5)))
    return dict(image=name, file="images/a.png", status="aligned", theta=2.0, confidence=confidence,
                flagged=False, mirrored=False,
                inverted=False, height=50, width=40, output_height=30, output_width=24, **matrix) | more

def report(folder, rows, read=lambda i: random_image(i), min_confidence=.88, **options):
    "The bytes of a report on such rows, all with one aligned image"
    write_png(folder/"images"/"a.png", random_image(99, (30, 24)))
    return write_report(folder, pd.DataFrame(rows, dtype=object), read, min_confidence,
                        **options).read_bytes()


NASTY = ["<script>alert(1)</script>.png", "\"><img src=x onerror=alert(1)>", "' onmouseover='alert(1)",
         "</style></script><b>", "{{ 7 * 7 }} {% if %}", "&lt;b&gt;.png", "javascript:alert(1)", "a\nb.png",
         "a\u202egnp.exe", "nul\x00.png", "bytes\udcff.png", "胸部 ü.png", "<!-- x", "]]>", "NA", " "]

def test_names_and_messages_stay_text(tmp_path):
    rows = [table_row(name, warnings=name, view=name, reason=name) for name in NASTY]
    rows += [dict(image=name, status="failed", reason=name) for name in NASTY]
    data = report(tmp_path, rows, title=NASTY[0], note=NASTY[1])
    page = Page(data)
    names = [f"row {1 + i % 16 + 16 * (i >= 16)}" if not name.strip() else reports.visible_text(name.strip())
             for i, name in enumerate(NASTY * 2)]
    assert sorted(page.names()) == sorted(names) and len(names) == 32
    assert ([len(page.all(tag)) for tag in ("script", "style", "h1")] == [1, 1, 1]
            and page.all("h1")[0][1] == NASTY[0])
    # thumbnails, originals of failed ones, two means
    assert len(page.all("img")) == 2 * 16 + 16 + 2
    allowed = {"src", "alt", "width", "height", "decoding"}
    assert all(set(attributes) <= allowed for attributes, _ in page.all("img"))
    assert not [name for _, attributes, _ in page.elements for name in attributes
                if name.startswith("on") or name == "style"]
    # no template inside the template
    assert any("{{ 7 * 7 }}" in name for name in page.names())

def test_nothing_is_loaded_and_only_its_own_script_may_run(tmp_path):
    page = Page(report(tmp_path, [table_row("https://example.org/a.png"), table_row("//example.org")]))
    linked = [value for _, attributes, _ in page.elements for name,
              value in attributes.items() if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert linked and all(value.startswith(("data:image/webp;base64,", "#")) for value in linked)
    assert not [tag for tag, *_ in page.elements if tag in ("link", "iframe", "object", "embed", "base")]
    [(_, style)], [(_, script)] = page.all("style"), page.all("script")
    assert ("url(" not in style and "@import" not in style
            and "fetch" not in script and "innerHTML" not in script)
    [policy] = [at["content"] for at, _ in page.all("meta")
                if at.get("http-equiv") == "Content-Security-Policy"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    assert " ".join(policy.split()) == (f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; "
                                        f"script-src 'sha256-{hashes[1]}'")

def test_every_link_and_label_has_its_target(tmp_path):
    page = Page(report(tmp_path, [table_row("a", .5, flagged=True), table_row("b", mirrored=True),
                                  dict(image="c", status="failed")]))
    targets = [at["href"][1:] for at, _ in page.all("a")] + [at["aria-labelledby"] for _, at,
                                                             _ in page.elements if "aria-labelledby" in at]
    assert len(targets) == 3 + 3 + 3 and all(target in page.ids for target in targets)
    assert all(at["alt"] for at, _ in page.all("img")) and page.all("html")[0][0]["lang"] == "en"
    assert all("aria-hidden" in at or at.get("aria-label") for at, _ in page.all("svg"))
    assert page.all("form")[0][0].get("hidden", "no") is None                  # until the script has run

def test_the_worst_comes_first_with_its_reasons(tmp_path):
    rows = [table_row("good", .99), table_row("fair", .90),
            table_row("warned", .97, warnings="FOR PROCESSING"), table_row("inverted", inverted=True),
            table_row("mirrored", mirrored=True), table_row("lying", theta=91.),
            table_row("side", flagged=True, view="LL"), table_row("cut", .86, flagged=True),
            table_row("hand", .60, flagged=True), table_row("foot", .50, flagged=True),
            dict(image="blank", status="failed",
                 reason="all pixels have the same grey value; there is nothing to align"),
            dict(image="web", status="failed", reason="this is a web page")]
    page = Page(report(tmp_path, rows))
    assert page.names() == ["web", "blank", "foot", "hand", "cut", "side", "mirrored", "lying", "inverted",
                            "warned", "fair", "good"]
    shown = [(at["data-reasons"], text) for at, text in page.all("li", class_="card")]
    expected = [*list(REASONS)[:3], "no lungs", "low overlap", "lateral by header",
                *["orientation conflict"] * 2, "polarity conflict", "warning", "", ""]
    assert [reason for reason, _ in shown] == expected
    assert ("this is a web page" in shown[0][1] and "confidence 0.86, needed 0.88" in shown[4][1]
            and "rotated by 91°" in shown[7][1])
    counts = [" ".join(text.split()) for _, text in page.all("tr")]
    assert [counts[i] for i in (0, 1, 2)] == ["aligned 6 50.0%", "flagged 4 33.3%", "failed 2 16.7%"]
    assert counts[3].startswith("unreadable 1") and counts[5].startswith("no lungs 2")

def test_the_frame_lies_where_the_matrix_says(tmp_path):
    [(at, _)] = Page(report(tmp_path, [table_row("a")])).all("path", class_="frame")
    corners = np.array([point.split(",") for point in at["d"].strip("MZ").split()], float)
    # of 40 x 50 pixels in 256 x 320, with a margin
    scale = 256 / 40 * .96
    assert np.abs(corners - corners[0] - scale * np.array([[0, 0], [24, 0], [24, 30], [0, 30]])).max() < 1
    assert np.abs(corners[0] - scale * np.array([4, 5]) - [5, 6.5]).max() < 1

def test_reading_ends_no_report(tmp_path):
    "Originals that cannot be read any more, or are no numbers; an aligned image that is gone"
    def read(i):
        if i == 0: raise ImageError("/secret/folder/a.png", "gone")
        if i == 1: raise FileNotFoundError("gone")
        return np.full((50, 40), np.nan) if i == 2 else random_image(i).astype(np.int16) - 500
    page = Page(report(tmp_path, [table_row(str(i), file="none.png" if i == 4 else "images/a.png")
                                  for i in range(5)], read))
    assert ([text for _, text in page.all("div", class_="gap")]
            == ["the original cannot be read"] * 3 + ["no aligned image"])
    assert "/secret" not in "".join(page.elements[0][2])
    empty = Page(report(tmp_path, pd.DataFrame(columns=["image", "status", "file", "confidence"])))
    assert empty.names() == [] and "0 images" in " ".join(empty.all("p")[0][1].split())

@pytest.mark.parametrize("count", [1, 12, 150])
def test_it_stays_below_its_limit(tmp_path, count):
    "Noise cannot be compressed, and names may be long"
    def noise(i): return np.random.default_rng(i).integers(0, 256, (200, 160)).astype(np.uint8)
    rows = [table_row("<&\"" * 60 + f"{i}.png", warnings="'" * 100) for i in range(count)]
    limit = 400_000 + 6_000 * count
    assert len(report(tmp_path, rows, noise, max_bytes=limit)) <= limit
    with pytest.raises(ValueError, match="lower limit"): report(tmp_path, rows, noise, max_bytes=300_000)

def test_equal_input_gives_equal_bytes(tmp_path):
    rows = [table_row(f"{i}.png", .9 + i / 1000) for i in range(30)]
    assert report(tmp_path, rows) == report(tmp_path, rows)

def test_of_many_images_the_worst_and_an_even_sample_are_shown(tmp_path):
    rows = [table_row(f"{i:02}", .9 + i / 1000, mirrored=i in (77, 55)) for i in range(80)]
    page = Page(report(tmp_path, rows, limit=10))
    assert page.names() == ["55", "77", "00", "01", "02", "03", "04", "28", "52", "79"]
    text = " ".join(page.elements[0][2])
    assert ("10 of 80 images are shown: all 2 with a reason, the 4 others with the least confidence, and 4"
            in " ".join(text.split()))
    for limit in (1, 2, 3, 79, 80, 81):
        shown = choose_shown(worst_first([{}] * 80, np.arange(80)), 0, limit)
        assert len(set(shown.tolist())) == min(limit, 80)

def test_names_can_be_left_out(tmp_path):
    data = report(tmp_path, [table_row("MEIER^ANNA"), table_row("b", .5, flagged=True)], show_names=False)
    assert b"MEIER" not in data and Page(data).names() == ["row 2", "row 1"]

def test_of_a_run_from_its_files(tmp_path):
    "From an alignment to its report: what the table in memory says, its files say too"
    phantom, source, out = Phantom(n_images=4, size=64, seed=1), tmp_path/"in", tmp_path/"out"
    for i in range(4):
        write_png(source/f"{i}.png", phantom[i].image if i % 2 else phantom[i].image.astype(np.uint16) * 9)
    (source/"text.png").write_bytes(b"<html>")
    dataset, aligner = load_dataset("folder",
                                    source), Aligner.load(save_aligner(tmp_path/"aligner.safetensors"))
    table = align_dataset(dataset, aligner, out, source, progress=False)
    table.drop(columns="reason").to_csv(out/"transforms.csv", index=False)
    table.loc[table["status"] == "failed", ["image", "reason"]].to_csv(out/"failures.csv", index=False)
    first = write_report(out, table, dataset.read).read_bytes()
    second = write_report(out, read_transforms(out), dataset.read, path=tmp_path/"again.html").read_bytes()
    page = Page(first)
    assert page.names()[0] == "text.png" and len(page.all("path", class_="frame")) == 4
    assert Page(second).names() == page.names() and len(second) == pytest.approx(len(first), rel=.01)
    for at, _ in page.all("img"):
        image = cv2.imdecode(np.frombuffer(base64.b64decode(at["src"].split(",")[1]), np.uint8), 0)
        assert image.shape == (int(at["height"]), int(at["width"]))

@pytest.mark.parametrize("sentence, reason", [
    ("left and right: exchanged by header, not by network",
     "orientation conflict"), ("lateral view by header: the view is LL", "lateral by header"),
    ("orientation: rotated by 90 degrees by header, 0 by network",
     "orientation conflict"), ("the pixels are not square", "warning"),
    ("polarity: air is white by network, although MONOCHROME2 was applied", "polarity conflict"),
    ("the view LL and the PatientOrientation L/F contradict each other", "orientation conflict"),
    ("PhotometricInterpretation and PresentationLUTShape contradict each other", "polarity conflict"),
    ("text is burned into the image, perhaps a name (BurnedInAnnotation)", "warning")])
def test_sentences_of_a_header_are_filed(sentence, reason):
    found = reports.flag_reasons(table_row("a", warnings="raw data of the detector (FOR PROCESSING), "
                                                         f"not made to be shown; {sentence}"))
    assert sentence in found[reason] and set(found) == {reason, "warning"}
