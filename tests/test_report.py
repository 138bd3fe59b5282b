"""The report: what stands on its page, that it needs nothing else, and how it looks in a real Chromium, whose pictures
are left in `outputs/screenshots`."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape
from PIL import Image

from gptbench.base.errors import UserError
from gptbench.base.numbers import number
from gptbench.charts import CHARTS
from gptbench.commands.report import report_command
from gptbench.compare import Baseline
from gptbench.config import BaselineConfig
from gptbench.present.report import SelectedRecord, html, is_report
from gptbench.schema import Recorded
from gptbench.schema.metrics import METRICS
from gptbench.schema.summary import summary
from tests.results import (
    made_breakdown,
    made_energy,
    made_failure,
    made_kernels,
    made_result,
    made_state,
)
from tests.test_ab import made_ab, made_round

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parent.parent / "outputs" / "screenshots"


class Reader(HTMLParser):
    """Tables by the id of their section, as rows of texts; every attribute; every element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.section, self.in_cell = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag == "section":
            self.section = str(dict(attrs)["id"])
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.in_cell = True
            self.tables[self.section][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.in_cell:
            self.tables[self.section][-1][-1] += data


def page_of(*records: Recorded, baselines: tuple[Baseline, ...] = (), title: str = "gptbench") -> str:
    found = [
        SelectedRecord(Path(f"outputs/{number}/{record.FILE}.json"), record) for number, record in enumerate(records)
    ]
    return html(found, baselines, title, ["outputs"], "2026-11-22 12:00")


def read(*records: Recorded, **how: Any) -> Reader:
    """The page without charts, which take most of the time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("gptbench.present.report.pictures", lambda runs, kernels: [])
        return Reader(page_of(*records, **how))


def rows(reader: Reader, section: str) -> list[dict[str, str]]:
    head, *body = reader.tables[section]
    return [dict(zip(head, row, strict=True)) for row in body]


def everything() -> list[Recorded]:
    """Of a sweep of 3 × 2, of quantisations with all that can be measured, of kernels, and what failed."""
    sweep = [
        made_result(step_s=0.004 + 0.0007 * n + 0.001 * m, top_k=top_k, temperature=temperature, model="llama2_7b")
        for n, top_k in enumerate((1, 50, 200))
        for m, temperature in enumerate((0.5, 1.0))
    ]
    ways = [
        made_result(quant=quant, step_s=step_s, perplexity=perplexity, commit="7654321-dirty")
        for quant, step_s, perplexity in (("none", 2e-5, 10.0), ("int8", 1e-5, 10.1), ("int4", 8e-6, 12.0))
    ]
    for each in ways:
        each.breakdown, each.energy = made_breakdown(kernels=12), made_energy()
        for index, sample in enumerate(each.samples):
            sample.state = made_state(throttled=index == 2)
    return [*sweep, *ways, made_kernels(), made_failure(), made_result(compiles=(1, 1), top_k=7)]


def test_summary_has_the_numbers_of_each_run() -> None:
    slow, fast = made_result(step_s=0.01), made_result(step_s=0.005, quant="int8", perplexity=12.0)
    fast.energy = made_energy()
    first, second = rows(read(slow, fast), "summary")
    assert (first["run"], second["run"]) == ("int8", "bfloat16"), "the fastest comes first"
    numbers = summary(fast)
    assert first["decode (tokens/s)"] == number(numbers["decode_tokens_per_s"])
    assert first["limit (tokens/s)"] == number(4000 / numbers["gb_per_step"])
    assert first["MBU (%)"] == number(numbers["mbu"] * 100)
    assert first["TPOT p99 (ms)"] == number(numbers["tpot_p99_s"] * 1e3)
    assert (first["cold compile (s)"], first["warm compile (s)"]) == ("20", "3")
    assert (first["perplexity"], second["perplexity"]) == ("12", "")
    assert (first["decode energy (J/token)"], second["decode energy (J/token)"]) == ("0.5", "")
    assert first["valid samples"] == "2 of 3"
    least, most = first["min … max"].split(" … ")
    assert float(least) < float(first["decode (tokens/s)"]) < float(most)


def test_each_metric_has_its_meaning_as_a_title_and_in_a_list(whole: str) -> None:
    for name in ("mbu", "ttft_s", "decode_tokens_per_s", "gb_per_s"):
        one = METRICS[name]
        meaning = str(escape(one.meaning))
        assert f'title="{meaning}">{escape(one.heading)}</th>' in whole, name
        assert f'<dt>{escape(one.heading)}</dt>\n<dd class="muted">{meaning}</dd>' in whole, name
    assert str(escape(METRICS["samples_throttled"].meaning)) not in whole, "it is in no table"


def test_columns_that_no_run_has_are_left_out() -> None:
    (row,) = rows(read(made_result()), "summary")
    assert not {"perplexity", "KL divergence (nats)", "decode energy (J/token)"} & set(row)


def test_what_all_runs_have_in_common_is_told_once() -> None:
    reader = read(made_result(), made_result(quant="int8"))
    assert not {"model", "engine", "batch"} & set(rows(reader, "summary")[0])
    assert {row["weights"] for row in rows(reader, "summary")} == {"int8", "bfloat16"}
    told = "The same for all: model stories15m, engine inductor, batch 1, prompt 3 tokens, new tokens 5."
    assert any(told in text for text in reader.texts)
    assert rows(read(made_result()), "summary")[0]["model"] == "stories15m"


def test_each_run_has_a_verdict_beside_the_fastest_of_the_same_work() -> None:
    fast, slow, other = made_result(step_s=0.005), made_result(step_s=0.01, quant="int8"), made_result(model="other")
    (row,) = rows(read(fast, slow, other), "verdicts")
    assert (row["run"], row["ratio"], row["verdict"]) == ("stories15m int8", "0.5000", "slower")
    assert float(row["95% interval"].split(" … ")[1]) < 1
    assert rows(read(fast), "summary")[0]["prompt"] == "3 tokens"
    head = list(rows(read(fast, slow), "summary")[0])
    assert head.index("decode (tokens/s)") == 1, "a phone shows the first two or three columns"


def test_throttled_samples_are_told() -> None:
    result = made_result()
    result.samples[0].state = made_state(throttled=True)
    (row,) = rows(read(result), "summary")
    assert row["valid samples"] == "2 of 3, 1 throttled"


def test_the_best_result_is_told_in_words() -> None:
    slow, fast = made_result(step_s=0.01), made_result(step_s=1e-5, quant="int8")
    numbers = summary(fast)
    share = number(numbers["decode_tokens_per_s"] / (4000 / numbers["gb_per_step"]) * 100)
    told = " ".join(" ".join(read(slow, fast).texts).split())
    assert (
        "Fastest: stories15m, int8, engine inductor, batch 1, 3 prompt + 5 new tokens (int8) decodes "
        f"{number(numbers['decode_tokens_per_s'])}" in told
    )
    assert f"That is {share} % of the {number(4000 / numbers['gb_per_step'])} tokens/s" in told
    assert "read roof of 4000 GB/s" in told


def test_failures_and_what_does_not_count_have_a_table() -> None:
    reader = read(
        made_result(), made_failure(), made_result(compiles=(1, 1), top_k=7), made_result(finite=False, top_k=8)
    )
    killed, compiled, nonsense = rows(reader, "left-out")
    assert (killed["what"], killed["why"], killed["overrides"]) == (
        "killed",
        "signal 9 (SIGKILL)",
        "sampling.temperature=2",
    )
    assert compiled["why"] == "something was compiled during every sample"
    assert nonsense["why"] == "logits or cached values are not finite"
    assert len(rows(reader, "summary")) == 1
    assert len({row["run"] for table in ("summary", "left-out") for row in rows(reader, table)}) == 4


def test_only_failures_are_a_report_too() -> None:
    reader = Reader(page_of(made_failure()))
    assert "summary" not in reader.tables
    assert "svg" not in reader.tags
    assert len(rows(reader, "left-out")) == 1


def test_kernels_have_a_table_and_a_chart() -> None:
    page = page_of(made_kernels())
    first, second, third = rows(Reader(page), "kernel-table")
    assert (first["kernel"], first["by"], first["% of the roof"]) == ("gemv/D1024/bfloat16", "kernel", "75")
    assert (second["by"], second["GB/s"], third["% of the roof"]) == ("library", "1000", "50")
    assert 'aria-label="Standalone kernels"' in page


def test_environments_tell_what_differs() -> None:
    other = made_result(commit="abcdef0", quant="int8")
    other.environment.libraries = other.environment.libraries | {"torch": "2.14.0"}
    reader = read(made_result(), other)
    assert rows(reader, "differing") == [
        {"run": "bfloat16", "commit": "1234567", "torch": "2.13.0"},
        {"run": "int8", "commit": "abcdef0", "torch": "2.14.0"},
    ]
    same = {row["what"]: row["value"] for row in rows(reader, "same")}
    assert (same["driver"], same["power limit W"], same["triton"]) == ("570.1", "700", "3.7.0")
    assert "torch" not in same
    assert "differing" not in read(made_result(), made_result(quant="int8")).tables


def test_command_lines_are_there() -> None:
    result = replace(made_result(), command=["python", "-m", "gptbench", "run_name=a b"], identity="0123456789abcdef")
    reader = read(result)
    assert "python -m gptbench 'run_name=a b'" in reader.texts
    assert any("identity 0123456789abcdef" in text for text in reader.texts)


def test_a_record_that_is_selected_twice_is_shown_once() -> None:
    found = SelectedRecord(Path("outputs/failure.json"), made_failure())
    page = html([found, found], [], "gptbench", ["a", "b"], "now")
    assert len(rows(Reader(page), "left-out")) == 1


@pytest.fixture
def one_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first; all of them take a second."""
    monkeypatch.setattr("gptbench.present.report.CHARTS", CHARTS[:1])


@pytest.mark.usefixtures("one_chart")
def test_targets_are_those_of_the_run_and_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Baseline, "targets", lambda self, result: {"decode_tokens_per_s": 90.0})
    asked = Baseline(BaselineConfig(_target_="gptbench.compare.Baseline", name="b", device="Processor W"))
    page = page_of(made_result(), baselines=(asked,))
    for device in ("Processor Z", "Processor W"):
        assert f"target ({device})" in page
    del (older := made_result()).config["baseline"]
    assert "target (" not in page_of(older)


