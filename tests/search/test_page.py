"""The page in a real browser: what a person types, drops, clicks and presses, and what they see."""

import re

import pytest

from tests.search import browser as browsers

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if browsers.chromium() is None:
    reason = "there is no Chromium; MASKVLM_INSTALL_CHROMIUM=1 installs Debian's, as root"
    pytest.skip(reason, allow_module_level=True)
expect = sync_api.expect
expect.set_options(timeout=30_000)  # machines are busy


@pytest.fixture(scope="module")
def browser():
    with browsers.browser() as started:
        yield started


@pytest.fixture
def open_page(browser, site):
    """Opens the page; afterwards it must have asked no other host and met no error."""
    contexts, asked, errors = [], [], []

    def open_page(fragment="", **options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 800}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Security" in line.text else None)
        page.goto(f"{site.address}/{fragment}")
        expect(page.locator("#status")).not_to_be_empty()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert all(url.startswith((f"{site.address}/", "blob:", "data:")) for url in asked)


@pytest.fixture
def page(open_page):
    return open_page()


def box(page):
    return page.get_by_role("searchbox", name="Search for")


def search(page, text):
    """Types a query and waits for its hits."""
    with page.expect_response("**/search"):
        box(page).fill(text)
    expect(page.locator("#above .open").first).to_be_visible()


def focused(page) -> str:
    """The name of the hit that has the focus."""
    return page.evaluate("() => document.activeElement.querySelector('img')?.alt ?? document.activeElement.id")


def hand_over(page, kind, content, name):
    """Drops a file on the page, or pastes it."""
    page.evaluate(
        """([kind, content, name]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], name, {type: "image/png"}));
            const about = {bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data};
            const Kind = kind === "paste" ? ClipboardEvent : DragEvent;
            document.body.dispatchEvent(new Kind(kind, about));
        }""",
        [kind, list(content), name],
    )


def test_before_a_query_a_line_says_what_to_do(page):
    expect(page.locator("#status")).to_have_text(re.compile("48 pictures in scenes. Type what you look for"))
    expect(box(page)).to_be_focused()
    expect(page.locator("li")).to_have_count(0)


def test_typing_finds_pictures_and_the_address_can_be_shared(page, open_page):
    search(page, "a large red square")
    expect(page.locator("#status")).to_contain_text("above 0.5, of the nearest 40 among 48 pictures")
    first = page.locator("li").first
    expect(first.locator(".scores")).to_have_text(re.compile(r"^\d\.\d\dcosine \d\.\d\d$"))
    assert page.url.endswith("#q=a+large+red+square") and page.title().startswith("a large red square")
    shared = open_page(page.url.partition("/#")[2] and "#" + page.url.partition("#")[2])
    expect(box(shared)).to_have_value("a large red square")
    assert shared.locator("li img").first.get_attribute("alt") == first.locator("img").get_attribute("alt")


def test_the_latest_query_wins(page):
    with page.expect_request("**/search"):
        box(page).fill("slower")  # takes seconds
    search(page, "moon")
    expect(page.locator(".scores b").first).to_have_text("1.00")
    box(page).fill("")
    expect(page.locator("li")).to_have_count(0)


def test_a_cut_off_parts_the_hits_and_nothing_above_it_is_told(page):
    search(page, "a large red zebra")
    slider = page.get_by_role("slider", name="Cut-off")
    slider.fill("0.7")
    expect(page.locator("#status")).to_contain_text("above 0.7")
    expect(page.get_by_role("heading", name="Below 0.7")).to_be_visible()
    slider.fill("0.95")
    expect(page.locator("#status")).to_have_text("Nothing above 0.95; nearest are:")
    expect(page.locator("#above li")).to_have_count(40)
    expect(page.locator("#rest")).to_be_hidden()
    assert "cutoff=0.95" in page.url


def test_more_hits_are_shown_when_asked_for(page):
    search(page, "red")
    expect(page.locator("li")).to_have_count(40)
    page.get_by_role("button", name="Show more").click()
    expect(page.locator("li")).to_have_count(48)
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()


@pytest.mark.parametrize("way", ["drop", "paste", "choose"])
def test_a_picture_finds_itself(page, site, way):
    path = site.folder / "test-000007.png"
    if way == "choose":
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Picture …").click()
        chooser.value.set_files(path)
    else:
        hand_over(page, way, path.read_bytes(), "mine.png")
    expect(page.locator("li img").first).to_have_attribute("alt", "test-000007.png")
    expect(page.locator("li .scores").first).to_have_text("cosine 1.00")
    expect(page.locator("#status")).to_have_text("The nearest 40 of 48 pictures, by cosine.")
    page.get_by_role("button", name=re.compile("Remove")).click()
    expect(page.locator("li")).to_have_count(0)


def test_while_a_picture_is_dragged_the_page_says_where_to_drop_it(page):
    hand_over(page, "dragover", b"", "a.png")
    expect(page.locator("body")).to_have_class("dragging")


def test_what_is_no_picture_or_too_large_is_told_in_a_line(page):
    hand_over(page, "drop", b"no picture", "a.png")
    expect(page.locator("#status.wrong")).to_have_text("This is no picture that can be read.")
    page.evaluate(
        """() => { const data = new DataTransfer(); data.items.add(new File([new Uint8Array(21 << 20)], "b.png"));
            document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, dataTransfer: data})); }"""
    )
    expect(page.locator("#status.wrong")).to_have_text("This picture is over 20 MB.")


