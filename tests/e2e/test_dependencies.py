"""Dependencies with a live service: asked for over REST, shown by the command line."""

import json

from typer.testing import CliRunner

from benchmarks.dependency_models import make_circuit, save_model, write_text
from featurewatch.service.cli import app
from tests.e2e.parts import ONE_DATABASE, Service

pytestmark = ONE_DATABASE


def test_asked_for_and_shown(service: Service) -> None:
    circuit, folder, client = make_circuit(seed=2), service.folder / "circuits", service.client
    folder.mkdir()
    lines = [" ".join(circuit.words[word] for word in text) for text in write_text(circuit, 60, 24, 1)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    save_model(folder / "v1", circuit, rewired=False)
    client.create_family(
        "circuits",
        ["resid_post.0", "resid_post.1"],
        corpus={"uri": (folder / "corpus.jsonl").as_uri(), "max_documents": 60, "context_length": 32},
        crosscoder={"n_features": 24, "k": 4, "steps": 300, "batch_size": 256, "learning_rate": 0.003},
    )
    service.judge("circuits", "v1", (folder / "v1").as_uri())
    rows = sorted(client.features("circuits", checkpoint="v1"), key=lambda row: -row["firings"])
    feature = rows[0]["id"]
    run = client.wait(client.find_dependencies("circuits", "v1", [feature], positions=200)["id"], interval=0.1)
    assert run["state"] == "succeeded", run["error"]
    assert [one["id"] for one in (run["result"] or {})["features"]] == [feature]
    found = client.dependencies("circuits", feature)
    assert (found["checkpoint"], found["method"], found["comparison"]) == ("v1", "gradient", None)
    assert 20 <= found["positions"] <= 200 and found["effect"] is not None
    command = ["--url", client.url, "dependencies", "circuits", feature]
    shown = CliRunner().invoke(app, [*command, "--baseline", "v1"])
    assert shown.exit_code == 0, shown.output
    assert f"{feature} at {found['hook_point']} in v1" in shown.output and "No edges changed." in shown.output
    again = CliRunner().invoke(app, [*command, "--checkpoint", "v1", "--find", "--method", "relp", "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout[again.stdout.index("{") :])["method"] == "relp"
