"""Grows the trees of `solver_tree`: branches over relations until only independent sites are left."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import networkx as nx
import numpy as np

from planner.solver_problem import AtMost, Implies, Ints, Problem, cells
from planner.solver_tree import Tree, runs

# Leaves of all trees together (16 bytes each, about 10 ns to evaluate), and what one Python branch counts for.
MOST_LEAVES = 24_000_000
BRANCH_LEAVES = 2_000
# Relations tried as the next one to branch over: so many of the widest, a sample of so many, at this price a site.
WIDEST_TRIED = 4
TRIED = 32
TRIAL_LEAVES = 20

Relation = AtMost | Implies
Allowed = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Some trees of equal depth: the cells of every leaf, then per level how many children each node has."""

    leaf_sizes: Ints
    leaf_cells: Ints
    levels: tuple[Ints, ...] = ()

    @property
    def roots(self) -> int:
        return len(self.levels[-1]) if self.levels else len(self.leaf_sizes)


def build(problem: Problem, most_leaves: int = MOST_LEAVES, possible: bool = False) -> Tree | None:
    """The tree of a problem, with room for so many leaves; None where its relations contradict one another.

    Where the room is too small, relations are left out, and the tree bounds the problem from below; or, for a tree of
    `possible` choices only, label limits are tightened, and it may be None though the problem has choices.
    """
    builder = Builder(problem, most_leaves)
    parts = list(split(builder.allowed, builder.relations))
    grown: dict[int, Block] = {}
    exact = True
    # The simple ones first: what they leave of the room goes to the others.
    for done, number in enumerate(sorted(range(len(parts)), key=lambda n: len(parts[n][1]))):
        block, changed = builder.within(*parts[number], builder.leaves_left // (len(parts) - done), possible)
        if block is None:
            return None
        exact = exact and not changed
        grown[number] = block
    blocks = [grown[number] for number in range(len(parts))]
    depth = max(len(block.levels) for block in blocks)
    whole = side_by_side([pad(block, depth) for block in blocks])
    return Tree(
        components=tuple(np.array(sorted(part), dtype=np.int64) for part, _ in parts),
        exact=exact,
        order=np.argsort(builder.cell, kind="stable").astype(np.int64),
        cells=runs(np.bincount(builder.cell).astype(np.int64)),
        leaves=runs(whole.leaf_sizes),
        leaf_cells=whole.leaf_cells,
        levels=tuple(runs(sizes) for sizes in whole.levels),
        site_starts=problem.starts,
    )


def split(allowed: Allowed, relations: list[Relation]) -> Iterator[tuple[Allowed, list[Relation]]]:
    """The independent parts, in the order of their first sites, each with its own relations."""
    graph = nx.Graph()
    graph.add_nodes_from(sorted(allowed))
    for relation in relations:
        own = sites_of(relation)
        graph.add_edges_from((own[0], site) for site in own[1:])
    part_of = {}
    parts = sorted(sorted(part) for part in nx.connected_components(graph))
    for number, part in enumerate(parts):
        part_of.update(dict.fromkeys(part, number))
    owned: list[list[Relation]] = [[] for _ in parts]
    for relation in relations:
        owned[part_of[sites_of(relation)[0]]].append(relation)
    for part, relations_of_part in zip(parts, owned, strict=True):
        yield {site: allowed[site] for site in part}, relations_of_part


def sites_of(relation: Relation) -> tuple[int, ...]:
    return relation.everyone if isinstance(relation, AtMost) else (relation.site, relation.other)


def taken_and_free(by_label: Mapping[int, Mapping[int, list[int]]]) -> tuple[list[int], list[int]]:
    """The labels that some site takes in any case, and all others.

    >>> taken_and_free({0: {1: [10], 2: [11]}, 1: {1: [12]}})
    ([1], [2])
    """
    taken = {label for own in by_label.values() if len(own) == 1 for label in own}
    every = {label for own in by_label.values() for label in own}
    return sorted(taken), sorted(every - taken)


class TooLarge(Exception):
    """The tree of a component outgrows its budget. Never leaves this module."""


class Builder:
    """Builds blocks of one problem and counts the leaves they take."""

    def __init__(self, problem: Problem, leaves: int = MOST_LEAVES) -> None:
        self.relations: list[Relation] = [*problem.at_most, *problem.requires]
        numbers = cells(problem)
        counts = np.array([max(own) + 1 for own in numbers])
        first = (np.cumsum(counts) - counts).tolist()
        self.cell = np.concatenate([start + np.array(own) for start, own in zip(first, numbers, strict=True)])
        self.allowed = {s: tuple(range(first[s], first[s] + int(counts[s]))) for s in range(len(counts))}
        representative = np.unique(self.cell, return_index=True)[1]
        local = representative - np.repeat(problem.starts, problem.groups)[representative]
        self.local: list[int] = local.tolist()  # one candidate that stands for its cell
        self.leaves_left = leaves
        self.floor = -math.inf
        self.known: dict[tuple[object, ...], Block | None] = {}

    def within(
        self, allowed: Allowed, relations: list[Relation], budget: int, possible: bool
    ) -> tuple[Block | None, bool]:
        """The block of one component, its widest relations loosened or tightened until it fits; whether any was."""
        left = list(relations)
        changed = False
        while True:
            before = self.leaves_left
            self.known.clear()
            self.floor = before - budget if left else -math.inf
            try:
                return self.parts(allowed, left), changed
            except TooLarge:
                self.leaves_left = before
                changed = True
                widest = max(left, key=lambda relation: self.branches(allowed, relation))
                left.remove(widest)
                if possible:
                    allowed, tighter = self.tightened(allowed, widest)
                    left += tighter

    def tightened(self, allowed: Allowed, relation: Relation) -> tuple[Allowed, list[Relation]]:
        """A stricter relation with fewer branches, or fewer cells that keep it in any case."""
        if isinstance(relation, AtMost) and relation.most > 1:
            return allowed, [replace(relation, most=relation.most - 1)]
        # The last side of an implication takes what it asks for, the first label set has the lowest labels.
        sides = [s for s in self.sides(allowed, relation) if all(s.values())]
        return (sides[-1] if isinstance(relation, Implies) else sides[0]) if sides else allowed, []

    def parts(self, allowed: Allowed, relations: list[Relation]) -> Block | None:
        """The component as one tree."""
        return self.join([[self.part(part, own) for part, own in split(allowed, relations)]])

    def part(self, allowed: Allowed, relations: list[Relation]) -> Block | None:
        """One connected part as one tree; None where its relations leave no choice. The same part is grown once."""
        if len(relations) < 2:
            return self.grow(allowed, relations)
        key = (*allowed.items(), *map(id, relations))
        if key not in self.known:
            self.known[key] = self.grow(allowed, relations)
        elif (block := self.known[key]) is not None:
            self.spend(len(block.leaf_cells))
        return self.known[key]

    def grow(self, allowed: Allowed, relations: list[Relation]) -> Block | None:
        if not relations:
            (own,) = allowed.values()
            self.spend(len(own))
            return Block(np.array([len(own)]), np.array(own, dtype=np.int64)) if own else None
        if len(relations) == 1 and isinstance(relations[0], AtMost):
            return self.label_sets(allowed, relations[0])
        relation = self.best_to_branch(allowed, relations)
        rest = [other for other in relations if other is not relation]
        options = []
        for narrowed in self.sides(allowed, relation):
            self.spend(BRANCH_LEAVES)
            if not all(narrowed.values()):
                continue
            options.append([self.part(part, own) for part, own in split(narrowed, rest)])
        return self.join(options)

    def spend(self, leaves: int) -> None:
        self.leaves_left -= leaves
        if self.leaves_left < self.floor:
            raise TooLarge

    def join(self, options: list[list[Block | None]]) -> Block | None:
        """The minimum over the options that are possible of the sum of their parts."""
        possible: list[list[Block]] = []
        for parts in options:
            there = [part for part in parts if part is not None]
            if len(there) == len(parts):
                possible.append(there)
        if not possible:
            return None
        if len(possible) == 1 and len(possible[0]) == 1:
            return possible[0][0]
        blocks = [block for parts in possible for block in parts]
        depth = max(len(block.levels) for block in blocks)
        below = side_by_side([pad(block, depth) for block in blocks])
        levels = (np.array([len(parts) for parts in possible]), np.array([len(possible)]))
        return Block(below.leaf_sizes, below.leaf_cells, below.levels + levels)

    def labels(self, allowed: Allowed, relation: AtMost) -> dict[int, dict[int, list[int]]]:
        """For each site of an AtMost the allowed cells under each label."""
        result: dict[int, dict[int, list[int]]] = {}
        for site, labels in zip(relation.sites, relation.labels, strict=True):
            own = result.setdefault(site, {})
            for cell in allowed[site]:
                own.setdefault(labels[self.local[cell]], []).append(cell)
        return result

    def branches(self, allowed: Allowed, relation: Relation) -> int:
        if isinstance(relation, Implies):
            return 2
        always, free = taken_and_free(self.labels(allowed, relation))
        sizes = self.sizes(relation, len(always) + len(free))
        return sum(math.comb(len(free), size - len(always)) for size in sizes if size >= len(always))

    @staticmethod
    def sizes(relation: AtMost, count: int) -> range:
        """How many labels, of so many there are, to branch over: as many as may be, since fewer are among them, and
        every number where fewer are cheaper."""
        most = min(relation.most, count)
        return range(most, most + 1) if relation.payer is None else range(1, most + 1)

    def payers(self, allowed: Allowed, relation: AtMost, size: int) -> dict[int, tuple[int, ...]]:
        """The payer with its allowed cells that pay for so many labels; nothing where nobody pays."""
        if relation.payer is None:
            return {}
        return {relation.payer: tuple(c for c in allowed[relation.payer] if relation.paid[self.local[c]] >= size)}

    def best_to_branch(self, allowed: Allowed, relations: list[Relation]) -> Relation:
        """The relation with few branches whose removal leaves parts of few branches, of the widest and a sample: what
        is left in one part is at worst branched over relation by relation, in all combinations."""
        step = -(-len(relations) // TRIED)
        wide = sorted(relations, key=lambda relation: -len(sites_of(relation)))[:WIDEST_TRIED]
        self.spend(TRIAL_LEAVES * len(allowed) * (len(wide) + len(relations[::step])))
        branched = {id(relation): math.log(max(self.branches(allowed, relation), 1)) for relation in relations}

        def work(relation: Relation) -> float:
            """Logarithm of the branches; the same for all that split nothing, of which the widest is taken."""
            rest = [other for other in relations if other is not relation]
            parts = [math.fsum(branched[id(other)] for other in own) for _, own in split(allowed, rest)]
            most = max(parts)
            return round(branched[id(relation)] + most + math.log(math.fsum(math.exp(p - most) for p in parts)), 6)

        return min((*wide, *relations[::step]), key=work)

    def sides(self, allowed: Allowed, relation: Relation) -> Iterator[Allowed]:
        """The ways to keep a relation: what each leaves allowed."""
        if isinstance(relation, Implies):
            taken, needed = frozenset(relation.candidates), frozenset(relation.other_candidates)
            site, other = relation.site, relation.other
            without = {site: tuple(c for c in allowed[site] if self.local[c] not in taken)}
            yield {**allowed, **without}
            within = {s: allowed[s] for s in allowed}
            within[site] = tuple(c for c in within[site] if self.local[c] in taken)
            within[other] = tuple(c for c in within[other] if self.local[c] in needed)
            yield within
            return
        by_label = self.labels(allowed, relation)
        always, free = taken_and_free(by_label)
        for size in self.sizes(relation, len(always) + len(free)):
            payer = self.payers(allowed, relation, size)
            for more in combinations(free, size - len(always)) if size >= len(always) else ():
                subset = sorted((*always, *more))
                yield {
                    **allowed,
                    **{s: tuple(c for label in subset for c in own.get(label, ())) for s, own in by_label.items()},
                    **payer,
                }

    def label_sets(self, allowed: Allowed, relation: AtMost) -> Block | None:
        """One AtMost by itself, all label sets at once: the case that has to be fast."""
        by_label = self.labels(allowed, relation)
        every = sorted({label for own in by_label.values() for label in own})
        if not every:
            return None
        width = max(len(group) for own in by_label.values() for group in own.values())
        cell_of = np.full((len(by_label), len(every), width), -1, dtype=np.int64)
        for place, own in enumerate(by_label.values()):
            for column, label in enumerate(every):
                group = own.get(label, [])
                cell_of[place, column, : len(group)] = group
        blocks = []
        for size in self.sizes(relation, len(every)):
            self.spend(math.comb(len(every), size) * size * width * len(by_label))
            payer = self.payers(allowed, relation, size)
            block = sets_of(size, cell_of, None if relation.payer is None else payer[relation.payer])
            if block is not None:
                blocks.append(block)
        if not blocks:
            return None
        whole = side_by_side(blocks)
        return Block(whole.leaf_sizes, whole.leaf_cells, (*whole.levels, np.array([whole.roots])))


def sets_of(size: int, cell_of: Ints, payer: tuple[int, ...] | None) -> Block | None:
    """For every set of so many labels the sum over sites, and over the payer's cells where there is a payer.

    cell_of  [sites, labels, width]  the cells under each label, -1 where there are fewer
    """
    sites, labels, width = cell_of.shape
    subsets = np.array(list(combinations(range(labels), size)), dtype=np.int64)
    leaves = cell_of[:, subsets].transpose(1, 0, 2, 3).reshape(len(subsets), sites, size * width)
    leaves = leaves[np.all(np.any(leaves >= 0, axis=2), axis=1)]
    if not len(leaves) or payer == ():
        return None
    if payer is not None:
        padded = np.full((len(leaves), sites + 1, max(size * width, len(payer))), -1, dtype=np.int64)
        padded[:, :sites, : size * width] = leaves
        padded[:, sites, : len(payer)] = payer
        leaves = padded
    sizes = (leaves >= 0).sum(axis=2).reshape(-1)
    return Block(sizes, leaves[leaves >= 0], (np.full(len(leaves), leaves.shape[1]),))


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