def test_words_are_subtracted(page):
    search(page, "red")
    page.get_by_role("searchbox", name="Words to subtract").fill("red")
    expect(page.locator("li .scores").first).to_have_text("cosine 0.00")
    expect(page.locator("#status")).to_contain_text("by cosine")
    assert page.url.endswith("#q=red&without=red")


def test_more_like_this_and_back(page):
    search(page, "a large red square")
    second = page.locator("li").nth(1)
    name = second.locator("img").get_attribute("alt")
    second.hover()
    second.get_by_role("button", name="More like this").click()
    expect(page.locator("li img").first).to_have_attribute("alt", name)
    expect(page.locator(".chip")).to_contain_text(f"like {name}")
    page.go_back()
    expect(box(page)).to_have_value("a large red square")
    expect(page.locator(".chip")).to_have_count(0)


def test_words_that_matter_are_shown_when_asked_for(page):
    search(page, "a large zebra")
    first = page.locator("li").first
    expect(first.locator(".words")).to_be_hidden()
    first.hover()
    first.get_by_role("button", name="Words").click()
    expect(first.locator(".words span")).to_have_text([re.compile("^a"), re.compile("^large"), "zebra−0.10"])
    expect(first.locator(".words .against")).to_have_text(["zebra−0.10"])


def test_everything_is_done_by_keys(page):
    search(page, "a large red square")
    names = [image.get_attribute("alt") for image in page.locator("li img").all()]
    page.keyboard.press("ArrowDown")
    assert focused(page) == names[0]
    page.keyboard.press("ArrowRight")
    assert focused(page) == names[1]
    page.keyboard.press("ArrowDown")
    below = names.index(focused(page))
    assert below > 2
    page.keyboard.press("ArrowUp")
    assert focused(page) == names[1]
    page.keyboard.press("Enter")
    large = page.get_by_role("dialog")
    expect(large.locator("img")).to_have_attribute("alt", names[1])
    page.keyboard.press("ArrowRight")
    expect(large.locator("img")).to_have_attribute("alt", names[2])
    page.keyboard.press("Escape")
    expect(large).to_be_hidden()
    assert focused(page) == names[2]
    page.keyboard.press("/")
    expect(box(page)).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("m")
    expect(page.locator("li img").first).to_have_attribute("alt", names[2])
    expect(page.locator("li .open").first).to_be_focused()


def test_letters_typed_in_the_box_are_letters(page):
    box(page).press_sequentially("m/w")
    expect(box(page)).to_have_value("m/w")


def test_a_query_that_is_too_long_and_a_server_that_is_gone_are_told_in_a_line(page):
    box(page).fill("word " * 10_000)
    expect(page.locator("#status.wrong")).to_contain_text("letters at most")
    box(page).fill("red " * 30)
    expect(page.locator("#status")).to_contain_text("The query is too long for the model")
    page.route("**/search", lambda route: route.abort())
    box(page).fill("red")
    expect(page.locator("#status.wrong")).to_have_text("The server does not answer; is it still running?")


def test_while_too_many_ask_it_tries_again(page):
    answers = iter([503])

    def answer(route):
        if next(answers, None):
            route.fulfill(status=503, json={"error": "too many ask at once; try again"})
        else:
            route.continue_()

    page.route("**/search", answer)
    box(page).fill("red")
    expect(page.locator("#status.wrong")).to_have_text("Too many ask at once; try again.")
    expect(page.locator("li")).to_have_count(40)


def test_every_control_and_picture_has_a_name_and_the_focus_is_seen(page):
    search(page, "a large red square")
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("input, button, img")].filter((one) => one.checkVisibility())
            .filter((one) => !(one.labels?.length || one.textContent.trim() || one.alt || one.querySelector("[alt]")))
            .map((one) => one.outerHTML)"""
    )
    assert unnamed == []
    page.keyboard.press("ArrowDown")
    style = "() => getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(style) == "solid"
    assert page.locator("[tabindex='0']").count() == 3  # one stop of the Tab key among all hits, and its two buttons
    expect(page.get_by_role("list", name="Hits")).to_be_visible()


def test_dark_where_the_system_is_dark(open_page):
    ground = "() => getComputedStyle(document.body).backgroundColor"
    assert open_page(color_scheme="light").evaluate(ground) == "rgb(255, 255, 255)"
    assert open_page(color_scheme="dark").evaluate(ground) == "rgb(20, 22, 25)"


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_the_window(open_page, width):
    page = open_page("#like=3&without=" + "w" * 60, viewport={"width": width, "height": 700}, has_touch=True)
    expect(page.locator("li").first).to_be_visible()
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) == width
    page.locator("li .open").first.click()
    large = page.get_by_role("dialog")
    expect(large).to_be_visible()
    bounds = large.bounding_box()
    assert bounds["x"] >= 0 and bounds["x"] + bounds["width"] <= width and page.evaluate(wide) == width


def test_a_picture_of_the_page(page, site, tmp_path):
    browsers.picture_of(page, site.address, "a large red square", tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
