"""The page at /docs, used in a real browser as a person uses it."""

from __future__ import annotations

import asyncio
import base64
import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from framework.http.docs import page, page_headers
from framework.http.openapi import json_text
from tests.http.kiosk import PIXEL, Site, described, served
from tests.tools import tool

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Visit:
    """A browser that looks at the page of a kiosk."""

    def __init__(self, site: Site, base: str, page: Page) -> None:
        self.site = site
        self.base = base
        self.page = page
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.asked.append(request.url))

    async def home(self) -> None:
        """Open the page."""
        await self.page.goto(f"{self.base}/docs")
        await expect(self.page.locator("#list a").first).to_be_attached()

    async def method(self, operation: str) -> None:
        """Open a method."""
        await self.page.goto(f"{self.base}/docs#/{operation}")
        await expect(self.page.get_by_role("form", name="Request")).to_be_visible()

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).first.click()

    async def fill(self, label: str, text: str) -> None:
        await self.page.get_by_label(label, exact=True).first.fill(text)

    async def status(self, text: str) -> None:
        """Wait until the status of the answer begins with this."""
        await expect(self.page.get_by_role("status").locator("strong")).to_have_text(text)

    async def answer(self) -> Any:
        """The body of the answer, which is shown after its status."""
        shown = self.page.locator(".answer pre")
        await expect(shown).to_be_visible()
        return json.loads(await shown.inner_text())

    async def command(self, name: str) -> str:
        """The line for a shell."""
        # It follows the form with the next frame.
        await self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return await self.page.locator(f'pre[aria-label="{name}"]').inner_text()


