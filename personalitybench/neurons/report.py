"""What is to be said about neuron sets, as numbers: made from a collection, shown as tables, Markdown and a page.

Every figure that any of those shows is a field here, so ``neurons.json`` holds all of the report.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from personalitybench import __version__
from personalitybench.activations.neurons import NeuronSet, overlap, shared_counts
from personalitybench.errors import ConfigurationError
from personalitybench.neurons.collection import Collection
from personalitybench.traits import Target

DIGITS = 6
"""Of every figure: more than the counts of any fit support, and the same text on every machine."""

STEP = 0.01
"""Between the places at which the distribution of δ is told."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Part):
    """Least, middle and greatest of some numbers."""

    min: float
    median: float
    max: float


class StrongNeuron(_Part):
    """One of a target's neurons with the greatest δ.

    Attributes:
        layer: From 0.
        index: Place in the layer, from 0.
        delta: How much more often it is active than under the opposite pole, a difference of two shares.
        error: Standard error of δ, where the set says it.
        probability: Share of the tokens under the target in which it is active.
        a95: 95th percentile of its activation.
        others: The other targets whose sets it is in.
    """

    layer: int
    index: int
    delta: float
    error: float | None
    probability: float
    a95: float
    others: list[str]


class TargetNeurons(_Part):
    """The neurons of one target.

    Attributes:
        target: Such as ``extraversion:high``.
        neurons: How many.
        share: Of the model's neurons.
        delta: Of |δ|; None where there is no neuron.
        median_error: Median standard error of δ over these neurons, where the set says it.
        by_layer: How many in each layer.
        at_least: How many have a δ of at least each entry of :attr:`NeuronReport.delta_grid`.
        strongest: Those with the greatest δ.
        content: Content hash of the set.
        about: Where the set comes from, as its maker said: settings, selection, data.
    """

    target: str
    neurons: int
    share: float
    delta: Spread | None
    median_error: float | None
    by_layer: list[int]
    at_least: list[int]
    strongest: list[StrongNeuron]
    content: str
    about: dict[str, Any]


class Total(_Part):
    """All targets together.

    Attributes:
        neurons: Sum over the targets; a neuron counts in each set that it is in.
        distinct: Neurons in at least one set.
        share: Of the distinct ones among the model's neurons.
        delta: Of |δ| over all entries; None where there is none.
    """

    neurons: int
    distinct: int
    share: float
    delta: Spread | None


class Overlap(_Part):
    """What the sets of two targets have in common; rows and columns in the order of the report's targets.

    Attributes:
        shared: Neurons in both sets; the diagonal is the size of each.
        share: The same, divided by the size of the smaller set; 0 where that is empty.
    """

    shared: list[list[int]]
    share: list[list[float]]


class NeuronReport(_Part):
    """What the neuron sets of one model look like.

    Attributes:
        format: Name and version of the format.
        personalitybench: Version that made the report.
        model: What the model is called, where a set says it.
        revision: Which weights these are.
        layers: Layers of the model.
        neurons: Neurons in a layer.
        total: All targets together.
        targets: Each target that has a set.
        overlap: What two sets have in common.
        delta_grid: Places at which the distributions of δ are told.
    """

    format: Literal["personalitybench-neuron-report/1"] = "personalitybench-neuron-report/1"
    personalitybench: str = __version__
    model: str | None
    revision: str | None
    layers: int
    neurons: int
    total: Total
    targets: list[TargetNeurons]
    overlap: Overlap
    delta_grid: list[float]


def make_report(collection: Collection, strongest: int = 5) -> NeuronReport:
    """Look at all the sets of a collection.

    Args:
        collection: Sets of one model.
        strongest: How many of the strongest neurons of each target to list.

    Raises:
        ConfigurationError: The count is negative.
    """
    if strongest < 0:
        raise ConfigurationError(f"--strongest must be 0 or more, not {strongest}")
    sets = {target: found.neurons for target, found in collection.sets.items()}
    layers, neurons = collection.shape
    distinct = np.unique(np.concatenate([one.identities for one in sets.values()])).size
    every = np.concatenate([one.delta for one in sets.values()])
    grid = (np.arange(int(every.max(initial=0.0) / STEP) + 2) * STEP).round(DIGITS)
    found = [
        TargetNeurons(
            target=str(target),
            neurons=len(one),
            share=_figure(len(one) / (layers * neurons)),
            delta=_spread(one.delta),
            median_error=None if one.error is None or not len(one) else _figure(np.median(one.error)),
            by_layer=one.counts_by_layer().tolist(),
            at_least=(len(one) - np.searchsorted(np.sort(one.delta), grid.astype(np.float32))).tolist(),
            strongest=_strongest(target, sets, strongest),
            content=one.content_hash,
            about=dict(collection.sets[target].about),
        )
        for target, one in sets.items()
    ]
    listed = list(sets.values())
    return NeuronReport(
        model=collection.model,
        revision=collection.revision,
        layers=layers,
        neurons=neurons,
        total=Total(
            neurons=len(every), distinct=distinct, share=_figure(distinct / (layers * neurons)), delta=_spread(every)
        ),
        targets=found,
        overlap=Overlap(
            shared=shared_counts(listed).tolist(), share=[[_figure(one) for one in row] for row in overlap(listed)]
        ),
        delta_grid=grid.tolist(),
    )


def _strongest(target: Target, sets: dict[Target, NeuronSet], count: int) -> list[StrongNeuron]:
    first = sets[target].strongest(count)
    others = {str(other): np.isin(first.identities, one.identities) for other, one in sets.items() if other != target}
    return [
        StrongNeuron(
            layer=int(first.layer[place]),
            index=int(first.index[place]),
            delta=_figure(first.delta[place]),
            error=None if first.error is None else _figure(first.error[place]),
            probability=_figure(first.probability[place]),
            a95=_figure(first.a95[place]),
            others=[other for other, holds in others.items() if holds[place]],
        )
        for place in range(len(first))
    ]


def _spread(values: npt.NDArray[np.float32]) -> Spread | None:
    if not values.size:
        return None
    return Spread(min=_figure(values.min()), median=_figure(np.median(values)), max=_figure(values.max()))


def _figure(value: float | np.floating[Any]) -> float:
    return round(float(value), DIGITS)
