"""Progress of a run in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from tqdm import tqdm

__all__ = ["RunBar"]


class RunBar:
    """A progress bar on standard error, silent where that is not a terminal."""

    def __init__(self, steps: int) -> None:
        self._bar = tqdm(total=steps, unit="update", disable=None, dynamic_ncols=True)

    def __enter__(self) -> RunBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, step: int, numbers: Mapping[str, float] | None) -> None:
        self._bar.update(step - self._bar.n)
        if numbers is not None:
            shown = {
                "error": f"{numbers['error']:.0%}" if "error" in numbers else None,
                "bound": f"{numbers['bound']:.3f}",
                "ess": f"{numbers['ess']:.2f}",
            }
            self._bar.set_postfix({k: v for k, v in shown.items() if v is not None})
