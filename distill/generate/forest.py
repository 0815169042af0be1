"""A random forest on texts: features, training on a part of the labels, and its quality on the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import DistillError
from distill.recipe.filters import EducationalSample

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

Matrix = Any  # rows of features, dense (numpy) or sparse (scipy): scikit-learn takes both
Featurize = Callable[[Sequence[str]], Matrix]
_HASHED = 4096


@dataclass(frozen=True)
class Quality:
    """On labels that the forest was not trained on: area under the ROC curve, and accuracy at the threshold."""

    trained_on: int
    held_out: int
    auc: float
    accuracy: float


@dataclass(frozen=True)
class Forest:
    """A trained forest with the features that it reads; `features` says which."""

    model: RandomForestClassifier
    featurize: Featurize
    features: str

    def values(self, texts: Sequence[str]) -> list[float]:
        """For each text the share of trees that call it positive, by their leaves."""
        return [float(value) for value in self.model.predict_proba(self.featurize(texts))[:, 1]]


def require_sklearn() -> None:
    """Raise where scikit-learn is missing: better before the teacher is paid than after."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise DistillError("educational.sample needs scikit-learn", remedy="pip install 'distill[filters]'") from None


def train(section: EducationalSample, texts: Sequence[str], labels: Sequence[bool]) -> tuple[Forest, Quality]:
    """Train on all but the held-out share of the labels, both kinds in proportion, and measure on that share."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import train_test_split

    featurize, name = _features(section)
    matrix = featurize(texts)
    seen, unseen = train_test_split(
        range(len(texts)), test_size=section.held_out, random_state=section.seed, stratify=labels
    )
    model = RandomForestClassifier(n_estimators=section.trees, random_state=section.seed, n_jobs=-1)
    model.fit(matrix[seen], [labels[index] for index in seen])
    forest = Forest(model, featurize, name)
    truth = [labels[index] for index in unseen]
    values = [float(value) for value in model.predict_proba(matrix[unseen])[:, 1]]
    right = sum((value >= section.threshold) == label for value, label in zip(values, truth, strict=True))
    return forest, Quality(len(seen), len(unseen), float(roc_auc_score(truth, values)), right / len(unseen))


def _features(section: EducationalSample) -> tuple[Featurize, str]:
    """Hidden states of the recipe's model, else hashed n-grams."""
    if section.model is not None:
        from distill.generate.embeddings import Embedder  # brings torch

        embedder = Embedder.load(section.model, max_tokens=section.max_tokens)
        return embedder.embed, f"mean hidden state of {Path(section.model).name}"
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        n_features=_HASHED, ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", lowercase=False, alternate_sign=False
    )
    return hashing.transform, f"{_HASHED} hashed counts of tokens and their pairs"
