import csv
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
import ray
from annotation_site import app, make_candidates, make_chosen, make_evaluation, picture, served
from local_server import free_port
from ray import serve
from sockets import listening, reachable

from hive_ray import storage
from hive_ray.annotation.database import DatabaseError, open_database
from hive_ray.annotation.exports import read_answers
from hive_ray.annotation.people import invite
from hive_ray.cluster.starting import start_ray
from hive_ray.config import Annotation
from hive_ray.files.text_files import parse_json_lines
from hive_ray.images import decode
from hive_ray.reward.rankings import join_annotations, rankings_from_people
from hive_ray.schemas import RANKINGS, to_table
from serve.annotate import AnnotateSettings, prepare, settings_of
from serve.annotate import app as bound
from serve.gallery import REFRESH_INTERVAL_S, Gallery, PictureError

KEYS = iter(f"key number {number}" for number in range(10**6))
HALVED = "odd \ud83d\0"
"""Half an emoji, and what PostgreSQL takes in no text."""
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def run(tmp_path):
    return str(tmp_path / "run")


@pytest.fixture
def site(run, url):
    make_candidates(run, 6)
    with served(app(run, url, people_per_task=2)) as site:
        yield site


def following(client: httpx.Client, holding=()) -> dict | None:
    reply = client.post("/api/next", json={"holding": list(holding)})
    assert reply.status_code == 200, reply.text
    return reply.json()["task"]


def hand_in(client: httpx.Client, task: dict, answer: dict | None = None, **more) -> httpx.Response:
    said = {
        "assignment": task["assignment"], "key": next(KEYS), "seconds": 2, "corrects": task["corrects"],
        "answer": {"ranks": [1, 2, 3, 4]} if answer is None else answer,
    }  # fmt: skip
    return client.post("/api/answers", json=said | more)


def message(reply: httpx.Response) -> str:
    return reply.json()["error"]["message"]


# --- A person's work --------------------------------------------------------------------------------------


def test_a_task_shows_its_pictures_and_not_who_made_them(site):
    client = site.signed_in("Ada")
    task = following(client)
    assert "secret-editor" not in json.dumps(task)
    assert "e0" not in json.dumps(task)  # no ids of edits
    number = int(task["instruction"].removeprefix("make it number "))
    assert client.get(f"/{task['source']}").content == picture(100 * number)
    shown = [client.get(f"/{address}").content for address in task["edits"]]
    assert sorted(shown) == sorted(picture(100 * number + place + 1) for place in range(4))


def test_what_is_exported_is_what_collect_rankings_reads(site, run):
    shutil.rmtree(run + "/candidates")
    candidates = make_candidates(run, 6)
    client = site.signed_in("Ada")
    wanted = {}
    for answer in (
        {"ranks": [2, 1, 1, 3]},
        {"ranks": [1, 1, 1, 1]},
        {"ranks": [1, 1, 1, 1], "none_acceptable": True},
        {"skipped": "odd"},
    ):
        task = following(client)
        number = int(task["instruction"].removeprefix("make it number "))
        pictures = [client.get(f"/{address}").content for address in task["edits"]]
        places = [pictures.index(picture(100 * number + place + 1)) for place in range(4)]
        if "ranks" in answer:
            wanted[f"p{number}"] = [answer["ranks"][place] for place in places]
        assert hand_in(client, task, answer).status_code == 200
    lines = site.signed_in("Boss", "administrator").get("/admin/export/rankings.jsonl").text.splitlines()
    edits_of = {row["prompt_id"]: [edit["edit_id"] for edit in row["edits"]] for row in candidates}
    parsed = parse_json_lines("\n".join(lines).encode(), "rankings.jsonl", objects=True)
    annotations = join_annotations(parsed, edits_of).by_prompt
    rankings = [row for candidate in candidates for row in rankings_from_people(candidate, annotations)]
    assert {row["prompt_id"]: row["ranks"] for row in rankings} == wanted
    assert to_table(rankings, RANKINGS).num_rows == 3
    assert [json.loads(line)["none_acceptable"] for line in lines] == [False, False, True]


