"""The images of a data loader, in numbered batches that are the same on any number of processes.

Rows are keyed by the sample's index, work by the batch's number: a batch is always made of the same samples,
so its numbers do not depend, to the last bit, on how the work is shared or where it was interrupted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, RandomSampler, SequentialSampler

from camwatch.descriptions import fingerprint
from camwatch.errors import InputError, PanelError
from camwatch.panel.batch import describe, split_sample
from camwatch.panel.dataset import sample_ids


class LoadedBatch(NamedTuple):
    """One batch as it was read.

    Attributes:
        number: Of the batch.
        indices: Of the samples in ``batch``.
        batch: What the loader's ``collate_fn`` made of them; None where no sample could be read.
        failures: Index -> what went wrong, for samples that could not be read.
        fault: Why the whole batch cannot be used, None otherwise.
    """

    number: int
    indices: tuple[int, ...]
    batch: Any
    failures: Mapping[int, str]
    fault: str | None = None


class Batches(Dataset[LoadedBatch]):
    """Reads numbered batches of samples; a sample that cannot be read becomes a mark.

    Args:
        dataset: With integer indices.
        collate: The user's own.
        indices: Of the samples, in order.
        size: Samples per batch.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any], indices: Sequence[int], size: int) -> None:
        self.dataset, self.collate, self.indices, self.size = dataset, collate, indices, size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.size)

    def __getitem__(self, number: int) -> LoadedBatch:
        return self.read(self.indices[number * self.size : (number + 1) * self.size], number)

    def read(self, indices: Iterable[int], number: int = 0) -> LoadedBatch:
        """Reads and collates some samples.

        Where they do not fit together, those that look like most are kept, and the others marked.
        """
        samples, failures = self._samples(list(indices))
        if not samples:
            return LoadedBatch(number, (), None, failures)
        try:
            return LoadedBatch(number, tuple(samples), self.collate(list(samples.values())), failures)
        except Exception:
            looks = {i: describe(sample) for i, sample in samples.items()}
        usual = Counter(looks.values()).most_common(1)[0][0]
        fitting = [i for i, look in looks.items() if look == usual]
        odd = {i: f"it does not fit its batch: {look}, others {usual}" for i, look in looks.items() if look != usual}
        try:
            batch = self.collate([samples[i] for i in fitting])
        except Exception as error:
            fault = f"the loader's collate_fn cannot make a batch of samples like {usual}: {_words(error)}"
            return LoadedBatch(number, (), None, {}, fault)
        return LoadedBatch(number, tuple(fitting), batch, failures | odd)

    def _samples(self, indices: list[int]) -> tuple[dict[int, Any], dict[int, str]]:
        if hasattr(self.dataset, "__getitems__"):
            try:
                return dict(zip(indices, self.dataset.__getitems__(indices), strict=True)), {}
            except Exception:  # one by one, to find out which
                pass
        samples: dict[int, Any] = {}
        failures: dict[int, str] = {}
        for i in indices:
            try:
                samples[i] = self.dataset[i]
                if samples[i] is None:
                    raise ValueError("the data set returned None")
            except Exception as error:
                samples.pop(i, None)
                failures[i] = _words(error)
        return samples, failures


