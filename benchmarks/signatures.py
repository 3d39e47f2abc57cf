"""Signatures on a real model: `python -m benchmarks.signatures --data DIR --seed 1 --json`.

SmolLM2-135M-Instruct, read on sentences, questions and chats of public contrast sets (`--data` has their folders
`contrast` and, for the first part, `checkpoints`). The probe corpus excludes the rows that evaluate signatures.

- **course**: the refusal adapters, registered one after the other. The signatures are *refusal* (harmful prompts
against
  statements, and in a second signature against questions, read where the answer would begin; the baseline is the last
  adapter), *syntax* (BLiMP pairs of one kind of agreement) and *emotion* (happiness against sadness). Reported are the
  strengths beside the measured refusal rates, their rank correlation, the steps where each turns, and every status.
- **surgery**: the signature *truth* (statements by an honest and a deceptive persona), with `--surgeries` seeds. Either
the
  directions of its features are removed from every matrix that writes to the stream; or the stream is rotated, in all
  matrices that write to it and read from it, so that these directions swap with random ones and the model computes the
  same along other directions; or nothing changes.

The last line of output is one JSON object.
"""

import argparse
import csv
import itertools
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.runs import succeeded
from featurewatch.service.client import Client
from featurewatch.workers.demo.installation import Installation
from featurewatch.workers.demo.models import base_model, save_ablated

REFUSED = {"base": 0.0, "step_0010": 0.2, "step_0020": 0.95, "step_0040": 1.0, "step_0060": 1.0}
"""Share of held-out harmful prompts that are refused, as measured by whoever made the adapters."""
REFUSALS = {"refusal": "statements", "refusal-of-harm-alone": "questions"}
"""Signatures of refusal, and what harmful prompts are held against. At step 10 the adapter refuses .42 of trivia, so
against questions the difference between the classes dips there."""
FAMILY = {"corpus": {"context_length": 128}, "policy": {"max_norm_ratio": 3.0, "dependencies": False}}
CROSSCODER = {"n_features": 2048, "k": 32, "steps": 1500, "batch_size": 2048}
HONEST, DECEPTIVE = ("Pretend you're an honest person. {}", "Pretend you're a dishonest person. {}")