@pytest.fixture
async def visit(request: pytest.FixtureRequest) -> AsyncIterator[Visit]:
    """A page in a browser of its own, with nothing wrong on its console at the end."""
    options: dict[str, Any] = getattr(request, "param", {})
    path = tool("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            # Less than a test may take, so that it is told what was waited for.
            opened = await browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
            opened.set_default_timeout(10_000)
            site = Site()
            async with served(site) as base:
                visit = Visit(site, base, opened)
                yield visit
                await opened.close()
            assert visit.errors == []
            assert all(url.startswith((base, base.replace("http", "ws"), "data:", "blob:")) for url in visit.asked)
        finally:
            await browser.close()


async def test_a_method_is_found_read_and_called(visit: Visit) -> None:
    """From the list to the answer, with the commands that do the same."""
    await visit.home()
    assert (await visit.page.locator("#list .name").all_inner_texts())[:3] == ["GetItem", "ListItems", "CreateItem"]
    await visit.page.keyboard.press("/")
    await visit.page.keyboard.type("kiosk crea")
    links = visit.page.locator("#list a:visible")
    await expect(links).to_have_count(1)
    await links.click()
    await expect(visit.page.get_by_role("heading", level=1)).to_have_text("CreateItem")
    await visit.press("Call")
    await expect(visit.page.get_by_role("alert").filter(has_text="rack is needed")).to_be_visible()
    await visit.fill("rack", "it's 7%")
    await visit.fill("title", "The Daily")
    await visit.page.get_by_label("kind", exact=True).select_option(label="MAGAZINE")
    await visit.press("Add price")
    await visit.fill("currency", "EUR")
    await visit.fill("minorUnits", "9007199254740993")
    await visit.press("Add tags")
    await visit.fill("tags", "new")
    await visit.press("Add to stock")
    await visit.fill("key", "front")
    await visit.fill("value", "3")
    await visit.page.get_by_label("source", exact=True).select_option(label="supplier")
    await visit.fill("supplier", "4")
    await visit.page.keyboard.press("Control+Enter")
    await visit.status("201 Created")
    body = '{"title":"The Daily","kind":"MAGAZINE","price":{"currency":"EUR","minorUnits":"9007199254740993"},'
    body += '"tags":["new"],"stock":{"front":3},"supplier":4}'
    assert await visit.answer() == {"name": "racks/it's 7%/items/1", **json.loads(body)}
    assert await visit.command("curl") == (
        f"curl '{visit.base}/v1/racks/it'\\''s%207%25/items' -H 'content-type: application/json' --data-raw '{body}'"
    )
    message = f'{{"item":{body},"parent":"racks/it\'\\\'\'s 7%"}}'
    assert await visit.command("grpcurl") == (
        f"grpcurl -plaintext -d '{message}' 127.0.0.1:50051 kiosk.v1.Kiosk/CreateItem"
    )


async def test_the_example_comes_back_from_the_server(visit: Visit) -> None:
    """Every kind of field can be filled in: what the form gets, it gives, and the server understands."""
    await visit.method("Kiosk_Echo")
    await visit.press("Example")
    await visit.press("Call")
    await visit.status("200 OK")
    example = described()["components"]["examples"]["kiosk.v1.Bag"]["value"]
    answer = await visit.answer()
    del example["mask"], example["nothing"]  # which are what they are by default, and so not in the answer
    assert example == answer
    await visit.press("JSON")
    await visit.fill("body as JSON", '{"inner": {"inner": {"label": "deep"}}}')
    await visit.press("JSON")
    await expect(visit.page.get_by_label("label").nth(2)).to_have_value("deep")


async def test_headers_and_authentication_reach_the_service(visit: Visit) -> None:
    """A token becomes an authorization header, and a header of one's own is sent as it is."""
    await visit.method("Kiosk_GetItem_2")
    await visit.fill("name", "missing")
    await visit.fill("token", "secret")
    await visit.press("Add header")
    await visit.fill("Header", "x-tenant")
    await visit.fill("Value", "acme")
    await visit.fill("name", "one")
    await visit.press("Call")
    await visit.status("200 OK")
    assert visit.site.kiosk.metadata["authorization"] == "Bearer secret"
    assert visit.site.kiosk.metadata["x-tenant"] == "acme"
    assert "-H 'authorization: Bearer ***' -H 'x-tenant: acme'" in await visit.command("curl")
    await visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for name in ("curl", "grpcurl"):
        await visit.press(f"Copy {name}")
        await expect(visit.page.get_by_role("button", name=f"Copy {name}")).to_have_text("Copied")
        copied = await visit.page.evaluate("navigator.clipboard.readText()")
        assert "-H 'authorization: Bearer secret' -H 'x-tenant: acme'" in copied


async def test_a_header_that_is_a_parameter(visit: Visit) -> None:
    """It has its place in the form, and is sent; the entity tag of an answer makes the next one empty."""
    await visit.method("Kiosk_GetItem_2")
    await visit.fill("name", "one")
    async with visit.page.expect_response("**/v1/items/one") as first:
        await visit.press("Call")
    tag = (await first.value).headers["etag"]
    await visit.fill("If-None-Match", tag)
    async with visit.page.expect_response("**/v1/items/one") as again:
        await visit.press("Call")
    assert (await again.value).status == 304
    assert f"-H 'if-none-match: {tag}'" in await visit.command("curl")


async def test_what_http_sets_is_in_the_line_for_grpcurl(visit: Visit) -> None:
    """A mask from the body, a tag from If-Match, metadata and the deadline from headers; of HTTP alone is nothing."""
    await visit.method("Kiosk_UpdateItem")
    await visit.fill("rack", "1")
    await visit.fill("item", "2")
    await visit.fill("If-Match", '"7"')
    await visit.fill("title", "The Daily")
    await visit.press("Add price")
    await visit.fill("minorUnits", "5")
    for name, value in (("Grpc-Metadata-Tenant", "acme"), ("X-Server-Timeout", "2"), ("If-None-Match", "*")):
        await visit.press("Add header")
        await visit.page.get_by_label("Header", exact=True).last.fill(name)
        await visit.page.get_by_label("Value", exact=True).last.fill(value)
    line = await visit.command("grpcurl")
    start, _, rest = line.partition(" -d '")
    message, _, end = rest.partition("' ")
    assert start == "grpcurl -plaintext -max-time 2 -H 'tenant: acme'"
    assert json.loads(message) == {
        "item": {"name": "racks/1/items/2", "title": "The Daily", "price": {"minorUnits": "5"}},
        "updateMask": "title,price.minorUnits",
        "revision": "7",
    }
    assert end == "127.0.0.1:50051 kiosk.v1.Kiosk/UpdateItem"
    await visit.fill("updateMask", "kind")
    assert '"updateMask":"kind"' in await visit.command("grpcurl")


@pytest.mark.parametrize(
    ("target", "tls", "line"),
    [
        (None, None, None),
        ("0.0.0.0:7", None, "grpcurl -plaintext 127.0.0.1:7 kiosk.v1.Kiosk/Echo"),
        ("grpc.example:7", True, "grpcurl grpc.example:7 kiosk.v1.Kiosk/Echo"),
    ],
)
async def test_where_grpc_is(visit: Visit, target: str | None, tls: bool | None, line: str | None) -> None:
    """There is a line for grpcurl where the document says what to dial, and none where nobody knows."""
    headers, _ = visit.site.pages["/openapi.json"]
    told = {name: value for name, value in (("x-grpc-target", target), ("x-grpc-tls", tls)) if value is not None}
    shown = {key: value for key, value in described().items() if key != "x-grpc-target"} | told
    visit.site.pages["/openapi.json"] = (headers, json_text(shown).encode())
    await visit.method("Kiosk_Echo")
    await expect(visit.page.locator('pre[aria-label="curl"]')).to_be_visible()
    if line is None:
        await expect(visit.page.locator('pre[aria-label="grpcurl"]')).to_have_count(0)
    else:
        assert await visit.command("grpcurl") == line


async def test_what_the_path_sets_is_asked_for_once(visit: Visit) -> None:
    """A field of the body that is a part of the path has one place in the form."""
    await visit.method("Kiosk_UpdateItem_2")
    await expect(visit.page.get_by_label("title", exact=True)).to_have_count(1)
    await expect(visit.page.get_by_label("item.shelf", exact=True)).to_have_count(1)
    await expect(visit.page.get_by_label("shelf", exact=True)).to_have_count(0)


async def test_a_file_is_sent_as_a_form(visit: Visit, tmp_path: Path) -> None:
    """A field of bytes takes a file; then the message is a form, for curl as well."""
    picture = tmp_path / 'a "dot".png'
    picture.write_bytes(PIXEL)
    await visit.method("Kiosk_Echo")
    await visit.fill("label", "@dot")
    await visit.press("Add notes")
    await visit.fill("text", "small")
    await visit.page.get_by_label("data from a file").set_input_files(picture)
    await visit.press("Call")
    await visit.status("200 OK")
    sent = {"label": "@dot", "notes": [{"text": "small"}]}
    assert await visit.answer() == {**sent, "data": base64.b64encode(PIXEL).decode()}
    command = shlex.split(await visit.command("curl"))
    assert command[2:] == [
        "--form-string",
        "label=@dot",
        "-F",
        r'data=@"a \"dot\".png"',
        "--form-string",
        'notes={"text":"small"}',
    ]
    ran = await asyncio.create_subprocess_exec(*command, "-s", cwd=tmp_path, stdout=asyncio.subprocess.PIPE)
    out, _ = await ran.communicate()
    assert json.loads(out) == await visit.answer()
    assert '"data":"BASE64"' in await visit.command("grpcurl")


async def test_a_mistake_takes_the_answer_before_it_away(visit: Visit) -> None:
    """What is shown as the answer is never one to something else than what is filled in."""
    await visit.method("Kiosk_GetItem_2")
    await visit.fill("name", "one")
    await visit.press("Call")
    await visit.status("200 OK")
    await visit.fill("name", "")
    await visit.press("Call")
    await expect(visit.page.get_by_role("alert").filter(has_text="name is needed")).to_be_visible()
    await expect(visit.page.get_by_label("Answer")).to_be_hidden()
    await visit.fill("name", "two")
    await visit.press("Call")
    await visit.status("200 OK")
    await expect(visit.page.get_by_label("Answer")).to_be_visible()


async def test_a_server_that_is_gone(visit: Visit) -> None:
    """It is said in words what became of a call that found no server, and of one that lost it."""
    await visit.method("Kiosk_Chat")
    await visit.fill("rack", "1")
    await visit.page.context.set_offline(True)
    await visit.press("Connect")
    await visit.status("No connection")
    await expect(visit.page.get_by_role("status")).to_contain_text("the server cannot be reached")
    await visit.page.get_by_label("How").select_option(label="HTTP, lines")
    await visit.press("Call")
    await visit.status("No answer")
    await expect(visit.page.get_by_role("status")).to_contain_text(f"{visit.base[7:]} cannot be reached")
    await visit.page.context.set_offline(False)

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/x-ndjson")]}
        )
        await send({"type": "http.response.body", "body": b'{"text":"A"}\n', "more_body": True})
        raise ConnectionError

    visit.site.app = breaks
    await visit.press("Call")
    await visit.status("Broken off")
    await expect(visit.page.get_by_role("status")).to_contain_text("the connection was lost before the end")
    assert all("ERR_" in error for error in visit.errors)  # which the browser says itself
    visit.errors.clear()