def test_a_retried_request_is_confirmed_and_stored_once(site):
    client = site.signed_in("Ada")
    task = following(client)
    first, again = (hand_in(client, task, key="the same key") for _ in range(2))
    assert (first.json()["repeated"], again.json()["repeated"]) == (False, True)
    other = hand_in(client, task)
    assert (other.status_code, other.json()["error"]["reason"]) == (409, "answered")
    assert len(read_answers(site.database)) == 1


def test_undo_and_a_correction_over_http(site):
    client = site.signed_in("Ada")
    task = following(client)
    hand_in(client, task, {"ranks": [4, 3, 2, 1]})
    back = client.post("/api/undo", json={}).json()["task"]
    assert back["answer"] == {"ranks": [4, 3, 2, 1], "none_acceptable": False}
    assert hand_in(client, back, {"ranks": [1, 1, 2, 3]}).status_code == 200
    assert client.post("/api/undo", json={}).json()["task"]["answer"]["ranks"] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        ({"answer": {"ranks": [1, 2, 3]}}, 400, "3 ranks"),
        ({"answer": {"ranks": [1, 2, 2, 9]}}, 400, "leave gaps"),
        ({"answer": {"ranks": [0, 1, 2, 3]}}, 400, "not whole numbers from 1"),
        ({"answer": [1, 2, 3, 4]}, 400, "answer is"),
        ({"answer": {}}, 400, "wanted ranks"),
        ({"key": "short"}, 400, "at least 8 characters"),
        ({"assignment": 999}, 404, "not given to you"),
        ({"assignment": "1"}, 400, "assignment is '1'"),
        ({"seconds": -1}, 400, "seconds is"),
        ({"surprise": 1}, 400, "surprise"),
    ],
)
def test_bad_answers_are_refused_in_words_and_the_task_stays(site, more, status, words):
    client = site.signed_in("Ada")
    task = following(client)
    reply = hand_in(client, task, **more)
    assert (reply.status_code, words in message(reply)) == (status, True), reply.text
    assert following(client)["assignment"] == task["assignment"]


def test_a_task_with_an_unreadable_picture_is_set_aside_and_listed(run, url):
    make_candidates(run, 3, broken=0)
    with served(app(run, url, people_per_task=1)) as site:
        assert following(site.signed_in("Ada"))["instruction"] == "make it number 1"
        boss = site.signed_in("Boss", "administrator")
        assert "edit p0e1 of prompt p0" in boss.get("/api/admin/people").json()["progress"]["broken"][0]
        assert "p0e1" in boss.get("/admin/overview").text


def made_anew(run: str, count: int, **more) -> None:
    """The candidates of the run again, more of them."""
    shutil.rmtree(f"{run}/candidates")
    make_candidates(run, count, **more)


def finished(client: httpx.Client) -> list[str]:
    """Do all tasks that there are for a person; their instructions."""
    done = []
    while (task := following(client)) is not None:
        number = int(task["instruction"].removeprefix("make it number "))
        assert client.get(f"/{task['source']}").content == picture(100 * number)
        assert hand_in(client, task).status_code == 200
        done.append(task["instruction"])
    return done


def test_a_process_finds_what_another_one_has_added_since_it_was_started(run, url):
    make_candidates(run, 2)
    with served(app(run, url)) as older:
        made_anew(run, 5, broken=3)
        with served(app(run, url)) as newer:
            assert finished(older.signed_in("Ada")) == [f"make it number {number}" for number in (0, 1, 2, 4)]
            [broken] = newer.signed_in("Boss", "administrator").get("/api/admin/people").json()["progress"]["broken"]
            assert "edit p3e1 of prompt p3" in broken


