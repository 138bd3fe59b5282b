"""MLflow's pages of a sweep in a real Chromium: what someone sees who compares its jobs. Each test leaves a picture of
its page in `outputs/screenshots`."""

import dataclasses
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from results import made_result
from servers import config, hasty_pictures, hasty_sqlite, mlflow_server

from gptbench.record.sync import log_recorded
from gptbench.schema.failure import Cause, Failure
from gptbench.schema.outcome import Outcome, Status
from gptbench.schema.plan import Plan
from gptbench.schema.record import Recorded
from gptbench.schema.sweep import record_of

pytest.importorskip("playwright", reason="drives the browser")
from playwright.sync_api import BrowserContext, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
SCREENSHOTS = Path(__file__).parent.parent / "outputs" / "screenshots"
PATIENCE_MS = 60_000  # for a page: it takes one or two seconds, but other tests run beside
QUIET = ("background-networking", "component-update", "default-apps", "extensions", "gpu", "quic", "sync")
"""What Chromium does by itself and should not here."""
JOBS = [(top_k, temperature) for top_k in (1, 50, 200) for temperature in (0.5, 1.0)]
FAILED = (200, 2.0)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")]


def name_of(job: tuple[int, float]) -> str:
    return f"{job[0]}/{job[1]} top_k/temperature stories15m-bfloat16-inductor-b1"


@dataclass
class Shown:
    """An experiment with a sweep, of which one job failed, and with a run of another engine."""

    url: str
    parent: Run
    jobs: dict[str, Run]
    """By name, without the one that failed."""
    failed: Run


@pytest.fixture(scope="module")
def shown(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    outputs = tmp_path_factory.mktemp("outputs")
    store = f"sqlite:///{outputs}/mlflow.db"
    shutil.copy(empty_store, outputs / "mlflow.db")
    with hasty_sqlite(), hasty_pictures():
        log_sweep(outputs)
    client = MlflowClient(store)
    found = client.get_experiment_by_name("gptbench")
    assert found is not None
    runs = {run.info.run_name: run for run in client.search_runs([found.experiment_id])}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        with mlflow_server(outputs, store) as url:
            yield Shown(
                url,
                parent=runs["sweep top_k × temperature 2026-11-22/12-00-00"],
                jobs={name_of(job): runs[name_of(job)] for job in JOBS},
                failed=runs[name_of(FAILED)],
            )


def log_sweep(outputs: Path) -> None:
    """As a sweep does that has measured one job after the other."""
    folder = outputs / "2026-11-22" / "12-00-00"
    jobs = [*JOBS, FAILED]
    plan = Plan(
        sweep=str(folder),
        identity="1234",
        resume=False,
        started="2026-11-22T12:00:00+00:00",
        command=["python", "-m", "gptbench", "-m", "sampling.top_k=1,50,200", "sampling.temperature=0.5,1,2"],
        config=made_result(outputs=str(outputs)).config,
        jobs={
            str(number): [f"sampling.top_k={top_k}", f"sampling.temperature={temperature}"]
            for number, (top_k, temperature) in enumerate(jobs)
        },
    )
    plan.save(folder)
    for number, (name, swept) in enumerate(plan.jobs.items()):
        made = made_result(
            step_s=0.004 + 0.0007 * number, started=f"2026-11-22T12:{number:02}:00+00:00", sweep=str(folder)
        )
        job = dataclasses.replace(made, swept=swept, command=["python", "-m", "gptbench", *swept])
        job.config["sampling"] |= dict(zip(("top_k", "temperature"), jobs[number], strict=True))
        if jobs[number] != FAILED:
            path = log(job, folder / name, outputs)
            outcome = Outcome(status=Status.recorded.value, swept=swept, record=str(path), metrics=job.summary)
        else:
            job.config["device"]["dtype"] = job.dtype
            common = {field.name: getattr(job, field.name) for field in dataclasses.fields(Recorded)}
            cause, reason = Cause.killed.value, "signal 9 (SIGKILL)"
            failure = Failure(**common, cause=cause, reason=reason, seconds=1.5)
            path = log(failure, folder / name, outputs)
            outcome = Outcome(status=Status.failed.value, swept=swept, record=str(path), cause=cause, reason=reason)
        outcome.save(folder / name)
    log(record_of(folder, plan, interrupted=False), folder, outputs)
    other = made_result(started="2026-11-22T11:00:00+00:00")
    other.config["engine"]["name"] = "eager"
    log(other, outputs / "other", outputs)


def log(record: Recorded, folder: Path, outputs: Path) -> Path:
    """Saves it and logs it."""
    told: list[str] = []
    path = record.save(folder)
    assert log_recorded(record, path, config(), outputs, lambda text, **_: told.append(text)), told
    return path


@pytest.fixture(scope="module")
def chromium() -> Iterator[BrowserContext]:
    """A browser that finds this machine only, and must not look for anything else."""
    switches = [*(f"--disable-{what}" for what in QUIET), "--no-first-run", "--no-sandbox"]
    switches += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=switches)
        context = browser.new_context(viewport={"width": 1600, "height": 2000})
        context.set_default_timeout(PATIENCE_MS)
        hosts = set()
        context.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        # Every page is a first visit, but without the panel of MLflow's assistant, which opens by itself.
        context.add_init_script(
            "localStorage.clear(); localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
        )
        yield context
        browser.close()
    assert hosts <= {"127.0.0.1", None}, "None is of pictures within the page"


