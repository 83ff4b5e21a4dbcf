"""Model files as estimators of scikit-learn: texts in, embeddings or labels out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import InvalidInputError
from edgebert.integrations import Source, need_library, take_model
from edgebert.model import Model

need_library(__name__)

from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import Tags

NAMES = {"embedding": "EdgeBertVectorizer", "text-classification": "EdgeBertClassifier"}


class _OfTexts(BaseEstimator):
    """What the two have in common: the file, loaded when it is needed; a clone or pickle loads it again."""

    _task: str

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model; nothing is learned."""
        self._load()
        return self

    def _load(self) -> Model:
        options = {name: value for name in ("backend", "threads") if (value := getattr(self, name)) is not None}
        key = (self.model, options)
        if getattr(self, "_loaded", (None,))[0] != key:
            self._loaded = (key, take_model(self.model, NAMES, self._task, **options))
        return self._loaded[1]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array, tags.requires_fit = True, False, False
        return tags


class EdgeBertVectorizer(TransformerMixin, _OfTexts):
    """Texts to their embeddings, f32 [n, width], by an embedding file."""

    _task = "embedding"

    def __init__(
        self,
        model: Source,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        max_length: int | None = None,
        backend: str | None = None,
        threads: int | None = None,
    ) -> None:
        """Args: a model file or what `edgebert.load` returned, then those of `Model.encode` and of `edgebert.load`."""
        self.model, self.backend, self.threads = model, backend, threads
        self.prompt_name, self.prompt, self.max_length = prompt_name, prompt, max_length
        self.normalize_embeddings, self.truncate_dim = normalize_embeddings, truncate_dim

    def transform(self, X: Iterable[str]) -> NDArray[np.float32]:
        """Embeddings of texts, f32 [n, width]."""
        names = ("prompt_name", "prompt", "normalize_embeddings", "truncate_dim", "max_length")
        rows: NDArray[np.float32] = self._load().encode([*X], **{name: getattr(self, name) for name in names})
        return rows

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """edgebert0, edgebert1, …, one a dimension."""
        width = self.truncate_dim or self._load().spec.output_width("sentence_embedding")[1]
        return np.array([f"edgebert{i}" for i in range(width)], object)


class EdgeBertClassifier(ClassifierMixin, _OfTexts):
    """The labels that a text-classification file gives texts; it was trained before, and `fit` learns nothing."""

    _task = "text-classification"

    def __init__(self, model: Source, *, backend: str | None = None, threads: int | None = None) -> None:
        """Args: a model file or what `edgebert.load` returned, and those of `edgebert.load`."""
        self.model, self.backend, self.threads = model, backend, threads

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the model, and see that it knows the labels of `y`; nothing is learned.

        Raises:
            InvalidInputError: it does not, or gives one score instead of labels.
        """
        known = self.classes_.tolist()
        labels = [] if y is None or np.ndim(y) > 1 else np.unique(y).tolist()
        if unknown := [label for label in labels if label not in known]:
            raise InvalidInputError(f"y has {unknown!r:.100}: the file's labels are {', '.join(known)}")
        return self

    @property
    def classes_(self) -> NDArray[np.object_]:
        """The file's labels, sorted as scikit-learn sorts them; columns are in this order."""
        spec = self._load().spec
        if spec.problem_type == "regression" or len(spec.labels) < 2:
            raise InvalidInputError("this file gives a score, a classifier needs two labels or more: use its rank()")
        return np.array(sorted(spec.labels), object)

    def predict_proba(self, X: Iterable[str]) -> NDArray[np.float32]:
        """Scores, f32 [n, labels], in the order of `classes_`."""
        found = self._load()([*X], task="text-classification", top_k=None)
        rows = [sorted(labels, key=lambda one: one["label"]) for labels in found]
        return np.array([[one["score"] for one in row] for row in rows], np.float32).reshape(-1, len(self.classes_))

    def predict(self, X: Iterable[str]) -> NDArray[Any]:
        """The best label of each text, [n]; where texts may have several, 1 for those above a half, int [n, labels]."""
        scores = self.predict_proba(X)
        is_several = self._load().spec.problem_type == "multi_label_classification"
        labels: NDArray[Any] = (scores > 0.5).astype(int) if is_several else self.classes_[scores.argmax(1)]
        return labels
