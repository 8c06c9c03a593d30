"""One process's part of a minibatch, with the draws that its data would get in a single process."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.primitives.distributions import NoRule, select_rows
from wsram_ppl.primitives.handlers import PARTICLE_PLATE, has_density


class BatchShard:
    """Which rows of each minibatch belong to this process, and the random numbers for them.

    A sample site's random numbers are drawn for all rows of the minibatch, from a stream that is the
    same in every process, and this process keeps those of its own rows. So a datum's draws are bit for
    bit those that it would get in a single process, however many processes there are. Everything else
    that is random (dropout) has a stream per process. With one process this class does nothing.

    Args:
        rank: this process's rank, from 0.
        count: number of processes.
        device: where sites are sampled.
    """

    def __init__(self, rank: int, count: int, device: torch.device) -> None:
        self.rank, self.count, self.device = rank, count, device
        self._stream: Tensor | None = None
        self._plate: str | None = None

    def rows(self, size: int) -> slice:
        """This process's rows of ``size``: a contiguous part; parts differ by at most one row."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def part(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """This process's rows of a whole minibatch."""
        return batch if self.count == 1 else tuple(x[self.rows(x.shape[0])] for x in batch)

    def seed(self, sites: int, own: int) -> None:
        """Seeds both streams.

        Args:
            sites: seed of the sample sites; the same in every process.
            own: seed of everything else; unused with one process, which has only the first stream.
        """
        generator = _generator(self.device)
        if self.count > 1:
            self._stream = generator.manual_seed(sites).get_state()
        seed = sites if self.count == 1 else own
        # Not torch.manual_seed, which looks for all other devices every time it is called.
        torch.default_generator.manual_seed(seed)
        generator.manual_seed(seed)

    def drawing(self, size: int) -> AbstractContextManager[Any]:
        """A context for running programs on this process's rows of a minibatch of ``size``."""
        return nullcontext() if self.count == 1 else _RowsOfAll(self, size)

    def data_plate(self, msg: dict[str, Any], size: int) -> int:
        """The dimension of the plate over the data.

        Raises:
            InputError: the site lies in none, or in two possible ones.
        """
        frames = [f for f in msg["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE]
        found = [f for f in frames if f.size == size]
        if len(found) > 1:
            found = [f for f in found if f.name == self._plate] or found
        if not found:
            raise InputError(
                f"site '{msg['name']}' lies in no plate of the minibatch's {size} data: it belongs to "
                "all of them at once and cannot be split among processes: use training.devices = 1"
            )
        if len(found) > 1:
            names = " and ".join(repr(f.name) for f in found)
            raise InputError(
                f"site '{msg['name']}' lies in plates {names} of the same size {size}, any of which may "
                "be that of the data: choose another batch_size"
            )
        if found[0].full_size not in (None, size):
            raise InputError(
                f"plate '{found[0].name}' is subsampled, and its scale would be that of one process's "
                "share: let the data source choose the minibatch, or use training.devices = 1"
            )
        self._plate = found[0].name
        return int(found[0].dim)

    @contextmanager
    def site_stream(self) -> Iterator[None]:
        """Replaces the generator by the stream that all processes share."""
        assert self._stream is not None, "seed comes first"
        generator = _generator(self.device)
        own = generator.get_state()
        generator.set_state(self._stream)
        try:
            yield
        finally:
            self._stream = generator.get_state()
            generator.set_state(own)


class _RowsOfAll(Messenger):
    """Samples latent sites as for the whole minibatch and keeps the rows of one process.

    As the outermost handler it sees distributions as other handlers have left them, after
    plates have broadcast them.
    """

    def __init__(self, shard: BatchShard, size: int) -> None:
        super().__init__()
        self.shard, self.size = shard, size
        rows = shard.rows(size)
        self.start, self.length = rows.start, rows.stop - rows.start
        # Row g of all is row g - start of this share; the contents of other rows do not matter.
        self.all = (torch.arange(size, device=shard.device) - self.start).remainder(max(self.length, 1))

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        if not has_density(msg):
            return
        dim = self.shard.data_plate(msg, self.length)
        if msg["is_observed"] or msg["value"] is not None:
            return
        try:
            wide = select_rows(fn, dim, self.all)
        except NoRule as kind:
            warnings.warn(
                f"each process draws site '{msg['name']}' from its own stream (there is no rule to "
                f"split the draws of a {kind}): the number of processes changes them as a seed does",
                stacklevel=2,
            )
            return
        with self.shard.site_stream():
            value = wide(*msg["args"], **msg["kwargs"])
        msg["value"] = value.narrow(dim - fn.event_dim, self.start, self.length).contiguous()


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.mps._get_default_mps_generator()