@pytest.fixture
def page(chromium: BrowserContext) -> Iterator[Page]:
    made = chromium.new_page()
    # Hints for newcomers, whenever there are any.
    made.add_locator_handler(made.get_by_role("button", name="Got it"), lambda button: button.click())
    yield made
    for each in chromium.pages:
        each.close()


def show_runs(page: Page, shown: Shown, sorted_by: str) -> Locator:
    """Opens the list of runs. Returns its rows."""
    experiment = f"{shown.url}/#/experiments/{shown.parent.info.experiment_id}"
    page.goto(f"{experiment}/runs?workflowType=machine_learning&orderByKey={sorted_by}&orderByAsc=false")
    expect(page.get_by_text("9 matching runs")).to_be_visible()
    return page.get_by_role("row").filter(has=page.get_by_role("link"))


def search(page: Page, condition: str) -> None:
    box = page.get_by_placeholder("metrics.rmse")
    box.fill(condition)
    box.press("Enter")


def keep(page: Page, name: str) -> None:
    """A picture, which must not be blank."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = SCREENSHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    with Image.open(path) as picture:
        assert picture.width >= 1600
        counts = sorted((count for count, _ in picture.convert("L").getcolors() or []), reverse=True)
    assert len(counts) > 50
    assert sum(counts[5:]) > 0.005 * sum(counts), "hardly anything but the few colours of an empty page"


def formatted(value: float) -> str:
    """As MLflow writes numbers where it compares runs."""
    digits = 3 if value < 10 else 2 if value < 100 else 1
    return f"{math.floor(value * 10**digits + 0.5) / 10**digits:.15g}"


def test_runs_are_listed_by_name_and_status(page: Page, shown: Shown) -> None:
    rows = show_runs(page, shown, sorted_by="attributes.start_time")  # as it opens by itself
    expect(rows).to_have_count(2)
    sweep = rows.filter(has_text="sweep top_k × temperature 2026-11-22/12-00-00")
    sweep.get_by_role("button").first.click()
    expect(rows).to_have_count(9)
    status = {}
    for name in [*shown.jobs, name_of(FAILED)]:
        row = rows.filter(has_text=name)
        expect(row.get_by_role("link", name=name, exact=True)).to_be_visible()
        status[name] = row.get_by_role("gridcell").filter(has_text="ago").locator("svg").inner_html()
    assert len({status[name] for name in shown.jobs}) == 1
    assert status[name_of(FAILED)] not in {status[name] for name in shown.jobs}
    keep(page, "runs")


def test_a_sweep_leads_to_its_charts_and_to_the_comparison_of_its_jobs(page: Page, shown: Shown) -> None:
    """As someone goes: each page is opened from the one before it."""
    page.goto(f"{shown.url}/#/experiments/{shown.parent.info.experiment_id}/runs/{shown.parent.info.run_id}")
    check_table(page, shown)
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Charts", exact=True).click()
    charts = opened.value
    expect(charts.get_by_text("7 matching runs")).to_be_visible()
    check_charts(charts, shown)
    charts.get_by_role("searchbox").fill("")
    search(charts, f"tags.mlflow.parentRunId = '{shown.parent.info.run_id}' and attributes.status = 'FINISHED'")
    expect(charts.get_by_text("6 matching runs")).to_be_visible()
    charts.get_by_label("Select all runs").check(force=True)
    charts.get_by_role("button", name="Compare").click()
    expect(charts.get_by_text("Comparing 6 Runs")).to_be_visible()
    check_comparison(charts, shown)


def check_table(page: Page, shown: Shown) -> None:
    """Of a sweep's page."""
    page.get_by_role("button", name="Expand description").click()
    expect(page.get_by_text("of 7 jobs: 6 recorded, 1 failed")).to_be_visible()
    head, *rows = cells_of(page.get_by_role("table").first.get_by_role("row"))
    assert head[:5] == ["job", "sampling.top_k", "sampling.temperature", "status", "decode (tokens/s)"]
    expected = [
        [str(top_k), str(temperature), "recorded", f"{run.data.metrics['decode_tokens_per_s']:.4g}"]
        for (top_k, temperature), run in zip(JOBS, shown.jobs.values(), strict=True)
    ]
    assert [row[1:5] for row in rows[:-1]] == expected
    assert rows[-1][1:4] == ["200", "2.0", "failed"]
    assert rows[-1][-1] == "signal 9 (SIGKILL)"
    keep(page, "sweep")


