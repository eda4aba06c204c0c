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


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some trees of equal depth: the cells of every leaf, then per level how many children each node has."""

    leaf_sizes: Ints
    leaf_cells: Ints
    levels: tuple[Ints, ...] = ()  # from the leaves up: sums, minima, sums, minima, ...

    @property
    def roots(self) -> int:
        return len(self.levels[-1]) if self.levels else len(self.leaf_sizes)


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """The tree at some costs: per component the least cost, and the values of cells and nodes that it came from."""

    value: Floats
    ordered: Floats
    cell_value: Floats
    node_values: tuple[Floats, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tree:
    """All components of a problem. Candidates are sorted by cell; `cell_site` names the site of every cell."""

    components: tuple[Ints, ...]
    exact: bool
    order: Ints
    cell_starts: Ints
    cell_site: Ints
    block: Block
    site_starts: Ints

    @property
    def cell_sizes(self) -> Ints:
        return np.diff(np.append(self.cell_starts, len(self.order)))

    def price(self, costs: Floats) -> Priced:
        """The least cost of every component."""
        ordered = costs[self.order]
        cell_value = np.minimum.reduceat(ordered, self.cell_starts)
        values = [np.minimum.reduceat(cell_value[self.block.leaf_cells], starts(self.block.leaf_sizes))]
        for height, sizes in enumerate(self.block.levels):
            operation = np.minimum if height % 2 else np.add
            values.append(operation.reduceat(values[-1], starts(sizes)))
        return Priced(values[-1], ordered, cell_value, tuple(values))

    def cheapest(self, priced: Priced) -> Ints:
        """The cheapest choice; of equal ones the first."""
        roots = np.arange(self.block.roots)
        nowhere = np.full(len(roots), -1)
        path = [nowhere] * (len(self.block.levels) + 1)
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
        values, levels = priced.node_values, self.block.levels
        query = np.arange(len(nodes))
        for height in range(len(levels) - 1, -1, -1):
            children, owner = children_of(levels[height], nodes)
            if height % 2:
                least = values[height][children] == values[height + 1][nodes][owner]
                forced = nodes[owner] == path[height + 1][query[owner]]
                nodes = first_of(children, owner, np.where(forced, children == path[height][query[owner]], least))
            else:
                nodes, query = children, query[owner]
        entries, owner = children_of(self.block.leaf_sizes, nodes)
        cells = self.block.leaf_cells[entries]
        least = priced.cell_value[cells] == values[0][nodes][owner]
        forced = nodes[owner] == path[0][query[owner]]
        cells = first_of(cells, owner, np.where(forced, cells == cell[query[owner]], least))
        places, owner = children_of(self.cell_sizes, cells)
        least = priced.ordered[places] == priced.cell_value[cells][owner]
        forced = cells[owner] == cell[query[owner]]
        picked = first_of(places, owner, np.where(forced, places == place[query[owner]], least))
        return query, self.order[picked]

    def leaf_slack(self, priced: Priced) -> Floats:
        """For every entry of every leaf, how much dearer than the cheapest its component becomes through it."""
        values, levels = priced.node_values, self.block.levels
        slack = np.zeros(self.block.roots)
        for height in range(len(levels) - 1, -1, -1):
            slack = np.repeat(slack, levels[height])
            if height % 2:
                slack = slack + values[height] - np.repeat(values[height + 1], levels[height])
        result: Floats = np.repeat(slack - values[0], self.block.leaf_sizes) + priced.cell_value[self.block.leaf_cells]
        return result

    def excess(self, costs: Floats) -> Floats:
        """For every candidate, how much dearer than the cheapest its component becomes once it is taken."""
        priced = self.price(costs)
        cell_slack = np.full(len(self.cell_starts), np.inf)
        np.minimum.at(cell_slack, self.block.leaf_cells, self.leaf_slack(priced))
        result = np.empty(len(costs))
        result[self.order] = priced.ordered + np.repeat(cell_slack - priced.cell_value, self.cell_sizes)
        return np.maximum(result, 0.0)

    def through(self, costs: Floats, wanted: Ints) -> tuple[Ints, Ints]:
        """The cheapest choice of the component of each wanted candidate that takes it.

        Returns the candidates picked and, for each, which wanted one it was picked for.
        """
        priced = self.price(costs)
        slack = self.leaf_slack(priced)
        best = np.full(len(self.cell_starts), np.inf)
        np.minimum.at(best, self.block.leaf_cells, slack)
        entries = np.flatnonzero(slack == best[self.block.leaf_cells])
        reached, first = np.unique(self.block.leaf_cells[entries], return_index=True)
        entry_of = np.full(len(best), -1)
        entry_of[reached] = entries[first]
        place = np.argsort(self.order)[wanted]
        cell = np.searchsorted(self.cell_starts, place, side="right") - 1
        if (entry_of[cell] < 0).any():
            raise ValueError("a wanted candidate is in no choice that keeps the relations; its excess is infinite")
        path = [np.searchsorted(starts(self.block.leaf_sizes), entry_of[cell], side="right") - 1]
        for sizes in self.block.levels:
            path.append(np.searchsorted(starts(sizes), path[-1], side="right") - 1)
        query, picked = self.descend(priced, path[-1], path, cell, place)
        return picked, query


def starts(sizes: Ints) -> Ints:
    """Where each run of these lengths starts."""
    result: Ints = np.cumsum(sizes) - sizes
    return result


def children_of(sizes: Ints, nodes: Ints) -> tuple[Ints, Ints]:
    """The children of some nodes in a level, and for each child the position of its parent in `nodes`."""
    counts = sizes[nodes]
    owner = np.repeat(np.arange(len(nodes)), counts)
    within = np.arange(len(owner)) - np.repeat(starts(counts), counts)
    return starts(sizes)[nodes][owner] + within, owner


def first_of(children: Ints, owner: Ints, wanted: Bools) -> Ints:
    """For each owner the first of its children that is wanted."""
    _, first = np.unique(owner[wanted], return_index=True)
    result: Ints = children[wanted][first]
    return result


def pad(block: Block, depth: int) -> Block:
    """The same trees with sums and minima of one child on top."""
    missing = depth - len(block.levels)
    return Block(block.leaf_sizes, block.leaf_cells, block.levels + (np.ones(block.roots, dtype=np.int64),) * missing)


def side_by_side(blocks: list[Block]) -> Block:
    """Trees of equal depth as one block."""
    return Block(
        np.concatenate([block.leaf_sizes for block in blocks]),
        np.concatenate([block.leaf_cells for block in blocks]),
        tuple(np.concatenate(levels) for levels in zip(*(block.levels for block in blocks), strict=True)),
    )