HOSTILE = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)> $a$ {{ 7 * 7 }} &amp;"


def test_whatever_a_record_holds_is_text() -> None:
    result = made_result(model=HOSTILE, engine=HOSTILE, perplexity=10.0)
    result.environment.cpu = result.environment.device = HOSTILE
    result.breakdown = made_breakdown()
    result.breakdown.launches[0].name = HOSTILE
    failure = made_failure()
    failure.reason = HOSTILE
    failure.config["model"]["name"] = HOSTILE + "2"
    kernels = made_kernels()
    kernels.kernels[0].label = HOSTILE
    records = [replace(result, command=[HOSTILE]), made_result(quant="int8", perplexity=9.0), failure, kernels]
    reader = Reader(page_of(*records, title=HOSTILE))
    assert not {"script", "img", "link", "iframe", "object", "image"} & set(reader.tags)
    assert not [key for _, key, _ in reader.attributes if key.startswith("on")]
    assert reader.tags.count("style") == reader.tags.count("title") == 1
    assert {HOSTILE} <= {value for row in rows(reader, "left-out") for value in row.values()}
    assert "49" not in {text.strip() for text in reader.texts}
    assert any(HOSTILE in text for text in reader.texts)


@pytest.fixture(scope="module")
def whole() -> str:
    return page_of(*everything())


