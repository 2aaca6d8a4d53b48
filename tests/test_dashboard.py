"""What `python -m icl_align.dashboard` sends, received by a server of our own, against real runs."""

import gzip
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from test_tracking import wandb_history, wandb_summary

from icl_align.alignment.options import Options
from icl_align.config import WandbConfig
from icl_align.dashboard import main
from icl_align.running.compose import compose_config
from icl_align.running.loop import Start
from icl_align.running.metrics_file import read_rows
from icl_align.running.run import run
from icl_align.running.tracking import log_verdicts
from icl_align.running.workspace import build_workspace, dashboard_options
from runs import TINY, finish, start

GROUP = "a campaign"
VERDICT = {
    "claim": "depth",
    "judgement": "one layer",
    "prediction": "worse",
    "effect": 0.2,
    "low": 0.1,
    "high": 0.3,
    "p_value": 0.01,
    "verdict": "holds",
    "reason": "",
}


class Server:
    """Answers the W&B client as the real server would, and keeps what it was asked."""

    def __init__(self):
        self.asked = []
        self.entity, self.project, self.errors = "me", {"runCount": 2}, None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path != "/graphql":  # the client's own statistics
                    return self.send_error(404)
                if self.headers["Content-Encoding"] == "gzip":
                    raw = gzip.decompress(raw)
                answer = json.dumps(outer.answer(json.loads(raw))).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, body):
        self.asked.append(body)
        if "upsertView" in body["query"]:
            if self.errors:
                return {"errors": self.errors}
            name = body["variables"]["name"]
            return {"data": {"upsertView": {"view": {"id": "1", "name": name}, "inserted": True}}}
        if "runCount" in body["query"]:
            return {"data": {"project": self.project}}
        viewer = {"id": "1", "entity": self.entity, "username": "me", "flags": "{}"}
        return {"data": {"viewer": {**viewer, "teams": {"edges": []}}}}

    @property
    def saved(self):
        return [body["variables"] for body in self.asked if "upsertView" in body["query"]]


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.http.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)  # offline would forget the account
    monkeypatch.setenv("HOME", str(tmp_path))
    yield server
    server.http.shutdown()
    server.http.server_close()