async def test_a_stream_is_shown_as_it_comes_and_stopped(visit: Visit) -> None:
    """Messages appear while the call goes on; the stop button cancels it on the server."""
    await visit.method("Kiosk_Watch")
    await visit.fill("count", "3")
    await visit.page.get_by_label("hang", exact=True).select_option(label="true")
    await visit.press("Call")
    await expect(visit.page.get_by_label("Messages").get_by_role("listitem")).to_have_count(3)
    assert not visit.site.kiosk.cancelled.is_set()
    await visit.press("Stop")
    await visit.status("Stopped")
    await asyncio.wait_for(visit.site.kiosk.cancelled.wait(), 10)


@pytest.mark.parametrize("how", ["HTTP, lines", "HTTP, events", "WebSocket"])
async def test_a_failure_behind_messages_is_told(visit: Visit, how: str) -> None:
    """In each format the error is the last thing shown."""
    await visit.method("Kiosk_Watch")
    await visit.fill("count", "2")
    await visit.page.get_by_label("fail", exact=True).select_option(label="true")
    await visit.page.get_by_label("How").select_option(label=how)
    await visit.press("Connect" if how == "WebSocket" else "Call")
    await visit.status("ABORTED (4010)" if how == "WebSocket" else "200 OK, then ABORTED")
    messages = visit.page.get_by_label("Messages").get_by_role("listitem")
    await expect(messages.last).to_contain_text("sold out")
    assert await messages.filter(has_text="item ").count() == 2