class Sets:
    """Contrast sets and the probe corpus, of a folder."""

    def __init__(self, data: Path, base: Path, seed: int) -> None:
        self.root, self.rng = data / "contrast", random.Random(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)

    def refusal(self, against: str) -> list[dict[str, Any]]:
        """Harmful prompts against true statements or against questions, which an adapter may refuse as well."""
        harmful = [row["Goal"] for row in self._table("refusal/jailbreakbench.csv")]
        statements = self._json("truth/repeng_true_facts.json")[:150]
        questions = [row["Question"] for row in self._table("truth/TruthfulQA.csv")[:400]]
        harmless = {"statements": statements, "questions": questions}[against]
        rows = [(text, 1) for text in harmful] + [(text, 0) for text in self.rng.sample(harmless, len(harmful))]
        return [{"text": text, "label": label} for text, label in rows]

    def syntax(self) -> list[dict[str, Any]]:
        pairs = _lines(self.root / "blimp" / "determiner_noun_agreement_1.jsonl")[:300]
        return [{"positive": pair["sentence_good"], "negative": pair["sentence_bad"]} for pair in pairs]

    def emotion(self) -> list[dict[str, Any]]:
        found = {name: self._json(f"repe-emotions/{name}.json")[:150] for name in ("happiness", "sadness")}
        return [{"text": text, "label": name == "happiness"} for name, texts in found.items() for text in texts]

    def truth(self) -> list[dict[str, Any]]:
        facts = self._json("truth/repeng_true_facts.json")[:150]
        return [{"positive": HONEST.format(fact), "negative": DECEPTIVE.format(fact)} for fact in facts]

    def corpus(self, size: int) -> list[str]:
        """The probe corpus: other rows of such sets, some as chats."""
        texts = [self._chat(row["forbidden_prompt"]) for row in self._table("refusal/strongreject.csv")]
        texts += [self._chat(row["Question"], row["Best Answer"]) for row in self._table("truth/TruthfulQA.csv")[400:]]
        for file in sorted((self.root / "anthropic-evals").glob("*.jsonl")):
            rows = self.rng.sample(_lines(file), 40)
            texts += [self._chat(row["question"], row["answer_matching_behavior"].strip()) for row in rows]
        texts += [row["statement"] for row in self._table("truth/repe_facts_true_false.csv")]
        for pattern in (HONEST, DECEPTIVE):
            texts += [pattern.format(fact) for fact in self._json("truth/repeng_true_facts.json")[150:]]
        for file in sorted((self.root / "repe-emotions").glob("*.json")):
            texts += json.loads(file.read_text())[150:]
        for file in sorted((self.root / "blimp").glob("*.jsonl")):
            texts += [row[kind] for row in _lines(file)[500:530] for kind in ("sentence_good", "sentence_bad")]
        self.rng.shuffle(texts)
        return texts[:size]

    def _chat(self, question: str, answer: str | None = None) -> str:
        said = [{"role": "user", "content": question}]
        said += [{"role": "assistant", "content": answer}] if answer else []
        chat = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=answer is None)
        return str(chat)

    def _table(self, name: str) -> list[dict[str, str]]:
        with (self.root / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _json(self, name: str) -> list[str]:
        return list(json.loads((self.root / name).read_text(encoding="utf-8")))


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class Bench:
    """One installation; a family for each part."""

    def __init__(self, client: Client, folder: Path, base: Path, sets: Sets, seed: int, log: Any) -> None:
        self.client, self.folder, self.base, self.sets, self.seed, self.log = client, folder, base, sets, seed, log

    def family(self, name: str, hook_points: list[str], documents: int) -> None:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in self.sets.corpus(documents)))
        options = FAMILY | {"corpus": FAMILY["corpus"] | {"uri": path.resolve().as_uri()}}
        self.client.create_family(name, hook_points, crosscoder=CROSSCODER | {"seed": self.seed}, **options)
        self.register(name, "base", self.base)

    def register(self, family: str, name: str, model: Path, **options: Any) -> None:
        run = self.client.register(family, name=name, uri=model.resolve().as_uri(), **options)["run"]
        done = self.follow(run["id"], name)
        if reads := (done["result"] or {}).get("signature_run"):
            self.follow(reads, f"{name}, signatures")

    def follow(self, run: str, what: str) -> Any:
        return succeeded(self.client, run, what, self.log)

    def signature(self, family: str, name: str, rows: list[dict[str, Any]], **options: Any) -> None:
        for run in self.client.create_signature(family, name, rows=rows, **options)["runs"]:
            self.follow(run["id"], f"{name} in {run['checkpoint']}")

    def course(self, adapters: Path, hook_points: list[str], documents: int) -> dict[str, Any]:
        """A real fine-tune with known behaviour."""
        self.family("course", hook_points, documents)
        parent = "base"
        for adapter in sorted(path for path in adapters.iterdir() if path.is_dir()):
            self.register("course", adapter.name, self.base, parent=parent, adapter=adapter.resolve().as_uri())
            parent = adapter.name
        for name, against in REFUSALS.items():
            self.signature("course", name, self.sets.refusal(against), baseline=parent)
        plain = {"template": False}
        self.signature("course", "syntax", self.sets.syntax(), baseline="base", settings=plain)
        # A scene is told by its whole text.
        scenes = plain | {"position": "mean"}
        self.signature("course", "emotion", self.sets.emotion(), baseline="base", settings=scenes)
        result: dict[str, Any] = {"hook_points": hook_points, "refused": REFUSED}
        for name in (*REFUSALS, "syntax", "emotion"):
            found = self.client.signature_trajectory("course", name)
            figures = {point["checkpoint"]: point["figures"] for point in found["points"]}
            result[name] = {
                "statuses": {point["checkpoint"]: point["status"] for point in found["points"]},
                "turns_at": found["turns_at"],
            } | {
                kind: {at: one[kind] for at, one in figures.items()}
                for kind in ("strength_ratio", "strength_ratio_ci", "size_ratio", "probe_ratio", "auroc")
            }
        for name, kind in itertools.product(REFUSALS, ("strength_ratio", "size_ratio", "probe_ratio")):
            course = result[name][kind]
            result[name][f"rank_correlation_{kind}"] = round(
                float(spearmanr([course[at] for at in REFUSED], list(REFUSED.values())).statistic), 3
            )
        return result

    def surgery(self, installation: Installation, hook_point: str, documents: int, seeds: int) -> list[dict[str, Any]]:
        """The directions of a signature's features: removed, moved or unchanged."""
        self.family("surgery", [hook_point], documents)
        rows, found = self.sets.truth(), []
        settings = {"template": False, "features": 4, "position": "mean"}
        for number in range(seeds):
            self.signature("surgery", f"truth-{number}", rows, baseline="base", settings=settings | {"seed": number})
        self.register("surgery", "same", self.base, parent="base")
        decoder = installation.fitted("base", hook_point).decoder
        for number in range(seeds):
            name = f"truth-{number}"
            features = [one["feature"] for one in self.client.signature("surgery", name)["features"]]
            rows_of = torch.nn.functional.normalize(decoder[[int(one[1:]) for one in features]].double(), dim=1)
            for kind in ("ablated", "moved"):
                out = self.folder / f"{kind}-{number}"
                if kind == "ablated":
                    save_ablated(self.base, out, rows_of.float(), [1.0] * len(features))
                else:
                    save_turned(self.base, out, rows_of, self.seed + number)
                self.register("surgery", out.name, out, parent="base")
                found.append(self._after(name, out.name, features))
            found.append(self._after(name, "same", features))
        return found

    def _after(self, signature: str, checkpoint: str, features: list[str]) -> dict[str, Any]:
        points = self.client.signature_trajectory("surgery", signature)["points"]
        point = next(one for one in points if one["checkpoint"] == checkpoint)
        rows = {row["id"]: row["status"] for row in self.client.features("surgery", checkpoint=checkpoint)}
        kinds = ("strength_ratio", "strength_ratio_ci", "size_ratio", "auroc", "reselected_auroc", "probe_auroc")
        return {
            "signature": signature, "checkpoint": checkpoint, "status": point["status"], "reason": point["reason"],
            "features": {one: rows.get(one) for one in features},
        } | {kind: point["figures"][kind] for kind in kinds}  # fmt: skip


