"""The page is for anyone: by keyboard, with a screen reader, in light and dark, on a phone, among hostile texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import DESK, PHONE, SECTIONS, Visit, choose, needs_chromium, visit
from job_calls import lines
from playwright.sync_api import Browser, expect
from server_process import fake_artifacts, fake_server

pytestmark = needs_chromium

#: The names of what would show that a text became HTML.
MARKUP = "<img src=x onerror=window.hacked=1>"
LABELS = ("<b id=hacked>good<b>", "</td><script>window.hacked=1<script>", "&lt;i&gt;")


def open_everything(visited: Visit, section: str) -> None:
    """Show a section with all that it can show."""
    visited.show(section)
    if section == "playground":
        visited.ask("87000")
    if section == "artifact":
        expect(visited.page.locator("#artifact-about table").first).to_be_visible()
    if section == "jobs":
        expect(visited.page.locator(".job").first).to_have_attribute("data-status", "done")
        visited.page.get_by_role("button", name="Show the result").click()
        expect(visited.page.locator(".job table")).to_be_visible()
    if section == "feedback":
        expect(visited.page.get_by_role("row", name="Accuracy")).to_be_visible()
    if section == "server":
        expect(visited.page.locator("#server-load table")).to_be_visible()
    for summary in visited.page.locator(f"#{section} summary").all():
        summary.click()


@pytest.mark.parametrize(("scheme", "viewport"), [("light", PHONE), ("dark", DESK)], ids=["phone", "desk"])
def test_axe_finds_nothing_wrong_in_any_section_and_none_scrolls_sideways(
    scheme: str, viewport: dict[str, int], browser: Browser, address: str
) -> None:
    # axe is put into the page from outside, which its policy would not allow.
    with visit(browser, address, color_scheme=scheme, viewport=viewport, bypass_csp=True) as visited:
        for section in SECTIONS:
            open_everything(visited, section)
            found = Axe().run(visited.page)
            assert found.violations_count == 0, f"{section}, {scheme}:\n{found.generate_report()}"
            assert visited.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], section


def test_the_keyboard_alone_is_enough(visited: Visit) -> None:
    page, keys = visited.page, visited.page.keyboard
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])

    def tab_to(name: str) -> None:
        for _ in range(60):
            keys.press("Tab")
            about, outline = page.evaluate("""() => {
                const e = document.activeElement;
                return [[e.id, e.textContent, e.name].join(' '), getComputedStyle(e).outlineStyle];
            }""")
            if page.locator(":focus").count() == 0:
                continue  # between the page's end and its start
            assert outline != "none", f"no outline: {about[:80]}"
            if name in about:
                return
        pytest.fail(f"{name} is not reached by Tab")

    tab_to("Skip to the content")
    keys.press("Enter")
    tab_to("Clearly bad")
    for field, typed in (("text", "31000"), ("risk", "20")):
        tab_to(field)
        keys.press("Control+A")
        keys.type(typed)
    tab_to("ask-button")
    keys.press("Enter")
    expect(page.locator("#answer-said")).to_contain_text("a 20 % error rate")
    tab_to("truth")
    keys.press("ArrowDown")
    tab_to("Tell it")
    keys.press("Enter")
    expect(page.locator(".truth")).to_contain_text("Thank you")
    tab_to("Copy curl")
    keys.press("Enter")
    expect(page.get_by_role("button", name="Copied curl")).to_be_focused()
    page.reload()
    expect(page.locator("#state")).to_have_text("ready")
    tab_to("Jobs")
    keys.press("Enter")
    expect(page.locator("#jobs-title")).to_be_focused()
    assert page.title() == "Jobs – laplora"
    tab_to("Show the result")
    keys.press("Space")
    expect(page.locator(".job table")).to_be_visible()
    page.go_back()
    expect(page.locator("#playground")).to_be_visible()


def test_a_section_has_an_address_of_its_own_and_the_server_one_links_to_every_operation(visited: Visit) -> None:
    """A link opens the page of the API at that operation, which is drawn under its own policy."""
    page = visited.page
    page.context.on("console", lambda message: visited.complaints.append(message.text))
    page.goto(f"{visited.address}/#server")
    page.reload()
    expect(page.locator("#playground")).to_be_hidden()
    expect(page.locator("nav [aria-current]")).to_have_text("Server")
    open_everything(visited, "server")
    document = page.request.get(f"{visited.address}/openapi.json").json()
    known = {f"{m.upper()} {path}" for path, methods in document["paths"].items() for m in methods}
    assert set(page.locator(".operations a").all_inner_texts()) == known
    with page.expect_popup() as opened:
        page.locator(".operations").get_by_text("POST /predict", exact=True).click()
    expect(opened.value.locator("#operations-scoring-predict")).to_be_visible()


def test_a_report_opens_beside_the_page_and_runs_nothing(visited: Visit) -> None:
    visited.show("artifact")
    with visited.page.expect_popup() as opened:
        visited.page.get_by_role("link", name="Open its report").click()
    expect(opened.value.locator("h1")).to_have_text("Ship it")
    expect(opened.value.locator("#said")).to_have_text("nothing ran")
    expect(visited.page.locator("#artifact")).to_be_visible()


def test_a_change_is_shown_until_it_has_ended(browser: Browser, tmp_path: Path) -> None:
    root = fake_artifacts(tmp_path, "fake", "held")
    with fake_server(root) as process, process.client() as client, visit(browser, str(client.base_url)) as visited:
        visited.show("artifact")
        expect(visited.page.locator("#artifact-about table").first).to_be_visible()
        assert client.post("/artifacts/held/load").status_code == 202
        visited.show("server")
        visited.show("artifact")
        row = visited.page.locator("#artifact-changes tbody tr")
        expect(row).to_contain_text("load: heldrunning")
        (root / "held" / "go").touch()
        expect(row).to_contain_text("load: heldsucceeded")
        expect(visited.page.get_by_label("Artifact", exact=True)).to_contain_text("held")


def test_html_in_names_and_labels_stays_text(browser: Browser, tmp_path: Path) -> None:
    root, fakes = fake_artifacts(tmp_path, "fake", MARKUP), {"FAKE_CHOICES": MARKUP, "FAKE_LABELS": "|".join(LABELS)}
    with (
        fake_server(root, "--also-load", MARKUP, **fakes) as process,
        process.client() as client,
        visit(browser, str(client.base_url)) as visited,
    ):
        page = visited.page
        page.get_by_label("Artifact", exact=True).select_option(MARKUP)
        page.get_by_label("question").fill(MARKUP)
        page.get_by_label("Choices, one a line").fill(f"{MARKUP}\n<i>b</i>")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(".verdict")).to_be_visible()
        assert f"{LABELS[0]}. {MARKUP}" in page.locator(".comparison").inner_text()
        assert MARKUP in page.locator("#call-curl").inner_text()
        visited.show("artifact")
        expect(page.locator("#artifact-about h2").first).to_have_text(MARKUP)
        visited.show("jobs")
        row = {"question": MARKUP, "choices": ["a", "b"], "label": LABELS[0]}
        choose(page, lines([row]), "<img src=x>.jsonl", "text/html")
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator(".job").first).to_contain_text(MARKUP)
        expect(page.locator(".job").first).to_have_attribute("data-status", "done")
        visited.show("feedback")
        expect(page.locator(".series h2").first).to_contain_text("answered by")
        visited.show("server")
        expect(page.locator("#server-about")).to_contain_text(MARKUP)
        # And what a proxy, or whoever speaks in the server's place, might answer.
        error = {"error": {"code": "x", "message": MARKUP, "field": "<b id=hacked>"}, "request_id": "x"}
        page.route("**/predict", lambda route: route.fulfill(status=422, json=error))
        visited.show("playground")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#ask-problem")).to_have_text(f"{MARKUP} (<b id=hacked>)")
        assert page.evaluate("window.hacked") is None
        assert page.locator("img, #hacked, section script").count() == 0


def test_the_policy_lets_no_text_become_a_script(visited: Visit) -> None:
    """What a mistake in the page's own scripts could do, done on purpose."""
    tried = visited.page.evaluate("""async () => {
        const tried = {};
        try { document.body.innerHTML += '<p>'; tried.html = true; } catch { tried.html = false; }
        const script = document.createElement('script');
        try { script.text = 'window.ran = 1'; document.body.append(script); } catch {}
        tried.inline = window.ran === 1;
        try { await fetch('http://127.0.0.1:9/'); tried.elsewhere = true; } catch { tried.elsewhere = false; }
        return tried;
    }""")
    assert tried == {"html": False, "inline": False, "elsewhere": False}
    stopped = [said for said in visited.complaints if "Content Security Policy" in said or "Trusted" in said]
    assert len(stopped) >= 3
    visited.complaints.clear()
