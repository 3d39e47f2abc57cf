"""A family in a notebook: its verdicts as tables, its code as a sparse matrix, its dictionaries as tensors.

What a call needs beside the base installation is named when it is missing: pandas and pyarrow for tables, torch for
tensors, torch and transformers for `encode`.
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import scipy.sparse
from safetensors.numpy import load_file

from featurewatch.service.client import Client, ClientError
from featurewatch.service.client.types import Checkpoint
from featurewatch.service.config import ClientSettings
from featurewatch.service.dictionaries.folding import Autoencoder, fold
from featurewatch.service.kit import extras

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from torch import Tensor

    from featurewatch.reading import LoadedModel

_EXTRAS = {"pyarrow": "notebook", "pandas": "notebook", "torch": "worker", "transformers": "worker"}


class Dictionary(NamedTuple):
    """What a checkpoint reads and writes for each feature at one hook point, on the model's own activations, float32:

        f = relu(x W_enc + b_enc)      xhat = f W_dec + b_dec

    The normalisation is folded in (service.dictionaries.folding). Row i of `W_dec` and column i of `W_enc` are the
    feature `feature_ids[i]`.
    """

    W_enc: "Tensor"
    """[d_model, features]"""
    b_enc: "Tensor"
    """[features]"""
    W_dec: "Tensor"
    """[features, d_model]"""
    b_dec: "Tensor"
    """[d_model]"""
    feature_ids: list[str]

    def encode(self, x: "Tensor") -> "Tensor":
        """Activations [n, d_model] of any float type -> features [n, features]."""
        return (x.to(self.W_enc) @ self.W_enc + self.b_enc).relu()

    def decode(self, f: "Tensor") -> "Tensor":
        """Features [n, features] -> activations [n, d_model]."""
        return f @ self.W_dec + self.b_dec


class Encoded(NamedTuple):
    """Texts as a checkpoint's features read them, token by token."""

    tokens: "pandas.DataFrame"
    """`text` (number of the text), `start` and `end` (its characters), `token`; a row for each token of all texts"""
    codes: scipy.sparse.csr_matrix
    """[tokens, features]"""
    feature_ids: list[str]

    def feature(self, feature: str) -> "pandas.DataFrame":
        """The tokens with the activation of one feature at each."""
        column = self.codes[:, self.feature_ids.index(feature)]
        return self.tokens.assign(activation=column.toarray().ravel())


