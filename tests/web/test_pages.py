"""What each page shows, and to whom."""

import csv
import html
import io
import re
from datetime import timedelta
from urllib.parse import urlencode

import pytest
from sqlalchemy import event, select, text

from featurewatch.service.alerts import queries as alerts
from featurewatch.service.auth import logic as auth
from featurewatch.service.families import logic as families
from featurewatch.service.features import logic
from featurewatch.service.kit.db import Database
from featurewatch.service.models import Alert, Checkpoint, DependencyGraph
from featurewatch.service.verdicts.statuses import PLACES_CHANGED, Status
from featurewatch.service.web import lists, site
from featurewatch.service.web.plots import as_csv, csv_text
from featurewatch.service.web.render import FOLDER
from featurewatch.service.web.routes import families as family_pages
from tests.web.conftest import Installation
from tests.web.filled import FAMILY, HOSTILE

HERE = f"/families/{FAMILY}"
PAGES = {
    "/families": "v10",
    HERE: "Lineage",
    "/families/empty": "featurewatch checkpoint register empty v1",
    "/families/live": "No checkpoint has been judged yet",
    "/families/live/checkpoints/v1": "Run state: running",
    "/families/live/checkpoints/v2": "This checkpoint could not be judged",
    f"{HERE}/checkpoints/v10": "against",
    f"{HERE}/checkpoints/v10?baseline=v2": "v2",
    f"{HERE}/checkpoints/v0": "first checkpoint of its lineage",
    f"{HERE}/features": "F45",
    f"{HERE}/features?status=suppressed&q=&tag=&sort=q_value": "suppressed",
    f"{HERE}/features/F1": "Rewired",
    f"{HERE}/features/F73": "F448",
    f"{HERE}/features/F448": "carries 90% of its activation",
    f"{HERE}/diff": "How features changed",
    f"{HERE}/diff?from=v3&to=v10": "F73 by F448",
    "/families/empty/diff": "You need two judged checkpoints to compare",
    "/families/empty/features": "No features yet",
    f"{HERE}/signatures": "concept-0",
    "/families/empty/signatures": "featurewatch signature create empty",
    f"{HERE}/signatures/concept-0": "AUROC",
    "/runs": "onboard",
    "/runs?family=live&state=running": "harvest",
    "/runs/run_running": "42%",
    "/runs/run_failed": "it needs 3.2 GiB, and 1.5 are free",
    "/runs/run_failed?level=error": "the worker stopped responding",
    "/runs/run_cancelled": "No log: no worker started this run",
    "/runs/run_queued": "Log lines appear when a worker",
    "/alerts": "F1 changes",
    "/alerts?state=resolved&family=empty": "There are no resolved alerts",
    "/alerts/alt_0": "Evidence",
    "/webhooks": "ci.example.com",
}
"""Path -> text that the page must contain."""
WRITES = (
    ">Acknowledge<",
    ">Watch<",
    ">Watched<",
    ">Save<",
    ">Create rule<",
    ">Create webhook<",
    ">Send a test event<",
    ">Retry<",
)


@pytest.fixture(scope="module")
def reader(filled: Installation):
    return filled.browser("read")


@pytest.fixture(scope="module")
def writer(filled: Installation):
    return filled.browser("write")


@pytest.mark.parametrize("path", PAGES)
def test_every_page_exists_and_is_safe(reader, path: str) -> None:
    answer = reader.get(path)
    text = answer.text
    assert answer.status_code == 200, text
    assert PAGES[path] in html.unescape(text)
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)", text), "an inline script, which the policy forbids"
    assert not re.search(r"<[^>]*\s(style|on[a-z]+)=", text), "an attribute that the policy forbids"
    outside = re.findall(r'(?:src|href|action)="(https?:[^"]*|//[^"]*)"', text)
    assert not outside, "pages load nothing from other servers"
    assert HOSTILE not in text and "<b>" not in re.sub(r"<b>[^<]*</b>", "", text)
    assert not any(word in text for word in WRITES), "a reader sees no write buttons"
    assert text.count('method="post"') == 1, "only the sign-out form"
    assert not re.search(r'<script[^>]* src="[^"]*echarts', text), "ECharts must load lazily"
    for name in set(re.findall(r'"/static/([^"?]+)\?', text)):
        assert (FOLDER / "static" / name).is_file()


