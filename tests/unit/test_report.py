"""`hpctrack report` end to end on synthetic runs: a whole page, well formed, that fetches nothing."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import synthetic_run as make

from hpctrack import evaluate, report
from hpctrack.evaluation.tally import Cuts
from hpctrack.reporting import by_kind, page, plots
from hpctrack.reporting.display import Display, make_display, sector
from hpctrack.results import comparison
from hpctrack.training.run_folder import Run

VOID = {"meta", "img", "br", "path", "circle", "rect"}


class Page(HTMLParser):
    """Checks that tags close in order; collects text, pictures and everything that refers to something."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.pictures, self.references, self.words = [], [], [], []
        self.feed(path.read_text())
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                (self.pictures if value.startswith("data:image/") else self.references).append(value)
        if tag == "img":
            assert dict(attributes)["alt"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report")
    events = [make.make_event(k, 15 + 4 * k) for k in range(4)]
    dataset = make.write_dataset(path / "data", events)
    settings = {"builder": {"name": "radius", "radius": 0.4}, "selection": {"noise": True}}
    make.write_candidates(path / "found", dataset, [make.imperfect_candidates(e) for e in events], **settings)
    make.write_run(path / "run")
    for cut in ("1", "0"):
        out = str(path / f"results-{cut}.json")
        found, data = str(path / "found"), str(path / "data")
        assert evaluate.main([found, "--data", data, "--out", out, "--pt-min-gev", cut]) == 0
        shutil.copy(out, path / f"kinds-{cut}.json")
        make.with_few_tables(Path(out), ("pt", "eta", "n_tracks"))  # as 0.1.0 wrote them
        results = json.loads(Path(out).read_text())
        del results["kinds"], results["not_told"]
        Path(out).write_text(json.dumps(results))
    return path


def run(folder: Path, out: Path, *options: object) -> Page:
    argv = ["--results", str(folder / "results-1.json"), "--out", str(out), *map(str, options)]
    assert report.main(argv) == 0
    return Page(out)


def test_the_whole_page(folder: Path, tmp_path: Path):
    found = ("--candidates", folder / "found", "--data", folder / "data")
    more = ("--reference", folder / "results-0.json", "--display-png", tmp_path / "display.png")
    html = run(folder, tmp_path / "page.html", "--run", folder / "run", *found, *more)
    assert html.references == []
    assert not re.search(r"https?:|url\(|@import|<script", (tmp_path / "page.html").read_text())
    assert len(html.pictures) == 6 + 3 + 2 + 2
    for picture in html.pictures:
        svg = base64.b64decode(picture.removeprefix("data:image/svg+xml;base64,")).decode()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        references = re.findall(r'(?:xlink:href|href|src)="([^"]*)"', svg)
        assert all(reference.startswith(("#", "data:image/png")) for reference in references)
    results = json.loads((folder / "results-1.json").read_text())
    for reading in ("candidates", "exclusive"):
        for number in results[reading]["metrics"].values():
            assert evaluate_counts(number) in html.text
    assert html.text.count("Reference: results-0") == 2  # metrics and seconds
    assert "radius" in html.text and "influencer" in html.text
    assert "Power of a GPU, median 250 W" in html.text and "Energy of an event, median 5.5 J" in html.text
    header = (tmp_path / "display.png").read_bytes()[:24]
    assert header[:4] == b"\x89PNG" and struct.unpack(">2I", header[16:])[0] > 1000


def test_kinds_of_track_and_results_beside_each_other(folder: Path, tmp_path: Path):
    compared = [
        f"simulated={folder / 'kinds-1.json'}",
        f"real={folder / 'kinds-0.json'}",
        str(folder / "results-0.json"),
    ]
    assert report.main(["--compare", *compared, "--out", str(tmp_path / "page.html"), "--title", "Both"]) == 0
    html = Page(tmp_path / "page.html")
    # efficiency and fake rate as ever; three rows of six kinds; double majority by six and fakes by four; seconds
    assert html.references == [] and len(html.pictures) == 6 + 3 * 6 + 6 + 4 + 1
    section = html.text[html.text.index("Beside each other") :]
    assert "simulated real results-0" in section and "simulated: double majority real: double majority" in section
    assert "results-0: no tables by kind of track: made by an older hpctrack; evaluate again." in section
    number = json.loads((folder / "kinds-0.json").read_text())["exclusive"]["metrics"]["perfect_efficiency"]
    assert f"{number['value']:.4f} ± {number['error']:.4f}" in section


def test_what_a_dataset_does_not_tell_is_one_line(folder: Path, tmp_path: Path, monkeypatch):
    results = json.loads((folder / "kinds-1.json").read_text())
    results["not_told"] = {"vertex_r": "vertices", "vertex_z": "vertices"}
    for reading in ("candidates", "exclusive"):
        for variables in results[reading]["binned"].values():
            variables.pop("vertex_r", None), variables.pop("vertex_z", None)
    path, drawn = tmp_path / "results.json", []
    path.write_text(json.dumps(results))
    monkeypatch.setattr(by_kind, "figure", lambda series, variable, title: drawn.append(variable) or "data:,")
    section = by_kind.by_kind(comparison.load([str(path)])[0])
    said = "Not told by radius of creation, |z| of creation: the dataset has no vertices."
    assert section.count(said) == 1 and drawn == 3 * ["hits", "pt", "abs_eta", "distance"]


def evaluate_counts(number: dict) -> str:
    top = number["numerator"]
    return f"{top:,} / {number['denominator']:,}" if isinstance(top, int) else f"{top:,.3f} / {number['denominator']}"


def test_the_same_input_gives_the_same_page(folder: Path, tmp_path: Path):
    options = ("--run", folder / "run", "--candidates", folder / "found", "--data", folder / "data")
    for name in ("one.html", "two.html"):
        run(folder, tmp_path / name, *options)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_missing_pieces_are_said(folder: Path, tmp_path: Path):
    html = run(folder, tmp_path / "page.html")
    for text in ("no loss curves", "no event is drawn", "No training speed", "No configuration"):
        assert text in html.text
    assert len(html.pictures) == 6 + 1


def test_a_run_without_logged_steps(folder: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("seed: 1\n")
    html = run(folder, tmp_path / "page.html", "--run", tmp_path / "run")
    assert "no logged steps" in html.text


def test_no_candidates_and_no_timings(tmp_path: Path):
    events = [make.make_event(0, 6)]
    dataset = make.write_dataset(tmp_path / "data", events)
    nothing = [make.as_candidates(0, [], np.zeros(events[0].n_hits))]
    make.write_candidates(tmp_path / "none", dataset, nothing)
    (tmp_path / "none" / "timings.jsonl").unlink()
    argv = [str(tmp_path / "none"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "results-1.json")]
    assert evaluate.main(argv) == 0
    html = run(tmp_path, tmp_path / "page.html", "--candidates", tmp_path / "none", "--data", tmp_path / "data")
    assert "no timings.jsonl" in html.text and "There are no candidates of 3 hits" in html.text


def test_steps_logged_twice_count_once(tmp_path: Path):
    folder = make.write_run(tmp_path / "run", steps=50)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 50, "loss": 9.0}\n{"kind": "train", "st')
    run_folder = Run(folder)
    assert [row["step"] for row in run_folder.train] == [10, 20, 30, 40, 50]
    assert run_folder.train[-1]["loss"] == 9.0 and run_folder.unreadable == 1


def make_study(folder: Path, name: str, text: str, picture: bytes | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    if picture is not None:
        (folder / f"{name}.png").write_bytes(picture)
    return folder


TABLE = "| system | tracks < 9 |\n|---|---|\n| `one` | 0.9812 ± 0.0031 |\n| two | – |\n"
PICTURE = b"\x89PNG\r\n\x1a\nrest"


def test_studies_are_sections_of_the_page(folder: Path, tmp_path: Path):
    text = f"![efficiency & rate](tracks.png)\n\nAs in the\npaper:\n{TABLE}\n## Again\n\n{TABLE}"
    one = make_study(tmp_path / "one", "tracks", text, PICTURE)
    two = make_study(tmp_path / "two", "pile_up", f"# Other events\n{TABLE}")
    make_study(two, "without_title", TABLE)
    html = run(folder, tmp_path / "page.html", "--study", one, "--study", two)
    assert html.references == [] and len(html.pictures) == 6 + 1 + 1
    assert base64.b64decode(html.pictures[-1].removeprefix("data:image/png;base64,")) == PICTURE
    assert html.text.index("Efficiency & rate") < html.text.index("Other events") < html.text.index("Without title")
    assert html.text.count("one 0.9812 ± 0.0031 two –") == 4 and "As in the paper: system tracks < 9" in html.text
    assert html.text.index("Without title") < html.text.index("Configuration and versions")


class TestDisplay:
    def display(self, event, found, **options) -> Display:
        return make_display(event, found, Cuts(pt_min_gev=1.0), **options)

    def test_every_hit_is_drawn_once(self):
        event = make.make_event(2, 60)
        for only in (False, True):
            display = self.display(event, make.imperfect_candidates(event), targets_only=only)
            lists = (*display.tracks, *display.wrong, *display.fakes, display.others)
            assert len(np.unique(np.concatenate(lists))) == sum(map(len, lists))
            assert display.n_drawn >= event.n_hits  # hits of missed targets may also be someone's wrong hits

    def test_truth_has_nothing_wrong(self):
        event = make.make_event(2, 60)
        display = self.display(event, make.truth_candidates(event), targets_only=True)
        assert len(display.tracks) == display.n_targets > 10
        assert sum(map(len, display.wrong)) == len(display.fakes) == len(display.missed) == 0

    def test_nothing_found_misses_all(self):
        event = make.make_event(2, 60)
        display = self.display(event, make.as_candidates(2, [], np.zeros(event.n_hits)))
        assert len(display.missed) == display.n_targets and display.tracks == []

    def test_sector_of_a_full_event(self):
        event = make.make_event(2, 1500)
        display = self.display(event, make.imperfect_candidates(event))
        assert display.targets_only
        part, width = sector(display)
        assert 15 < len(part.tracks) < 150 and width < 60


def test_bins_have_drawable_ends():
    cuts = Cuts(pt_min_gev=0.0)
    edges = [*cuts.begins("pt"), None]
    rows = [{"from": a, "to": b} for a, b in zip(edges[:-1], edges[1:], strict=True)]
    low, high = plots.bin_edges(rows, "pt")
    assert np.all(low > 0) and np.all(high > low) and np.isfinite(high).all()
    low, high = plots.bin_edges([{"from": 50, "to": 51}], "n_tracks")
    assert (low[0], high[0]) == (49.5, 50.5)


def test_rounding():
    assert page.rounded(0.98124, 0.0123) == ("0.981", "± 0.012")
    assert page.rounded(0.98124, 0.31) == ("0.98", "± 0.31")
    assert page.rounded(1.0, 0.00002) == ("1.0000", "± 0.0000")
    assert page.rounded(None, None) == ("–", "")


class TestBadInput:
    def fails(self, capsys, *argv: object) -> str:
        assert report.main([str(a) for a in argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("hpctrack report: error: ")
        return lines[0]

    def test_wrong_paths(self, folder: Path, tmp_path: Path, capsys):
        results, out = folder / "results-1.json", tmp_path / "page.html"
        assert "no such file" in self.fails(capsys, "--results", tmp_path / "no.json", "--out", out)
        assert "not a run folder" in self.fails(capsys, "--results", results, "--out", out, "--run", tmp_path)
        found = ("--candidates", tmp_path / "no", "--data", folder / "data")
        assert "not a candidates folder" in self.fails(capsys, "--results", results, "--out", out, *found)
        line = self.fails(capsys, "--results", results, "--out", out, "--candidates", folder / "found")
        assert "belong together" in line
        line = self.fails(capsys, "--results", results, "--out", tmp_path / "no" / "page.html")
        assert "folder does not exist" in line
        assert not out.exists()

    def test_wrong_content(self, folder: Path, tmp_path: Path, capsys):
        (tmp_path / "half.json").write_text('{"format": "hpctrack-res')
        assert "not JSON" in self.fails(capsys, "--results", tmp_path / "half.json", "--out", tmp_path / "p.html")
        (tmp_path / "other.json").write_text("[1]")
        assert "format" in self.fails(capsys, "--results", tmp_path / "other.json", "--out", tmp_path / "p.html")

    def test_names_of_results(self, folder: Path, tmp_path: Path, capsys):
        one, out = folder / "results-1.json", tmp_path / "page.html"
        assert "give --results, or --compare" in self.fails(capsys, "--out", out)
        line = self.fails(capsys, "--compare", f"a={one}", f"a={folder / 'results-0.json'}", "--out", out)
        assert "two results are named 'a'" in line and not out.exists()

    def test_studies(self, folder: Path, tmp_path: Path, capsys):
        study, text = tmp_path / "study", "![x](tracks.png)\n" + TABLE

        def words() -> str:
            options = ("--results", folder / "results-1.json", "--out", tmp_path / "p.html", "--study", study)
            return self.fails(capsys, *options)

        assert "study: no such folder" in words()
        study.mkdir()
        assert "no table (*.md) in it" in words()
        make_study(study, "tracks", text)
        assert "tracks.png: missing, but tracks.md shows it" in words()
        make_study(study, "tracks", text, b"GIF")
        assert "tracks.png: not a PNG" in words()
        make_study(study, "tracks", "![x](../tracks.png)\n", PICTURE)
        assert "only a PNG in the same folder" in words()
        make_study(study, "tracks", TABLE + "| three |\n")
        assert "1 cells instead of 2 in the row '| three |'" in words()
        make_study(study, "tracks", "\n")
        assert "tracks.md: empty" in words()
        make_study(study, "tracks", "| three |\n| four |\n")
        assert "expected a line |---|" in words() and not (tmp_path / "p.html").exists()

    def test_candidates_of_other_data_or_no_such_event(self, folder: Path, tmp_path: Path, capsys):
        options = [
            "--results",
            folder / "results-1.json",
            "--out",
            tmp_path / "p.html",
            "--candidates",
            folder / "found",
        ]
        make.write_dataset(tmp_path / "other", [make.make_event(0, 3)])
        assert "fingerprint" in self.fails(capsys, *options, "--data", tmp_path / "other")
        line = self.fails(capsys, *options, "--data", folder / "data", "--event", 99)
        assert "--event 99" in line and "0, 1, 2, 3" in line


def test_neither_verb_imports_torch():
    code = "import sys, hpctrack.evaluate, hpctrack.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_in_a_browser(folder: Path, tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no chromium on this machine")
    out = tmp_path / "page.html"
    run(folder, out, "--run", folder / "run", "--candidates", folder / "found", "--data", folder / "data")
    probe = (
        "<script>addEventListener('load', () => { document.title = "
        "[...document.images].every(i => i.naturalWidth > 100) + ' ' + "
        "(document.documentElement.scrollWidth <= innerWidth) })</script></body>"
    )
    (tmp_path / "probe.html").write_text(out.read_text().replace("</body>", probe))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --virtual-time-budget=3000 --window-size=500,3000 --dump-dom"
    command = [browser, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'probe.html'}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout
    assert "<title>true true</title>" in dom
