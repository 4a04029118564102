"""report.html: that it stands alone, and that what it says is what the run holds."""

import os
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
import typer
from PIL import Image

from dcfast import cli
from dcfast.deepcluster import TrainConfig, load_run
from dcfast.deepcluster.charts import bar_chart, line_chart, scatter_chart, size_chart, stacked_chart
from dcfast.deepcluster.filters import gradient_tiles, image_filters, mosaic
from dcfast.deepcluster.models import build_model
from dcfast.deepcluster.page import number
from dcfast.deepcluster.report import train_command, write_report

VOID = {"meta", "img", "br", "input", "link"}
SVG_EMPTY = {"defs", "g", "path", "rect", "use"}

STACKED = {"Seconds per stage", "What bounds an epoch, in per cent"}
PROBE = {
    "layers": [
        {
            "name": "conv1",
            "n_features": 9248,
            "trained": 0.75,
            "untrained": 0.5,
            "trained_fit": 1.0,
            "untrained_fit": 1.0,
        }
    ],
    "epoch": 3,
    "moment": "in the middle of epoch 4",
    "n_train": 19,
    "n_test": 5,
    "n_classes": 2,
    "chance": 0.6,
    "test": "20% of each class",
    "options": {"epochs": 90, "lr": 0.01, "batch_size": 256, "weight_decay": 1e-4, "momentum": 0.9, "seed": 0},
}


