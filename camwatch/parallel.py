"""One panel, several processes: each explains its share, and all get the same result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from camwatch.errors import CamwatchError

T = TypeVar("T")


class ShareError(CamwatchError, RuntimeError):
    """A process failed in its part of the work; raised on every one of them.

    Attributes:
        memory: Whether one of them lacked memory.
    """

    def __init__(self, message: str, memory: bool) -> None:
        super().__init__(message)
        self.memory = memory


@dataclass(frozen=True)
class Share:
    """This process's part of the work on N images.

    Every process runs equally many images, so that none waits for another: where N does not divide, the last ones
    run an image twice.

    Attributes:
        rank: Which process this is, from 0.
        world: How many processes share the work, over torch.distributed's default group.
        device: Where tensors are gathered.
        whole: Whether each runs all images: parts of a sharded model have to run the same forward passes.
    """

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    whole: bool = False

    def rows(self, n: int) -> Tensor:
        """Returns the indices of the images that this process runs.

        Example:
            >>> Share(rank=1, world=2).rows(5)
            tensor([1, 3, 0])
        """
        if self.whole:
            return torch.arange(n)
        each = -(-n // self.world)
        return (torch.arange(each) * self.world + self.rank) % n

    def gather_rows(self, n: int, function: Callable[[Tensor], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Applies a function to every process's rows and returns the (N, ...) results, on the CPU, on all.

        The function must not wait for other processes.

        Args:
            n: How many images there are.
            function: From (rows,) indices to named tensors (rows, ...), the same names and types on all processes.

        Raises:
            ShareError: It failed on one of several processes. A single one raises what it raised.

        Example:
            >>> Share().gather_rows(3, lambda rows: {"square": rows**2})
            {'square': tensor([0, 1, 4])}
        """
        mine = self.raise_together(lambda: function(self.rows(n)))
        if self.world == 1 or self.whole:
            return {name: value.cpu() for name, value in mine.items()}
        return {name: self._gather(mine[name]).transpose(0, 1).flatten(0, 1)[:n] for name in sorted(mine)}

    def raise_together(self, function: Callable[[], T]) -> T:
        """Calls a function on every process; where it raises on one, all of them raise.

        So no process is left waiting for another. May be nested, as ``gather_rows`` does: whoever fails answers the
        others' next question, wherever they ask it, and after that all are at the same point.

        Raises:
            ShareError: It failed on one of several processes. A single one raises what it raised.

        Example:
            >>> Share().raise_together(lambda: 3)
            3
        """
        if self.world == 1:
            return function()
        error: Exception | None = None
        try:
            result = function()
        except ShareError:  # all of them know
            raise
        except Exception as raised:
            error = raised
        status = 0 if error is None else 1 + lacks_memory(error)
        statuses = self._gather(torch.tensor([status], dtype=torch.uint8)).flatten()
        if not bool(statuses.any()):
            return result
        failed = int(statuses.nonzero()[0])
        reason = "it says why" if error is None else f"{type(error).__name__}: {error}"
        raise ShareError(f"process {failed} of {self.world} failed: {reason}", bool((statuses == 2).any())) from error

    def broadcast(self, value: T) -> T:
        """Returns process 0's value on all of them, so that they go on alike."""
        held = [value]
        if self.world > 1:
            torch.distributed.broadcast_object_list(held, src=0, device=torch.device(self.device))
        return held[0]

    def _gather(self, tensor: Tensor) -> Tensor:
        """Returns (world, ...) on the CPU."""
        mine = tensor.detach().to(self.device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        torch.distributed.all_gather(parts, mine)
        return torch.stack(parts).cpu()


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, on this process or another.

    Example:
        >>> lacks_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory")), lacks_memory(ValueError())
        (True, False)
    """
    if isinstance(error, ShareError):
        return error.memory
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    said = ("out of memory", "can't allocate memory", "not enough memory")
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in said))


class Batches:
    """How many of N images are run at once: fewer once memory lacked, on all processes alike.

    Args:
        share: This process's part of the work.
        n: How many images there are.
        size: At once, to begin with.

    Example:
        >>> batches = Batches(Share(), n=8, size=32)
        >>> def work():
        ...     if batches.size > 2:
        ...         raise MemoryError
        ...     return batches.size
        >>> batches.work(work)
        2
    """

    def __init__(self, share: Share, n: int, size: int) -> None:
        self.share, self.n, self.size = share, n, size

    def work(self, function: Callable[[], T]) -> T:
        """Calls a function on every process; where memory lacks, again with half the images at once.

        Raises:
            Exception: What the function raises otherwise, or with one image.
        """
        while True:
            try:
                return self.share.raise_together(function)
            except Exception as error:
                size = min(self.size, len(self.share.rows(self.n)))
                if not lacks_memory(error) or size == 1:
                    raise
            # Outside of the handler, whose error holds on to the memory; later work keeps to it.
            self.size = size // 2
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()