def dashboard(tmp_path, *arguments):
    return finish(start(*arguments, module="icl_align.dashboard", cwd=tmp_path))


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A run at the default noise levels and a report, both tracked by the real client offline."""
    folder = tmp_path_factory.mktemp("campaign")
    tiny = [text for text in TINY if not text.startswith("evaluation.reward_noise")]
    config = compose_config([*tiny, "+ablation=no_mlp"])
    run(config, folder / "run", Start(tags=["no_mlp"], group=GROUP))
    log_verdicts(folder, WandbConfig(), GROUP, [VERDICT])
    return folder


def spec_of(options):
    view = build_workspace(options)._to_model()
    return json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels_of(spec, section):
    sections = {one["name"]: one for one in spec["panelBankConfig"]["sections"]}
    return [panel["config"] for panel in sections[section]["panels"]]


def metrics_of(spec, *sections):
    return {name for one in sections for panel in panels_of(spec, one) for name in panel["metrics"]}


Dashboard = dashboard_options("alignment")
LINES = ("Training", "Curves by learner")


def test_the_workspace_arrives_at_the_server_with_its_sections_and_the_group(tmp_path, server):
    status, out, err = dashboard(tmp_path, "project=sims", f"group={GROUP}")
    assert status == 0, err
    (sent,) = server.saved
    assert (sent["entityName"], sent["projectName"]) == ("me", "sims")
    assert sent["displayName"] == GROUP
    spec = json.loads(sent["spec"])["section"]
    names = [one["name"] for one in spec["panelBankConfig"]["sections"]]
    assert names == ["Training", "Curves by learner", "Ablations", "Verdicts"]
    (condition,) = spec["runSets"][0]["filters"]["filters"]
    assert condition["key"] == {"section": "run", "name": "group"}
    assert (condition["op"], condition["value"]) == ("=", GROUP)
    assert metrics_of(spec, *LINES) == metrics_of(spec_of(Dashboard("me")), *LINES)
    url = f"http://127.0.0.1:{server.http.server_port}/me/sims?nw="
    assert out.startswith(url) and out.count("\n") == 1
    assert sent["name"] == f"nw-{out.strip().removeprefix(url)}-v"


def test_every_line_is_a_metric_that_a_real_run_logs(campaign):
    lines = metrics_of(spec_of(Dashboard("me")), *LINES)
    in_file = {name for row in read_rows(campaign / "run" / "metrics.jsonl") for name in row}
    in_wandb = {name for row in wandb_history(campaign / "run") for name in row}
    assert lines <= in_file
    assert lines <= in_wandb
    levels = len(Options().evaluation.reward_noise)
    assert len(lines) == 4 + 3 * (6 + levels - 1)


def test_lines_have_the_axis_that_their_rows_are_logged_against(campaign):
    spec = spec_of(Dashboard("me"))
    assert {panel["xAxis"] for panel in panels_of(spec, "Training")} == {"_step"}
    assert {panel["xAxis"] for panel in panels_of(spec, "Curves by learner")} == {"attempts"}
    for row in wandb_history(campaign / "run"):
        assert "attempts" in row or not any(name.startswith("curves/") for name in row)


def test_every_bar_and_column_is_in_the_summary_of_a_real_run(campaign):
    spec = spec_of(Dashboard("me"))
    summary = wandb_summary(campaign / "run")
    bars = metrics_of(spec, "Ablations")
    columns = spec["runSets"][0]["runFeed"]["columnOrder"]
    columns = {name.removeprefix("summary:") for name in columns if name != "run:displayName"}
    assert len(bars) == 3 * len(Options().evaluation.reward_noise)
    assert len(columns) == 3
    assert bars | columns <= {name for name, value in summary.items() if isinstance(value, float)}


def test_the_verdicts_are_the_table_that_a_report_logs(campaign):
    table, bars = panels_of(spec_of(Dashboard("me")), "Verdicts")
    assert '"val": "verdicts"' in json.dumps(table)
    assert '"value": "verdicts"' in json.dumps(bars["userQuery"])
    assert set(bars["fieldSettings"].values()) <= set(VERDICT)
    assert wandb_summary(campaign)["verdicts._type"] == "table-file"


@pytest.mark.parametrize(
    ("compare", "key"),
    [("ablation", ("config", "ablation.value")), ("name", ("run", "displayName"))],
)
def test_runs_and_bars_are_grouped_by_the_same_key(compare, key):
    spec = spec_of(Dashboard("me", compare=compare))
    (grouping,) = spec["runSets"][0]["grouping"]
    assert (grouping["section"], grouping["name"]) == key
    assert {panel["groupBy"] for panel in panels_of(spec, "Ablations")} == {key[1]}
    assert {panel["groupArea"] for panel in panels_of(spec, "Ablations")} == {"stddev"}


def test_without_a_group_all_runs_are_shown():
    assert spec_of(Dashboard("me"))["runSets"][0]["filters"]["filters"] == []


@pytest.mark.parametrize("group", ["sweeps/a b", "it's", 'a "b"', "x = 1 or y > 2", "c\\d", "é 🙂"])
def test_any_group_is_filtered_by_its_own_name(group):
    (condition,) = spec_of(Dashboard("me", group=group))["runSets"][0]["filters"]["filters"]
    assert condition["value"] == group


def test_other_noise_levels_give_their_own_metrics():
    spec = spec_of(Dashboard("me", reward_noise=[0.125]))
    assert metrics_of(spec, "Ablations") == {
        f"final/{name}/noise_0_125" for name in ("refinement_error", "regret", "agreement")
    }


# --------------------------------------------------------------------------------------- the errors


def one_line(err):
    """The error of the command, without what the W&B client says about logging in."""
    (line,) = [line for line in err.splitlines() if not line.startswith("wandb: ")]
    return line


def test_a_project_that_is_not_there_is_one_clear_line(tmp_path, server):
    server.project = None
    status, _, err = dashboard(tmp_path, "entity=us", "project=sims")
    assert status == 2
    assert one_line(err) == (
        "icl_align: error: project=us/sims: not found, or not open to this account"
    )
    assert not server.saved


def test_a_group_without_runs_is_one_clear_line(tmp_path, server):
    server.project = {"runCount": 0}
    status, _, err = dashboard(tmp_path, "group=nothing")
    assert status == 2
    assert one_line(err) == "icl_align: error: group=nothing: has no run in me/icl_align"
    assert not server.saved


def test_an_account_without_default_entity_is_asked_for_one(tmp_path, server):
    server.entity = None
    status, _, err = dashboard(tmp_path)
    assert status == 2
    assert one_line(err).startswith("icl_align: error: entity=null: ")


def test_a_refusal_of_the_server_is_one_clear_line(tmp_path, server):
    server.errors = [{"message": "permission denied", "path": ["upsertView"]}]
    status, _, err = dashboard(tmp_path)
    assert status == 1
    assert one_line(err).startswith("icl_align: error: Weights & Biases: ")
    assert "permission denied" in one_line(err)


def test_without_an_account_the_error_is_that_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "no account is known; set WANDB_API_KEY" in one_line(capsys.readouterr().err)


def test_without_the_library_the_error_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 1
    assert "pip install -e '.[dashboard]'" in one_line(capsys.readouterr().err)


def test_help_and_a_wrong_option_need_no_network(capsys):
    main(["--help"])
    assert "reward_noise=[0.0,0.25,0.5,0.75,1.0]" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["grup=x"])
    assert stopped.value.code == 2
    assert "no such option" in one_line(capsys.readouterr().err)
