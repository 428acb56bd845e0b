"""The page in Chromium without a network. Skipped where Playwright or a system Chromium is missing."""

from __future__ import annotations

import io
import math
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from .large_slide import MARKED, STRIPED, write_large_slide

for needed in ("plotly", "jinja2"):
    pytest.importorskip(needed)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="pip install playwright; it drives the system's Chromium"
)
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no chromium on the PATH (Debian: apt-get install chromium)", allow_module_level=True)


@pytest.fixture(scope="module")
def address(evaluated, predicted, tmp_path_factory) -> str:
    from hyperst.report import write_report
    from hyperst.run import RunFolder

    large = write_large_slide(tmp_path_factory.mktemp("large"), RunFolder(evaluated).read_genes())
    return write_report(evaluated, [predicted, large]).resolve().as_uri()


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


LAPTOP = pytest.mark.parametrize("page", [(1366, 768)], ids=["laptop"], indirect=True)


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


@LAPTOP
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


@LAPTOP
def test_one_scale_for_both(page):
    ends = "plot.data.slice(0, 2).map((trace) => [trace.marker.cmin, trace.marker.cmax])"
    own = panels(page, ends)
    page.locator("#scale").select_option("shared")
    shared = panels(page, ends)
    assert own[0] != own[1]
    assert shared[0] == shared[1] == [min(own[0][0], own[1][0]), max(own[0][1], own[1][1])]
    assert panels(page, "plot.data[2].marker.cmin + plot.data[2].marker.cmax") == 0


@LAPTOP
def test_without_measurements_there_is_one_panel(page):
    page.locator("#map").select_option("1")
    assert panels(page, "plot.data.length") == 1
    assert "predicted only: nothing was measured here" in page.locator("#message").inner_text()
    assert page.locator("#scatter").is_hidden()