def check_charts(charts: Page, shown: Shown) -> None:
    """They begin with what is compared, and all others are found."""
    titles = charts.get_by_role("heading", level=4)
    expect(titles.first).to_have_text("brief/decode_tokens_per_s")
    for run in shown.jobs.values():
        expect(charts.get_by_text(f"{run.data.metrics['brief/decode_tokens_per_s']:.2f}", exact=True)).to_be_visible()
        expect(charts.get_by_text(f"{run.data.metrics['brief/tpot_p50_ms']:.2f}", exact=True)).to_be_visible()
    fastest_first = sorted(shown.jobs, key=lambda name: -shown.jobs[name].data.metrics["decode_tokens_per_s"])
    links = charts.get_by_role("row").get_by_role("link")
    assert links.all_inner_texts() == [*fastest_first, name_of(FAILED)]
    keep(charts, "charts")

    for name in ("decode_tokens_per_s", "tpot_p50_s", "ttft_s", "mbu", "compile_warm_s", "sample/ttft_s"):
        charts.get_by_role("searchbox").fill(name)
        title = charts.get_by_role("heading", name=name, exact=True, level=4)
        title.scroll_into_view_if_needed()  # charts are drawn when they come into sight
        expect(title).to_be_visible()


def check_comparison(charts: Page, shown: Shown) -> None:
    """It shows what differs, and the numbers."""
    for axis in ("sampling.temperature", "sampling.top_k", "brief/decode_tokens_per_s"):
        expect(charts.locator("svg").get_by_text(axis, exact=True).first).to_be_visible()

    charts.get_by_role("switch").first.click()  # parameters: show diff only
    expect(charts.get_by_text("model.dim", exact=True)).to_have_count(0)
    rows = {cells[0]: cells[1:] for cells in cells_of(charts.get_by_role("row"))}
    assert sorted(name for name in rows if name.startswith(("model.", "sampling.", "engine."))) == [
        "sampling.temperature",
        "sampling.top_k",
    ]
    runs = [shown.jobs[name] for name in rows["Run Name:"]]
    assert len(runs) == len(shown.jobs)
    for param in ("sampling.temperature", "sampling.top_k"):
        assert rows[param] == [run.data.params[param] for run in runs]
    metrics = metrics_compared(charts, len(runs))
    for name in ("brief/decode_tokens_per_s", "brief/tpot_p50_ms", "brief/ttft_ms", "brief/mbu_percent"):
        assert metrics[name] == [formatted(run.data.metrics[name]) for run in runs]
    keep(charts, "compare")


def metrics_compared(page: Page, runs: int) -> dict[str, list[str]]:
    """By name what each run has, of those that are in sight. The names and the rest are two grids."""
    names = page.get_by_role("rowgroup").filter(has=page.get_by_role("link", name="brief/"))
    cells = names.locator("xpath=following::*[@role='rowgroup'][1]").locator("xpath=*").all_inner_texts()
    rows = [cells[first : first + runs] for first in range(0, len(cells), runs)]
    return dict(zip(names.get_by_role("link").all_inner_texts(), rows, strict=False))


def cells_of(rows: Locator) -> list[list[str]]:
    """Texts of the cells."""
    return [[cell.strip() for cell in re.split(r"\s*[\t\n]\s*", text.strip())] for text in rows.all_inner_texts()]


def test_runs_are_found_by_their_tags(page: Page, shown: Shown) -> None:
    rows = show_runs(page, shown, sorted_by="metrics.`decode_tokens_per_s`")
    for condition, found in {
        "tags.engine = 'eager'": ["stories15m-bfloat16-eager-b1"],
        "tags.engine = 'inductor'": [*shown.jobs, name_of(FAILED)],
        "tags.failure = 'killed'": [name_of(FAILED)],
        "tags.device = 'Processor X' and params.sampling.top_k = '50'": [name_of((50, 0.5)), name_of((50, 1.0))],
    }.items():
        search(page, condition)
        expect(page.get_by_text(re.compile(rf"^{len(found)} matching runs?$"))).to_be_visible()
        for name in found:
            expect(rows.get_by_role("link", name=name, exact=True)).to_be_visible()
        expect(rows).to_have_count(len(found))
    keep(page, "found_by_tag")


def test_pages_of_jobs_tell_their_numbers_and_their_command(page: Page, shown: Shown) -> None:
    name, run = next(iter(shown.jobs.items()))
    page.goto(f"{shown.url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    decode = f"decode {run.data.metrics['decode_tokens_per_s']:.4g} tokens/s, TPOT p50 "
    expect(page.get_by_text(decode)).to_be_visible()
    command = "python -m gptbench sampling.top_k=1 sampling.temperature=0.5"
    expect(page.locator("code", has_text=command)).to_be_visible()
    keep(page, "job")

    page.goto(f"{shown.url}/#/experiments/{run.info.experiment_id}/runs/{shown.failed.info.run_id}")
    expect(page.get_by_text("killed: signal 9 (SIGKILL)")).to_be_visible()
    expect(page.get_by_text("Failed", exact=True)).to_be_visible()
    keep(page, "job_that_failed")