def test_page_needs_nothing_else(whole: str) -> None:
    assert "http:" not in whole
    assert "https:" not in whole
    assert "@import" not in whole
    assert "mathdefault" not in whole, "numbers are no formulas"
    assert all(found.startswith("#") for found in re.findall(r"url\(\s*([^)]*)\)", whole))
    reader = Reader(whole)
    for tag, key, value in reader.attributes:
        if key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert value.startswith("#"), f"<{tag} {key}={value}>"
    policy = next(value for _, key, value in reader.attributes if key == "content" and "default-src" in value)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ids = [value for _, key, value in reader.attributes if key == "id"]
    assert len(set(ids)) == len(ids)
    used = {value.removeprefix("#") for _, key, value in reader.attributes if key == "href"}
    used |= set(re.findall(r"url\(#([^)]*)\)", whole))
    assert used <= set(ids)


def test_every_chart_is_there_and_has_a_name(whole: str) -> None:
    reader = Reader(whole)
    names = [value for tag, key, value in reader.attributes if (tag, key) == ("svg", "aria-label")]
    assert names == [*(chart.title for chart in CHARTS), "Standalone kernels"]


def test_the_same_records_give_the_same_page() -> None:
    assert page_of(made_result()) == page_of(made_result())


def test_many_runs_are_a_page() -> None:
    page = page_of(*(made_result(step_s=0.001 * n, temperature=n / 100) for n in range(1, 41)))
    reader = Reader(page)
    assert len({row["run"] for row in rows(reader, "summary")}) == 40
    assert "the fastest 24 of 40" in reader.texts
    assert len(page) < 1_500_000


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert report_command(list(map(str, arguments))) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


