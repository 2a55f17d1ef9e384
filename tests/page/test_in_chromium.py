"""The page in a real browser: it loads without an error, and every control does what it says."""

import time

import chromium
import pandas as pd
import pytest
from small_runs import NARROW

import ih_interp as ih

pytest.importorskip("plotly")
pytestmark = pytest.mark.slow

RIGHT, LEFT, HOME = "\ue014", "\ue012", "\ue011"
"""Keys, as WebDriver writes them."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium.chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs, the second with a clamp."""
    clamp = ih.clamps.InductionAttention(heads=["L1H3"], strength=0.7)
    fast = NARROW.replace(optimiser=ih.Adam(learning_rate=0.03))  # weights differ by what is shown
    configs = [fast, fast.replace(name="held", clamps=[clamp])]
    return ih.train(configs, tmp_path_factory.mktemp("runs"), workers=1, progress=False)


@pytest.fixture(scope="module")
def path(tmp_path_factory, runs):
    return ih.report(runs).save(tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def shown(browser, path):
    chromium.show(browser, path)
    return browser


def find(browser, section, control, run=0):
    return browser.find_element("id", f"run-{run}-{section}-{control}")


def z_of(browser, section, run=0):
    plot = f'document.querySelector("#run-{run}-{section} .plot")'
    return browser.execute_script(f"return {plot}.data[0].z")


def choose(browser, section, control, value, run=0):
    chromium.select(find(browser, section, control, run)).select_by_value(str(value))


def data_of(browser):
    return browser.execute_script("return JSON.parse(document.getElementById('data').textContent)")


def downloaded(path):
    """Wait for a csv file, read it and remove it; the browser renames it when it is whole."""
    end = time.monotonic() + chromium.PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"waited for {path}"
        time.sleep(0.1)
    table = pd.read_csv(path)
    path.unlink()
    return table


def test_it_loads_without_an_error_or_a_request(browser, path):
    browser.get("about:blank")
    browser.get_log("browser"), chromium.requests_of(browser)
    chromium.show(browser, path)
    assert browser.get_log("browser") == []
    assert {url.partition(":")[0] for url in chromium.requests_of(browser)} <= {"file", "data"}


def test_the_slider_and_the_choice_of_inputs_change_the_wiring(shown):
    frames = data_of(shown)["runs"][0]["wiring"]["frames"]["0-1"]["via"]
    slider = find(shown, "wiring", "step")
    assert z_of(shown, "wiring") == frames["k"][2]
    slider.send_keys(LEFT)
    assert z_of(shown, "wiring") == frames["k"][1] != frames["k"][2]
    choose(shown, "wiring", "via", "q")
    assert z_of(shown, "wiring") == frames["q"][1] != frames["k"][1]


def test_the_keyboard_moves_the_slider_and_the_words_beside_it(shown):
    slider = find(shown, "wiring", "step")
    slider.send_keys(HOME)
    said = shown.find_element("css selector", "#run-0-wiring output")
    assert said.text == "0 sequences (update 0)"
    slider.send_keys(RIGHT)
    assert said.text == "16 sequences (update 2)"
    assert slider.get_attribute("aria-valuetext") == said.text
    assert shown.execute_script("return document.activeElement.id") == slider.get_attribute("id")
    outline = slider.value_of_css_property("outline-width")
    assert outline == "3px"


def test_numbers_in_cells_are_those_of_the_figure(shown):
    written = shown.execute_script(
        'return [...document.querySelectorAll("#run-0-wiring .heatmap-label text")]'
        ".map((t) => t.textContent)"
    )
    z = [value for row in z_of(shown, "wiring") for value in row]
    assert len(written) == len(z) == 16
    reach = data_of(shown)["runs"][0]["wiring"]["frames"]["0-1"]["reach"]
    right = ["0" if abs(use) < reach / 100 else f"{use:.1e}" for use in z]
    assert sum(use != "0" for use in right) > 3
    assert sorted(map(float, written)) == pytest.approx(sorted(map(float, right)), rel=1e-6)


def test_the_chosen_pattern_is_the_model_s(shown, runs):
    choose(shown, "patterns", "sequence", 1)
    choose(shown, "patterns", "layer", 1)
    choose(shown, "patterns", "head", 2)
    find(shown, "patterns", "step").send_keys(HOME)
    narrow = runs[0]
    tokens = narrow.task.sample("train", 512, seed=0).tokens[1:2]
    _, cache = narrow.model(0).run_with_cache(tokens)
    own = cache["blocks.1.attn.hook_pattern"][0, 2].tolist()
    for query, row in enumerate(z_of(shown, "patterns")):
        assert row[: query + 1] == pytest.approx(own[query][: query + 1], abs=1e-4)
        assert row[query + 1 :] == [None] * (len(row) - query - 1)
    about = shown.find_element("css selector", '#run-0-patterns [data-control="about"]').text
    assert about.startswith("L1H2.")


def test_one_score_is_shown_at_a_time(shown):
    choose(shown, "scores", "score", "induction")
    curves = shown.execute_script(
        'return document.querySelector("#run-0-scores .plot").data.map((c) => [c.meta, c.visible])'
    )
    assert {score for score, visible in curves if visible} == {"induction"}
    assert {score for score, visible in curves if not visible} == {"previous token"}


def test_tables_have_the_numbers_of_their_files(shown):
    script = """
    const link = document.querySelector('#run-0-ablation a[download="ablation.csv"]').href;
    const text = new TextDecoder().decode(Uint8Array.from(
        atob(link.split("base64,")[1]), (c) => c.charCodeAt(0)));
    const table = document.querySelector("#run-0-ablation table");
    const cells = [...table.querySelectorAll("tbody tr")].map(
        (row) => [...row.children].map((cell) => cell.textContent));
    return [text, cells];
    """
    text, cells = shown.execute_script(script)
    lines = [line.split(",") for line in text.strip().splitlines()]
    place = lines[0].index("cost")
    assert len(cells) == len(lines) - 1 == 8
    for row, line in zip(cells, lines[1:], strict=True):
        assert row[0] == line[0]
        assert float(row[4]) == pytest.approx(float(line[place]), abs=0.0006)


def test_another_run_can_be_chosen(shown):
    chromium.select(shown.find_element("id", "run")).select_by_visible_text("held")
    chromium.until(shown, "return all_drawn()", prelude=chromium.ALL_DRAWN)
    assert not shown.find_element("id", "run-0").is_displayed()
    assert shown.find_element("id", "run-1").is_displayed()
    frames = data_of(shown)["runs"][1]["wiring"]["frames"]["0-1"]["via"]
    assert z_of(shown, "wiring", run=1) == frames["k"][-1]
    assert shown.get_log("browser") == []


def test_dark_mode_has_its_own_colours(browser, path):
    colours = {}
    for scheme in ("light", "dark"):
        chromium.show(browser, path, scheme=scheme)
        colours[scheme] = browser.execute_script(
            "const plot = document.querySelector('#run-0-wiring .plot');"
            "return [getComputedStyle(document.body).backgroundColor,"
            " plot._fullLayout.font.color, plot._fullLayout.coloraxis.colorscale[1][1]]"
        )
    assert colours["light"][0] == "rgb(255, 255, 255)"
    assert all(one != two for one, two in zip(*colours.values(), strict=True))


def test_a_narrow_window_does_not_scroll_sideways(browser, path):
    chromium.show(browser, path, width=500)
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    whole, seen = browser.execute_script(widths)
    assert whole <= seen


def test_a_table_that_is_cut_shows_that_it_scrolls(browser, path):
    chromium.show(browser, path, width=520)
    script = """
    const wide = [...document.querySelectorAll(".wide")];
    return wide.filter((e) => e.scrollWidth > e.clientWidth).map(
        (e) => [e.tabIndex, e.ariaLabel, getComputedStyle(e).backgroundAttachment]);
    """
    cut = browser.execute_script(script)
    assert len(cut) >= 2
    assert all(place == 0 and label for place, label, _ in cut)
    assert {shadows for *_, shadows in cut} == {"local, local, scroll, scroll"}


@pytest.mark.parametrize("width", [520, 1200])
def test_sliders_stand_beside_their_words(browser, path, width):
    chromium.show(browser, path, width=width)
    script = """
    const box = (e) => e.getBoundingClientRect();
    const right = box(document.querySelector("main")).right;
    return ["wiring", "patterns"].map((key) => {
      const controls = document.querySelector(`#run-0-${key} .controls`);
      const named = [...controls.querySelectorAll("label, output, input")].map(box);
      const slider = named.slice(-3);  // its label, itself, its words
      const middles = (boxes) => boxes.map((b) => (b.top + b.bottom) / 2);
      const apart = (boxes) => Math.max(...middles(boxes)) - Math.min(...middles(boxes));
      return [apart(slider), apart(named), Math.max(...named.map((b) => b.right)) - right];
    });
    """
    for apart, of_all, beyond in browser.execute_script(script):
        assert apart < 4
        assert beyond <= 0
        assert width < 1200 or of_all < 4


def test_the_guess_is_shown_for_every_split(shown):
    visible = (
        'return document.querySelector("#compared .plot").data.map((c) => [c.name, c.visible])'
    )
    for split in ("test_relabel", "train"):
        chromium.select(shown.find_element("id", "compared-split")).select_by_value(split)
        curves = shown.execute_script(visible)
        assert [name for name, on in curves if on] == ["narrow", "held", "even guess"]


def test_the_shown_pattern_s_file_has_all_heads(shown, tmp_path):
    given = {"behavior": "allow", "downloadPath": str(tmp_path)}
    shown.execute_cdp_cmd("Browser.setDownloadBehavior", given)
    choose(shown, "patterns", "layer", 1)
    choose(shown, "patterns", "head", 2)
    link = shown.find_element("css selector", '#run-0-patterns [data-control="csv"]')
    for steps, key in ((4, None), (2, LEFT)):
        if key:
            find(shown, "patterns", "step").send_keys(key)
        link.click()
        path = tmp_path / "patterns.csv"
        table = downloaded(path)
        assert set(table["step"]) == {steps}
        assert table["head"].nunique() == 8
        own = table[table["head"] == "L1H2"]
        z = [weight for row in z_of(shown, "patterns") for weight in row if weight is not None]
        assert own["weight"].to_list() == pytest.approx(z, abs=1e-5)
    words = own.drop_duplicates("query")["query_token"].to_list()
    assert words == data_of(shown)["runs"][0]["patterns"]["tokens"][0]


def test_every_control_has_a_label_and_every_figure_a_caption(shown):
    script = """
    const controls = [...document.querySelectorAll("select, input")];
    const figures = [...document.querySelectorAll("figure")];
    const words = (figure) => figure.querySelector("figcaption").textContent.trim();
    return [controls.length, controls.filter((c) => !c.labels.length).length,
            figures.length, figures.filter((figure) => !words(figure)).length];
    """
    n_controls, unlabelled, n_figures, without = shown.execute_script(script)
    assert n_controls >= 10
    assert n_figures >= 8
    assert (unlabelled, without) == (0, 0)