def test_a_picture_of_a_task_that_another_process_handed_out_is_found(run, url):
    make_candidates(run, 1)
    with served(app(run, url)) as older:
        made_anew(run, 2)
        with served(app(run, url)) as newer:
            client = newer.signed_in("Ada")
            task = following(client, [following(client)["assignment"]])
            assert task["instruction"] == "make it number 1"
            with httpx.Client(base_url=older.address, cookies=dict(client.cookies)) as other:
                assert other.get(f"/{task['source']}").content == picture(100)


def test_tasks_that_a_process_does_not_know_are_left_to_those_that_do(run, url):
    """More of them than a person may hold leases."""
    make_candidates(run, 7)
    with (
        served(app(run, url, people_per_task=1, num_tasks=2)) as older,
        served(app(run, url, people_per_task=1)) as newer,
    ):
        ada, bea = older.signed_in("Ada"), newer.signed_in("Bea")
        assert finished(ada) == ["make it number 0", "make it number 1"]
        assert following(ada) is None
        assert finished(bea) == [f"make it number {number}" for number in range(2, 7)]
        assert newer.signed_in("Boss", "administrator").get("/api/admin/people").json()["progress"]["broken"] == []


# --- Who may do what --------------------------------------------------------------------------------------


def test_nothing_is_said_to_strangers(site):
    with httpx.Client(base_url=site.address) as stranger:
        for method, path in (
            ("POST", "/api/next"),
            ("GET", "/api/me"),
            ("GET", "/admin/overview"),
            ("GET", "/api/pictures/1/0"),
        ):
            assert stranger.request(method, path, json={} if method == "POST" else None).status_code == 401
        refused = stranger.post("/sign-in", json={"token": "guessed"})
        assert (refused.status_code, "ask the administrator" in message(refused)) == (401, True)
        assert "set-cookie" not in refused.headers


def test_a_persons_pictures_and_answers_are_nobody_elses(site):
    ada, bea = site.signed_in("Ada"), site.signed_in("Bea")
    task = following(ada)
    for path in (task["source"], task["edits"][0]):
        assert bea.get(f"/{path}").status_code == 404
    assert hand_in(bea, task).status_code == 404
    assert bea.post("/api/renew", json={"assignments": [task["assignment"]]}).json() == {"renewed": []}
    hand_in(ada, task)
    assert bea.post("/api/undo", json={}).json()["task"] is None


def test_annotators_are_no_administrators(site):
    ada = site.signed_in("Ada")
    for path in ("/api/admin/people", "/admin/overview", "/admin/export/rankings.jsonl", "/admin/export/answers.csv"):
        assert ada.get(path).status_code == 403
    assert ada.post("/api/admin/invite", json={"name": "Eve", "role": "administrator"}).status_code == 403


