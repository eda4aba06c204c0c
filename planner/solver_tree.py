"""The cheapest choice at given candidate costs, limits left aside: exact, and in numpy whatever the relations.

Sites that share a relation are a component, and components are independent. Inside one, relations are taken one at a
time: branch over the label sets (or the two sides of an implication), which leaves smaller independent parts. What
results is a tree of minima over branches and sums over parts, grown once (`solver_branch`), evaluated often, level by
level:

    min over branches ( sum over parts ( ... min over candidates of one site ... ) )

A relation whose tree would be too large is left out. Then the result is a lower bound rather than a possible choice.
"""

from dataclasses import dataclass

import numpy as np

from planner.solver_problem import Bools, Floats, Ints

# Equal runs up to this long are reduced column by column.
WIDE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """How a level's nodes share out the values below it: consecutive runs; `width` is their length if all are equal."""

    sizes: Ints
    starts: Ints
    width: int

    def reduce(self, operation: np.ufunc, values: Floats) -> Floats:
        """One value for each run. Short equal runs go column by column, which numpy does several times faster."""
        if not 0 < self.width <= WIDE:
            uneven: Floats = operation.reduceat(values, self.starts)
            return uneven
        columns = values.reshape(-1, self.width)
        result: Floats = columns[:, 0].copy()
        for column in range(1, self.width):
            operation(result, columns[:, column], out=result)
        return result


