"""Dependencies by a real worker: a planted circuit, a version in which it is rewired, and the same weights again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.dependency_models import Circuit, make_circuit, save_model, write_text
from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.checkpoints.schemas import CheckpointIn
from featurewatch.service.config import Settings
from featurewatch.service.dependencies import logic as dependencies
from featurewatch.service.dependencies import queries
from featurewatch.service.dependencies.schemas import DependenciesIn
from featurewatch.service.families import logic as families
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.problems import ConflictError
from featurewatch.service.models import Checkpoint, Code, DependencyGraph, Feature, Run, Signature
from featurewatch.service.signatures import logic as signatures
from featurewatch.service.signatures.schemas import SignatureIn
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.workers.pipelines import PIPELINES
from featurewatch.workers.pipelines.runs import dependencies as pipeline
from tests.workers.conftest import Installation

torch.set_num_threads(1)

EARLY, LATE = "resid_post.0", "resid_post.1"
FIT = {"n_features": 24, "k": 4, "steps": 1000, "batch_size": 256, "learning_rate": 0.003, "seed": 1}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Circuit, Path]:
    """A corpus, the planted model, a rewired version of it, and the first once more in bfloat16."""
    folder, circuit = tmp_path_factory.mktemp("planted"), make_circuit(seed=2)
    texts = write_text(circuit, documents=120, length=24, seed=1)
    lines = [" ".join(circuit.words[word] for word in text) for text in texts]
    (folder / "corpus.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    save_model(folder / "v1", circuit, rewired=False)
    save_model(folder / "v2", circuit, rewired=True)
    save_model(folder / "same", circuit, rewired=False)
    model = AutoModelForCausalLM.from_pretrained(folder / "same", dtype=torch.bfloat16)
    model.save_pretrained(folder / "same")
    return circuit, folder


@pytest.fixture
def settings(settings: Settings, planted: tuple[Circuit, Path]) -> Settings:
    """The planted models may be read."""
    return settings.model_copy(update={"roots": str(planted[1])})


def run(installation: Installation, **options: Any) -> Run:
    """The run whose turn it is, taken to its end."""
    run_id = installation.run_next(pipelines=PIPELINES, **options)
    assert run_id
    return installation.run(run_id)


def succeed(installation: Installation) -> Run:
    done = run(installation)
    assert done.state == "succeeded", done.error
    return done


def register(installation: Installation, folder: Path, name: str, parent: str | None = None) -> None:
    with installation.database.write() as session:
        body = CheckpointIn(name=name, uri=(folder / name).as_uri(), parent=parent)
        checkpoints.register(session, installation.settings, families.get(session, "planted"), body)
    succeed(installation)


@pytest.fixture
def family(planted: tuple[Circuit, Path], installation: Installation) -> dict[int, int]:
    """A family with v1 judged; planted feature -> feature number."""
    circuit, folder = planted
    corpus = {"uri": (folder / "corpus.jsonl").as_uri(), "max_documents": 120, "context_length": 32}
    body = {"name": "planted", "hook_points": [EARLY, LATE], "corpus": corpus, "crosscoder": FIT}
    with installation.database.write() as session:
        families.create(session, installation.settings, FamilyIn.model_validate(body))
    register(installation, folder, "v1")
    return _matched(installation, circuit)


def _matched(installation: Installation, circuit: Circuit) -> dict[int, int]:
    """Planted feature -> the feature whose code correlates most with it."""
    with installation.database.read() as session:
        code = session.query(Code).one()
    tensors = load_file(installation.artifacts.path(code.artifact))
    dense = torch.sparse_csr_tensor(
        tensors["indptr"], tensors["indices"].long(), tensors["values"], (code.n_positions, code.n_features)
    ).to_dense()
    # The first word of each document is excluded.
    truth = np.concatenate([circuit.table(text)[1:] for text in write_text(circuit, 120, 24, 1)])
    both = np.corrcoef(np.concatenate([truth, dense.numpy() + 1e-9], 1).T)[: len(circuit), len(circuit) :]
    assert (np.nan_to_num(both).max(1) > 0.8).all(), np.nan_to_num(both).max(1)
    return {
        planted: int(tensors["feature_numbers"][best]) for planted, best in enumerate(np.nan_to_num(both).argmax(1))
    }


def ask(installation: Installation, checkpoint: str, numbers: list[int], **body: Any) -> str:
    with installation.database.write() as session:
        asked = DependenciesIn.model_validate({"features": [feature_id(n) for n in numbers], **body})
        found = families.get(session, "planted")
        return dependencies.create(session, found, checkpoints.get(session, found, checkpoint), asked).id


def show(installation: Installation, number: int, checkpoint: str, baseline: str | None = None) -> Any:
    with installation.database.read() as session:
        found = families.get(session, "planted")
        return dependencies.get(
            session, installation.artifacts, found, number, checkpoint=checkpoint, baseline=baseline, method=None
        )


def test_the_planted_edges_and_what_was_rewired(
    installation: Installation, planted: tuple[Circuit, Path], family: dict[int, int]
) -> None:
    circuit, folder = planted
    targets = list(circuit.edges(False))
    numbers = [family[t] for t in targets]
    with installation.database.write() as session:
        for row in session.query(Feature).filter(Feature.number.in_(numbers)):
            row.watched = True
    ask(installation, "v1", numbers)
    succeed(installation)
    for name in ("v2", "same"):
        register(installation, folder, name, parent="v1")
        done = succeed(installation)  # the policy asked for the watched features
        assert (done.kind, done.priority) == ("dependencies", -1)
        assert {one["id"]: one["rewired"] for one in (done.result or {})["features"]} == {
            feature_id(family[t]): name == "v2" and t == targets[0] for t in targets
        }
    for rewired, name in ((False, "v1"), (True, "v2"), (False, "same")):
        for target, sources in circuit.edges(rewired).items():
            got = show(installation, family[target], name)
            # Where two properties meet, the dictionary has a part of them in the feature itself, at the earlier place
            # too: that is its own edge. Of what others give, nearly all comes from what was planted.
            weights = {edge.feature: abs(edge.weight) for edge in got.graph.edges if edge.feature != got.feature}
            large = {name for name, weight in weights.items() if weight > 0.4 * max(weights.values())}
            assert large and large <= {feature_id(family[s]) for s in sources}, (name, target, weights)
            assert got.hook_point == LATE and got.graph.value > 0
            place = got.graph.sources[0]
            assert place.hook_point == EARLY and place.total is not None
            assert got.graph.tokens and got.effect is not None and got.effect.directions == 8
    compared = show(installation, numbers[0], "v2", "v1").comparison
    lost, gained, changed = (
        {edge.feature for edge in part} for part in (compared.lost, compared.gained, compared.changed)
    )
    # A half of the pair that the dictionary has in the feature itself, at the earlier place, had no edge to lose.
    had = {edge.feature for edge in show(installation, numbers[0], "v1").graph.edges}
    assert lost and lost == had & {feature_id(family[s]) for s in circuit.pairs[0]}
    assert gained == {feature_id(family[s]) for s in circuit.other}
    assert changed <= {feature_id(numbers[0])}
    assert compared.rewired and compared.agreement < 0.5
    for number in numbers[1:]:
        other = show(installation, number, "v2", "v1").comparison
        assert other.rewired is False and not other.gained and not other.lost and other.agreement > 0.95


def test_methods_stay_beside_each_other_and_are_not_made_twice(
    installation: Installation, family: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = family[12]
    for method in ("relp", "integrated"):
        ask(installation, "v1", [number], method=method, effects=False, positions=60, steps=3)
        succeed(installation)
    got = show(installation, number, "v1")
    assert (got.method, got.positions, got.effect) == ("integrated", 60, None)
    with installation.database.read() as session:
        assert session.query(DependencyGraph).count() == 2

    def refuse(*_: Any) -> None:
        raise AssertionError("the model is not needed again")

    monkeypatch.setattr(pipeline, "trace_checkpoint", refuse)
    ask(installation, "v1", [number], method="relp", effects=False, positions=60, steps=3)
    succeed(installation)
    assert show(installation, number, "v1").method == "relp"


def test_a_signatures_answers_are_moved_by_its_features(
    installation: Installation, planted: tuple[Circuit, Path], family: dict[int, int]
) -> None:
    circuit, _ = planted
    planted_feature = next(iter(circuit.edges(False)))
    number, words, rows = family[planted_feature], circuit.words, []
    for text in write_text(circuit, 120, 24, 1):  # up to where the feature fires: nothing comes after its hook point
        if len(at := np.flatnonzero(circuit.table(text)[2:, planted_feature])):
            spoken = " ".join(words[word] for word in text[: at[0] + 3])
            rows.append({"text": spoken, "positive": f" {words[0]}", "negative": f" {words[1]}"})
    with installation.database.write() as session:
        asked = SignatureIn.model_validate({"name": "debate", "rows": rows[:40], "settings": {"position": "answer"}})
        found = families.get(session, "planted")
        signatures.create(session, installation.settings, installation.artifacts, found, asked)
    assert succeed(installation).kind == "signature"
    with installation.database.write() as session:
        row = session.query(Signature).one()
        row.chosen = [{"feature": feature_id(number), "hook_point": LATE, "weight": 1.0, "auroc": 1.0, "q_value": 0.0}]
    ask(installation, "v1", [number, family[13]], positions=60)
    succeed(installation)
    got = show(installation, number, "v1").effect.answers
    assert [(one.signature, one.texts) for one in got] == [("debate", 40)]
    assert got[0].ablate_ci[0] <= got[0].ablate <= got[0].ablate_ci[1] and got[0].random_most > 0
    assert show(installation, family[13], "v1").effect.answers == []


def test_a_stopped_run_goes_on_and_a_rejudged_checkpoint_forgets(
    installation: Installation, family: dict[int, int]
) -> None:
    number = family[13]
    ask(installation, "v1", [number], positions=60)
    looks = iter(range(1000))
    stopped = run(installation, stop=lambda: next(looks) > 3)
    assert (stopped.state, stopped.attempt) == ("queued", 1)
    assert succeed(installation).attempt == 2
    with installation.database.write() as session:
        checkpoint = session.query(Checkpoint).one()
        assert queries.one(session, checkpoint.id, number, "gradient") is not None
        verdicts.clear(session, checkpoint.id)
        assert queries.one(session, checkpoint.id, number, None) is None


def test_nothing_is_asked_where_there_is_no_model(installation: Installation, family: dict[int, int]) -> None:
    with installation.database.write() as session:
        row = session.query(Checkpoint).one()
        session.query(Feature).filter_by(number=family[12]).one().watched = True
        session.flush()
        assert dependencies.queue_watched(session, row.id)
        assert not dependencies.queue_watched(session, row.id), "one is waiting"
        session.query(Run).filter_by(kind="dependencies").one().state = "cancelled"
        row.uri = "activations+file:///x"
        assert not dependencies.queue_watched(session, row.id)
        with pytest.raises(ConflictError, match="only precomputed activations"):
            dependencies.create(session, families.get(session, "planted"), row, DependenciesIn(features=["F1"]))
        session.rollback()