@LAPTOP
def test_genes_are_sorted_and_searched(page):
    header = page.locator("#genes-1 thead th", has_text="MSE")
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    column = header.evaluate("(each) => each.cellIndex + 1")
    values = [float(text) for text in page.locator(f"#genes-1 tbody td:nth-child({column})").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    name = page.locator("#genes-1 tbody th").nth(3).inner_text()
    page.locator(".filter").fill(name)
    assert page.locator("#genes-1 tbody tr:visible").count() == 1
    assert page.locator(".found").inner_text() == "1 of 12 genes"
    page.locator("#genes-1 tbody tr:visible .show").click()
    assert page.locator("#gene").input_value() == name
    first = page.evaluate("state.map.genes[0].name")
    found = "(text) => { searchGene(text); return state.map.genes.indexOf(state.gene); }"
    assert page.evaluate(found, first.lower()) == 0  # whatever the case
    page.evaluate("(name) => { state.map.genes[4].name = name; }", first.lower())
    assert page.evaluate(found, first.lower()) == 4  # but a name as it is first
    assert page.evaluate(found, first) == 0


@LAPTOP
def test_a_click_reads_the_interval_and_the_applicability(page):
    page.evaluate("tellSpot({points: [{pointNumber: 3}]})")
    said = page.locator("#spot").inner_text()
    low, high = page.evaluate(
        "[-1, 1].map((sign) => shown(expand(state.gene.predicted)[3] + sign * state.gene.half_width))"
    )
    assert f"[{low}, {high}], measured" in said
    assert "; applicability " in said


@LAPTOP
def test_spots_unlike_the_training_are_ringed(page):
    page.evaluate("state.unlike = state.unlike.map((_, spot) => (spot === 4 ? 1 : 0))")
    rings = "plot.data[0].marker.line.width"
    assert panels(page, rings) == 0
    page.locator("#unlike").check()
    assert panels(page, f"{rings}.indexOf(2)") == 4
    assert panels(page, f"{rings}.filter((each) => each).length") == 1


def test_the_disk_has_four_points_and_the_cones_of_a_spot(page):
    disk = "document.getElementById('disk').data"
    n = page.evaluate("data.spaces[0].spots.length")
    assert page.evaluate(f"{disk}.slice(0, 4).map((trace) => trace.x.length)") == [n] * 4
    assert page.evaluate(f"{disk}.length") == 4 + 2 + 1  # image_spot is the parent in two relations
    page.locator("#space-kind").select_option("gene_niche")
    assert page.evaluate(f"{disk}.length") == 4 + 1
    assert "no cone: nothing is below it" in page.locator("#cone").inner_text()
    page.locator("#space-spot").select_option("7")
    assert page.locator("#cone").inner_text().startswith(page.evaluate("data.spaces[0].spots[7]"))
    page.locator("#space-colour").select_option("cluster")
    colours = page.evaluate(f"{disk}[0].marker.color")
    assert len(set(colours)) == page.evaluate("new Set(data.spaces[0].cluster).size")


@LAPTOP
def test_the_cone_follows_the_mouse(page):
    page.evaluate("choosePoint(7, 'gene_niche'); element('space').scrollIntoView()")
    page.wait_for_function("window.scrollY > 0")
    place = page.evaluate("""(() => {
      const [x, y] = space.data.kinds.image_niche.places[2];
      const [box, axes] = [element("disk").getBoundingClientRect(), element("disk")._fullLayout];
      return [box.left + axes.xaxis._offset + axes.xaxis.d2p(x), box.top + axes.yaxis._offset + axes.yaxis.d2p(y)];
    })()""")
    page.mouse.move(place[0] - 2, place[1] - 2)
    page.mouse.move(*place)
    page.wait_for_function("space.kind !== 'gene_niche'")  # or a point that lies on this one
    wanted, found = page.evaluate("[space.data.kinds.image_niche.places[2], placesOf(space.kind)[space.spot]]")
    assert math.dist(wanted, found) < 0.05


@LAPTOP
def test_a_drawn_cone_is_the_cone(page):
    """Its outline leaves the apex at the half-aperture and is of geodesics: they meet the rim at right angles."""
    apex, half = [0.3, 0.4], 0.5
    outline = page.evaluate(f"cone({apex}, {half})")
    assert outline[0] == pytest.approx(apex)
    outward = math.atan2(apex[1], apex[0])
    for one, sign in (
        (page.evaluate(f"along({apex}, {outward - half}, 1e-6)"), -1),
        (page.evaluate(f"along({apex}, {outward + half}, 1e-6)"), 1),
    ):
        assert math.atan2(one[1] - apex[1], one[0] - apex[0]) - outward == pytest.approx(sign * half, abs=1e-4)
    near, rim = page.evaluate(f"[along({apex}, {outward + half}, 1 - 1e-5), along({apex}, {outward + half}, 1)]")
    assert math.hypot(*rim) == pytest.approx(1)
    along = math.atan2(rim[1] - near[1], rim[0] - near[0])
    assert along == pytest.approx(math.atan2(rim[1], rim[0]), abs=1e-3)
    assert all(math.hypot(*point) <= 1 + 1e-9 for point in outline)


@LAPTOP
def test_a_print_has_the_width_of_paper(page):
    width = panels(page, "plot.layout.width")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert panels(page, "plot.layout.width") == page.evaluate("PAPER")
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert panels(page, "plot.layout.width") == width


def look_at(page, spot: int, um: float) -> None:
    """Show ``um`` around a spot of the large slide, as a scroll and a drag would."""
    page.locator("#map").select_option("2")
    page.evaluate("element('panels').scrollIntoView()")
    page.evaluate(f"""(() => {{
      const [x, y, half] = [state.x[{spot}], state.y[{spot}], {um} / 2];
      const tall = half * element("panels")._fullLayout.yaxis._length / element("panels")._fullLayout.xaxis._length;
      return Plotly.relayout("panels", {{
        "xaxis.range": [x - half, x + half], "yaxis.range": [y + tall, y - tall],
      }});
    }})()""")


def pixels_around(page, spot: int, um: float) -> np.ndarray:
    """What the screen shows in a square of ``um`` around a spot, without the spots."""
    page.evaluate("Plotly.restyle('panels', {visible: false})")
    left, top, side = page.evaluate(f"""(() => {{
      const [box, axes] = [element("panels").getBoundingClientRect(), element("panels")._fullLayout];
      const [x, y, half] = [state.x[{spot}], state.y[{spot}], {um} / 2];
      const [left, right, top] = [axes.xaxis.d2p(x - half), axes.xaxis.d2p(x + half), axes.yaxis.d2p(y - half)];
      return [box.left + axes.xaxis._offset + left, box.top + axes.yaxis._offset + top, right - left];
    }})()""")
    shot = page.screenshot(clip={"x": left, "y": top, "width": side, "height": side})
    page.evaluate("Plotly.restyle('panels', {visible: true})")
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(float)


def tiles_drawn(page) -> list[str]:
    return panels(page, "plot.layout.images.map((image) => image.name).slice(1)")


def test_nearer_there_are_finer_pictures(page):
    """Stripes of 2 um, of which the thumbnail's pixels of 3 um show nothing, are black and white on the screen."""
    page.locator("#map").select_option("2")
    assert page.locator("#finest").inner_text() == "Finest picture: 0.5 µm per pixel where spots are, 3 elsewhere."
    look_at(page, STRIPED, 100)
    assert {name[0] for name in tiles_drawn(page)} == {"0", "1", "2"}
    fine = pixels_around(page, STRIPED, 40)
    page.evaluate("state.map.slide = null; draw()")
    assert tiles_drawn(page) == []
    coarse = pixels_around(page, STRIPED, 40)
    assert np.ptp(fine[len(fine) // 2].mean(axis=1)) > 200
    assert np.ptp(coarse[len(coarse) // 2].mean(axis=1)) < 100


def test_a_mark_stays_under_its_spot(page):
    for um, levels in ((1000, 1), (60, 3)):
        look_at(page, MARKED, um)
        assert len({name[0] for name in tiles_drawn(page)}) >= levels
        shown = pixels_around(page, MARKED, 40)
        rows, columns = np.nonzero(shown[..., 0] < 100)
        size = len(shown)
        assert len(rows) == pytest.approx((size / 2) ** 2, rel=0.3)  # 20 of 40 um; at the farthest a pixel is much
        assert abs(rows.mean() + 0.5 - size / 2) < 1.5
        assert abs(columns.mean() + 0.5 - size / 2) < 1.5
        per_pixel = panels(
            page, "(plot._fullLayout.xaxis.range[1] - plot._fullLayout.xaxis.range[0]) / plot._fullLayout.xaxis._length"
        )
        assert panels(page, "plot.data[0].marker.size") == pytest.approx(55 / per_pixel, rel=1e-6)


@LAPTOP
def test_only_tiles_in_view_are_drawn(page):
    look_at(page, MARKED, 100)
    view, names = page.evaluate("state.view"), tiles_drawn(page)
    assert 3 <= len(names) <= 12
    assert len(names) == len(set(names))
    for level, row, column in (map(int, name.split("/")) for name in names):
        width = 256 * 0.5 * 4 / 2**level
        assert column * width < view["x"][1]
        assert (column + 1) * width > view["x"][0]
        assert row * width < view["y"][0]
        assert (row + 1) * width > view["y"][1]
    assert panels(page, "plot.querySelectorAll('image').length") == 1 + len(names)
    page.locator("#tissue").uncheck()
    assert panels(page, "plot.layout.images.length") == 0
    page.locator("#tissue").check()
    assert tiles_drawn(page) == names
    page.locator("#reset").click()
    assert len(tiles_drawn(page)) < len(names) + 40


@LAPTOP
def test_tiles_follow_the_wheel_in_every_panel(page):
    page.evaluate("data.maps[2].genes.forEach((gene) => { gene.measured = gene.predicted; })")
    look_at(page, MARKED, 400)
    box = page.locator("#panels").bounding_box()
    before = tiles_drawn(page)
    page.mouse.move(box["x"] + box["width"] / 6, box["y"] + 150)
    page.mouse.wheel(0, -600)
    page.wait_for_function(f"state.pictures !== {'thumbnail ' + ' '.join(before)!r}")
    of_axis = "plot.layout.images.filter((image) => image.xref === axis).map((image) => image.name).join(' ')"
    by_panel = panels(page, f"['x', 'x2', 'x3'].map((axis) => {of_axis})")
    assert by_panel == [page.evaluate("state.pictures")] * 3