def test_hostile_text_is_escaped(reader, writer) -> None:
    escaped = html.escape(HOSTILE, quote=False)
    for path in (f"{HERE}/features/F1", f"{HERE}/features", "/alerts", f"{HERE}/checkpoints/v10"):
        assert escaped.replace("'", "&#39;").replace('"', "&#34;") in reader.page(path), path
    assert f'value="{html.escape(HOSTILE).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")}"' in writer.page(
        f"{HERE}/features/F1"
    )


def test_dependencies_are_compared_in_any_order_of_discovery(filled, reader) -> None:
    """As in the guide: the newest checkpoint is examined first, then its parent."""
    with filled.database.write() as session:
        graphs = {one.checkpoint_id: one for one in session.scalars(select(DependencyGraph))}
        newest = max(graphs.values(), key=lambda one: one.created_at)
        newest.created_at = min(one.created_at for one in graphs.values()) - timedelta(days=1)
        now = session.get_one(Checkpoint, newest.checkpoint_id).name
    text = reader.page(f"{HERE}/features/F1")
    assert f"<h3>Now: {now}</h3>" in text and "<b>Rewired</b>" in text
    turned = reader.page(f"{HERE}/features/F1?now=v8")
    assert "<h3>Now: v8</h3>" in turned and "No ancestor has been examined" in turned


def test_a_writer_sees_write_buttons_and_an_administrator_the_keys(filled, writer) -> None:
    assert "Watched</button>" in writer.page(f"{HERE}/features/F1")
    assert "Create rule" in writer.page("/alerts")
    assert 'href="/keys"' not in writer.page("/families")
    refused = writer.get("/keys")
    assert refused.status_code == 403 and "scope `admin`" in html.unescape(refused.text)
    assert "Create key" in filled.browser("admin").page("/keys")


def test_features_are_chosen_by_their_places(reader) -> None:
    text = reader.page(f"{HERE}/features")
    assert 'name="places" value="displaced"' in text and 'value="same" data-submit>' in text
    for path in (f"{HERE}/features?places=broadened", f"{HERE}/diff?from=v8&to=v10&places=broadened"):
        text = reader.page(path)
        assert re.findall(r'class="id" href="[^"]*">(F\d+)<', text.partition("data-rows")[2]) == ["F1"], path
        assert 'value="broadened" data-submit checked' in text
    report = reader.page(f"{HERE}/checkpoints/v10")
    assert (
        f'<a href="{HERE}/features?checkpoint=v10&amp;baseline=v8&amp;places=displaced"><span class="status c-violet">'
        in report
    )
    listed = list(csv.DictReader(io.StringIO(reader.get(f"{HERE}/features?csv=features&places=narrowed").text)))
    assert [(row["feature"], row["places"], row["lost share"]) for row in listed] == [("F2", "narrowed", "0.7")]