class Shard:
    """Some of the batches, as an iterable that no framework takes apart; nothing is read before it is due."""

    def __init__(self, make: Callable[[], Iterable[LoadedBatch]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[LoadedBatch]:
        yield from self._make()


class SizedShard(Shard):
    """The same, of known length."""

    def __init__(self, make: Callable[[], Iterable[LoadedBatch]], length: int) -> None:
        super().__init__(make)
        self._length = length

    def __len__(self) -> int:
        return self._length


class MapStyleSource:
    """A ``DataLoader`` over a data set with indices: can be shared between processes."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader
        self.dataset: Any = loader.dataset
        size = loader.batch_size or max(map(len, loader.batch_sampler or [[0]]))
        self.batches = Batches(self.dataset, loader.collate_fn, _indices(loader), size)
        self._ids = sample_ids(self.dataset)
        if not len(self.batches):
            raise InputError(
                f"the data loader is empty: its data set, {type(self.dataset).__name__}, has no sample to audit"
            )

    @property
    def total(self) -> int | None:
        """How many batches there are."""
        return len(self.batches)

    def settings(self) -> dict[str, Any]:
        """Returns by what an interrupted audit of the same samples is recognized."""
        return {
            "images": len(self.batches.indices),
            "batch size": self.batches.size,
            "samples": fingerprint(list(map(self.id, self.batches.indices))),
        }

    def id(self, index: int) -> str:
        """Returns a sample's path where the data set tells it, else its index."""
        return self._ids[index]

    def first(self) -> LoadedBatch:
        """Reads the first sample that can be read."""
        failure = ""
        for index in self.batches.indices:
            loaded = self.batches.read([index])
            if loaded.batch is not None:
                return loaded
            failure = loaded.fault or loaded.failures[index]
        raise InputError(f"none of the {len(self.batches.indices)} samples can be read; the last one: {failure}")

    def shard(self, done: Collection[int], rank: int = 0, world: int = 1) -> Shard:
        """Returns every world-th of the batches that are not done."""
        finished = set(done)
        todo = [number for number in range(len(self.batches)) if number not in finished][rank::world]
        options = {
            name: getattr(self.loader, name)
            for name in ("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
        }
        if self.loader.num_workers:
            options["prefetch_factor"] = self.loader.prefetch_factor

        def make() -> Iterable[LoadedBatch]:
            return DataLoader(self.batches, batch_size=None, sampler=todo, collate_fn=_as_it_is, **options)

        return SizedShard(make, len(todo))

    def again(self, indices: Sequence[int]) -> Iterator[LoadedBatch]:
        """Reads some samples once more."""
        for start in range(0, len(indices), self.batches.size):
            yield self.batches.read(indices[start : start + self.batches.size])


class IterableSource:
    """Any other iterable of batches: numbered as they come, on one process."""

    total: int | None = None

    def __init__(self, loader: Iterable[Any], unpack: Callable[[Any], Any] | None) -> None:
        self.loader, self._unpack = loader, unpack
        self.dataset: Any = getattr(loader, "dataset", None)

    def settings(self) -> dict[str, Any]:
        """Returns nothing: what a stream will give is not known."""
        return {}

    def id(self, index: int) -> str:
        """Returns a sample's position."""
        return str(index)

    def _all(self) -> Iterator[LoadedBatch]:
        start = 0
        for number, batch in enumerate(self.loader):
            stop = start + len(split_sample(batch, self._unpack)[0])
            yield LoadedBatch(number, tuple(range(start, stop)), batch, {})
            start = stop

    def first(self) -> LoadedBatch:
        """Reads the first batch."""
        found = next(self._all(), None)
        if found is None:
            raise InputError(f"the data loader is empty: {type(self.loader).__name__} gave no batch to audit")
        return found

    def shard(self, done: Collection[int], rank: int = 0, world: int = 1) -> Shard:
        """Returns the batches that are not done."""
        finished = set(done)
        return Shard(lambda: (loaded for loaded in self._all() if loaded.number not in finished))

    def again(self, indices: Sequence[int]) -> Iterator[LoadedBatch]:
        """Reads the batches that hold some samples once more."""
        wanted = set(indices)
        for loaded in self._all():
            if wanted & set(loaded.indices):
                yield loaded
            wanted -= set(loaded.indices)
            if not wanted:
                return


Source = MapStyleSource | IterableSource


def open_source(loader: Any, unpack: Callable[[Any], Any] | None) -> Source:
    """Makes a source of a data loader.

    Raises:
        InputError: It is empty or cannot be iterated over.
    """
    batched = isinstance(loader, DataLoader) and loader.batch_sampler is not None
    if batched and not isinstance(loader.dataset, IterableDataset):
        return MapStyleSource(loader)
    if not isinstance(loader, Iterable):
        raise InputError(f"expected a data loader, got {type(loader).__name__}")
    if isinstance(loader, Sequence) and not loader:
        raise InputError("the data loader is empty: there is no batch to audit")
    return IterableSource(loader, unpack)


def _indices(loader: DataLoader[Any]) -> Sequence[int]:
    """The samples of a loader: all of its data set, unless its sampler chooses some."""
    sampler, everything = loader.sampler, range(_len(loader))
    assert loader.batch_sampler is not None
    permuted = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples >= len(everything)
    if loader.batch_size is None:  # the batches are the user's own
        chosen = {i for batch in loader.batch_sampler for i in batch}
    elif permuted or isinstance(sampler, (SequentialSampler, DistributedSampler)):
        return everything
    else:
        chosen = set(sampler)
    if not all(isinstance(i, int) for i in chosen):
        raise InputError("the loader's sampler gives no integers; an audit needs samples with integer indices")
    return sorted(chosen)


def _len(loader: DataLoader[Any]) -> int:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except TypeError:
        raise PanelError(f"the data set, {type(loader.dataset).__name__}, has indices but no length") from None


def _as_it_is(value: Any) -> Any:
    return value


def _words(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
