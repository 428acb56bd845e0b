"""The page in Chromium without a network. Skipped where Playwright or a system Chromium is missing."""

from __future__ import annotations

import os
import shutil

import pytest

for needed in ("plotly", "jinja2"):
    pytest.importorskip(needed)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="pip install playwright; it drives the system's Chromium"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def address(evaluated, predicted) -> str:
    from hyperst.report import write_report

    return write_report(evaluated, [predicted]).resolve().as_uri()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader", "--use-gl=angle"]
        )
        yield browser
        browser.close()


@pytest.fixture(params=[(1366, 768), (390, 844)], ids=["laptop", "phone"])
def page(chromium, address, request):
    """The opened page; afterwards there was no error and nothing was asked for but the file."""
    width, height = request.param
    viewport = {"width": width, "height": height}
    context = chromium.new_context(viewport=viewport, offline=True, has_touch=width < 500, is_mobile=width < 500)
    page = context.new_page()
    wrong, asked = [], []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready]", state="attached")
    yield page
    assert wrong == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [address]
    context.close()


def panels(page, script: str):
    return page.evaluate(f"(() => {{ const plot = document.getElementById('panels'); return {script}; }})()")


def test_the_page_fits_its_window(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert panels(page, "plot.data.length") == 3
    assert panels(page, "plot.layout.dragmode") == (
        False if page.evaluate("touch") else "pan"
    )  # a finger scrolls the page
    buttons = page.locator(".modebar-btn").evaluate_all("(all) => all.map((each) => each.dataset.title)")
    assert "Zoom in" in buttons
    assert not any("hare" in title or "cloud" in title.lower() for title in buttons)  # Plotly would upload the chart


def test_a_gene_is_found_by_the_keyboard(page):
    names = page.evaluate("data.maps[0].genes.map((gene) => gene.name)")
    before = panels(page, "Array.from(plot.data[0].marker.color)")
    page.locator("#gene").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(names[5].lower())
    page.keyboard.press("Enter")
    assert page.locator("#message").inner_text().startswith(f"{names[5]} on S3; r = ")
    assert panels(page, "Array.from(plot.data[0].marker.color)") != before
    assert names[5] in page.locator("#panels").get_attribute("aria-label")
    page.locator("#next").press("Enter")
    assert page.locator("#gene").input_value() == names[6]
    page.locator("#gene").fill("no such gene")
    page.locator("#gene").press("Enter")
    assert "No gene on this page begins with no such gene" in page.locator("#message").inner_text()


def test_panels_zoom_together_and_spots_keep_their_size(page):
    size = panels(page, "plot.data[0].marker.size")
    if page.evaluate("touch"):
        page.locator("#panels .modebar-btn[data-title='Zoom in']").click()
    else:
        page.evaluate("element('panels').scrollIntoView()")
        box = page.locator("#panels").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 6, box["y"] + 150)
        page.mouse.wheel(0, -400)
    page.wait_for_function(f"document.getElementById('panels').data[0].marker.size > 1.05 * {size}")
    ranges = panels(page, "['xaxis', 'xaxis2', 'xaxis3'].map((axis) => plot._fullLayout[axis].range)")
    assert ranges[0] == ranges[1] == ranges[2]
    # a spot is as wide on the screen as it is in um
    wide = panels(
        page, "plot._fullLayout.xaxis._length / (plot._fullLayout.xaxis.range[1] - plot._fullLayout.xaxis.range[0])"
    )
    diameter = page.evaluate("data.maps[0].diameter_px * data.maps[0].um_per_px")
    assert panels(page, "plot.data[0].marker.size") == pytest.approx(wide * diameter, rel=1e-6)
    assert panels(page, "plot.layout.annotations.at(-1).text").endswith(" µm")


def test_one_scale_for_both(page):
    ends = "plot.data.slice(0, 2).map((trace) => [trace.marker.cmin, trace.marker.cmax])"
    own = panels(page, ends)
    page.locator("#scale").select_option("shared")
    shared = panels(page, ends)
    assert own[0] != own[1]
    assert shared[0] == shared[1] == [min(own[0][0], own[1][0]), max(own[0][1], own[1][1])]
    assert panels(page, "plot.data[2].marker.cmin + plot.data[2].marker.cmax") == 0


def test_without_measurements_there_is_one_panel(page):
    page.locator("#map").select_option("1")
    assert panels(page, "plot.data.length") == 1
    assert "predicted only: nothing was measured here" in page.locator("#message").inner_text()
    assert page.locator("#scatter").is_hidden()


def test_genes_are_sorted_and_searched(page):
    header = page.locator("#genes-1 thead th", has_text="MSE")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    values = [float(text) for text in page.locator("#genes-1 tbody td:nth-child(7)").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    name = page.locator("#genes-1 tbody th").nth(3).inner_text()
    page.locator(".filter").fill(name)
    assert page.locator("#genes-1 tbody tr:visible").count() == 1
    assert page.locator(".found").inner_text() == "1 of 12 genes"
    page.locator("#genes-1 tbody tr:visible .show").click()
    assert page.locator("#gene").input_value() == name


def test_a_print_has_the_width_of_paper(page):
    width = panels(page, "plot.layout.width")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert panels(page, "plot.layout.width") == page.evaluate("PAPER")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert panels(page, "plot.layout.width") == width
