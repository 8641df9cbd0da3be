"""The page of measurements."""

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from keras_mobilevit import VARIANTS
from tests.helpers.commands import run_here
from tflite import report
from tflite.records import MAX_TEXT, read_measurements
from tflite.report_rows import make_rows, name_devices
from tflite.suites.suites import PAPER, SUITES, files_of


def record(model="mobilevit_xxs", median=10.0, **fields) -> dict:
    return {
        "target": "host",
        "file": f"runs/suite/{model}_256_fp32.tflite",
        "setting": "litert cpu x1",
        "status": "measured",
        "reason": "",
        "device": "Laptop",
        "median_ms": median,
        "p5_ms": median and 0.9 * median,
        "p95_ms": median and 1.2 * median,
        "init_ms": 20.0,
        "peak_memory_mb": 12.5,
        "partitions": 1,
        "model": model,
        "format": "fp32",
        "size": 224 if model == "mobilenet_v2" else 256,
        "sha256": model,
        "measured_by": "Linux",
    } | fields


PHONE = {
    "device": "Pixel 8 <Pro>",
    "setting": "classic cpu x1",
    "facts": {"cores": 9, "abi": "arm64-v8a", "max_mhz": [1704, 2914]},
}
HOT = {"notes": ["throttled: light"], "warnings": ["throttled: light"]}
RECORDS = [
    record("mobilenet_v2", 8.0),
    record("mobilevit_xxs", 11.0),
    record("mobilevit_xxs", 13.0),
    record("mobilevit_xxs", 12.0),
    record(
        "mobilenet_v2",
        4.0,
        **PHONE,
        notes=["throttled: light"],
        warnings=["throttled: light"],
    ),
    record("mobilenet_v2", None, **PHONE)
    | {"status": "not measured", "setting": "classic gpu x1", "reason": "No GPU | <b>"},
    record("runs/photos/best.keras", 5.0, file="out/best_160_int8.tflite", size=160),
    record("mobilevit_xxs", 1.0, file="out/mobilevit_xxs_64_fp32.tflite", size=64),
]