def test_changes_need_the_forgery_token_and_come_from_the_page_itself(site):
    client = site.signed_in("Ada")
    token = client.headers.pop("X-Forgery-Token")
    assert client.post("/api/next", json={}).status_code == 403
    client.headers["X-Forgery-Token"] = token[:-1] + "x"
    assert client.post("/api/next", json={}).status_code == 403
    client.headers["X-Forgery-Token"] = token
    assert client.post("/api/next", json={}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post("/sign-in", json={"token": "x"}, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert client.post("/api/next", json={}, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_the_cookie_cannot_be_read_by_scripts_nor_sent_by_other_sites_and_ends_with_signing_out(site):
    client = httpx.Client(base_url=site.address)
    reply = client.post("/sign-in", json={"token": site.link("Ada").split("#")[1]})
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    kept = dict(client.cookies)
    client.post("/sign-out", headers={"X-Forgery-Token": reply.json()["forgery_token"]})
    assert httpx.get(f"{site.address}/api/me", cookies=kept).status_code == 401


def test_the_database_holds_no_token_that_opens_anything(site, url):
    token = site.link("Ada").split("#")[1]
    client = site.signed_in("Bea")
    secrets = (token, client.cookies["hive_ray_session"], client.headers["X-Forgery-Token"])
    rows = site.database.read(
        lambda session: [
            str(list(session.connection().exec_driver_sql(f"SELECT * FROM {name}"))) for name in ("people", "sessions")
        ]
    )
    assert not any(secret in row for secret in secrets for row in rows)


def test_a_new_link_ends_the_old_one(site):
    old, new = (site.link("Ada").split("#")[1] for _ in range(2))
    assert httpx.post(f"{site.address}/sign-in", json={"token": old}).status_code == 401
    assert httpx.post(f"{site.address}/sign-in", json={"token": new}).status_code == 200


def test_an_administrator_pauses_and_invites(site):
    ada, boss = site.signed_in("Ada"), site.signed_in("Boss", "administrator")
    people = {one["name"]: one for one in boss.get("/api/admin/people").json()["people"]}
    boss.post("/api/admin/pause", json={"person": people["Ada"]["id"], "paused": True})
    refused = ada.post("/api/next", json={})
    assert (refused.status_code, refused.json()["error"]["reason"]) == (403, "paused")
    link = boss.post("/api/admin/invite", json={"name": "Cem"}).json()["link"]
    assert httpx.post(f"{site.address}/sign-in", json={"token": link.removeprefix("#")}).json()["name"] == "Cem"
    for bad in ("", "<b>", "x" * 65, "=cmd"):
        assert boss.post("/api/admin/invite", json={"name": bad}).status_code == 400
    assert boss.post("/api/admin/pause", json={"person": people["Boss"]["id"], "paused": True}).status_code == 400


def test_every_answer_carries_the_headers_and_no_page_loads_from_elsewhere(site):
    client = site.signed_in("Boss", "administrator")
    for path in ("/", "/admin", "/admin/overview", "/api/me", "/web/annotate.js", "/nowhere"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "" if path == "/admin/overview" else "x")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
    for path in ("/", "/admin", "/web/annotate.js", "/web/annotate.css", "/web/admin.js"):
        assert "://" not in client.get(path).text
        assert "onclick" not in client.get(path).text
    assert client.get("/web/..%2fannotate.py").status_code == 404


def test_a_huge_request_is_refused(site):
    client = site.signed_in("Ada")
    reply = client.post("/api/next", content=b"x" * 100_000, headers={"Content-Type": "application/json"})
    assert (reply.status_code, "65,536" in message(reply)) == (413, True)


# --- Files ------------------------------------------------------------------------------------------------


def test_the_csv_has_everything_and_starts_no_formula(site):
    client = site.signed_in("Ada")
    hand_in(client, following(client), {"ranks": [1, 1, 2, 3], "none_acceptable": True})
    hand_in(client, following(client), {"skipped": "=1+1"})
    said = {
        "assignment": following(client)["assignment"],
        "key": next(KEYS),
        "seconds": 2,
        "answer": {"skipped": HALVED},
    }
    assert client.post("/api/answers", content=json.dumps(said), headers=JSON).status_code == 200
    text = site.signed_in("Boss", "administrator").get("/admin/export/answers.csv").text
    ranked, skipped, halved = csv.DictReader(io.StringIO(text))
    assert (ranked["annotator"], ranked["none_acceptable"], ranked["editors"].split()[0]) == (
        "Ada",
        "true",
        "secret-editor",
    )
    assert sorted(ranked["ranks"].split()) == ["1", "1", "2", "3"]
    assert (skipped["skipped"], halved["skipped"]) == ("'=1+1", "odd \ufffd\ufffd")


def test_label_studio_gets_tasks_and_gives_results_once(site):
    ada, boss = site.signed_in("Ada"), site.signed_in("Boss", "administrator")
    hand_in(ada, following(ada))
    exported = boss.get("/admin/export/label-studio.json").json()
    assert len(exported) == 6
    whole = {"left_out": 0, "reasons": []}
    assert boss.post("/admin/label-studio", json=exported).json() == {"imported": 0, "known": 1} | whole  # as it went
    exported[0]["annotations"][0] |= {"id": 55, "completed_by": 1}  # as Label Studio gives it back
    ids = [edit["id"] for edit in exported[1]["data"]["edits"]]
    ranker = {"rank_1": [ids[2]], "rank_2": [ids[0], ids[3]], "rank_4": [ids[1]]}
    exported[1]["annotations"] = [
        {"completed_by": 7, "lead_time": 9.5, "result": [{"type": "ranker", "value": {"ranker": ranker}}]},
        {"completed_by": {"email": "bea@example.org"}, "was_cancelled": True, "result": []},
    ]
    for counts in ({"imported": 2, "known": 1}, {"imported": 0, "known": 3}):
        assert boss.post("/admin/label-studio", json=exported).json() == counts | whole
    found = {one.annotator: one.verdict for one in read_answers(site.database)}
    assert found["Label Studio 7"] == {"ranks": [2, 3, 1, 2], "none_acceptable": False}
    assert "skipped" in found["bea@example.org"]


def test_label_studio_shows_pictures_by_addresses_that_are_signed(site):
    boss, stranger = site.signed_in("Boss", "administrator"), httpx.Client()
    data = boss.get("/admin/export/label-studio.json").json()[0]["data"]
    shown = [re.search('src="([^"]+)"', edit["html"])[1].replace("&amp;", "&") for edit in data["edits"]]
    for address, number in zip((data["source_image"], *shown), range(5), strict=True):
        answer = stranger.get(address)  # from another page, signed in nowhere
        assert (answer.content, answer.headers["access-control-allow-origin"]) == (picture(number), "*")
    changes = (shown[0].replace("p0e0", "p0e1"), shown[0].replace("prompt=p0", "prompt=p1"))
    for changed in (*changes, shown[0][:-1] + "x", shown[0][:-1] + "\u00e9"):
        assert stranger.get(changed).status_code == 403
    buckets = boss.get("/admin/export/label-studio.xml").text.count("<Bucket ")
    assert buckets == len(shown)


def test_a_label_studio_file_says_what_is_left_out_and_one_of_another_project_changes_nothing(site):
    boss = site.signed_in("Boss", "administrator")
    exported = boss.get("/admin/export/label-studio.json").json()
    other = [row | {"data": row["data"] | {"hive_ray_project": "other"}} for row in exported]
    reply = boss.post("/admin/label-studio", json=other)
    assert (reply.status_code, "task 0 is of the project 'other'" in message(reply)) == (400, True), reply.text
    assert boss.post("/admin/label-studio", json={"a": 1}).status_code == 400
    assert read_answers(site.database) == []
    buckets = {f"rank_{rank}": [edit["id"]] for rank, edit in enumerate(exported[0]["data"]["edits"], 1)}
    good = {"completed_by": 1, "result": [{"type": "ranker", "value": {"ranker": buckets}}]}
    exported[0]["annotations"] = [good, good | {"completed_by": 2, "lead_time": -1}]
    found = boss.post("/admin/label-studio", json=exported).json()
    assert (found["imported"], found["known"], found["left_out"]) == (1, 0, 1)
    assert found["reasons"] == ["task 0 (p0), annotation 1: lead_time is -1; wanted 0 to 1e+09 seconds"]
    assert len(read_answers(site.database)) == 1


# --- The user study ---------------------------------------------------------------------------------------


def test_a_study_compares_two_editors_blindly_and_says_who_won(run, url):
    for editor in ("sft", "finetuned"):
        make_evaluation(run, editor, 5)
    with served(app(run, url, mode="study", people_per_task=2)) as site:
        for name in ("Ada", "Bea"):
            client = site.signed_in(name)
            while (task := following(client)) is not None:
                number = int(task["instruction"].removeprefix("make it number "))
                pictures = [client.get(f"/{address}").content for address in task["edits"]]
                better = pictures.index(picture(100 * number + 2))  # finetuned's
                preserves = None if name == "Ada" else 1 - better
                assert hand_in(client, task, {"follows": better, "preserves": preserves}).status_code == 200
            assert hand_in(client, {"assignment": 1, "corrects": None}, {"follows": 2, "preserves": 0}).status_code in (
                400,
                404,
            )
        page = site.signed_in("Boss", "administrator").get("/admin/overview").text
        assert "finetuned against sft, 10 answers to 5 prompts" in page
        sides = Counter(one.shown for one in read_answers(site.database))
        assert set(sides) == {(0, 1), (1, 0)}


# --- A database that is away ------------------------------------------------------------------------------


def test_a_locked_database_is_answered_503_and_the_retried_answer_is_stored_once(run, tmp_path, monkeypatch):
    monkeypatch.setattr("hive_ray.annotation.database.TIMEOUT_S", 0.3)
    make_candidates(run, 2)
    with served(app(run, f"sqlite:///{tmp_path / 'a.sqlite'}")) as site:
        client = site.signed_in("Ada")
        task = following(client)
        other = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        reply = hand_in(client, task, key="the same key")
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
        assert reply.json()["error"] == {
            "message": "the database is busy; nothing was lost", "reason": "database_away"
        }  # fmt: skip
        assert client.get("/health").status_code == 503
        other.execute("ROLLBACK")
        other.close()
        assert not hand_in(client, task, key="the same key").json()["repeated"]
        assert hand_in(client, task, key="the same key").json()["repeated"]
        assert len(read_answers(site.database)) == 1


def test_nothing_that_was_acknowledged_is_lost_when_postgresql_is_killed(run, postgres):
    make_candidates(run, 30)
    with served(app(run, postgres.make("acknowledged"), people_per_task=1)) as site:
        clients = [site.signed_in(f"Person {number}") for number in range(4)]
        acknowledged, stop = [], threading.Event()

        def work(client: httpx.Client) -> None:
            while not stop.is_set():
                reply = client.post("/api/next", json={})
                if reply.status_code == 503:
                    time.sleep(0.05)
                    continue
                task = reply.json()["task"]
                if task is None:
                    return
                said = {
                    "assignment": task["assignment"],
                    "key": next(KEYS),
                    "answer": {"ranks": [1, 2, 3, 4]},
                    "seconds": 1,
                }
                while (reply := client.post("/api/answers", json=said)).status_code == 503:
                    time.sleep(0.05)
                acknowledged.append(reply.json()["stored"])

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        postgres.stop()
        time.sleep(0.3)
        postgres.start()
        for thread in threads:
            thread.join(60)
        stop.set()
        assert len(acknowledged) == len(set(acknowledged)) == len(read_answers(site.database)) == 30


# --- Many people ------------------------------------------------------------------------------------------


def test_fifty_people_at_once_lose_and_double_nothing(run, url):
    """Each asks ahead as the page does, and sends every answer twice."""
    make_candidates(run, 40, num_edits=3)
    with served(app(run, url, people_per_task=5)) as site:
        clients = [site.signed_in(f"Person {number}") for number in range(50)]
        acknowledged, errors = Counter(), []

        def work(client: httpx.Client, name: str) -> None:
            try:
                task = following(client)
                while task is not None:
                    ahead = following(client, [task["assignment"]])
                    key = next(KEYS)
                    replies = [hand_in(client, task, {"ranks": [2, 1, 1]}, key=key) for _ in range(2)]
                    assert [reply.status_code for reply in replies] == [200, 200]
                    acknowledged[task["instruction"], name] += 1
                    task = ahead
            except Exception as error:
                errors.append(error)

        threads = [
            threading.Thread(target=work, args=(client, f"Person {number}")) for number, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        stored = Counter((one.instruction, one.annotator) for one in read_answers(site.database))
        assert stored == acknowledged
        assert max(stored.values()) == 1
        assert set(Counter(instruction for instruction, _ in stored).values()) == {5}
        for client in clients:
            client.close()


# --- The run folder ---------------------------------------------------------------------------------------


def test_pictures_of_an_s3_run_are_read_when_they_are_looked_at(root, tmp_path):
    make_candidates(root, 70)
    gallery = Gallery(root, Annotation(cache_megabytes=1))
    assert len(gallery.prompts) == 70
    assert len(gallery.catalogue.cache.rows) == 0
    assert gallery.edit("p65", "p65e2") == picture(6503)
    assert gallery.source("p3") == picture(300)
    assert decode(gallery.edit("p65", "unchanged:p65")).shape == (16, 16, 3)
    assert gallery.unreadable("p3", ["p3e0", "another:p9"]) == ""
    with pytest.raises(PictureError, match="has no edit p4e0"):
        gallery.unreadable("p3", ["p4e0"])


def test_a_gallery_looks_at_the_tables_again_for_what_it_does_not_know_but_not_all_the_time(tmp_path):
    now, run = [0.0], str(tmp_path)
    make_candidates(run, 2)
    gallery = Gallery(run, Annotation(), lambda: now[0])
    made_anew(run, 3)
    assert gallery.source("p2") == picture(200)  # nobody had looked before
    made_anew(run, 4)
    with pytest.raises(PictureError, match="prompt p3 is not in the tables"):
        gallery.source("p3")
    now[0] += REFRESH_INTERVAL_S
    manifest = tmp_path / "candidates" / "manifest.json"
    manifest.rename(tmp_path / "aside")
    with pytest.raises(PictureError):  # the table is being made
        gallery.source("p3")
    assert gallery.source("p0") == picture(0)
    (tmp_path / "aside").rename(manifest)
    now[0] += REFRESH_INTERVAL_S
    assert gallery.edit("p3", "p3e1") == picture(302)
    assert len(gallery.prompts) == 4


# --- Chosen prompts ---------------------------------------------------------------------------------------


def all_of(client: httpx.Client) -> list[str]:
    """The numbers of the prompts that a person gets, in their order."""
    numbers = []
    while (task := following(client)) is not None:
        numbers.append(task["instruction"].removeprefix("make it number "))
        assert hand_in(client, task).status_code == 200
    return numbers


def test_people_get_the_chosen_prompts_in_their_order_and_no_others(run, url):
    make_candidates(run, 40)
    make_chosen(run, 33, 5, 21)
    with served(app(run, url)) as site:
        client = site.signed_in("Ada")
        task = following(client)
        assert client.get(f"/{task['source']}").content == picture(3300)
        assert all_of(client) == ["33", "5", "21"]


def test_the_first_places_count_where_there_are_fewer_tasks(run):
    make_candidates(run, 40)
    make_chosen(run, 33, 5, 21)
    gallery = Gallery(run, Annotation(num_tasks=2))
    assert [prompt.prompt_id for prompt in gallery.prompts] == ["p33", "p5"]
    assert gallery.edit("p39", "p39e2") == picture(3903)  # of another's task of known answer


def test_a_choice_that_is_made_later_changes_what_people_get_and_keeps_what_they_said(run, url):
    make_candidates(run, 6)
    with served(app(run, url)) as site:
        client = site.signed_in("Ada")
        hand_in(client, following(client))
    make_chosen(run, 4, 0, 2)
    with served(app(run, url)) as site:
        assert all_of(site.signed_in("Ada")) == ["4", "2"]
        assert [one.prompt_id for one in read_answers(site.database)] == ["p4", "p0", "p2"]


def test_a_choice_is_about_the_candidates_that_it_was_made_from(run):
    make_candidates(run, 6)
    make_chosen(run, 4, 0, 2)
    Path(run, "candidates").rename(Path(run, "other"))
    assert len(Gallery(run, Annotation(candidates="other")).prompts) == 6
    make_candidates(run, 7)
    with pytest.raises(ValueError, match="was chosen from other candidates"):
        Gallery(run, Annotation())


def test_a_gallery_that_runs_looks_at_a_choice_that_was_made_since(run):
    make_candidates(run, 6)
    gallery = Gallery(run, Annotation())
    assert (gallery.catalogue.is_current, gallery.probabilities) == (True, {})
    make_chosen(run, 4, 0, 2, probability=0.5)
    assert not gallery.catalogue.is_current


def test_the_overview_estimates_over_all_prompts_where_the_chosen_ones_stand_for_all(run, url):
    make_candidates(run, 6)
    make_chosen(run, 4, 0, 2, probability=0.5)
    with served(app(run, url, people_per_task=1)) as site:
        all_of(site.signed_in("Ada"))
        page = site.signed_in("Boss", "administrator").get("/admin/overview").text
        assert "0% of pairs are ties, an estimated 0% over all prompts" in page
    shutil.rmtree(f"{run}/chosen")
    make_chosen(run, 4, 0, 2)  # of the other three none could be chosen
    assert Gallery(run, Annotation()).probabilities == {}


def test_the_cache_keeps_to_its_bytes(tmp_path):
    make_candidates(str(tmp_path), 70, side=100)  # about 150 kB a row
    gallery = Gallery(str(tmp_path), Annotation(cache_megabytes=1))
    for number in (0, 40, 69, 3, 3, 40):
        assert gallery.source(f"p{number}") == picture(100 * number, 100)
        cache = gallery.catalogue.cache
        kept = [image for row in cache.rows.values() for image in row.values()]
        assert cache.held == sum(map(len, kept)) <= 2**20
        assert kept


def test_preparing_again_keeps_everything(run, tmp_path):
    make_candidates(run, 12)
    settings = Annotation()
    for _ in range(2):
        database, gallery = prepare(run, settings)
        assert len(gallery.prompts) == 12
        with database.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM tasks").scalar() == 22
        assert (tmp_path / "run" / "annotation.sqlite").exists()
        database.close()


# --- How it is started ------------------------------------------------------------------------------------


@pytest.fixture
def command(run):
    """`python -m serve.annotate` on a free port; what it printed until the links were there."""
    make_candidates(run, 3)
    port = free_port()
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.annotate", "--run", run, "--port", str(port), "--people-per-task", "3"],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    while "replace those" not in "".join(lines):
        line = process.stdout.readline()
        assert line, "".join(lines)
        lines.append(line)
    yield "".join(lines)
    process.terminate()
    process.wait(30)


def test_the_command_prints_a_link_for_each_role_and_serves(command):
    links = dict(re.findall(r"^(administrator|annotator)\s+(http\S+)$", command, re.MULTILINE))
    for role, link in links.items():
        address, token = link.split("#")
        assert address.endswith("/admin") == (role == "administrator")
        root = address.removesuffix("admin").rstrip("/")
        for _ in range(100):
            try:
                reply = httpx.post(f"{root}/sign-in", json={"token": token})
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert reply.json()["role"] == role
    assert set(links) == {"administrator", "annotator"}
    assert "3 prompts and 3 tasks of known answer" in command


def test_the_settings_of_the_run_count_and_a_run_on_s3_needs_a_database(run):
    storage.write_text(f"{run}/config.yaml", "annotation: {people_per_task: 5, mode: study}\n")
    assert settings_of(run) == {"people_per_task": 5, "mode": "study"}
    with pytest.raises(DatabaseError, match="say where the database is"):
        open_database("s3://bucket/run", Annotation())


@pytest.mark.ray
def test_it_runs_on_ray_serve(run):
    make_candidates(run, 3)
    before = dict(os.environ)
    os.environ |= {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300"}
    port = free_port()
    try:
        start_ray(num_cpus=2)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(bound(AnnotateSettings(run=run, gold="", repeat_rate=0.0)))
        database = open_database(run, Annotation())
        token = invite(database, "Ada")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.headers["X-Forgery-Token"] = client.post("/sign-in", json={"token": token}).json()["forgery_token"]
            task = following(client)
            assert client.get(f"/{task['source']}").headers["content-type"] == "image/png"
            assert hand_in(client, task).status_code == 200
            assert "frame-ancestors 'none'" in client.get("/").headers["content-security-policy"]
        assert len(read_answers(database)) == 1
        database.close()
        assert reachable(listening(os.getpid())) == {}
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
