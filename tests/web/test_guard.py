"""Who is let in, and what nobody is let out with."""

import base64

import pytest
from starlette.testclient import TestClient

from preftune.web.app import Settings, build_app
from tests.web.conftest import BASE


def client(places, **settings):
    return TestClient(build_app(places, Settings(**settings)), base_url=BASE)


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "192.168.0.7:7860"])
def test_the_page_is_known_by_address_and_as_localhost(places, host):
    assert client(places).get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example:7860", "localhost.evil.example", "", "127.0.0.1.evil.example", "[::1"])
def test_a_name_that_was_pointed_at_us_is_refused(places, host):
    reply = client(places).get("/api/models", headers={"host": host})
    assert reply.status_code == 421
    assert "--allow-host" in reply.json()["error"]


def test_a_name_that_was_given_is_known(places):
    page = client(places, names=frozenset({"trainer.example"}))
    assert page.get("/", headers={"host": "Trainer.example:7860"}).status_code == 200


def test_what_changes_something_needs_the_token_and_our_own_origin(page):
    body = {"id": "x", "better": 0}
    assert page.client.post("/api/vote", json=body).status_code == 403
    assert page.client.post("/api/vote", json=body, headers={"x-preftune-token": "guess"}).status_code == 403
    for origin in ("http://evil.example", f"{BASE}.evil.example", "null", "http://["):
        assert page.client.post("/api/vote", json=body, headers={**page.headers, "origin": origin}).status_code == 403
    own = page.client.post("/api/vote", json=body, headers={**page.headers, "origin": BASE})
    assert own.status_code == 400
    assert "not known any more" in own.json()["error"]


def test_a_login_guards_every_path(places):
    page = client(places, login="ann:sésame")
    for path in ("/", "/api/models", "/static/page.js"):
        reply = page.get(path)
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"].startswith("Basic")

    def basic(text):
        return {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    assert page.get("/", headers=basic("ann:sésame")).status_code == 200
    for wrong in (basic("ann:other"), basic("ann"), {"authorization": "Basic %%%"}, {"authorization": "Bearer x"}):
        assert page.get("/", headers=wrong).status_code == 401


def test_every_answer_forbids_what_is_not_ours(page):
    for path in ("/", "/static/page.js", "/api/models", "/nothing"):
        headers = page.client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_a_request_has_a_length_and_a_limit(page):
    large = page.client.post("/api/vote", content=b"x" * (2**20 + 1), headers=page.headers)
    assert large.status_code == 413
    unsaid = page.client.post("/api/vote", content=iter([b"{}"]), headers=page.headers)
    assert unsaid.status_code == 411


def test_a_malformed_request_is_one_line(page):
    reply = page.post("ask", {"question": "", "sides": []})
    assert reply.status_code == 422
    assert "'question'" in reply.json()["error"]
    assert page.client.post("/api/ask", content=b"{", headers=page.headers).status_code == 422
    assert page.get("rows", file="x", rows=0).status_code == 422


@pytest.mark.parametrize("name", ["..", "../..", "/etc", "a/../..", "%2e%2e", ".web"])
def test_a_path_is_no_name(page, places, name):
    (places.runs / ".web").mkdir()
    assert page.get("run", name=name).status_code == 400
    assert page.get("rows", file=f"{places.data[0]}/{name}").status_code == 400
    assert page.get("rows", file=str(places.data[0] / "pairs.jsonl"), model=name).status_code == 400
    assert page.post("ask", {"question": "a", "sides": [{"model": name}]}).status_code == 400


def test_the_files_of_the_page_are_all_that_is_served(page):
    for path in ("../app.py", "%2e%2e/app.py", "/etc/passwd", "index.html/../../app.py", "..%2fapp.py"):
        assert page.client.get(f"/static/{path}").status_code == 404
