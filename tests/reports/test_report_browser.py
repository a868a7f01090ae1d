"""The report in Chromium: no errors, nothing fetched, figures drawn, filters at work."""

import shutil

import pytest
from report_runs import some_rows, table_of

pytest.importorskip("plotly", reason="the extra 'report' is not installed")

from limbeck.reports.report import write_report

SIZES = {"laptop": (1440, 900), "phone": (390, 844)}
PATIENCE_MS = 300_000


@pytest.fixture(scope="module")
def browser():
    """Chromium, or a loud skip that says how to get one."""
    reason = None
    try:
        from playwright.sync_api import Error, sync_playwright
    except ModuleNotFoundError:
        reason = "the report is not tested in a browser: pip install playwright"
    if reason is None:
        with sync_playwright() as playwright:
            # Playwright's own Chromium, or the system's
            for path in (None, shutil.which("chromium"), shutil.which("google-chrome")):
                try:
                    found = playwright.chromium.launch(
                        executable_path=path, args=["--no-sandbox"], timeout=PATIENCE_MS
                    )
                except Error:
                    continue
                yield found
                found.close()
                return
        reason = "the report is not tested in a browser: no Chromium, try 'playwright install'"
    pytest.skip(reason)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report([table_of(folder / "runs", some_rows())], folder / "report.html")


@pytest.fixture(scope="module", params=[("laptop", "light"), ("phone", "dark")], ids="-".join)
def page(request, browser, report):
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
    )
    context.set_default_timeout(PATIENCE_MS)
    opened = context.new_page()
    opened.complaints, opened.requests = [], []
    opened.on("console", lambda message: opened.complaints.append(message.text))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda sent: opened.requests.append(sent.url))
    opened.goto(report.as_uri())
    opened.locator("#cell .plot").first.wait_for(state="attached")
    opened.scheme = scheme
    yield opened
    context.close()


def shown_rows(page):
    return page.locator("#runs tbody tr:not([hidden]) th").all_inner_texts()


def test_it_draws_without_a_word_on_the_console(page, report):
    plots = page.locator(".plot")
    for i in range(plots.count()):
        plots.nth(i).scroll_into_view_if_needed()
        plots.nth(i).locator(".main-svg").first.wait_for()
    # of one cost and one cell at a time
    assert plots.count() >= 12
    assert page.complaints == []
    assert page.requests == [report.as_uri()]


def test_no_part_is_wider_than_the_screen(page):
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    wide = page.evaluate(
        "[...document.querySelectorAll('figure, select, h2')].filter("
        "e => e.getBoundingClientRect().right > innerWidth + 1).length"
    )
    assert wide == 0


def test_titles_axes_and_text(page):
    for figure in page.locator("#cell figure").all():
        assert figure.locator("h4").inner_text()
        assert len(figure.locator(".read").inner_text()) > 40
    drawn = page.locator("#overall .plot")
    drawn.scroll_into_view_if_needed()
    drawn.locator(".xtitle").wait_for()
    assert drawn.locator(".xtitle").text_content() == "latency of one node (µs, median)"
    assert drawn.locator(".ytitle").text_content() == "test accuracy (%)"


def test_filters_and_their_count(page):
    assert len(shown_rows(page)) == 8
    page.locator("[data-filter=method]").select_option("rbm")
    assert shown_rows(page) == ["rbm", "rbm"]
    page.locator("[data-filter=graph]").select_option("cpf-cora")
    assert shown_rows(page) == ["rbm"]
    assert page.locator("#count").inner_text() == "1 of 8 rows"
    page.locator("[data-filter=any]").fill("no such name")
    assert page.locator("#nothing").is_visible()
    page.locator("#clear").click()
    assert len(shown_rows(page)) == 8
    assert not page.locator("#nothing").is_visible()


def test_a_heading_sorts_and_sorts_back(page):
    heading = page.locator("#runs thead th", has_text="accuracy (%)")
    for order in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == order
        values = [
            float(cell.get_attribute("data-value")) for cell in page.locator("#runs td.main").all()
        ]
        assert values == sorted(values, reverse=order == "descending")
    # what is not known stays at the end either way
    heading = page.locator("#runs thead th", has_text="to glnn (points)")
    for _ in range(2):
        heading.locator("button").click()
        assert shown_rows(page)[-2:] == ["glnn", "glnn"]


def test_another_cell_and_another_cost(page):
    page.locator("#cell-choice").select_option("cpf-citeseer / transductive / sage")
    first = page.locator("#cell figure").first
    assert "cpf-citeseer" in first.locator("h4").inner_text()
    page.locator("#cell-axis").select_option("pareto-parameters")
    assert "against parameters" in page.locator("#cell figure").first.locator("h4").inner_text()
    assert page.complaints == []


def test_a_cell_without_a_cost_does_not_choose_for_others(browser, tmp_path):
    rows = some_rows()
    for row in rows:
        if row["graph"] == "cpf-citeseer":
            row["latency_us_b1"] = row["latency_us_b256"] = None
    report = write_report([table_of(tmp_path / "runs", rows)], tmp_path / "report.html")
    opened = browser.new_page()
    opened.set_default_timeout(PATIENCE_MS)
    opened.goto(report.as_uri())
    axis, choice = opened.locator("#cell-axis"), opened.locator("#cell-choice")

    def against(graph):
        choice.select_option(f"{graph} / transductive / sage")
        return axis.input_value()

    first = against("cpf-cora")
    assert "latency" in first
    assert "latency" not in against("cpf-citeseer")
    assert against("cpf-cora") == first
    axis.select_option("pareto-parameters")
    assert against("cpf-citeseer") == against("cpf-cora") == "pareto-parameters"
    opened.close()


def test_names_of_the_front_are_whole_on_a_phone(browser, tmp_path):
    costs = {"mlp": 1.0, "sa-mlp-labels": 1.1, "rbm": 40.0}
    rows = [row for row in some_rows() if row["method"] in ("teacher", "mlp", "glnn", "rbm")]
    for row in rows:
        row["method"] = {"glnn": "sa-mlp-labels"}.get(row["method"], row["method"])
        row["latency_us_b1"] = costs.get(row["method"])
    report = write_report([table_of(tmp_path / "runs", rows)], tmp_path / "report.html")
    width, height = SIZES["phone"]
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.set_default_timeout(PATIENCE_MS)
    opened.goto(report.as_uri())
    plot = opened.locator("#cell .plot").first
    plot.scroll_into_view_if_needed()
    named = plot.locator(".textpoint text", has_text="sa-mlp-labels")
    named.wait_for()
    field = plot.locator(".nsewdrag").first.bounding_box()
    assert named.bounding_box()["x"] >= field["x"]
    opened.close()


def test_light_and_dark(page):
    dark = page.scheme == "dark"

    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    def ink():
        return page.evaluate("document.querySelector('.plot.drawn').layout.font.color")

    before = (paper(), ink())
    page.locator("#overall .plot").scroll_into_view_if_needed()
    page.locator("#theme").click()
    after = (paper(), ink())
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert page.evaluate("document.documentElement.dataset.theme") == ("light" if dark else "dark")
    page.locator("#theme").click()
    assert (paper(), ink()) == before