class Family:
    """One family of a service. Where neither `client` nor `url` is given, FEATUREWATCH_URL and FEATUREWATCH_KEY are
    used. `client` is for all other calls: `family.client.report(family.name, "v2")`."""

    def __init__(
        self, name: str, *, url: str | None = None, key: str | None = None, client: Client | None = None
    ) -> None:
        settings = ClientSettings()
        self.name = name
        self.client = client or Client(url or settings.url, settings.key.get_secret_value() if key is None else key)
        self._dictionaries: dict[tuple[str, str], tuple[Autoencoder, list[str]]] = {}
        self._model: tuple[tuple[str, str, str], LoadedModel] | None = None

    def __repr__(self) -> str:
        return f"Family({self.name!r}, url={self.client.url!r})"

    def checkpoints(self) -> list[str]:
        """Names of the judged checkpoints, oldest first."""
        return [row["name"] for row in self.client.checkpoints(self.name, state="judged")]

    def trajectories(self, features: Sequence[str] | None = None) -> "pandas.DataFrame":
        """Every verdict: a row for each feature in each checkpoint, with its evidence; only of some features, where
        named. `trajectories_table` gives the same as an Arrow table."""
        frame = self._frame("verdicts")
        return frame if features is None else frame[frame["id"].isin(list(features))].reset_index(drop=True)

    def trajectories_table(self) -> "pyarrow.Table":
        """Every verdict as an Arrow table, whose columns have their units in their metadata."""
        return self._table("verdicts")

    def features(self) -> "pandas.DataFrame":
        """All features, with labels, tags and top tokens."""
        return self._frame("features")

    def sources(self) -> "pandas.DataFrame":
        """Readings of every feature at every hook point of every checkpoint."""
        return self._frame("sources")

    def codes(self, checkpoint: str | None = None) -> scipy.sparse.csr_matrix:
        """The code up to a checkpoint (the newest): positions of the probe corpus x features, float32. `feature_ids`
        has the columns' ids."""
        with tempfile.TemporaryDirectory() as place:
            file = self.client.download_codes(self.name, Path(place) / "codes.npz", checkpoint=checkpoint)
            return scipy.sparse.csr_matrix(scipy.sparse.load_npz(file))

    def feature_ids(self, checkpoint: str | None = None) -> list[str]:
        """Ids of the columns of `codes`, and of the rows of `decoder`."""
        return self.client.code_ids(self.name, checkpoint=checkpoint)

    def dictionary(self, checkpoint: str, hook_point: str | None = None) -> Dictionary:
        """Encoder and decoder of a source, as tensors; a checkpoint of one hook point needs no name of it."""
        _need("torch", for_="tensors")
        import torch  # noqa: PLC0415

        folded, ids = self._folded(checkpoint, hook_point)
        w_enc, b_enc, w_dec, b_dec = (torch.from_numpy(part) for part in folded)
        return Dictionary(w_enc, b_enc, w_dec, b_dec, ids)

    def decoder(self, checkpoint: str, hook_point: str | None = None) -> "Tensor":
        """What a source writes for each feature, in the model's own units: float32 [features, d_model]."""
        return self.dictionary(checkpoint, hook_point).W_dec

    def encode(
        self,
        texts: Sequence[str],
        checkpoint: str,
        hook_point: str | None = None,
        *,
        uri: str | None = None,
        device: str = "cpu",
    ) -> Encoded:
        """Features at every token of texts, read by the checkpoint's own encoder of one hook point.

        The model runs here. uri: where its weights are from here, if the checkpoint's URI leads elsewhere, e.g.
        `file:///home/me/model`. The first token of a text is outside of what the dictionary was fitted on.
        """
        for package in ("torch", "transformers", "pandas"):
            _need(package, for_="encode")
        import pandas  # noqa: PLC0415

        from featurewatch.reading import LoadedModel  # noqa: PLC0415

        about = self.client.checkpoint(self.name, checkpoint)
        where = uri or _weights(about)
        dictionary = self.dictionary(checkpoint, hook_point)
        hook = hook_point or about["hook_points"][0]
        adapter = "" if uri else about["adapter"] or ""
        if self._model is None or self._model[0] != (where, adapter, device):
            self._model = None  # two models at once may be more than fits
            self._model = (where, adapter, device), LoadedModel(where, adapter or None, device)
        tokens, codes = self._model[1].encode(texts, hook, dictionary)
        return Encoded(pandas.DataFrame(tokens), codes, dictionary.feature_ids)

    def _folded(self, checkpoint: str, hook_point: str | None) -> tuple[Autoencoder, list[str]]:
        key = (checkpoint, hook_point or "")
        if key not in self._dictionaries:
            with tempfile.TemporaryDirectory() as place:
                path = Path(place) / "source.safetensors"
                file = self.client.download_dictionary(self.name, checkpoint, path, hook_point=hook_point)
                folded = fold(load_file(file))
            self._dictionaries = {key: (folded, self.feature_ids(checkpoint))}
        return self._dictionaries[key]

    def _frame(self, table: str) -> "pandas.DataFrame":
        _need("pandas", for_="tables")
        frame: pandas.DataFrame = self._table(table).to_pandas()
        return frame

    def _table(self, table: str) -> "pyarrow.Table":
        _need("pyarrow", for_="tables")
        import pyarrow.parquet  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as place:
            file = self.client.download_table(self.name, table, Path(place) / f"{table}.parquet")
            return pyarrow.parquet.read_table(file, memory_map=False)


def _weights(checkpoint: Checkpoint) -> str:
    """The URI of a checkpoint's weights; ClientError where it has none."""
    if checkpoint["uri"].startswith("activations+"):
        raise ClientError(
            f"{checkpoint['name']} came as activations, without a model; name one with uri=, "
            "or encode activations of your own with dictionary(...).encode"
        )
    return checkpoint["uri"]


def _need(package: str, *, for_: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ClientError(f"{for_}: needs {package}: {extras.install(_EXTRAS[package])}")
