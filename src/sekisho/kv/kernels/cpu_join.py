"""The items of one step put together."""

from typing import Any

import numpy as np
from numba import float32

from sekisho.kv.kernels.cpu_machine import compiled
from sekisho.kv.kernels.cpu_pages import Outputs


@compiled
def join(items: Any, outputs: Outputs, output: Any, turned: Any, mass: Any, lse: Any, page_mass: Any) -> None:
    """Items of the same row and head follow each other. Writes what `base.Partial` says, (B, H, G, …) for
    (B, H * G, …); `output`, `turned`, `mass` and `page_mass` are zero before."""
    first = 0
    while first < items.shape[0]:
        row, head = items[first, 0], items[first, 1]
        last = first + 1
        while last < items.shape[0] and items[last, 0] == row and items[last, 1] == head:
            last += 1
        for query in range(mass.shape[2]):
            best, total, on_turned = _sums(outputs.running[first:last, query])
            lse[row, head, query] = -np.inf
            if total > 0:
                lse[row, head, query] = best + np.log(total)
                mass[row, head, query] = on_turned / total
                for item in range(first, last):
                    share = float32(np.exp(outputs.running[item, query, 0] - best) / total)
                    _add(output[row, head, query], share, outputs.plain[item, query])
                    _add(turned[row, head, query], share, outputs.turned[item, query])
        _weigh_pages(page_mass[row, head], outputs.pages[row, head], lse[row, head])
        first = last


@compiled
def _sums(running: Any) -> tuple[Any, np.float32, np.float32]:
    """Of several items: largest logit, sum of weights, sum of those on quantised pages."""
    best = running[0, 0]
    for item in range(1, running.shape[0]):
        best = max(best, running[item, 0])
    total, on_turned = float32(0), float32(0)
    for item in range(running.shape[0]):
        share = np.exp(running[item, 0] - best)
        total += share * running[item, 1]
        on_turned += share * running[item, 2]
    return best, total, on_turned


@compiled
def _add(into: Any, weight: float, numbers: Any) -> None:
    for place in range(into.shape[0]):
        into[place] += weight * numbers[place]


@compiled
def _weigh_pages(page_mass: Any, pages: Any, lse: Any) -> None:
    """The mean over the queries of each page's share."""
    for page in range(pages.shape[0]):
        for query in range(pages.shape[1]):
            if pages[page, query, 1] > 0:
                share = np.exp(pages[page, query, 0] - lse[query]) * pages[page, query, 1]
                page_mass[page] += share / float32(pages.shape[1])