class Checker(HTMLParser):
    """Collects what a page loads, and its text."""

    def __init__(self):
        super().__init__()
        self.loads, self.words = [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.loads += [named[n] for n in ("src", "href", "xlink:href") if n in named]

    def handle_data(self, data):
        self.words.append(data.strip())


def write(folder: Path, records=RECORDS, name="latency.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_the_page_and_the_markdown_hold_everything(tmp_path):
    output = tmp_path / "latency.html"
    report.write_report([write(tmp_path)], output)
    page, text = output.read_text(), output.with_suffix(".md").read_text()
    checker = Checker()
    checker.feed(page)
    assert all(load.startswith("#") for load in checker.loads)  # within the page
    assert page.count("<svg") == 3  # accuracy, and one for each device
    for shown in ("12.00", "1.50", "Pixel 8 <Pro>", "1704, 2914", "not tried"):
        assert any(shown in word for word in checker.words), shown
        assert html.escape(shown) in text
    lines = text.splitlines()
    (line,) = [x for x in lines if x.startswith("| MobileViT-XXS | fp32")]
    assert line == (
        "| MobileViT-XXS | fp32 | 256 | 69.0 | litert cpu x1 | 12.00 "
        "| 10.80 to 14.40 | 1.50 | 20.0 | 12.5 | 1 | 1.3 M |  |"
    )
    # Nothing is published of another network, or at another size.
    (line,) = [x for x in lines if x.startswith("| best_160_int8.tflite")]
    assert "| 160 |  |" in line and line.endswith("|  |  |")
    (line,) = [x for x in lines if x.startswith("| mobilevit_xxs_64_fp32.tflite")]
    assert "| 64 |  |" in line and " 1.00 |" in line
    (line,) = [x for x in lines if "classic gpu" in x]
    assert line.startswith(
        "| Pixel 8 &lt;Pro&gt; | MobileNetV2 1.0 fp32 224 classic gpu"
    )
    assert line.endswith("No GPU \\| &lt;b&gt; |")
    (line,) = [x for x in lines if "throttled" in x]
    assert line.startswith(
        "| MobileNetV2 1.0 | fp32 | 224 | 73.3 | classic cpu x1 | 4.00"
    )
    assert [x for x in lines if "not tried" in x] == [
        "| Pixel 8 &lt;Pro&gt; | MobileViT-XXS fp32 | not tried |"
    ]


def test_several_measurements_count_as_their_median():
    rows = make_rows(RECORDS[::-1])
    assert [(r.label, r.median_ms, r.ratio) for r in rows if r.device == "Laptop"] == [
        ("MobileNetV2 1.0 fp32", 8.0, 1.0),
        ("MobileViT-XXS fp32", 12.0, 1.5),
        ("mobilevit_xxs_64_fp32.tflite fp32 64", 1.0, 0.125),
        ("best_160_int8.tflite fp32 160", 5.0, 0.625),
    ]


def test_files_of_one_name_stay_apart():
    rows = make_rows([record(median=1.0, sha256=x) for x in ("aaaaaaaa", "bbbbbbbb")])
    assert [row.label for row in rows] == [
        "MobileViT-XXS (aaaaaaa) fp32",
        "MobileViT-XXS (bbbbbbb) fp32",
    ]


def test_devices_of_one_name_and_settings_stay_apart():
    records = [record(median=5.0, device_id=x) for x in ("a", "b", "a")]
    rows = make_rows(name_devices([*records, record(setting="litert cpu x4")]))
    assert [(row.device, row.setting) for row in rows] == [
        ("Laptop", "litert cpu x1"),
        ("Laptop (2)", "litert cpu x1"),
        ("Laptop (3)", "litert cpu x4"),  # without an identity
    ]


def test_a_ratio_is_to_the_same_network_in_the_same_setting():
    base = record("mobilenet_v2", 8.0)
    gpu = [
        record(median=4.0, setting="gpu"),
        record("mobilenet_v2", 2.0, setting="gpu"),
    ]
    assert [r.ratio for r in make_rows([record(median=4.0), base])] == [1.0, 0.5]
    assert [r.ratio for r in make_rows([base, *gpu])] == [1.0, 1.0, 2.0]
    assert [r.ratio for r in make_rows([record(median=4.0)])] == [None]
    assert [r.ratio for r in make_rows([base | {"median_ms": 0.0}])] == [None]
    own = [record("a", 2.0, file="a"), record("b", 3.0, file="b")]
    assert [r.ratio for r in make_rows(own)] == [1.0, 1.5]


def test_measurements_with_warnings_count_only_alone():
    hot = record(median=14.0, warnings=["hot"], notes=["hot"])
    (row,) = make_rows([record(median=4.0), hot, hot])
    assert (row.median_ms, row.notes) == (4.0, ())
    (row,) = make_rows([hot, hot])
    assert (row.median_ms, row.notes) == (14.0, ("hot",))


def test_a_device_cannot_break_the_page(tmp_path):
    strange = "$\\foo$ <script>\n## x"
    path = write(tmp_path, [record(device=strange, file="$\\b$.tflite", model="m")])
    report.write_report([path], tmp_path / "latency.html")
    text = (tmp_path / "latency.md").read_text()
    assert "\n## \\$\\\\foo\\$ &lt;script&gt; ## x\n" in text
    assert "<script>" not in (tmp_path / "latency.html").read_text()


ALIVE = (
    "![](https://evil.example/a.png)",
    "[free](https://evil.example)",
    "<https://evil.example>",
    "https://evil.example www.evil.example me@evil.example",
    "`code` *bold* _it_ ~~old~~ | cell",
    "\\[free](https://evil.example)",
)


@pytest.mark.parametrize("name", ALIVE)
def test_nothing_that_a_phone_calls_itself_is_markup(name, tmp_path):
    fields = dict.fromkeys(("device", "reason", "user_agent", "gpu", "format"), name)
    records = [
        record(**fields, file=f"{name}.tflite", model="m", notes=[name], setting=name),
        record(median=None, **fields, status="not measured", setting=name),
    ]
    report.write_report([write(tmp_path, records)], tmp_path / "latency.html")
    text = (tmp_path / "latency.md").read_text()
    assert "evil" in text or "bold" in text
    assert not re.search(r"(?<!\\):/|(?<!\\)www\.|\w@", text)  # links of GitHub
    tokens = MarkdownIt("commonmark").enable("strikethrough").parse(text)
    kinds = {part.type for token in tokens for part in token.children or []}
    assert kinds <= {"text", "softbreak", "html_inline"}, kinds
    # Each row has as many cells as the headings.
    tables = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    assert len({len(re.findall(r"(?<!\\)\|", x)) for x in tables[:3]}) == 1


def test_what_controls_a_terminal_is_removed(tmp_path):
    name = "a\x1b[31mb\u202ec\ud800\nd" + "e" * 1000
    path = write(tmp_path, [record(device=name, notes=[name])])
    (read,) = read_measurements(path)
    assert read["device"] == read["notes"][0]
    assert read["device"].startswith("a[31mbc deee") and read["device"].isprintable()
    assert len(read["device"]) == MAX_TEXT
    report.write_report([path], tmp_path / "latency.html")


WRONG = ([], {}, [1], "x", -1, 1.5, True, 10**400, 1e300, [["x"]], {"a": []})


def test_a_tampered_record_makes_a_page_or_one_line(tmp_path):
    """Each entry with each wrong value."""
    whole = record(**PHONE, **HOT, user_agent="a", gpu="b", time="c", first_ms=1.0)
    refused = 0
    for key in [*whole, "num_threads", "device_id", "weights"]:
        for value in (*WRONG, None):
            path = write(tmp_path, [record(), whole | {key: value}])
            try:
                records = name_devices(read_measurements(path))
                report.render_markdown(records, make_rows(records))
            except ValueError as error:
                assert f"{path}, line 2 is not a measurement" in str(error)
                assert len(str(error)) < 400
                refused += 1
    assert refused > 150


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"a": ' * 100_000])
def test_a_line_of_something_else_is_named(text, tmp_path):
    path = tmp_path / "latency.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match="latency.jsonl, line 1 (cannot be|is not)"):
        read_measurements(path)


def test_a_record_with_deep_lists_is_named(tmp_path):
    """Python's parser of JSON goes deeper than its functions may."""
    depth = sys.getrecursionlimit() * 6 // 10
    deep = json.loads("[" * depth + "]" * depth)
    path = write(tmp_path, [record(), record(unknown=deep)])
    with pytest.raises(ValueError, match="latency.jsonl, line 2 cannot be read: max"):
        read_measurements(path)


def test_the_same_records_make_the_same_page(tmp_path):
    path = write(tmp_path)
    for name in ("a.html", "b.html"):
        report.write_report([path], tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_nothing_measured_still_makes_a_page(tmp_path):
    path = write(tmp_path, RECORDS[5:6])
    report.write_report([path], tmp_path / "latency.html")
    text = (tmp_path / "latency.md").read_text()
    assert "## Not measured" in text and "No GPU" in text


def test_a_cut_line_is_skipped_and_any_other_line_refused(tmp_path, capsys):
    path = write(tmp_path)
    path.write_text(path.read_text()[:-30] + "\n" + json.dumps(RECORDS[0]))
    assert len(read_measurements(path)) == len(RECORDS)
    assert f"skipped: {path}, line {len(RECORDS)}: " in capsys.readouterr().err
    for other in ({"epoch": 1}, RECORDS[0] | {"median_ms": "fast"}, [1]):
        path.write_text(json.dumps(other) + "\n")
        with pytest.raises(ValueError, match="latency.jsonl, line 1 is not a"):
            read_measurements(path)
    path.write_bytes(b"\x80\x81")
    with pytest.raises(ValueError, match="latency.jsonl is not text in UTF-8"):
        read_measurements(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name at least one file"),
        (("nowhere.jsonl",), "No such file or directory: 'nowhere.jsonl'"),
        (("empty.jsonl",), "There is no measurement in empty.jsonl"),
        (("latency.jsonl", "--output=page.pdf"), "--output must end in .html"),
        (("latency.jsonl", "--output=no/a.html"), "There is no folder no."),
    ],
)
def test_errors_of_the_report(arguments, message, tmp_path):
    write(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    result = run_here("tflite/report.py", *arguments, folder=tmp_path)
    assert result.returncode != 0
    assert message in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.parametrize("suffix", [".md", ".html"])
def test_only_pages_of_this_command_are_replaced(suffix, tmp_path):
    source, page = write(tmp_path), tmp_path / "page.html"
    for _ in range(2):
        report.write_report([source], page)
    page.with_suffix(suffix).write_text("# Latency\n\nWhat I know of it.")
    page.with_suffix({".md": ".html", ".html": ".md"}[suffix]).unlink()
    with pytest.raises(ValueError, match=f"page{suffix} was not written by this"):
        report.write_report([source], page)
    assert page.with_suffix(suffix).read_text().endswith("What I know of it.")
    assert len(list(tmp_path.iterdir())) == 2  # the measurements, and this file


def test_a_suite_names_its_files():
    assert list(SUITES) == ["paper"]
    files = files_of("paper", Path("runs"))
    assert len(files) == len(PAPER.entries) * len(PAPER.formats) == 22
    assert files[0] == Path("runs/mobilenet_v2_224_fp32.tflite")


def test_the_suite_has_the_figures_of_the_variants():
    """MobileViT's paper and its authors' release differ by 0.1 %."""
    known = [entry for entry in PAPER.entries if entry.model in VARIANTS]
    assert len(known) == 6
    for entry in known:
        config = VARIANTS[entry.model]
        assert entry.millions == round(config.parameters / 1e6, 1)
        assert entry.top1 == pytest.approx(config.top1, abs=0.11)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_record_of_no_number_is_refused(number, tmp_path):
    path = tmp_path / "latency.jsonl"
    text = json.dumps(record("mobilevit_xxs", 11.0)).replace("11.0", number)
    path.write_text(text + "\n", "utf-8")
    with pytest.raises(ValueError, match="line 1 is not a measurement"):
        read_measurements(path)


def test_random_weights_are_noted():
    (row,) = make_rows(name_devices([record(weights="none")]))
    assert row.notes == ("random weights",)
