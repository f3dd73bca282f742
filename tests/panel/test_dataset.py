"""Choosing samples of a data set."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split

from camwatch.panel.dataset import choose
from tests.support.panels import IMBALANCED, Samples, labelled


@pytest.mark.parametrize(
    "dataset",
    [
        labelled(IMBALANCED, targets=IMBALANCED.tolist()),
        labelled(IMBALANCED, labels=IMBALANCED.numpy()),
        labelled(IMBALANCED, _labels=IMBALANCED),
        TensorDataset(torch.rand(100, 1), IMBALANCED),
        ConcatDataset([labelled(part, targets=part) for part in (IMBALANCED[:50], IMBALANCED[50:])]),
        Subset(labelled(IMBALANCED, targets=IMBALANCED), range(99, -1, -1)),
        random_split(labelled(IMBALANCED, targets=IMBALANCED), [100, 0])[0],
        labelled(IMBALANCED, dataset=labelled(IMBALANCED, targets=IMBALANCED)),
        labelled(IMBALANCED),
    ],
    ids=["targets", "labels", "_labels", "tensors", "concat", "subset", "split", "wrapper", "read"],
)
def test_choose_balances_the_classes(dataset: Any) -> None:
    for part in getattr(dataset, "datasets", [getattr(dataset, "dataset", dataset)]):
        getattr(part, "read", []).clear()
    chosen = choose(dataset, 9)
    labels = [int(dataset[i][1]) for i in chosen]
    assert Counter(labels) == {0: 3, 1: 3, 2: 3}
    assert sorted(labels[:3]) == [0, 1, 2]  # the first few are what is shown
    assert len(set(chosen)) == 9
    assert choose(dataset, 9) == chosen and choose(dataset, 9, seed=1) != chosen


def test_choose_reads_no_sample_when_the_labels_are_known() -> None:
    dataset = labelled(IMBALANCED, targets=IMBALANCED)
    choose(dataset, 9)
    assert dataset.read == []


def test_choose_reads_at_most_512_samples_and_still_finds_many() -> None:
    dataset = Samples([(None, i % 7) for i in range(2000)])
    assert len(choose(dataset, 64)) == 64 and len(dataset.read) == 512
    dataset.read.clear()
    assert len(set(choose(dataset, 600))) == 600 and dataset.read == []


def test_choose_takes_a_rare_class_whole_and_fills_up() -> None:
    chosen = choose(TensorDataset(torch.rand(100, 1), IMBALANCED), 30)
    assert Counter(IMBALANCED[chosen].tolist()) == {0: 13, 1: 12, 2: 5}


def test_choose_takes_all_of_a_small_data_set_and_no_unlabelled_sample() -> None:
    assert sorted(choose(labelled(torch.tensor([0, 1, 0])), 64)) == [0, 1, 2]
    labels = torch.tensor([0, -1, 1, -1])
    assert sorted(choose(labelled(labels, targets=labels), 4)) == [0, 2]


def test_choose_without_labels_is_random_over_the_data() -> None:
    chosen = choose(Samples(["no label"] * 50), 10)
    assert len(set(chosen)) == 10 and max(chosen) > 20