async def test_several_requests_are_sent_as_a_stream(visit: Visit) -> None:
    """Each message has a form, and all of them are one call."""
    await visit.method("Kiosk_Collect")
    await visit.fill("rack", "r1")
    await visit.fill("text", "one")
    await visit.press("+ message")
    await visit.page.get_by_label("text", exact=True).nth(1).fill("two")
    await visit.press("Call")
    await visit.status("200 OK")
    answer = await visit.answer()
    assert answer == {"count": 2, "texts": ["r1: one", "r1: two"]}
    assert '-d \'{"text":"one","rack":"r1"} {"text":"two","rack":"r1"}\'' in await visit.command("grpcurl")


async def test_a_conversation_over_websocket(visit: Visit) -> None:
    """Messages go one by one, are answered between, and the end is said."""
    await visit.method("Kiosk_Chat")
    await visit.fill("rack", "r1")
    await visit.press("Connect")
    await visit.status("Open")
    messages = visit.page.get_by_label("Messages").get_by_role("listitem")
    for number, word in enumerate(("hello", "again"), 1):
        await visit.fill("text", word)
        await visit.press("Send message")
        await expect(messages).to_have_count(2 * number)
        await expect(messages.last).to_contain_text(word.upper())
    await visit.press("End requests")
    await visit.status("OK (1000)")


@pytest.mark.parametrize("visit", [{"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}], indirect=True)
async def test_a_narrow_dark_screen(visit: Visit) -> None:
    """The list is behind a button, nothing is wider than the screen, and the page is dark."""
    await visit.method("Kiosk_Echo")
    await visit.press("Example")
    assert await visit.page.evaluate("document.documentElement.scrollWidth") == 360
    assert await visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 26)"
    await visit.press("Methods")
    await visit.page.get_by_role("link", name="GetItem").click()
    await expect(visit.page.get_by_role("heading", level=1)).to_have_text("GetItem")
    await expect(visit.page.get_by_role("link", name="GetItem")).to_be_hidden()


async def test_the_page_works_with_the_keyboard(visit: Visit) -> None:
    """From the list to an answer without a pointer."""
    await visit.home()
    await visit.page.keyboard.press("/")
    await visit.page.keyboard.type("FindItem")
    await visit.page.keyboard.press("Tab")
    await visit.page.keyboard.press("Tab")
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.get_by_role("heading", level=1)).to_contain_text("FindItem")
    for _ in range(4):  # over JSON, Example and Clear to the first field
        await visit.page.keyboard.press("Tab")
    await visit.page.keyboard.type("racks/1")
    await visit.page.keyboard.press("Control+Enter")
    await visit.status("200 OK")
    await expect(visit.page.locator(".answer pre")).to_contain_text("racks/1")


async def test_the_filter_goes_to_what_it_finds(visit: Visit) -> None:
    """Enter opens the first method that is left; when there is none that is said."""
    await visit.home()
    await visit.page.keyboard.press("/")
    await visit.page.keyboard.type("nothing like it")
    await expect(visit.page.get_by_text("No method has that in its name or path.")).to_be_visible()
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.get_by_role("heading", level=1)).to_have_text("Kiosk")
    await visit.fill("Filter methods", "item")
    await expect(visit.page.get_by_text("No method has that in its name or path.")).to_be_hidden()
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.get_by_role("heading", level=1)).to_have_text("GetItem")


async def test_how_to_authenticate_is_said_once(visit: Visit) -> None:
    """What a scheme is called and what it is, unless that is the same."""
    headers, _ = visit.site.pages["/openapi.json"]
    shown = described()
    shown["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"}, "key": {"type": "apiKey", "in": "header", "name": "x-api-key"}
    }  # fmt: skip
    shown["security"] = [{"bearer": []}, {"key": []}]
    visit.site.pages["/openapi.json"] = (headers, json_text(shown).encode())
    await visit.method("Kiosk_Echo")
    assert await visit.page.locator("label.entry").all_inner_texts() == ["bearer", "key x-api-key"]


def test_the_page_brings_everything_along() -> None:
    """One file that names no other host, with a policy that lets nothing else in."""
    text = page("../api.json").decode()
    assert 'data-openapi="../api.json"' in text
    assert "{{" not in text.replace("${{", "")
    assert "//" not in text.replace("://", "").split("<script>")[0]
    policy = dict(page_headers())[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