@pytest.mark.usefixtures("one_chart")
def test_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "outputs"
    made_result().save(outputs / "1")
    made_result(quant="int8").save(outputs / "2")
    made_failure().save(outputs / "3")
    told = run(capsys, outputs, "--outputs", outputs, "--baseline", "a100_40gb", "--title", "Two ways")
    assert told == {"report": str(outputs / "report.html"), "runs": 3}
    page = (outputs / "report.html").read_text()
    assert "<h1>Two ways</h1>" in page
    assert len(rows(Reader(page), "summary")) == 2
    assert is_report(page)
    assert run(capsys, outputs / "1", "-o", outputs / "report.html")["runs"] == 1, "a report is replaced"


def test_command_replaces_nothing_but_reports(tmp_path: Path) -> None:
    path = made_result().save(tmp_path)
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=f"--output={re.escape(str(path))}: expected a new file, or an earlier one of the same kind"
    ):
        report_command([str(path), "-o", str(path)])
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="--output="):
        report_command([str(path), "-o", str(tmp_path)])


def test_command_tells_what_is_wrong(tmp_path: Path) -> None:
    path = made_result().save(tmp_path)
    with pytest.raises(UserError, match="a100_40gb"):
        report_command([str(path), "--baseline", "nothing"])
    with pytest.raises(UserError, match="no such file or folder"):
        report_command([str(tmp_path / "nothing")])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("needs Debian's chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def file(whole: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(whole, encoding="utf-8")
    return path


WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """The report, opened once. It asks for no other file, breaks no rule of its own policy, and runs no script."""
    context = browser.new_context(viewport=WIDE, offline=True)
    made = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    made.on("request", lambda request: asked.append(request.url))
    made.on("console", lambda message: said.append(message.text))
    made.goto(file.as_uri())
    yield made
    context.close()
    assert asked == [file.as_uri()]
    assert said == []


@pytest.fixture
def page(opened: Any) -> Any:
    """The same, as it is shown at first."""
    opened.emulate_media(media="screen", color_scheme="light")
    opened.set_viewport_size(WIDE)
    return opened


def keep(page: Any, name: str) -> None:
    """A picture, which must not be blank."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as picture:
        counts = sorted((count for count, _ in picture.convert("L").getcolors() or []), reverse=True)
    assert len(counts) > 50
    assert sum(counts[5:]) > 0.005 * sum(counts)


# Of each text of a chart: what it says, its contrast with what is painted below it, and its height in pixels.
TEXTS = """() => {
  const channel = part => { part /= 255; return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; };
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const painted = colour => colour !== "none" && !/, 0\\)$/.test(colour) && colour.startsWith("rgb");
  const inside = (box, x, y) => box.left <= x && x <= box.right && box.top <= y && y <= box.bottom;
  return [...document.querySelectorAll("svg")].flatMap(svg => {
    const card = getComputedStyle(svg.closest("section")).backgroundColor;
    const shapes = [...svg.querySelectorAll("path:not(defs *)")].map(shape => [shape, getComputedStyle(shape)])
      .filter(([, style]) => painted(style.fill) && Number(style.fillOpacity) * Number(style.opacity) > 0.5)
      .map(([shape, style]) => [shape, style.fill, shape.getBoundingClientRect()]);
    return [...svg.querySelectorAll("text")].map(text => {
      const box = text.getBoundingClientRect(), x = (box.left + box.right) / 2, y = (box.top + box.bottom) / 2;
      const below = shapes.filter(([shape, , area]) => inside(area, x, y)
        && shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING);
      const back = luminance(below.length ? below[below.length - 1][1] : card);
      const ink = luminance(getComputedStyle(text).fill);
      const size = parseFloat(getComputedStyle(text).fontSize) * svg.getScreenCTM().a;
      return [text.textContent, (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05), size];
    });
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_are_read_in_light_and_dark(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    texts = page.evaluate(TEXTS)
    assert len(texts) > 200
    assert [each for each in texts if each[1] < 4.5] == []
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (min(map(int, re.findall(r"\d+", back))) > 200) is (scheme == "light")
    keep(page, f"report_{scheme}")


def test_page_fits_a_phone(page: Any) -> None:
    page.set_viewport_size(PHONE)
    width, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= shown == PHONE["width"]
    assert min(size for *_, size in page.evaluate(TEXTS)) >= 7
    outside = """() => [...document.querySelectorAll("svg")].flatMap(svg => {
        const whole = svg.getBoundingClientRect();
        return [...svg.querySelectorAll("text")].filter(text => {
            const box = text.getBoundingClientRect();
            return box.left < whole.left - 1 || box.right > whole.right + 1;
        }).map(text => text.textContent);
    })"""
    assert page.evaluate(outside) == [], "no text is cut"
    keep(page, "report_phone")


def test_page_is_printed_on_white(page: Any, tmp_path: Path) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    portrait, landscape = 703, 1032  # pixels of A4 within its margins
    page.set_viewport_size({"width": portrait, "height": landscape})
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert [each for each in page.evaluate(TEXTS) if each[1] < 4.5] == []
    assert page.evaluate("document.querySelector('dl').getBoundingClientRect().height") > 100, "what is folded is open"
    cut = """() => [...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth + 1)
        .map(box => box.closest('section').id)"""
    assert page.evaluate(cut) in ([], ["summary"])
    page.set_viewport_size({"width": landscape, "height": portrait})
    assert page.evaluate(cut) == []
    keep(page, "report_print")
    page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    sheets = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", (tmp_path / "report.pdf").read_bytes())
    turned = [float(width) > float(height) for width, height in sheets]
    assert turned == [True] + [False] * (len(sheets) - 1), "the summary is wide"


def test_what_was_measured_in_turns_has_a_table(tmp_path: Path) -> None:
    rounds = [made_round(n, 2, lambda name, _: {"A": 1e-3, "B": 2e-3}[name]) for n in range(3)]
    record = made_ab(rounds)
    record.sides["B"].overrides = ["model=stories15m", "quant=<int8>"]
    page = html([SelectedRecord(tmp_path / "ab.json", record)], [], "t", ["x"], "now")
    assert "A against B" in page
    assert "quant=&lt;int8&gt;" in page
    assert ">0.5000<" in page
    assert "slower" in page
    assert "not a record of one run" not in page