def test_a_feature_says_where_it_is_active(reader) -> None:
    section = reader.page(f"{HERE}/features/F1").partition('<section id="places">')[2].partition("</section>")[0]
    said = html.unescape(re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", section)))
    assert "v10 against v8 + broadened Firing rate" in said
    before, now = re.search(r"([\d.]+)% before, ([\d.]+)% now", said).groups()
    assert float(now) == pytest.approx(3 * float(before), rel=0.01)
    assert "Ratio 3.00 2.70 to 3.30" in said
    assert "Gained share 190% 171% to 209% Lost share 2% 1.8% to 2.2% Kept amplitude 98% 95% to 101%" in said
    rates = list(csv.DictReader(io.StringIO(reader.get(f"{HERE}/features/F1?csv=firing-rate").text)))
    assert [row["checkpoint"] for row in rates] == [f"v{number}" for number in range(11)]
    assert (rates[-1]["places"], f"{float(rates[-1]['firing rate in %']):.3g}") == ("broadened", now)
    assert "Not compared in v10: the feature is new, gone" in html.unescape(reader.page(f"{HERE}/features/F73"))


def test_pages_of_the_list_do_not_overlap(reader) -> None:
    """Every feature exactly once, by following the links for htmx and for readers without scripts."""
    path, seen = f"{HERE}/features?sort=id&limit=200", []
    while path:
        answer = reader.get(path, headers={"hx-request": "true"} if seen else {})
        seen += re.findall(r'class="id" href="[^"]*">(F\d+)<', answer.text)
        if len(seen) > 200:
            assert "<html" not in answer.text, "a fragment is not a whole page"
        following = re.search(r'hx-get="([^"]+)"', answer.text)
        path = html.unescape(following[1]) if following else ""
    assert len(seen) == len(set(seen)) == 544


def test_checkpoints_load_newest_first_and_in_pieces(reader, monkeypatch) -> None:
    monkeypatch.setattr(family_pages, "ROWS_PER_PAGE", 4)
    whole = reader.get(HERE).text
    pieces, names, path = [whole[whole.index("Checkpoints, newest first") :]], list[str](), HERE
    while following := re.search(r'hx-get="([^"]*)"', pieces[-1]):
        path = HERE + html.unescape(following[1])
        pieces.append(reader.get(path, headers={"hx-request": "true"}).text)
    for piece in pieces:
        names += re.findall(r'class="id" href="[^"]*/checkpoints/([^"]*)"', piece)
    assert names == [f"v{number}" for number in range(10, -1, -1)]
    assert "suppressed" in pieces[1], "later pieces show changes too"
    assert "Lineage" not in pieces[1]
    assert "Lineage" in reader.get(path).text, "without scripts it is a whole page"
    assert reader.get(f"{HERE}?older_than=nothing").status_code == 404


def test_the_data_of_a_plot_is_a_csv_file(reader) -> None:
    for page, name, columns in (
        (HERE, "lineage", "parent"),
        (HERE, "changes", "absent"),
        (HERE, "features", "v10"),
        (HERE, "quality", "FVU"),
        (f"{HERE}/features/F1", "trajectory", "projection ratio"),
        (f"{HERE}/features/F1", "readability", "resid_post.12"),
        (f"{HERE}/diff?from=v3&to=v10", "flow", "features"),
        (f"{HERE}/checkpoints/v10", "changes", "successors"),
        (f"{HERE}/signatures/concept-0", "strength", "change"),
    ):
        link = re.search(rf'href="([^"]*csv={name}[^"]*)"', reader.page(page))
        assert link, f"{page} has no download of {name}"
        answer = reader.get(html.unescape(link[1]))
        assert answer.headers["content-type"].startswith("text/csv")
        assert f'filename="{name}.csv"' in answer.headers["content-disposition"]
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert columns in rows[0], f"{name} has {list(rows[0])}"
    missing = reader.get(f"{HERE}?csv=nothing")
    assert missing.status_code == 404 and "no plot &#39;nothing&#39;" in missing.text
    course = reader.client.get(
        f"/v1{HERE}/features/F73/trajectory", headers={"authorization": f"Bearer {reader.key}"}
    ).json()["points"]
    rows = list(csv.DictReader(io.StringIO(reader.get(f"{HERE}/features/F73?csv=trajectory").text)))
    assert [float(row["projection ratio"]) for row in rows] == [point["projection_ratio"] for point in course]


def test_text_never_becomes_a_formula() -> None:
    text = as_csv("x", ["=name"], [["=HYPERLINK(1)"], ["@a"], [-1.5], ['say "hi"\n']]).body
    rows = list(csv.reader(io.StringIO(bytes(text).decode())))
    assert rows == [["'=name"], ["'=HYPERLINK(1)"], ["'@a"], ["-1.5"], ['say "hi"\n']]


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
@pytest.mark.parametrize(
    "before", ["", " ", "  ", "\t", "\r", "\n", "\r\n ", "\xa0", "\u3000", "\u200b", "\ufeff", "\x00"]
)
def test_every_spelling_of_a_formula_is_escaped(before: str, sign: str) -> None:
    cell = f"{before}{sign}HYPERLINK(1)"
    assert next(csv.reader(io.StringIO(csv_text([[cell]]), newline="")))[0] == f"'{cell}"
    assert next(csv.reader(io.StringIO(csv_text([[f"a{cell}"]]), newline="")))[0] == f"a{cell}"


@pytest.mark.parametrize("at_once", [64, 1000])
def test_a_full_list_is_a_csv_file(reader, monkeypatch, at_once: int) -> None:
    """All matching rows in the order of the list, for stored and compared verdicts, with the numbers of the API."""
    monkeypatch.setattr(lists, "ROWS_PER_PIECE", at_once)
    for query in (
        "features?sort=id",
        "features?checkpoint=v9&tag=safety&status=present",
        "features?baseline=v2&sort=firings",
        "diff?from=v3&to=v10&status=replaced",
        "diff?from=v3&to=v10",
    ):
        link = re.search(r'<a download href="([^"]*csv=features[^"]*)"', reader.page(f"{HERE}/{query}&limit=12"))
        assert link, query
        answer = reader.get(html.unescape(link[1]))
        assert answer.headers["content-type"].startswith("text/csv")
        assert 'filename="features.csv"' in answer.headers["content-disposition"]
        rows, wanted = list(csv.DictReader(io.StringIO(answer.text))), _all(reader, f"/v1{HERE}/{query}&limit=500")
        assert [row["feature"] for row in rows] == [row["id"] for row in wanted] and rows
        for row, one in zip(rows, wanted, strict=True):
            assert (row["checkpoint"], row["against"]) == (one["checkpoint"], one["baseline"])
            assert row["projection ratio"] == ("" if one["projection_ratio"] is None else str(one["projection_ratio"]))
            assert row["successors"] == " ".join(successor["id"] for successor in one["successors"])
    assert reader.get(f"{HERE}/features?checkpoint=none&csv=features").status_code == 404
    assert len(reader.page(f"{HERE}/features?q=nowhere&csv=features").splitlines()) == 1


def _all(reader, path: str) -> list[dict]:
    headers, rows = {"authorization": f"Bearer {reader.key}"}, []
    while path:
        answer = reader.client.get(path, headers=headers)
        rows += answer.json()["data"]
        path = answer.links.get("next", {}).get("url", "")
    return rows


def test_a_full_list_contains_no_formulas(filled, reader) -> None:
    with filled.database.write() as session:
        logic.get(session, families.get(session, FAMILY), "F7").label = "=HYPERLINK(1)"
    answer = reader.get(f"{HERE}/features?q=F7&csv=features")
    assert next(csv.DictReader(io.StringIO(answer.text)))["label"] == "'=HYPERLINK(1)"


def test_a_full_list_is_streamed(filled, reader, monkeypatch) -> None:
    """It holds neither the list nor a connection: each piece is read when the one before has been sent."""
    monkeypatch.setattr(lists, "ROWS_PER_PIECE", 100)
    pieces, engine = [], filled.database.reader
    make = lists.csv_text

    def record(rows) -> str:
        pieces.append(make(rows))
        return pieces[-1]

    monkeypatch.setattr(lists, "csv_text", record)
    answer = reader.get(f"{HERE}/features?csv=features")
    assert [len(list(csv.reader(io.StringIO(piece)))) for piece in pieces] == [1, 100, 100, 100, 100, 100, 44]
    assert answer.text == "".join(pieces) and engine.pool.checkedout() == 0


def test_the_heat_map_agrees_with_reports(reader) -> None:
    _heat_map_agrees(reader)


def test_pages_on_postgres(on_postgres) -> None:
    reader = on_postgres.browser("read")
    _heat_map_agrees(reader)
    for path in (path for path in PAGES if "F73" not in path and "F448" not in path):
        assert reader.get(path).status_code == 200, path


def _heat_map_agrees(reader) -> None:
    rows = list(csv.DictReader(io.StringIO(reader.get(f"{HERE}?csv=changes").text)))
    assert [row["checkpoint"] for row in rows] == [f"v{number}" for number in range(11)]
    for row in rows[1:]:
        report = reader.get(f"{HERE}/checkpoints/{row['checkpoint']}?format=json").json()
        changed = sum(int(row[name]) for name in row if name not in ("checkpoint", "indeterminate"))
        words = {"status": [word for word in Status if not word.row.changed], "places": PLACES_CHANGED}
        query = urlencode({"csv": "features", "checkpoint": row["checkpoint"]} | words, doseq=True)
        listed = reader.get(f"{HERE}/features?{query}").text
        assert changed + len(listed.splitlines()) - 1 == report["changed"], row
        assert int(row["indeterminate"]) == report["counts"]["indeterminate"]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/features",
        "/features/F1",
        "/diff?from=v3&to=v10",
        "/signatures",
        "/signatures/concept-0",
        "/checkpoints/v10",
    ],
)
@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_request_looks_up_its_family_once(filled: Installation, reader, prefix: str, path: str) -> None:
    statements = list[str]()

    def record(_connection, _cursor, statement: str, *_: object) -> None:
        statements.append(statement)

    event.listen(filled.database.reader, "before_cursor_execute", record)
    try:
        headers = {"authorization": f"Bearer {reader.key}", "accept": "text/html" if not prefix else "*/*"}
        assert reader.client.get(f"{prefix}{HERE}{path}", headers=headers).status_code == 200
    finally:
        event.remove(filled.database.reader, "before_cursor_execute", record)
    assert len([sql for sql in statements if "WHERE family.name" in sql]) == 1, statements


