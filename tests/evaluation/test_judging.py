"""`eval.judge` against a server of the tests."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ftcli.cli import run
from ftcli.config.evaluation import Judge
from ftcli.errors import DataError, MachineError
from ftcli.evaluation.scorers.judge import JudgeScorer, Label, agreement, read_labels
from ftcli.evaluation.scorers.scorer import Question
from tests.commands.test_end_to_end import ask

Reply = tuple[int, str, dict[str, str]]
SLEEP = "ftcli.evaluation.scorers.judge.time.sleep"
QUESTION = Question("Facts: olive", "", "Facts: olive")


class Server(ThreadingHTTPServer):
    """Answers each request by `reply(body) -> status, content, headers`, and keeps all bodies."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply = reply
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        status, content, headers = self.server.reply(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if status == 200:
            choice = {"message": {"role": "assistant", "content": content}}
            with suppress(BrokenPipeError):  # of a question that was given up
                self.wfile.write(json.dumps({"choices": [choice]}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[dict[str, Any]], Reply]], Server]]:
    servers: list[Server] = []

    def started(reply: Callable[[dict[str, Any]], Reply]) -> Server:
        server = Server(reply)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits are recorded, not waited."""
    found: list[float] = []
    monkeypatch.setattr(SLEEP, found.append)
    return found


def by_colour(body: dict[str, Any]) -> Reply:
    """Teal is not supported."""
    text = body["messages"][1]["content"].partition("Answer:")[2]
    if "teal" in text:
        return 200, 'Sure: {"supported": false, "quote": "teal"}', {}
    return 200, '{"supported": true, "quote": ""}', {}


def scorer(server: Server, folder: Path, **keys: Any) -> JudgeScorer:
    return JudgeScorer(Judge(url=server.url, model="m", **keys), folder)


def verdicts(judge: JudgeScorer, *answers: str) -> list[bool | None]:
    judge.fetch([judge.supported_request(each, QUESTION) for each in answers], lambda _: None)
    return [judge.verdict(each, QUESTION) for each in answers]


def test_one_request_per_answer_with_its_facts(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-123")
    server = serve(by_colour)
    judge = scorer(server, tmp_path, rubric="Only colours count.", api_key_env="MY_KEY")
    assert verdicts(judge, "olive", "teal cup") == [True, False]
    assert set(server.keys) == {"Bearer sk-123"}
    body = server.bodies[0]
    assert body["model"] == "m" and body["temperature"] == 0
    assert "Only colours count." in body["messages"][0]["content"]
    assert "Facts: olive" in body["messages"][1]["content"]
    (finding,) = judge.score("teal cup", QUESTION).findings
    assert (finding.start, finding.end) == (0, 4)
    assert judge.score("olive", QUESTION).counts == {"judge_supported": (1.0, 1.0)}
    # Stored by content: nothing is asked twice, even in another evaluation.
    asked = len(server.bodies)
    assert verdicts(scorer(server, tmp_path, rubric="Only colours count."), "teal cup") == [False]
    assert len(server.bodies) == asked
    assert verdicts(scorer(server, tmp_path), "teal cup") == [False]
    assert len(server.bodies) == asked + 1


def test_a_busy_server_is_asked_again(serve: Any, tmp_path: Path, waits: list[float]) -> None:
    replies = iter([(429, "", {"Retry-After": "7"}), (503, "", {})])

    def busy(body: dict[str, Any]) -> Reply:
        return next(replies, None) or by_colour(body)

    assert verdicts(scorer(serve(busy), tmp_path), "olive") == [True]
    assert waits == [7.0, 2.0]


def test_a_slow_server_is_asked_again(serve: Any, tmp_path: Path, waits: list[float]) -> None:
    gone = threading.Event()
    slow = iter([True])

    def late(body: dict[str, Any]) -> Reply:
        if next(slow, False):
            gone.wait(2)
        return by_colour(body)

    judge = scorer(serve(late), tmp_path, timeout_seconds=0.2)
    assert verdicts(judge, "olive") == [True]
    assert waits
    gone.set()


def test_a_server_that_refuses_is_named_and_its_verdicts_are_kept(
    serve: Any, tmp_path: Path
) -> None:
    server = serve(by_colour)
    assert verdicts(scorer(server, tmp_path), "olive") == [True]
    server.reply = lambda _: (401, "", {})
    with pytest.raises(MachineError, match=r"answered 401 .*the same command resumes"):
        verdicts(scorer(server, tmp_path), "olive", "teal")
    server.reply = by_colour
    asked = len(server.bodies)
    assert verdicts(scorer(server, tmp_path), "olive", "teal") == [True, False]
    assert len(server.bodies) == asked + 1
    server.reply = lambda _: (500, "", {})
    with pytest.raises(MachineError, match="5 times"):
        verdicts(scorer(server, tmp_path), "another")


SERVER_DELAY_SECONDS = 100.0


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("ends_by", ["interrupt", "interrupt while it waits", "refusal"])
def test_an_interrupt_or_a_refusal_waits_for_no_reply(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends_by: str
) -> None:
    """Three requests are in flight; the verdict that had arrived is kept."""
    gone = threading.Event()
    monkeypatch.setattr(SLEEP, lambda _: gone.wait(SERVER_DELAY_SECONDS))

    def reply(body: dict[str, Any]) -> Reply:
        if "olive" in str(body["messages"][1]["content"]).partition("Answer:")[2]:
            return by_colour(body)
        if ends_by == "interrupt while it waits":
            return 503, "", {}
        if ends_by == "refusal" and "refused" in str(body):
            return 401, "", {}
        gone.wait(SERVER_DELAY_SECONDS)
        return by_colour(body)

    def on_progress(number: int) -> None:
        if number and ends_by != "refusal":
            signal.setitimer(signal.ITIMER_REAL, 0.3)

    server = serve(reply)
    judge = scorer(server, tmp_path)
    texts = ["olive", "grey", "teal", "refused"]
    earlier = signal.signal(signal.SIGALRM, interrupt)
    started = time.monotonic()
    try:
        with pytest.raises(MachineError if ends_by == "refusal" else KeyboardInterrupt):
            judge.fetch([judge.supported_request(each, QUESTION) for each in texts], on_progress)
        assert time.monotonic() - started < SERVER_DELAY_SECONDS / 4
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
        gone.set()
    if ends_by != "refusal":
        assert scorer(server, tmp_path).verdict("olive", QUESTION) is True


def test_replies_without_a_verdict(serve: Any, tmp_path: Path) -> None:
    server = serve(lambda body: (200, "I think so", {}) if "odd" in str(body) else by_colour(body))
    judge = scorer(server, tmp_path)
    assert verdicts(judge, "odd", "olive") == [None, True]
    assert judge.score("odd", QUESTION).counts == {} and judge.without_verdict == 1
    server.reply = lambda _: (200, '{"supported": "maybe"}', {})
    with pytest.raises(MachineError, match="replies without the JSON object"):
        verdicts(judge, *[f"answer {n}" for n in range(12)])


def test_stored_verdicts_survive_odd_quotes_and_a_kill(serve: Any, tmp_path: Path) -> None:
    replies = {"grey cup": '{"supported": false, "quote": "a\u2028b"}'}
    replies["teal cup"] = '{"supported": false, "quote": null}'
    server = serve(
        lambda body: (200, replies["grey cup" if "grey cup" in str(body) else "teal cup"], {})
    )
    judge = scorer(server, tmp_path)
    assert verdicts(judge, "grey cup", "teal cup") == [False, False]
    (finding,) = judge.score("teal cup", QUESTION).findings
    assert finding.message == "no words were quoted"
    (file,) = tmp_path.rglob("*.jsonl")
    with file.open("ab") as kept:
        kept.write('{"key": "é'.encode()[:-1])
    server.reply = lambda _: (500, "", {})
    assert verdicts(scorer(server, tmp_path), "grey cup", "teal cup") == [False, False]


def test_pairs_are_asked_in_either_order(serve: Any, tmp_path: Path) -> None:
    """If a judge always takes A, each side wins about half."""
    judge = scorer(serve(lambda _: (200, '{"better": "A"}', {})), tmp_path)
    pairs = [(f"base {n}", f"tuned {n}") for n in range(40)]
    judge.fetch([judge.pair_request(*pair, QUESTION)[0] for pair in pairs], lambda _: None)
    wins = [judge.preferred(*pair, QUESTION) for pair in pairs]
    assert 10 <= sum(win or 0.0 for win in wins) <= 30


def test_labels_and_agreement(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(
        '{"prompt": "p", "answer": "a", "supported": true}\n\n'
        '{"prompt": "p", "answer": "b", "supported": false}\n'
    )
    labels = read_labels(file)
    words = agreement("judge", labels, [True, True])
    assert words.startswith("the judge agrees with 1 of 2 of your labels (")
    assert "it finds 0 of 1 that you call unsupported; label at least 20" in words
    many = [Label(prompt="", answer="", supported=True)] * 20
    assert agreement("detector", many, [True] * 20) == (
        "the detector agrees with 20 of 20 of your labels (84% to 100%)"
    )
    for wrong in ('{"prompt": "p", "answer": "a", "supported": "yes"}\n', '{"prompt": "p"}', "[]"):
        file.write_text(f'{{"prompt": "p", "answer": "a", "supported": true}}\n{wrong}')
        with pytest.raises(DataError, match=r'expected \{"prompt"') as caught:
            read_labels(file)
        assert caught.value.line == 2


def test_the_judge_is_in_the_table_with_its_calibration(
    eval_run: Path, serve: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(
        lambda body: (
            (200, '{"better": "tie"}', {})
            if "Answer A" in str(body)
            else (200, '{"supported": true, "quote": ""}', {})
        )
    )
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"prompt": "p", "answer": "a", "supported": true}\n' * 20)
    wanted = {"url": server.url, "model": "m", "labels": str(labels), "pairwise": True}
    flags = ["--no-forgetting", "--set", f"eval.judge={json.dumps(wanted)}"]
    found = ask(capsys, "eval", eval_run, *flags)
    rows = {row["name"]: row for row in found["scores"]}
    assert rows["judge_supported"]["tuned"]["value"] == 1.0
    assert rows["judge_supported"]["your_answers"]["value"] == 1.0
    assert rows["judge_preferred"]["tuned"]["value"] == 0.5
    assert found["truth_measured_by"] == ["judge_supported"]
    assert any("agrees with 20 of 20 of your labels" in note for note in found["notes"])
    # Other labels are another calibration, and ask for no answer or verdict twice.
    asked = len(server.bodies)
    labels.write_text('{"prompt": "p", "answer": "a", "supported": false}\n' * 20)
    again = ask(capsys, "eval", eval_run, *flags)
    assert any("agrees with 0 of 20 of your labels" in note for note in again["notes"])
    assert len(server.bodies) == asked
    # 8 answers a side, those of the rows, 8 pairs, 1 label; equal ones are asked once.
    assert len(server.bodies) <= 8 * 4 + 1
    assert run(["eval", str(eval_run), *flags]) == 0
    out = capsys.readouterr().out
    assert "supported (judge)" in out and "Nothing checked whether" not in out


def test_a_judge_that_prefers_no_answer_has_no_score_of_pairs(
    eval_run: Path, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    neither, supported = '{"better": "neither"}', '{"supported": true, "quote": ""}'
    server = serve(lambda body: (200, neither if "Answer A" in str(body) else supported, {}))
    wanted = {"url": server.url, "model": "another", "pairwise": True}
    flags = ["--no-forgetting", "--set", f"eval.judge={json.dumps(wanted)}"]
    names = [row["name"] for row in ask(capsys, "eval", eval_run, *flags)["scores"]]
    assert "judge_supported" in names and "judge_preferred" not in names
