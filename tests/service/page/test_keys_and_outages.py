"""What goes wrong, in a real browser: no key, a wrong key, a key without the scope, a server that is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Visit, needs_chromium, visit
from playwright.sync_api import Browser, expect
from server_process import fake_artifacts, fake_server

from service.security.keys_file import Key, digest, new_token, write_keys

pytestmark = needs_chromium

TOKENS = {name: new_token() for name in ("predict", "everything")}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, reported: str) -> Iterator[str]:
    """The address of a server that asks for keys; its artifact brings a report."""
    folder = tmp_path_factory.mktemp("guarded")
    scopes = {"predict": ("predict",), "everything": ("predict", "evaluate", "admin")}
    write_keys(folder / "keys.json", [Key(id=n, sha256=digest(TOKENS[n]), scopes=s) for n, s in scopes.items()])  # type: ignore[arg-type]
    flags = ["--auth", "keys", "--keys", str(folder / "keys.json")]
    with fake_server(fake_artifacts(folder), *flags, FAKE_REPORT=reported) as process, process.client() as client:
        yield str(client.base_url)


@pytest.fixture
def shut_out(browser: Browser, guarded: str) -> Iterator[Visit]:
    with visit(browser, guarded) as visited:
        yield visited


def test_a_wrong_key_is_said_to_be_one_and_the_right_one_is_kept_nowhere_but_in_memory(shut_out: Visit) -> None:
    page = shut_out.page
    expect(page.get_by_label("This server asks for an API key")).to_be_focused()
    assert page.get_by_role("button", name="Ask", exact=True).is_disabled()
    for wrong in (new_token(), "not a key", "schlüssel"):
        shut_out.give_key(wrong)
        expect(page.locator("#key-problem")).to_have_text("This is no key of this server.")
    shut_out.give_key(TOKENS["everything"])
    expect(page.locator("#key-form")).to_be_hidden()
    shut_out.ask("87000")
    for call in ("#call-curl", "#call-python"):
        assert "YOUR_KEY" in page.locator(call).inner_text()
    shut_out.show("connect")
    for name in ("command", "client", "systemone"):
        assert "YOUR_KEY" in page.locator(f"#connect-{name}").inner_text()
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert json.loads(stored)[:3] == [{}, {}, ""]
    assert TOKENS["everything"] not in page.content() + stored
    page.get_by_role("button", name="Forget it").click()
    expect(page.get_by_label("This server asks for an API key")).to_be_visible()


def test_a_key_is_sent_with_links_and_what_it_may_not_do_is_said(shut_out: Visit, tmp_path: Path) -> None:
    shut_out.give_key(TOKENS["predict"])
    shut_out.ask("87000")
    shut_out.show("jobs")
    expect(shut_out.page.locator("#jobs-problem")).to_contain_text("the scope 'evaluate'")
    shut_out.show("server")
    expect(shut_out.page.locator("#server-load")).to_contain_text("Inputs that wait")
    with shut_out.page.expect_download() as download:
        shut_out.page.locator("#metrics-link").click()
    assert "laplora_build_info" in Path(download.value.path()).read_text()
    shut_out.show("artifact")
    with shut_out.page.expect_download() as download:
        shut_out.page.get_by_role("link", name="Open its report").click()
    assert download.value.suggested_filename == "fake-report.html"
    saved = tmp_path / "saved.html"
    download.value.save_as(saved)
    # Opened from the disk, where no header of the server guards its reader.
    opened = shut_out.page.context.new_page()
    opened.goto(saved.as_uri())
    expect(opened.locator("h1")).to_have_text("Ship it")
    expect(opened.locator("h1")).to_have_css("color", "rgb(18, 52, 86)")
    expect(opened.locator("#said")).to_have_text("nothing ran")
    assert opened.evaluate("document.compatMode") == "CSS1Compat"


def test_a_server_that_is_gone_is_said_to_be_and_the_page_goes_on_when_it_is_back(
    browser: Browser, tmp_path: Path
) -> None:
    root = fake_artifacts(tmp_path)
    with fake_server(root) as process, process.client() as client, visit(browser, str(client.base_url)) as visited:
        page, text = visited.page, visited.page.get_by_label("text", exact=True)
        visited.ask("87000")
        process.popen.kill()
        process.popen.wait()
        text.fill("my long text 31000")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#gone")).to_contain_text("The server does not answer")
        expect(page.locator("#state")).to_have_text("not answering")
        expect(page.locator("#ask-problem")).to_contain_text("did not answer")
        with fake_server(root, "--port", str(client.base_url.port)) as again, again.client():
            expect(page.locator("#gone")).to_be_hidden()
            expect(page.locator("#state")).to_have_text("ready")
            assert text.input_value() == "my long text 31000"
            page.get_by_role("button", name="Ask", exact=True).click()
            expect(page.locator("#answer-said")).to_contain_text("positive, 69.0 %")
            assert page.locator("#ask-problem").inner_text() == ""