def runs(sizes: Ints) -> Runs:
    """Runs of these lengths.

    >>> runs(np.array([2, 1])).reduce(np.add, np.array([1.0, 2.0, 4.0])).tolist()
    [3.0, 4.0]
    >>> runs(np.array([2, 2])).reduce(np.minimum, np.array([1.0, 2.0, 4.0, 3.0])).tolist()
    [1.0, 3.0]
    """
    width = int(sizes[0]) if (sizes == sizes[0]).all() else 0
    return Runs(sizes, np.cumsum(sizes) - sizes, width)


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """The tree at some costs: per component the least cost, and the values of cells and nodes that it came from."""

    value: Floats
    ordered: Floats
    cell_value: Floats
    node_values: tuple[Floats, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """All components of a problem. Candidates are sorted by cell, `order` names them; leaves are one site's minima."""

    components: tuple[Ints, ...]
    exact: bool
    order: Ints
    cells: Runs
    leaves: Runs
    leaf_cells: Ints
    levels: tuple[Runs, ...]  # from the leaves up: sums, minima, sums, minima, ...
    site_starts: Ints

    def price(self, costs: Floats) -> Priced:
        """The least cost of every component."""
        ordered = costs[self.order]
        cell_value = self.cells.reduce(np.minimum, ordered)
        values = [self.leaves.reduce(np.minimum, cell_value[self.leaf_cells])]
        for height, level in enumerate(self.levels):
            values.append(level.reduce(np.minimum if height % 2 else np.add, values[-1]))
        return Priced(values[-1], ordered, cell_value, tuple(values))

    def cheapest(self, priced: Priced) -> Ints:
        """The cheapest choice; of equal ones the first."""
        roots = np.arange(len(self.components))
        nowhere = np.full(len(roots), -1)
        path = [nowhere] * (len(self.levels) + 1)
        _, picked = self.descend(priced, roots, path, nowhere, nowhere)
        return self.local(picked)

    def local(self, picked: Ints) -> Ints:
        """Site by site the local index of candidates that are one for each site, in any order."""
        sites = np.searchsorted(self.site_starts, picked, side="right") - 1
        chosen = np.empty(len(self.site_starts), dtype=np.int64)
        chosen[sites] = picked - self.site_starts[sites]
        return chosen

    def descend(self, priced: Priced, nodes: Ints, path: list[Ints], cell: Ints, place: Ints) -> tuple[Ints, Ints]:
        """From each root down the least children, keeping to its path (node by level, cell, place) where it has one.

        Returns the candidates picked and, for each, which root it was picked for.
        """
        values, levels = priced.node_values, self.levels
        query = np.arange(len(nodes))
        for height in range(len(levels) - 1, -1, -1):
            if height % 2:
                # What the path decides is not searched: above it may be a hundred thousand branches.
                forced = nodes == path[height + 1][query]
                free = nodes[~forced]
                children, owner = children_of(levels[height], free)
                least = values[height][children] == values[height + 1][free][owner]
                nodes = path[height][query]
                nodes[~forced] = first_of(children, owner, least)
            else:
                nodes, owner = children_of(levels[height], nodes)
                query = query[owner]
        entries, owner = children_of(self.leaves, nodes)
        cells = self.leaf_cells[entries]
        least = priced.cell_value[cells] == values[0][nodes][owner]
        forced = nodes[owner] == path[0][query[owner]]
        cells = first_of(cells, owner, np.where(forced, cells == cell[query[owner]], least))
        places, owner = children_of(self.cells, cells)
        least = priced.ordered[places] == priced.cell_value[cells][owner]
        forced = cells[owner] == cell[query[owner]]
        picked = first_of(places, owner, np.where(forced, places == place[query[owner]], least))
        return query, self.order[picked]

    def leaf_slack(self, priced: Priced) -> Floats:
        """For every entry of every leaf, how much dearer than the cheapest its component becomes through it."""
        values, levels = priced.node_values, self.levels
        slack = np.zeros(len(self.components))
        for height in range(len(levels) - 1, -1, -1):
            slack = np.repeat(slack, levels[height].sizes)
            if height % 2:
                slack = slack + values[height] - np.repeat(values[height + 1], levels[height].sizes)
        result: Floats = np.repeat(slack - values[0], self.leaves.sizes) + priced.cell_value[self.leaf_cells]
        return result

    def excess(self, costs: Floats) -> Floats:
        """For every candidate, how much dearer than the cheapest its component becomes once it is taken."""
        priced = self.price(costs)
        cell_slack = np.full(len(self.cells.sizes), np.inf)
        np.minimum.at(cell_slack, self.leaf_cells, self.leaf_slack(priced))
        result = np.empty(len(costs))
        result[self.order] = priced.ordered + np.repeat(cell_slack - priced.cell_value, self.cells.sizes)
        return np.maximum(result, 0.0)

    def through(self, costs: Floats, wanted: Ints) -> tuple[Ints, Ints]:
        """The cheapest choice of the component of each wanted candidate that takes it.

        Returns the candidates picked and, for each, which wanted one it was picked for.
        """
        priced = self.price(costs)
        slack = self.leaf_slack(priced)
        best = np.full(len(self.cells.sizes), np.inf)
        np.minimum.at(best, self.leaf_cells, slack)
        entries = np.flatnonzero(slack == best[self.leaf_cells])
        reached, first = np.unique(self.leaf_cells[entries], return_index=True)
        entry_of = np.full(len(best), -1)
        entry_of[reached] = entries[first]
        place = np.argsort(self.order)[wanted]
        cell = np.searchsorted(self.cells.starts, place, side="right") - 1
        if (entry_of[cell] < 0).any():
            raise ValueError("a wanted candidate is in no choice that keeps the relations; its excess is infinite")
        path = [np.searchsorted(self.leaves.starts, entry_of[cell], side="right") - 1]
        for level in self.levels:
            path.append(np.searchsorted(level.starts, path[-1], side="right") - 1)
        query, picked = self.descend(priced, path[-1], path, cell, place)
        return picked, query


def children_of(level: Runs, nodes: Ints) -> tuple[Ints, Ints]:
    """The children of some nodes in a level, and for each child the position of its parent in `nodes`."""
    counts = level.sizes[nodes]
    owner = np.repeat(np.arange(len(nodes)), counts)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return level.starts[nodes][owner] + within, owner


def first_of(children: Ints, owner: Ints, wanted: Bools) -> Ints:
    """For each owner the first of its children that is wanted."""
    _, first = np.unique(owner[wanted], return_index=True)
    result: Ints = children[wanted][first]
    return result