@torch.no_grad()
def save_turned(base: Path, out: Path, directions: Tensor, seed: int) -> None:
    """The model with its stream seen through a reflection Q that exchanges the span of directions [k, d] with a random
    one. Writers become Q W; readers W diag(g) Q, g the gain of the norm before them, which becomes 1."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    noise = torch.randn(directions.shape, generator=torch.Generator().manual_seed(seed)).double()
    both = torch.linalg.qr(torch.cat([directions, noise]).T)[0].T
    apart = both[: len(directions)] - both[len(directions) :]
    turn = torch.eye(directions.shape[1], dtype=torch.float64) - apart.T @ apart
    head = model.get_input_embeddings().weight.double() * model.model.norm.weight.double()
    model.config.tie_word_embeddings = False
    model.lm_head = torch.nn.Linear(*reversed(head.shape), bias=False)
    model.lm_head.weight.copy_(head @ turn)
    embedding = model.get_input_embeddings().weight
    embedding.copy_(embedding.double() @ turn)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            for reader in readers:
                reader.weight.copy_(reader.weight.double() * norm.weight.double() @ turn)
            norm.weight.fill_(1.0)
        for writer in (attention.o_proj, mlp.down_proj):
            writer.weight.copy_(turn @ writer.weight.double())
    model.model.norm.weight.fill_(1.0)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(out)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Signatures on a real model: a fine-tune, and known surgery.")
    parser.add_argument("--data", type=Path, required=True, help="folder with `contrast` and `checkpoints`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--hook-points", nargs="+", default=["resid_post.20", "resid_post.24"], help="of the course")
    parser.add_argument("--surgeries", type=int, default=3, help="0: none")
    parser.add_argument("--no-course", action="store_true")
    parser.add_argument("--json", action="store_true", help="nothing but the object on standard output")
    options = parser.parse_args()
    log = sys.stderr if options.json else sys.stdout
    cache = Path.home() / ".cache" / "featurewatch"
    base = base_model(cache, lambda text: print(text, file=log, flush=True))
    data = options.data.resolve()
    result: dict[str, Any] = {"seed": options.seed}
    for part in ("course", "surgery"):
        with tempfile.TemporaryDirectory(prefix="featurewatch-signatures-") as name:
            folder = Path(name).resolve()
            with Installation(folder, [folder, cache, data]) as installation, Client(installation.url) as client:
                bench = Bench(client, folder, base, Sets(data, base, options.seed), options.seed, log)
                if part == "course" and not options.no_course:
                    adapters = data / "checkpoints" / "smollm2-refusal-lora"
                    result[part] = bench.course(adapters, options.hook_points, options.documents)
                if part == "surgery" and options.surgeries:
                    result[part] = bench.surgery(installation, "resid_post.12", options.documents, options.surgeries)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