def test_passages_are_shaded_by_activation(reader) -> None:
    """F73 fires on one word, which is shaded everywhere; the strongest passage is first and darkest."""
    found = re.findall(r'<span class="s(\d)" title="([\d.]+)">([^<]+)</span>', reader.page(f"{HERE}/features/F73"))
    assert found[0][0] == "8" and float(found[0][1]) == max(float(one[1]) for one in found)
    assert {one[2].strip(",.").lower() for one in found if int(one[0]) >= 3} == {"default"}


def test_problems_are_pages_in_browsers_and_documents_elsewhere(reader) -> None:
    missing = reader.get("/families/none")
    assert missing.status_code == 404 and "There is no family none." in missing.text and "<nav" in missing.text
    assert reader.get("/nowhere").status_code == 404
    assert "larger" not in reader.get(f"{HERE}/features?min_change=x").text
    wrong = reader.get(f"{HERE}/features?sort=nothing")
    assert wrong.status_code == 422 and "sort" in wrong.text
    api = reader.client.get(
        "/v1/families/none", headers={"accept": "text/html", "authorization": f"Bearer {reader.key}"}
    )
    assert api.headers["content-type"] == "application/problem+json"


def test_internal_errors_are_pages_in_browsers(filled, reader, monkeypatch) -> None:
    """Wherever the error occurs, with the request ID of the log; a document for other clients and under `/v1`."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the secret is forty-two")

    monkeypatch.setattr(logic, "get", broken)
    answer = reader.get(f"{HERE}/features/F1")
    assert answer.status_code == 500 and "<nav" in answer.text and "forty-two" not in answer.text
    assert answer.headers["x-request-id"] in answer.text and "try again" in answer.text
    assert "unsafe" not in answer.headers["content-security-policy"]
    document = reader.client.get(f"{HERE}/features/F1")
    assert document.status_code == 500 and document.json()["code"] == "internal-error"
    headers = {"accept": "text/html", "authorization": f"Bearer {reader.key}"}
    assert reader.client.get(f"/v1{HERE}/features/F1", headers=headers).json()["code"] == "internal-error"
    monkeypatch.setattr(auth, "returning", broken)
    early = reader.get(HERE)
    assert early.status_code == 500 and "<h1>Internal error</h1>" in early.text
    assert "set-cookie" not in early.headers, "the session must survive"
    monkeypatch.setattr(site, "problem_page", broken)
    last = reader.get(HERE)
    assert last.status_code == 500 and last.json()["code"] == "internal-error"


def test_early_rejections_are_pages_in_browsers(reader, writer) -> None:
    long = writer.send(f"{HERE}/features/F2", {"label": "x" * 1_100_000})
    assert long.status_code == 413 and "<h1>Request body too large</h1>" in long.text
    nul = reader.get(f"{HERE}/features?q=%00")
    assert nul.status_code == 422 and "<h1>" in nul.text and nul.headers["x-request-id"] in nul.text


def test_every_page_shows_the_number_of_open_alerts(filled, reader) -> None:
    with filled.database.read() as session:
        number = len(session.scalars(select(Alert).where(Alert.state == "open")).all())
    assert number
    link = f'Alerts <span class="waiting">{number}<span class="sr"> open</span></span></a>'
    for path in ("/families", HERE, "/alerts?state=resolved", "/families/none", "/nowhere"):
        assert link in reader.get(path).text, path
    assert "waiting" not in filled.browser(None).page("/login")
    assert "waiting" not in filled.browser(None).get("/nowhere").text, "not shown to the unauthenticated"


def test_open_alerts_are_counted_with_an_index(database: Database) -> None:
    statement = str(alerts.COUNT_OPEN.compile(database.reader, compile_kwargs={"literal_binds": True}))
    with database.write() as session:
        if not database.is_sqlite:  # it would rather scan an empty table
            session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = session.execute(text(f"EXPLAIN {'QUERY PLAN ' if database.is_sqlite else ''}{statement}")).all()
    assert "uq_alert_unresolved" in str(plan)


def test_static_files_are_cached_forever(reader) -> None:
    """Their URLs change with their content. Every vendored file has a licence."""
    sheet = re.search(r'href="(/static/page\.css\?\w+)"', reader.page("/families"))
    assert sheet and "immutable" in reader.client.get(sheet[1]).headers["cache-control"]
    assert reader.client.post(sheet[1]).status_code == 405
    for address in ("/static/page.css", "/static/page.css?other"):
        assert "immutable" not in reader.client.get(address).headers.get("cache-control", "")
    vendored = {path.name.partition("-")[0] for path in (FOLDER / "static/vendor").glob("*.js")}
    assert vendored == {path.name.partition("-")[0] for path in (FOLDER / "static/vendor").glob("*LICENSE.txt")}