class Page(HTMLParser):
    """A parsed page: its tags with attributes, and the text of every element that has an id or a class."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.html, self.tags, self.text, self._open = html, [], [], []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), len(self.text)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in SVG_EMPTY
        self.tags.append((tag, dict(attributes), len(self.text)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text.append(data)

    def all(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [found for name, found, _ in self.tags if name == tag and wanted.items() <= found.items()]

    def facts(self):
        """The key numbers: what -> value."""
        pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", self.html)
        return dict(pairs)

    def text_at_end(self):
        """The last text written: in a line chart, the value beside the end of the line."""
        return [text for text in self.text if text.strip()][-1]

    def section(self, anchor):
        """The HTML of one section."""
        return re.search(rf'<section id="{anchor}">(.*?)</section>', self.html, re.S)[1]


def markers(svg):
    """(x, y) of the markers of a chart; y runs downwards."""
    return [(float(use["x"]), float(use["y"])) for use in Page(svg).all("use")]


def outlines(svg, series):
    """The points of each area filled with the colour of a series: arrays (n, 2) of x and y; y runs downwards."""
    areas = [path for path in Page(svg).all("path") if f"fill: var(--s{series})" in path.get("style", "")]
    return [np.array(re.findall(r"[ML] (\S+) (\S+)", area["d"]), float) for area in areas]


def report(path):
    return Page(write_report(path).read_text(encoding="utf-8"))


def require_alone(page):
    """Fail if the page refers to anything outside it or could run a script."""
    used = {tag for tag, _, _ in page.tags}
    ids = [attributes["id"] for _, attributes, _ in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids)), "an id occurs twice"
    assert used.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video", "image"})
    for tag, attributes, _ in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name == "src":
                assert re.match(r"data:image/(png|jpeg);base64,", value)
            if name in {"href", "xlink:href"}:
                assert value.startswith("#")
                assert value[1:] in ids, f"nothing has the id {value}"
            elif "url(" in value:
                assert name == "clip-path"
                assert re.fullmatch(r"url\(#(.*)\)", value)[1] in ids, f"nothing has the id in {value}"
            elif "//" in value:
                assert name.startswith("xmlns") or tag == "img", f"{tag} names {value}"
            assert name not in {"srcset", "background", "action"}, f"{tag} has {name}"
    assert page.html.count("<!DOCTYPE") == 1
    assert "<?xml" not in page.html
    styles = "".join(re.findall(r"<style>(.*?)</style>", page.html, re.S))
    assert "{" in styles
    assert "url(" not in styles
    assert "@import" not in styles
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]


def test_stands_alone_and_shows_the_numbers(make_run):
    path = make_run()
    load_run(path).dir.write_probe(PROBE)
    page = report(path)
    require_alone(page)
    assert page.facts() == {
        "images": "24",
        "clusters in use": "5 / 6",
        "loss": "2.125",
        "NMI with the previous clustering": "0.688",
        "NMI with the labels": "0.375",
        "AMI with the labels": "0.188",
        "best linear probe (conv1)": "75.0%",
        "images per second in training": "640",
        "in all": "1 min 05 s",
    }
    text = "".join(page.text)
    for line in (
        "5 clusters hold 4 to 5 images",
        "1 of 6 are empty",
    ):
        assert line in text, line
    charts = dict(re.findall(r"<h3>([^<]*)</h3>(<svg.*?</svg>)", page.section("curves")))
    lasts = {
        title: Page(svg).text_at_end()
        for title, svg in charts.items()
        if " per " not in title or title == "Images per second"
    }
    assert lasts == {
        "Loss": "2.125",
        "k-means objective": "0.75",
        "NMI with the previous clustering": "0.6875",
        "NMI with the labels": "0.375",
        "AMI with the labels": "0.1875",
        "Images that moved": "7",
        "Largest cluster": "9",
        "Clusters in use": "5",
        "Images per second": "640",
    }
    assert len(markers(charts["Loss"])) == 3
    assert len(markers(charts["NMI with the previous clustering"])) == 2  # the first epoch has no previous one
    assert {"features", "PCA", "k-means", "training"} <= set(Page(charts["Seconds per stage"]).text)
    assert {"images", "network", "PCA", "k-means"} <= set(Page(charts["What bounds an epoch, in per cent"]).text)
    assert "features bound by images (75%), training bound by the network (80%)" in text
    assert {"50.0", "75.0", "conv1", "untrained", "trained"} <= set(Page(page.section("probe")).text)
    options = page.section("configuration")
    assert "<tr><th>n clusters</th><td>6</td></tr>" in options
    assert "<tr><th>image size</th><td>16</td></tr>" in options


def test_every_picture_has_a_description(make_run):
    page = report(make_run())
    pictures = page.all("img")
    charts = page.all("svg")
    assert len(charts) == 12  # eleven curves and the sizes
    assert all(picture["alt"].strip() for picture in pictures)
    assert all(chart["role"] == "img" for chart in charts)
    assert len({chart["aria-label"] for chart in charts}) == 12
    assert sum("filters of conv1" in picture["alt"] for picture in pictures) == 4  # two views, before and after


def test_samples_lie_in_their_cluster(make_run):
    cluster = np.repeat([0, 1, 2], [15, 8, 1])  # the classes, in the order of the files: 12 thick, 12 thin
    path = make_run(clusters=cluster)
    cards = re.findall(r'<figure class="cluster">(.*?)</figure>', report(path).section("samples"), re.S)
    files = load_run(path).assignments["files"]
    assert len(cards) == 3
    shown = {}
    for card in cards:
        one = int(re.search(r"Cluster (\d+)<", card)[1])
        pictures = Page(card).all("img")
        members = set(files[cluster == one])
        assert {picture["alt"] for picture in pictures} <= members
        assert len(pictures) == len({picture["alt"] for picture in pictures}) == min(8, len(members))
        shown[one] = card
    assert "15 images" in shown[0]
    assert '<span class="share">thick 80%</span>' in shown[0]
    assert '<span class="share">thin 100%</span>' in shown[1]
    assert "1 image<" in shown[2].replace(" <span", "<span")


def test_many_clusters_are_sampled_over_purity_and_size(make_run):
    cluster = np.arange(60) % 30
    page = report(make_run(per_class=30, clusters=cluster, n_clusters=40))
    cards = re.findall(r"<b>Cluster (\d+)</b>", page.section("samples"))
    assert len(cards) == len(set(cards)) == 24


def test_hostile_names_stay_text(make_run):
    hostile = '<script>alert(1)<‹img src=x onerror="x">&amp;'.replace("/", "")
    page = report(make_run(names=(hostile, "plain'\"")))
    require_alone(page)
    assert any(picture["alt"].startswith(hostile) for picture in page.all("img"))
    assert hostile in "".join(page.text)


def test_without_labels(make_run):
    page = report(make_run(labelled=False))
    text = "".join(page.text)
    assert "NMI with the labels" not in text
    assert not page.all("span", class_="share")
    assert len(page.all("img", class_="thumb")) == 24


def test_gone_images_are_said_to_be_gone(make_run):
    path = make_run()
    (path.parent / "images" / "thin" / "03.png").write_bytes(b"no image")
    page = report(path)
    assert len(page.all("span", class_="gone")) == 1
    shutil.rmtree(path.parent / "images")
    page = report(path)
    assert not page.all("img", class_="thumb")
    assert "The images cannot be shown" in "".join(page.text)
    assert len(page.all("svg")) == 12


def test_refuses_what_is_no_finished_run(make_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run"):
        write_report(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no epoch has ended"):
        write_report(make_run(epochs=0))


def test_a_failed_write_leaves_the_old_page(make_run, monkeypatch):
    path = make_run()
    old = write_report(path).read_bytes()
    load_run(path).dir.write_probe(PROBE)

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(path)
    assert (path / "report.html").read_bytes() == old


def test_the_page_is_a_function_of_the_run(make_run):
    path = make_run()
    assert write_report(path).read_bytes() == write_report(path).read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sobel": False, "flip": False, "limit": 20, "min_crop": 0.25, "lr": 3e-5, "stop_clustering": 3},
        {"stop_clustering": "auto", "clusterer": "sklearn.cluster.Birch"},
    ],
)
def test_the_command_repeats_the_run(make_run, changes):
    run = load_run(make_run(**changes))
    words = train_command(run, "again")
    command = typer.main.get_command(cli.app).commands["train"]
    given = command.make_context("train", words[2:]).params
    assert given.pop("data") == run.config["data"]["location"]
    assert str(given.pop("output")) == "again"
    assert not given.pop("overwrite")
    assert given.pop("resume") is None
    assert TrainConfig(**given) == run.options


def commands(page):
    return [unescape(code) for code in re.findall(r"<pre><code>(.*?)</code></pre>", page.section("reproduce"), re.S)]


@pytest.mark.parametrize(("n_ranks", "same"), [([2, 2, 2], True), ([1, 1, 2], False)])
def test_the_commands_start_as_many_processes(make_run, n_ranks, same):
    path = make_run()
    directory = load_run(path).dir
    epochs = zip(directory.read_metrics(), n_ranks, strict=True)
    directory.write_metrics([{**record, "n_ranks": number} for record, number in epochs])
    resume, longer, _, again = commands(report(path))
    for command in (resume, longer, again):
        assert command.startswith("torchrun --nproc-per-node 2 -m dcfast train ")
    assert ("but not its bits" in report(path).section("reproduce")) is not same


def test_options_left_open_are_said_to_be_none(make_run):
    options = report(make_run()).section("configuration")
    assert "<tr><th>limit</th><td>all</td></tr>" in options
    for name in ("init", "cache", "stop clustering", "feature dim"):
        assert f"<tr><th>{name}</th><td>none</td></tr>" in options


def test_the_commands_work_from_any_folder(make_run, monkeypatch):
    began = os.getcwd()
    path = make_run(init="weights.pth")
    monkeypatch.chdir(path.parent)  # a resumed run writes its report anew, wherever it is resumed
    resume, longer, probe, repeat = commands(report(path.relative_to(path.parent)))
    assert resume == f"dcfast train --resume {path}"
    assert longer == f"{resume} --epochs 8"
    assert probe == f"dcfast probe {path}"
    assert f"--output {path}-again" in repeat
    assert f"--init {began}/weights.pth" in repeat


def test_a_run_whose_learning_rate_ends_with_it_is_not_made_longer(make_run):
    page = report(make_run(lr_schedule="cosine"))
    assert len(commands(page)) == 3
    assert "Train longer" not in page.section("reproduce")


def test_runs_from_python_go_on_from_python(make_run):
    path = make_run()
    directory = load_run(path).dir
    config = directory.read_config()
    config["data"]["kind"] = "dataset"
    directory.write_config(config)
    resume, longer, probe = commands(report(path))
    assert resume == f"from dcfast.deepcluster import resume\nresume({str(path)!r}, dataset=dataset).fit()"
    assert longer == f"from dcfast.deepcluster import resume\nresume({str(path)!r}, dataset=dataset, epochs=8).fit()"
    assert probe == f"from dcfast.deepcluster.probe import probe\nprobe({str(path)!r}, dataset=dataset)"


def test_image_filters_are_what_the_convolution_computes():
    torch.manual_seed(0)
    conv = build_model("small", 16).features[0]
    images = torch.rand(2, 3, 16, 16)
    normalised = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    kernels = image_filters(conv.weight.detach())
    assert kernels.shape == (32, 1, 5, 5)
    seen = torch.nn.functional.conv2d(normalised.mean(1, keepdim=True), kernels)
    torch.testing.assert_close(seen, (conv(images) - conv.bias[:, None, None]).detach()[:, :, 2:-2, 2:-2])


def test_colour_filters_are_shown_as_they_are(make_run):
    weight = torch.rand(4, 3, 3, 3)
    assert image_filters(weight) is weight
    page = report(make_run(sobel=False))
    assert sum("filters of conv1" in picture["alt"] for picture in page.all("img")) == 2
    assert "normalised colours" in "".join(page.text)


def test_mosaic():
    filters = torch.zeros(3, 1, 2, 2)
    filters[0, 0, 0, 0], filters[0, 0, 1, 1], filters[1, 0, 0, 1] = 4.0, -4.0, torch.nan
    picture = np.array(mosaic(filters, 2))
    assert picture.shape == (5, 5, 4)
    assert picture[0, 0].tolist() == [255, 255, 255, 255]
    assert picture[1, 1].tolist() == [0, 0, 0, 255]
    assert picture[0, 1].tolist() == [128, 128, 128, 255]
    assert picture[0, 4, 3] == 0  # NaN
    assert not picture[2, :, 3].any()  # between the rows
    assert not picture[3:, 3:].any()  # no fourth filter
    halves = gradient_tiles(torch.arange(18.0).reshape(1, 2, 3, 3))
    assert halves[0, 0, 0].tolist()[:3] == [0, 1, 2]
    assert halves[0, 0, 0].tolist()[4:7] == [9, 10, 11]
    assert halves[0, 0, :, [3, 7]].isnan().all()


CHARTS = {
    "line": lambda label: line_chart(label, [1.0, None, 3.0, 2.0]),
    "stacked": lambda label: stacked_chart(label, {"a": [1.0, 2.0], "b": [3.0, 2.0]}),
    "size": lambda label: size_chart(label, [3, 9, 6], 2),
    "scatter": lambda label: scatter_chart(label, {10: [0.5, 0.25], 100: [1.0]}, {10: 0.1, 100: 0.2}, "clusters"),
    "bar": lambda label: bar_chart(label, ["conv1"], {"a": [0.25], "b": [1.0]}, 0.1, "block"),
}


@pytest.mark.parametrize("kind", CHARTS)
def test_charts_have_no_colour_of_their_own(kind):
    svg = CHARTS[kind]("x & y")
    used = set(re.findall(r"(?:fill|stroke|color): ([^;\"]+)", svg))
    assert {"currentColor", "var(--s0)"} <= used <= {"none", "currentColor", *(f"var(--s{n})" for n in range(4))}
    assert not re.search(r"#[0-9a-f]{6}\b(?!\))|<style|<metadata|<image|<g id", svg)
    assert Page(svg).all("svg")[0]["aria-label"] == "x & y"


@pytest.mark.parametrize("kind", CHARTS)
def test_charts_do_not_depend_on_the_settings_and_leave_them_alone(kind, monkeypatch):
    plain = CHARTS[kind]("x")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31.0)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "red")
    before = dict(matplotlib.rcParams)
    assert CHARTS[kind]("x") == plain
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("kind", CHARTS)
def test_charts_share_no_ids(kind):
    first, second = (set(re.findall(r' id="([^"]+)"', CHARTS[kind](label))) for label in ("x", "y"))
    assert first
    assert first.isdisjoint(second)


def test_line_chart_places_values():
    dots = markers(line_chart("x", [1.0, None, 3.0, 2.0]))
    assert len(dots) == 3
    first, second, third = dots
    assert (second[0] - first[0]) == pytest.approx(2 * (third[0] - second[0]))  # epochs 1, 3, 4
    assert third[1] == pytest.approx((first[1] + second[1]) / 2)
    assert second[1] < first[1]


@pytest.mark.parametrize("values", [[0, 0, 0], [5.0], [-1.0, -1.0], [1e-9, 2e-9], [1e9, 3e9], [7] * 60])
def test_line_chart_keeps_to_its_frame(values):
    svg = line_chart("x", values)
    dots = markers(svg)
    assert len(dots) == len(values)
    assert all(0 <= x <= 350 and 0 <= y <= 205 for x, y in dots)
    assert Page(svg).text_at_end() == number(values[-1])
    assert not any(text.startswith("\N{MINUS SIGN}") for text in Page(svg).text) or min(values) < 0


def test_long_runs_are_drawn_without_markers():
    svg = line_chart("x", list(np.linspace(0.0, 1.0, 500) ** 2))
    assert not markers(svg)
    assert len(svg) < 50_000


def test_stacked_chart_stacks():
    svg = stacked_chart("x", {"a": [1.0, 2.0], "b": [3.0, 2.0]})
    # A legend's key comes with each area.
    low, high = (max(outlines(svg, series), key=lambda points: np.ptp(points[:, 0]))[:, 1] for series in (0, 1))
    floor, one, two, four = np.unique(np.round(np.concatenate([low, high]), 3))[::-1]
    assert (floor - two) == pytest.approx(2 * (floor - one), abs=0.01)
    assert (floor - four) == pytest.approx(4 * (floor - one), abs=0.01)
    assert set(np.round(low, 3)) == {floor, one, two}
    assert set(np.round(high, 3)) == {one, two, four}


def test_scatter_chart_places_values():
    first, second, third = sorted(markers(scatter_chart("x", {10: [0.5, 0.25], 100: [1.0]}, {}, "clusters")))
    assert first[0] == second[0] < third[0]
    heights = sorted([first[1], second[1], third[1]], reverse=True)
    assert heights[1] - heights[2] == pytest.approx(2 * (heights[0] - heights[1]), abs=0.01)
    assert third[1] == heights[2]
    assert "by chance" not in Page(scatter_chart("x", {10: [0.5]}, {}, "clusters")).text


def test_size_chart_marks_the_largest_and_the_empty():
    svg = size_chart("x", [3, 9, 6, 3], n_empty=2)
    (sizes,), (largest,), (empty,) = (outlines(svg, series) for series in (0, 1, 3))
    levels = np.unique(np.round(sizes[:, 1], 3))[::-1]
    assert levels[0] - levels[1:] == pytest.approx((levels[0] - levels[1]) * np.array([1, 2, 3]), abs=0.01)
    left, right = sizes[:, 0].min(), sizes[:, 0].max()
    assert largest[:, 0].min() == left
    assert largest[:, 0].max() == pytest.approx(left + (right - left) / 4)
    assert largest[:, 1].min() == sizes[:, 1].min()
    assert empty[:, 0].min() == pytest.approx(right)
    assert np.ptp(empty[:, 0]) == pytest.approx((right - left) / 2)
    assert {"largest: 9 images", "2 empty", "mean 3.5"} <= set(Page(svg).text)
    assert not outlines(size_chart("x", [3, 9, 6], n_empty=0), 3)


def test_size_chart_of_many_clusters_is_small():
    svg = size_chart("x", np.random.default_rng(0).poisson(100.0, 100_000).tolist(), n_empty=0)
    assert len(svg) < 30_000


def test_bar_chart_of_several_blocks():
    svg = bar_chart("x", ["conv1", "conv2"], {"a": [0.25, 0.5], "b": [1.0, 0.0]}, 0.1, "block")
    # The last area of each colour is its key in the legend.
    bars = [bar for series in (0, 1) for bar in outlines(svg, series)[:-1]]
    heights = [np.ptp(bar[:, 1]) for bar in bars]
    assert heights == pytest.approx([heights[2] / 4, heights[2] / 2, heights[2], 0], abs=0.01)
    lefts = [bars[place][:, 0].min() for place in (0, 2, 1, 3)]
    assert lefts == sorted(lefts)
    assert {"25.0", "50.0", "100.0", "0.0", "conv1", "conv2", "a", "b", "block"} <= set(Page(svg).text)


def test_number():
    shown = [number(value) for value in (0, 12, 1234567, 0.12345, 99.999, 1e-7, -2.5, 1500.4)]
    assert shown == ["0", "12", "1,234,567", "0.1235", "100", "1e-07", "-2.5", "1,500"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_chromium_shows_the_page_without_a_network(make_run, tmp_path):
    path = make_run()
    load_run(path).dir.write_probe(PROBE)
    page = write_report(path)
    shot = tmp_path / "shot.png"
    options = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --hide-scrollbars --disable-dev-shm-usage "
        "--enable-logging=stderr --window-size=1200,3600 --proxy-server=127.0.0.1:9"  # where nobody listens
    )
    done = subprocess.run(
        [
            "chromium",
            *options.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shot.exists(), done.stderr
    assert "Content Security Policy" not in done.stderr
    pixels = np.array(Image.open(shot).convert("RGB")).astype(int)
    # The images are magenta stripes; 24 of them, shown at more than 40 pixels a side, half covered.
    magenta = (pixels[..., 0] > 180) & (pixels[..., 1] < 90) & (pixels[..., 2] > 180)
    assert magenta.sum() > 24 * 40 * 40 / 4
    # The curves are drawn in the blue of the light or the dark style.
    blues = [np.abs(pixels - blue).sum(-1) < 12 for blue in ((47, 111, 222), (110, 163, 255))]
    assert max(blue.sum() for blue in blues) > 1000
